// The page cache: one arena of frames shared by any number of address spaces, kept inside its size.
//
// Everything that is cached lies in the arena: pages, index nodes, buffer heads. So its size
// bounds the whole, and a shortage of any of them is met the same way, by taking clean pages off.
// The bios that move pages lie there too, and have a reserve for when it is full (bio_pool.h).
//
// Eviction goes by a policy (eviction.h): a hit counts in the page's `uses` and touches no list;
// the policy's queues are under list_lock_, and pinned and dirty pages are passed over. The policy
// may be another one at any time: the pages stay, and go over to its queues. Those that were in use
// once stay as well until the end, at most one of each kind, because hints go to them without a
// lock.
//
// Dirty pages: above the background limit the flushers work, from the middle on writers are slowed
// to the pace of their device (dirty_pacer.h), at the hard limit they wait. Pages
// that could not be written do not count there: a space that has too many of them refuses to take
// more.
//
// Lock order:
//   1. page_cache::list_lock_
//   2. address_space::lock_
//   3. slab_cache's lock
//   4. arena's lock
#pragma once

#include <iterator>
#include <memory>
#include <span>

#include "forebay/base/stats.h"
#include "forebay/block/bio.h"
#include "forebay/cache/access_sampler.h"
#include "forebay/cache/bio_pool.h"
#include "forebay/cache/buffer_head.h"
#include "forebay/cache/buffer_lru.h"
#include "forebay/cache/dirty_counts.h"
#include "forebay/cache/dirty_pacer.h"
#include "forebay/cache/frame_eviction.h"
#include "forebay/cache/page_index.h"
#include "forebay/ring/wait_queue.h"

namespace forebay {

class address_space;
class warm_store;

struct page_cache_statistics {
  std::uint64_t capacity_bytes = 0;  // of the arena's frames
  std::uint64_t capacity_pages = 0;
  std::uint64_t free_pages = 0;
  std::uint64_t resident_pages = 0;  // in an index
  std::uint64_t dirty_pages = 0;
  std::uint64_t writeback_pages = 0;
  std::uint64_t error_pages = 0;  // dirty, and their last write failed
  std::uint64_t dirty_limit_pages = 0;
  std::uint64_t background_limit_pages = 0;
  std::uint64_t hits = 0;    // pages found uptodate
  std::uint64_t misses = 0;  // pages that had to be read or made
  eviction_policy eviction = eviction_policy::adaptive;
  std::uint64_t eviction_history_bytes = 0;  // outside of the arena
  std::uint64_t evictions = 0;
  std::uint64_t pages_read = 0;         // filled from the device
  std::uint64_t pages_written = 0;      // write-back completed
  std::uint64_t write_errors = 0;       // pages whose write-back failed
  std::uint64_t throttled_writes = 0;   // times a writer met the hard limit
  std::uint64_t paced_writes = 0;       // times a writer was slowed on the way there
  std::uint64_t readahead_pages = 0;    // read before they were asked for
  std::uint64_t readahead_used = 0;     // of these: asked for since
  std::uint64_t readahead_wasted = 0;   // of these: evicted before that
  std::uint64_t frame_waits = 0;        // times somebody found no frame to take
  std::uint64_t buffer_lru_hits = 0;    // blocks found in their CPU's array
  std::uint64_t buffer_lru_misses = 0;  // blocks that were looked up in their page
};

class page_cache {
 public:
  // The first six as in arena::options. `bytes` is address space; how much memory is behind it, is
  // set_limit_bytes()'s.
  struct options {
    std::size_t bytes = 0;
    bool huge_pages = true;
    std::optional<page_backing> largest_pages = std::nullopt;
    int numa_node = any_numa_node;
    bool pin = false;
    std::uint64_t limit_bytes = UINT64_MAX;
    eviction_policy eviction = eviction_policy::adaptive;
    // Where the pages lie, so that they outlive the process (warm_store.h); none: in memory that
    // does not. limit_bytes is followed once they have been found.
    std::shared_ptr<warm_store> warm = nullptr;
    // Whether miss_ratios() is estimated (access_sampler.h): about 1 ns for each access more.
    bool miss_ratios = false;
  };

  static constexpr std::size_t min_bytes = 4u << 20;

  // Errors: errc::too_small below min_bytes; ENOMEM; as arena::create().
  static result<std::unique_ptr<page_cache>> create(
      const options& opts, memory_source& source = memory_source::system());

  // All address spaces must be gone.
  ~page_cache();

