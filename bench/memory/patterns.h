// The patterns, and how one sample of a pattern is taken.
//
//   pair    allocate one, free it
//   out32   allocate 32, free them in random order
//   churn   1,024 are held: free a random one, allocate another in its place
//   bulk    allocate 32 by one call, free them by one call
//   cross   one CPU allocates, another frees; batches of 256 go over through an array
//
// A sample is made of windows of about a millisecond. All threads of a window start together and
// run chunks of 1,024 pairs until the time is over. A window in which a thread was preempted is
// disturbed and not counted, as long as a third of the wanted windows are not. The sample is the
// median of the windows: nanoseconds that one thread needs for an allocate and a free together, the
// loop around them included.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <numeric>
#include <random>
#include <span>
#include <vector>

#include "bench/memory/crew.h"
#include "bench/memory/subject.h"

namespace forebay::bench {

enum class pattern : std::uint8_t { pair, out32, churn, bulk, cross };

struct sample_request {
  pattern what = pattern::pair;
  unsigned threads = 1;  // cross has always two
  bool touch = false;    // write the first bytes of each object
  unsigned windows = 15;
  std::uint64_t window_ns = 1'000'000;
};

struct sample {
  bool ran_dry = false;  // an allocation failed; nothing else is valid
  double ns = 0;
  unsigned windows = 0;  // undisturbed
  unsigned disturbed = 0;
};

inline constexpr std::size_t out_count = 32;
inline constexpr std::size_t held_count = 1024;
inline constexpr std::size_t chunk_pairs = 1024;
inline constexpr std::size_t cross_batch = 256;

// One thread's part in all patterns but cross.
template <Subject S, bool Touch>
class worker {
 public:
  using item = typename S::item;

  worker(S& subject, pattern what, unsigned seed) : subject_(subject), what_(what) {
    std::mt19937 random(seed);
    for (auto& order : orders_) {
      std::iota(order.begin(), order.end(), std::uint8_t{0});
      std::shuffle(order.begin(), order.end(), random);
    }
    for (auto& index : indexes_) index = static_cast<std::uint16_t>(random() % held_count);
  }

  // Allocates what is held all the time.
  bool prepare() {
    if (what_ != pattern::churn) return true;
    held_.resize(held_count);
    for (item& i : held_) {
      if (!get(i)) return false;
    }
    return true;
  }

  // chunk_pairs pairs; false when the subject ran dry.
  bool chunk() noexcept {
    switch (what_) {
      case pattern::pair:
        return pairs();
      case pattern::out32:
        return out();
      case pattern::churn:
        return churn();
      default:
        return bulk();
    }
  }

  void finish() noexcept {
    for (item& i : held_) put(i);
    held_.clear();
  }

 private:
  bool get(item& to) noexcept {
    to = subject_.allocate();
    if (S::is_none(to)) [[unlikely]]
      return false;
    if constexpr (Touch) touch<S>(to);
    keep(to);
    return true;
  }
  void put(item& i) noexcept {
    if (!S::is_none(i)) subject_.free(std::move(i));
  }

  bool pairs() noexcept {
    for (std::size_t n = 0; n < chunk_pairs; ++n) {
      item i = subject_.allocate();
      if (S::is_none(i)) [[unlikely]]
        return false;
      if constexpr (Touch) touch<S>(i);
      keep(i);
      subject_.free(std::move(i));
    }
    return true;
  }

  bool out() noexcept {
    for (std::size_t n = 0; n < chunk_pairs / out_count; ++n) {
      for (std::size_t i = 0; i < out_count; ++i) {
        if (!get(out_[i])) [[unlikely]] {
          while (i-- > 0) put(out_[i]);
          return false;
        }
      }
      for (const std::uint8_t i : orders_[next_++ % orders_.size()]) {
        subject_.free(std::move(out_[i]));
      }
    }
    return true;
  }

  bool churn() noexcept {
    for (std::size_t n = 0; n < chunk_pairs; ++n) {
      item& slot = held_[indexes_[next_++ % indexes_.size()]];
      subject_.free(std::move(slot));
      if (!get(slot)) [[unlikely]]
        return false;
    }
    return true;
  }

