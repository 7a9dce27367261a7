// An address space: the cached pages of one device, and everything that moves them.
//
//   read  ── try_pin ── hit ──────────────────────────────────> pins
//           └─ pin ── absent: frame, index, bio ── wait ──────> pins
//   write ── find or make the page, lock it, copy, mark dirty ─> (write-back later)
//   flush ── write-back of every dirty page ── device flush ──> durable
//
// Rules that hold everything together:
//  1. A page is put into the index only under lock_, locked and not uptodate, and gets its identity
//  (owner, index) there.
//  2. Data changes only under the page lock, and not while page_writeback is set (stable pages):
//  what is written is not torn. A block also changes under its buffer's lock, which stands in for
//  both: no write-back of a block starts while it is held (see buffer_head.h).
//  3. Clean becomes dirty under page lock (or buffer lock) and lock_, together with the index's
//  tag; dirty becomes writeback under page lock and lock_.
//  4. A page leaves the index by eviction (its count frozen at the index's own reference, clean) or
//  by a discard (page locked).
//  5. While a discard works on a range, nothing is put into the index there and no write-back
//  starts there.
//  6. Who holds a page lock waits for that page's I/O only (see page_wait.h).
//  7. A page that is uptodate and not being changed is readable in the index (page_index.h). Who
//  changes its data through this class says so there, before the first byte and after the last; who
//  changes it through a pin has readers that see bytes of before and after, as the kernel's have.
//  8. A large page is uptodate as a whole, and is in the index without being so only while it is
//  locked and filled: if that fails it goes, and the range is read in small pages. What of it is
//  dirty is known for each 4 KiB (page_parts.h). It has no buffer heads.
//
// Large pages, of 64 KiB and 2 MiB, are made where a read or a write wholly covers such an aligned
// stretch of which nothing is there, and as many frames are free in a row; they are not waited for
// and nothing is evicted to make room for them beyond what the same stretch would take in small
// pages. Nothing joins small pages to a large one. They count by their frames wherever pages are
// counted.
//
// Lock order: see page_cache.h. lock_ guards index_ (but its lookup), punches_ and the flush
// ticket; error_ is an atomic.
//
// Thread-safety: all of it may be used from any thread that has an executor; the try_ functions
// from any thread. Offsets and lengths are bytes and lie inside the device; the caller checks them.
// A range of no bytes is nothing to do.
#pragma once

#include <algorithm>
#include <array>
#include <optional>
#include <span>

#include "forebay/cache/bio_batch.h"
#include "forebay/cache/memory_share.h"
#include "forebay/cache/page_cache.h"
#include "forebay/cache/page_parts.h"
#include "forebay/cache/page_view.h"
#include "forebay/cache/page_wait.h"
#include "forebay/cache/readahead.h"
#include "forebay/cache/warm_notes.h"

namespace forebay {

class address_space {
 public:
  struct options {
    std::uint32_t block_bytes = 512;    // 512 to 4096, at least the device's logical block
    std::uint64_t readahead_bytes = 0;  // the largest window of read-ahead; 0: none
    // log2 of the frames in the largest pages: 4 allows 64 KiB, 9 allows 2 MiB as well. A pin keeps
    // its whole page in the cache, so the largest should be a small part of it.
    unsigned max_page_order = 0;
    // When pages get buffer heads: while their blocks differ; or as well whenever a part of a page
    // is written, so that what is dirty is known by blocks; or all of them, unmapped (mapped
    // objects, mapped_object.h, want the last two).
    enum class buffer_use { as_needed, for_parts, always } buffers = buffer_use::as_needed;
    // By what number the cache's warm store, if it has one, knows the device; none: its pages are
    // not kept. Buffers are as_needed then, and nothing is written past write() and discards.
    std::optional<unsigned> warm_slot = std::nullopt;
    std::uint64_t max_bytes = 0;  // up to what size it may grow; less than the device's: not at all
  };

  // A part of the device with the same answer to "does it hold data?".
  struct extent {
    std::uint64_t length_bytes;
    bool hole;
  };

  // A part of the device with the same answer to "what of it is in the cache?", in 4 KiB.
  struct cached_extent {
    std::uint64_t length_bytes;
    bool resident;  // all of it, and valid
    bool dirty;     // newer than the device, some of it at least
  };

