// The block path of a mapped object: a get_block of the user, asked for one block after the other,
// and its answers in the buffer heads of the object's pages. As fs/buffer.c and fs/mpage.c of
// Linux.
//
// A page without buffers, for want of memory, is asked for with a buffer of the call's own, and
// nothing is kept.

#include <algorithm>
#include <cstring>

#include "forebay/cache/address_space.h"
#include "forebay/cache/object_device.h"

namespace forebay {
namespace {

constexpr std::uint32_t mapping_bits = bh_mapped | bh_new | bh_delay | bh_boundary | bh_unwritten;

// The buffer at a place of a page, or the one that stands in for it.
buffer_head& buffer_or(const page& p, std::size_t at, buffer_head& instead) noexcept {
  buffer_head* b = page_buffers(p);
  if (b == nullptr) return instead;
  for (; at >= b->size_bytes; at -= b->size_bytes) b = b->this_page;
  return *b;
}

bool will_do(const buffer_head& b, map_purpose why) noexcept {
  switch (why) {
    case map_purpose::write_back:
      return b.test(bh_mapped) && !b.test(bh_delay);
    case map_purpose::report:
      return false;
    default:
      return b.test(bh_mapped | bh_delay);
  }
}

}  // namespace

// Asks for a block, unless the buffer has the answer. The caller holds mapping_ alone. On an error
// the buffer is as it was.
task<> object_device::get_block(std::uint64_t block, buffer_head& b, map_purpose why) {
  if (will_do(b, why)) co_return result<>{};
  // acquire: as buffer_head::test.
  const std::uint32_t before = b.state.load(std::memory_order_acquire) & mapping_bits;
  const std::uint64_t number = b.block_number;
  b.clear(mapping_bits);
  map_calls_.fetch_add(1, std::memory_order_relaxed);  // relaxed: a statistic
  result<> r = co_await blocks_->get_block(block, b, why);
  if (r && !is_possible(block, b, why)) {
    lies_.fetch_add(1, std::memory_order_relaxed);  // relaxed: a statistic
    r = fail(EUCLEAN);
  }
  if (r && b.test(bh_new) && device_space_ != nullptr) {
    r = co_await device_space_->clean_aliases(b.offset_bytes(), block_bytes_);
  }
  if (!r) {
    b.clear(mapping_bits);
    b.set(before);
    b.block_number = number;
    co_return r;
  }
  if (why == map_purpose::report) co_return r;
  if (will_do(b, map_purpose::write_back)) {
    b.dev = &below_;
    known_.put({.offset_bytes = block * block_bytes_,
                .length_bytes = block_bytes_,
                .device_offset_bytes = b.offset_bytes(),
                .state = extent_state::mapped});
  }
  if (why != map_purpose::read) note_change();
  co_return r;
}

bool object_device::is_possible(std::uint64_t block, const buffer_head& b,
                                map_purpose why) const noexcept {
  if (b.test(bh_delay)) return why != map_purpose::write_back;
  if (!b.test(bh_mapped)) {
    return !b.test(mapping_bits & ~bh_boundary) &&
           (why == map_purpose::read || why == map_purpose::report);
  }
  // Now: the device may have shrunk.
  if (b.block_number >= below_.limits().size_bytes / block_bytes_) return false;
  return !known_.contradicts({.offset_bytes = block * block_bytes_,
                              .length_bytes = block_bytes_,
                              .device_offset_bytes = b.offset_bytes(),
                              .state = extent_state::mapped});
}

task<object_device::block_answer> object_device::map_block(std::uint64_t block, buffer_head& b,
                                                           map_purpose why) {
  const bool was_uptodate = b.test(bh_uptodate);
  if (const result<> r = co_await close(mapping_); !r) co_return fail(r.error());
  const result<> r = co_await get_block(block, b, why);
  const block_answer answer{
      .has_data = b.test(bh_mapped) && !b.test(bh_delay) &&
                  (why != map_purpose::read || !b.test(bh_new | bh_unwritten)),
      .filled = !was_uptodate && b.test(bh_uptodate),
      .boundary = b.test(bh_boundary),
      .unwritten = b.test(bh_unwritten),
      .device_offset = b.offset_bytes(),
  };
  mapping_.open();
  if (!r) co_return fail(r.error());
  co_return answer;
}

// Reads the blocks in [from, to) of a page, which are the caller's to fill: gathers those that lie
// on the device, and empties the others.
task<> object_device::block_read_full_page(page& p, std::size_t from, std::size_t to,
                                           bio_batch& batch) {
  for (std::size_t at = from; at < to; at += block_bytes_) {
    buffer_head own;
    own.size_bytes = block_bytes_;
    own.data = p.data() + at;
    const std::uint64_t block = (p.offset_bytes() + at) / block_bytes_;
    const result<block_answer> a =
        co_await map_block(block, buffer_or(p, at, own), map_purpose::read);
    if (!a) co_return fail(a.error());
    if (a->filled) continue;
    if (!a->has_data) {
      std::memset(p.data() + at, 0, block_bytes_);
      continue;
    }
    const result<> r = co_await append(batch, a->device_offset, p.data() + at, block_bytes_);
    if (!r) co_return r;
    // The next answer may need I/O: this one is under way meanwhile.
    if (a->boundary) batch.submit();
  }
  co_return result<>{};
}

// Writes the blocks in [from, to) of a page under write-back; those that have none yet are given
// one. The value: whether any of them is unwritten.
task<bool> object_device::block_write_full_page(page& p, std::size_t from, std::size_t to,
                                                bio_batch& batch) {
  bool unwritten = false;
  for (std::size_t at = from; at < to; at += block_bytes_) {
    buffer_head own;
    own.size_bytes = block_bytes_;
    own.data = p.data() + at;
    const std::uint64_t block = (p.offset_bytes() + at) / block_bytes_;
    const result<block_answer> a =
        co_await map_block(block, buffer_or(p, at, own), map_purpose::write_back);
    if (!a) co_return fail(a.error());
    unwritten = unwritten || a->unwritten;
    const result<> r = co_await append(batch, a->device_offset, p.data() + at, block_bytes_);
    if (!r) co_return fail(r.error());
    if (a->boundary) batch.submit();
  }
  co_return unwritten;
}

// The blocks in [from, to) of a page have been written: those that were unwritten are so no longer.
task<> object_device::written_blocks(page& p, std::size_t from, std::size_t to) {
  for (std::size_t at = from; at < to; at += block_bytes_) {
    buffer_head own;
    own.size_bytes = block_bytes_;
    buffer_head& b = buffer_or(p, at, own);
    const std::uint64_t offset = p.offset_bytes() + at;
    const result<block_answer> a =
        co_await map_block(offset / block_bytes_, b, map_purpose::write_back);
    if (!a) co_return fail(a.error());
    if (!a->unwritten) continue;
    if (const result<> r = co_await close(mapping_); !r) co_return r;
    const result<> r = co_await call_written(offset, block_bytes_);
    if (r) b.clear(bh_unwritten);
    mapping_.open();
    if (!r) co_return r;
  }
  co_return result<>{};
}

task<> object_device::reserve_in_page(page& p, std::size_t from, std::size_t to) {
  for (std::size_t at = from / block_bytes_ * block_bytes_; at < to; at += block_bytes_) {
    buffer_head own;
    own.size_bytes = block_bytes_;
    const std::uint64_t block = (p.offset_bytes() + at) / block_bytes_;
    const result<block_answer> a =
        co_await map_block(block, buffer_or(p, at, own), map_purpose::reserve);
    if (!a) co_return fail(a.error());
  }
  co_return result<>{};
}

task<> object_device::give_back_new(page& p, std::size_t from, std::size_t to) {
  if (const result<> r = co_await close(mapping_); !r) co_return r;
  result<> first;
  for (std::size_t at = from / block_bytes_ * block_bytes_; at < to; at += block_bytes_) {
    buffer_head own;
    buffer_head& b = buffer_or(p, at, own);
    if (!b.test(bh_new) || b.test(bh_dirty | bh_async_write)) continue;
    const std::uint64_t offset = p.offset_bytes() + at;
    const result<> r = co_await mapping().unmap(offset, block_bytes_);
    if (!r) {
      first = first ? r : first;
      continue;
    }
    b.clear(mapping_bits);
    known_.forget(offset, offset + block_bytes_);
  }
  mapping_.open();
  co_return first;
}

// The buffers of a range say nothing any more. Under mapping_.
void object_device::forget_buffers(std::uint64_t offset, std::uint64_t end) noexcept {
  if (blocks_ == nullptr) return;
  std::uint64_t at = offset >> page_shift;
  while (const page_ref p = space_->next_page(at, ((end - 1) >> page_shift) + 1)) {
    if (page_buffers(*p) == nullptr) continue;
    const auto [from, to] = address_space::part_of(*p, offset, end);
    for_each_buffer(*p, from, to, [](buffer_head& b) { b.clear(mapping_bits); });
  }
}

}  // namespace forebay
