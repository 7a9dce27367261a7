#include "forebay/cache/address_space.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <thread>

#include "forebay/base/cache_line.h"
#include "forebay/cache/block_api.h"
#include "forebay/cache/warm_store.h"

namespace forebay {
namespace {

constexpr std::uint64_t pages_for(std::uint64_t bytes) noexcept {
  return (bytes + page_bytes - 1) >> page_shift;
}

}  // namespace

address_space::address_space(page_cache& cache, device& dev, options opts)
    : cache_(cache),
      device_(dev),
      notes_(opts.warm_slot ? cache.warm() : nullptr, opts.warm_slot.value_or(0), cache.memory(),
             opts.block_bytes, dev.limits().size_bytes),
      frames_(cache.memory().memory().data()),
      // A view reads memory that may have been given back a moment ago. That reads as zeros, but
      // of a pool of reserved pages that has run dry it would be SIGBUS.
      views_(cache.memory().backing() != page_backing::huge_reserved),
      sampler_(cache.sampler()),
      sample_base_(cache.next_sample_base()),
      size_bytes_(dev.limits().size_bytes),
      max_bytes_(opts.max_bytes),
      block_bytes_(opts.block_bytes),
      max_page_order_(opts.max_page_order),
      buffers_(opts.buffers),
      transfer_bytes_(std::max(
          page_bytes, round_down(std::size_t{dev.limits().max_transfer_bytes}, page_bytes))),
      may_have_holes_(dev.limits().may_have_holes),
      index_(cache.nodes(), cache.memory(), pages_for(size_bytes()), pages_for(opts.max_bytes)),
      readahead_(pages_for(size_bytes()),
                 static_cast<std::uint32_t>(std::min<std::uint64_t>(
                     opts.readahead_bytes >> page_shift, cache.memory().page_count() / 16))) {
  FOREBAY_ASSERT(std::has_single_bit(block_bytes_) && block_bytes_ >= 512 &&
                 block_bytes_ <= page_bytes && block_bytes_ >= dev.limits().logical_block_bytes);
  FOREBAY_ASSERT(max_page_order_ <= buddy::chunk_order);
  FOREBAY_ASSERT(max_page_order_ == 0 || buffers_ == options::buffer_use::as_needed);
  FOREBAY_ASSERT(!notes_ || (buffers_ == options::buffer_use::as_needed &&
                             size_bytes() % warm_record::block_bytes == 0));
}

address_space::~address_space() {
  // acquire: pairs with end_ahead(), whose last touch it is.
  while (ahead_ending_.load(std::memory_order_acquire) != 0) std::this_thread::yield();
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
      p->refs().get();
      block_api::disassociate(*p);
    }
    remove_page(*p);
    drop_buffers(*p, cache_.buffers());
    put_page(*p);
  }
  FOREBAY_DCHECK(share_.pages() == 0);
}

// How much of a page lies on the device: all of it, but for a last small one.
std::size_t address_space::valid_bytes(const page& p) const noexcept {
  return std::min<std::uint64_t>(p.bytes(), size_bytes() - p.offset_bytes());
}

// Nobody changes the last page, nor fills it, writes it back or discards it, if there is one and it
// grows with the device.
void address_space::set_size(std::uint64_t bytes) noexcept {
  notes_.grow(bytes);
  readahead_.set_object_pages(pages_for(bytes));
  size_bytes_.store(bytes, std::memory_order_release);  // release: pairs with size_bytes()
}

// The page at the old end, which is short: what comes behind its end is on the device, and not here
// yet. Its blocks get states of their own for that. Nothing is put into the index there.
task<> address_space::grow_last_page(std::uint64_t bytes) {
  const std::uint64_t before = size_bytes();
  std::uint64_t at = page_of(before);
  const page_ref p = next_page(at, at + 1);
  if (!p) {
    set_size(bytes);
    co_return result<>{};
  }
  for (;;) {
    while (!try_lock_page(*p)) co_await wait_until_clear(*p, page_locked);
    if (!owns(*p)) break;  // a failed fill has taken it off
    buffer_head* const busy = locked_buffer(*p, 0, page_bytes);
    const bool written = !p->test(page_writeback);
    if (written && busy == nullptr && add_buffers(*p)) break;
    unlock_page(*p);
    if (!written) {
      co_await wait_until_clear(*p, page_writeback);
    } else if (busy != nullptr) {
      co_await wait_until_unlocked(*busy);
    } else if (!try_make_room()) {
      co_await cache_.frames_available();
    }
  }
  if (owns(*p)) {
    FOREBAY_ASSERT(is_aligned(before, std::uint64_t{block_bytes_of(*p)}));
    begin_change(*p);
    for_each_buffer(*p, before % page_bytes, page_bytes,
                    [](buffer_head& b) { b.clear(bh_uptodate | bh_dirty); });
    p->clear(page_uptodate | page_zero);
  }
  // Last: who sees the size sees what of the page is valid.
  set_size(bytes);
  unlock_page(*p);
  co_return result<>{};
}

