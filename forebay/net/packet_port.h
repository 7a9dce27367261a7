// A port on an interface of the machine, by a packet socket (os/packet_socket.h).
//
//    block of the ring: | packet | packet | packet | …       the kernel's memory, mapped
//                          ^        ^        ^
//                       packet   packet   packet             descriptors: no byte is copied
//
// Received packets are descriptors on the socket's ring; a block is the kernel's again when the
// last of its packets has been released. Who keeps packets for long copies them, or the ring runs
// full and the kernel drops what comes. They have no headroom or tailroom.
//
// Thread-safety: as port; packets may be released by any thread. transmit() may be another thread
// than receive().
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "forebay/net/interface_traffic.h"
#include "forebay/net/packet_filter.h"
#include "forebay/net/packet_pool.h"
#include "forebay/net/port.h"
#include "forebay/os/packet_socket.h"

namespace forebay {

class packet_port final : public port {
 public:
  // Its descriptors are from `descriptors`, which must outlive it, as it must its packets. Errors:
  // as packet_socket::open(); ENOTSUP for an interface of a link type that nobody knows here.
  static result<std::unique_ptr<packet_port>> open(const net_interface& at,
                                                   const packet_socket::options& opts,
                                                   packet_pool& descriptors);

  const std::string& name() const noexcept override { return interface_.name; }
  pcapng::link_type link() const noexcept override { return link_; }
  std::size_t receive(std::span<packet> out) noexcept override;
  result<std::size_t> transmit(std::span<packet> packets) noexcept override;
  result<> wait(int timeout_ms, int also = -1) noexcept override;
  link_state state() noexcept override;
  void stop() noexcept override;
  bool drained() noexcept override;
  port_statistics statistics() noexcept override;

 private:
  // A block of the ring while packets, or receive(), hold it.
  struct ring_block : external_block {
    ring_block() noexcept : external_block(&give_back) {}
    static void give_back(external_block& b) noexcept {
      auto& self = static_cast<ring_block&>(b);
      self.socket->give_back(self.number);
    }
    packet_socket* socket = nullptr;
    std::uint32_t number = 0;
  };

  packet_port(const net_interface& at, pcapng::link_type link, packet_socket socket,
              packet_pool& descriptors);

  bool next_block() noexcept;
  void end_block() noexcept;

  net_interface interface_;
  const pcapng::link_type link_;
  packet_socket socket_;
  packet_pool& descriptors_;
  const std::unique_ptr<ring_block[]> blocks_;
  ring_block* current_ = nullptr;  // the block that is being given out; one reference is ours
  packet_socket::walk frames_;     // in it
  port_statistics counted_;
  std::uint64_t walked_ = 0;         // frames that receive() has met
  std::uint64_t stopped_at_ns_ = 0;  // 0: not
  interface_traffic traffic_;
};

}  // namespace forebay
