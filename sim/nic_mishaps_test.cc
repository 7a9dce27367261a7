// One thread: not in the thread sanitizer's tree.
// Two simulated controllers on a bad wire, through any sequence of mishaps: cables are pulled,
// devices reset in flight, packets kept for long. Whatever happens, every frame is accounted for,
// what arrives is right, and everything is back in the end.
//
// FOREBAY_STRESS: more seeds, and longer.

#include <gtest/gtest.h>

#include <cstdlib>
#include <random>

#include "sim/test_nic.h"

namespace forebay {
namespace {

struct end_of_run {
  nic_statistics a;
  nic_statistics b;
  simulated_wire::statistics wire;
  nic_port::counters work_a;
  nic_port::counters work_b;

  bool operator==(const end_of_run&) const = default;
};

class mishaps {
 public:
  mishaps(std::uint32_t seed, memory_view view)
      : random_(seed),
        wire_(clock_, {.loss = 0.02, .corruption = 0.02, .reordering = 0.05, .seed = seed}),
        a_(clock_, &wire_, port_options(seed), small(), 64, view),
        b_(clock_, &wire_, port_options(seed / 2), small(), 64, view) {
    wire_.connect(a_.nic, b_.nic);
  }

  end_of_run run(unsigned steps) {
    for (unsigned i = 0; i < steps; ++i) step();
    settle();
    check();
    return {a_.nic.stats(), b_.nic.stats(), wire_.stats(), a_.port->work(), b_.port->work()};
  }

 private:
  static nic_port::options port_options(std::uint32_t seed) {
    return {.rx_entries = 16, .tx_entries = 16, .copybreak_bytes = seed % 2 != 0 ? 300u : 0u};
  }
  static simulated_nic::options small() {
    return {.rx_fifo_bytes = 8192, .tx_fifo_bytes = 4096, .interrupt_descriptors = 4};
  }

  std::uint32_t below(std::uint32_t n) { return random_() % n; }
  machine& either() { return below(2) == 0 ? a_ : b_; }

  void step() {
    switch (below(12)) {
      case 0:
      case 1:
      case 2:
      case 3:
        return send(either());
      case 4:
      case 5:
      case 6:
        return take(either());
      case 7:
        held_.resize(below(static_cast<std::uint32_t>(held_.size()) + 1));
        return;
      case 8:
      case 9:
        return clock_.run_until(clock_.now_ns() + below(50'000));
      case 10:
        if (below(4) != 0) return;
        connected_ = !connected_;
        return connected_ ? wire_.connect(a_.nic, b_.nic) : wire_.disconnect();
      default:
        if (below(4) == 0) {
          EXPECT_TRUE(either().port->reset());
        }
    }
  }

  void send(machine& from) {
    std::array<packet, 8> burst;
    std::size_t n = 0;
    for (const std::size_t wanted = 1 + below(8); n < wanted; ++n) {
      burst[n] = from.packet_memory->try_allocate();
      if (!burst[n]) break;
      const std::vector<std::byte> bytes = bytes_of(number_, length_of(number_));
      std::ranges::copy(bytes, burst[n]->put_unchecked(bytes.size()));
      ++number_;
    }
    const auto sent = from.port->transmit(std::span(burst).first(n));
    if (sent) {
      given_ += *sent;
    } else {
      EXPECT_EQ(sent.error().value(), ENETDOWN);
    }
  }

  void take(machine& to) {
    std::array<packet, 16> burst;
    const std::size_t n = to.port->receive(burst);
    for (std::size_t i = 0; i < n; ++i) {
      EXPECT_LT(number_of(*burst[i]), number_);
      if (below(3) == 0) held_.push_back(std::move(burst[i]));
    }
  }

  void settle() {
    held_.clear();
    for (machine* m : {&a_, &b_, &a_, &b_}) receive(*m);
    EXPECT_TRUE(clock_.idle());
  }

  void check() {
    const nic_statistics& a = a_.nic.stats();
    const nic_statistics& b = b_.nic.stats();
    const simulated_wire::statistics& w = wire_.stats();
    EXPECT_EQ(a.tx_frames + b.tx_frames, w.carried + w.lost + w.cut);
    const auto came = [](const nic_statistics& s) {
      return s.rx_frames + s.rx_bad_check + s.rx_link_down + s.rx_disabled;
    };
    EXPECT_EQ(w.carried, came(a) + came(b));
    EXPECT_LE(a.rx_bad_check + b.rx_bad_check, w.corrupted);
    std::uint64_t ended = 0;
    for (machine* m : {&a_, &b_}) {
      m->expect_account();
      const nic_statistics& s = m->nic.stats();
      const port_statistics p = m->port->statistics();
      const nic_port::counters work = m->port->work();
      EXPECT_EQ(m->port->sending(), 0u);
      EXPECT_EQ(p.transmitted, s.tx_frames + s.tx_link_down + s.tx_lost_in_reset);
      EXPECT_EQ(work.flipped + work.copied, p.delivered);
      EXPECT_EQ(work.ownership_violations + work.tx_faults + s.dma_faults + s.ring_faults, 0u);
      ended += p.transmitted + work.tx_lost_in_reset;
    }
    EXPECT_EQ(ended, given_);
  }

  std::mt19937 random_;
  simulated_clock clock_;
  simulated_wire wire_;
  machine a_;
  machine b_;
  std::vector<packet> held_;
  bool connected_ = true;
  std::uint32_t number_ = 0;
  std::uint64_t given_ = 0;  // packets that a port has taken
};

TEST(NicMishaps, EveryFrameIsAccountedForWhateverHappens) {
  const bool stress = std::getenv("FOREBAY_STRESS") != nullptr;
  end_of_run all{};
  for (std::uint32_t seed = 1; seed <= (stress ? 1000u : 12u); ++seed) {
    const auto view = static_cast<memory_view>(seed % 3);
    SCOPED_TRACE(testing::Message() << "seed " << seed << ", view " << seed % 3);
    const unsigned steps = stress ? 3000 : 600;
    const end_of_run once = mishaps(seed, view).run(steps);
    if (seed % 8 == 1) {
      EXPECT_EQ(once, mishaps(seed, view).run(steps));
    }
    all.a.resets += once.a.resets;
    all.a.rx_fifo_full += once.a.rx_fifo_full;
    all.a.rx_lost_in_reset += once.a.rx_lost_in_reset;
    all.a.tx_link_down += once.a.tx_link_down;
    all.wire.cut += once.wire.cut;
    all.work_a.tx_lost_in_reset += once.work_a.tx_lost_in_reset;
    if (HasFailure()) break;
  }
  // All of it has happened.
  for (const std::uint64_t n : {all.a.resets, all.a.rx_fifo_full, all.a.rx_lost_in_reset,
                                all.a.tx_link_down, all.wire.cut, all.work_a.tx_lost_in_reset}) {
    EXPECT_GT(n, 0u);
  }
}

}  // namespace
}  // namespace forebay