task<> address_space::grow(std::uint64_t bytes) {
  const std::uint64_t before = size_bytes();
  FOREBAY_ASSERT(bytes >= before && bytes <= device_.limits().size_bytes);
  FOREBAY_ASSERT(is_aligned(bytes, std::uint64_t{block_bytes_}));
  if (bytes > std::max(before, max_bytes_)) co_return fail(EFBIG);
  for (;;) {
    {
      const scoped_lock hold(lock_);
      if (index_.grow(pages_for(bytes))) break;
    }
    if (!cache_.try_make_room()) co_return fail(ENOMEM);
  }
  const auto next = bytes != before ? device_.extent_at(before) : file_extent{bytes, false};
  if (next && next->hole)
    may_have_holes_.store(true, std::memory_order_relaxed);  // relaxed: a hint
  if (is_aligned(before, std::uint64_t{page_bytes})) {
    set_size(bytes);
    co_return result<>{};
  }
  punch_range range{page_of(before), page_of(before) + 1, {}};
  for (;;) {
    {
      const scoped_lock hold(lock_);
      if (!being_discarded(range.first, range.end)) {
        punches_.push_back(range);
        break;
      }
    }
    co_await discard_over(range.first, range.end);
  }
  const result<> r = co_await grow_last_page(bytes);
  {
    const scoped_lock hold(lock_);
    punches_.erase(range);
  }
  punch_done_.wake_all();
  co_return r;
}

bool address_space::count_use(std::uint64_t index) noexcept {
  const page_ref p = find(index);
  if (!p) return true;
  if (p->test(page_readahead)) return false;
  note_use(*p);
  if (p->uses.load(std::memory_order_relaxed) < page::uses_max) return true;  // relaxed: a hint
  // The mark before the flag, and away with the flag before the mark: no mark stays without a flag.
  index_.set_mark(index);
  p->set(page_viewed);
  return true;
}

page_ref address_space::try_pin_unreadable(std::uint64_t index) noexcept {
  page_ref p = find(index);
  if (!p || !p->test(page_uptodate) || p->test(page_readahead)) return {};
  note_use(*p);
  cache_.count().hits.add();
  sample(index, 1);
  return p;
}

template <bool Write>
void address_space::expect(std::span<const std::uint64_t> offsets) const noexcept {
  // From there on the processor's own prefetcher has seen enough to go on.
  constexpr std::size_t data_lines = 8;
  for (const std::uint64_t offset : offsets) index_.expect_lookup(page_of(offset));
  for (const std::uint64_t offset : offsets) {
    const std::optional<std::uint32_t> frame = index_.expect_pin(page_of(offset));
    if (!frame) continue;
    const std::byte* const data = frames_ + (std::size_t{*frame} << page_shift);
    for (std::size_t i = 0; i < data_lines; ++i)
      __builtin_prefetch(data + i * cache_line_bytes, Write ? 1 : 0);
  }
}
void address_space::expect_reads(std::span<const std::uint64_t> offsets) const noexcept {
  expect<false>(offsets);
}
void address_space::expect_writes(std::span<const std::uint64_t> offsets) const noexcept {
  expect<true>(offsets);
}

bool address_space::being_discarded(std::uint64_t first, std::uint64_t end) const noexcept {
  // The list is as long as there are discards under way, which is nearly always nought.
  auto& list = const_cast<intrusive_list<punch_range, &punch_range::link>&>(punches_);
  return std::any_of(list.begin(), list.end(),
                     [first, end](const punch_range& p) { return p.first < end && first < p.end; });
}

