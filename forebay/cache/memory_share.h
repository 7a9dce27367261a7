// How many pages of the cache one address space may have: a limit inside the cache's own.
//
// A space without a limit has as many as eviction leaves it. One with a limit gives up pages of its
// own for new ones, and may have as large a part of them dirty as the cache of its pages. Pages
// that could not be written do not count: they cannot be given up, and what a device that fails may
// keep of them is limited by itself.
//
// Guards: all are atomics. Thread-safety: any thread.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "forebay/cache/dirty_counts.h"
#include "forebay/cache/dirty_pacer.h"
#include "forebay/memory/page.h"

namespace forebay {

// Shares of the pages of a cache, or of a space that has a limit: writers wait above 2/5 so that
// reads always find pages to take, the flushers start at 1/8.
constexpr std::uint32_t dirty_limit_of(std::uint32_t pages) noexcept { return pages / 5 * 2; }
constexpr std::uint32_t background_limit_of(std::uint32_t pages) noexcept { return pages / 8; }
// Of a limit of dirty pages, what one space may keep because it could not be written.
constexpr std::uint32_t error_limit_of(std::uint32_t dirty_limit) noexcept {
  return dirty_limit / 4;
}

class memory_share {
 public:
  static constexpr std::uint32_t unlimited = UINT32_MAX;
  // Of a limit: 4 MiB, so that its dirty pages are as many as a sweep of write-back takes.
  static constexpr std::uint32_t pages_min = 1024;

  std::uint32_t limit() const noexcept {
    return limit_.load(std::memory_order_relaxed);  // relaxed: a level
  }
  std::uint64_t limit_bytes() const noexcept {  // 0: none
    const std::uint32_t pages = limit();
    return pages == unlimited ? 0 : std::uint64_t{pages} << page_shift;
  }
  void set_limit(std::uint32_t pages) noexcept {
    limit_.store(pages, std::memory_order_relaxed);  // relaxed: a level
  }

  std::uint32_t pages() const noexcept {
    return pages_.load(std::memory_order_relaxed);  // relaxed: a level
  }
  // How many there are too many.
  std::uint32_t excess() const noexcept { return excess_of(pages()); }
  // Counts pages that come, before they do, and returns how many there are too many then.
  std::uint32_t add(std::uint32_t pages) noexcept {
    // relaxed: who is last over the limit sees that he is, whatever else he sees.
    return excess_of(pages_.fetch_add(pages, std::memory_order_relaxed) + pages);
  }
  // Counts pages that have gone.
  void remove(std::uint32_t pages) noexcept {
    pages_.fetch_sub(pages, std::memory_order_relaxed);  // relaxed: a level
  }
  bool is_full() const noexcept { return counted_of(pages()) >= limit(); }
  // Nearly full: what comes now is younger than most of what will have to go.
  bool is_filling() const noexcept { return counted_of(pages()) >= limit() - limit() / 8; }
  // Whether a page may be so large that few of them are not all there is.
  bool may_have_order(unsigned order) const noexcept { return limit() >> order >= pages_of_order; }

  dirty_counts& unwritten() noexcept { return unwritten_; }
  const dirty_counts& unwritten() const noexcept { return unwritten_; }
  dirty_pacer::levels dirty_levels() const noexcept {
    const std::uint32_t most = limit();
    return dirty_pacer::levels::of(unwritten_.to_write(), background_limit_of(most),
                                   dirty_limit_of(most));
  }
  bool over_background_limit() const noexcept {
    return unwritten_.to_write() > background_limit_of(limit());
  }
  bool may_dirty(std::uint32_t pages) const noexcept {
    return unwritten_.to_write() + pages <= dirty_limit_of(limit());
  }
  // Pages that may be kept because they could not be written.
  std::uint32_t error_limit() const noexcept { return error_limit_of(dirty_limit_of(limit())); }

 private:
  static constexpr std::uint32_t pages_of_order = 64;

  std::uint32_t counted_of(std::uint32_t pages) const noexcept {
    return pages - std::min(pages, unwritten_.failed());
  }
  std::uint32_t excess_of(std::uint32_t pages) const noexcept {
    const std::uint32_t counted = counted_of(pages);
    const std::uint32_t most = limit();
    return counted > most ? counted - most : 0;
  }

  std::atomic<std::uint32_t> limit_{unlimited};
  std::atomic<std::uint32_t> pages_{0};
  dirty_counts unwritten_;
};

}  // namespace forebay
