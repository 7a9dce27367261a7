// A port on a TAP interface (os/tap.h): the other side is the kernel's network stack.
//
// The kernel has no ring here, each packet is a system call and a copy, to a buffer of a pool.
// While the pool has no buffer the packets wait in the interface's queue, and the kernel drops
// those that it has no room for there.
//
// Thread-safety: as port; transmit() may be another thread than receive().
#pragma once

#include <memory>

#include "forebay/net/interface_traffic.h"
#include "forebay/net/packet_pool.h"
#include "forebay/net/port.h"
#include "forebay/os/net_interface.h"
#include "forebay/os/tap.h"

namespace forebay {

class tap_port final : public port {
 public:
  // Errors: as tap_interface::open(); errc::too_small if the pool's buffers do not have room for
  // the interface's largest packet.
  static result<std::unique_ptr<tap_port>> open(const std::string& name, packet_pool& pool);

  const std::string& name() const noexcept override { return tap_.name(); }
  pcapng::link_type link() const noexcept override { return pcapng::link_type::ethernet; }
  std::size_t receive(std::span<packet> out) noexcept override;
  result<std::size_t> transmit(std::span<packet> packets) noexcept override;
  result<> wait(int timeout_ms, int also = -1) noexcept override;
  link_state state() noexcept override;
  void stop() noexcept override { stopped_ = true; }
  bool drained() noexcept override { return stopped_; }
  port_statistics statistics() noexcept override;

 private:
  tap_port(tap_interface tap, packet_pool& pool, const net_interface& at) noexcept;

  tap_interface tap_;
  packet_pool& pool_;
  const int index_;
  bool stopped_ = false;
  packet spare_;  // a buffer for the next packet
  port_statistics counted_;
  interface_traffic traffic_;
};

}  // namespace forebay
