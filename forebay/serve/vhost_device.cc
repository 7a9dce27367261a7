#include "forebay/serve/vhost_device.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "forebay/os/fd_passing.h"
#include "forebay/os/socket.h"

namespace forebay {
namespace {

constexpr std::uint64_t accept_pause_ns = 100'000'000;

// What a request may consist of: segments as many as the rings that front-ends make usually, less
// the header and the status; and what they may be long, so that no such request is too long.
constexpr std::uint32_t segments_max = 126;
constexpr std::uint32_t segment_bytes_max = 256u << 10;
static_assert(std::uint64_t{segments_max} * segment_bytes_max + sizeof(virtio::blk_header) + 1 <=
              virtqueue::chain_bytes_max);

}  // namespace

vhost_device::vhost_device(connection_host& host, nbd_export& served, std::span<loop* const> loops,
                           unique_fd listener, std::uint64_t spin_ns, logger log)
    : host_(host),
      export_(served),
      loop_(*loops.front()),
      listener_(std::move(listener)),
      log_(std::move(log)),
      report_([this](const char* what, std::error_code why) { log_first(what, why); }) {
  for (std::size_t i = 0; i < rings_.size(); ++i) {
    rings_[i].queue = std::make_unique<vhost_queue>(host, served, client_, memory_, writeback_,
                                                    report_, *loops[i % loops.size()], spin_ns);
  }
}

vhost_device::~vhost_device() { FOREBAY_ASSERT(ended_); }

std::uint64_t vhost_device::features() const noexcept {
  std::uint64_t f = virtio::version_1 | virtio::ring_packed | virtio::ring_indirect |
                    virtio::ring_event_index | virtio::blk_size_max | virtio::blk_seg_max |
                    virtio::blk_block_size | virtio::blk_topology | virtio::blk_multi_queue |
                    vhost::protocol_features_bit;
  if (export_.is_read_only()) return f | virtio::blk_read_only | virtio::blk_flush;
  f |= virtio::blk_discard | virtio::blk_write_zeroes;
  // A guest that is not told of a cache believes, as it may, that what has ended is durable.
  if (!export_.options().write_through) f |= virtio::blk_flush | virtio::blk_config_wce;
  return f;
}

virtio::blk_config vhost_device::config() const noexcept {
  const std::uint32_t block = export_.space().block_bytes();
  const std::uint32_t preferred = export_.preferred_block_bytes();
  constexpr std::uint32_t range_sectors_max = (std::uint32_t{1} << 31) / virtio::sector_bytes;
  return {.capacity_sectors = export_.size_bytes() / virtio::sector_bytes,
          .size_max = segment_bytes_max,
          .seg_max = segments_max,
          .block_bytes = block,
          .physical_block_exponent =
              static_cast<std::uint8_t>(std::countr_zero(std::max(preferred / block, 1u))),
          .min_io_blocks = static_cast<std::uint16_t>(std::max(preferred / block, 1u)),
          .writeback = static_cast<std::uint8_t>(
              !export_.options().write_through && !export_.is_read_only() && cache_on_ ? 1 : 0),
          .num_queues = queues_max,
          .max_discard_sectors = range_sectors_max,
          .max_discard_segments = vhost_queue::ranges_max,
          .discard_alignment_sectors = block / static_cast<std::uint32_t>(virtio::sector_bytes),
          .max_write_zeroes_sectors = range_sectors_max,
          .max_write_zeroes_segments = vhost_queue::ranges_max,
          .write_zeroes_may_unmap = 1};
}

task<> vhost_device::run() {
  ended_ = false;
  while (!stopping_) {
    const std::int32_t n = co_await await_completion([this](completion& done) noexcept {
      waiting_ = &done;
      loop_.submit(uring_request::accept(listener_.get()), done);
    });
    waiting_ = nullptr;
    unique_fd socket(n >= 0 ? n : -1);
    if (stopping_) break;
    if (!socket) {
      if (n != -EINTR && n != -ECONNABORTED) co_await sleep_for(accept_pause_ns);
    } else if (host_.client_arrived()) {
      // Without memory for it the front-end is turned away, and the next one is waited for.
      static_cast<void>(co_await serve(std::move(socket)));
      host_.client_left();
    }
  }
  ended_ = true;
  run_ended_.wake_all();
  co_return result<>{};
}

task<> vhost_device::stop() {
  stopping_ = true;
  if (socket_) {
    shutdown_socket(socket_.get());
  } else if (waiting_ != nullptr) {
    loop_.cancel(*waiting_);
  }
  co_await run_ended_.wait_unless([this]() noexcept { return ended_; });
  co_return result<>{};
}

// One front-end, from its first message to its last.
task<> vhost_device::serve(unique_fd socket) {
  socket_ = std::move(socket);
  set_nonblocking(socket_.get());
  export_.vhost().connections.add();
  client_.enter(export_.clients(), client_door::vhost_user, socket_.get());
  logged_.store(false, std::memory_order_relaxed);  // relaxed: as in log_first()
  const result<> outcome = co_await talk();
  // It may have no memory for it just now; but what is under way must end.
  for (;;) {
    if (const result<> stopped = co_await stop_all(); stopped) break;
    co_await sleep_for(accept_pause_ns);
  }
  forget();
  co_return outcome;
}

// Everything that the connection was about.
void vhost_device::forget() noexcept {
  for (ring& r : rings_) {
    r.setup = {};
    r.has_addresses = r.started = r.enabled = r.call_owed = false;
    r.kick.reset();
    r.call.reset();
    r.error.reset();
  }
  memory_.clear();
  log_memory_ = {};
  log_queues_ = log_queue_size_ = 0;
  features_ = protocol_features_ = 0;
  cache_on_ = true;
  for (unique_fd& fd : fds_) fd.reset();
  backend_.reset();
  client_.leave();
  socket_.reset();
}

// All of `into`, with the descriptors that come beside it if `m` is given; false at the end of the
// connection. Errors: errc::protocol for descriptors where none belong, or too many; errno.
task<bool> vhost_device::receive(std::span<std::byte> into, message* m) {
  while (!into.empty()) {
    const std::span<unique_fd> room =
        m != nullptr ? std::span(fds_).subspan(m->fds) : std::span<unique_fd>();
    const auto got = receive_with_fds(socket_.get(), into, room);
    if (got) {
      if (m != nullptr) m->fds += got->fds;
      into = into.subspan(got->bytes);
      continue;
    }
    if (got.error() == errc::end_of_stream) co_return false;
    if (got.error() != std::errc::resource_unavailable_try_again) co_return fail(got.error());
    const std::int32_t events = co_await await_completion([this](completion& done) noexcept {
      loop_.submit(uring_request::poll_readable(socket_.get()), done);
    });
    if (events < 0) co_return fail(-events);
  }
  co_return true;
}

task<> vhost_device::talk() {
  while (!stopping_) {
    // A front-end may send messages faster than they are done: in between others have their turn.
    co_await await_completion([this](completion& done) noexcept { loop_.ready(done); });
    message m;
    for (unique_fd& fd : fds_) fd.reset();
    auto there = co_await receive(std::as_writable_bytes(std::span(&m.head, 1)), &m);
    if (there && *there && !acceptable(m)) there = fail(errc::protocol);
    if (there && *there) {
      there = co_await receive(std::span(in_).first(m.head.size), nullptr);
      if (there && !*there) there = fail(errc::protocol);  // in the middle of a message
    }
    if (!there) {
      if (!stopping_) refuse(m, there.error());
      co_return fail(there.error());
    }
    if (!*there) co_return result<>{};
    const result<> done = co_await handle(m);
    if (!done) refuse(m, done.error());
    const bool acknowledged =
        m.needs_reply() && (protocol_features_ & vhost::protocol_reply_ack) != 0;
    if (!done && !acknowledged) co_return done;
    // What has an answer of its own has been answered.
    if (acknowledged && !answered_) {
      const std::uint64_t code = done ? 0 : static_cast<std::uint64_t>(to_errno(done.error()));
      if (!send(m, std::as_bytes(std::span(&code, 1)))) co_return fail(errc::protocol);
    }
  }
  co_return result<>{};
}

// Whether the header is one that a message can be received by.
bool vhost_device::acceptable(const message& m) const noexcept {
  return (m.head.flags & vhost::version_mask) == vhost::version &&
         (m.head.flags & vhost::flag_reply) == 0 && m.head.size <= in_.size();
}

void vhost_device::refuse(const message& m, std::error_code why) {
  export_.vhost().messages_refused.add();
  std::array<char, 64> what{};
  const auto end = fmt::format_to_n(what.data(), what.size(), "message {} of {} bytes",
                                    m.head.request, m.head.size);
  log_first({what.data(), end.out}, why);
}

// The rest is counted, so that a front-end cannot fill a disk with lines.
void vhost_device::log_first(std::string_view what, std::error_code why) {
  // relaxed: a flag that orders nothing.
  if (logged_.exchange(true, std::memory_order_relaxed) || !log_) return;
  log_(fmt::format("vhost-user client of {}: {} refused: {}", export_.name(), what, why.message()));
}

// Answers; false if the front-end does not take its answers, which ends the connection.
bool vhost_device::send(const message& m, std::span<const std::byte> payload,
                        std::span<const int> fds) noexcept {
  std::array<std::byte, sizeof(vhost::header) + vhost::payload_max> out;
  const vhost::header head{.request = m.head.request,
                           .flags = vhost::version | vhost::flag_reply,
                           .size = static_cast<std::uint32_t>(payload.size())};
  std::memcpy(out.data(), &head, sizeof head);
  std::ranges::copy(payload, out.begin() + sizeof head);
  answered_ = true;
  return send_with_fds(socket_.get(), std::span(out).first(sizeof head + payload.size()), fds)
      .has_value();
}

}  // namespace forebay
