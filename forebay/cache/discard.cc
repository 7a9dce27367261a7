// Trim and write-zeroes of an address space, and what is dirty and not to be written any more.

#include <algorithm>
#include <array>
#include <cstring>

#include "forebay/base/cache_line.h"
#include "forebay/cache/address_space.h"
#include "forebay/cache/block_api.h"

namespace forebay {
namespace {

// Below this many whole pages zeros are cheaper to write than to ask the device for.
constexpr std::uint64_t least_pages_for_device = 16;

constexpr std::array<std::byte, page_bytes> zeros{};

bool is_unsupported(std::error_code e) noexcept {
  return e == std::errc::not_supported || e == std::errc::operation_not_supported;
}

// The whole pages in a range of a device of `size` bytes, [first, last), and where the last of them
// ends in bytes: it is whole, too, if it is the device's last and short.
struct whole_pages {
  std::uint64_t first;
  std::uint64_t last;
  std::uint64_t end;
};
whole_pages whole_pages_of(std::uint64_t offset, std::uint64_t end, std::uint64_t size) noexcept {
  const std::uint64_t last = end == size ? ((end - 1) >> page_shift) + 1 : end >> page_shift;
  return {(offset + page_bytes - 1) >> page_shift, last, std::min(last << page_shift, end)};
}

}  // namespace

// The buffers in [from, to) of a locked page, none of which is locked, are not to be written, and
// belong to nobody's buffers any more.
void address_space::clear_buffers_dirty(page& p, std::size_t from, std::size_t to) noexcept {
  const scoped_lock hold(lock_);
  bool dirty = false;
  for_each_buffer(p, from, to, [](buffer_head& b) {
    b.clear(bh_dirty | bh_write_error);
    block_api::disassociate(b);
  });
  for_each_buffer(p, 0, page_bytes,
                  [&](const buffer_head& b) { dirty = dirty || b.test(bh_dirty); });
  notes_.written(p);
  if (dirty || !p.test(page_dirty)) return;
  index_.clear_tag(p.index.load(std::memory_order_relaxed), page_tag::dirty);  // relaxed: locked
  clear_dirty(p);
}

// Empties blocks of a locked page whose buffers keep it in the cache.
void address_space::zero_in_place(page& p, std::size_t from, std::size_t to) noexcept {
  begin_change(p);
  std::memset(p.data() + from, 0, to - from);
  set_uptodate(p, from, to, valid_bytes(p));
  notes_.filled(p, from, std::min(to, valid_bytes(p)));
  if (to - from == page_bytes) p.set(page_zero);
  end_change(p);
  clear_buffers_dirty(p, from, to);
}

// Pins the first page of [at, end) and moves `at` past it; none: nothing pinned.
page_ref address_space::next_page(std::uint64_t& at, std::uint64_t end) noexcept {
  const scoped_lock hold(lock_);
  const auto found = index_.next(at, end);
  if (!found) return {};
  at = found->end();
  found->frame->refs().get();  // the index holds one while we hold lock_
  return page_ref::adopt(*found->frame);
}

// Empties parts of a locked large page, which stays for the others.
void address_space::zero_parts(page& p, unsigned first, unsigned end) noexcept {
  begin_change(p);
  std::memset(p.data() + std::size_t{first} * page_bytes, 0, (end - first) * page_bytes);
  end_change(p);
  remove_parts_dirty(p, first, end);
}

// Parts of a locked large page are not to be written.
void address_space::remove_parts_dirty(page& p, unsigned first, unsigned end) noexcept {
  page_parts parts(p);
  const scoped_lock hold(lock_);
  const std::int64_t dirty = parts.remove(part_set::dirty, first, end);
  count_dirty(-dirty, -std::int64_t{parts.remove(part_set::failed, first, end)});
  if (parts.count(part_set::failed) == 0) p.clear(page_error);
  notes_.written(p);
  if (dirty == 0 || parts.count(part_set::dirty) != 0) return;
  p.clear(page_dirty);
  index_.clear_tag(p.index.load(std::memory_order_relaxed), page_tag::dirty);  // relaxed: locked
}

// Forgets what a locked page holds of the bytes [from, end), the device having emptied them.
void address_space::drop_page(page& p, std::uint64_t from, std::uint64_t end) noexcept {
  if (!owns(p)) return;
  const std::uint64_t begin = p.offset_bytes();
  const bool whole = from <= begin && begin + valid_bytes(p) <= end;
  const auto [first, to] = part_of(p, from, end);
  // Others may be reading the buffers of a page that they have pinned, so such a page stays.
  if (page_buffers(p) != nullptr) {
    zero_in_place(p, first, whole ? page_bytes : to);
  } else if (whole) {
    remove_page(p);
  } else {
    zero_parts(p, static_cast<unsigned>(first >> page_shift),
               static_cast<unsigned>(to >> page_shift));
  }
}

// Sees to it that a small page which is there and holds this byte inside has buffers, so that a
// part of it can be dropped. Nothing is put into the index there meanwhile.
task<> address_space::give_edge_buffers(std::uint64_t offset) {
  while (!is_aligned(offset, std::uint64_t{page_bytes})) {
    const page_ref p = find(page_of(offset));
    if (!p) break;
    while (!try_lock_page(*p)) co_await wait_until_clear(*p, page_locked);
    FOREBAY_ASSERT(!p->is_large());
    const bool made = !owns(*p) || add_buffers(*p);
    unlock_page(*p);
    if (made) break;
    if (!try_make_room()) co_await cache_.frames_available();
  }
  co_return result<>{};
}

// Has the device empty whole blocks. Until it has succeeded the cache is left as it is, so a
// failure changes nothing; from then on nothing can fail, which is why no task is awaited any more.
task<> address_space::punch(std::uint64_t from, std::uint64_t end, bio_op op, std::uint8_t flags) {
  const std::uint64_t last = page_of(end - 1) + 1;
  punch_range range{page_of(from), last, {}};
  std::optional<unsigned> noted;
  for (;;) {
    {
      const scoped_lock hold(lock_);
      if (!being_discarded(range.first, last) && notes_.begin_discard(from, end, noted)) {
        punches_.push_back(range);
        break;
      }
    }
    co_await punch_done_.wait_unless([&]() noexcept {
      const scoped_lock hold(lock_);
      return !being_discarded(range.first, last) && notes_.may_begin_discard();
    });
  }
  const result<> r = co_await punch_alone(from, end, op, flags);
  {
    const scoped_lock hold(lock_);
    notes_.end_discard(noted);
    punches_.erase(range);
  }
  punch_done_.wake_all();
  co_return r;
}

task<> address_space::punch_alone(std::uint64_t from, std::uint64_t end, bio_op op,
                                  std::uint8_t flags) {
  const std::uint64_t last = page_of(end - 1) + 1;
  if (const result<> r = co_await give_edge_buffers(from); !r) co_return fail(r.error());
  // The last page of the device is whole though it may be short; it does not grow meanwhile.
  if (end != size_bytes()) {
    if (const result<> r = co_await give_edge_buffers(end); !r) co_return fail(r.error());
  }
  const result<bool> waited = co_await wait_for_writeback(page_of(from), last);
  if (!waited) co_return fail(waited.error());
  bio b(op, from, flags);
  b.length_bytes = end - from;
  const std::int32_t status = co_await submit_and_wait(device_, b);
  if (status != 0) co_return fail(-status);
  may_have_holes_.store(true, std::memory_order_relaxed);  // relaxed: a hint
  std::uint64_t at = page_of(from);
  while (const page_ref p = next_page(at, last)) {
    for (;;) {
      while (!try_lock_page(*p)) co_await wait_until_clear(*p, page_locked);
      buffer_head* const busy = locked_buffer(*p, 0, page_bytes);
      if (busy == nullptr) break;
      unlock_page(*p);
      co_await wait_until_unlocked(*busy);
    }
    drop_page(*p, from, end);
    unlock_page(*p);
  }
  cache_.progress().wake_all();
  co_return result<>{};
}

// Of a page that the caller holds: what of [from, end) it has is not dirty any more.
task<> address_space::make_partly_clean(page& p, std::uint64_t from, std::uint64_t end) {
  for (;;) {
    while (!try_lock_page(p)) co_await wait_until_clear(p, page_locked);
    if (!owns(p) || !(p.test(page_dirty | page_writeback))) break;
    const auto [first, to] = part_of(p, from, end);
    if (p.test(page_writeback)) {
      unlock_page(p);
      co_await wait_until_clear(p, page_writeback);
    } else if (buffer_head* const busy = locked_buffer(p, first, to); busy != nullptr) {
      unlock_page(p);
      co_await wait_until_unlocked(*busy);
    } else if (!p.is_large() && !add_buffers(p)) {
      unlock_page(p);
      if (!try_make_room()) co_await cache_.frames_available();
    } else if (p.is_large()) {
      remove_parts_dirty(p, static_cast<unsigned>(first >> page_shift),
                         static_cast<unsigned>(to >> page_shift));
      break;
    } else {
      clear_buffers_dirty(p, first, to);
      break;
    }
  }
  unlock_page(p);
  co_return result<>{};
}

task<> address_space::clean_aliases(std::uint64_t offset, std::uint64_t length) {
  std::uint64_t at = page_of(offset);
  const std::uint64_t end = page_of(offset + length - 1) + 1;
  while (const page_ref p = next_page(at, end)) {
    const result<> r = co_await make_partly_clean(*p, offset, offset + length);
    if (!r) co_return fail(r.error());
  }
  cache_.progress().wake_all();
  co_return result<>{};
}

task<page_ref> address_space::page_with_buffers(std::uint64_t index) {
  for (;;) {
    page_ref p = find(index);
    auto outcome = add_outcome::exists;
    if (!p) {
      page* const frame = cache_.try_allocate_frame();
      outcome = frame == nullptr ? add_outcome::no_memory : add_page(index, *frame);
      if (outcome == add_outcome::added) {
        p = page_ref::adopt(*frame);
        unlock_page(*p);
      } else if (frame != nullptr) {
        put_page(*frame);
      }
    }
    if (p) {
      while (!try_lock_page(*p)) co_await wait_until_clear(*p, page_locked);
      const bool here = owns(*p);
      const bool made = here && add_buffers(*p);
      unlock_page(*p);
      if (made) co_return p;
      p.reset();
      if (!here) continue;
      outcome = add_outcome::no_memory;
    }
    if (outcome == add_outcome::discarding) co_await discard_over(index, index + 1);
    if (outcome == add_outcome::no_memory && !try_make_room()) {
      co_await cache_.frames_available();
    }
  }
}

task<> address_space::write_zero_pages(std::uint64_t offset, std::uint64_t length) {
  while (length != 0) {
    const std::size_t n = std::min<std::uint64_t>(length, page_bytes - offset % page_bytes);
    const result<> r = co_await write(offset, {zeros.data(), n});
    if (!r) co_return fail(r.error());
    offset += n;
    length -= n;
  }
  co_return result<>{};
}

task<> address_space::write_zeroes(std::uint64_t offset, std::uint64_t length, zero_options opts) {
  const std::uint64_t end = offset + length;
  const auto [first, last, tail] = whole_pages_of(offset, end, size_bytes());
  if (first + least_pages_for_device <= last) {
    const std::uint8_t flags = opts.keep_allocated ? bio_no_unmap : 0;
    const result<> r = co_await punch(first << page_shift, tail, bio_op::write_zeroes, flags);
    if (r) {
      const std::uint64_t head_end = first << page_shift;
      if (head_end != offset) {
        const result<> head = co_await write_zero_pages(offset, head_end - offset);
        if (!head) co_return fail(head.error());
      }
      if (tail == end) co_return result<>{};
      co_return co_await write_zero_pages(tail, end - tail);
    }
    if (!is_unsupported(r.error()) || opts.only_fast) co_return fail(r.error());
  }
  co_return co_await write_zero_pages(offset, length);
}

task<> address_space::discard(std::uint64_t offset, std::uint64_t length) {
  const auto [first, last, end] = whole_pages_of(offset, offset + length, size_bytes());
  if (first >= last) co_return result<>{};
  const result<> r = co_await punch(first << page_shift, end, bio_op::discard, 0);
  // Advice that the device cannot take is no failure.
  if (!r && !is_unsupported(r.error())) co_return fail(r.error());
  co_return result<>{};
}

}  // namespace forebay
