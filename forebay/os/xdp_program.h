// The program that an interface runs for each packet (BPF, type XDP) so that an AF_XDP socket gets
// it: a table of sockets by receive queue, and an instruction to hand the packet to the one of its
// queue. A queue without a socket passes its packets to the machine, as if nothing were there.
//
// It is attached by a link whose descriptor is here: it goes with the object, or with the process,
// however that ends.
//
// One thread at a time.
#pragma once

#include <cstdint>
#include <span>

#include "forebay/os/fd.h"
#include "forebay/os/net_interface.h"
#include "forebay/os/packet_socket.h"

namespace forebay {

enum class xdp_hook : std::uint8_t {
  native,   // in the driver
  generic,  // in the stack, after the driver has made a packet of the kernel's: any interface
};

class xdp_program {
 public:
  // Attaches it to the interface for the queues 0 to `last`. Without a filter it takes every
  // packet. Errors: those of translate_filter(); EPERM without CAP_NET_ADMIN and CAP_BPF; EBUSY or
  // EEXIST if the interface has a program; EOPNOTSUPP, or the driver's own, if it has no such hook,
  // or cannot use it as it is configured (a large MTU, usually).
  static result<xdp_program> attach(const net_interface& to, xdp_hook at, std::uint32_t last,
                                    std::span<const filter_instruction> filter = {});

  // From now on the packets of the queue go to the socket, which has been bound to it.
  result<> add(std::uint32_t queue, int socket) noexcept;
  // From now on they go to the machine again, but for those that are on their way.
  void remove(std::uint32_t queue) noexcept;

 private:
  xdp_program(unique_fd sockets, unique_fd link) noexcept
      : sockets_(std::move(sockets)), link_(std::move(link)) {}

  unique_fd sockets_;
  unique_fd link_;
};

}  // namespace forebay
