// A simulated network controller, as drivers see real ones: descriptor rings in the host's memory,
// a DMA engine for each, FIFOs on the chip, doorbells and coalesced interrupts.
//
//                host's memory                       chip                               wire
//    ┌ rx ring ┐  ┌ buffers ┐   write      ┌ rx FIFO: bounded ┐   check sequence
//    │ d d d d │  │ │ │ │ │ │ <── DMA <─── │ frame │ frame │  │ <─────────────── arrive()
//    └─────────┘  └─────────┘              └──────────────────┘   no room: lost, counted
//    ┌ tx ring ┐  ┌ buffers ┐   read       ┌ tx FIFO: bounded ┐   at the line rate
//    │ d d d d │  │ │ │ │ │ │ ───> DMA ──> │ frame │ frame │  │ ───────────────> simulated_wire
//    └─────────┘  └─────────┘              └──────────────────┘
//
// The rings are descriptor rings (ring/descriptor_ring.h): the driver posts buffers and rings the
// doorbell, the device ends them in order by the owner bit and a status. A received frame takes one
// buffer; a frame to be sent is a chain of any pieces. Without a buffer received frames wait in the
// FIFO, until that is full.
//
// The DMA engine goes through the device's domain, and reaches only what is mapped there for its
// direction. A descriptor that leads elsewhere, also if only in part, is a fault: counted, ended
// with EFAULT, and nothing is written. In a domain with checks (dma/debug.h) what the engine does
// while the CPU has the memory is found as well.
//
// In simulated time: each frame takes its time on the wire and in the DMA engine. An interrupt
// comes when so many descriptors have ended, or some time after the first of them. Not for more
// than one thread at a time.
#pragma once

#include <array>
#include <deque>
#include <optional>

#include "forebay/dma/coherent_buffer.h"
#include "forebay/ring/descriptor_ring.h"
#include "sim/simulated_domain.h"
#include "sim/wire.h"

namespace forebay {

struct nic_statistics {
  std::uint64_t rx_frames = 0;  // that came whole, with those that were lost then
  std::uint64_t rx_bytes = 0;
  std::uint64_t rx_bad_check = 0;  // these three are no part of rx_frames
  std::uint64_t rx_link_down = 0;
  std::uint64_t rx_disabled = 0;
  std::uint64_t rx_fifo_full = 0;      // lost
  std::uint64_t rx_lost_in_reset = 0;  // in the FIFO
  std::uint64_t rx_too_long = 0;       // for the buffer
  std::uint64_t rx_waits = 0;          // times that the engine found no buffer
  std::uint64_t rx_fifo_bytes_max = 0;
  std::uint64_t tx_frames = 0;  // that have left
  std::uint64_t tx_bytes = 0;
  std::uint64_t tx_link_down = 0;      // lost
  std::uint64_t tx_lost_in_reset = 0;  // in the FIFO
  std::uint64_t tx_too_long = 0;       // or without a byte; ended with EMSGSIZE
  std::uint64_t dma_faults = 0;
  std::uint64_t ring_faults = 0;  // rings that say what cannot be: the device stands until a reset
  std::uint64_t doorbells = 0;
  std::uint64_t interrupts = 0;
  std::uint64_t resets = 0;

  friend bool operator==(const nic_statistics&, const nic_statistics&) = default;
};

class simulated_nic final : public wire_end {
 public:
  static constexpr std::size_t frame_bytes_max = 9018;  // a jumbo frame, without its check sequence
  static constexpr std::size_t pieces_max = 32;         // of a frame that is sent

  struct options {
    std::uint64_t bits_per_second = 10'000'000'000;
    std::size_t rx_fifo_bytes = std::size_t{64} << 10;
    std::size_t tx_fifo_bytes = std::size_t{32} << 10;
    std::uint64_t dma_bytes_per_second = 8'000'000'000;
    std::uint64_t dma_latency_ns = 200;   // of each frame
    unsigned interrupt_descriptors = 32;  // that have ended, or
    std::uint64_t interrupt_ns = 20'000;  // since the first of them
  };

