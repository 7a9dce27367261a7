#include "forebay/cache/address_space.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "forebay/base/cache_line.h"
#include "forebay/cache/block_api.h"

namespace forebay {

address_space::address_space(page_cache& cache, device& dev, options opts)
    : cache_(cache),
      device_(dev),
      frames_(cache.memory().memory().data()),
      // A view reads memory that may have been given back a moment ago. That reads as zeros, but
      // of a pool of reserved pages that has run dry it would be SIGBUS.
      views_(cache.memory().backing() != page_backing::huge_reserved),
      size_bytes_(dev.limits().size_bytes),
      block_bytes_(opts.block_bytes),
      may_have_holes_(dev.limits().may_have_holes),
      index_(cache.nodes(), cache.memory(), (size_bytes_ + page_bytes - 1) >> page_shift),
      readahead_((size_bytes_ + page_bytes - 1) >> page_shift,
                 static_cast<std::uint32_t>(std::min<std::uint64_t>(
                     opts.readahead_bytes >> page_shift, cache.memory().page_count() / 16))) {
  FOREBAY_ASSERT(std::has_single_bit(block_bytes_) && block_bytes_ >= 512 &&
                 block_bytes_ <= page_bytes && block_bytes_ >= dev.limits().logical_block_bytes);
}

address_space::~address_space() {
  cache_.lru().invalidate(this);
  std::uint64_t at = 0;
  for (;;) {
    page* p = nullptr;
    {
      const scoped_lock hold(lock_);
      const auto found = index_.next(at, UINT64_MAX);
      if (!found) break;
      at = found->index;
      p = found->frame;
      FOREBAY_ASSERT(!p->test(page_writeback));
      p->refs.get();
      block_api::disassociate(*p);
    }
    remove_page(*p);
    drop_buffers(*p, cache_.buffers());
    put_page(*p);
  }
}

std::size_t address_space::valid_bytes(std::uint64_t index) const noexcept {
  return std::min<std::uint64_t>(page_bytes, size_bytes_ - (index << page_shift));
}

bool address_space::count_use(std::uint64_t index, const page_index::sight& s) noexcept {
  const page_ref p = find(index);
  if (!p) return true;
  if (p->test(page_readahead)) return false;
  note_use(*p);
  if (p->uses.load(std::memory_order_relaxed) < page::uses_max) return true;  // relaxed: a hint
  // The mark before the flag, and away with the flag before the mark: no mark stays without a flag.
  index_.set_mark(s);
  p->set(page_viewed);
  return true;
}

bool address_space::being_discarded(std::uint64_t first, std::uint64_t end) const noexcept {
  // The list is as long as there are discards under way, which is nearly always nought.
  auto& list = const_cast<intrusive_list<punch, &punch::link>&>(punches_);
  return std::any_of(list.begin(), list.end(),
                     [first, end](const punch& p) { return p.first < end && first < p.end; });
}

// Puts a frame, of which the caller has the only reference, into the index: locked, not uptodate,
// with a second reference for the index. Whatever else happens the frame stays the caller's as it
// was.
address_space::add_outcome address_space::add_page(std::uint64_t index, page& p) noexcept {
  {
    const scoped_lock hold(lock_);
    if (being_discarded(index)) return add_outcome::discarding;
    if (index_.lookup(index) != nullptr) return add_outcome::exists;
    if (!index_.insert(index, p)) return add_outcome::no_memory;
    p.refs.get();
    p.set(page_locked);
    p.set_identity(this, index);
  }
  cache_.add_to_list(p);
  return add_outcome::added;
}

// A page is no longer dirty, for whatever reason: neither its bits nor the counts say so.
void address_space::clear_dirty(page& p) noexcept {
  const std::uint32_t was = p.clear(page_dirty | page_error);
  if ((was & page_dirty) != 0) cache_.count_dirty(-1);
  if ((was & page_error) != 0) {
    cache_.count_error(-1);
    error_pages_.fetch_sub(1, std::memory_order_relaxed);  // relaxed: under lock_
  }
}

// Takes a page off the index; the caller holds a reference and, but for the destructor, the page
// lock.
void address_space::remove_page(page& p) noexcept {
  cache_.remove_from_list(p);
  {
    const scoped_lock hold(lock_);
    index_.erase(p.index.load(std::memory_order_relaxed));  // relaxed: held by the reference
    p.owner.store(nullptr, std::memory_order_release);      // release: lockers look again at owns()
    clear_dirty(p);
  }
  put_page(p);  // the index's reference; the caller's is left
}

bool address_space::evict(page& p, std::uint32_t holders) noexcept {
  const scoped_lock hold(lock_);
  if (!owns(p) || !p.refs.freeze(holders)) return false;
  if (p.test(page_dirty | page_writeback | page_locked)) {
    p.refs.set(holders);
    return false;
  }
  block_api::disassociate(p);
  if (p.test(page_unused)) {
    readahead_.wasted();
    cache_.count().readahead_wasted.add();
  }
  index_.erase(p.index.load(std::memory_order_relaxed));  // relaxed: frozen
  p.owner.store(nullptr, std::memory_order_relaxed);      // relaxed: nobody can take a reference
  return true;
}

bool address_space::move(page& p, std::uint32_t holders, page& fresh) noexcept {
  constexpr std::uint32_t kept = page_uptodate | page_dirty | page_error | page_viewed |
                                 page_private | page_zero | page_readahead | page_unused;
  const scoped_lock hold(lock_);
  if (!owns(p) || !p.refs.freeze(holders)) return false;
  // release: as page_index::insert(), for what the frame was before.
  std::atomic_thread_fence(std::memory_order_release);
  // Frozen, it is nobody's: no flag changes and no byte of the data.
  if (p.test(page_writeback | page_locked) || !move_buffers(p, fresh)) {
    p.refs.set(holders);
    return false;
  }
  std::memcpy(fresh.data(), p.data(), page_bytes);
  const std::uint64_t index = p.index.load(std::memory_order_relaxed);  // relaxed: frozen
  fresh.set(p.flags.load(std::memory_order_relaxed) & kept);            // relaxed: frozen
  fresh.set_identity(this, index);
  index_.replace(index, fresh);
  p.owner.store(nullptr, std::memory_order_relaxed);  // relaxed: nobody can take a reference
  return true;
}

void address_space::mark_dirty(page& p) noexcept {
  FOREBAY_DCHECK(p.test(page_locked) && !p.test(page_writeback));
  if (p.test(page_dirty)) return;
  if (p.test(page_unused)) note_use(p);
  {
    const scoped_lock hold(lock_);
    set_dirty(p);
    pace_dirtied();
  }
  call_flusher();
}

void address_space::set_dirty(page& p) noexcept {
  if ((p.set(page_dirty) & page_dirty) != 0) return;
  index_.set_tag(p.index.load(std::memory_order_relaxed), page_tag::dirty);  // relaxed: held
  cache_.count_dirty(1);
}

// Tells the pacer of a page that a writer has dirtied.
void address_space::pace_dirtied() noexcept {
  if (!cache_.over_free_run()) return;
  pacer_.dirtied(monotonic_clock::now_ns(), 1, cache_.dirty_levels());
}

// Wakes the flusher if there is something for it to do.
void address_space::call_flusher() noexcept {
  // relaxed: a flusher that goes idle looks at the limit itself afterwards.
  if (cache_.over_background_limit() && flusher_idle_.load(std::memory_order_relaxed)) {
    flusher_wanted_.wake_all();
  }
}

// Where in [offset, end) the first page begins that is dirty or under write-back: at `offset` if
// that lies inside one, at UINT64_MAX if there is none.
std::uint64_t address_space::next_unwritten(std::uint64_t offset, std::uint64_t end) noexcept {
  const scoped_lock hold(lock_);
  std::uint64_t first = UINT64_MAX;
  for (const page_tag tag : {page_tag::dirty, page_tag::writeback}) {
    const auto found = index_.next_tagged(page_of(offset), page_of(end - 1) + 1, tag);
    if (found) first = std::min(first, std::max(offset, found->index << page_shift));
  }
  return first;
}

result<std::size_t> address_space::extents(std::uint64_t offset, std::uint64_t length,
                                           std::span<extent> out) {
  std::size_t n = 0;
  const std::uint64_t end = offset + length;
  while (offset < end) {
    // Data that waits in the cache to be written is data. Asked before the device: what is written
    // back in between is found by one of the two.
    const std::uint64_t cached = next_unwritten(offset, end);
    const auto on_device = device_.extent_at(offset);
    if (!on_device) return fail(on_device.error());
    const std::uint64_t step_end = round_up(offset + 1, std::uint64_t{block_bytes_});
    std::uint64_t stop = std::min(end, std::max(on_device->end_bytes, step_end));
    bool hole = on_device->hole;
    if (hole && cached == offset) {
      hole = false;
      stop = std::min(stop, round_up(offset + 1, std::uint64_t{page_bytes}));
    } else if (hole) {
      stop = std::min(stop, cached);
    }
    if (n != 0 && out[n - 1].hole == hole) {
      out[n - 1].length_bytes += stop - offset;
    } else if (n == out.size()) {
      break;
    } else {
      out[n++] = {stop - offset, hole};
    }
    offset = stop;
  }
  return n;
}

}  // namespace forebay