  arena& memory() noexcept { return *arena_; }
  // Null without options::warm.
  warm_store* warm() noexcept { return warm_.get(); }
  // With a warm store: its pages become those of the spaces, by the slots of which it knows them,
  // before anything else is done with these. As warm_store::recover().
  result<> recover(std::span<address_space* const> by_slot);
  page_cache_statistics statistics() const noexcept;
  // What caches of other sizes would miss of the accesses that are counted as hits and misses;
  // nothing without options::miss_ratios. Throws std::bad_alloc. Any thread.
  miss_ratio_estimate miss_ratios() const;

  // Pages that there may be at present: all, or fewer when memory is short. Any thread.
  std::uint32_t allowed_pages() const noexcept {
    return allowed_.load(std::memory_order_relaxed);  // relaxed: a level
  }
  // Tells the cache that its arena has another limit, in bytes: the limits of dirty pages go by
  // that. Any thread.
  void follow_limit(std::uint64_t bytes) noexcept;

  // Pages leave the cache by this policy from now on; none leaves because of it. What they were
  // used goes with them, and the order in which they would have had to leave is kept as far as the
  // new policy knows one. Takes list_lock_, and keeps it for some 20 ns a page. ENOMEM, and nothing
  // has changed. Any thread.
  result<> set_eviction(eviction_policy policy) noexcept;

  // At most so many bytes may be dirty, of the share that is allowed anyway (2/5 of the pages);
  // flushers begin at half of it, or at 1/8 of the pages. UINT64_MAX: the share. Who lowers it
  // wakes the flushers, and who raises it those who wait at progress(). Any thread.
  void set_dirty_limit(std::uint64_t bytes) noexcept;

  // ---- For its shrinker (cache/shrink.h) ----

  // Evicts up to so many pages, and returns how many. Takes list_lock_.
  unsigned evict_pages(unsigned wanted) noexcept;

  // Pages that could be evicted, or moved together so that frames next to each other become free.
  std::uint64_t reclaimable_pages() const noexcept;

  enum class vacated {
    empty,    // nothing is in the frame that has to go
    evicted,  // its page has left the cache
    moved,    // its page lies in the frame `spare` now
    busy,     // in use, under I/O, or dirty and without a frame to go to
  };
  // Empties one frame: evicts its page if that is clean and was not used of late, and otherwise
  // moves it to `spare`, which may be null and of which the caller has the only reference. Takes
  // list_lock_. A page that is moved there takes `spare`. A large page has a block of free frames
  // for its spare, if there is one at all; where there is none it is split, and the other frames of
  // it are pages then.
  vacated vacate(page& p, page*& spare) noexcept;

  struct aged {
    std::uint32_t evicted = 0;  // frames; 0: it stays
    bool busy = false;  // because it is in use, under I/O, dirty, or not this space's; else it was
                        // used, and is now as if it had been used once less, or had just come
  };
  // The step of a clock, at a frame where a page of this space was. `any`: also one that was used
  // goes. Takes list_lock_.
  aged age(page& p, address_space& of, bool any) noexcept;

  // Makes a large page, of which the caller has the only reference besides the index's, pages of
  // 4 KiB: for who needs buffer heads for a part of it. False if it is in other hands too, under
  // I/O, or there is no memory for nodes of its index. Takes list_lock_.
  bool split(page& p) noexcept;

  // ---- For address spaces ----

  // A frame with one reference, evicting if there is none free; null if nothing can be evicted now.
  // Takes list_lock_.
  page* try_allocate_frame() noexcept;

  // Evicts a few pages, for who needs memory for something else than a page; false if there was
  // nothing to evict.
  bool try_make_room() noexcept;

  // 2^order contiguous frames, each with one reference, from what is free: never evicts. Null if
  // there are none.
  page* try_allocate_run(unsigned order) noexcept;

  // co_await frames_available(): suspends until memory may have become free. The caller holds no
  // page lock and no pin.
  auto frames_available() noexcept {
    frame_waits_.add();
    // Pins are given back without a wake-up, so the wait has a timeout.
    return progress_.wait_unless([] { return false; }, frame_wait_ns);
  }

  // A block of 2^order frames with one reference, to be one page; null if there are none in a row.
  // Up to 64 KiB it evicts when fewer frames than that are free at all, as small pages would have
  // to.
  page* try_allocate_large(unsigned order) noexcept;

