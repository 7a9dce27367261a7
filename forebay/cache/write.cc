// The write side of an address space: from the caller's bytes to dirty pages.

#include <algorithm>
#include <array>
#include <cstring>

#include "forebay/base/cache_line.h"
#include "forebay/cache/address_space.h"

namespace forebay {

namespace {

// How many 4 KiB a stretch of a page touches.
std::int64_t pages_of(std::size_t from, std::size_t bytes) noexcept {
  return static_cast<std::int64_t>(((from + bytes - 1) >> page_shift) - (from >> page_shift) + 1);
}

}  // namespace

// Whether this device has left so many pages unwritten that no more can be kept for it: a part of
// what may be dirty, or of the cache's as much as that with the others' together.
bool address_space::over_error_limit() const noexcept {
  const std::uint32_t own = share_.unwritten().failed();
  const std::uint32_t all = cache_.dirty_limit_pages();
  return own != 0 && (own >= std::min(share_.error_limit(), error_limit_of(all)) ||
                      cache_.unwritten().failed() >= all);
}

// How long who is about to dirty a page should wait first, for the sake of the device's pace.
std::uint64_t address_space::pause_ns() const noexcept {
  // relaxed: a hint. Who does the flusher's work himself has no pace to keep.
  if (!dirty_levels().over_free_run() || !flusher_running_.load(std::memory_order_relaxed))
    return 0;
  return pacer_.pause_ns(monotonic_clock::now_ns());
}

// Whether more may be dirtied now: done if so. `paced`: the caller has paused for the device's
// pace.
address_space::step address_space::may_dirty_more(bool paced) const noexcept {
  if (over_error_limit()) return step::failing;
  if (over_dirty_limit()) return step::over_limit;
  if (!paced && pause_ns() != 0) return step::paced;
  return step::done;
}

// One attempt to write the front of `data`, as much as lies in one page, without waiting. `p` keeps
// the page that a wait is for; on anything but done nothing has been written.
address_space::attempt address_space::write_in_page(std::uint64_t offset,
                                                    std::span<const std::byte> data, page_ref& p,
                                                    bool paced) noexcept {
  p = find(page_of(offset));
  if (!p) return write_in_new_page(offset, data, p, paced);
  const std::size_t from = offset - p->offset_bytes();
  const std::size_t bytes = std::min(data.size(), p->bytes() - from);
  if (!is_dirty(*p, from, from + bytes)) {
    if (const step s = may_dirty_more(paced); s != step::done) return {s, bytes};
  }
  if (!try_lock_page(*p)) return {step::page_locked, bytes};
  if (!owns(*p)) {
    unlock_page(*p);
    p.reset();
    return {step::page_locked, bytes};
  }
  if (p->test(page_writeback)) {
    unlock_page(*p);
    return {step::page_writeback, bytes};
  }
  p->touch();
  const std::int64_t pages = pages_of(from, bytes);
  cache_.count().hits.add(pages);
  sample(page_of(offset), pages);
  const step how = write_locked(*p, from, data.first(bytes));
  unlock_page(*p);
  return {how, bytes};
}

// The same where no page was found: makes one, a large one if the data covers that.
address_space::attempt address_space::write_in_new_page(std::uint64_t offset,
                                                        std::span<const std::byte> data,
                                                        page_ref& p, bool paced) noexcept {
  const std::uint64_t index = page_of(offset);
  const std::size_t from = offset % page_bytes;
  std::size_t bytes = std::min(data.size(), page_bytes - from);
  if (const step s = may_dirty_more(paced); s != step::done) return {s, bytes};
  page* fresh = nullptr;
  for (const unsigned order : large_page_orders) {
    const std::size_t whole = page_bytes << order;
    if (order > max_page_order_ || data.size() < whole || !is_aligned(offset, std::uint64_t{whole}))
      continue;
    if (!may_dirty(1u << order)) continue;
    fresh = add_large(index, order).p;
    if (fresh == nullptr) continue;
    bytes = whole;
    break;
  }
  if (fresh == nullptr) {
    fresh = cache_.try_allocate_frame();
    if (fresh == nullptr) return {step::no_memory, bytes};
    const add_outcome outcome = add_page(index, *fresh);
    if (outcome != add_outcome::added) {
      put_page(*fresh);
      switch (outcome) {
        case add_outcome::discarding:
          return {step::discarding, bytes};
        case add_outcome::no_memory:
          return {step::no_memory, bytes};
        default:
          return {step::page_locked, bytes};  // somebody was quicker: his page will be found
      }
    }
  }
  p = page_ref::adopt(*fresh);
  cache_.count().misses.add(fresh->frames());
  sample(index, fresh->frames());
  const step how = write_locked(*fresh, from, data.first(bytes));
  unlock_page(*fresh);
  return {how, bytes};
}

// Whether bytes [from, to) of a page are all dirty: then writing them dirties nothing more. A hint
// where the page is large and not locked.
bool address_space::is_dirty(page& p, std::size_t from, std::size_t to) noexcept {
  if (!p.is_large() || !p.test(page_dirty)) return p.test(page_dirty);
  const auto first = static_cast<unsigned>(from >> page_shift);
  const auto end = static_cast<unsigned>((to - 1) >> page_shift) + 1;
  return page_parts(p).count(part_set::dirty, first, end) == end - first;
}

address_space::step address_space::write_locked(page& p, std::size_t from,
                                                std::span<const std::byte> data) noexcept {
  const std::size_t to = from + data.size();
  const std::size_t valid = valid_bytes(p);
  if (locked_buffer(p, from, to) != nullptr) return step::buffer_locked;
  const bool whole = from == 0 && to == valid;
  if (wants_buffers(whole) && !add_buffers(p)) return step::no_memory;
  if (!p.test(page_uptodate) && !whole) {
    FOREBAY_DCHECK(!p.is_large());
    if (!add_buffers(p)) return step::no_memory;
    // Blocks that the write covers only in part must be valid first.
    const std::size_t block = block_bytes_of(p);
    if (!is_aligned(from, block) && !is_uptodate(p, from, from + 1)) return step::needs_read;
    if (!is_aligned(to, block) && to != valid && !is_uptodate(p, to - 1, to)) {
      return step::needs_read;
    }
  }
  begin_change(p);
  notes_.changing(p, from, to);
  std::memcpy(p.data() + from, data.data(), data.size());
  p.clear(page_zero);
  if (page_buffers(p) != nullptr) {
    for_each_buffer(p, from, to, [](buffer_head& b) { b.set(bh_uptodate | bh_dirty); });
  }
  if (!p.test(page_uptodate)) {
    const std::size_t block = block_bytes_of(p);
    set_uptodate(p, round_down(from, block), std::min(round_up(to, block), valid), valid);
  }
  end_change(p);
  mark_dirty(p, from, to);
  notes_.dirtied(p, from, to);
  return step::done;
}

std::size_t address_space::try_write(std::uint64_t offset,
                                     std::span<const std::byte> data) noexcept {
  std::size_t written = 0;
  page_ref p;
  while (written < data.size()) {
    const attempt a = write_in_page(offset + written, data.subspan(written), p);
    if (a.how != step::done) break;
    written += a.bytes;
  }
  return written;
}

task<> address_space::write(std::uint64_t offset, std::span<const std::byte> data,
                            std::size_t* written) {
  bool paced = false;
  while (!data.empty()) {
    page_ref p;
    const attempt a = write_in_page(offset, data, p, paced);
    if (a.how != step::done) {
      paced = paced || a.how == step::paced;
      const result<> waited = co_await wait_for(a.how, offset, a.bytes, p);
      if (!waited) co_return fail(waited.error());
      continue;
    }
    offset += a.bytes;
    data = data.subspan(a.bytes);
    if (written != nullptr) *written += a.bytes;
    paced = false;
  }
  co_return result<>{};
}

// For who has found no memory, and holds no page lock and no pin: makes room, or waits until there
// may be some. Where nothing can be evicted all is in use or dirty; so many pins that the dirty
// limits are never reached, and nobody writes, must not stop who needs a page.
task<> address_space::wait_for_memory() {
  if (try_make_room()) co_return result<>{};
  // relaxed: a hint. What the flusher writes anyway is not waited for as a whole: a page is enough.
  if (flusher_running_.load(std::memory_order_relaxed) && over_background_limit()) {
    wake_flusher();
    co_await cache_.frames_available();
    co_return result<>{};
  }
  const result<sweep> wrote = co_await write_back(0, size_bytes(), 0);
  if (!wrote || wrote->error != 0 || wrote->pages == 0) co_await cache_.frames_available();
  co_return result<>{};
}

// Waits until the attempt that ended in `s` is worth making again: to write the `bytes` from
// `offset` on, which lie in one page. Holds at most the pin on the page it waits for.
task<> address_space::wait_for(step s, std::uint64_t offset, std::size_t bytes, page_ref& p) {
  const std::size_t from = offset % page_bytes;  // in a small page
  switch (s) {
    case step::done:
      break;
    case step::page_locked:
      if (p) co_await wait_until_clear(*p, page_locked);
      break;
    case step::page_writeback:
      co_await wait_until_clear(*p, page_writeback);
      break;
    case step::buffer_locked:
      if (buffer_head* const b = locked_buffer(*p, from, from + bytes); b != nullptr) {
        co_await wait_until_unlocked(*b);
      }
      break;
    case step::no_memory:
      p.reset();
      co_return co_await wait_for_memory();
    case step::discarding:
      co_await discard_over(page_of(offset), page_of(offset) + 1);
      break;
    case step::needs_read: {
      // The two edges; the blocks between them are about to be overwritten. A page that has left
      // the index meanwhile is looked for again.
      const std::size_t to = from + bytes;
      result<bool> r = true;
      const std::size_t block = block_bytes_of(*p);
      if (!is_aligned(from, block)) r = co_await fill_page(*p, from, from + 1);
      if (r && !is_aligned(to, block)) r = co_await fill_page(*p, to - 1, to);
      if (!r) co_return fail(r.error());
      break;
    }
    case step::failing: {
      p.reset();
      // acquire: pairs with run_flusher, which tries the failed pages again by itself.
      if (!flusher_running_.load(std::memory_order_acquire)) {
        co_await write_back(0, size_bytes(), 0);
      }
      if (over_error_limit()) co_return fail(write_error());
      break;
    }
    case step::paced:
      p.reset();
      cache_.count().paced_writes.add();
      co_await sleep_for(pause_ns());
      break;
    case step::over_limit: {
      p.reset();
      cache_.count().throttled_writes.add();
      // acquire: pairs with run_flusher. Without one the writer does the flusher's work; what fails
      // then is counted.
      if (!flusher_running_.load(std::memory_order_acquire)) {
        co_await write_back(0, size_bytes(), 0);
      }
      wake_flusher();
      co_await cache_.progress().wait_unless([this]() noexcept { return !over_dirty_limit(); },
                                             100'000'000);
      break;
    }
  }
  co_return result<>{};
}

}  // namespace forebay
