#include "forebay/net/xdp_port.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <new>
#include <thread>

#include "forebay/base/stats.h"
#include "forebay/os/clock.h"
#include "forebay/os/poll.h"

namespace forebay {
namespace {

constexpr std::size_t ethernet_bytes = 14;
constexpr std::size_t vlan_bytes = 4;
// After stop(), for packets for which the driver's program has run already.
constexpr std::uint64_t drain_ns = 50'000'000;
// Packets that come closer together than this come fast.
constexpr std::uint64_t fast_gap_ns = 10'000;

std::uint64_t utc_ns() noexcept {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(now).count());
}

std::size_t length_max_for(std::uint32_t mtu_bytes) noexcept {
  return std::size_t{mtu_bytes} + ethernet_bytes + vlan_bytes;
}

// Whether each buffer of the pool is one frame of the arena.
bool fits(const arena& memory, packet_pool& pool) noexcept {
  const std::size_t bytes = pool.buffer_bytes();
  if ((bytes != 2048 && bytes != page_bytes) || pool.buffers().stride_bytes() != bytes)
    return false;
  const packet p = pool.try_allocate();
  if (!p) return false;
  const std::byte* const head = p->data() - p->headroom();
  const std::span<std::byte> all = memory.memory();
  return head >= all.data() && head < all.data() + all.size() &&
         static_cast<std::size_t>(head - all.data()) % bytes == 0;
}

}  // namespace

// --- making ---

result<std::size_t> xdp_port::buffer_bytes_for(std::uint32_t mtu_bytes) noexcept {
  for (const std::size_t bytes : {std::size_t{2048}, page_bytes}) {
    if (length_max_for(mtu_bytes) <= bytes - xdp_socket::headroom_min) return bytes;
  }
  return fail(errc::too_large);
}

packet_pool::options xdp_port::pool_options(std::string name, std::size_t buffer_bytes,
                                            std::size_t count) {
  packet_pool::options o;
  o.name = std::move(name);
  o.buffer_bytes = buffer_bytes;
  o.count = count;
  o.alignment = buffer_bytes;
  return o;
}

result<std::unique_ptr<xdp_port>> xdp_port::open(const net_interface& at, const options& opts,
                                                 arena& memory, packet_pool& pool) {
  if (at.kind != link_kind::ethernet) return fail(ENOTSUP);
  if (!fits(memory, pool)) return fail(EINVAL);
  const auto frame_bytes = static_cast<std::uint32_t>(pool.buffer_bytes());
  const std::size_t headroom = std::max<std::size_t>(xdp_socket::headroom_min, pool.headroom());
  if (headroom + length_max_for(at.mtu_bytes) > frame_bytes) return fail(errc::too_large);
  auto domain = umem_domain::create(memory, frame_bytes, opts.checks);
  if (!domain) return fail(domain.error());
  const std::uint32_t there = receive_queues(at);
  const std::uint32_t rest = there - std::min(there, opts.queue);
  const std::uint32_t queues = opts.queues != 0 ? opts.queues : std::min(rest, queues_max);
  if (queues == 0 || queues > rest || queues > queues_max) return fail(EINVAL);
  auto lanes = open_lanes(at, {.memory = (*domain)->area(),
                               .chunk_bytes = frame_bytes,
                               .headroom = static_cast<std::uint32_t>(headroom),
                               .queue = opts.queue,
                               .queues = queues,
                               .fill_entries = opts.receive_frames,
                               .rx_entries = opts.receive_frames,
                               .tx_entries = opts.transmit_frames,
                               .completion_entries = opts.transmit_frames,
                               .best = opts.best,
                               .worst = opts.worst,
                               .promiscuous = opts.promiscuous,
                               .filter = opts.filter});
  if (!lanes) return fail(lanes.error());
  std::unique_ptr<packet_buffer*[]> frames(new (std::nothrow)
                                               packet_buffer*[(*domain)->frames()]());
  if (frames == nullptr) return fail(ENOMEM);
  std::unique_ptr<xdp_port> made(
      new xdp_port(at, opts, pool, std::move(*domain), std::move(*lanes), std::move(frames)));
  if (queues < there) {
    made->remarks_.push_back(at.name + " has " + std::to_string(there) +
                             " receive queues, of which " + std::to_string(queues) +
                             " are read, from number " + std::to_string(opts.queue) +
                             " on; what comes to the others stays the machine's");
  }
  return made;
}

result<std::vector<xdp_port::lane>> xdp_port::open_lanes(const net_interface& at,
                                                         const xdp_socket::options& opts) {
  std::vector<lane> lanes;
  auto first = xdp_socket::open(at, opts);
  if (!first) return fail(first.error());
  lanes.push_back({std::move(*first)});
  xdp_socket::options next = opts;
  for (std::uint32_t i = 1; i < opts.queues; ++i) {
    ++next.queue;
    auto more = xdp_socket::open_beside(lanes.front().socket, at, next);
    if (!more) return fail(more.error());
    lanes.push_back({std::move(*more)});
  }
  return lanes;
}

