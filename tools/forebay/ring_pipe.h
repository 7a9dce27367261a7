// What an item costs on its way between two pinned threads: the measuring loop of `forebay bench
// burst` and of the programs in bench/ring, which put the peers' rings through the same.
//
//   pipe    one thread pushes, the other pops
//   pair    each of the two threads pushes a batch and pops a batch
//
// A sample is made of windows of about a millisecond. Both threads of a window start together; in a
// pipe the last item pushed says that it is over. A window in which a thread lost its CPU is
// disturbed and not counted, as long as a third of the wanted windows are not. The sample is the
// median of the windows: nanoseconds for each item that has gone through, the loop around it
// included.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "forebay/base/spin.h"
#include "forebay/os/clock.h"
#include "forebay/os/cpu.h"

namespace forebay::tool {

inline constexpr std::size_t pipe_capacity = 1024;
inline constexpr std::size_t batch_max = 256;

// clang-format off
template <typename R>
concept PipedRing = requires(R& ring, std::span<void*> out, std::span<void* const> in) {
  { ring.push(in) } noexcept -> std::same_as<bool>;  // all of them, or false and none
  { ring.pop(out) } noexcept -> std::same_as<bool>;
};
// clang-format on

struct pipe_request {
  std::size_t batch = 1;  // at most batch_max
  bool pair = false;
  unsigned windows = 15;
  std::uint64_t window_ns = 1'000'000;
  std::array<unsigned, 2> cpus{0, 1};
};

struct pipe_sample {
  std::string failure;   // nothing else is valid, if there is one
  double ns = 0;         // an item
  unsigned windows = 0;  // undisturbed
  unsigned disturbed = 0;
};

namespace pipe_detail {

// Waits inside a loop that waits for the other CPU; gives its own away now and then, so that a
// thread that lost its comes back.
class patience {
 public:
  void wait() noexcept {
    if (++turns_ % 4096 == 0) {
      std::this_thread::yield();
    } else {
      cpu_relax();
    }
  }

 private:
  unsigned turns_ = 0;
};

// A meeting point of two threads, both awake.
class meeting {
 public:
  void meet() noexcept {
    const std::uint32_t phase = phase_;
    if (++arrived_ == 2) {
      arrived_ = 0;
      ++phase_;
      return;
    }
    for (patience p; phase_ == phase;) p.wait();
  }

 private:
  std::atomic<std::uint32_t> arrived_{0};
  std::atomic<std::uint32_t> phase_{0};
};

struct alignas(128) reading {
  std::uint64_t ns = 0;
  std::uint64_t items = 0;
  bool disturbed = false;
};

inline void* const last_item = reinterpret_cast<void*>(UINTPTR_MAX);
inline constexpr std::size_t items_between_looks = 4096;  // at the clock

template <PipedRing R>
class run {
 public:
  run(R& ring, const pipe_request& request) : ring_(ring), request_(request) {}

  pipe_sample take() {
    std::thread other([this] { work(1); });
    std::thread first([this] { work(0); });
    first.join();
    other.join();
    return result();
  }

 private:
  void work(unsigned index) {
    if (!pin_to_cpu(request_.cpus[index])) failed_ = true;
    meeting_.meet();
    while (more_ && !failed_) {
      meeting_.meet();
      reading& r = readings_[index];
      const std::uint64_t preempted = preemptions_of_thread();
      const std::uint64_t start = monotonic_clock::now_ns();
      const std::uint64_t end = start + request_.window_ns;
      r.items = request_.pair ? push_and_pop(end) : index == 0 ? push(end) : pop();
      r.ns = monotonic_clock::now_ns() - start;
      r.disturbed = preemptions_of_thread() != preempted;
      meeting_.meet();
      if (index == 0) more_ = add_window();
      meeting_.meet();
    }
  }

  void push_batch(std::span<void* const> batch) noexcept {
    for (patience p; !ring_.push(batch);) p.wait();
  }
  // Some batches of items that count up from `next`.
  void push_many(std::uint64_t& next) noexcept {
    std::array<void*, batch_max> items;
    const std::span<void*> batch(items.data(), request_.batch);
    for (std::size_t n = 0; n < items_between_looks; n += batch.size()) {
      for (void*& item : batch) item = reinterpret_cast<void*>(next++);
      push_batch(batch);
    }
  }

  std::uint64_t push(std::uint64_t end) noexcept {
    std::uint64_t next = 1;
    do {
      push_many(next);
    } while (monotonic_clock::now_ns() < end);
    std::array<void*, batch_max> items;
    items.fill(last_item);
    push_batch(std::span<void* const>(items.data(), request_.batch));
    return next;
  }

  std::uint64_t pop() noexcept {
    std::array<void*, batch_max> items;
    const std::span<void*> batch(items.data(), request_.batch);
    std::uint64_t popped = 0;
    std::uintptr_t seen = 0;
    for (patience p; seen != UINTPTR_MAX;) {
      if (!ring_.pop(batch)) {
        p.wait();
        continue;
      }
      for (void* item : batch) seen = reinterpret_cast<std::uintptr_t>(item);  // each is looked at
      popped += batch.size();
    }
    return popped;
  }

  std::uint64_t push_and_pop(std::uint64_t end) noexcept {
    std::array<void*, batch_max> items;
    const std::span<void*> batch(items.data(), request_.batch);
    std::uint64_t next = 1;
    do {
      for (std::size_t n = 0; n < items_between_looks; n += batch.size()) {
        for (void*& item : batch) item = reinterpret_cast<void*>(next++);
        push_batch(batch);
        for (patience p; !ring_.pop(batch);) p.wait();
      }
    } while (monotonic_clock::now_ns() < end);
    return next - 1;
  }

  // Puts the window into the books; false when no more are wanted.
  bool add_window() {
    if (warm_up_++ < warm_up_windows) return true;
    const reading& a = readings_[0];
    const reading& b = readings_[1];
    const auto of = [](const reading& r) {
      return static_cast<double>(r.ns) / static_cast<double>(r.items);
    };
    // In a pipe the second thread is the one that sees the end; as a pair each does its half.
    const double ns = request_.pair ? (of(a) + of(b)) / 4 : of(b);
    (a.disturbed || b.disturbed ? disturbed_ : good_).push_back(ns);
    return good_.size() < request_.windows &&
           good_.size() + disturbed_.size() < 4 * std::size_t{request_.windows};
  }

  pipe_sample result() {
    pipe_sample s;
    if (failed_) {
      s.failure = "a thread cannot be kept on its CPU";
      return s;
    }
    s.windows = static_cast<unsigned>(good_.size());
    s.disturbed = static_cast<unsigned>(disturbed_.size());
    std::vector<double> all = good_;
    if (3 * good_.size() < request_.windows) {
      all.insert(all.end(), disturbed_.begin(), disturbed_.end());
    }
    std::ranges::sort(all);
    s.ns = all[all.size() / 2];
    return s;
  }

  static constexpr unsigned warm_up_windows = 2;

  R& ring_;
  const pipe_request request_;
  meeting meeting_;
  std::atomic<bool> failed_{false};
  std::array<reading, 2> readings_;
  bool more_ = true;  // of the first thread; read between two meetings
  unsigned warm_up_ = 0;
  std::vector<double> good_;
  std::vector<double> disturbed_;
};

}  // namespace pipe_detail

// Puts items through `ring`, which is empty before and after, for some milliseconds.
template <PipedRing R>
pipe_sample measure_pipe(R& ring, const pipe_request& request) {
  return pipe_detail::run<R>(ring, request).take();
}

}  // namespace forebay::tool
