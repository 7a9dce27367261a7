// A simulated Ethernet cable between two ends, with what may happen to frames on it.
//
//    end a ── send ──> lost? corrupted? held up? ── latency ──> arrive at end b       and back
//
// Frames have their check sequence (FCS) with them, so that an end sees when one was corrupted.
// Chance is a generator with a seed: the same frames have the same fate each time.
//
// In simulated time; not for more than one thread at a time.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "sim/simulated_clock.h"

namespace forebay {

struct wire_frame {
  std::vector<std::byte> data;  // from the link header on, without the check sequence
  std::uint32_t check = 0;
};

// The check sequence: CRC-32 of IEEE 802.3. `before`: that of the bytes in front of these.
std::uint32_t frame_check(std::span<const std::byte> bytes, std::uint32_t before = 0) noexcept;

class wire_end {
 public:
  wire_end(const wire_end&) = delete;
  wire_end& operator=(const wire_end&) = delete;

  // The last bit of a frame has come.
  virtual void arrive(wire_frame&& f) = 0;
  // The other end can be reached, or no longer.
  virtual void set_carrier(bool up) = 0;

 protected:
  wire_end() = default;
  ~wire_end() = default;
};

class simulated_wire {
 public:
  struct options {
    std::uint64_t latency_ns = 500;
    double loss = 0;  // probabilities, of a frame
    double corruption = 0;
    double reordering = 0;  // it comes later, by
    std::uint64_t reorder_ns = 20'000;
    std::uint32_t seed = 1;
  };
  struct statistics {
    std::uint64_t carried = 0;  // to the other end, as corrupted too
    std::uint64_t lost = 0;
    std::uint64_t corrupted = 0;
    std::uint64_t reordered = 0;
    std::uint64_t cut = 0;  // by disconnect(): they were on the wire

    friend bool operator==(const statistics&, const statistics&) = default;
  };

  // The clock must outlive the wire, and the wire what happens on the clock.
  simulated_wire(simulated_clock& clock, const options& opts)
      : clock_(clock), options_(opts), random_(opts.seed) {}
  simulated_wire(const simulated_wire&) = delete;
  simulated_wire& operator=(const simulated_wire&) = delete;

  // The ends must outlive it, or be disconnected.
  void connect(wire_end& a, wire_end& b);
  // What is on the wire is lost.
  void disconnect();

  // The last bit of a frame leaves an end now. Without another end it is lost.
  void send(const wire_end& from, wire_frame&& f);

  const statistics& stats() const noexcept { return stats_; }

 private:
  bool happens(double probability);

  simulated_clock& clock_;
  const options options_;
  std::mt19937 random_;
  std::array<wire_end*, 2> ends_{};
  std::uint64_t connection_ = 0;  // frames of another one do not arrive
  statistics stats_;
};

}  // namespace forebay