xdp_port::xdp_port(const net_interface& at, const options& opts, packet_pool& pool,
                   std::unique_ptr<umem_domain> domain, std::vector<lane> lanes,
                   std::unique_ptr<packet_buffer*[]> frames)
    : interface_(at),
      pool_(pool),
      frame_bytes_(domain->frame_bytes()),
      frame_count_(domain->frames()),
      length_max_(length_max_for(at.mtu_bytes)),
      domain_(std::move(domain)),
      lanes_(std::move(lanes)),
      remarks_(lanes_.front().socket.remarks().begin(), lanes_.front().socket.remarks().end()),
      frames_(std::move(frames)),
      moderation_(opts.moderation_us),
      traffic_(at.index) {
  for (lane& l : lanes_) refill(l);
}

xdp_port::~xdp_port() { take_back_all(); }

// The sockets go first: when they have, the kernel leaves the memory alone.
void xdp_port::take_back_all() noexcept {
  lanes_.clear();
  for (std::size_t i = 0; i < frame_count_; ++i) {
    if (frames_[i] == nullptr) continue;
    const packet p = packet::adopt(*std::exchange(frames_[i], nullptr));
    const dma_address start{i * frame_bytes_};
    // Those that are to be received into are empty, those that are to be sent are not.
    if (p->empty()) {
      domain_->unmap({start, frame_bytes_}, dma_direction::from_device);
    } else {
      const auto offset =
          static_cast<std::uint64_t>(p->data() - (domain_->area().data() + to_number(start)));
      domain_->unmap({start + offset, static_cast<std::uint32_t>(p->linear_length())},
                     dma_direction::to_device);
    }
  }
}

// --- receiving ---

// Gives the kernel empty frames, a batch at a time.
void xdp_port::refill(lane& of) noexcept {
  const std::uint32_t wanted = of.socket.fill().capacity();
  const std::uint32_t least = std::max(std::min<std::uint32_t>(batch, wanted / 2), 1u);
  bool offered_some = false;
  while (wanted - of.offered >= least) {
    std::array<packet, batch> empty;
    const std::size_t n = std::min<std::size_t>(batch, wanted - of.offered);
    const std::size_t got = pool_.allocate_burst(std::span(empty).first(n));
    const std::uint32_t taken = offer(of, std::span(empty).first(got));
    of.offered += taken;
    offered_some = offered_some || taken != 0;
    if (taken < n) break;
  }
  if (offered_some && of.socket.fill_needs_wakeup()) of.socket.wake_fill();
}

// There is room for them in the ring. How many were taken: those that the kernel can reach.
std::uint32_t xdp_port::offer(lane& to, std::span<packet> empty) noexcept {
  xdp_fill_ring& fill = to.socket.fill();
  if (fill.free(static_cast<std::uint32_t>(empty.size())) < empty.size()) return 0;
  std::uint32_t taken = 0;
  for (packet& p : empty) {
    const std::span<std::byte> frame(p->writable_unchecked() - p->headroom(), frame_bytes_);
    const auto mapped = domain_->map(frame, dma_direction::from_device);
    if (!mapped) continue;
    const std::uint64_t address = to_number(mapped->address);
    frames_[frame_of(address)] = p.release();
    fill.put(taken++, address);
  }
  fill.commit(taken);
  return taken;
}

std::size_t xdp_port::receive(std::span<packet> out) noexcept {
  std::size_t got = 0;
  for (std::size_t i = 0; i < lanes_.size() && got < out.size(); ++i) {
    lane& l = lanes_[next_lane_];
    next_lane_ = next_lane_ + 1 < lanes_.size() ? next_lane_ + 1 : 0;
    got += receive_from(l, out.subspan(got));
  }
  counted_.delivered += got;
  return got;
}

std::size_t xdp_port::receive_from(lane& l, std::span<packet> out) noexcept {
  xdp_rx_ring& rx = l.socket.rx();
  const auto wanted = static_cast<std::uint32_t>(std::min<std::size_t>(out.size(), rx.capacity()));
  const std::uint32_t n = std::min(rx.ready(wanted), wanted);
  if (n == 0) {
    refill(l);
    return 0;
  }
  constexpr std::uint32_t ahead = 4;
  const std::uint64_t now_ns = utc_ns();
  std::size_t got = 0;
  for (std::uint32_t i = 0; i < n; ++i) {
    if (i + ahead < n) {
      const std::uint64_t frame = frame_of(rx.get(i + ahead).address);
      if (frame < frame_count_) __builtin_prefetch(frames_[frame], 1);
    }
    packet p = take(rx.get(i));
    if (!p) {
      ++counted_.dropped_malformed;
      continue;
    }
    p->set_timestamp_ns(now_ns);
    counted_.delivered_bytes += p->length();
    out[got++] = std::move(p);
  }
  rx.release(n);
  l.offered -= n;
  refill(l);
  return got;
}