  address_space(page_cache& cache, device& dev, options opts);
  // Takes off every page. What is still dirty is lost: flush first. No operation may be under way.
  ~address_space();
  address_space(const address_space&) = delete;
  address_space& operator=(const address_space&) = delete;

  device& dev() const noexcept { return device_; }
  std::uint64_t size_bytes() const noexcept {
    return size_bytes_.load(std::memory_order_acquire);  // acquire: pairs with set_size()
  }
  std::uint32_t block_bytes() const noexcept { return block_bytes_; }

  // ---- Reading ----

  using page_view = forebay::page_view;

  // A view of the 4 KiB with this number (not offset), if its page is in the cache, wholly valid
  // and not just being changed; none, too, of a page whose use asks for read-ahead, which pin()
  // sees to. Counts as a hit. Takes no lock.
  [[gnu::always_inline]] page_view try_view(std::uint64_t index) noexcept {
    if (!views_) return {};
    const page_index::sight s = index_.look(index);
    if (!s) return {};
    if (!s.marked()) [[unlikely]] {
      if (!count_use(index)) return {};
    }
    cache_.count().hits.add();
    sample(index, 1);
    return {frames_ + (std::size_t{s.frame_number()} << page_shift), s};
  }

  // Copies out as much of the front of the range as can be had by views, and returns how many
  // bytes. Of each page they are what it was at one moment. Takes no lock.
  std::size_t try_read(std::uint64_t offset, std::span<std::byte> out) noexcept;

  // Pins the page that has the 4 KiB with this number (not offset), if it is there and wholly
  // valid; none if not, or if its use asks for read-ahead. Takes no lock.
  [[gnu::always_inline]] page_ref try_pin_page(std::uint64_t index) noexcept {
    if (page_ref p = pin_readable(index)) [[likely]] {
      cache_.count().hits.add();
      sample(index, 1);
      return p;
    }
    return try_pin_unreadable(index);
  }

  // Pins the pages of [offset, offset + length) if all are there and valid, and returns how many:
  // each once, in order, so fewer than one for 4 KiB where there are large ones (page::bytes(),
  // page::offset_bytes()). `out` has room for one for each 4 KiB. Takes no lock.
  std::optional<std::size_t> try_pin(std::uint64_t offset, std::size_t length,
                                     std::span<page_ref> out) noexcept;

  // Pins them likewise, reading what is missing, and returns how many: all of them, or at least one
  // when out or memory is short. Only the blocks that the range touches are read. Error: the
  // device's.
  task<std::size_t> pin(std::uint64_t offset, std::size_t length, std::span<page_ref> out);

  // Copies out. Of bytes that are written meanwhile each is the old one or the new one. The same
  // errors.
  task<> read(std::uint64_t offset, std::span<std::byte> out);

  // A hint that the pages of these offsets will be read or written in a moment, as when several
  // requests have arrived together: what a look-up of each reads, and the first of its data, is on
  // its way to this CPU's caches when the call returns, for all of them at once. Changes and counts
  // nothing. Any offsets; any thread.
  void expect_reads(std::span<const std::uint64_t> offsets) const noexcept;
  void expect_writes(std::span<const std::uint64_t> offsets) const noexcept;

  // Brings a range into the cache.
  task<> prefetch(std::uint64_t offset, std::uint64_t length);

  // co_await read_ahead_over(): suspends until no read-ahead is under way, which nobody waits for
  // else. For the end, when nobody reads any more: read-ahead goes on after the read that caused it
  // on a thread with a loop.
  auto read_ahead_over() noexcept {
    return ahead_ended_.wait_unless([this]() noexcept {
      return ahead_running_.load(std::memory_order_acquire) == 0;  // acquire: pairs with its end
    });
  }

  // ---- Writing ----

  // Writes as much of the front of `data` as needs no wait; returns how many bytes.
  std::size_t try_write(std::uint64_t offset, std::span<const std::byte> data) noexcept;

  // Writes all of it into the cache. Errors: of a read that a partial block needs; of write-back,
  // when the dirty limit is reached with pages that cannot be written. The bytes before the failure
  // are written; `written` says how many, if it is given.
  task<> write(std::uint64_t offset, std::span<const std::byte> data,
               std::size_t* written = nullptr);