  bool bulk() noexcept {
    for (std::size_t n = 0; n < chunk_pairs / out_count; ++n) {
      if (!subject_.allocate_bulk(std::span<item>(out_))) [[unlikely]]
        return false;
      if constexpr (Touch) {
        for (item& i : out_) touch<S>(i);
      }
      for (item& i : out_) keep(i);
      subject_.free_bulk(std::span<item>(out_));
    }
    return true;
  }

  S& subject_;
  const pattern what_;
  std::size_t next_ = 0;
  std::vector<item> held_;
  std::array<item, out_count> out_{};
  std::array<std::array<std::uint8_t, out_count>, 128> orders_;
  std::array<std::uint16_t, 4096> indexes_;
};

// The way from the CPU that allocates to the one that frees: a ring of batches, each with its flag
// in a line of its own. It is the same for every subject and part of the figure.
template <typename Item>
class cross_ring {
 public:
  enum state : std::uint32_t { empty, full, last };  // last: empty of items, and the window's end

  struct batch {
    alignas(128) std::atomic<std::uint32_t> state{empty};
    alignas(128) std::array<Item, cross_batch> items{};
  };

  // The next batch, when the other side is done with it. One thread on each side.
  batch& next_to_fill() noexcept {
    batch& b = batches_[fill_++ % batches_.size()];
    patience p;
    // acquire: the consumer has read the items
    while (b.state.load(std::memory_order_acquire) != empty) p.wait();
    return b;
  }
  batch& next_to_drain() noexcept {
    batch& b = batches_[drain_++ % batches_.size()];
    patience p;
    // acquire: the producer has written the items
    while (b.state.load(std::memory_order_acquire) == empty) p.wait();
    return b;
  }
  static void pass(batch& b, state s) noexcept {
    b.state.store(s, std::memory_order_release);  // release: what was done with the items before
  }

 private:
  std::array<batch, 8> batches_;
  alignas(128) std::size_t fill_ = 0;
  alignas(128) std::size_t drain_ = 0;
};

// What one thread measured in one window.
struct alignas(128) reading {
  std::uint64_t wall_ns = 0;
  std::uint64_t pairs = 0;
  bool disturbed = false;
  bool ran_dry = false;

  double ns() const noexcept {
    return static_cast<double>(wall_ns) / static_cast<double>(std::max<std::uint64_t>(1, pairs));
  }
};

// Measures what `body` does in one window; body(end) returns how many pairs it did until now_ns()
// was past `end`, or sets ran_dry.
template <typename Body>
void take_reading(reading& r, std::uint64_t window_ns, Body&& body) {
  r.ran_dry = false;
  const std::uint64_t preempted = preemptions();
  const std::uint64_t start = now_ns();
  r.pairs = body(start + window_ns);
  r.wall_ns = now_ns() - start;
  r.disturbed = preemptions() != preempted;
}

// Collects windows until there are enough.
class window_log {
 public:
  explicit window_log(const sample_request& request) : request_(request) {}

  // False when no more windows are wanted. `cross` counts only what the second thread measured.
  bool add(std::span<const reading> threads, bool cross) {
    const bool dry = std::ranges::any_of(threads, &reading::ran_dry);
    result_.ran_dry = result_.ran_dry || dry;
    if (dry) return false;
    if (warm_up_++ < warm_up_windows) return true;
    double ns = 0;
    for (const reading& r : threads) ns += r.ns() / static_cast<double>(threads.size());
    if (cross) ns = threads.back().ns();
    const bool disturbed = std::ranges::any_of(threads, &reading::disturbed);
    (disturbed ? disturbed_ : good_).push_back(ns);
    return good_.size() < request_.windows &&
           good_.size() + disturbed_.size() < 4 * std::size_t{request_.windows};
  }

  sample result() {
    result_.windows = static_cast<unsigned>(good_.size());
    result_.disturbed = static_cast<unsigned>(disturbed_.size());
    std::vector<double> of = good_;
    if (3 * good_.size() < request_.windows)
      of.insert(of.end(), disturbed_.begin(), disturbed_.end());
    if (of.empty()) return result_;
    std::ranges::nth_element(of, of.begin() + static_cast<std::ptrdiff_t>(of.size() / 2));
    result_.ns = of[of.size() / 2];
    return result_;
  }

