// The transmission phase: requests from the socket to the cache.

#include <algorithm>
#include <cstring>
#include <optional>

#include "forebay/base/cache_line.h"
#include "forebay/block/plug.h"
#include "forebay/serve/connection.h"

namespace forebay {
namespace {

// A write up to this size is received whole before it is applied; a longer one page by page.
constexpr std::size_t whole_write_bytes = 64u << 10;
// A read up to this many pages is answered at once if all of them are there.
constexpr std::size_t at_once_pages = 64;
// What a request that counts as short touches at most.
constexpr std::size_t short_request_data_bytes = 12u << 10;
// Requests of other kinds that are parsed before other connections have their turn.
constexpr unsigned dispatches_in_turn = 256;

std::size_t pages_of(std::uint64_t offset, std::uint64_t length) noexcept {
  return ((offset + length - 1) >> page_shift) - (offset >> page_shift) + 1;
}

std::uint16_t allowed_flags(nbd::command c) noexcept {
  switch (c) {
    case nbd::command::read:
      return nbd::flag_fua | nbd::flag_df;
    case nbd::command::write_zeroes:
      return nbd::flag_fua | nbd::flag_no_hole | nbd::flag_fast_zero;
    case nbd::command::block_status:
      return nbd::flag_fua | nbd::flag_req_one;
    default:
      return nbd::flag_fua;
  }
}

bool changes_data(nbd::command c) noexcept {
  return c == nbd::command::write || c == nbd::command::trim || c == nbd::command::write_zeroes;
}

}  // namespace

// 0, or the errno that a request deserves before it is looked at any closer.
int connection::validate(const nbd::request& r) const noexcept {
  const nbd::command c = r.what();
  if (r.type > static_cast<std::uint16_t>(nbd::command::block_status)) return EINVAL;
  if ((r.flags & ~allowed_flags(c)) != 0) return EINVAL;
  if (c == nbd::command::flush) return r.offset == 0 && r.length == 0 ? 0 : EINVAL;
  const nbd_export& e = *session_.exported;
  if (changes_data(c) && e.is_read_only()) return EPERM;
  const std::uint64_t size = session_.exported->size_bytes();
  if (r.offset > size || r.length > size - r.offset) {
    return c == nbd::command::write || c == nbd::command::write_zeroes ? ENOSPC : EINVAL;
  }
  if ((c == nbd::command::read || c == nbd::command::write) && r.length > nbd::max_payload_bytes) {
    // The protocol keeps NBD_EOVERFLOW for reads that must not be fragmented.
    return (r.flags & nbd::flag_df) != 0 ? EOVERFLOW : EINVAL;
  }
  if ((r.flags & nbd::flag_df) != 0 && !session_.structured) return EINVAL;
  // A status of nothing would be a reply without the chunk that the protocol demands.
  if (c == nbd::command::block_status &&
      (r.length == 0 || session_.allocation_of != session_.exported)) {
    return EINVAL;
  }
  if (session_.knows_block_size) {
    const std::uint32_t block = e.options().min_block_bytes;
    if (!is_aligned(r.offset, std::uint64_t{block}) || !is_aligned(r.length, block)) return EINVAL;
  }
  return 0;
}

bool connection::must_sync(const nbd::request& r) const noexcept {
  return (r.flags & nbd::flag_fua) != 0 || session_.exported->options().write_through;
}

task<> connection::transmit() {
  std::optional<plug> together;
  for (unsigned dispatched = 0;;) {
    if (in_.available().size() < nbd::request_bytes) {
      out_.kick();
      const result<> r = co_await in_.fill(nbd::request_bytes);
      if (!r) co_return r;
      arrived_ns_ = monotonic_clock::now_ns();
    }
    // Room for what is answered at once, even if that is an error.
    while (out_.full() || !out_.room(small_reply)) co_await next_chance();
    if (stopping_ || out_.broken()) co_return fail(errc::end_of_stream);
    const std::byte* at = in_.available().data();
    if (nbd::load<std::uint32_t>(at) != nbd::request_magic) co_return fail(errc::protocol);
    const nbd::request r{nbd::load<std::uint16_t>(at + 4),  nbd::load<std::uint16_t>(at + 6),
                         nbd::load<std::uint64_t>(at + 8),  nbd::load<std::uint64_t>(at + 16),
                         nbd::load<std::uint32_t>(at + 24), arrived_ns_};
    in_.consume(nbd::request_bytes);
    if (r.what() == nbd::command::disconnect) co_return result<>{};
    if (r.what() == nbd::command::read && read_at_once(r)) continue;
    if (r.what() == nbd::command::write && write_at_once(r)) continue;
    // Others get their turn beside a client that sends without end. It also bounds the stack where
    // a compiler without optimisation makes no tail call of a task that ends without waiting.
    if (++dispatched % dispatches_in_turn == 0) co_await yield_turn();
    // Reads of neighbours that are there already go to the device together.
    const bool goes_on = continued_by_next(r);
    if (goes_on && !together) together.emplace();
    const result<> handled = co_await dispatch(r);
    if (!handled) co_return handled;
    if (!goes_on) together.reset();
  }
}

// Whether `r` is a read and the next request, which has arrived, reads on where it ends.
bool connection::continued_by_next(const nbd::request& r) const noexcept {
  const std::span<const std::byte> next = in_.available();
  if (r.what() != nbd::command::read || next.size() < nbd::request_bytes) return false;
  return nbd::load<std::uint16_t>(next.data() + 6) ==
             static_cast<std::uint16_t>(nbd::command::read) &&
         nbd::load<std::uint64_t>(next.data() + 16) == r.end();
}

// Answers a read that is a hit all over; false if it is anything else.
bool connection::read_at_once(const nbd::request& r) {
  if (r.length == 0 || gate_closed_ || pins_awaited() || validate(r) != 0) return false;
  const std::size_t pages = pages_of(r.offset, r.length);
  if (pages > at_once_pages ||
      out_.pinned_pages() + reserved_pins_ + pages > host_.pin_allowance()) {
    return false;
  }
  if (!out_.room(pages_reply(pages))) return false;
  std::array<page_ref, at_once_pages> pins;
  const auto pinned = session_.exported->space().try_pin(r.offset, r.length, pins);
  if (!pinned) return false;
  reply_pages(r, r.offset, r.length, {pins.data(), *pinned}, true);
  return true;
}

// Takes a write whose payload is there and needs no wait; false, and nothing is consumed, if it is
// anything else.
bool connection::write_at_once(const nbd::request& r) {
  if (r.length == 0 || gate_closed_ || r.length > in_.available().size()) return false;
  if (must_sync(r) || validate(r) != 0 || !out_.room(small_reply)) return false;
  const std::span<const std::byte> data = in_.available().first(r.length);
  // What is written of a write that turns out to have to wait is written again: the same bytes.
  if (session_.exported->space().try_write(r.offset, data) != r.length) return false;
  in_.consume(r.length);
  reply(r, {});
  return true;
}

// What the tasks of a request may take of the request memory.
std::size_t connection::share_of(const nbd::request& r) noexcept {
  const bool is_short = (r.what() == nbd::command::read || r.what() == nbd::command::write) &&
                        r.length <= short_request_data_bytes;
  return is_short ? request_memory::short_request_bytes : request_memory::long_request_bytes;
}

// Promises a request its memory. The first of a connection has it already, those beyond it share
// with everybody's.
bool connection::begin_request(const nbd::request& r) noexcept {
  if (tasks_.running() >= max_tasks) return false;
  const std::size_t after = request_bytes_ + share_of(r);
  if (request_bytes_ != 0) {
    if (shared_of(after) > host_.request_allowance()) return false;
    if (!host_.memory().take_request_share(shared_of(after) - shared_of(request_bytes_))) {
      return false;
    }
  }
  request_bytes_ = after;
  return true;
}

void connection::end_request(const nbd::request& r) noexcept {
  const std::size_t after = request_bytes_ - share_of(r);
  host_.memory().return_request_share(shared_of(request_bytes_) - shared_of(after));
  request_bytes_ = after;
}

// Runs `work`, which ends with task_done(), as a task of its own; false without memory for that.
bool connection::spawn(task<> work) noexcept {
  session_.exported->in_flight().add(1);
  if (std::move(work).spawn(tasks_)) return true;
  session_.exported->in_flight().add(-1);
  return false;
}

void connection::task_done(const nbd::request& r) noexcept {
  session_.exported->in_flight().add(-1);
  end_request(r);
  out_.send_soon();
  task_ended_.wake_all();
}

// Error: the connection cannot go on.
task<> connection::dispatch(nbd::request r) {
  if (r.what() == nbd::command::write) co_return co_await receive_write(r);
  int e = validate(r);
  if (e == 0) {
    while (!begin_request(r)) co_await task_ended();
    if (spawn(r.what() == nbd::command::read && r.length != 0 ? run_read(r) : run_command(r))) {
      co_return result<>{};
    }
    end_request(r);
    e = ENOMEM;
  }
  while (!may_reply(small_reply)) co_await next_chance();
  reply(r, {e, std::generic_category()});
  co_return result<>{};
}

task<> connection::receive_write(nbd::request r) {
  // The client may hold the payload back until it has the replies to its earlier requests.
  out_.kick();
  std::error_code error;
  if (const int e = validate(r); e != 0) {
    // The payload has to be got out of the way, within reason.
    if (r.length > 2 * nbd::max_payload_bytes) co_return fail(errc::protocol);
    const result<> skipped = co_await in_.skip(r.length);
    if (!skipped) co_return skipped;
    error = {e, std::generic_category()};
  } else if (r.length > whole_write_bytes || !in_.can_hold(r.length)) {
    const result<std::error_code> outcome = co_await write_streamed(r);
    if (!outcome) co_return fail(outcome.error());
    error = *outcome;
  } else {
    const result<> filled = co_await in_.fill(r.length);
    if (!filled) co_return filled;
    address_space& space = session_.exported->space();
    const std::span<const std::byte> data = in_.available().first(r.length);
    const std::size_t done = space.try_write(r.offset, data);
    if (done != r.length) {
      if (write_aside(r, data.subspan(done))) {
        in_.consume(r.length);
        co_return result<>{};
      }
      const result<> written = co_await space.write(r.offset + done, data.subspan(done));
      if (!written) error = written.error();
    }
    in_.consume(r.length);
  }
  if (!error && r.length != 0 && must_sync(r)) {
    while (!begin_request(r)) co_await task_ended();
    if (spawn(finish_write(r, {}))) co_return result<>{};
    end_request(r);
    error = std::make_error_code(std::errc::not_enough_memory);
  }
  while (!may_reply(small_reply)) co_await next_chance();
  reply(r, error);
  co_return result<>{};
}

// Has the end of a write, which must wait, done by a task of its own, with a copy of its payload;
// false, and nothing happens, if there is no memory for that: then it is done where it is.
bool connection::write_aside(const nbd::request& r, std::span<const std::byte> data) noexcept {
  if (!begin_request(r)) return false;
  void* const memory = host_.memory().allocate_extra(data.size());
  if (memory != nullptr) {
    auto* const copy = static_cast<std::byte*>(memory);
    std::memcpy(copy, data.data(), data.size());
    if (spawn(finish_write(r, {copy, data.size()}))) return true;
    host_.memory().free_extra(memory, data.size());
  }
  end_request(r);
  return false;
}

// A long write, applied as it comes in: the value is how it went; an error, that the client is
// gone.
task<std::error_code> connection::write_streamed(const nbd::request& r) {
  address_space& space = session_.exported->space();
  std::error_code error;
  std::uint64_t at = r.offset;
  const std::uint64_t end = r.end();
  while (at < end) {
    const std::size_t wanted = std::min<std::uint64_t>(end - at, page_bytes - at % page_bytes);
    const result<> filled = co_await in_.fill(wanted);
    if (!filled) co_return fail(filled.error());
    std::size_t n = std::min<std::uint64_t>(in_.available().size(), end - at);
    if (at + n < end) n -= (at + n) % page_bytes;  // whole pages, but for the last
    const std::span<const std::byte> data = in_.available().first(n);
    const std::size_t done = error ? n : space.try_write(at, data);
    if (done < n) {
      const result<> written = co_await space.write(at + done, data.subspan(done));
      if (!written) error = written.error();
    }
    in_.consume(n);
    at += n;
  }
  co_return error;
}

// Does the rest of a write whose payload ends with `copy`, which it owns, makes it durable if it
// has to be, and answers it. All in one task: when it runs there is nothing more to get memory for
// that the answer depends on.
task<> connection::finish_write(nbd::request r, std::span<std::byte> copy) {
  address_space& space = session_.exported->space();
  std::error_code error;
  if (!copy.empty()) {
    const result<> written = co_await space.write(r.end() - copy.size(), copy);
    host_.memory().free_extra(copy.data(), copy.size());
    if (!written) error = written.error();
  }
  if (!error && r.length != 0 && must_sync(r)) {
    const result<> synced = co_await space.sync_range(r.offset, r.length);
    if (!synced) error = synced.error();
  }
  while (!may_reply(small_reply)) co_await next_chance();
  reply(r, error);
  task_done(r);
  co_return result<>{};
}

}  // namespace forebay