  // Makes a range read as zeros: whole pages by the device if it has a quick way (deallocating
  // unless keep_allocated), the rest through the cache. ENOTSUP, if only_fast and the device has
  // none: nothing has changed then.
  struct zero_options {
    bool keep_allocated = false;
    bool only_fast = false;
  };
  task<> write_zeroes(std::uint64_t offset, std::uint64_t length, zero_options opts);

  // The contents of the range are no longer needed; whole pages of it read as zeros afterwards
  // where the device can.
  task<> discard(std::uint64_t offset, std::uint64_t length);

  // Has so many bytes from now on, which the device has already: blocks, and no less than before.
  // Whatever else is under way; one call at a time. Errors: EFBIG, ENOMEM; no change then.
  task<> grow(std::uint64_t bytes);

  // Has at most so many bytes in the cache from now on, 4 MiB at least, and besides what could not
  // be written; UINT64_MAX: as many as eviction leaves it. The flusher gives up what is over, and
  // who brings pages two for each. Any thread.
  void set_memory_limit(std::uint64_t bytes) noexcept;
  std::uint64_t memory_limit_bytes() const noexcept { return share_.limit_bytes(); }  // 0: none

  // ---- Durability ----

  // Makes durable everything that was written before the call. Error: the first of the pages that
  // could not be written, as long as there are any; they stay dirty and are tried again.
  task<> flush();

  // The same for a range (FUA).
  task<> sync_range(std::uint64_t offset, std::uint64_t length);

  // ---- Looking ----

  // How much of it is only here yet, in 4 KiB; any thread.
  std::uint32_t dirty_pages() const noexcept { return share_.unwritten().dirty(); }

  // Its pages in the cache, and how many they may be.
  const memory_share& share() const noexcept { return share_; }

  // Extents from `offset` on, as many as `out` has room for, at least for one; returns how many.
  // Unwritten cached data counts as data.
  result<std::size_t> extents(std::uint64_t offset, std::uint64_t length, std::span<extent> out);

  // The same of the cache, as it is at the moment of looking; it looks at no more than about
  // 4,096 pages, and so may end before the range does. Never fails.
  std::size_t cached_extents(std::uint64_t offset, std::uint64_t length,
                             std::span<cached_extent> out) noexcept;

  // ---- Write-back in the background ----

  // Runs until stop_flusher(): writes when the cache, or this space's part of it, is over the
  // background limit, and what is older than a few seconds; gives up what is over the memory limit.
  task<> run_flusher();
  void stop_flusher() noexcept;

  // For the warm store, before any use: makes a frame, of which the caller has the only reference,
  // a page with what its record says. Errors: EEXIST, ENOMEM, errc::corrupt; no change then.
  result<> adopt(page& p, const warm_record& r) noexcept;
  page_ref recovered(std::uint64_t index) noexcept { return find(index); }
  // ---- For the page cache, which holds its list lock ----

  void note_hot(page& p) const noexcept { notes_.hot(p); }
  // Takes a page off that is clean and has only so many holders, the index being one; true if its
  // count is now zero.
  bool evict(page& p, std::uint32_t holders = 1) noexcept;

  // Views of the page count as uses again; after `uses` has been set to less than uses_max. The
  // page is on the cache's list.
  void count_views_again(page& p) noexcept {
    if (!p.test(page_viewed)) return;
    p.clear(page_viewed);
    // relaxed: of a page that leaves just now another one's mark may be taken, which is a hint.
    index_.clear_mark(p.index.load(std::memory_order_relaxed));
  }
  // Fetches what adding the page with this number will look at: a hint.
  void expect_miss(std::uint64_t index) const noexcept {
    index_.prefetch(index);
    cache_.expect_page(this, index);
  }
  // Fetches what it has in the index: a hint.
  void prefetch_slot(std::uint64_t index) const noexcept { index_.prefetch(index); }

  // Puts the contents of a page, clean or dirty, which has only so many holders, into another frame
  // and that into the page's place. True if the page's count is now zero; `fresh`, of which the
  // caller had the only reference, is the index's then. (Linux: migrate_folio, mm/migrate.c.)
  bool move(page& p, std::uint32_t holders, page& fresh) noexcept;

  // Makes a large page, which has only so many holders and is under no I/O, as many pages of 4 KiB,
  // in whose frames everything stays where it is. True if it has: the head has the holders still,
  // and each other page the index's reference. (Linux: folio_split, mm/huge_memory.c.)
  bool split(page& p, std::uint32_t holders) noexcept;

