// Commands that may have to wait, each as a task of its own.

#include <algorithm>
#include <array>
#include <utility>

#include "forebay/os/socket.h"
#include "forebay/serve/connection.h"

namespace forebay {
namespace {

constexpr std::size_t short_read_pages = 4;
constexpr std::size_t read_pages_max = 256;      // pinned at a time for one read
constexpr std::size_t status_extents_max = 960;  // what fits into a batch of replies
// A range without a payload can be as long as the image; it is done in parts, so that the client's
// end, and the server's, need not wait for all of it.
constexpr std::uint64_t part_bytes_max = 256u << 20;
constexpr std::uint64_t cache_part_bytes_max = 8u << 20;

constexpr std::uint32_t flag_if(bool said, std::uint32_t flag) noexcept { return said ? flag : 0; }

}  // namespace

task<> connection::run_command(nbd::request r) {
  // A block status answers itself, unless there was no memory for its task: the only way it fails.
  const bool answers_itself = r.what() == nbd::command::block_status && r.length != 0;
  task<> work = answers_itself ? do_block_status(r) : do_command(r);
  const result<> done = co_await std::move(work);
  if (!done || !answers_itself) {
    while (!may_reply(small_reply)) co_await next_chance();
    reply(r, done ? std::error_code{} : done.error());
  }
  task_done(r);
  co_return result<>{};
}

task<> connection::do_command(const nbd::request& r) {
  address_space& space = session_.exported->space();
  if (r.what() == nbd::command::flush) co_return co_await space.flush();
  const bool fetches = r.what() == nbd::command::cache;
  const std::uint64_t most = fetches ? cache_part_bytes_max : part_bytes_max;
  for (std::uint64_t at = r.offset; at < r.end();) {
    if (at != r.offset) {
      if (ending()) co_return fail(ESHUTDOWN);
      co_await yield_turn();
    }
    const std::uint64_t bytes = std::min(r.end() - at, most - at % most);
    if (const result<> done = co_await do_part(r, at, bytes); !done) co_return done;
    at += bytes;
  }
  if (fetches || r.length == 0 || !must_sync(r)) co_return result<>{};
  // The device has done the middle by itself: durable only with a flush.
  co_return co_await space.flush();
}

// A part of a command on a range.
task<> connection::do_part(const nbd::request& r, std::uint64_t offset, std::uint64_t length) {
  address_space& space = session_.exported->space();
  switch (r.what()) {
    case nbd::command::trim:
      return space.discard(offset, length);
    case nbd::command::cache:
      return space.prefetch(offset, length);
    default:
      return space.write_zeroes(offset, length,
                                {.keep_allocated = (r.flags & nbd::flag_no_hole) != 0,
                                 // What the device can do with the first part it can with all.
                                 .only_fast = (r.flags & nbd::flag_fast_zero) != 0});
  }
}

// Waits until so many more pages may be pinned for replies, in turn: small reads do not starve a
// large one. Who holds the gate does not wait for those behind it.
task<> connection::reserve_pins(std::size_t pages, bool gate_is_mine) {
  const std::uint64_t turn = gate_is_mine ? 0 : pin_turns_given_++;
  const auto fits = [this, pages, gate_is_mine, turn]() noexcept {
    if (out_.broken()) return true;
    if (!gate_is_mine && turn != pin_turn_) return false;
    const std::size_t taken = out_.pinned_pages() + (gate_is_mine ? 0 : reserved_pins_);
    return taken == 0 || taken + pages <= pin_allowance();
  };
  while (!fits()) {
    out_.kick();
    co_await out_.progress().wait_unless(fits);
  }
  reserved_pins_ += pages;
  if (!gate_is_mine) {
    ++pin_turn_;
    if (pins_awaited()) out_.progress().wake_all();
  }
  co_return result<>{};
}

// `MaxPages`: pinned at a time, which is most of the task's size.
template <std::size_t MaxPages>
task<> connection::do_read(nbd::request r) {
  address_space& space = session_.exported->space();
  // One header for all of the data, which then must follow without a gap.
  const bool whole = !session_.structured || (r.flags & nbd::flag_df) != 0;
  std::array<page_ref, MaxPages> pins;
  std::error_code error;
  std::uint64_t at = r.offset;
  bool gate_is_mine = false;
  if (whole && r.length > MaxPages * page_bytes) {
    // Errors can be told only before the header: meet them now.
    const result<> fetched = co_await space.prefetch(r.offset, r.length);
    if (!fetched) error = fetched.error();
  }
  while (at < r.end() && !error && !out_.broken()) {
    const std::uint64_t pages_left = ((r.end() - 1) >> page_shift) - (at >> page_shift) + 1;
    const std::size_t pages =
        std::min({pages_left, std::uint64_t{MaxPages}, std::uint64_t{pin_allowance()}});
    if (!may_work()) co_await its_turn();
    turn_.charge(std::min(r.end() - at, pages * page_bytes));
    if (const result<> reserved = co_await reserve_pins(pages, gate_is_mine); !reserved) {
      error = reserved.error();
      break;
    }
    const std::uint64_t want = std::min(r.end() - at, pages * page_bytes - at % page_bytes);
    const result<std::size_t> pinned = co_await space.pin(at, want, {pins.data(), pages});
    while (!may_reply(pages_reply(pages), gate_is_mine)) co_await next_chance();
    reserved_pins_ -= pages;
    if (!pinned) {
      error = pinned.error();
      break;
    }
    const std::span<page_ref> got(pins.data(), *pinned);
    const std::uint64_t bytes = std::min(want, got.back()->end_bytes() - at);
    const bool last = at + bytes == r.end();
    if (whole) {
      if (at == r.offset) reply_whole_header(r);
      if (!last) gate_closed_ = gate_is_mine = true;
      out_.append_pages(got, at - got.front()->offset_bytes(), bytes);
      if (last) account(r, false);
    } else {
      reply_pages(r, at, bytes, got, last);
    }
    out_.send_soon();
    at += bytes;
  }
  if (gate_is_mine) {
    gate_closed_ = false;
  }
  out_.progress().wake_all();  // pins that were reserved and not used; the gate
  if (error && whole && at != r.offset) {
    // Data was promised that cannot be had, and there is no way to say so but to leave.
    account(r, true);
    shutdown_socket(socket_.get());
  } else if (error) {
    while (!may_reply(small_reply)) co_await next_chance();
    reply(r, error);
  }
  task_done(r);
  co_return result<>{};
}

task<> connection::run_read(const nbd::request& r) {
  const std::uint64_t pages = ((r.end() - 1) >> page_shift) - (r.offset >> page_shift) + 1;
  return pages <= short_read_pages ? do_read<short_read_pages>(r) : do_read<read_pages_max>(r);
}

// One extent of a status, in the chunk that has been begun.
void connection::append_status(std::uint64_t length_bytes, std::uint32_t flags) noexcept {
  nbd::message<16> m;
  if (session_.extended) {
    m.put(length_bytes).put(std::uint64_t{flags});
  } else {
    m.put(static_cast<std::uint32_t>(length_bytes)).put(flags);
  }
  out_.append(m.data(), m.size());
}

// The chunk of a context, which so many extents follow.
void connection::begin_status(const nbd::request& r, nbd::meta_context of, std::size_t extents,
                              bool last) noexcept {
  const bool extended = session_.extended;
  reply_chunk(r, extended ? nbd::chunk::block_status_ext : nbd::chunk::block_status,
              (extended ? 8 : 4) + extents * status_extent_bytes(), last);
  nbd::message<8> m;
  m.put(static_cast<std::uint32_t>(of) + 1);
  if (extended) m.put(static_cast<std::uint32_t>(extents));
  out_.append(m.data(), m.size());
}

// A chunk for each context.
task<> connection::do_block_status(nbd::request r) {
  using extent = address_space::extent;
  using cached_extent = address_space::cached_extent;
  static_assert(sizeof(extent) == sizeof(cached_extent) &&
                alignof(extent) == alignof(cached_extent));
  constexpr std::size_t few = 32;
  constexpr std::size_t list_bytes = status_extents_max * sizeof(extent);
  alignas(extent) std::array<std::byte, few * sizeof(extent)> own;
  void* memory = own.data();
  std::size_t most = few;
  void* list = nullptr;
  if ((r.flags & nbd::flag_req_one) != 0) {
    most = 1;
  } else if (list = host_.memory().allocate_extra(list_bytes); list != nullptr) {
    memory = list;
    most = status_extents_max;
  }
  const std::span<extent> found(static_cast<extent*>(memory), most);
  const std::span<cached_extent> cached(static_cast<cached_extent*>(memory), most);
  address_space& space = session_.exported->space();
  for (unsigned i = 0; i < nbd::meta_contexts.size(); ++i) {
    if ((r.contexts >> i & 1) == 0) continue;
    const bool last = r.contexts >> (i + 1) == 0;
    const bool in_cache = nbd::meta_context{i} == nbd::meta_context::cache;
    const result<std::size_t> n = in_cache ? space.cached_extents(r.offset, r.length, cached)
                                           : space.extents(r.offset, r.length, found);
    const std::size_t bytes = 256 + n.value_or(0) * status_extent_bytes();
    while (!may_reply({.iovecs = 1, .pins = 0, .bytes = bytes})) co_await next_chance();
    if (!n) {
      reply(r, n.error());
      break;
    }
    begin_status(r, nbd::meta_context{i}, *n, last);
    for (std::size_t k = 0; k < *n; ++k) {
      if (in_cache) {
        append_status(cached[k].length_bytes, flag_if(cached[k].resident, nbd::status_resident) |
                                                  flag_if(cached[k].dirty, nbd::status_dirty));
      } else {
        append_status(found[k].length_bytes,
                      flag_if(found[k].hole, nbd::status_hole | nbd::status_zero));
      }
    }
    if (last) account(r, false);
  }
  if (list != nullptr) host_.memory().free_extra(list, list_bytes);
  co_return result<>{};
}

}  // namespace forebay
