// One thread: not in the thread sanitizer's tree.
// The simulated network controller and its port: two of them on a wire, what is lost where and how
// it is counted, and who may touch what when.

#include "sim/nic.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "forebay/net/echo.h"
#include "sim/test_nic.h"

namespace forebay {
namespace {

std::vector<std::uint32_t> iota(std::uint32_t first, std::uint32_t end) {
  std::vector<std::uint32_t> v(end - first);
  for (std::uint32_t& n : v) n = first++;
  return v;
}

TEST(FrameCheck, IsThatOfEthernet) {
  const auto digits = std::as_bytes(std::span("123456789", 9));
  EXPECT_EQ(frame_check(digits), 0xcbf43926u);  // the check value of CRC-32/ISO-HDLC
  EXPECT_EQ(frame_check(digits.subspan(4), frame_check(digits.first(4))), 0xcbf43926u);
}

TEST(SimulatedClock, EventsComeInTheOrderOfTimeAndOfBeingMade) {
  simulated_clock clock;
  std::vector<int> seen;
  clock.at(30, [&] { seen.push_back(3); });
  clock.at(10, [&] {
    seen.push_back(1);
    clock.at(5, [&] { seen.push_back(2); });  // of the past: now
  });
  clock.at(30, [&] { seen.push_back(4); });
  EXPECT_TRUE(clock.run_next(20));
  EXPECT_EQ(clock.now_ns(), 10u);
  EXPECT_TRUE(clock.run_next(20));
  EXPECT_FALSE(clock.run_next(20));
  EXPECT_EQ(clock.now_ns(), 20u);
  clock.run_until(100);
  EXPECT_EQ(seen, (std::vector{1, 2, 3, 4}));
  EXPECT_TRUE(clock.idle());
  EXPECT_EQ(clock.now_ns(), 100u);
}

// ---- Two of them ----

struct echo_run {
  std::vector<std::uint32_t> answered;
  nic_statistics client;
  nic_statistics server;
  simulated_wire::statistics wire;
  std::uint64_t took_ns = 0;