  // Has the flusher look at the limits now; any thread.
  void wake_flusher() noexcept { flusher_wanted_.wake_all(); }

 private:
  enum class add_outcome { added, exists, discarding, no_memory };
  enum class step {
    done,
    page_locked,
    page_writeback,
    no_memory,
    needs_read,
    paced,
    buffer_locked,
    over_limit,
    failing,
    discarding
  };

  // A range that a discard works on, in pages; in its coroutine's frame.
  struct punch_range {
    std::uint64_t first;
    std::uint64_t end;
    list_node link;
  };

  // Of the pages that are made large, the largest first.
  static constexpr std::array<unsigned, 2> large_page_orders{9, 4};

  // Frames taken ahead for a run of missing pages.
  class frame_supply;

  // What the block API and the ends of a buffer's I/O do here.
  friend class block_api;
  friend class associated_buffers;
  // What maps the blocks of a space to those of another device.
  friend class object_device;
  friend class mapped_object;
  friend void end_buffer_read_sync(buffer_head& b, std::int32_t status) noexcept;
  friend void end_buffer_async_read(buffer_head& b, std::int32_t status) noexcept;
  friend void end_buffer_async_write(buffer_head& b, std::int32_t status) noexcept;
  static address_space& space_of(const buffer_head& b) noexcept {
    // acquire: sees it whole. Who has locked a buffer keeps its page in the index.
    return *static_cast<address_space*>(b.frame->owner.load(std::memory_order_acquire));
  }

  // What an access has met on its way, as read-ahead wants to know it.
  struct encounter {
    bool missing = false;
    bool marked = false;
  };

  // What a page's state is kept by: the size of its buffers, or of those it would get.
  std::size_t block_bytes_of(const page& p) const noexcept {
    const buffer_head* const b = page_buffers(p);
    return b != nullptr ? b->size_bytes : block_bytes_;
  }
  // The bytes [from, to) of a page.
  struct page_part {
    std::size_t from;
    std::size_t to;
  };

  // A page that has just been put into the index: `to_read` of it is the device's to fill, if that
  // is not empty; it is locked until then.
  struct new_page {
    add_outcome outcome = add_outcome::no_memory;
    page* p = nullptr;
    page_part to_read{0, 0};
  };

  // What a miss knows from page to page.
  struct miss;

  std::size_t valid_bytes(const page& p) const noexcept;
  static std::uint64_t page_of(std::uint64_t offset) noexcept { return offset >> page_shift; }

