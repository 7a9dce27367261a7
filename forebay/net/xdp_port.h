// A port on an interface by AF_XDP sockets (os/xdp_socket.h), one for each receive queue: packets
// in the memory of a pool, past the kernel's stack and without a copy of ours.
//
//               pool ──┐ empty packet                     packet ┌──> pool, or whoever keeps it
//                      v                                         │
//    frames_:     in fill ring ──> kernel ──> in rx ring ──> receive()
//
//                 completed    <── kernel <── in tx ring <── transmit()
//                      │
//                      └──> released
//
// The UMEM is the pool's arena (umem_domain.h), so a frame is a buffer of the pool, and a packet
// that is received is an ordinary packet of it, with headroom before it and tailroom behind; no
// descriptor is made for it. Who keeps one keeps it: another empty one takes its place in the fill
// ring (page flipping), and the port goes on as long as the pool has any. A packet that lies in one
// frame of the UMEM is sent from where it lies, be it received here, made, a clone or another
// port's; any other one is copied once.
//
// What is named in a ring is mapped in the domain, from_device or to_device, and frames_ has its
// packet; otherwise it is neither. An entry of frames_ belongs to who owns the frame: to the
// receiving thread while it is to be received into, to the sending one while it is being sent.
//
// All queues are read by one thread, in turn, and what is sent goes by the first one's socket. The
// machine does not see what the port receives; what the filter does not choose and queues that are
// left out remain the machine's.
//
// Thread-safety: as port; transmit() may be another thread than receive(), packets may be released
// by any.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "forebay/net/interface_traffic.h"
#include "forebay/net/packet_pool.h"
#include "forebay/net/port.h"
#include "forebay/net/umem_domain.h"
#include "forebay/os/xdp_socket.h"

namespace forebay {

class xdp_port final : public port {
 public:
  static constexpr std::uint32_t queues_max = 15;  // that one thread can wait for

  struct options {
    std::uint32_t queue = 0;   // the first one
    std::uint32_t queues = 0;  // from there on; 0: all that there are, up to queues_max
    // Packets that wait to be received into, and as many that wait to be received, of each queue;
    // and to be sent. Powers of two.
    std::uint32_t receive_frames = 2048;
    std::uint32_t transmit_frames = 2048;
    xdp_mode best = xdp_mode::native_zero_copy;  // what to begin with
    xdp_mode worst = xdp_mode::generic_copy;     // what to be content with
    // Interrupt moderation, as network cards have it: where packets come faster than one in 10
    // us, wait() first sleeps so long without asking for a sign of the kernel's, which would cost
    // the sender and us more than the packets do. 0: never. As timers go, it may be 50 us more.
    std::uint32_t moderation_us = 20;
    bool promiscuous = true;
    // Which packets are taken from the machine, as packet_filter::for_packets() compiles it for
    // Ethernet; its snap length does not matter. None: all.
    std::span<const filter_instruction> filter = {};
    dma_check_options checks = {};
  };

  // Bytes of a buffer for the packets of an interface with this MTU: 2048 or 4096. errc::too_large
  // if no frame has room for them.
  static result<std::size_t> buffer_bytes_for(std::uint32_t mtu_bytes) noexcept;
  // Options for a pool that a port can use, with the headroom that a new packet has anyway.
  static packet_pool::options pool_options(std::string name, std::size_t buffer_bytes,
                                           std::size_t count);

  // The pool's buffers must be as pool_options() says, and there should be as many as the frames of
  // all queues and both directions together, and those that are in other hands. The arena is the
  // pool's; both must outlive the port. Errors: EINVAL if they do not fit, or for a queue that is
  // not there; errc::too_large as buffer_bytes_for(); ENOTSUP if the interface is not of Ethernet's
  // kind; those of xdp_socket::open().
  static result<std::unique_ptr<xdp_port>> open(const net_interface& at, const options& opts,
                                                arena& memory, packet_pool& pool);
  // Waits for nothing: what was to be sent and has not been is not.
  ~xdp_port() override;

  const std::string& name() const noexcept override { return interface_.name; }
  pcapng::link_type link() const noexcept override { return pcapng::link_type::ethernet; }
  // The stamp of a packet is when it is handed out.
  std::size_t receive(std::span<packet> out) noexcept override;
  // Errors of the first packet: EMSGSIZE if it is longer than the interface's, or has no Ethernet
  // header; ENETDOWN; ENOMEM if it has to be copied and there is no buffer.
  result<std::size_t> transmit(std::span<packet> packets) noexcept override;
  result<> wait(int timeout_ms, int also = -1) noexcept override;
  link_state state() noexcept override;
  void stop() noexcept override;
  bool drained() noexcept override;
  port_statistics statistics() noexcept override;

  xdp_mode mode() const noexcept { return lanes_.front().socket.mode(); }
  std::uint32_t queues() const noexcept { return static_cast<std::uint32_t>(lanes_.size()); }
  // What it was to have and has not: a sentence each, without a full stop.
  std::span<const std::string> remarks() const noexcept { return remarks_; }
  // Packets that were copied to be sent.
  std::uint64_t copied() const noexcept;

 private:
  static constexpr std::size_t batch = 64;

  struct lane {
    xdp_socket socket;
    std::uint32_t offered = 0;  // frames that the kernel has to receive into
  };

  xdp_port(const net_interface& at, const options& opts, packet_pool& pool,
           std::unique_ptr<umem_domain> domain, std::vector<lane> lanes,
           std::unique_ptr<packet_buffer*[]> frames);

  static result<std::vector<lane>> open_lanes(const net_interface& at,
                                              const xdp_socket::options& opts);

  std::uint64_t frame_of(std::uint64_t address) const noexcept { return address / frame_bytes_; }
  bool moderate() noexcept;
  void refill(lane& of) noexcept;
  std::uint32_t offer(lane& to, std::span<packet> empty) noexcept;
  std::size_t receive_from(lane& l, std::span<packet> out) noexcept;
  bool anything_ready() noexcept;
  packet take(const xdp_descriptor& d) noexcept;
  void reclaim() noexcept;
  result<xdp_descriptor> put_to_be_sent(packet& p) noexcept;
  result<xdp_descriptor> copy_to_be_sent(packet& p) noexcept;
  void drive() noexcept;
  void take_back_all() noexcept;

  const net_interface interface_;
  packet_pool& pool_;
  const std::uint32_t frame_bytes_;
  const std::size_t frame_count_;
  const std::size_t length_max_;  // of a packet
  const std::unique_ptr<umem_domain> domain_;
  // A queue each; never empty but in the destructor. The rings of sending that are used are the
  // first one's, and belong to the sending thread, the rest to the receiving one.
  std::vector<lane> lanes_;
  std::vector<std::string> remarks_;
  // By the frame's number: the packet that is the kernel's. Null: it is not.
  const std::unique_ptr<packet_buffer*[]> frames_;

  // The receiving thread's.
  std::size_t next_lane_ = 0;  // where receive() begins
  port_statistics counted_;
  std::uint64_t stopped_at_ns_ = 0;  // 0: not
  const std::chrono::microseconds moderation_;
  std::uint64_t waited_at_ns_ = 0;  // the last call of wait()
  std::uint64_t delivered_when_waited_ = 0;

  // The sending thread's.
  std::uint32_t sending_ = 0;   // frames in the tx ring, and beyond, to the completion ring
  std::error_code send_error_;  // of the last attempt to drive the device
  interface_traffic traffic_;
  std::atomic<std::uint64_t> copied_{0};
};

}  // namespace forebay
