// What an address space notes of its pages in a warm store, and how it takes them over from there.

#include <algorithm>

#include "forebay/cache/address_space.h"
#include "forebay/cache/warm_store.h"

namespace forebay {

// Calls f(frame, page number, blocks) for each 4 KiB of the bytes [from, to) of a page, with what
// shares a block with them.
template <typename F>
void warm_notes::for_each_frame(page& p, std::size_t from, std::size_t to, F f) const noexcept {
  const buffer_head* const b = page_buffers(p);
  const std::size_t block = b != nullptr ? b->size_bytes : block_bytes_;
  from = round_down(from, block);
  to = std::min<std::uint64_t>(round_up(to, block), size_bytes_ - p.offset_bytes());
  const std::uint32_t head = memory_.frame_of(p);
  const std::uint64_t index = p.index.load(std::memory_order_relaxed);  // relaxed: held
  while (from < to) {
    const std::size_t part = from >> page_shift;
    const std::size_t start = part << page_shift;
    const std::size_t end = std::min(to, start + page_bytes);
    f(head + static_cast<std::uint32_t>(part), index + part,
      warm_record::blocks(from - start, end - start));
    from = end;
  }
}

void warm_notes::note_filled(page& p, std::size_t from, std::size_t to, bool dirty) const noexcept {
  for_each_frame(p, from, to, [&](std::uint32_t frame, std::uint64_t index, unsigned blocks) {
    store_->note(frame, slot_, index, blocks, dirty ? blocks : 0);
  });
}

void warm_notes::note_changing(page& p, std::size_t from, std::size_t to) const noexcept {
  for_each_frame(p, from, to, [&](std::uint32_t frame, std::uint64_t, unsigned blocks) {
    store_->note_change(frame, blocks);
  });
}

void warm_notes::note_written(page& p) const noexcept {
  const std::uint32_t head = memory_.frame_of(p);
  if (p.is_large()) {
    const page_parts parts(p);
    for (unsigned i = 0; i < parts.count(); ++i) {
      if (!parts.has(part_set::dirty, i) && !parts.has(part_set::io, i)) {
        store_->note_clean(head + i, 0);
      }
    }
    return;
  }
  unsigned dirty = p.test(page_dirty) ? warm_record::all_blocks : 0;
  if (page_buffers(p) != nullptr) {
    dirty = 0;
    for_each_buffer(p, 0, page_bytes, [&](const buffer_head& b) {
      if (!b.test(bh_dirty | bh_async_write)) return;
      const auto at = static_cast<std::size_t>(b.data - p.data());
      dirty |= warm_record::blocks(at, at + b.size_bytes);
    });
  }
  store_->note_clean(head, dirty);
}

void warm_notes::note_gone(page& p) const noexcept {
  const std::uint32_t head = memory_.frame_of(p);
  for (std::uint32_t i = 0; i < p.frames(); ++i) store_->note_gone(head + i);
}

void warm_notes::note_moved(page& p, page& fresh) const noexcept {
  const std::uint32_t from = memory_.frame_of(p);
  const std::uint32_t to = memory_.frame_of(fresh);
  for (std::uint32_t i = 0; i < p.frames(); ++i) store_->note_moved(from + i, to + i);
}

void warm_notes::note_hot(page& p) const noexcept {
  const std::uint32_t head = memory_.frame_of(p);
  for (std::uint32_t i = 0; i < p.frames(); ++i) store_->note_hot(head + i);
}

void warm_notes::grow(std::uint64_t bytes) noexcept {
  if (store_ != nullptr) store_->note_grown(slot_, bytes);
  size_bytes_ = bytes;
}

bool warm_notes::may_begin_discard() const noexcept {
  return store_ == nullptr || store_->may_note_discarding(slot_);
}

bool warm_notes::begin_discard(std::uint64_t from, std::uint64_t end,
                               std::optional<unsigned>& number) const noexcept {
  if (store_ == nullptr) return true;
  number = store_->note_discarding(slot_, from, end);
  return number.has_value();
}

void warm_notes::end_discard(std::optional<unsigned> number) const noexcept {
  if (number) store_->note_discarded(slot_, *number);
}

result<> address_space::adopt(page& p, const warm_record& r) noexcept {
  FOREBAY_ASSERT(notes_.is_of(r.image));
  const std::uint64_t start = r.index << page_shift;
  if (start >= size_bytes()) return fail(errc::corrupt);
  const std::size_t valid = std::min<std::uint64_t>(page_bytes, size_bytes() - start);
  const unsigned blocks = warm_record::blocks(0, valid);
  if ((r.valid & ~blocks) != 0) return fail(errc::corrupt);
  const bool whole = r.valid == blocks;
  // A block is valid as a whole or not at all; what is dirty is valid.
  unsigned uptodate = 0;
  unsigned dirty = 0;
  for (std::size_t at = 0; at < valid; at += block_bytes_) {
    const unsigned mask = warm_record::blocks(at, std::min<std::size_t>(at + block_bytes_, valid));
    if ((r.valid & mask) == mask) uptodate |= mask;
    if ((r.dirty & mask) != 0) dirty |= mask;
  }
  if ((dirty & ~uptodate) != 0) return fail(errc::corrupt);
  // The buffers first, which need memory, and its identity for that.
  p.index.store(r.index, std::memory_order_relaxed);  // relaxed: the caller's alone
  if (!whole && !add_buffers(p)) return fail(ENOMEM);
  // What is over a limit goes later: here it may be dirty, and nobody to write it back.
  share_.add(p.frames());
  const add_outcome outcome = add_counted(r.index, p);
  if (outcome != add_outcome::added) {
    share_.remove(p.frames());
    drop_buffers(p, cache_.buffers());
    p.clear(page_private);
    return fail(outcome == add_outcome::exists ? EEXIST : ENOMEM);
  }
  if (whole) {
    p.set(page_uptodate);
  } else {
    for_each_buffer(p, 0, valid, [&](buffer_head& b) {
      const auto at = static_cast<std::size_t>(b.data - p.data());
      const unsigned mask = warm_record::blocks(at, at + 1);
      b.set(((uptodate & mask) != 0 ? std::uint32_t{bh_uptodate} : 0u) |
            ((dirty & mask) != 0 ? std::uint32_t{bh_dirty} : 0u));
    });
  }
  if (dirty != 0) {
    const scoped_lock hold(lock_);
    set_dirty(p);
  }
  end_change(p);
  unlock_page(p);
  put_page(p);  // the caller's reference; the index's is left
  return {};
}

}  // namespace forebay