  // address_space.cc: the size, the index
  void set_size(std::uint64_t bytes) noexcept;
  task<> grow_last_page(std::uint64_t bytes);
  static cached_extent cached_part(page& p, std::uint64_t index) noexcept;
  [[gnu::always_inline]] page_ref find(std::uint64_t index) noexcept {
    page* p = index_.lookup(index);
    if (p == nullptr) return {};
    return pin_if_page_of<page_ref>(*p, this, index);
  }
  // Accesses to 4 KiB pages one after the other, for the miss-ratio curve: what counts as hits and
  // misses.
  [[gnu::always_inline]] void sample(std::uint64_t first, std::int64_t count) noexcept {
    if (sampler_ == nullptr) return;
    for (std::int64_t i = 0; i < count; ++i) {
      sampler_->touch(sample_base_ + first + static_cast<std::uint64_t>(i));
    }
  }
  // Of a view. Once the page has as many uses as it can, its place in the index gets a mark, and no
  // view looks at the frame any more, until eviction takes uses away. False: the page is marked for
  // read-ahead. (It looks again: a sight that is handed on would live in memory, which takes longer
  // than to find it.)
  bool count_use(std::uint64_t index) noexcept;
  // A reference to the page that has this number, if it is readable, as a view of it; touches
  // nothing of the frame but its count.
  [[gnu::always_inline]] page_ref pin_readable(std::uint64_t index) noexcept {
    const page_index::sight s = index_.look(index);
    if (!s) return {};
    if (!s.marked()) [[unlikely]] {
      if (!count_use(index)) return {};
    }
    return index_.pin<page_ref>(s);
  }
  // try_pin_page() of a page that is being changed, or has never been made readable.
  page_ref try_pin_unreadable(std::uint64_t index) noexcept;
  void make_readable(page& p) noexcept;
  // Of a page that the caller has locked, and that is in the index: its data is about to change; it
  // does not change any more, and if all of it is valid, and no block of it is locked by who
  // changes that, it is readable.
  void begin_change(page& p) noexcept {
    index_.begin_change(p.index.load(std::memory_order_relaxed));  // relaxed: locked
  }
  void end_change(page& p) noexcept {
    if (!p.test(page_uptodate)) return;
    if (locked_buffer(p, 0, page_bytes) != nullptr) return;
    index_.end_change(p.index.load(std::memory_order_relaxed));  // relaxed: locked
  }
  bool owns(const page& p) const noexcept { return p.is_owned_by(this); }
  // Of a locked page; false without memory.
  bool add_buffers(page& p) noexcept {
    return create_empty_buffers(p, cache_.buffers(), device_, block_bytes_,
                                buffers_ != options::buffer_use::always);
  }
  add_outcome add_page(std::uint64_t index, page& p) noexcept FOREBAY_EXCLUDES(lock_);
  add_outcome add_counted(std::uint64_t index, page& p) noexcept FOREBAY_EXCLUDES(lock_);
  void remove_page(page& p) noexcept FOREBAY_EXCLUDES(lock_);
  std::uint64_t evict_own(std::uint64_t wanted) noexcept FOREBAY_EXCLUDES(lock_);
  bool take_share(std::uint32_t pages) noexcept FOREBAY_EXCLUDES(lock_);
  task<> give_up_excess();
  // memory_share.cc. Evicts a few pages, its own if it has all it may have; false if it cannot.
  bool try_make_room() noexcept;
  // Which of the two dirty limits is the nearer one, its own or the cache's, decides.
  dirty_pacer::levels dirty_levels() const noexcept;
  bool over_background_limit() const noexcept;
  bool over_dirty_limit() const noexcept { return !may_dirty(1); }
  bool may_dirty(std::uint32_t pages) const noexcept;
  // Up to where, and at most to `most`, all pages from the one at `offset` on are dirty, or under
  // write-back; a hint.
  std::uint64_t unwritten_until(std::uint64_t offset, std::uint64_t most) noexcept
      FOREBAY_EXCLUDES(lock_);
  std::uint64_t next_unwritten(std::uint64_t offset, std::uint64_t end) noexcept
      FOREBAY_EXCLUDES(lock_);
  void set_dirty(page& p) noexcept FOREBAY_REQUIRES(lock_);
  void pace_dirtied(std::uint32_t pages) noexcept FOREBAY_REQUIRES(lock_);
  void call_flusher() noexcept;
  new_page add_large(std::uint64_t index, unsigned order) noexcept FOREBAY_EXCLUDES(lock_);
  void mark_dirty(page& p, std::size_t from, std::size_t to) noexcept FOREBAY_EXCLUDES(lock_);
  void mark_parts_dirty(page& p, unsigned first, unsigned end) noexcept FOREBAY_EXCLUDES(lock_);
  void count_dirty(std::int64_t pages, std::int64_t failed) noexcept FOREBAY_REQUIRES(lock_);
  void count_writeback(std::int64_t pages) noexcept FOREBAY_REQUIRES(lock_);
  void clear_dirty(page& p) noexcept FOREBAY_REQUIRES(lock_);
  // Whether a discard works on any page of [first, end).
  bool being_discarded(std::uint64_t first, std::uint64_t end) const noexcept
      FOREBAY_REQUIRES(lock_);
  auto discard_over(std::uint64_t first, std::uint64_t end) noexcept {
    return punch_done_.wait_unless([this, first, end]() noexcept {
      const scoped_lock hold(lock_);
      return !being_discarded(first, end);
    });
  }

