// The read side of an address space: hits, misses, and what is read for a part of a page.
//
// A miss that wholly covers an aligned stretch of 64 KiB or 2 MiB, of which nothing is there and
// which is all data or all hole, makes it a large page. Such a page is read as a whole; if a part
// of it cannot be read, it goes, and the miss begins again with small pages.

#include <algorithm>
#include <bit>
#include <cstring>

#include "forebay/base/cache_line.h"
#include "forebay/base/racing_copy.h"
#include "forebay/cache/address_space.h"
#include "forebay/cache/pages_of_bio.h"

namespace forebay {

// Takes frames for a run of missing pages, contiguous ones where memory is free in larger blocks,
// so that the run's bio has few segments; gives back what was not used.
class address_space::frame_supply {
 public:
  explicit frame_supply(page_cache& cache) noexcept : cache_(cache) {}
  ~frame_supply() { give_back(); }
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

  void give_back() noexcept {
    while (left_ != 0) put_page(*take());
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

struct address_space::miss {
  miss(page_cache& cache, unsigned order_max) noexcept
      : frames(cache), max_order(order_max), small_order(order_max) {}

  frame_supply frames;
  unsigned max_order;    // of the pages to be made; lower, where the last one was not to be had
  unsigned small_order;  // small pages are taken for such a stretch at a time
  encounter met{};
  bool made_large = false;  // a large page that the device is to fill
  std::uint64_t data_until = 0;
};

// What a range of the device touches of a page.
address_space::page_part address_space::part_of(const page& p, std::uint64_t offset,
                                                std::uint64_t end) noexcept {
  const std::uint64_t start = p.offset_bytes();
  return {static_cast<std::size_t>(std::max(offset, start) - start),
          static_cast<std::size_t>(std::min<std::uint64_t>(end - start, p.bytes()))};
}

// Counts a hit. The first one of a page that was read ahead is what a miss is for others.
void address_space::note_use(page& p) noexcept {
  if (!p.test(page_unused)) return p.touch();
  if ((p.clear(page_unused) & page_unused) != 0) cache_.count().readahead_used.add(p.frames());
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
      if (!p) expect_miss(page_of(at));
      for (page_ref& pinned : out.first(n)) pinned.reset();
      return std::nullopt;
    }
    note_use(*p);
    at = p->end_bytes();
    out[n] = std::move(p);
  }
  const auto pages = static_cast<std::int64_t>(page_of(end - 1) - page_of(offset) + 1);
  cache_.count().hits.add(pages);
  sample(page_of(offset), pages);
  return n;
}

// What the device has at a place. `data_until` remembers from call to call how far it has said that
// there is data (which is safe to believe for longer than that there is none).
address_space::backing address_space::backing_of(std::uint64_t offset, std::size_t bytes,
                                                 std::uint64_t& data_until) noexcept {
  // relaxed: a hint; a device that has no holes yet is read.
  if (!may_have_holes_.load(std::memory_order_relaxed)) return backing::data;
  if (offset >= data_until) {
    const auto e = device_.extent_at(offset);
    if (!e) return backing::data;
    if (e->hole) return e->end_bytes < offset + bytes ? backing::both : backing::hole;
    data_until = e->end_bytes;
  }
  return data_until < offset + bytes ? backing::both : backing::data;
}

// Fills a stretch of a locked page from a hole of the device without reading; true if all of it is
// one.
bool address_space::fill_from_hole(std::uint64_t offset, std::byte* data, std::size_t bytes,
                                   std::uint64_t& data_until) noexcept {
  if (backing_of(offset, bytes, data_until) != backing::hole) return false;
  std::memset(data, 0, bytes);
  return true;
}

// The largest page that begins at `index` and lies in the range; none if small ones have to do.
address_space::new_page address_space::add_large_missing(std::uint64_t index, std::uint64_t offset,
                                                         std::uint64_t end, miss& m) noexcept {
  const std::uint64_t at = index << page_shift;
  if (at < offset) return {};
  for (const unsigned order : large_page_orders) {
    const std::size_t bytes = page_bytes << order;
    if (order > m.max_order || !is_aligned(at, std::uint64_t{bytes}) || end - at < bytes) continue;
    const backing has = backing_of(at, bytes, m.data_until);
    if (has == backing::both) continue;
    new_page fresh = add_large(index, order);
    if (fresh.outcome == add_outcome::no_memory) m.max_order = order - 1;
    if (fresh.p == nullptr) continue;
    page& p = *fresh.p;
    // Asked again now that nobody else can put a page there: what was written, and had gone from
    // the cache, between the first answer and this moment is data.
    if (has == backing::data || backing_of(at, bytes, m.data_until) != backing::hole) {
      page_parts(p).add(part_set::io, 0, p.frames());
      m.made_large = true;
      fresh.to_read = {0, bytes};
      return fresh;
    }
    std::memset(p.data(), 0, bytes);
    p.set(page_uptodate | page_zero);
    end_change(p);
    notes_.filled(p, 0, bytes);
    unlock_page(p);
    return fresh;
  }
  return {};
}

// A small page, of which the blocks that the range touches are to be read.
address_space::new_page address_space::add_small_missing(std::uint64_t index, std::uint64_t offset,
                                                         std::uint64_t end, miss& m) noexcept {
  // No further than to where a large page could begin.
  const std::uint64_t stretch = std::uint64_t{1} << m.small_order;
  const std::uint64_t until = m.small_order == 0 ? UINT64_MAX : (index / stretch + 1) * stretch;
  page* const frame = m.frames.get(std::min(until, page_of(end - 1) + 1) - index);
  if (frame == nullptr) return {};
  const add_outcome outcome = add_page(index, *frame);
  if (outcome != add_outcome::added) {
    m.frames.unget(*frame);
    return {outcome};
  }
  page& p = *frame;
  page_part part = part_of(p, offset, end);
  const std::size_t valid = valid_bytes(p);
  part.from = round_down(part.from, block_bytes_);
  part.to = std::min(round_up(part.to, block_bytes_), valid);
  const bool whole = part.from == 0 && part.to == valid;
  // Without memory for buffer heads the whole page is read, which needs none.
  if ((!whole || buffers_ == options::buffer_use::always) && !add_buffers(p)) part = {0, valid};
  if (fill_from_hole(p.offset_bytes() + part.from, p.data() + part.from, part.to - part.from,
                     m.data_until)) {
    set_uptodate(p, part.from, part.to, valid);
    if (part.from == 0 && part.to == valid) p.set(page_zero);
    end_change(p);
    notes_.filled(p, part.from, part.to);
    unlock_page(p);
    part = {0, 0};
  } else if (page_buffers(p) != nullptr) {
    for_each_buffer(p, part.from, part.to, [](buffer_head& b) {
      b.end_io = &end_buffer_async_read;
      b.set(bh_async_read | bh_lock | bh_req);
    });
  }
  return {add_outcome::added, &p, part};
}

// First half of a miss, or read-ahead if that is the batch's urgency: pins what is there, puts new
// locked pages where there is nothing and starts to fill them.
task<std::size_t> address_space::add_missing(std::uint64_t offset, std::size_t length,
                                             std::span<page_ref> out, bio_batch& batch, miss& m) {
  const std::uint64_t end = offset + length;
  const std::uint64_t stop = page_of(end - 1) + 1;
  std::uint64_t index = page_of(offset);
  const bool ahead = batch.urgency() == bio_class::read_ahead;
  std::int64_t touched = 0;
  std::int64_t added = 0;
  std::size_t n = 0;
  while (n < out.size() && index < stop) {
    page_ref p = find(index);
    new_page fresh;
    if (p) {
      if (!ahead) note_use(*p);
      if (!ahead && p->test(page_readahead)) {
        m.met.marked = (p->clear(page_readahead) & page_readahead) != 0 || m.met.marked;
      }
    } else {
      if (m.max_order != 0) fresh = add_large_missing(index, offset, end, m);
      if (fresh.p == nullptr) fresh = add_small_missing(index, offset, end, m);
      if (fresh.outcome == add_outcome::exists) continue;
      if (fresh.outcome != add_outcome::added) break;
      p = page_ref::adopt(*fresh.p);
      if (ahead) p->set(page_unused);
      added += p->frames();
    }
    const std::uint64_t start = p->offset_bytes();
    touched += static_cast<std::int64_t>(std::min(stop, p->end_bytes() >> page_shift) - index);
    index = page_of(p->end_bytes());
    std::byte* const data = p->data();
    out[n++] = std::move(p);
    for (std::size_t at = fresh.to_read.from; at < fresh.to_read.to;) {
      const std::size_t bytes = std::min(fresh.to_read.to - at, transfer_bytes_);
      while (!batch.try_append(start + at, data + at, bytes)) co_await batch.room();
      at += bytes;
    }
  }
  m.frames.give_back();
  m.met.missing = added != 0;
  if (ahead) {
    cache_.count().readahead_pages.add(added);
    co_return n;
  }
  cache_.count().misses.add(added);
  cache_.count().hits.add(touched - added);
  sample(page_of(offset), touched);
  co_return n;
}

// For read-ahead: as much of the range as there is memory for.
task<std::size_t> address_space::add_ahead(std::uint64_t offset, std::size_t length,
                                           std::span<page_ref> out, bio_batch& batch) {
  miss m(cache_, max_page_order_);
  co_return co_await add_missing(offset, length, out, batch, m);
}

void address_space::end_read(address_space& self, const bio& b) noexcept {
  std::int64_t pages = 0;
  self.for_each_page(b, [&](page& p, std::size_t from, std::size_t to) {
    if (b.status == 0) {
      pages += static_cast<std::int64_t>((to - from + page_bytes - 1) >> page_shift);
    }
    if (p.is_large()) {
      return self.end_read_of_parts(p, static_cast<unsigned>(from >> page_shift),
                                    static_cast<unsigned>(to >> page_shift), b.status);
    }
    if (page_buffers(p) != nullptr) return end_buffers(p, from, to, b.status);
    if (b.status == 0) {
      set_uptodate(p, from, to, self.valid_bytes(p));
      self.end_change(p);
      self.notes_.filled(p, from, to);
    }
    unlock_page(p);
  });
  self.cache_.count().pages_read.add(pages);
}

// Parts [first, end) of a large page have been read, or could not be.
void address_space::end_read_of_parts(page& p, unsigned first, unsigned end,
                                      std::int32_t status) noexcept {
  page_parts parts(p);
  parts.add(part_set::io_ended, first, end);
  if (status != 0) parts.add(part_set::io_failed, first, end);
  if (parts.count(part_set::io_ended) != parts.count()) return;
  parts.clear(part_set::io);
  parts.clear(part_set::io_ended);
  if (parts.clear(part_set::io_failed) == 0) {
    p.set(page_uptodate);
    end_change(p);
    notes_.filled(p, 0, p.bytes());
  } else {
    remove_page(p);
  }
  unlock_page(p);
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
  if (status == 0) {
    address_space& space = address_space::space_of(b);
    set_buffer_uptodate(b, space.valid_bytes(p));
    const auto at = static_cast<std::size_t>(b.data - p.data());
    space.notes_.filled(p, at, at + b.size_bytes);
  }
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
  for (unsigned max_order = max_page_order_;;) {
    bio_batch batch(*this, cache_.bios(), device_, bio_op::read, 0, bio_class::demand, &end_read);
    miss m(cache_, max_order);
    const result<std::size_t> pinned = co_await add_missing(offset, length, out, batch, m);
    if (readahead_.enabled() && pinned && *pinned != 0 && (m.met.missing || m.met.marked)) {
      batch.submit();
      const std::uint64_t pinned_end = std::min(end, out[*pinned - 1]->end_bytes());
      const auto pages = static_cast<std::uint32_t>(page_of(pinned_end - 1) - first + 1);
      const readahead_window window = readahead_.on_access(first, pages, m.met.missing);
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
      if (!m.made_large) co_return fail(error);
      max_order = 0;  // what cannot be read in small pages either, says so then
      continue;
    }
    if (n != 0) co_return n;
    // Nothing to be had: the first page is being discarded, or there is no memory.
    co_await discard_over(first, first + 1);
    if (const result<> r = co_await wait_for_memory(); !r) co_return fail(r.error());
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
  FOREBAY_ASSERT(!p.is_large());
  const std::size_t valid = valid_bytes(p);
  const std::size_t block = block_bytes_of(p);
  from = round_down(from, block);
  to = std::min(round_up(to, block), valid);
  const bool wants = from != 0 || to != valid || buffers_ == options::buffer_use::always;
  if (page_buffers(p) == nullptr && wants && !add_buffers(p)) {
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
    const std::uint64_t at = p.offset_bytes() + part_from;
    std::byte* data = p.data() + part_from;
    if (!fill_from_hole(at, data, part_to - part_from, data_until)) {
      bio b(bio_op::read, at);
      b.add(data, part_to - part_from);
      const std::int32_t status = co_await submit_and_wait(device_, b);
      if (status != 0) co_return fail(-status);
      cache_.count().pages_read.add();
    }
    set_uptodate(p, part_from, part_to, valid);
    notes_.filled(p, part_from, part_to);
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
      racing_copy(out.data(), p->data() + from, bytes);
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
  // What is pinned at a time: as many small pages as there is room for, or the largest one.
  const std::uint64_t most = std::max(pins.size() * page_bytes, page_bytes << max_page_order_);
  const std::uint64_t end = offset + length;
  while (offset < end) {
    const std::uint64_t want = std::min(end - offset, most - offset % most);
    const result<std::size_t> pinned = co_await pin(offset, want, pins);
    if (!pinned) co_return fail(pinned.error());
    offset = pins[*pinned - 1]->end_bytes();
    for (page_ref& p : pins) p.reset();
  }
  co_return result<>{};
}

}  // namespace forebay
