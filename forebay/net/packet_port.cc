#include "forebay/net/packet_port.h"

#include <algorithm>

#include "forebay/os/clock.h"

namespace forebay {
namespace {

// After stop(), for packets that the kernel has counted and that are in no block yet.
constexpr std::uint64_t drain_limit_ns = 2'000'000'000;

}  // namespace

result<std::unique_ptr<packet_port>> packet_port::open(const net_interface& at,
                                                       const packet_socket::options& opts,
                                                       packet_pool& descriptors) {
  pcapng::link_type link{};
  switch (at.kind) {
    case link_kind::ethernet:
      link = pcapng::link_type::ethernet;
      break;
    case link_kind::raw_ip:
      link = pcapng::link_type::raw_ip;
      break;
    case link_kind::radiotap:
      link = pcapng::link_type::radiotap;
      break;
    case link_kind::other:
      return fail(ENOTSUP);
  }
  auto socket = packet_socket::open(at, opts);
  if (!socket) return fail(socket.error());
  return std::unique_ptr<packet_port>(new packet_port(at, link, std::move(*socket), descriptors));
}

packet_port::packet_port(const net_interface& at, pcapng::link_type link, packet_socket socket,
                         packet_pool& descriptors)
    : interface_(at),
      link_(link),
      socket_(std::move(socket)),
      descriptors_(descriptors),
      blocks_(std::make_unique<ring_block[]>(socket_.blocks())),
      traffic_(at.index) {
  for (std::uint32_t i = 0; i < socket_.blocks(); ++i) {
    blocks_[i].socket = &socket_;
    blocks_[i].number = i;
  }
}

// Takes the next filled block: a reference for each of its packets, and one of our own.
bool packet_port::next_block() noexcept {
  const auto taken = socket_.take_block();
  if (!taken) return false;
  frames_ = socket_.frames_of(*taken);
  current_ = &blocks_[*taken];
  current_->start(frames_.left() + 1);
  return true;
}

void packet_port::end_block() noexcept { std::exchange(current_, nullptr)->put(); }

std::size_t packet_port::receive(std::span<packet> out) noexcept {
  std::size_t n = 0;
  received_frame f;
  while (n < out.size()) {
    if (current_ == nullptr && !next_block()) break;
    if (!frames_.next(f)) {
      end_block();
      continue;
    }
    ++walked_;
    auto made = descriptors_.attach(*current_, f.data, 0, f.data.size());
    if (!made) {
      ++counted_.dropped_memory;
      current_->put();
      continue;
    }
    packet& p = out[n++];
    p = std::move(*made);
    p->set_timestamp_ns(f.stamp_ns);
    p->set_wire_length(f.wire_bytes);
    counted_.delivered_bytes += f.data.size();
  }
  counted_.delivered += n;
  return n;
}

result<std::size_t> packet_port::transmit(std::span<packet> packets) noexcept {
  constexpr std::size_t batch = 64;
  constexpr std::size_t segments_max = batch * 4;
  std::size_t sent = 0;
  while (sent < packets.size()) {
    std::array<iovec, segments_max> segments;
    std::array<std::span<iovec>, batch> frames;
    std::size_t used = 0;
    std::size_t n = 0;
    for (; n < batch && sent + n < packets.size(); ++n) {
      const packet_buffer& p = *packets[sent + n];
      if (used + p.segment_count() > segments_max) break;
      const std::size_t first = used;
      p.for_each_segment([&](std::span<const std::byte> s) {
        segments[used++] = {const_cast<std::byte*>(s.data()), s.size()};  // it is only read
      });
      frames[n] = std::span(segments).subspan(first, used - first);
    }
    const auto taken = socket_.transmit(std::span(frames).first(n));
    if (!taken && sent == 0) return fail(taken.error());
    const std::size_t gone = taken.value_or(0);
    for (std::size_t i = 0; i < gone; ++i) {
      traffic_.sent(1, packets[sent + i]->length());
      packets[sent + i].reset();
    }
    sent += gone;
    if (gone < n) {
      traffic_.refused();
      break;
    }
  }
  return sent;
}

result<> packet_port::wait(int timeout_ms, int also) noexcept {
  return socket_.wait(timeout_ms, also);
}

link_state packet_port::state() noexcept {
  // Reading it makes poll(2) quiet again.
  static_cast<void>(socket_.take_error());
  const auto now = net_interface::find(interface_.name);
  // Another one may have the name by now.
  if (!now || now->index != interface_.index) return link_state::gone;
  return now->up ? link_state::up : link_state::down;
}

void packet_port::stop() noexcept {
  socket_.stop_receiving();
  stopped_at_ns_ = monotonic_clock::now_ns();
}

bool packet_port::drained() noexcept {
  if (current_ != nullptr) return false;
  const packet_socket::counters c = socket_.statistics();
  return walked_ + c.dropped >= c.received ||
         monotonic_clock::now_ns() - stopped_at_ns_ > drain_limit_ns;
}

port_statistics packet_port::statistics() noexcept {
  port_statistics s = counted_;
  const packet_socket::counters c = socket_.statistics();
  s.received = c.received;
  s.dropped_full = c.dropped;
  traffic_.tell(s);
  return s;
}

}  // namespace forebay
