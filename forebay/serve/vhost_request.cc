// Block requests out of a virtqueue's chains (virtio 1.2, 5.2.6), and doing them.

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include "forebay/base/racing_copy.h"
#include "forebay/serve/vhost_queue.h"

namespace forebay {
namespace {

// In how many pieces a request that counts as short has its data, at most.
constexpr std::size_t short_request_pieces = 16;

using pieces = std::span<std::span<std::byte>>;

// Takes the first `n` bytes off; there are as many.
void drop_front(pieces& p, std::uint64_t n) noexcept {
  while (n != 0) {
    const std::size_t part = std::min<std::uint64_t>(n, p.front().size());
    p.front() = p.front().subspan(part);
    n -= part;
    if (p.front().empty()) p = p.subspan(1);
  }
}

// Copies the first bytes out, once; there are as many.
void copy_out(pieces p, std::span<std::byte> to) noexcept {
  while (!to.empty()) {
    const std::size_t part = std::min(to.size(), p.front().size());
    std::memcpy(to.data(), p.front().data(), part);
    to = to.subspan(part);
    p = p.subspan(1);
  }
}

// Copies the front of a range out of the pages that it begins in, and lets them go; how many bytes.
std::size_t copy_pinned(std::span<page_ref> pages, std::uint64_t offset,
                        std::span<std::byte> to) noexcept {
  std::size_t done = 0;
  for (page_ref& p : pages) {
    const std::size_t from = offset + done - p->offset_bytes();
    const std::size_t n = std::min(to.size() - done, p->bytes() - from);
    racing_copy(to.data() + done, p->data() + from, n);  // who writes it does not ask for pins
    done += n;
    p.reset();
  }
  return done;
}

// As address_space::try_read, but out of pinned pages. What a view gives is any memory of the cache
// until it has been checked, such as another export's, and a guest sees its buffers all the time.
std::size_t try_read_pinned(address_space& space, std::uint64_t offset,
                            std::span<std::byte> out) noexcept {
  std::size_t done = 0;
  while (done < out.size()) {
    page_ref p = space.try_pin_page((offset + done) >> page_shift);
    if (!p) break;
    done += copy_pinned({&p, 1}, offset + done, out.subspan(done));
  }
  return done;
}

}  // namespace

// A request that waits, and its pieces behind it.
struct vhost_queue::waiting {
  request r;
  std::size_t share = 0;
  std::size_t bytes() const noexcept {
    return sizeof(waiting) + r.data.size() * sizeof(std::span<std::byte>);
  }
};

bool vhost_queue::must_sync() const noexcept {
  // relaxed: who changes it flushes afterwards.
  return export_.options().write_through || !writeback_.load(std::memory_order_relaxed);
}

virtio::blk_status vhost_queue::status_of(const result<>& r) const noexcept {
  if (r) return virtio::blk_status::ok;
  return r.error() == std::errc::not_supported || r.error() == std::errc::operation_not_supported
             ? virtio::blk_status::unsupported
             : virtio::blk_status::io_error;
}

// What the chain asks for; false if it is no request, or one that has been answered here: then its
// status is written.
bool vhost_queue::parse(virtqueue::element& e, request& r) noexcept {
  pieces readable = e.pieces.first(e.readable);
  pieces writable = e.pieces.subspan(e.readable);
  virtio::blk_header h;
  copy_out(readable, std::as_writable_bytes(std::span(&h, 1)));
  drop_front(readable, sizeof h);
  std::span<std::byte>& last = writable.back();
  r.status = &last.back();
  last = last.first(last.size() - 1);
  if (last.empty()) writable = writable.first(writable.size() - 1);
  const std::uint64_t in = e.writable_bytes - 1;
  const std::uint64_t out = e.readable_bytes - sizeof h;
  r.written = 1;
  const std::uint64_t size = export_.size_bytes();
  const bool read_only = export_.is_read_only();
  const auto refuse = [&](virtio::blk_status s) {
    if (s != virtio::blk_status::ok) r.written = 1;
    *r.status = std::byte{static_cast<std::uint8_t>(s)};
    return false;
  };
  switch (static_cast<virtio::blk_type>(h.type)) {
    case virtio::blk_type::in:
      r.what = nbd::command::read;
      r.data = writable;
      r.bytes = in;
      r.written = static_cast<std::uint32_t>(in + 1);
      break;
    case virtio::blk_type::out:
      r.what = nbd::command::write;
      r.data = readable;
      r.bytes = out;
      if (read_only) return refuse(virtio::blk_status::io_error);
      break;
    case virtio::blk_type::flush:
      r.what = nbd::command::flush;
      return true;
    case virtio::blk_type::get_id:
      r.data = writable;
      r.written = static_cast<std::uint32_t>(get_id(r) + 1);
      return refuse(virtio::blk_status::ok);
    case virtio::blk_type::discard:
    case virtio::blk_type::write_zeroes:
      r.what = static_cast<virtio::blk_type>(h.type) == virtio::blk_type::discard
                   ? nbd::command::trim
                   : nbd::command::write_zeroes;
      r.data = readable;
      r.bytes = out;
      if (read_only || out == 0 || out % sizeof(virtio::blk_range) != 0 ||
          out / sizeof(virtio::blk_range) > ranges_max) {
        return refuse(virtio::blk_status::io_error);
      }
      return true;
    default:
      return refuse(virtio::blk_status::unsupported);
  }
  if (h.sector > size / virtio::sector_bytes) return refuse(virtio::blk_status::io_error);
  r.offset = h.sector * virtio::sector_bytes;
  const bool fits = r.bytes % virtio::sector_bytes == 0 && r.bytes <= size - r.offset;
  return fits ? true : refuse(virtio::blk_status::io_error);
}

std::size_t vhost_queue::get_id(const request& r) noexcept {
  std::array<std::byte, virtio::id_bytes> id{};
  const std::string& name = export_.name();
  std::memcpy(id.data(), name.data(), std::min(name.size(), id.size()));
  std::span<const std::byte> left(id);
  for (const std::span<std::byte>& to : r.data) {
    const std::size_t n = std::min(left.size(), to.size());
    std::memcpy(to.data(), left.data(), n);
    left = left.subspan(n);
  }
  return id.size() - left.size();
}

void vhost_queue::handle(virtqueue::element& e, std::uint16_t number) noexcept {
  if (e.error || e.readable_bytes < sizeof(virtio::blk_header) || e.writable_bytes == 0) {
    export_.vhost().chains_refused.add();
    report_("a chain of descriptors", e.error ? e.error : make_error_code(errc::protocol));
    // A driver that finds no status would take the one of the last request for this one's.
    std::byte* const status = e.writable_bytes != 0 ? &e.pieces.back().back() : e.last_writable;
    if (status != nullptr)
      *status = std::byte{static_cast<std::uint8_t>(virtio::blk_status::io_error)};
    return put(e.id, e.slots, number, 0);
  }
  request r{.id = e.id, .slots = e.slots, .number = number, .arrived_ns = now_ns_};
  if (!parse(e, r)) {
    return put(e.id, e.slots, number, r.written);
  }
  turn_bytes_ += r.bytes;
  if (export_.rate().applies() && is_held(r)) [[unlikely]]
    return;
  begin(r);
}

// Whether a request has to wait for its export's limit; then it is held.
bool vhost_queue::is_held(const request& r) noexcept {
  if (r.what == nbd::command::flush) return false;
  const bool moves_data = r.what == nbd::command::read || r.what == nbd::command::write;
  place_ = {.bytes = moves_data ? r.bytes : 0};
  const std::uint64_t ns = export_.rate().ask(place_, monotonic_clock::now_ns());
  if (ns == 0) return false;
  held_ = r;
  hold(ns);
  return true;
}

// Begins the held request if it may now.
bool vhost_queue::let_held_go() noexcept {
  const std::uint64_t ns = export_.rate().ask(place_, now_ns_);
  if (ns != 0) {
    hold(ns);
    return false;
  }
  request r = *std::exchange(held_, std::nullopt);
  begin(r);
  return true;
}

void vhost_queue::begin(request& r) noexcept {
  if (!do_at_once(r)) return do_later(r);
  *r.status = std::byte{static_cast<std::uint8_t>(virtio::blk_status::ok)};
  put(r.id, r.slots, r.number, r.written);
  unaccounted_[unaccounted_count_++] = {.what = r.what, .bytes = r.bytes};
}

// Does as much of a read or write as needs no wait, and takes it off; false if that is not all.
bool vhost_queue::do_at_once(request& r) noexcept {
  address_space& space = export_.space();
  const bool read = r.what == nbd::command::read;
  if (!read && r.what != nbd::command::write) return false;
  std::uint64_t done = 0;
  for (std::span<std::byte> piece : r.data) {
    piece = piece.first(std::min<std::uint64_t>(piece.size(), copy_bytes_max - done));
    const std::size_t n = read ? try_read_pinned(space, r.offset + done, piece)
                               : space.try_write(r.offset + done, piece);
    done += n;
    if (n != piece.size() || done == copy_bytes_max) break;
  }
  export_.count_copy(payload_copy::guest, done);
  if (done == r.bytes && (read || done == 0 || !must_sync())) return true;
  drop_front(r.data, done);
  r.offset += done;
  r.bytes -= done;
  r.done_before = done;
  return false;
}

// Makes sure that the next chain that is taken can have the memory of a request, if it must wait.
bool vhost_queue::reserve() noexcept {
  if (request_bytes_ == 0 || reserved_bytes_ != 0) return true;
  constexpr std::size_t most = request_memory::long_request_bytes;
  if (request_bytes_ + most > host_.request_allowance()) return false;
  if (!host_.memory().take_request_share(most)) return false;
  reserved_bytes_ = most;
  return true;
}

void vhost_queue::end_reserve() noexcept {
  const std::size_t bytes = std::exchange(reserved_bytes_, 0);
  if (bytes != 0) host_.memory().return_request_share(bytes);
}

void vhost_queue::begin_request(std::size_t share) noexcept {
  const std::size_t more =
      request_memory::shared_of(request_bytes_ + share) - request_memory::shared_of(request_bytes_);
  request_bytes_ += share;
  const std::size_t had = std::exchange(reserved_bytes_, 0);
  FOREBAY_ASSERT(had >= more);
  if (had > more) host_.memory().return_request_share(had - more);
}

void vhost_queue::end_request(std::size_t share) noexcept {
  const std::size_t less =
      request_memory::shared_of(request_bytes_) - request_memory::shared_of(request_bytes_ - share);
  request_bytes_ -= share;
  if (less != 0) host_.memory().return_request_share(less);
}

void vhost_queue::do_later(const request& r) noexcept {
  const bool is_short = (r.what == nbd::command::read || r.what == nbd::command::write) &&
                        r.bytes <= request_memory::short_request_data_bytes &&
                        r.data.size() <= short_request_pieces;
  const std::size_t share =
      is_short ? request_memory::short_request_bytes : request_memory::long_request_bytes;
  export_.in_flight().add();
  client_.began();
  share_.charge(task_cost);
  begin_request(share);
  const waiting shape{.r = r, .share = share};
  if (void* const memory = host_.memory().allocate(shape.bytes()); memory != nullptr) {
    auto* const w = new (memory) waiting(shape);
    auto* const copy = reinterpret_cast<std::span<std::byte>*>(w + 1);
    std::uninitialized_copy(r.data.begin(), r.data.end(), copy);
    w->r.data = {copy, r.data.size()};
    if (run(w).spawn(tasks_)) return;
    host_.memory().free(w, shape.bytes());
  }
  end_request(share);
  end(r, virtio::blk_status::io_error);
}

task<> vhost_queue::run(waiting* w) {
  result<> outcome;
  switch (w->r.what) {
    case nbd::command::flush:
      outcome = co_await export_.space().flush();
      break;
    case nbd::command::trim:
    case nbd::command::write_zeroes:
      outcome = co_await change_ranges(w->r);
      break;
    default:
      outcome = co_await transfer(w->r);
  }
  const request r = w->r;
  const std::size_t share = w->share;
  host_.memory().free(w, w->bytes());
  end_request(share);
  end(r, status_of(outcome));
  co_return result<>{};
}

// As address_space::read, but see try_read_pinned().
task<> vhost_queue::read_pinned(std::uint64_t offset, std::span<std::byte> out) {
  address_space& space = export_.space();
  std::array<page_ref, 32> pins;
  for (;;) {
    const std::size_t at_once = try_read_pinned(space, offset, out);
    offset += at_once;
    out = out.subspan(at_once);
    if (out.empty()) co_return result<>{};
    const std::size_t most = pins.size() * page_bytes - offset % page_bytes;
    const std::size_t want = std::min(out.size(), most);
    const std::size_t pages = ((offset + want - 1) >> page_shift) - (offset >> page_shift) + 1;
    const result<std::size_t> n = co_await space.pin(offset, want, std::span(pins).first(pages));
    if (!n) co_return fail(n.error());
    const std::size_t done = copy_pinned(std::span(pins).first(*n), offset, out);
    offset += done;
    out = out.subspan(done);
    if (out.empty()) co_return result<>{};
  }
}

// A part of a transfer that lies in one piece of the guest's memory.
task<> vhost_queue::transfer_part(const request& r, std::uint64_t at, std::span<std::byte> part) {
  if (r.what == nbd::command::read) return read_pinned(at, part);
  return export_.space().write(at, part);
}

task<> vhost_queue::transfer(const request& r) {
  address_space& space = export_.space();
  std::uint64_t at = r.offset;
  const std::uint64_t end = at + r.bytes;
  std::uint64_t fetched = at;
  std::uint64_t copied = 0;
  for (const std::span<std::byte>& piece : r.data) {
    for (std::span<std::byte> left = piece; !left.empty();) {
      if (copied >= copy_bytes_max) {
        // A long one is no reason for others to wait.
        copied = 0;
        co_await await_completion([this](completion& done) noexcept { loop_.ready(done); });
      }
      if (r.what == nbd::command::read && at >= fetched && left.size() < end - at) {
        // Many pieces at once, and not piece by piece, which the rest finds then.
        const std::uint64_t ahead = std::min(end - at, copy_bytes_max);
        if (auto there = co_await space.prefetch(at, ahead); !there) co_return there;
        fetched = at + ahead;
      }
      const std::span<std::byte> part =
          left.first(std::min<std::uint64_t>(left.size(), copy_bytes_max));
      if (auto done = co_await transfer_part(r, at, part); !done) co_return done;
      export_.count_copy(payload_copy::guest, part.size());
      at += part.size();
      copied += part.size();
      left = left.subspan(part.size());
    }
  }
  if (r.what == nbd::command::read || !must_sync()) co_return result<>{};
  // What was written at once lies before it.
  co_return co_await space.sync_range(r.offset - r.done_before, r.bytes + r.done_before);
}

// A discard or a write-zeroes of some ranges, each as a command of its own.
task<> vhost_queue::change_ranges(const request& r) {
  address_space& space = export_.space();
  std::array<virtio::blk_range, ranges_max> ranges;
  const std::size_t count = r.bytes / sizeof(virtio::blk_range);
  copy_out(r.data, std::as_writable_bytes(std::span(ranges).first(count)));
  const bool trim = r.what == nbd::command::trim;
  const std::uint64_t size = export_.size_bytes() / virtio::sector_bytes;
  for (const virtio::blk_range& range : std::span(ranges).first(count)) {
    if (range.flags != 0 && (trim || range.flags != virtio::range_unmap)) co_return fail(ENOTSUP);
    if (range.sector > size || range.sectors > size - range.sector) co_return fail(EINVAL);
  }
  for (const virtio::blk_range& range : std::span(ranges).first(count)) {
    const std::uint64_t offset = range.sector * virtio::sector_bytes;
    const std::uint64_t bytes = range.sectors * virtio::sector_bytes;
    if (bytes == 0) continue;
    const result<> done =
        trim ? co_await space.discard(offset, bytes)
             : co_await space.write_zeroes(
                   offset, bytes, {.keep_allocated = (range.flags & virtio::range_unmap) == 0});
    if (!done) co_return done;
  }
  if (!must_sync()) co_return result<>{};
  co_return co_await space.flush();
}

// Answers a request that has waited.
void vhost_queue::end(const request& r, virtio::blk_status status) noexcept {
  export_.in_flight().add(-1);
  client_.ended();
  const bool moves_data = r.what == nbd::command::read || r.what == nbd::command::write;
  const std::uint64_t done =
      moves_data && status == virtio::blk_status::ok ? r.bytes + r.done_before : 0;
  client_.count_all(1, r.what == nbd::command::read ? done : 0,
                    r.what == nbd::command::write ? done : 0);
  export_.of(r.what).record(moves_data ? r.bytes + r.done_before : 0,
                            status != virtio::blk_status::ok,
                            monotonic_clock::now_ns() - r.arrived_ns);
  if (!broken_) {
    *r.status = std::byte{static_cast<std::uint8_t>(status)};
    // How much of a read that failed has been written is not known; of the rest it is the status.
    put(r.id, r.slots, r.number, status == virtio::blk_status::ok ? r.written : 1);
    if (unpublished_ >= inflight_log::batch_max) publish();
  }
  if (std::exchange(publish_queued_, true)) return;
  loop_.defer(publish_);
}

}  // namespace forebay
