// Slows the writers of one device down before the hard limit of dirty pages stops them.
//
//   writers' rate
//     |
//     |─────────┐ as fast as they can
//     |          \.
//     |           ·──.
//     |               ·──. the rate of write-back, at the middle
//     |                   ·──.
//     |_________________________· 0
//              free run     limit    dirty pages
//
// A writer that has dirtied pages above `free_run` moves a common moment on by what write-back
// needs for as many, times how far the dirty pages are from the middle; who comes before that
// moment waits for it. So all writers together go at the pace of the device, whatever their number,
// each in small steps, and the dirty pages settle in the middle. (The idea, and the cubic curve,
// are those of Linux's balance_dirty_pages, mm/page-writeback.c; there each task has a rate of its
// own, which needs an estimate of how many there are.)
//
// Thread-safety: pause_ns() by any thread; the others under one lock of the owner.
#pragma once

#include <atomic>
#include <cstdint>

namespace forebay {

class dirty_pacer {
 public:
  struct levels {
    std::uint32_t dirty;     // pages now
    std::uint32_t free_run;  // below it nobody waits
    std::uint32_t limit;     // at least free_run

    // Where write-back begins above `background`.
    static constexpr levels of(std::uint32_t dirty, std::uint32_t background,
                               std::uint32_t limit) noexcept {
      return {dirty, (background + limit) / 2, limit};
    }
    constexpr bool over_free_run() const noexcept { return dirty > free_run; }
  };

  // How long who is about to dirty a page has to wait first; 0 if not at all. At most pause_max_ns.
  std::uint64_t pause_ns(std::uint64_t now_ns) const noexcept {
    // relaxed: a moment in time; who sees an old one goes a step too early.
    const std::uint64_t until = until_ns_.load(std::memory_order_relaxed);
    if (until < now_ns + pause_min_ns) return 0;
    return until - now_ns < pause_max_ns ? until - now_ns : pause_max_ns;
  }

  // Pages have been dirtied.
  void dirtied(std::uint64_t now_ns, std::uint32_t pages, levels at) noexcept;

  // Pages have been written back.
  void written(std::uint64_t now_ns, std::uint32_t pages) noexcept;

  // Pages a second that write-back does, of late; 0 while that is not known.
  double pace() const noexcept { return pace_; }

  // Shorter pauses are saved up, so that a timer is worth it; longer ones would be stalls.
  static constexpr std::uint64_t pause_min_ns = 500'000;
  static constexpr std::uint64_t pause_max_ns = 50'000'000;

  // The factor on the pace: 2 at the most, 1 in the middle, nearly 0 at the limit.
  static double factor(levels at) noexcept;

 private:
  static constexpr std::uint64_t sample_ns = 50'000'000;

  std::atomic<std::uint64_t> until_ns_{0};
  // All below: the owner's lock.
  double pace_ = 0;
  std::uint64_t sample_start_ns_ = 0;
  std::uint64_t last_written_ns_ = 0;
  std::uint64_t sample_pages_ = 0;
};

}  // namespace forebay