  // fill.cc: reading
  static page_part part_of(const page& p, std::uint64_t offset, std::uint64_t end) noexcept;
  task<std::size_t> add_missing(std::uint64_t offset, std::size_t length, std::span<page_ref> out,
                                bio_batch& batch, miss& m);
  new_page add_large_missing(std::uint64_t index, std::uint64_t offset, std::uint64_t end,
                             miss& m) noexcept;
  new_page add_small_missing(std::uint64_t index, std::uint64_t offset, std::uint64_t end,
                             miss& m) noexcept;
  task<std::size_t> add_ahead(std::uint64_t offset, std::size_t length, std::span<page_ref> out,
                              bio_batch& batch);
  void note_use(page& p) noexcept;
  task<bool> fill_page(page& p, std::size_t from, std::size_t to);
  task<> fill_locked(page& p, std::size_t from, std::size_t to);
  enum class backing { data, hole, both };
  backing backing_of(std::uint64_t offset, std::size_t bytes, std::uint64_t& data_until) noexcept;
  bool fill_from_hole(std::uint64_t offset, std::byte* data, std::size_t bytes,
                      std::uint64_t& data_until) noexcept;
  static void end_read(address_space& self, const bio& b) noexcept;
  // Ends the I/O of the buffers of a page that a bio transferred. The last may let go of the page.
  static void end_buffers(page& p, std::size_t from, std::size_t to, std::int32_t status) noexcept;
  void end_read_of_parts(page& p, unsigned first, unsigned end, std::int32_t status) noexcept;

  // The page that an address inside the arena belongs to, which is under I/O for this place.
  page& page_at(const std::byte* data, std::uint64_t offset) noexcept {
    page& p = cache_.memory().frame_at(data);
    // A frame behind a large page's head says of nobody that it is his.
    page* const head = owns(p) ? &p : index_.lookup(page_of(offset));
    FOREBAY_ASSERT(head != nullptr);
    return *head;
  }

  // Calls f(page, from, to) for each page that a read or write bio transfers a part of.
  template <typename F>
  void for_each_page(const bio& b, F f) noexcept;  // pages_of_bio.h

  // read_ahead.cc
  // Has a task of its own do it, or drops it; false on a thread without a loop, which does it
  // itself.
  bool start_read_ahead(const readahead_window& window) noexcept;
  task<> read_ahead(readahead_window window);
  task<> read_ahead_alone(readahead_window window);
  void end_ahead() noexcept;

  // write.cc
  bool over_error_limit() const noexcept;
  std::uint64_t pause_ns() const noexcept;
  struct attempt {
    step how;
    std::size_t bytes;  // of the data, that lie in the page; written if `how` is done
  };
  template <bool Write>
  void expect(std::span<const std::uint64_t> offsets) const noexcept;
  attempt write_in_page(std::uint64_t offset, std::span<const std::byte> data, page_ref& p,
                        bool paced = false) noexcept;
  attempt write_in_new_page(std::uint64_t offset, std::span<const std::byte> data, page_ref& p,
                            bool paced) noexcept;
  step may_dirty_more(bool paced) const noexcept;
  static bool is_dirty(page& p, std::size_t from, std::size_t to) noexcept;
  bool wants_buffers(bool whole) const noexcept {
    return buffers_ == options::buffer_use::always ||
           (buffers_ == options::buffer_use::for_parts && !whole);
  }
  step write_locked(page& p, std::size_t from, std::span<const std::byte> data) noexcept;
  task<> wait_for(step s, std::uint64_t offset, std::size_t bytes, page_ref& p);
  task<> wait_for_memory();
  task<> write_zero_pages(std::uint64_t offset, std::uint64_t length);

  // writeback.cc
  // What one sweep of write-back did in its range.
  struct sweep {
    std::uint64_t pages = 0;    // written, at least in part
    std::uint64_t covered = 0;  // 4 KiB of them, written with every block that the range touches
    std::int32_t error = 0;     // of the first write that failed, a negative errno
  };
  task<sweep> write_back(std::uint64_t offset, std::uint64_t length, std::uint8_t flags);
  task<> write_back_page(page& p, bio_batch& batch, std::uint64_t from, std::uint64_t to,
                         sweep& done);
  std::size_t collect(std::uint64_t& from, std::uint64_t end, page_tag tag,
                      std::span<page_ref> out) noexcept FOREBAY_REQUIRES(lock_);
  static bool has_failed(page& p, std::uint64_t from, std::uint64_t end) noexcept;
  bool any_failed(std::uint64_t from, std::uint64_t end) const noexcept FOREBAY_REQUIRES(lock_);
  enum class start_outcome { started, discarding, buffer_locked };
  start_outcome start_writeback(page& p) noexcept FOREBAY_EXCLUDES(lock_);
  void end_writeback(page& p, std::int32_t status) noexcept FOREBAY_EXCLUDES(lock_);
  static void end_write(address_space& self, const bio& b) noexcept;
  void end_write_of_parts(page& p, unsigned first, unsigned end, std::int32_t status) noexcept;
  page_part next_to_write(page& p, std::size_t at) const noexcept;
  std::uint64_t covered_by_write(page& p, std::uint64_t from, std::uint64_t to) const noexcept;
  task<bool> wait_for_writeback(std::uint64_t first, std::uint64_t end);
  task<> flush_device();
  task<> flush_now();
  std::error_code write_error() const noexcept;