// Puts a frame, of which the caller has the only reference, into the index: locked, not uptodate,
// with a second reference for the index. Whatever else happens the frame stays the caller's as it
// was.
address_space::add_outcome address_space::add_page(std::uint64_t index, page& p) noexcept {
  if (!take_share(p.frames())) return add_outcome::no_memory;
  const add_outcome outcome = add_counted(index, p);
  if (outcome != add_outcome::added) share_.remove(p.frames());
  return outcome;
}

// The same of pages that share_ has counted already.
address_space::add_outcome address_space::add_counted(std::uint64_t index, page& p) noexcept {
  const std::uint64_t end = index + p.frames();
  {
    const scoped_lock hold(lock_);
    if (being_discarded(index, end)) return add_outcome::discarding;
    if (const result<> put = index_.insert(index, p); !put) {
      return put.error() == std::errc::file_exists ? add_outcome::exists : add_outcome::no_memory;
    }
    if (p.is_large()) page_parts(p).make_empty();
    p.refs().get();
    p.set(share_.is_filling() ? page_locked | page_young : page_locked);
    p.set_identity(this, index);
  }
  cache_.add_to_list(p);
  return add_outcome::added;
}

// A large page for a stretch with nothing in it, as add_page() leaves it, and one reference for the
// caller.
address_space::new_page address_space::add_large(std::uint64_t index, unsigned order) noexcept {
  if (!share_.may_have_order(order)) return {};
  page* const block = cache_.try_allocate_large(order);
  if (block == nullptr) return {};
  const add_outcome outcome = add_page(index, *block);
  if (outcome == add_outcome::added) return {outcome, block};
  put_page(*block);
  return {outcome};
}

bool address_space::split(page& p, std::uint32_t holders) noexcept {
  const scoped_lock hold(lock_);
  if (!owns(p) || !p.refs().freeze(holders)) return false;
  const std::uint64_t index = p.index.load(std::memory_order_relaxed);  // relaxed: frozen
  if (p.test(page_writeback | page_locked)) {
    p.refs().set(holders);
    return false;
  }
  // Who pins what he has seen to be readable does not ask a frame who it is.
  begin_change(p);
  if (!index_.split(index, p)) {
    end_change(p);
    p.refs().set(holders);
    return false;
  }
  // What is known of the parts lies in the frames that are to be pages.
  std::array<std::uint32_t, std::size_t{1} << buddy::chunk_order> flags{};
  const unsigned count = p.frames();
  const page_parts parts(p);
  const std::uint32_t common = p.flags.load(std::memory_order_relaxed) &  // relaxed: frozen
                               (page_uptodate | page_zero | page_unused);
  for (unsigned i = 0; i < count; ++i) {
    flags[i] = common | (parts.has(part_set::dirty, i) ? page_dirty : 0u) |
               (parts.has(part_set::failed, i) ? page_error : 0u);
  }
  cache_.memory().split(p);
  for (unsigned i = 0; i < count; ++i) {
    page& part = (&p)[i];
    part.clear(page_dirty | page_error | page_viewed);
    part.set(flags[i]);
    part.set_identity(this, index + i);
    end_change(part);
    if ((flags[i] & page_dirty) == 0) index_.clear_tag(index + i, page_tag::dirty);
  }
  p.refs().set(holders);
  return true;
}

void address_space::count_dirty(std::int64_t pages, std::int64_t failed) noexcept {
  for (dirty_counts* const of : {&cache_.unwritten(), &share_.unwritten()}) {
    of->add_dirty(pages);
    if (failed != 0) of->add_failed(failed);
  }
}

void address_space::count_writeback(std::int64_t pages) noexcept {
  cache_.unwritten().add_writeback(pages);
  share_.unwritten().add_writeback(pages);
}

// A page is no longer dirty, for whatever reason: neither its bits nor the counts say so.
void address_space::clear_dirty(page& p) noexcept {
  const std::uint32_t was = p.clear(page_dirty | page_error);
  if ((was & page_dirty) == 0) return;
  if (!p.is_large()) return count_dirty(-1, (was & page_error) != 0 ? -1 : 0);
  page_parts parts(p);
  const std::int64_t dirty = parts.clear(part_set::dirty);
  count_dirty(-dirty, -std::int64_t{parts.clear(part_set::failed)});
}

