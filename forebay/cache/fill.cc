// The read side of an address space: hits, misses, and what is read for a part of a page.

#include <algorithm>
#include <bit>
#include <cstring>

#include "forebay/base/cache_line.h"
#include "forebay/cache/address_space.h"

namespace forebay {

// Takes frames for a run of missing pages, contiguous ones where memory is free in larger blocks,
// so that the run's bio has few segments; gives back what was not used.
class address_space::frame_supply {
 public:
  explicit frame_supply(page_cache& cache) noexcept : cache_(cache) {}
  ~frame_supply() {
    while (left_ != 0) put_page(*take());
  }
  frame_supply(const frame_supply&) = delete;
  frame_supply& operator=(const frame_supply&) = delete;

  // A frame with one reference, for a run of which `wanted` pages are still to come; null when
  // there is no memory.
  page* get(std::size_t wanted) noexcept {
    if (left_ != 0) return take();
    for (unsigned order = std::min(order_for(wanted), order_limit_); order != 0; --order) {
      next_ = cache_.try_allocate_run(order);
      if (next_ == nullptr) {
        order_limit_ = order - 1;  // not tried again for this run
        continue;
      }
      left_ = std::size_t{1} << order;
      return take();
    }
    return cache_.try_allocate_frame();
  }

  // Takes back the frame that get() gave last.
  void unget(page& p) noexcept { put_page(p); }

 private:
  static constexpr unsigned max_run_order = 8;  // 1 MiB

  static unsigned order_for(std::size_t wanted) noexcept {
    return std::min(static_cast<unsigned>(std::bit_width(wanted)) - 1, max_run_order);
  }
  page* take() noexcept {
    --left_;
    return next_++;
  }