  // discard.cc
  // Of whole blocks, in bytes. Large pages are cut at 4 KiB only.
  task<> punch(std::uint64_t from, std::uint64_t end, bio_op op, std::uint8_t flags);
  task<> punch_alone(std::uint64_t from, std::uint64_t end, bio_op op, std::uint8_t flags);
  task<> give_edge_buffers(std::uint64_t offset);
  void clear_buffers_dirty(page& p, std::size_t from, std::size_t to) noexcept
      FOREBAY_EXCLUDES(lock_);
  // The blocks of a range of the device are somebody else's now, who writes to them past this
  // space: what is dirty of them here is not to be written, and is not under way when this returns.
  // (Linux: clean_bdev_aliases.)
  task<> clean_aliases(std::uint64_t offset, std::uint64_t length);
  task<> make_partly_clean(page& p, std::uint64_t from, std::uint64_t end);
  // The page that has the 4 KiB with this number, a small one with buffers; made if there is none.
  task<page_ref> page_with_buffers(std::uint64_t index);
  page_ref next_page(std::uint64_t& at, std::uint64_t end) noexcept FOREBAY_EXCLUDES(lock_);
  void drop_page(page& p, std::uint64_t from, std::uint64_t end) noexcept FOREBAY_EXCLUDES(lock_);
  void zero_in_place(page& p, std::size_t from, std::size_t to) noexcept FOREBAY_EXCLUDES(lock_);
  void zero_parts(page& p, unsigned first, unsigned end) noexcept;
  void remove_parts_dirty(page& p, unsigned first, unsigned end) noexcept FOREBAY_EXCLUDES(lock_);

  page_cache& cache_;
  device& device_;
  warm_notes notes_;
  std::byte* const frames_;          // the arena's memory
  const bool views_;                 // see the constructor
  access_sampler* const sampler_;    // the cache's, null if it has none
  const std::uint64_t sample_base_;  // what it knows page 0 by
  std::atomic<std::uint64_t> size_bytes_;
  const std::uint64_t max_bytes_;
  const std::uint32_t block_bytes_;
  const unsigned max_page_order_;
  const options::buffer_use buffers_;
  const std::size_t transfer_bytes_;  // the largest bio of the device, in whole pages
  std::atomic<bool> may_have_holes_;
  std::atomic<std::uint64_t> ahead_end_{UINT64_MAX};  // nothing is read ahead from here on

  mutable mutex lock_;
  page_index index_;  // written under lock_, and under pages' locks; its looks are free
  intrusive_list<punch_range, &punch_range::link> punches_ FOREBAY_GUARDED_BY(lock_);
  wait_queue punch_done_;

  // Flushes that wait while one runs share the next.
  std::uint64_t flush_started_ FOREBAY_GUARDED_BY(lock_) = 0;
  std::uint64_t flush_done_ FOREBAY_GUARDED_BY(lock_) = 0;
  bool flush_running_ FOREBAY_GUARDED_BY(lock_) = false;
  std::error_code flush_result_ FOREBAY_GUARDED_BY(lock_);
  wait_queue flush_ended_;

  memory_share share_;
  std::uint64_t hand_ FOREBAY_GUARDED_BY(lock_) = 0;  // of the clock by which its own pages go

  dirty_pacer pacer_;  // but for pause_ns(), under lock_

  readahead readahead_;
  std::atomic<std::uint32_t> ahead_running_{0};  // tasks of their own
  std::atomic<std::uint32_t> ahead_ending_{0};   // of these, and just ended: still in end_ahead()
  wait_queue ahead_ended_;

  std::atomic<std::int32_t> error_{0};  // negative errno of the newest write-back failure
  std::atomic<bool> stopping_{false};
  std::atomic<bool> flusher_running_{false};
  std::atomic<bool> flusher_idle_{false};
  wait_queue flusher_wanted_;
};

}  // namespace forebay