 private:
  static constexpr unsigned warm_up_windows = 2;

  const sample_request& request_;
  sample result_;
  unsigned warm_up_ = 0;
  std::vector<double> good_;
  std::vector<double> disturbed_;
};

template <bool Touch, Subject S>
sample measure_alone(crew& threads, S& subject, const sample_request& request) {
  window_log log(request);
  spin_barrier barrier(request.threads);
  std::array<reading, crew_size> readings;
  bool more = true;
  threads.run(request.threads, [&](unsigned index) {
    const auto w = std::make_unique<worker<S, Touch>>(subject, request.what, index + 1);
    reading& r = readings[index];
    const bool prepared = w->prepare();
    while (more) {
      barrier.meet();
      take_reading(r, request.window_ns, [&](std::uint64_t end) {
        std::uint64_t pairs = 0;
        do {
          r.ran_dry = !prepared || !w->chunk();
          pairs += chunk_pairs;
        } while (!r.ran_dry && now_ns() < end);
        return pairs;
      });
      barrier.meet();
      if (index == 0) more = log.add({readings.data(), request.threads}, false);
      barrier.meet();
    }
    w->finish();
  });
  return log.result();
}

// The producer's part of a window: batches until the end, then the last one, which is empty.
template <bool Touch, Subject S>
std::uint64_t produce(S& subject, cross_ring<typename S::item>& ring, std::uint64_t end,
                      bool& ran_dry) {
  using ring_type = cross_ring<typename S::item>;
  std::uint64_t pairs = 0;
  do {
    auto& batch = ring.next_to_fill();
    for (auto& item : batch.items) {
      item = subject.allocate();
      ran_dry = ran_dry || S::is_none(item);
      if constexpr (Touch) {
        if (!ran_dry) touch<S>(item);
      }
    }
    ring_type::pass(batch, ring_type::full);
    pairs += cross_batch;
  } while (!ran_dry && now_ns() < end);
  ring_type::pass(ring.next_to_fill(), ring_type::last);
  return pairs;
}

template <Subject S>
std::uint64_t consume(S& subject, cross_ring<typename S::item>& ring) {
  using ring_type = cross_ring<typename S::item>;
  std::uint64_t pairs = 0;
  while (true) {
    auto& batch = ring.next_to_drain();
    // relaxed: next_to_drain() has acquired it
    const bool last = batch.state.load(std::memory_order_relaxed) == ring_type::last;
    if (!last) {
      for (auto& item : batch.items) {
        if (!S::is_none(item)) [[likely]]
          subject.free(std::move(item));
      }
      pairs += cross_batch;
    }
    ring_type::pass(batch, ring_type::empty);
    if (last) return pairs;
  }
}

template <bool Touch, Subject S>
sample measure_cross(crew& threads, S& subject, const sample_request& request) {
  window_log log(request);
  spin_barrier barrier(2);
  std::array<reading, 2> readings;
  bool more = true;
  const auto ring = std::make_unique<cross_ring<typename S::item>>();
  threads.run(2, [&](unsigned index) {
    reading& r = readings[index];
    while (more) {
      barrier.meet();
      take_reading(r, request.window_ns, [&](std::uint64_t end) {
        return index == 0 ? produce<Touch>(subject, *ring, end, r.ran_dry)
                          : consume(subject, *ring);
      });
      barrier.meet();
      if (index == 0) more = log.add(readings, true);
      barrier.meet();
    }
  });
  return log.result();
}

template <Subject S>
sample measure(crew& threads, S& subject, const sample_request& request) {
  if (request.what == pattern::cross) {
    return request.touch ? measure_cross<true>(threads, subject, request)
                         : measure_cross<false>(threads, subject, request);
  }
  return request.touch ? measure_alone<true>(threads, subject, request)
                       : measure_alone<false>(threads, subject, request);
}

}  // namespace forebay::bench
