// The driver of a simulated network controller (nic.h), as a port.
//
//    receive():   | slot | slot | slot | …    each an empty packet, mapped, posted to the rx ring
//                     │ filled
//                     ├── flip (dma/flip.h): it goes up as it is, an empty one takes its place
//                     └── short: copied into another one, and posted again
//    transmit():  the packet's pieces are mapped and posted as a chain; the packet is the device's
//                 until the chain has ended
//
// Time passes in wait() alone, and with options::receive_ns for each packet in receive(): whoever
// uses the port is infinitely fast else. wait() never sleeps, and ends as one that does: with an
// interrupt, or when the time is over. So a program over this port is the same each time it runs.
//
// Packets are mapped without their headroom. Those that are received lie in buffers of the pool, so
// a pool whose buffers are page frames' size makes the flip one of pages. A frame for which there
// is no empty packet is lost, and its slot posted again.
//
// Thread-safety: all of it, the device and its clock belong to one thread at a time; packets may be
// released by any.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "forebay/dma/flip.h"
#include "forebay/dma/sg_segments.h"
#include "forebay/net/packet_pool.h"
#include "forebay/net/port.h"
#include "sim/nic.h"

namespace forebay {

// An empty packet's memory: what can be put into it.
template <>
struct dma_memory<packet> {
  static std::span<std::byte> bytes(const packet& p) noexcept {
    return {p->writable_unchecked(), p->tailroom()};
  }
};

class nic_port final : public port {
 public:
  struct options {
    std::string name = "nic0";
    std::uint32_t rx_entries = 64;  // powers of two
    std::uint32_t tx_entries = 64;
    std::size_t copybreak_bytes = 0;  // frames up to that are copied, longer ones flipped
    std::uint64_t receive_ns = 0;     // that the CPU needs for a packet
    std::uint64_t started_at_ns = 1'700'000'000'000'000'000;  // since 1970, for stamps
    // Looks whether anybody but the device has written to what is the device's: by the check
    // sequences of each frame when it is posted and read, and when it is written and taken.
    bool check_ownership = true;
  };
  // How a port has worked, beside its port_statistics.
  struct counters {
    std::uint64_t flipped = 0;
    std::uint64_t copied = 0;
    std::uint64_t tx_faults = 0;         // frames that the device could not read
    std::uint64_t tx_lost_in_reset = 0;  // frames that it had not read yet
    std::uint64_t ownership_violations = 0;

    friend bool operator==(const counters&, const counters&) = default;
  };

  // Starts the device, with rings in `memory`. All must outlive the port, and the pool its packets.
  // Errors: ENOBUFS if the pool has not a packet for each slot; those of coherent_buffer, the
  // domain, descriptor_driver and simulated_nic::start().
  static result<std::unique_ptr<nic_port>> open(simulated_nic& nic, arena& memory,
                                                packet_pool& pool, const options& opts);
  // Resets the device: what it has is released.
  ~nic_port() override;

  // Resets the device while it works, and starts it anew. Frames that it had are lost; those that
  // are sent are released. Errors: as open(), the device stands still then.
  result<> reset() noexcept;

  const std::string& name() const noexcept override { return options_.name; }
  pcapng::link_type link() const noexcept override { return pcapng::link_type::ethernet; }
  std::size_t receive(std::span<packet> out) noexcept override;
  // Errors: ENETDOWN without a carrier; EMSGSIZE for a packet that is empty, too long, or in too
  // many pieces; those of the domain.
  result<std::size_t> transmit(std::span<packet> packets) noexcept override;
  // `also` is not waited for.
  result<> wait(int timeout_ms, int also = -1) noexcept override;
  link_state state() noexcept override;
  void stop() noexcept override { nic_.enable_receiving(false); }
  bool drained() noexcept override;
  port_statistics statistics() noexcept override;

  counters work() const noexcept;
  // Packets that are the device's to send.
  std::size_t sending() const noexcept { return tx_slots_.size(); }

 private:
  struct tx_slot {
    packet held;
    std::array<dma_segment, simulated_nic::pieces_max> segments;
    std::size_t segment_count = 0;
  };

  nic_port(simulated_nic& nic, packet_pool& pool, const options& opts, coherent_buffer rx,
           coherent_buffer tx)
      : nic_(nic),
        pool_(pool),
        options_(opts),
        rx_memory_(std::move(rx)),
        tx_memory_(std::move(tx)) {}

  result<> start();
  result<> fill_slots();
  void post_slot(std::uint64_t number) noexcept;
  bool take_frame(const ended_chain& e, packet& out) noexcept;
  packet copy_out(device_owned<packet>& slot, std::uint32_t length) noexcept;
  packet flip_out(device_owned<packet>& slot, std::uint32_t length) noexcept;
  result<> post(packet& p) noexcept;
  void end_sent(const ended_chain& e) noexcept;
  void release(tx_slot& s) noexcept;
  void reap_sent() noexcept;

  simulated_nic& nic_;
  packet_pool& pool_;
  const options options_;
  const coherent_buffer rx_memory_;
  const coherent_buffer tx_memory_;
  std::optional<descriptor_driver> rx_;  // both or none
  std::optional<descriptor_driver> tx_;
  std::vector<device_owned<packet>> slots_;
  std::deque<tx_slot> tx_slots_;  // the oldest first
  std::uint64_t rx_lost_in_reset_ = 0;
  port_statistics counted_;
  counters work_;
};

}  // namespace forebay
