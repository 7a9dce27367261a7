// Statistics that are always on.
//
// `counter` spreads its increments over cache lines by thread, so that threads do not contend; a
// read adds the lines up and is exact once the threads are at rest. The first threads have a word
// each, which nobody else writes: they add to it without a locked instruction. `histogram` counts
// values in log-linear buckets: 16 sub-buckets for each power of two, which bounds the error of a
// percentile to 1/16 of its value.
//
// add() and record() may be called from any thread; so may the readers, whose sums are then a
// moment's approximation.
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <cstdint>
#include <span>

#include "forebay/base/atomics.h"
#include "forebay/base/cache_line.h"

namespace forebay {

// A small number for the calling thread, in the order in which threads first ask; used to spread
// counters.
unsigned thread_number() noexcept;

// Takes what the calling thread needs to count, once, from the heap: otherwise its first
// counter::add() does, which may come when the heap is not to be touched.
void prepare_thread_to_count() noexcept;

// A statistic that slow paths count in one shared word: any thread. relaxed: it orders nothing.
inline void add_to(std::atomic<std::uint64_t>& statistic, std::uint64_t n = 1) noexcept {
  statistic.fetch_add(n, std::memory_order_relaxed);  // relaxed: see above
}
inline std::uint64_t value_of(const std::atomic<std::uint64_t>& statistic) noexcept {
  return statistic.load(std::memory_order_relaxed);  // relaxed: see above
}

// Numbers below `count` that one thread has at a time. What the one before it wrote to the words of
// its number is seen by the next.
template <AtomicsPolicy Atomics = real_atomics>
class basic_thread_slots {
 public:
  static constexpr std::uint32_t count = 16;
  static constexpr std::uint32_t none = UINT32_MAX;

  // A free number, or none.
  std::uint32_t take() noexcept {
    std::uint32_t free = free_.load(std::memory_order_relaxed);  // relaxed: the exchange decides
    while (free != 0) {
      // acquire: pairs with give().
      if (free_.compare_exchange_weak(free, free & (free - 1), std::memory_order_acquire,
                                      std::memory_order_relaxed)) {  // relaxed: tried again
        return static_cast<std::uint32_t>(std::countr_zero(free));
      }
    }
    return none;
  }
  void give(std::uint32_t number) noexcept {
    free_.fetch_or(1u << number, std::memory_order_release);  // release: pairs with take()
  }

 private:
  typename Atomics::template atomic<std::uint32_t> free_{(1u << count) - 1};
};

namespace detail {
inline constexpr std::uint32_t no_slot_yet = basic_thread_slots<>::none;
inline constexpr std::uint32_t no_slot_any_more = no_slot_yet - 1;
// The calling thread's number; above all numbers: it has none.
inline constinit thread_local std::uint32_t thread_slot = no_slot_yet;
// Gives the calling thread a number if there is one, until it ends; whether it has one.
bool take_thread_slot() noexcept;
}  // namespace detail

// The calling thread's number, below basic_thread_slots<>::count, if it has one; nobody else has it
// until the thread ends.
inline std::uint32_t thread_slot() noexcept {
  prepare_thread_to_count();
  return detail::thread_slot;
}

class counter {
 public:
  [[gnu::always_inline]] void add(std::int64_t n = 1) noexcept {
    const std::uint32_t slot = detail::thread_slot;
    if (slot >= shard_count) [[unlikely]]
      return add_slow(n);
    std::atomic<std::int64_t>& own = shards_[slot].own;
    // relaxed: a statistic, it orders nothing. Nobody else writes this word.
    own.store(own.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
  }

  std::int64_t value() const noexcept {
    std::int64_t sum = 0;
    for (const auto& s : shards_) {
      // relaxed: see add
      sum += s.own.load(std::memory_order_relaxed) + s.shared.load(std::memory_order_relaxed);
    }
    return sum;
  }

 private:
  static constexpr unsigned shard_count = basic_thread_slots<>::count;
  struct alignas(cache_line_bytes) shard {
    std::atomic<std::int64_t> own{0};     // of the thread with this slot
    std::atomic<std::int64_t> shared{0};  // of threads without one
  };

  [[gnu::cold, gnu::noinline]] void add_slow(std::int64_t n) noexcept {
    if (detail::take_thread_slot()) return add(n);
    // relaxed: a statistic.
    shards_[thread_number() % shard_count].shared.fetch_add(n, std::memory_order_relaxed);
  }

  std::array<shard, shard_count> shards_{};
};

inline std::uint64_t value_of(const counter& c) noexcept {
  return static_cast<std::uint64_t>(c.value());
}

class histogram {
 public:
  static constexpr unsigned sub_bits = 4;
  static constexpr unsigned bucket_count = (64 - sub_bits + 1) << sub_bits;

  // The bucket that counts `value`; values below 16 have a bucket each.
  static constexpr unsigned bucket_of(std::uint64_t value) noexcept {
    if (value < (1u << sub_bits)) return static_cast<unsigned>(value);
    const unsigned power = 63u - static_cast<unsigned>(std::countl_zero(value));
    const auto sub = static_cast<unsigned>(value >> (power - sub_bits)) & ((1u << sub_bits) - 1);
    return ((power - sub_bits + 1) << sub_bits) | sub;
  }

  // The largest value that falls into `bucket`.
  static constexpr std::uint64_t bucket_top(unsigned bucket) noexcept {
    if (bucket < (1u << sub_bits)) return bucket;
    const unsigned shift = (bucket >> sub_bits) - 1;
    const std::uint64_t low = ((1ull << sub_bits) | (bucket & ((1u << sub_bits) - 1))) << shift;
    return low + ((1ull << shift) - 1);
  }

  void record(std::uint64_t value) noexcept {
    buckets_[bucket_of(value)].fetch_add(1, std::memory_order_relaxed);  // relaxed: a statistic
  }

  // Adds the counts of `other`, read as they are at this moment.
  void merge(const histogram& other) noexcept;

  std::uint64_t count() const noexcept;
  std::uint64_t count_of(unsigned bucket) const noexcept {
    return buckets_[bucket].load(std::memory_order_relaxed);  // relaxed: a statistic
  }

  // The value that a share `fraction` (0 to 1) of the recorded values does not exceed, in the unit
  // that was recorded; 0 when nothing was.
  std::uint64_t percentile(double fraction) const noexcept;
  // The same of counts by bucket, such as those of the time between two looks.
  static std::uint64_t percentile_of(std::span<const std::uint64_t, bucket_count> counts,
                                     double fraction) noexcept;

 private:
  std::array<std::atomic<std::uint64_t>, bucket_count> buckets_{};
};

}  // namespace forebay
