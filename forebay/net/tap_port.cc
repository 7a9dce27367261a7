#include "forebay/net/tap_port.h"

#include <algorithm>
#include <array>
#include <chrono>

#include "forebay/os/poll.h"

namespace forebay {
namespace {

constexpr std::size_t ethernet_overhead = 18;  // addresses, type, a VLAN tag

std::uint64_t utc_ns() noexcept {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(now).count());
}

}  // namespace

result<std::unique_ptr<tap_port>> tap_port::open(const std::string& name, packet_pool& pool) {
  auto tap = tap_interface::open(name);
  if (!tap) return fail(tap.error());
  const auto at = net_interface::find(tap->name());
  if (!at) return fail(at.error());
  if (pool.buffer_bytes() - pool.headroom() < at->mtu_bytes + ethernet_overhead) {
    return fail(errc::too_small);
  }
  return std::unique_ptr<tap_port>(new tap_port(std::move(*tap), pool, *at));
}

tap_port::tap_port(tap_interface tap, packet_pool& pool, const net_interface& at) noexcept
    : tap_(std::move(tap)), pool_(pool), index_(at.index), traffic_(at.index) {}

std::size_t tap_port::receive(std::span<packet> out) noexcept {
  std::size_t n = 0;
  while (n < out.size() && !stopped_) {
    if (!spare_) spare_ = pool_.try_allocate();
    if (!spare_) break;
    const std::size_t room = spare_->tailroom();
    std::byte* const to = spare_->put_unchecked(room);
    const iovec segment{to, room};
    const auto length = tap_.receive({&segment, 1});
    spare_->trim(length.value_or(0));
    if (!length || *length == 0) break;
    spare_->set_timestamp_ns(utc_ns());
    counted_.delivered_bytes += *length;
    out[n++] = std::move(spare_);
  }
  counted_.delivered += n;
  return n;
}

result<std::size_t> tap_port::transmit(std::span<packet> packets) noexcept {
  std::size_t sent = 0;
  for (packet& p : packets) {
    std::array<iovec, packet_buffer::fragments_max + 1> segments;
    std::size_t used = 0;
    p->for_each_segment([&](std::span<const std::byte> s) {
      segments[used++] = {const_cast<std::byte*>(s.data()), s.size()};  // it is only read
    });
    const auto r = tap_.send(std::span(segments).first(used));
    if (!r) {
      traffic_.refused();
      if (sent != 0 || r.error() == std::errc::resource_unavailable_try_again) break;
      // What the interface says of one that is down.
      return fail(r.error() == std::errc::io_error ? make_error_code(std::errc::network_down)
                                                   : r.error());
    }
    traffic_.sent(1, p->length());
    p.reset();
    ++sent;
  }
  return sent;
}

result<> tap_port::wait(int timeout_ms, int also) noexcept {
  const std::array<int, 2> fds{tap_.fd(), also};
  const auto ready = wait_readable(fds, timeout_ms);
  if (!ready) return fail(ready.error());
  return {};
}

link_state tap_port::state() noexcept {
  const auto now = net_interface::find(tap_.name());
  if (!now || now->index != index_) return link_state::gone;
  return now->up ? link_state::up : link_state::down;
}

port_statistics tap_port::statistics() noexcept {
  port_statistics s = counted_;
  s.received = s.delivered;
  traffic_.tell(s);
  return s;
}

}  // namespace forebay