  page_cache& cache_;
  page* next_ = nullptr;
  std::size_t left_ = 0;
  unsigned order_limit_ = max_run_order;
};

namespace {

// The bytes [from, to) of a page that a range of the device touches.
struct page_part {
  std::size_t from;
  std::size_t to;
};

page_part part_of(const page& p, std::uint64_t offset, std::uint64_t end) noexcept {
  const std::uint64_t start = p.offset_bytes();
  return {static_cast<std::size_t>(std::max(offset, start) - start),
          static_cast<std::size_t>(std::min<std::uint64_t>(end - start, p.bytes()))};
}

}  // namespace

// Counts a hit. The first one of a page that was read ahead is what a miss is for others.
void address_space::note_use(page& p) noexcept {
  if (!p.test(page_unused)) return p.touch();
  if ((p.clear(page_unused) & page_unused) != 0) cache_.count().readahead_used.add();
}

std::optional<std::size_t> address_space::try_pin(std::uint64_t offset, std::size_t length,
                                                  std::span<page_ref> out) noexcept {
  if (length == 0) return 0;
  const std::uint64_t end = offset + length;
  std::size_t n = 0;
  for (std::uint64_t at = offset; at < end; ++n) {
    page_ref p = find(page_of(at));
    bool good = false;
    if (p) {
      const auto [from, to] = part_of(*p, offset, end);
      // A marked page is left to pin(), which can do what it asks for.
      good = is_uptodate(*p, from, to) && !p->test(page_readahead);
    }
    if (!good) {
      for (page_ref& pinned : out.first(n)) pinned.reset();
      return std::nullopt;
    }
    note_use(*p);
    at = p->end_bytes();
    out[n] = std::move(p);
  }
  cache_.count().hits.add(static_cast<std::int64_t>(page_of(end - 1) - page_of(offset) + 1));
  return n;
}

// Fills a stretch of a locked page from a hole of the device without reading; true if all of it is
// one. `data_until` remembers from call to call how far the device has said that there is data
// (which is safe to believe for longer than that there is none).
bool address_space::fill_from_hole(std::uint64_t offset, std::byte* data, std::size_t bytes,
                                   std::uint64_t& data_until) noexcept {
  // relaxed: a hint; a device that has no holes yet is read.
  if (!may_have_holes_.load(std::memory_order_relaxed) || offset < data_until) return false;
  const auto e = device_.extent_at(offset);
  if (!e) return false;
  if (!e->hole) data_until = e->end_bytes;
  if (!e->hole || e->end_bytes < offset + bytes) return false;
  std::memset(data, 0, bytes);
  return true;
}

// First half of a miss, or read-ahead if that is the batch's urgency: pins what is there, puts new
// locked pages where there is nothing and starts to fill them.
task<std::size_t> address_space::add_missing(std::uint64_t offset, std::size_t length,
                                             std::span<page_ref> out, bio_batch& batch,
                                             encounter& met) {
  const std::uint64_t end = offset + length;
  const std::uint64_t first = page_of(offset);
  const std::size_t wanted = std::min<std::uint64_t>(out.size(), page_of(end - 1) - first + 1);
  frame_supply frames(cache_);
  const bool ahead = batch.urgency() == bio_class::read_ahead;
  std::uint64_t data_until = 0;
  std::int64_t added = 0;
  std::size_t n = 0;
  while (n < wanted) {
    const std::uint64_t index = first + n;
    if (page_ref p = find(index); p) {
      if (!ahead) note_use(*p);
      if (!ahead && p->test(page_readahead)) {
        met.marked = (p->clear(page_readahead) & page_readahead) != 0 || met.marked;
      }
      out[n++] = std::move(p);
      continue;
    }
    page* frame = frames.get(wanted - n);
    if (frame == nullptr) break;
    const add_outcome outcome = add_page(index, *frame);
    if (outcome != add_outcome::added) frames.unget(*frame);
    if (outcome == add_outcome::exists) continue;
    if (outcome != add_outcome::added) break;
    ++added;
    page& p = *frame;
    if (ahead) p.set(page_unused);
    out[n++] = page_ref::adopt(p);
    page_part part = part_of(p, offset, end);
    const std::size_t valid = valid_bytes(index);
    part.from = round_down(part.from, block_bytes_);
    part.to = std::min(round_up(part.to, block_bytes_), valid);
    const bool whole = part.from == 0 && part.to == valid;
    // Without memory for buffer heads the whole page is read, which needs none.
    if (!whole && !create_empty_buffers(p, cache_.buffers(), device_, block_bytes_)) {
      part = {0, valid};
    }
    const std::uint64_t at = (index << page_shift) + part.from;
    if (fill_from_hole(at, p.data() + part.from, part.to - part.from, data_until)) {
      set_uptodate(p, part.from, part.to, valid);
      if (part.from == 0 && part.to == valid) p.set(page_zero);
      end_change(p);
      unlock_page(p);
      continue;
    }
    if (page_buffers(p) != nullptr) {
      for_each_buffer(p, part.from, part.to, [](buffer_head& b) {
        b.end_io = &end_buffer_async_read;
        b.set(bh_async_read | bh_lock | bh_req);
      });
    }
    while (!batch.try_append(at, p.data() + part.from, part.to - part.from)) co_await batch.room();
  }
  met.missing = added != 0;
  if (ahead) {
    cache_.count().readahead_pages.add(added);
    co_return n;
  }
  cache_.count().misses.add(added);
  cache_.count().hits.add(static_cast<std::int64_t>(n) - added);
  co_return n;
}

void address_space::end_read(address_space& self, const bio& b) noexcept {
  std::int64_t pages = 0;
  self.for_each_page(b, [&](page& p, std::size_t from, std::size_t to) {
    if (b.status == 0) ++pages;
    if (page_buffers(p) != nullptr) return end_buffers(p, from, to, b.status);
    if (b.status == 0) {
      set_uptodate(p, from, to, self.valid_bytes(p));
      self.end_change(p);
    }
    unlock_page(p);
  });
  self.cache_.count().pages_read.add(pages);
}

void address_space::end_buffers(page& p, std::size_t from, std::size_t to,
                                std::int32_t status) noexcept {
  std::array<buffer_head*, page_bytes / 512> ending{};
  std::size_t count = 0;
  for_each_buffer(p, from, to, [&](buffer_head& b) { ending[count++] = &b; });
  for (std::size_t i = 0; i < count; ++i) ending[i]->end_io(*ending[i], status);
}

void end_buffer_async_read(buffer_head& b, std::int32_t status) noexcept {
  page& p = *b.frame;
  if (status == 0) set_buffer_uptodate(b, address_space::space_of(b).valid_bytes(p));
  unlock_buffer(b, bh_async_read);
  bool busy = false;
  for_each_buffer(p, 0, page_bytes,
                  [&](const buffer_head& bh) { busy = busy || bh.test(bh_async_read); });
  if (!busy) unlock_page(p);
}

void end_buffer_read_sync(buffer_head& b, std::int32_t status) noexcept {
  if (status == 0) set_buffer_uptodate(b, address_space::space_of(b).valid_bytes(*b.frame));
  unlock_buffer(b);
}

task<std::size_t> address_space::pin(std::uint64_t offset, std::size_t length,
                                     std::span<page_ref> out) {
  if (length == 0) co_return std::size_t{0};
  const std::uint64_t end = offset + length;
  const std::uint64_t first = page_of(offset);
  for (;;) {
    bio_batch batch(*this, cache_.bios(), device_, bio_op::read, 0, bio_class::demand, &end_read);
    encounter met;
    const result<std::size_t> pinned = co_await add_missing(offset, length, out, batch, met);
    if (readahead_.enabled() && pinned && *pinned != 0 && (met.missing || met.marked)) {
      batch.submit();
      const std::uint64_t pinned_end = std::min(end, out[*pinned - 1]->end_bytes());
      const auto pages = static_cast<std::uint32_t>(page_of(pinned_end - 1) - first + 1);
      const readahead_window window = readahead_.on_access(first, pages, met.missing);
      if (window.count != 0 && !start_read_ahead(window)) co_await read_ahead(window);
    }
    co_await batch.drain();
    std::size_t n = pinned ? *pinned : 0;
    std::error_code error = pinned ? std::error_code{} : pinned.error();
    if (batch.error() != 0) error = {-batch.error(), std::generic_category()};
    // What others are filling, or had filled in other blocks only.
    for (std::size_t i = 0; i < n && !error; ++i) {
      page& p = *out[i];
      const auto [from, to] = part_of(p, offset, end);
      if (!is_uptodate(p, from, to)) {
        // Found, but not of use as it was.
        cache_.count().hits.add(-1);
        cache_.count().misses.add(1);
        const result<bool> filled = co_await fill_page(p, from, to);
        if (!filled) {
          error = filled.error();
        } else if (!*filled) {
          for (std::size_t j = i; j < n; ++j) out[j].reset();
          n = i;
        }
      }
    }
    if (error) {
      for (std::size_t i = 0; i < n; ++i) out[i].reset();
      co_return fail(error);
    }
    if (n != 0) co_return n;
    // Nothing to be had: the first page is being discarded, or there is no memory.
    co_await discard_over(first);
    if (!cache_.try_make_room()) co_await cache_.frames_available();
  }
}

// Fills a part of a page that the caller holds; false if the page is no longer in the index.
task<bool> address_space::fill_page(page& p, std::size_t from, std::size_t to) {
  for (;;) {
    while (!try_lock_page(p)) co_await wait_until_clear(p, page_locked);
    // Somebody is filling, or reading, a block by itself.
    buffer_head* const busy = locked_buffer(p, from, to, bh_uptodate);
    if (busy == nullptr) break;
    unlock_page(p);
    co_await wait_until_unlocked(*busy);
  }
  result<> r;
  const bool here = owns(p);
  if (here && !is_uptodate(p, from, to)) {
    r = co_await fill_locked(p, from, to);
    end_change(p);
  }
  unlock_page(p);
  if (!r) co_return fail(r.error());
  co_return here;
}

// Reads those blocks of [from, to) that are not uptodate into a locked page.
task<> address_space::fill_locked(page& p, std::size_t from, std::size_t to) {
  const std::uint64_t index = p.index.load(std::memory_order_relaxed);  // relaxed: locked by us
  const std::size_t valid = valid_bytes(index);
  const std::size_t block = block_bytes_of(p);
  from = round_down(from, block);
  to = std::min(round_up(to, block), valid);
  if (page_buffers(p) == nullptr && (from != 0 || to != valid) &&
      !create_empty_buffers(p, cache_.buffers(), device_, block_bytes_)) {
    from = 0;  // no memory for buffer heads: the whole page needs none
    to = valid;
  }
  std::array<page_part, page_bytes / 512> parts{};
  std::size_t count = 0;
  if (page_buffers(p) == nullptr) {
    parts[count++] = {from, to};
  } else {
    for_each_run(
        p, from, to, [](const buffer_head& b) { return !b.test(bh_uptodate); },
        [&](std::size_t run_from, std::size_t run_to) {
          parts[count++] = {run_from, std::min(run_to, valid)};
          for_each_buffer(p, run_from, run_to, [](buffer_head& b) { b.set(bh_req); });
        });
  }
  std::uint64_t data_until = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const auto [part_from, part_to] = parts[i];
    const std::uint64_t at = (index << page_shift) + part_from;
    std::byte* data = p.data() + part_from;
    if (!fill_from_hole(at, data, part_to - part_from, data_until)) {
      bio b(bio_op::read, at);
      b.add(data, part_to - part_from);
      const std::int32_t status = co_await submit_and_wait(device_, b);
      if (status != 0) co_return fail(-status);
      cache_.count().pages_read.add();
    }
    set_uptodate(p, part_from, part_to, valid);
  }
  co_return result<>{};
}

