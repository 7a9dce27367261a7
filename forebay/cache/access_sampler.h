// Hands a sample of the accesses to a cache's pages to its miss-ratio curve, cheaply enough for
// paths that take a few nanoseconds.
//
//   any thread:  touch(page) ── hash, one compare ── not in the sample, nearly always: done
//                     └─> buffer of this thread, 31 hashes ── full ──> lock_, miss_ratio_curve
//
// What it costs: at every access about 1 ns; at a sampled one the curve's 25 to 60 ns, paid once
// for 31 of them. There are at most `accesses_per_second` sampled ones, whatever the load is: when
// there are more in a tenth of a second, the sample is halved. At 100,000 a second that is at most
// 0.6% of one CPU. So a moderate load is sampled as a whole, and a heavy one as far as it may cost.
// A sample that has become too small to say much, and would be affordable if it were larger, is
// begun anew.
//
// What was long ago counts less: each minute of load takes a tenth off the weight of all before it,
// which is half in six and a half minutes.
//
// A thread's buffer belongs to the thread slot (base/stats.h); a thread without one goes to the
// curve with each of its sampled accesses.
//
// Guard: lock_ (a leaf: nothing is locked under it) for the curve and the times. Thread-safety: any
// thread.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "forebay/base/stats.h"
#include "forebay/cache/miss_ratio_curve.h"
#include "forebay/os/mutex.h"

namespace forebay {

// What the curve says, at one moment.
struct miss_ratio_estimate {
  std::vector<miss_ratio_curve::point> points;  // as miss_ratio_curve::points()
  double rate = 0;                              // the share of all pages that is in the sample
  std::uint64_t sampled_pages = 0;
  std::uint64_t sampled_accesses = 0;  // ever
  std::uint64_t bytes = 0;             // of memory that all of it takes
};

class access_sampler {
 public:
  struct options {
    miss_ratio_curve::options curve;
    std::uint64_t accesses_per_second = 100'000;  // that are sampled at most, roughly
  };

  // Null without memory. `hits` and `misses`, which outlive it, count all accesses between them.
  static std::unique_ptr<access_sampler> create(const options& opts, const counter& hits,
                                                const counter& misses) noexcept;

  // An access to the page with this number. Pages of different spaces have different numbers.
  [[gnu::always_inline]] void touch(std::uint64_t number) noexcept {
    const std::uint64_t hash = miss_ratio_curve::hash(number);
    // relaxed: what is let through by an old threshold is of no use to the curve, which says so.
    const std::uint32_t threshold = threshold_.load(std::memory_order_relaxed);
    if (miss_ratio_curve::is_sampled(hash, threshold)) [[unlikely]]
      take(hash);
  }

  // Throws std::bad_alloc.
  miss_ratio_estimate estimate() const;

 private:
  static constexpr std::uint32_t buffer_hashes = 31;
  static constexpr std::uint32_t slots = basic_thread_slots<>::count;

  // Written by the thread that has the slot; `count` is read by others as well.
  struct alignas(cache_line_bytes) buffer {
    std::atomic<std::uint32_t> count{0};
    std::array<std::uint64_t, buffer_hashes> hashes{};
  };

  access_sampler(const options& opts, std::unique_ptr<miss_ratio_curve> curve, const counter& hits,
                 const counter& misses) noexcept;

  [[gnu::noinline]] void take(std::uint64_t hash) noexcept;
  void pass_on(std::span<const std::uint64_t> hashes) noexcept FOREBAY_EXCLUDES(lock_);
  void keep_within_budget(std::uint64_t now_ns) noexcept FOREBAY_REQUIRES(lock_);
  std::uint64_t references() const noexcept { return value_of(hits_) + value_of(misses_); }

  const counter& hits_;
  const counter& misses_;
  const std::uint64_t budget_;  // sampled accesses in a tenth of a second

  alignas(cache_line_bytes) std::atomic<std::uint32_t> threshold_;  // the curve's
  alignas(cache_line_bytes) mutable mutex lock_;
  const std::unique_ptr<miss_ratio_curve> curve_ FOREBAY_PT_GUARDED_BY(lock_);
  std::uint64_t window_began_ns_ FOREBAY_GUARDED_BY(lock_) = 0;
  std::uint64_t in_window_ FOREBAY_GUARDED_BY(lock_) = 0;
  std::uint64_t aged_ns_ FOREBAY_GUARDED_BY(lock_) = 0;
  std::array<buffer, slots> buffers_;
};

}  // namespace forebay