// Takes a page off the index; the caller holds a reference and, but for the destructor, the page
// lock.
void address_space::remove_page(page& p) noexcept {
  cache_.remove_from_list(p);
  {
    const scoped_lock hold(lock_);
    notes_.gone(p);
    index_.erase(p.index.load(std::memory_order_relaxed));  // relaxed: held by the reference
    share_.remove(p.frames());
    p.owner.store(nullptr, std::memory_order_release);  // release: lockers look again at owns()
    clear_dirty(p);
  }
  put_page(p);  // the index's reference; the caller's is left
}

bool address_space::evict(page& p, std::uint32_t holders) noexcept {
  const scoped_lock hold(lock_);
  if (!owns(p) || !p.refs().freeze(holders)) return false;
  if (p.test(page_dirty | page_writeback | page_locked)) {
    p.refs().set(holders);
    return false;
  }
  block_api::disassociate(p);
  if (p.test(page_unused)) {
    readahead_.wasted(p.frames());
    cache_.count().readahead_wasted.add(p.frames());
  }
  notes_.gone(p);
  index_.erase(p.index.load(std::memory_order_relaxed));  // relaxed: frozen
  share_.remove(p.frames());
  p.owner.store(nullptr, std::memory_order_relaxed);  // relaxed: nobody can take a reference
  return true;
}

bool address_space::move(page& p, std::uint32_t holders, page& fresh) noexcept {
  constexpr std::uint32_t kept = page_uptodate | page_dirty | page_error | page_viewed |
                                 page_private | page_zero | page_readahead | page_unused;
  const scoped_lock hold(lock_);
  if (!owns(p) || !p.refs().freeze(holders)) return false;
  // release: as page_index::insert(), for what the frame was before.
  std::atomic_thread_fence(std::memory_order_release);
  // Frozen, it is nobody's: no flag changes and no byte of the data.
  if (p.test(page_writeback | page_locked) || !move_buffers(p, fresh)) {
    p.refs().set(holders);
    return false;
  }
  std::memcpy(fresh.data(), p.data(), p.bytes());
  if (p.is_large()) page_parts(fresh).assign(page_parts(p));
  const std::uint64_t index = p.index.load(std::memory_order_relaxed);  // relaxed: frozen
  fresh.set(p.flags.load(std::memory_order_relaxed) & kept);            // relaxed: frozen
  fresh.set_identity(this, index);
  index_.replace(index, fresh);
  notes_.moved(p, fresh);
  p.owner.store(nullptr, std::memory_order_relaxed);  // relaxed: nobody can take a reference
  return true;
}

// The bytes [from, to) of a locked page, and what shares a block or a part with them, are newer
// than the device.
void address_space::mark_dirty(page& p, std::size_t from, std::size_t to) noexcept {
  FOREBAY_DCHECK(p.test(page_locked) && !p.test(page_writeback));
  if (p.test(page_unused)) note_use(p);
  if (p.is_large()) {
    mark_parts_dirty(p, static_cast<unsigned>(from >> page_shift),
                     static_cast<unsigned>((to - 1) >> page_shift) + 1);
  } else if (!p.test(page_dirty)) {
    const scoped_lock hold(lock_);
    set_dirty(p);
    pace_dirtied(1);
  } else {
    return;
  }
  call_flusher();
}

// Of a small page.
void address_space::set_dirty(page& p) noexcept {
  if ((p.set(page_dirty) & page_dirty) != 0) return;
  index_.set_tag(p.index.load(std::memory_order_relaxed), page_tag::dirty);  // relaxed: held
  count_dirty(1, 0);
}

// Tells the pacer of pages that a writer has dirtied.
void address_space::pace_dirtied(std::uint32_t pages) noexcept {
  const dirty_pacer::levels at = dirty_levels();
  if (at.over_free_run()) pacer_.dirtied(monotonic_clock::now_ns(), pages, at);
}

// Wakes the flusher if there is something for it to do.
void address_space::call_flusher() noexcept {
  // relaxed: a flusher that goes idle looks at the limit itself afterwards.
  if (over_background_limit() && flusher_idle_.load(std::memory_order_relaxed)) {
    wake_flusher();
  }
}