  bool operator==(const echo_run&) const = default;
};

// A client sends frames to a host that sends each back with its addresses exchanged.
echo_run run_echo(const simulated_wire::options& knobs, std::uint32_t count,
                  memory_view view = memory_view::iommu) {
  simulated_clock clock;
  simulated_wire wire(clock, knobs);
  machine client(clock, &wire, {}, {}, 512, view);
  machine server(clock, &wire, {.copybreak_bytes = 200}, {}, 512, view);
  wire.connect(client.nic, server.nic);
  echo_run run;
  const echo_identity everything{.swap_everything = true};
  std::uint32_t sent = 0;
  const std::uint64_t start = clock.now_ns();
  for (unsigned idle = 0; idle < 3;) {
    std::array<packet, 16> burst;
    for (std::size_t i = 0; i < burst.size() && sent + i < count; ++i) {
      burst[i] = packet_of(*client.packet_memory, sent + static_cast<std::uint32_t>(i));
    }
    const std::size_t wanted = std::min<std::size_t>(burst.size(), count - sent);
    sent += static_cast<std::uint32_t>(
        client.port->transmit(std::span(burst).first(wanted)).value_or(0));
    packet_pool::release_burst(burst);
    EXPECT_TRUE(client.port->wait(1));
    std::size_t n = server.port->receive(burst);
    const bool any = n != 0;
    for (std::size_t i = 0; i < n; ++i) {
      EXPECT_EQ(turn_round(*burst[i], everything), echo_answer::swapped);
    }
    EXPECT_EQ(server.port->transmit(std::span(burst).first(n)).value_or(0), n);
    n = client.port->receive(burst);
    for (std::size_t i = 0; i < n; ++i) {
      EXPECT_EQ(turn_round(*burst[i], everything), echo_answer::swapped);
      run.answered.push_back(number_of(*burst[i]));
    }
    idle = n != 0 || any || sent != count ? 0 : idle + 1;
  }
  for (machine* m : {&client, &server}) {
    m->expect_account();
    EXPECT_EQ(m->port->sending(), 0u);
    EXPECT_EQ(m->port->work().ownership_violations, 0u);
    const nic_port::counters w = m->port->work();
    EXPECT_EQ(w.flipped + w.copied, m->port->statistics().delivered);
  }
  EXPECT_EQ(client.port->work().copied, 0u);
  EXPECT_GT(server.port->work().copied, 0u);
  run.client = client.nic.stats();
  run.server = server.nic.stats();
  run.wire = wire.stats();
  run.took_ns = clock.now_ns() - start;
  return run;
}

TEST(Nic, TwoOnAWireEchoEverythingInOrder) {
  const echo_run run = run_echo({}, 500);
  EXPECT_EQ(run.answered, iota(0, 500));
  EXPECT_EQ(run.wire.carried, 1000u);
  EXPECT_EQ(run.server.rx_frames, 500u);
  EXPECT_EQ(run.server.tx_bytes, run.server.rx_bytes);
  EXPECT_LT(run.client.interrupts, run.client.rx_frames / 2);  // they are coalesced
}

// Through a copy of the memory whatever the driver forgets to sync is missing; in an area nothing
// may lie elsewhere.
TEST(Nic, EchoInAnyDomain) {
  const echo_run plain = run_echo({}, 200);
  for (const memory_view v : {memory_view::bounce, memory_view::umem}) {
    EXPECT_EQ(run_echo({}, 200, v), plain);
  }
}

TEST(Nic, ABadWireLosesAndTheSameEachTime) {
  const simulated_wire::options bad{.loss = 0.05, .corruption = 0.05, .reordering = 0.1, .seed = 7};
  const echo_run run = run_echo(bad, 500);
  EXPECT_EQ(run, run_echo(bad, 500));
  EXPECT_GT(run.wire.lost, 10u);
  EXPECT_GT(run.wire.corrupted, 10u);
  EXPECT_EQ(run.client.rx_bad_check + run.server.rx_bad_check, run.wire.corrupted);
  EXPECT_EQ(run.answered.size() + run.wire.lost + run.wire.corrupted, 500u);
  EXPECT_FALSE(std::ranges::is_sorted(run.answered));
}

TEST(Nic, AFrameTakesItsTime) {
  simulated_clock clock;
  simulated_wire wire(clock, {.latency_ns = 5 * us});
  const simulated_nic::options slow{.bits_per_second = 100'000'000,
                                    .dma_bytes_per_second = 1'000'000'000,
                                    .dma_latency_ns = 1 * us,
                                    .interrupt_ns = 10 * us};
  machine a(clock, &wire, {}, slow);
  machine b(clock, &wire, {}, slow);
  wire.connect(a.nic, b.nic);
  static_cast<void>(a.nic.take_interrupt());
  static_cast<void>(b.nic.take_interrupt());
  packet p = a.packet_memory->try_allocate();
  std::memset(p->put_unchecked(1226), 1, 1226);
  ASSERT_EQ(a.port->transmit({&p, 1}).value_or(0), 1u);
  std::array<packet, 1> out;
  // DMA 1 us and 1.226, 1,250 bytes at 10 ns a bit, the wire, DMA again; the interrupt tells it.
  constexpr std::uint64_t there = 2226 + 100 * us + 5 * us + 2226;
  clock.run_until(there - 1);
  EXPECT_EQ(b.port->receive(out), 0u);
  EXPECT_TRUE(b.port->wait(1));
  EXPECT_EQ(clock.now_ns(), there + 10 * us);
  EXPECT_EQ(b.port->receive(out), 1u);
  EXPECT_EQ(out[0]->length(), 1226u);
  EXPECT_EQ(out[0]->timestamp_ns() % 1'000'000'000, clock.now_ns());
}

TEST(Nic, InterruptsAreCoalesced) {
  simulated_clock clock;
  machine m(clock, nullptr, {}, {.interrupt_descriptors = 16});
  static_cast<void>(m.nic.take_interrupt());
  const std::uint64_t before = m.nic.stats().interrupts;
  for (std::uint32_t i = 0; i < 40; ++i) m.nic.arrive(frame_of(i));
  clock.run_until(clock.now_ns() + 1 * ms);
  EXPECT_EQ(m.nic.stats().interrupts - before, 3u);  // after 16, 32, and for the last 8 by time
  EXPECT_TRUE(m.nic.take_interrupt());
  EXPECT_FALSE(m.nic.take_interrupt());
  EXPECT_EQ(receive(m), iota(0, 40));
}

// ---- What is full or missing ----

TEST(Nic, AFullFifoLosesWhatComesThen) {
  simulated_clock clock;
  machine m(clock, nullptr, {.rx_entries = 16}, {.rx_fifo_bytes = 8192});
  std::size_t in_fifo = 0;
  std::uint32_t fit = 16;
  for (std::size_t bytes = 0;; ++fit, ++in_fifo) {
    bytes += length_of(fit);
    if (bytes > 8192) break;
  }
  // Nobody takes any: the ring, then the FIFO, fill up. What is short enough still fits at the end.
  std::uint64_t lost = 0;
  for (std::uint32_t i = 0; i < 60; ++i) {
    m.nic.arrive(frame_of(i));
    clock.run_until(clock.now_ns() + 10 * us);
    if (i == fit) {
      EXPECT_EQ(m.nic.stats().rx_fifo_full, 1u);
    }
  }
  lost = m.nic.stats().rx_fifo_full;
  EXPECT_GT(lost, 25u);
  EXPECT_GT(m.nic.stats().rx_waits, 0u);
  EXPECT_LE(m.nic.stats().rx_fifo_bytes_max, 8192u);
  EXPECT_EQ(m.port->statistics().dropped_full, lost);
  const std::vector<std::uint32_t> got = receive(m);
  EXPECT_EQ(got.size(), 60 - lost);
  EXPECT_TRUE(std::ranges::is_sorted(got));
  EXPECT_EQ(got[fit - 1], fit - 1);
  m.expect_account();
}

TEST(Nic, WithoutBuffersFramesAreLostUntilThereAreSome) {
  simulated_clock clock;
  machine m(clock, nullptr, {.rx_entries = 8}, {}, 24);
  std::vector<packet> held;
  while (packet p = m.packet_memory->try_allocate()) held.push_back(std::move(p));
  EXPECT_EQ(held.size(), 16u);
  for (std::uint32_t i = 0; i < 20; ++i) m.nic.arrive(frame_of(i));
  EXPECT_TRUE(receive(m).empty());
  EXPECT_EQ(m.port->statistics().dropped_memory, 20u);
  held.clear();
  for (std::uint32_t i = 20; i < 40; ++i) m.nic.arrive(frame_of(i));
  EXPECT_EQ(receive(m), iota(20, 40));
  m.expect_account();
}

TEST(Nic, AFullRingRefusesPackets) {
  simulated_clock clock;
  simulated_wire wire(clock, {});
  machine a(clock, &wire, {.tx_entries = 8});
  machine b(clock, &wire);
  wire.connect(a.nic, b.nic);
  std::array<packet, 12> burst;
  for (std::uint32_t i = 0; i < burst.size(); ++i) burst[i] = packet_of(*a.packet_memory, i);
  EXPECT_EQ(a.port->transmit(burst).value_or(0), 8u);
  EXPECT_FALSE(burst[7]);
  EXPECT_TRUE(burst[8]);  // the caller's still
  EXPECT_EQ(a.port->statistics().refused, 1u);
  EXPECT_EQ(a.port->transmit(std::span(burst).subspan(8)).value_or(9), 0u);
  clock.run_until(1 * ms);
  EXPECT_EQ(a.port->transmit(std::span(burst).subspan(8)).value_or(0), 4u);
  EXPECT_EQ(receive(b), iota(0, 12));
  EXPECT_TRUE(a.port->wait(1));
  EXPECT_EQ(a.port->statistics().transmitted, 12u);
  // What is no frame.
  packet none = a.packet_memory->try_allocate();
  EXPECT_EQ(a.port->transmit({&none, 1}).error().value(), EMSGSIZE);
  EXPECT_TRUE(none);
}

TEST(Nic, FramesInPiecesAreSentAsOne) {
  simulated_clock clock;
  simulated_wire wire(clock, {});
  machine a(clock, &wire);
  machine b(clock, &wire);
  wire.connect(a.nic, b.nic);
  packet front = packet_of(*a.packet_memory, 30);
  packet back = std::move(*front->split(100));
  packet end = std::move(*back->split(500));
  EXPECT_TRUE(front->append(std::move(back)));
  EXPECT_TRUE(front->append(std::move(end)));
  EXPECT_GT(front->segment_count(), 1u);
  ASSERT_EQ(a.port->transmit({&front, 1}).value_or(0), 1u);
  EXPECT_EQ(receive(b), iota(30, 31));
  EXPECT_TRUE(a.port->wait(1));
}

TEST(Nic, ACableThatIsPulledLosesWhatIsOnItsWay) {
  simulated_clock clock;
  simulated_wire wire(clock, {.latency_ns = 50 * us});
  machine a(clock, &wire);
  machine b(clock, &wire);
  wire.connect(a.nic, b.nic);
  std::array<packet, 30> burst;
  for (std::uint32_t i = 0; i < burst.size(); ++i) burst[i] = packet_of(*a.packet_memory, i);
  ASSERT_EQ(a.port->transmit(burst).value_or(0), 30u);
  clock.run_until(55 * us);
  wire.disconnect();
  EXPECT_EQ(a.port->state(), link_state::down);
  packet p = packet_of(*a.packet_memory, 99);
  EXPECT_EQ(a.port->transmit({&p, 1}).error().value(), ENETDOWN);
  EXPECT_TRUE(p);
  b.nic.arrive(frame_of(1));
  clock.run_until(1 * ms);
  EXPECT_EQ(b.nic.stats().rx_link_down, 1u);
  const std::vector<std::uint32_t> got = receive(b);
  EXPECT_EQ(got, iota(0, static_cast<std::uint32_t>(got.size())));
  EXPECT_GT(got.size(), 0u);
  EXPECT_GT(wire.stats().cut, 0u);
  EXPECT_EQ(got.size() + wire.stats().cut + wire.stats().lost + a.nic.stats().tx_link_down, 30u);
  wire.connect(a.nic, b.nic);
  ASSERT_EQ(a.port->transmit({&p, 1}).value_or(0), 1u);
  EXPECT_EQ(receive(b), iota(99, 100));
  EXPECT_TRUE(a.port->wait(1));
  b.nic.remove();
  EXPECT_EQ(b.port->state(), link_state::gone);
  EXPECT_TRUE(b.port->drained());
}

TEST(Nic, AResetInFlightLosesNothingWithoutCountingIt) {
  for (std::uint64_t when = 0; when < 60 * us; when += 2111) {
    SCOPED_TRACE(when);
    simulated_clock clock;
    simulated_wire wire(clock, {});
    machine a(clock, &wire);
    machine b(clock, &wire);
    wire.connect(a.nic, b.nic);
    std::array<packet, 40> burst;
    for (std::uint32_t i = 0; i < burst.size(); ++i) burst[i] = packet_of(*a.packet_memory, i);
    ASSERT_EQ(a.port->transmit(burst).value_or(0), 40u);
    clock.run_until(when);
    ASSERT_TRUE(a.port->reset());
    clock.run_until(when + when / 2);
    ASSERT_TRUE(b.port->reset());
    EXPECT_EQ(a.port->sending(), 0u);
    packet after = packet_of(*a.packet_memory, 77);
    ASSERT_EQ(a.port->transmit({&after, 1}).value_or(0), 1u);
    const std::vector<std::uint32_t> got = receive(b);
    ASSERT_FALSE(got.empty());
    EXPECT_EQ(got.back(), 77u);
    EXPECT_TRUE(a.port->wait(1));
    const port_statistics sent = a.port->statistics();
    EXPECT_EQ(sent.transmitted + a.port->work().tx_lost_in_reset, 41u);
    EXPECT_EQ(sent.transmitted, a.nic.stats().tx_frames + a.nic.stats().tx_lost_in_reset);
    EXPECT_EQ(b.port->statistics().received, a.nic.stats().tx_frames);
    EXPECT_EQ(b.port->statistics().delivered, got.size());
    b.expect_account();
  }
}

// ---- Who touches what ----

// A driver that posts what it likes.
struct raw_driver {
  explicit raw_driver(simulated_nic& nic, arena& memory)
      : rx_memory(std::move(*coherent_buffer::create(memory, nic.domain(), bytes))),
        tx_memory(std::move(*coherent_buffer::create(memory, nic.domain(), bytes))),
        rx(std::move(*descriptor_driver::create(rx_memory.bytes(), {.entries = 16}))),
        tx(std::move(*descriptor_driver::create(tx_memory.bytes(), {.entries = 16}))) {
    EXPECT_TRUE(nic.start(rx_memory, tx_memory));
  }
  static constexpr std::size_t bytes = descriptor_driver::region_bytes(16);
  coherent_buffer rx_memory;
  coherent_buffer tx_memory;
  descriptor_driver rx;
  descriptor_driver tx;
};

TEST(Nic, TheEngineReachesOnlyWhatIsMapped) {
  simulated_clock clock;
  auto memory = std::move(*arena::create({.bytes = 1u << 20, .huge_pages = false}));
  iommu_domain domain({});
  simulated_nic nic(clock, domain, {});
  nic.set_carrier(true);
  {
    raw_driver driver(nic, *memory);
    EXPECT_EQ(nic.start(driver.rx_memory, driver.tx_memory).error().value(), EBUSY);
    auto frames = coherent_buffer::create(*memory, domain, 2 * page_bytes);
    ASSERT_TRUE(frames);
    const std::span<std::byte> bytes = frames->bytes();
    const std::uint64_t end = to_number(frames->address()) + bytes.size();
    auto read_only = domain.map(bytes.first(page_bytes), dma_direction::to_device);
    ASSERT_TRUE(read_only);
    const std::uint16_t write = descriptor_write;
    // Nothing there; half of it there; not for this direction; right; too short; right.
    const std::array<descriptor, 6> posted{{
        {.address = 0x10'0000, .length = 2048, .flags = write},
        {.address = end - 40, .length = 2048, .flags = write},
        {.address = to_number(read_only->address), .length = 2048, .flags = write},
        {.address = end - 2048, .length = 2048, .flags = write},
        {.address = end - 64, .length = 64, .flags = write},
        {.address = end - 4096, .length = 2048, .flags = write},
    }};
    for (std::uint64_t i = 0; i < posted.size(); ++i) ASSERT_TRUE(driver.rx.post(posted[i], i));
    driver.rx.ring_doorbell();
    nic.ring_rx_doorbell();
    const std::vector<std::byte> zeros(2048);
    std::array<ended_chain, 1> ended;
    for (std::uint64_t i = 0; i < posted.size(); ++i) {
      nic.arrive(frame_of(10));
      clock.run_until(clock.now_ns() + 1 * ms);
      ASSERT_EQ(driver.rx.reap(ended).value_or(0), 1u);
      EXPECT_EQ(ended[0].id, i);
      EXPECT_EQ(ended[0].error, i < 3 ? EFAULT : i == 4 ? EMSGSIZE : 0);
      EXPECT_EQ(ended[0].length, ended[0].error == 0 ? length_of(10) : 0);
      if (i < 3) {
        EXPECT_TRUE(std::ranges::all_of(bytes, [](std::byte b) { return b == std::byte{}; }));
      }
    }
    EXPECT_EQ(nic.stats().dma_faults, 3u);
    EXPECT_EQ(nic.stats().rx_too_long, 1u);
    EXPECT_EQ(domain.faults(), 3u);
    // To send: a piece that is not there, and one that is for the device to write.
    const std::array<descriptor, 2> chain{{
        {.address = to_number(read_only->address), .length = 100},
        {.address = 0x10'0000, .length = 100},
    }};
    ASSERT_TRUE(driver.tx.post(chain, 7));
    driver.tx.ring_doorbell();
    nic.ring_tx_doorbell();
    clock.run_until(clock.now_ns() + 1 * ms);
    ASSERT_EQ(driver.tx.reap(ended).value_or(0), 1u);
    EXPECT_EQ(ended[0].error, EFAULT);
    EXPECT_EQ(nic.stats().dma_faults, 4u);
    EXPECT_EQ(nic.stats().tx_frames, 0u);
    domain.unmap(*read_only, dma_direction::to_device);
    nic.reset();
  }
  EXPECT_EQ(domain.stats().mappings, 0u);
}

// Whatever is in the rings, the device goes on or stands still, and touches nothing but what is
// mapped for it.
TEST(Nic, AHostileDriverHarmsNobodyElse) {
  const auto memory = std::move(*arena::create({.bytes = 1u << 20, .huge_pages = false}));
  const std::vector<std::byte> untouched(page_bytes, std::byte{0x5a});
  std::uint64_t ring_faults = 0;
  std::uint64_t dma_faults = 0;
  std::uint64_t received = 0;
  for (std::uint32_t seed = 1; seed <= 60; ++seed) {
    std::mt19937 random(seed);
    simulated_clock clock;
    simulated_wire wire(clock, {});
    iommu_domain domain({});
    simulated_nic nic(clock, domain, {}, &wire);
    nic.set_carrier(true);
    std::vector<std::byte> others = untouched;
    auto frames = coherent_buffer::create(*memory, domain, 2 * page_bytes);
    ASSERT_TRUE(frames);
    raw_driver driver(nic, *memory);
    // Words of any value, or that make sense, anywhere in the rings.
    const auto word = [&]() -> std::uint64_t {
      switch (random() % 4) {
        case 0:
          return to_number(frames->address()) + random() % (2 * page_bytes);
        case 1:
          return std::bit_cast<std::uintptr_t>(others.data());
        case 2:
          return random() % 2048 | std::uint64_t{random() % 4} << 32;
        default:
          return std::uint64_t{random()} << 32 | random();
      }
    };
    for (unsigned i = 0; i < 40; ++i) {
      const descriptor d =
          descriptor_words{word(), random() % 2048 | std::uint64_t{2} << 32}.unpack();
      static_cast<void>(random() % 2 != 0 ? driver.rx.post(d, i) : driver.tx.post(d, i));
      driver.rx.ring_doorbell();
      driver.tx.ring_doorbell();
      for (coherent_buffer* ring : {&driver.rx_memory, &driver.tx_memory}) {
        if (random() % 8 != 0) continue;
        const std::uint64_t w = word();
        constexpr std::size_t position_at = descriptor_ring_layout<real_atomics>::driver_at;
        const std::size_t anywhere = random() % (ring->size() / 8) * 8;
        std::memcpy(ring->data() + (random() % 3 == 0 ? position_at : anywhere), &w, sizeof w);
      }
      nic.ring_rx_doorbell();
      nic.ring_tx_doorbell();
      nic.arrive(frame_of(i));
      clock.run_until(clock.now_ns() + random() % (3 * us));
    }
    clock.run_until(clock.now_ns() + 1 * ms);
    EXPECT_EQ(others, untouched);
    ring_faults += nic.stats().ring_faults;
    dma_faults += nic.stats().dma_faults;
    received += nic.stats().rx_frames - nic.stats().rx_too_long;
    nic.reset();
  }
  EXPECT_GT(ring_faults, 20u);
  EXPECT_GT(dma_faults, 20u);
  EXPECT_GT(received, 100u);
}

TEST(Nic, WhoTouchesWhatTheDeviceHasIsFound) {
  simulated_clock clock;
  simulated_wire wire(clock, {});
  machine a(clock, &wire);
  machine b(clock, &wire);
  wire.connect(a.nic, b.nic);
  // The sender writes to a packet that it has given away.
  packet p = packet_of(*a.packet_memory, 5);
  std::byte* const stray = p->writable_unchecked() + 20;
  ASSERT_EQ(a.port->transmit({&p, 1}).value_or(0), 1u);
  *stray ^= std::byte{1};
  clock.run_until(1 * ms);
  EXPECT_EQ(a.port->work().ownership_violations, 1u);
  // The receiver does, after the device has written and before it has ended with the buffer.
  EXPECT_EQ(b.port->receive({&p, 1}), 1u);
  p = packet_of(*a.packet_memory, 1);
  ASSERT_EQ(a.port->transmit({&p, 1}).value_or(0), 1u);
  clock.run_until(2 * ms);
  const std::vector<std::byte> sent = bytes_of(1, length_of(1));
  buffer_pool& buffers = b.packet_memory->buffers();
  bool found = false;
  for (std::uint32_t i = 0; i < 512; ++i) {
    std::byte* const data = buffers.at(i).data() + b.packet_memory->headroom();
    if (std::memcmp(data, sent.data(), sent.size()) != 0) continue;
    data[30] ^= std::byte{1};
    found = true;
  }
  EXPECT_TRUE(found);
  EXPECT_EQ(b.port->receive({&p, 1}), 1u);
  EXPECT_EQ(b.port->work().ownership_violations, 1u);
  p.reset();
  EXPECT_TRUE(a.port->wait(1));
}

TEST(Nic, WritingToWhatTheCpuHasIsFound) {
  simulated_clock clock;
  auto memory = std::move(*arena::create({.bytes = 1u << 20, .huge_pages = false}));
  iommu_domain domain({.checks = {.check = dma_check::report}});
  simulated_nic nic(clock, domain, {});
  nic.set_carrier(true);
  raw_driver driver(nic, *memory);
  const std::unique_ptr<std::byte[]> bytes(new std::byte[2048]);
  auto mapped = own(std::span(bytes.get(), 2048)).map(domain, dma_direction::from_device);
  ASSERT_TRUE(mapped);
  for (unsigned i = 0; i < 2; ++i) {
    ASSERT_TRUE(driver.rx.post({.address = to_number(mapped->address()),
                                .length = mapped->length(),
                                .flags = descriptor_write},
                               i));
  }
  driver.rx.ring_doorbell();
  nic.ring_rx_doorbell();
  {
    // It is lent although the device has not ended.
    auto view = mapped->sync_for_cpu(0, 64);
    ASSERT_TRUE(view);
    nic.arrive(frame_of(1));
    clock.run_until(clock.now_ns() + 1 * ms);
  }
  EXPECT_EQ(domain.debug()->count(dma_mistake::access_while_lent), 1u);
  nic.arrive(frame_of(2));
  clock.run_until(clock.now_ns() + 1 * ms);
  EXPECT_EQ(domain.debug()->mistakes(), 1u);
  nic.reset();
}

}  // namespace
}  // namespace forebay
