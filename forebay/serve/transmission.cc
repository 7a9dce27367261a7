// The transmission phase: requests from the socket to the cache.

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "forebay/base/cache_line.h"
#include "forebay/block/plug.h"
#include "forebay/os/socket.h"
#include "forebay/serve/connection.h"

namespace forebay {
namespace {

// A write up to this size is received whole before it is applied; a longer one page by page.
constexpr std::size_t whole_write_bytes = 64u << 10;
// A read up to this many pages is answered at once if all of them are there.
constexpr std::size_t at_once_pages = 64;
// Announced at a time.
constexpr std::size_t expected_requests = 64;
// What requests are charged beside their data, as bytes: about so much could be moved in the time.
constexpr std::uint64_t at_once_cost = 8u << 10;
constexpr std::uint64_t task_cost = 24u << 10;
constexpr std::uint64_t status_cost = 128u << 10;  // a block status asks much of the device
// Requests that may end without a wait before there is one: it bounds the stack where a compiler
// without optimisation makes no tail call of a task that ends so.
constexpr unsigned dispatches_max = 256;
// Of writes that are done at once so many are answered together while there is more to do: the
// client works on the answers meanwhile, and neither of the two sleeps while the other works. (Of
// reads the answers are most of the work, and are not made by and by.)
constexpr unsigned writes_together = 16;

std::uint64_t cost_of(const nbd::request& r) noexcept {
  return r.what() == nbd::command::block_status ? status_cost : task_cost;
}

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

// A flush makes good what has been let in: it has its place in the order of its client's requests,
// and no other.
bool is_limited(const nbd::request& r) noexcept { return r.what() != nbd::command::flush; }

// What a request's header says of it, of either kind.
std::uint16_t type_in(const std::byte* header) noexcept {
  return nbd::load<std::uint16_t>(header + 6);
}
std::uint64_t offset_in(const std::byte* header) noexcept {
  return nbd::load<std::uint64_t>(header + 16);
}
std::uint64_t length_in(const std::byte* header, bool extended) noexcept {
  return extended ? nbd::load<std::uint64_t>(header + 24) : nbd::load<std::uint32_t>(header + 24);
}
bool is_read(const std::byte* header) noexcept {
  return static_cast<nbd::command>(type_in(header)) == nbd::command::read;
}

// What a request moves. Those that carry nothing count as one each, whatever their range.
std::uint64_t limited_bytes(const nbd::request& r) noexcept {
  const nbd::command c = r.what();
  const bool moves =
      c == nbd::command::read || c == nbd::command::write || c == nbd::command::cache;
  return moves ? std::min<std::uint64_t>(r.length, nbd::max_payload_bytes) : 0;
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
      (r.length == 0 || r.contexts == 0 || session_.contexts_of != session_.exported)) {
    return EINVAL;
  }
  if (session_.knows_block_size) {
    const std::uint32_t block = e.options().min_block_bytes;
    if (!is_aligned(r.offset | r.length, std::uint64_t{block})) return EINVAL;
  }
  return 0;
}

bool connection::must_sync(const nbd::request& r) const noexcept {
  return (r.flags & nbd::flag_fua) != 0 || session_.exported->options().write_through;
}

// A request's header. Error: it is none, or of a payload that nobody could want. With extended
// headers a flag says whether a payload follows, which one has to for a write: there it is turned
// round, so that the flag stands for what is out of the ordinary.
result<nbd::request> connection::parse(const std::byte* at) const noexcept {
  const bool extended = session_.extended;
  const auto magic = nbd::load<std::uint32_t>(at);
  if (magic != (extended ? nbd::extended_request_magic : nbd::request_magic))
    return fail(errc::protocol);
  nbd::request r{nbd::load<std::uint16_t>(at + 4),
                 type_in(at),
                 nbd::load<std::uint64_t>(at + 8),
                 offset_in(at),
                 length_in(at, extended),
                 arrived_ns_,
                 session_.contexts};
  if (!extended) return r;
  if ((r.flags & nbd::flag_payload_len) != 0 && r.length > nbd::max_payload_bytes)
    return fail(errc::protocol);
  if (r.what() == nbd::command::write) r.flags ^= nbd::flag_payload_len;
  return r;
}

// Sends what there is when there is no more to answer: the more together the better, unless others
// wait for their turn and nothing of its own is under way.
void connection::send_at_rest() noexcept {
  if (!loop_.turns().contended() || tasks_.running() != 0) return out_.kick();
  out_.send_before_others();
  loop_.end_turn();
}

task<> connection::transmit() {
  std::optional<plug> together;
  in_.count_moves(session_.exported->copied(payload_copy::moved));
  if (tls_) tls_->count_copies(session_.exported->copied(payload_copy::tls));
  const std::size_t header_bytes = request_header_bytes();
  unsigned written = 0;  // at once
  for (unsigned dispatched = 0;;) {
    if (in_.available().size() < header_bytes) {
      send_at_rest();
      at_rest_ = true;
      const result<> r = co_await in_.fill(header_bytes);
      at_rest_ = false;
      if (!r) co_return r;
      arrived_ns_ = monotonic_clock::now_ns();
    }
    if (in_.consumed_bytes() >= expected_to_) expect_requests();
    if (!may_work()) {
      together.reset();
      co_await its_turn();
    }
    // Room for what is answered at once, even if that is an error.
    while (out_.full() || !out_.room(small_reply)) co_await next_chance();
    if (stopping_ || out_.broken()) co_return fail(errc::end_of_stream);
    const result<nbd::request> parsed = parse(in_.available().data());
    if (!parsed) co_return fail(parsed.error());
    const nbd::request& r = *parsed;
    in_.consume(header_bytes);
    if (r.what() == nbd::command::disconnect) co_return result<>{};
    if (session_.exported->rate().applies() && is_limited(r)) [[unlikely]] {
      place_ = {.bytes = limited_bytes(r)};
      for (std::uint64_t ns; (ns = must_wait()) != 0;) {
        together.reset();
        out_.kick();
        co_await place_left_.wait_unless([this]() noexcept { return ending(); }, ns);
      }
      if (ending()) co_return fail(errc::end_of_stream);
    }
    if (r.what() == nbd::command::read && read_at_once(r)) continue;
    const bool unusual = session_.extended && (r.flags & nbd::flag_payload_len) != 0;
    if (r.what() == nbd::command::write && !unusual && write_at_once(r)) {
      const bool more = in_.available().size() >= header_bytes;
      if (more && ++written % writes_together == 0) out_.send_at_once();
      continue;
    }
    turn_.charge(cost_of(r));
    if (++dispatched >= dispatches_max) {
      dispatched = 0;
      co_await yield_turn();
    }
    // Reads of neighbours that are there already go to the device together.
    const bool goes_on = continued_by_next(r);
    if (goes_on && !together) together.emplace();
    task<> work = unusual ? dispatch_unusual(r) : dispatch(r);
    const result<> handled = co_await std::move(work);
    if (!handled) co_return handled;
    if (!goes_on) together.reset();
  }
}

// Requests that have arrived together are looked up one after the other, and each look-up waits for
// memory a few times. So those of a kind are announced before the first. At least one request's
// header is there.
void connection::expect_requests() noexcept {
  std::array<std::uint64_t, expected_requests> offsets;
  std::span<const std::byte> arrived = in_.available();
  const std::size_t header = request_header_bytes();
  const std::uint16_t type = type_in(arrived.data());
  const bool reads = is_read(arrived.data());
  if (!reads && static_cast<nbd::command>(type) != nbd::command::write) return;
  std::size_t n = 0;
  while (arrived.size() >= header && type_in(arrived.data()) == type && n < offsets.size()) {
    const std::uint64_t payload = reads ? 0 : length_in(arrived.data(), session_.extended);
    if (payload > arrived.size() - header) break;
    offsets[n++] = offset_in(arrived.data());
    arrived = arrived.subspan(header + payload);
  }
  expected_to_ = in_.received_bytes() - arrived.size();
  if (n <= 1) return;
  const address_space& space = session_.exported->space();
  if (reads) {
    space.expect_reads({offsets.data(), n});
  } else {
    space.expect_writes({offsets.data(), n});
  }
}

// How long the request at hand has to wait for its export's limit before it asks again; 0: it
// begins, or the connection is ending.
std::uint64_t connection::must_wait() noexcept {
  rate_limit& limit = session_.exported->rate();
  const std::uint64_t now_ns = monotonic_clock::now_ns();
  // While it waits nobody looks at the socket.
  if (place_.since_ns != 0 && has_hung_up(socket_.get())) stopping_ = true;
  if (!ending()) return limit.ask(place_, now_ns);
  limit.leave(place_, now_ns);
  return 0;
}

// Whether `r` is a read and the next request, which has arrived, reads on where it ends.
bool connection::continued_by_next(const nbd::request& r) const noexcept {
  const std::span<const std::byte> next = in_.available();
  if (r.what() != nbd::command::read || next.size() < request_header_bytes()) return false;
  return is_read(next.data()) && offset_in(next.data()) == r.end();
}

// Answers a read that is a hit all over; false if it is anything else.
bool connection::read_at_once(const nbd::request& r) {
  if (r.length == 0 || gate_closed_ || pins_awaited() || validate(r) != 0) return false;
  const std::size_t pages = pages_of(r.offset, r.length);
  if (pages > at_once_pages || out_.pinned_pages() + reserved_pins_ + pages > pin_allowance()) {
    return false;
  }
  if (!out_.room(pages_reply(pages))) return false;
  std::array<page_ref, at_once_pages> pins;
  const auto pinned = session_.exported->space().try_pin(r.offset, r.length, pins);
  if (!pinned) return false;
  turn_.charge(at_once_cost + r.length);
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
  const std::size_t done = session_.exported->space().try_write(r.offset, data);
  session_.exported->count_copy(payload_copy::write, done);
  if (done != r.length) return false;
  turn_.charge(at_once_cost + r.length);
  in_.consume(r.length);
  reply(r, {});
  return true;
}

// What the tasks of a request may take of the request memory.
std::size_t connection::share_of(const nbd::request& r) noexcept {
  const bool is_short = (r.what() == nbd::command::read || r.what() == nbd::command::write) &&
                        r.length <= request_memory::short_request_data_bytes;
  return is_short ? request_memory::short_request_bytes : request_memory::long_request_bytes;
}

// Promises a request its memory. The first of a connection has it already, those beyond it share
// with everybody's.
bool connection::begin_request(const nbd::request& r) noexcept {
  if (tasks_.running() >= max_tasks) return false;
  const std::size_t after = request_bytes_ + share_of(r);
  if (request_bytes_ != 0) {
    if (request_memory::shared_of(after) > host_.request_allowance()) return false;
    if (!host_.memory().take_request_share(request_memory::shared_of(after) -
                                           request_memory::shared_of(request_bytes_))) {
      return false;
    }
  }
  request_bytes_ = after;
  return true;
}

void connection::end_request(const nbd::request& r) noexcept {
  const std::size_t after = request_bytes_ - share_of(r);
  host_.memory().return_request_share(request_memory::shared_of(request_bytes_) -
                                      request_memory::shared_of(after));
  request_bytes_ = after;
}

// Runs `work`, which ends with task_done(), as a task of its own; false without memory for that.
bool connection::spawn(task<> work) noexcept {
  session_.exported->in_flight().add(1);
  client_.began();
  if (std::move(work).spawn(tasks_)) return true;
  session_.exported->in_flight().add(-1);
  client_.ended();
  return false;
}

void connection::task_done(const nbd::request& r) noexcept {
  session_.exported->in_flight().add(-1);
  client_.ended();
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
  co_return co_await refuse(r, e);
}

task<> connection::refuse(const nbd::request& r, int error) {
  while (!may_reply(small_reply)) co_await next_chance();
  reply(r, {error, std::generic_category()});
  co_return result<>{};
}

// A write without a payload, or another request with one: it may have one if it is a block status,
// and whatever it is, the payload has to be got out of the way.
task<> connection::dispatch_unusual(nbd::request r) {
  if (r.what() == nbd::command::write) co_return co_await refuse(r, EINVAL);
  r.flags ^= nbd::flag_payload_len;
  constexpr std::size_t longest = 8 + 4 * nbd::meta_contexts.size();
  const std::uint64_t payload_bytes = r.length;
  bool good = false;
  if (r.what() == nbd::command::block_status && payload_bytes <= longest) {
    if (const result<> filled = co_await in_.fill(payload_bytes); !filled) co_return filled;
    good = select_contexts(r, in_.available().first(payload_bytes));
    in_.consume(payload_bytes);
  } else if (const result<> skipped = co_await in_.skip(payload_bytes); !skipped) {
    co_return skipped;
  }
  if (!good) co_return co_await refuse(r, EINVAL);
  co_return co_await dispatch(r);
}

// The payload of a block status: how much it is about, and which contexts. False if it names one
// twice, or one that was not selected.
bool connection::select_contexts(nbd::request& r,
                                 std::span<const std::byte> payload) const noexcept {
  if (payload.size() < 8 || payload.size() % 4 != 0) return false;
  r.length = nbd::load<std::uint64_t>(payload.data());
  unsigned wanted = 0;
  for (payload = payload.subspan(8); !payload.empty(); payload = payload.subspan(4)) {
    const auto id = nbd::load<std::uint32_t>(payload.data());
    if (id == 0 || id > nbd::meta_contexts.size()) return false;
    const unsigned bit = 1u << (id - 1);
    if ((wanted & bit) != 0 || (session_.contexts & bit) == 0) return false;
    wanted |= bit;
  }
  r.contexts = static_cast<nbd::meta_context_set>(wanted);
  return true;
}

task<> connection::receive_write(nbd::request r) {
  // The client may hold the payload back until it has the replies to its earlier requests.
  out_.kick();
  std::error_code error;
  if (const int e = validate(r); e != 0) {
    // The payload has to be got out of the way, within reason.
    if (r.length > std::uint64_t{2} * nbd::max_payload_bytes) co_return fail(errc::protocol);
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
    turn_.charge(r.length);
    address_space& space = session_.exported->space();
    const std::span<const std::byte> data = in_.available().first(r.length);
    std::size_t done = space.try_write(r.offset, data);
    if (done != r.length) {
      if (write_aside(r, data.subspan(done))) {
        session_.exported->count_copy(payload_copy::write, done);
        in_.consume(r.length);
        co_return result<>{};
      }
      const result<> written = co_await space.write(r.offset + done, data.subspan(done), &done);
      if (!written) error = written.error();
    }
    session_.exported->count_copy(payload_copy::write, done);
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
    session_.exported->count_copy(payload_copy::aside, data.size());
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
    if (!may_work()) co_await its_turn();
    const result<> filled = co_await in_.fill(wanted);
    if (!filled) co_return fail(filled.error());
    std::size_t n = std::min<std::uint64_t>(in_.available().size(), end - at);
    if (at + n < end) n -= (at + n) % page_bytes;  // whole pages, but for the last
    const std::span<const std::byte> data = in_.available().first(n);
    std::size_t done = 0;
    if (!error) {
      done = space.try_write(at, data);
      if (done < n) {
        const result<> written = co_await space.write(at + done, data.subspan(done), &done);
        if (!written) error = written.error();
      }
    }
    session_.exported->count_copy(payload_copy::write, done);
    turn_.charge(n);
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
    std::size_t done = 0;
    const result<> written = co_await space.write(r.end() - copy.size(), copy, &done);
    session_.exported->count_copy(payload_copy::write, done);
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
