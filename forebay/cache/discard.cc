// Trim and write-zeroes of an address space.

#include <algorithm>
#include <array>
#include <cstring>

#include "forebay/base/cache_line.h"
#include "forebay/cache/address_space.h"

namespace forebay {
namespace {

// Below this many whole pages zeros are cheaper to write than to ask the device for.
constexpr std::uint64_t least_pages_for_device = 16;

constexpr std::array<std::byte, page_bytes> zeros{};

bool is_unsupported(std::error_code e) noexcept {
  return e == std::errc::not_supported || e == std::errc::operation_not_supported;
}

}  // namespace

// Empties a locked page whose buffers keep it in the cache.
void address_space::zero_in_place(page& p) noexcept {
  begin_change(p);
  std::memset(p.data(), 0, page_bytes);
  for_each_buffer(p, 0, page_bytes, [](buffer_head& b) {
    b.clear(bh_dirty | bh_write_error);
    b.set(bh_uptodate);
  });
  p.set(page_uptodate | page_zero);
  end_change(p);
  const scoped_lock hold(lock_);
  index_.clear_tag(p.index.load(std::memory_order_relaxed), page_tag::dirty);  // relaxed: locked
  clear_dirty(p);
}

// Pins the first page of [at, end) and moves `at` past it; none: nothing pinned.
page_ref address_space::next_page(std::uint64_t& at, std::uint64_t end) noexcept {
  const scoped_lock hold(lock_);
  const auto found = index_.next(at, end);
  if (!found) return {};
  at = found->end();
  found->frame->refs.get();  // the index holds one while we hold lock_
  return page_ref::adopt(*found->frame);
}

// Empties parts of a locked large page, which stays for the others.
void address_space::zero_parts(page& p, unsigned first, unsigned end) noexcept {
  begin_change(p);
  std::memset(p.data() + std::size_t{first} * page_bytes, 0, (end - first) * page_bytes);
  end_change(p);
  page_parts parts(p);
  const scoped_lock hold(lock_);
  const std::int64_t dirty = parts.remove(part_set::dirty, first, end);
  count_dirty(-dirty, -std::int64_t{parts.remove(part_set::failed, first, end)});
  if (parts.count(part_set::failed) == 0) p.clear(page_error);
  if (dirty == 0 || parts.count(part_set::dirty) != 0) return;
  p.clear(page_dirty);
  index_.clear_tag(p.index.load(std::memory_order_relaxed), page_tag::dirty);  // relaxed: locked
}

// Forgets what a locked page holds of the pages [first, end), the device having emptied them.
void address_space::drop_page(page& p, std::uint64_t first, std::uint64_t end) noexcept {
  if (!owns(p)) return;
  const std::uint64_t begin = page_of(p.offset_bytes());
  const std::uint64_t behind = page_of(p.end_bytes());
  // Others may be reading the buffers of a page that they have pinned, so such a page stays.
  if (page_buffers(p) != nullptr) {
    zero_in_place(p);
  } else if (first <= begin && behind <= end) {
    remove_page(p);
  } else {
    zero_parts(p, static_cast<unsigned>(std::max(first, begin) - begin),
               static_cast<unsigned>(std::min(end, behind) - begin));
  }
}

// Has the device empty whole pages. Until it has succeeded the cache is left as it is, so a failure
// changes nothing; from then on nothing can fail, which is why no task is awaited any more.
task<> address_space::punch_pages(std::uint64_t first, std::uint64_t end, bio_op op,
                                  std::uint8_t flags) {
  punch range{first, end, {}};
  for (;;) {
    {
      const scoped_lock hold(lock_);
      if (!being_discarded(first, end)) {
        punches_.push_back(range);
        break;
      }
    }
    co_await discard_over(first, end);
  }
  result<> r;
  if (const result<bool> waited = co_await wait_for_writeback(first, end); !waited) {
    r = fail(waited.error());
  }
  if (r) {
    bio b(op, first << page_shift, flags);
    b.length_bytes = std::min(end << page_shift, size_bytes_) - b.offset_bytes;
    const std::int32_t status = co_await submit_and_wait(device_, b);
    if (status != 0) r = fail(-status);
  }
  if (r) {
    may_have_holes_.store(true, std::memory_order_relaxed);  // relaxed: a hint
    std::uint64_t at = first;
    while (const page_ref p = next_page(at, end)) {
      for (;;) {
        while (!try_lock_page(*p)) co_await wait_until_clear(*p, page_locked);
        buffer_head* const busy = locked_buffer(*p, 0, page_bytes);
        if (busy == nullptr) break;
        unlock_page(*p);
        co_await wait_until_unlocked(*busy);
      }
      drop_page(*p, first, end);
      unlock_page(*p);
    }
    cache_.progress().wake_all();
  }
  {
    const scoped_lock hold(lock_);
    punches_.erase(range);
  }
  punch_done_.wake_all();
  co_return r;
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
  const std::uint64_t first = (offset + page_bytes - 1) >> page_shift;
  // The last page of the device is whole though it may be short.
  const std::uint64_t last = end == size_bytes_ ? page_of(end - 1) + 1 : page_of(end);
  if (first + least_pages_for_device <= last) {
    const std::uint8_t flags = opts.keep_allocated ? bio_no_unmap : 0;
    const result<> r = co_await punch_pages(first, last, bio_op::write_zeroes, flags);
    if (r) {
      const std::uint64_t head_end = first << page_shift;
      const std::uint64_t tail = std::min(last << page_shift, end);
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
  const std::uint64_t end = offset + length;
  const std::uint64_t first = (offset + page_bytes - 1) >> page_shift;
  const std::uint64_t last = end == size_bytes_ ? page_of(end - 1) + 1 : page_of(end);
  if (first >= last) co_return result<>{};
  const result<> r = co_await punch_pages(first, last, bio_op::discard, 0);
  // Advice that the device cannot take is no failure.
  if (!r && !is_unsupported(r.error())) co_return fail(r.error());
  co_return result<>{};
}

}  // namespace forebay