bool xdp_port::anything_ready() noexcept {
  return std::ranges::any_of(lanes_, [](lane& l) { return l.socket.rx().ready(1) != 0; });
}

// The packet that has been received; none if the descriptor makes no sense.
packet xdp_port::take(const xdp_descriptor& d) noexcept {
  const std::uint64_t frame = frame_of(d.address);
  if (frame >= frame_count_ || frames_[frame] == nullptr) return {};
  packet p = packet::adopt(*std::exchange(frames_[frame], nullptr));
  domain_->unmap({dma_address{frame * frame_bytes_}, frame_bytes_}, dma_direction::from_device);
  const std::uint64_t start = d.address - frame * frame_bytes_;
  const std::uint64_t headroom = p->headroom();
  if (start < headroom || start > frame_bytes_ || d.length > frame_bytes_ - start) return {};
  p->reserve_unchecked(start - headroom);
  static_cast<void>(p->put_unchecked(d.length));
  return p;
}

// --- sending ---

// Releases what has been sent.
void xdp_port::reclaim() noexcept {
  xdp_completion_ring& done = lanes_.front().socket.completion();
  while (sending_ != 0) {
    const std::uint32_t n = std::min<std::uint32_t>(done.ready(batch), batch);
    if (n == 0) break;
    std::array<packet, batch> sent;
    for (std::uint32_t i = 0; i < n; ++i) {
      const std::uint64_t address = done.get(i);
      packet_buffer*& p = frames_[frame_of(address)];
      FOREBAY_ASSERT(p != nullptr);
      domain_->unmap({dma_address{address}, static_cast<std::uint32_t>(p->linear_length())},
                     dma_direction::to_device);
      sent[i] = packet::adopt(*std::exchange(p, nullptr));
    }
    done.release(n);
    sending_ -= n;
    packet_pool::release_burst(std::span(sent).first(n));
    if (n < batch) break;
  }
}

// Makes the device's what `p` has, or a copy of it; `p` is empty then. Errors, `p` is as it was
// then: EMSGSIZE, ENOMEM.
result<xdp_descriptor> xdp_port::put_to_be_sent(packet& p) noexcept {
  const std::size_t length = p->length();
  if (length < ethernet_bytes || length > length_max_) return fail(EMSGSIZE);
  const std::span<const std::byte> area = domain_->area();
  const auto start =
      reinterpret_cast<std::uintptr_t>(p->data()) - reinterpret_cast<std::uintptr_t>(area.data());
  // Of a clone and its like only one can be under way.
  const bool is_ours = p->is_linear() && start < area.size() &&
                       frame_of(start) == frame_of(start + length - 1) &&
                       frames_[frame_of(start)] == nullptr &&
                       !domain_->is_lost(static_cast<std::uint32_t>(start / arena::chunk_bytes));
  if (!is_ours) return copy_to_be_sent(p);
  // It is only read.
  const auto mapped =
      domain_->map({const_cast<std::byte*>(p->data()), length}, dma_direction::to_device);
  if (!mapped) return copy_to_be_sent(p);
  frames_[frame_of(start)] = p.release();
  return xdp_descriptor{start, static_cast<std::uint32_t>(length), 0};
}

result<xdp_descriptor> xdp_port::copy_to_be_sent(packet& p) noexcept {
  packet copy = pool_.try_allocate();
  if (!copy) return fail(ENOMEM);
  const std::size_t length = p->length();
  std::byte* const to = copy->put_unchecked(length);
  static_cast<void>(p->copy_out(0, {to, length}));
  const auto mapped = domain_->map({to, length}, dma_direction::to_device);
  if (!mapped) return fail(ENOMEM);
  copied_.fetch_add(1, std::memory_order_relaxed);  // relaxed: a statistic
  const std::uint64_t address = to_number(mapped->address);
  frames_[frame_of(address)] = copy.release();
  p.reset();
  return xdp_descriptor{address, static_cast<std::uint32_t>(length), 0};
}