  // The clock, the domain and the wire, if there is one, must outlive it and what happens on the
  // clock.
  simulated_nic(simulated_clock& clock, simulated_domain& domain, const options& opts,
                simulated_wire* wire = nullptr)
      : clock_(clock), domain_(domain), options_(opts), wire_(wire) {}

  // ---- The driver's side ----

  // Begins to work on two rings that the driver has made, in memory that is mapped in the domain.
  // Errors: EBUSY if it does already; EFAULT if it does not reach them; those of
  // descriptor_device::attach().
  result<> start(const coherent_buffer& rx_ring, const coherent_buffer& tx_ring);
  // Ends at once whatever it does, and forgets what is in its FIFOs and its rings: nothing of the
  // host's memory is touched afterwards.
  void reset();
  // Whether frames that come are taken.
  void enable_receiving(bool enabled) noexcept { receiving_ = enabled; }

  void ring_rx_doorbell();
  void ring_tx_doorbell();

  // Whether there was an interrupt since the last call.
  bool take_interrupt() noexcept { return std::exchange(interrupt_, false); }

  bool link_up() const noexcept { return carrier_ && !removed_; }
  // It has been pulled out.
  bool removed() const noexcept { return removed_; }
  const nic_statistics& stats() const noexcept { return stats_; }
  simulated_clock& clock() const noexcept { return clock_; }
  simulated_domain& domain() const noexcept { return domain_; }

  // ---- For checks of who touches what ----

  // The driver says what the next frames it has posted are like, and is told what the next ones
  // were like when they were written: by their check sequences, in order. A frame that was posted
  // as another one than is sent was changed while it was the device's.
  void keep_checks() noexcept { keeps_checks_ = true; }
  void expect_to_send(std::uint32_t check) { to_send_.push_back(check); }
  std::optional<std::uint32_t> next_written() noexcept;
  std::uint64_t changed_before_sent() const noexcept { return changed_before_sent_; }

  // ---- The world's side ----

  void arrive(wire_frame&& f) override;
  void set_carrier(bool up) override;
  // Pulls it out of the machine.
  void remove();

 private:
  using ring = std::optional<descriptor_device>;

  std::uint64_t dma_ns(std::size_t bytes) const noexcept {
    return options_.dma_latency_ns + bytes * 1'000'000'000 / options_.dma_bytes_per_second;
  }
  std::uint64_t wire_ns(std::size_t bytes) const noexcept;
  template <typename F>
  void after(std::uint64_t length_ns, F then);
  std::span<const descriptor> take(ring& from);
  void end(ring& of, std::uint32_t length, int error);
  void raise_interrupt() noexcept;

  void pump_rx();
  void write_frame(const descriptor& to);
  void pump_tx();
  void read_frame();
  void pump_line();

  simulated_clock& clock_;
  simulated_domain& domain_;
  const options options_;
  simulated_wire* const wire_;
  std::uint64_t life_ = 0;  // from one reset to the next: events of another one do nothing
  bool receiving_ = true;
  bool carrier_ = false;
  bool removed_ = false;

  ring rx_ring_;  // both or none
  ring tx_ring_;
  std::deque<wire_frame> rx_fifo_;  // the first one until it is written
  std::size_t rx_bytes_ = 0;        // in it
  bool rx_busy_ = false;
  bool rx_waits_ = false;           // for a buffer
  std::deque<wire_frame> tx_fifo_;  // the first one until it has left
  std::size_t tx_bytes_ = 0;        // in it, or promised to the frame that is being read
  bool tx_busy_ = false;
  bool line_busy_ = false;
  std::array<descriptor, pieces_max>
      pieces_;  // of the next frame to be read, the first piece_count_
  std::size_t piece_count_ = 0;

  unsigned ended_ = 0;  // descriptors since the last interrupt
  bool interrupt_ = false;

  bool keeps_checks_ = false;
  std::deque<std::uint32_t> to_send_;
  std::deque<std::uint32_t> written_;
  std::uint64_t changed_before_sent_ = 0;
  nic_statistics stats_;
};

}  // namespace forebay
