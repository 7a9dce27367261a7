// Read-ahead: which pages of an object will be wanted next. Decides only; who asks does the I/O.
//
//         used                 in the cache, not used yet          not read
//   ───────────────────┬──────────────[marker]──────────┬──────────────────────────
//                    last                              edge
//   the window before:  |──────────────|
//   the newest window:                 |────────────────|
//   the next one, when the marked page is used:         |────────────────────────────────|
//
// A stream is a run of accesses in the same direction with the same distance: sequential, backward,
// or strided. The first accesses make a candidate of one; the one that confirms it (the second of a
// sequential run, the third of another) makes it a stream with a small window. Each use of a marked
// page, which is the first page of the newest window, asks for the next window, twice as large up
// to a maximum. So the pages are read before they are wanted, and hits in between cost nothing. A
// page of the window that is missing when it is wanted had to go unused: the window shrinks.
//
// Streams and candidates have tables of their own, so that random reads, which make candidates
// only, do not drive a stream out.
//
// Pages that left the cache unused (wasted()) are weighed against those asked for: with more than a
// quarter wasted, the maximum of all windows is halved, and doubled again when nearly none is.
//
// What Linux has in mm/readahead.c, with its marker (PG_readahead), for several streams at once.
//
// Thread-safety: any thread. lock_ guards the tables, is a leaf, and is taken on a miss and on the
// use of a marked page only.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>

#include "forebay/os/mutex.h"

namespace forebay {

// What to read ahead: `count` pieces of `pages` pages, the first at page `first` and each `stride`
// pages from the one before. Sequential and backward windows are one piece.
struct readahead_window {
  std::uint64_t first = 0;
  std::uint32_t pages = 0;
  std::uint32_t count = 0;  // 0: nothing
  std::int64_t stride = 0;
  std::uint64_t marker = 0;  // the page to be marked

  // The first page of piece i.
  std::uint64_t piece(std::uint32_t i) const noexcept {
    return first + static_cast<std::uint64_t>(stride * static_cast<std::int64_t>(i));
  }
};

class readahead {
 public:
  static constexpr std::size_t streams_max = 8;
  static constexpr std::size_t candidates_max = 8;
  static constexpr std::uint32_t window_min_pages = 4;
  static constexpr std::uint32_t stride_max_pages = 256;

  // Of an object of so many pages; windows of at most window_max_pages, 0 for no read-ahead.
  readahead(std::uint64_t object_pages, std::uint32_t window_max_pages) noexcept
      : window_max_(window_max_pages), object_pages_(object_pages), limit_(window_max_pages) {}

  // The object has so many pages from now on.
  void set_object_pages(std::uint64_t pages) noexcept FOREBAY_EXCLUDES(lock_) {
    const scoped_lock hold(lock_);
    object_pages_ = pages;
  }

  // No window is larger than so many pages from now on, however large those asked for at first; but
  // each is as large as window_min_pages.
  void set_window_bound(std::uint32_t pages) noexcept FOREBAY_EXCLUDES(lock_) {
    const scoped_lock hold(lock_);
    window_bound_ = std::max(pages, window_min_pages);
    limit_ = largest_window();
  }

  bool enabled() const noexcept { return window_max_ != 0; }

  // An access to [first, first + pages), of which some page was missing (`missed`) or marked: what
  // to read ahead of it. Outside of the access itself.
  readahead_window on_access(std::uint64_t first, std::uint32_t pages, bool missed) noexcept
      FOREBAY_EXCLUDES(lock_);

  // Pages that were read ahead have left the cache unused.
  void wasted(std::uint32_t pages) noexcept {
    wasted_.fetch_add(pages, std::memory_order_relaxed);  // relaxed: a number to weigh
  }

  // The largest window at present, in pages.
  std::uint32_t limit_pages() const noexcept FOREBAY_EXCLUDES(lock_) {
    const scoped_lock hold(lock_);
    return limit_;
  }

 private:
  struct stream {
    std::uint64_t last = 0;   // where the last access that we saw began
    std::uint64_t edge = 0;   // where the next window begins; its first page in its direction
    std::uint32_t pages = 0;  // of an access; 0: the entry is free
    std::uint32_t window = 0;
    std::int64_t delta = 0;  // from one access to the next; of a candidate, 0 at first
    std::uint64_t used = 0;  // when, in accesses
  };

  stream* find_stream(std::uint64_t first, std::uint32_t pages) noexcept FOREBAY_REQUIRES(lock_);
  bool confirm(stream& candidate, std::uint64_t first, std::uint32_t pages) noexcept
      FOREBAY_REQUIRES(lock_);
  stream& establish(const stream& candidate) noexcept FOREBAY_REQUIRES(lock_);
  readahead_window next_window(stream& s) noexcept FOREBAY_REQUIRES(lock_);
  void weigh_waste(std::uint32_t asked) noexcept FOREBAY_REQUIRES(lock_);
  std::uint32_t largest_window() const noexcept FOREBAY_REQUIRES(lock_) {
    return std::min(window_max_, window_bound_);
  }

  const std::uint32_t window_max_;

  mutable mutex lock_;
  std::uint64_t object_pages_ FOREBAY_GUARDED_BY(lock_);
  std::array<stream, streams_max> streams_ FOREBAY_GUARDED_BY(lock_);
  std::array<stream, candidates_max> candidates_ FOREBAY_GUARDED_BY(lock_);
  std::size_t next_candidate_ FOREBAY_GUARDED_BY(lock_) = 0;  // to be replaced
  std::uint64_t accesses_ FOREBAY_GUARDED_BY(lock_) = 0;
  std::uint32_t window_bound_ FOREBAY_GUARDED_BY(lock_) = UINT32_MAX;
  std::uint32_t limit_ FOREBAY_GUARDED_BY(lock_);      // of a window, by what is wasted
  std::uint64_t asked_ FOREBAY_GUARDED_BY(lock_) = 0;  // pages, since limit_ was last looked at
  std::atomic<std::uint32_t> wasted_{0};
};

}  // namespace forebay