// Has the kernel send what is in the ring, where it does not by itself. In the copying modes each
// call sends some: until all is sent, or a call sends nothing.
void xdp_port::drive() noexcept {
  xdp_socket& socket = lanes_.front().socket;
  xdp_tx_ring& tx = socket.tx();
  send_error_ = {};
  while (!tx.all_taken() && socket.tx_needs_wakeup()) {
    const std::uint32_t before = tx.free(tx.capacity());
    const auto r = socket.wake_tx();
    if (!r && r.error() != std::errc::resource_unavailable_try_again &&
        r.error() != std::errc::device_or_resource_busy &&
        r.error() != std::errc::no_buffer_space) {
      send_error_ = r.error() == std::errc::no_such_device_or_address
                        ? make_error_code(std::errc::network_down)
                        : r.error();
      return;
    }
    reclaim();
    if (tx.free(tx.capacity()) == before) return;
  }
}

result<std::size_t> xdp_port::transmit(std::span<packet> packets) noexcept {
  reclaim();
  // What was taken when the interface went down goes first, when it is up again.
  if (send_error_) drive();
  if (send_error_) return fail(send_error_);
  xdp_tx_ring& tx = lanes_.front().socket.tx();
  std::size_t sent = 0;
  std::uint64_t bytes = 0;
  std::error_code error;
  while (sent < packets.size() && !error) {
    // No more are under way than the completion ring has room for.
    const auto wanted = static_cast<std::uint32_t>(
        std::min({packets.size() - sent, batch, std::size_t{tx.capacity() - sending_}}));
    const std::uint32_t n = std::min(tx.free(wanted), wanted);
    if (n == 0) break;
    std::uint32_t put = 0;
    for (; put < n; ++put) {
      const auto d = put_to_be_sent(packets[sent + put]);
      if (!d) {
        error = d.error();
        break;
      }
      tx.put(put, *d);
      bytes += d->length;
    }
    tx.commit(put);
    sending_ += put;
    sent += put;
  }
  drive();
  traffic_.sent(sent, bytes);
  if (sent < packets.size()) traffic_.refused();
  if (sent == 0 && error && error != std::errc::not_enough_memory) return fail(error);
  return sent;
}

// --- the rest ---

// Sleeps a little if packets come fast; whether there are some then.
bool xdp_port::moderate() noexcept {
  const std::uint64_t now = monotonic_clock::now_ns();
  const std::uint64_t packets =
      counted_.delivered - std::exchange(delivered_when_waited_, counted_.delivered);
  const std::uint64_t elapsed_ns = now - std::exchange(waited_at_ns_, now);
  if (moderation_.count() == 0 || packets * fast_gap_ns < elapsed_ns) return false;
  std::this_thread::sleep_for(moderation_);
  return anything_ready();
}

result<> xdp_port::wait(int timeout_ms, int also) noexcept {
  for (lane& l : lanes_) refill(l);
  if (timeout_ms != 0 && moderate()) return {};
  std::array<int, queues_max + 1> fds;
  fds.fill(-1);
  fds.back() = also;
  for (std::size_t i = 0; i < lanes_.size(); ++i) fds[i] = lanes_[i].socket.fd();
  const auto ready = wait_readable(fds, timeout_ms);
  if (!ready) return fail(ready.error());
  return {};
}

link_state xdp_port::state() noexcept {
  // Reading it makes poll(2) quiet again.
  for (lane& l : lanes_) static_cast<void>(l.socket.take_error());
  const auto now = net_interface::find(interface_.name);
  // Another one may have the name by now.
  if (!now || now->index != interface_.index) return link_state::gone;
  return now->up ? link_state::up : link_state::down;
}

void xdp_port::stop() noexcept {
  for (lane& l : lanes_) l.socket.stop_receiving();
  stopped_at_ns_ = monotonic_clock::now_ns();
}

bool xdp_port::drained() noexcept {
  return !anything_ready() && monotonic_clock::now_ns() - stopped_at_ns_ > drain_ns;
}

std::uint64_t xdp_port::copied() const noexcept { return value_of(copied_); }

port_statistics xdp_port::statistics() noexcept {
  port_statistics s = counted_;
  std::uint64_t waiting = 0;
  for (lane& l : lanes_) {
    const xdp_socket::counters c = l.socket.statistics();
    // A packet that found no empty frame is one of rx_dropped, where packets are copied; what else
    // is there is longer than a frame. Where the device fills frames itself it finds no frame many
    // times for no packet, and counts what it drops as the interface's.
    const std::uint64_t no_frame = std::min(c.rx_dropped, c.rx_no_chunk);
    s.dropped_full += c.rx_ring_full;
    s.dropped_memory += no_frame;
    s.dropped_malformed += c.rx_dropped - no_frame;
    waiting += l.socket.rx().ready(l.socket.rx().capacity());
  }
  const std::uint64_t dropped = s.dropped_full + s.dropped_memory + s.dropped_malformed;
  s.received = s.delivered + dropped + waiting;
  // A driver counts what its program's target did not take.
  traffic_.tell(s, mode() == xdp_mode::generic_copy ? 0 : dropped);
  return s;
}

}  // namespace forebay
