// Statistics that are always on.
//
// `counter` spreads its increments over cache lines by thread, so that threads do not contend; a
// read adds the lines up and is exact once the threads are at rest. `histogram` counts values in
// log-linear buckets: 16 sub-buckets for each power of two, which bounds the error of a percentile
// to 1/16 of its value.
//
// add() and record() may be called from any thread; so may the readers, whose sums are then a
// moment's approximation.
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <cstdint>

#include "forebay/base/cache_line.h"

namespace forebay {

// A small number for the calling thread, in the order in which threads first ask; used to spread
// counters.
unsigned thread_number() noexcept;

// A statistic that slow paths count in one shared word: any thread. relaxed: it orders nothing.
inline void add_to(std::atomic<std::uint64_t>& statistic, std::uint64_t n = 1) noexcept {
  statistic.fetch_add(n, std::memory_order_relaxed);  // relaxed: see above
}
inline std::uint64_t value_of(const std::atomic<std::uint64_t>& statistic) noexcept {
  return statistic.load(std::memory_order_relaxed);  // relaxed: see above
}

class counter {
 public:
  void add(std::int64_t n = 1) noexcept {
    // relaxed: a statistic, it orders nothing.
    shards_[thread_number() % shard_count].value.fetch_add(n, std::memory_order_relaxed);
  }

  std::int64_t value() const noexcept {
    std::int64_t sum = 0;
    for (const auto& s : shards_)
      sum += s.value.load(std::memory_order_relaxed);  // relaxed: see add
    return sum;
  }

 private:
  static constexpr unsigned shard_count = 8;
  struct alignas(cache_line_bytes) shard {
    std::atomic<std::int64_t> value{0};
  };
  std::array<shard, shard_count> shards_{};
};

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

  // The value that a share `fraction` (0 to 1) of the recorded values does not exceed, in the unit
  // that was recorded; 0 when nothing was.
  std::uint64_t percentile(double fraction) const noexcept;

 private:
  std::array<std::atomic<std::uint64_t>, bucket_count> buckets_{};
};

}  // namespace forebay