std::size_t address_space::try_read(std::uint64_t offset, std::span<std::byte> out) noexcept {
  std::size_t done = 0;
  while (done < out.size()) {
    const std::uint64_t at = offset + done;
    const std::size_t from = at % page_bytes;
    const std::size_t bytes = std::min(out.size() - done, page_bytes - from);
    const page_view view = try_view(page_of(at));
    if (!view) break;
    view.copy(from, out.subspan(done, bytes));
    if (!view.still_valid()) break;
    done += bytes;
  }
  return done;
}

// A page that has become valid block by block is read without a pin the next time.
void address_space::make_readable(page& p) noexcept {
  if (!p.test(page_uptodate) || index_.look(p.offset_bytes() >> page_shift)) return;
  if (!try_lock_page(p)) return;  // who has it changes it, or is as quick another time
  if (owns(p)) end_change(p);
  unlock_page(p);
}

task<> address_space::read(std::uint64_t offset, std::span<std::byte> out) {
  std::array<page_ref, 32> pins;
  for (;;) {
    const std::size_t done = try_read(offset, out);
    offset += done;
    out = out.subspan(done);
    if (out.empty()) break;
    const std::size_t first_part = page_bytes - offset % page_bytes;
    const std::size_t want = std::min(out.size(), first_part + (pins.size() - 1) * page_bytes);
    const std::size_t pages = page_of(offset + want - 1) - page_of(offset) + 1;
    std::optional<std::size_t> n = try_pin(offset, want, pins);
    if (!n) {
      const result<std::size_t> pinned = co_await pin(offset, want, {pins.data(), pages});
      if (!pinned) co_return fail(pinned.error());
      n = *pinned;
    }
    for (page_ref& p : std::span(pins).first(*n)) {
      const std::size_t from = offset - p->offset_bytes();
      const std::size_t bytes = std::min(out.size(), p->bytes() - from);
      std::memcpy(out.data(), p->data() + from, bytes);
      make_readable(*p);
      p.reset();
      out = out.subspan(bytes);
      offset += bytes;
    }
  }
  co_return result<>{};
}

task<> address_space::prefetch(std::uint64_t offset, std::uint64_t length) {
  std::array<page_ref, 256> pins;
  const std::uint64_t end = offset + length;
  while (offset < end) {
    const std::uint64_t want =
        std::min<std::uint64_t>(end - offset, pins.size() * page_bytes - offset % page_bytes);
    const result<std::size_t> pinned = co_await pin(offset, want, pins);
    if (!pinned) co_return fail(pinned.error());
    offset = pins[*pinned - 1]->end_bytes();
    for (page_ref& p : pins) p.reset();
  }
  co_return result<>{};
}

}  // namespace forebay