  // Puts a page that has just been indexed on the eviction list; takes one off that has left its
  // index.
  void add_to_list(page& p) noexcept;
  void remove_from_list(page& p) noexcept;
  // A hint: a page of this number of a space will be added. Takes no lock: what it looks at never
  // changes.
  void expect_page(const void* owner, std::uint64_t index) const noexcept {
    // acquire: sees it whole
    eviction_.load(std::memory_order_acquire)->expect(owner, index);
  }

  // Above the middle of the two limits the writers of a device are slowed to its pace.
  dirty_pacer::levels dirty_levels() const noexcept {
    return dirty_pacer::levels::of(unwritten_.to_write(), background_limit_pages(),
                                   dirty_limit_pages());
  }
  bool over_background_limit() const noexcept {
    return unwritten_.to_write() > background_limit_pages();
  }
  // Whether so many more may become dirty.
  bool may_dirty(std::uint32_t pages) const noexcept {
    return unwritten_.to_write() + pages <= dirty_limit_pages();
  }
  std::uint32_t background_limit_pages() const noexcept {
    return background_limit_.load(std::memory_order_relaxed);  // relaxed: a level
  }
  std::uint32_t dirty_limit_pages() const noexcept {
    return dirty_limit_.load(std::memory_order_relaxed);  // relaxed: a level
  }
  // Woken when write-back completes and when dirty pages are dropped.
  wait_queue& progress() noexcept { return progress_; }

  // Null without options::miss_ratios.
  access_sampler* sampler() noexcept { return sampler_.get(); }
  // What a space's first page is sampled by: far from another space's.
  std::uint64_t next_sample_base() noexcept {
    // relaxed: only the number itself matters.
    return sample_bases_.fetch_add(1, std::memory_order_relaxed) << 48;
  }

  slab_cache& nodes() noexcept { return nodes_; }
  buffer_cache& buffers() noexcept { return buffers_; }
  bio_pool& bios() noexcept { return bios_; }
  // The buffers that each CPU used last: they keep their pages from being evicted.
  buffer_lru& lru() noexcept { return lru_; }

  // Of all spaces, which count here as they do for themselves.
  dirty_counts& unwritten() noexcept { return unwritten_; }

  struct counters {
    counter hits, misses, evictions, pages_read, pages_written, write_errors, throttled_writes,
        paced_writes, readahead_pages, readahead_used, readahead_wasted;
  };
  counters& count() noexcept { return counters_; }

 private:
  static constexpr std::uint64_t frame_wait_ns = 1'000'000;
  static constexpr unsigned reclaim_batch = 32;
  static constexpr unsigned evicting_order_max = 4;
  static constexpr unsigned scan_limit = 4096;  // pages that are looked at in one call

  page_cache(std::shared_ptr<warm_store> warm, std::unique_ptr<arena> memory,
             std::unique_ptr<frame_eviction> eviction, eviction_policy policy);

  // The policy in use.
  frame_eviction& evictor() const noexcept FOREBAY_TSA(requires_capability(list_lock_)) {
    return *eviction_.load(std::memory_order_relaxed);  // relaxed: changes under list_lock_
  }
  void set_dirty_levels() noexcept;
  eviction_progress reclaim(unsigned wanted) noexcept;
  bool take(page& p) noexcept;  // for eviction_, under list_lock_
  vacated vacate_held(page_ref& mine, page*& spare) noexcept;

  const std::shared_ptr<warm_store> warm_;
  std::unique_ptr<arena> arena_;  // in warm_'s memory
  slab_cache nodes_;
  buffer_cache buffers_;
  buffer_lru lru_;
  bio_pool bios_;
  // Pages, all four. The first two follow from the others.
  std::atomic<std::uint32_t> background_limit_;
  std::atomic<std::uint32_t> dirty_limit_;
  std::atomic<std::uint32_t> allowed_;
  std::atomic<std::uint32_t> dirty_wish_{UINT32_MAX};

  mutable mutex list_lock_;
  // By their numbers, those that are or were in use.
  std::unique_ptr<frame_eviction> policies_[std::size(all_eviction_policies)] FOREBAY_GUARDED_BY(
      list_lock_);
  std::atomic<frame_eviction*> eviction_;  // one of them; changes under list_lock_
  eviction_policy policy_ FOREBAY_GUARDED_BY(list_lock_);
  std::uint64_t resident_ FOREBAY_GUARDED_BY(list_lock_) = 0;

  dirty_counts unwritten_;

  wait_queue progress_;
  counters counters_;
  counter frame_waits_;
  std::unique_ptr<access_sampler> sampler_;  // set by create()
  std::atomic<std::uint64_t> sample_bases_{0};
};

}  // namespace forebay
