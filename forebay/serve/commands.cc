// Commands that may have to wait, each as a task of its own.

#include <algorithm>
#include <array>
#include <utility>

#include "forebay/os/socket.h"
#include "forebay/serve/connection.h"

namespace forebay {
namespace {

constexpr std::size_t short_read_pages = 4;
constexpr std::size_t read_pages_max = 256;  // pinned at a time for one read
constexpr std::size_t status_extents_max = 1024;

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
  if (r.length == 0) co_return result<>{};
  switch (r.what()) {
    case nbd::command::trim: {
      const result<> trimmed = co_await space.discard(r.offset, r.length);
      if (!trimmed || !must_sync(r)) co_return trimmed;
      co_return co_await space.flush();
    }
    case nbd::command::write_zeroes:
      co_return co_await do_write_zeroes(r);
    case nbd::command::cache:
      co_return co_await space.prefetch(r.offset, r.length);
    default:
      co_return fail(EINVAL);
  }
}

task<> connection::do_write_zeroes(const nbd::request& r) {
  address_space& space = session_.exported->space();
  const address_space::zero_options how{
      .keep_allocated = (r.flags & nbd::flag_no_hole) != 0,
      .only_fast = (r.flags & nbd::flag_fast_zero) != 0,
  };
  const result<> zeroed = co_await space.write_zeroes(r.offset, r.length, how);
  if (!zeroed || !must_sync(r)) co_return zeroed;
  // The device has zeroed the middle by itself: durable only with a flush.
  co_return co_await space.flush();
}

// Waits until so many more pages may be pinned for replies, in turn: small reads do not starve a
// large one. Who holds the gate does not wait for those behind it.
task<> connection::reserve_pins(std::size_t pages, bool gate_is_mine) {
  const std::uint64_t turn = gate_is_mine ? 0 : pin_turns_given_++;
  const auto fits = [this, pages, gate_is_mine, turn]() noexcept {
    if (out_.broken()) return true;
    if (!gate_is_mine && turn != pin_turn_) return false;
    const std::size_t taken = out_.pinned_pages() + (gate_is_mine ? 0 : reserved_pins_);
    return taken == 0 || taken + pages <= host_.pin_allowance();
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
        std::min({pages_left, std::uint64_t{MaxPages}, std::uint64_t{host_.pin_allowance()}});
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

task<> connection::do_block_status(nbd::request r) {
  constexpr std::size_t some = 32;
  std::array<address_space::extent, some> few;
  std::span<address_space::extent> room(few);
  constexpr std::size_t list_bytes = status_extents_max * sizeof(address_space::extent);
  void* list = nullptr;
  if ((r.flags & nbd::flag_req_one) != 0) {
    room = room.first(1);
  } else if (list = host_.memory().allocate_extra(list_bytes); list != nullptr) {
    room = {static_cast<address_space::extent*>(list), status_extents_max};
  }
  const auto count = session_.exported->space().extents(r.offset, r.length, room);
  const std::size_t n = count ? *count : 0;
  while (!may_reply({.iovecs = 1, .pins = 0, .bytes = 256 + 8 * n})) co_await next_chance();
  if (!count) {
    reply(r, count.error());
  } else {
    reply_chunk(r, nbd::chunk::block_status, static_cast<std::uint32_t>(4 + n * 8), true);
    nbd::message<4> context;
    context.put(nbd::base_allocation_id);
    out_.append(context.data(), context.size());
    for (const address_space::extent& e : room.first(n)) {
      nbd::message<8> m;
      m.put(static_cast<std::uint32_t>(e.length_bytes))
          .put(e.hole ? std::uint32_t{nbd::status_hole | nbd::status_zero} : 0u);
      out_.append(m.data(), m.size());
    }
    account(r, false);
  }
  if (list != nullptr) host_.memory().free_extra(list, list_bytes);
  co_return result<>{};
}

}  // namespace forebay