void address_space::mark_parts_dirty(page& p, unsigned first, unsigned end) noexcept {
  page_parts parts(p);
  if (parts.count(part_set::dirty, first, end) == end - first) return;
  const scoped_lock hold(lock_);
  const unsigned fresh = parts.add(part_set::dirty, first, end);
  count_dirty(fresh, 0);
  pace_dirtied(fresh);
  if ((p.set(page_dirty) & page_dirty) != 0) return;
  index_.set_tag(p.index.load(std::memory_order_relaxed), page_tag::dirty);  // relaxed: held
}

std::uint64_t address_space::unwritten_until(std::uint64_t offset, std::uint64_t most) noexcept {
  const scoped_lock hold(lock_);
  std::uint64_t at = page_of(offset);
  const std::uint64_t end = page_of(most - 1) + 1;
  for (bool found = true; found && at < end;) {
    found = false;
    for (const page_tag tag : {page_tag::dirty, page_tag::writeback}) {
      const auto next = index_.next_tagged(at, at + 1, tag);
      if (!next) continue;
      at = next->end();
      found = true;
      break;
    }
  }
  return std::clamp(at << page_shift, offset, most);
}

// Where in [offset, end) the first 4 KiB begin that are dirty or under write-back: at `offset` if
// that lies inside them, at UINT64_MAX if there is none.
std::uint64_t address_space::next_unwritten(std::uint64_t offset, std::uint64_t end) noexcept {
  const scoped_lock hold(lock_);
  std::uint64_t first = UINT64_MAX;
  const std::uint64_t last = page_of(end - 1);
  for (const page_tag tag : {page_tag::dirty, page_tag::writeback}) {
    std::uint64_t at = page_of(offset);
    while (const auto found = index_.next_tagged(at, last + 1, tag)) {
      const std::uint64_t page_end = found->end();
      at = std::max(at, found->index);
      if (found->frame->is_large()) {
        const part_set set = tag == page_tag::dirty ? part_set::dirty : part_set::io;
        at = found->index +
             page_parts(*found->frame).next(set, static_cast<unsigned>(at - found->index));
      }
      if (at < page_end) {
        if (at <= last) first = std::min(first, std::max(offset, at << page_shift));
        break;
      }
    }
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

// What is known of a 4 KiB part of a page in the index.
address_space::cached_extent address_space::cached_part(page& p, std::uint64_t index) noexcept {
  cached_extent e{page_bytes, p.test(page_uptodate), p.test(page_dirty | page_writeback)};
  if (e.dirty && p.is_large()) {
    const page_parts parts(p);
    const auto part = static_cast<unsigned>(index & (p.frames() - 1));
    e.dirty = parts.has(part_set::dirty, part) ||
              (p.test(page_writeback) && parts.has(part_set::io, part));
  }
  return e;
}

std::size_t address_space::cached_extents(std::uint64_t offset, std::uint64_t length,
                                          std::span<cached_extent> out) noexcept {
  constexpr unsigned looks_max = 1u << 12;
  constexpr unsigned looks_under_lock = 256;
  const std::uint64_t end = offset + length;
  std::size_t n = 0;
  // False: there is no room for another extent.
  const auto add = [&](std::uint64_t until, const cached_extent& e) noexcept {
    const std::uint64_t bytes = std::min(until, end) - offset;
    if (n != 0 && out[n - 1].resident == e.resident && out[n - 1].dirty == e.dirty) {
      out[n - 1].length_bytes += bytes;
    } else if (n == out.size()) {
      return false;
    } else {
      out[n++] = {bytes, e.resident, e.dirty};
    }
    offset += bytes;
    return true;
  };
  for (unsigned looks = 0; offset < end && looks < looks_max;) {
    const scoped_lock hold(lock_);
    for (unsigned i = 0; i < looks_under_lock && offset < end; ++i, ++looks) {
      const std::uint64_t at = page_of(offset);
      const auto found = index_.next(at, page_of(end - 1) + 1);
      const bool here = found && found->index <= at;
      const std::uint64_t until = here ? at + 1 : found ? found->index : page_of(end - 1) + 1;
      const cached_extent e =
          here ? cached_part(*found->frame, at) : cached_extent{0, false, false};
      if (!add(until << page_shift, e)) return n;
    }
  }
  return n;
}

}  // namespace forebay
