#include "forebay/cache/mapped_object.h"

#include <algorithm>
#include <array>

#include "forebay/base/cache_line.h"

namespace forebay {
namespace {

constexpr std::array<std::byte, page_bytes> zeros{};
constexpr std::uint64_t piece_bytes_min = 1u << 20;

using buffer_use = address_space::options::buffer_use;

address_space::options space_options(const mapped_object::options& opts, bool by_blocks) {
  FOREBAY_ASSERT(opts.max_page_order == 0 || (!by_blocks && opts.block_bytes == page_bytes));
  return {.block_bytes = opts.block_bytes,
          .readahead_bytes = opts.readahead_bytes,
          .max_page_order = opts.max_page_order,
          .buffers = by_blocks                        ? buffer_use::always
                     : opts.block_bytes == page_bytes ? buffer_use::as_needed
                                                      : buffer_use::for_parts};
}

}  // namespace

mapped_object::mapped_object(page_cache& cache, device& dev, extent_mapping* extents,
                             block_mapping* blocks, const options& opts)
    : block_bytes_(opts.block_bytes),
      device_(cache, dev, extents, blocks,
              {.max_bytes = opts.max_bytes,
               .block_bytes = opts.block_bytes,
               .known_extents_max = opts.known_extents_max,
               .device_space = opts.device_space}),
      space_(cache, device_, space_options(opts, blocks != nullptr)),
      piece_bytes_(blocks != nullptr
                       ? page_bytes
                       : std::max(piece_bytes_min, page_bytes << opts.max_page_order)) {
  FOREBAY_ASSERT(opts.size_bytes <= opts.max_bytes);
  FOREBAY_ASSERT(opts.block_bytes >= dev.limits().logical_block_bytes);
  device_.attach(space_);
  device_.set_data_end(opts.size_bytes);
  set_size(opts.size_bytes);
}

std::uint64_t mapped_object::block_end(std::uint64_t offset) const noexcept {
  return round_up(offset, std::uint64_t{block_bytes_});
}

void mapped_object::set_size(std::uint64_t bytes) noexcept {
  device_.set_size(bytes);
  // relaxed: a hint for read-ahead.
  space_.ahead_end_.store(round_up(bytes, std::uint64_t{page_bytes}), std::memory_order_relaxed);
}

task<std::size_t> mapped_object::read(std::uint64_t offset, std::span<std::byte> out) {
  const std::uint64_t size = size_bytes();
  if (offset >= size) co_return std::size_t{0};
  const std::size_t n = std::min<std::uint64_t>(out.size(), size - offset);
  const result<> r = co_await space_.read(offset, out.first(n));
  if (!r) co_return fail(r.error());
  co_return n;
}

// ---- Writing ----

task<> mapped_object::write(std::uint64_t offset, std::span<const std::byte> data) {
  if (data.empty()) co_return result<>{};
  if (offset > max_bytes() || data.size() > max_bytes() - offset) co_return fail(EFBIG);
  const std::uint64_t end = offset + data.size();
  if (end <= size_bytes()) {
    if (const result<> r = co_await enter(writers_); !r) co_return r;
    if (end <= size_bytes()) {
      const result<> r = co_await write_alone(offset, data, false);
      writers_.leave();
      co_return r;
    }
    writers_.leave();
  }
  if (const result<> r = co_await close(writers_); !r) co_return r;
  const result<> r = co_await write_alone(offset, data, true);
  writers_.open();
  co_return r;
}

// Piece by piece, so that what is reserved is soon dirty. If the write is `growing` the caller is
// alone.
task<> mapped_object::write_alone(std::uint64_t offset, std::span<const std::byte> data,
                                  bool growing) {
  if (growing) {
    const result<> r = co_await before_growth(offset, offset + data.size());
    if (!r) co_return r;
  }
  while (!data.empty()) {
    const std::size_t n =
        std::min<std::uint64_t>(data.size(), piece_bytes_ - offset % piece_bytes_);
    const bool grows = growing && offset + n > size_bytes();
    // What is written is not to be taken for what lies beyond the end.
    if (grows) device_.set_data_end(offset + n);
    const result<std::size_t> done = co_await write_piece(offset, data.first(n));
    if (grows) {
      if (done && offset + *done > size_bytes()) {
        set_size(offset + *done);
        tail_is_zero_ = true;
      }
      device_.set_data_end(size_bytes());
    }
    if (!done) co_return fail(done.error());
    offset += *done;
    data = data.subspan(*done);
  }
  co_return result<>{};
}

// Reserves and writes a piece; the value: how many bytes of its front, fewer only if then the rest
// fails.
task<std::size_t> mapped_object::write_piece(std::uint64_t offset,
                                             std::span<const std::byte> data) {
  std::size_t written = 0;
  result<> r;
  if (!device_.by_blocks()) {
    r = co_await device_.reserve(offset, data.size());
    if (r) r = co_await space_.write(offset, data, &written);
  } else {
    // The page is held as long as its buffers say what is reserved and nothing is dirty.
    const result<page_ref> p = co_await space_.page_with_buffers(offset >> page_shift);
    if (!p) co_return fail(p.error());
    const std::size_t from = offset % page_bytes;
    r = co_await device_.reserve_in_page(**p, from, from + data.size());
    if (r) r = co_await space_.write(offset, data, &written);
    if (!r) co_await device_.give_back_new(**p, from, from + data.size());
  }
  if (!r && written == 0) co_return fail(r.error());
  co_return written;
}

// Zeros for a range inside one block, if it has data.
task<> mapped_object::zero(std::uint64_t from, std::uint64_t end) {
  const std::uint64_t block = round_down(from, std::uint64_t{block_bytes_});
  const result<mapped_extent> e = co_await device_.report(block, block_bytes_);
  if (!e) co_return fail(e.error());
  if (e->state == extent_state::hole || from == end) co_return result<>{};
  const result<std::size_t> done = co_await write_piece(from, std::span(zeros).first(end - from));
  if (!done) co_return fail(done.error());
  co_return *done == end - from ? result<>{} : fail(EIO);
}

// The object is about to grow to `end`, by data from `offset` on: what of the last block lies
// beyond the size may be anything on the device.
task<> mapped_object::before_growth(std::uint64_t offset, std::uint64_t end) {
  const std::uint64_t size = size_bytes();
  if (end <= size || tail_is_zero_ || block_end(size) == size) co_return result<>{};
  if (offset <= size && end >= block_end(size)) co_return result<>{};  // all of it is overwritten
  const result<> r = co_await zero(size, block_end(size));
  if (r) tail_is_zero_ = true;
  co_return r;
}

// ---- Taking away ----

task<> mapped_object::truncate(std::uint64_t bytes) {
  if (bytes > max_bytes()) co_return fail(EFBIG);
  if (const result<> r = co_await close(writers_); !r) co_return r;
  const result<> r = co_await truncate_alone(bytes);
  writers_.open();
  co_return r;
}

// Reads the block that a byte lies in and keeps its page, if it has data; so that it can be changed
// without reading it.
task<bool> mapped_object::pin_tail(std::uint64_t offset, page_ref& tail) {
  const std::uint64_t block = round_down(offset, std::uint64_t{block_bytes_});
  const result<mapped_extent> e = co_await device_.report(block, block_bytes_);
  if (!e) co_return fail(e.error());
  if (e->state == extent_state::hole) co_return false;
  const result<std::size_t> pinned = co_await space_.pin(block, block_bytes_, {&tail, 1});
  if (!pinned) co_return fail(pinned.error());
  co_return true;
}

task<> mapped_object::truncate_alone(std::uint64_t bytes) {
  const std::uint64_t before = size_bytes();
  if (bytes >= before) {
    if (const result<> r = co_await before_growth(bytes, bytes); !r) co_return r;
    if (bytes > before) {
      device_.set_data_end(bytes);
      set_size(bytes);
      tail_is_zero_ = false;
    }
    co_return result<>{};
  }
  const std::uint64_t kept = block_end(bytes);
  page_ref tail;
  bool has_tail = false;
  if (kept != bytes) {
    const result<bool> pinned = co_await pin_tail(bytes, tail);
    if (!pinned) co_return fail(pinned.error());
    has_tail = *pinned;
  }
  if (kept < max_bytes()) {
    const result<> r = co_await space_.punch(kept, max_bytes(), bio_op::discard, 0);
    if (!r) co_return r;
  }
  tail_is_zero_ = false;
  set_size(bytes);
  result<> r;
  if (has_tail) r = co_await zero(bytes, kept);
  if (r) tail_is_zero_ = true;
  device_.set_data_end(bytes);
  co_return r;
}

task<> mapped_object::punch(std::uint64_t offset, std::uint64_t length) {
  if (const result<> r = co_await close(writers_); !r) co_return r;
  result<> r;
  const std::uint64_t size = size_bytes();
  const std::uint64_t end = length < size - std::min(offset, size) ? offset + length : size;
  if (offset < end) r = co_await punch_alone(offset, end);
  writers_.open();
  co_return r;
}

task<> mapped_object::punch_alone(std::uint64_t offset, std::uint64_t end) {
  const std::uint64_t first = block_end(offset);
  // The last block is whole though the object may end in it.
  const std::uint64_t last =
      end == size_bytes() ? block_end(end) : round_down(end, std::uint64_t{block_bytes_});
  if (last < first) co_return co_await zero(offset, end);
  if (first < last) {
    const result<> r = co_await space_.punch(first, last, bio_op::discard, 0);
    if (!r) co_return r;
  }
  if (offset != first) {
    if (const result<> r = co_await zero(offset, std::min(first, end)); !r) co_return r;
  }
  if (end > last) co_return co_await zero(last, end);
  co_return result<>{};
}

// ---- Durability, and looking ----

task<> mapped_object::sync_range(std::uint64_t offset, std::uint64_t length) {
  const std::uint64_t end = std::min(max_bytes() - std::min(offset, max_bytes()), length) + offset;
  if (offset >= end) co_return co_await space_.flush_device();
  co_return co_await space_.sync_range(offset, end - offset);
}

task<std::size_t> mapped_object::extents(std::uint64_t offset, std::uint64_t length,
                                         std::span<mapped_extent> out) {
  const std::uint64_t size = block_end(size_bytes());
  std::uint64_t at = round_down(offset, std::uint64_t{block_bytes_});
  const std::uint64_t end =
      length < size - std::min(offset, size) ? block_end(offset + length) : size;
  std::size_t n = 0;
  while (at < end) {
    const result<mapped_extent> e = co_await device_.report(at, end - at);
    if (!e) co_return fail(e.error());
    mapped_extent part = *e;
    part.length_bytes = std::min(e->end_bytes(), end) - at;
    if (part.has_blocks()) part.device_offset_bytes += at - e->offset_bytes;
    part.offset_bytes = at;
    at = part.end_bytes();
    if (n != 0 && out[n - 1].state == part.state &&
        (!part.has_blocks() ||
         out[n - 1].device_offset_bytes + out[n - 1].length_bytes == part.device_offset_bytes)) {
      out[n - 1].length_bytes += part.length_bytes;
    } else if (n == out.size()) {
      break;
    } else {
      out[n++] = part;
    }
  }
  co_return n;
}

}  // namespace forebay
