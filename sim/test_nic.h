// What the tests of the simulated controller share: machines with one, and frames that tell their
// numbers.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "forebay/dma/debug.h"
#include "forebay/net/test_packets.h"
#include "sim/bounce_domain.h"
#include "sim/iommu_domain.h"
#include "sim/nic_port.h"
#include "sim/simulated_umem_domain.h"

namespace forebay {

inline constexpr std::uint64_t us = 1000;
inline constexpr std::uint64_t ms = 1'000'000;

// Packets whose buffers are page frames.
inline packet_pool::options page_sized(std::size_t count) {
  packet_pool::options o;
  o.buffer_bytes = page_bytes;
  o.alignment = page_bytes;
  o.count = count;
  o.limit = count;
  return o;
}

// How the device sees memory: behind an IOMMU, as a copy of it, or as one area.
enum class memory_view : std::uint8_t { iommu, bounce, umem };

inline std::unique_ptr<simulated_domain> make_domain(memory_view v, arena& memory) {
  switch (v) {
    case memory_view::bounce:
      return std::make_unique<bounce_domain>(bounce_domain::options{});
    case memory_view::umem:
      return std::make_unique<simulated_umem_domain>(memory.memory(), page_bytes, true);
    case memory_view::iommu:
      break;
  }
  return std::make_unique<iommu_domain>(
      iommu_domain::options{.checks = {.check = dma_check::report}});
}

// A device with its domain and its driver; everything that it has must be back in the end.
struct machine {
  explicit machine(simulated_clock& clock, simulated_wire* wire = nullptr,
                   const nic_port::options& opts = {}, const simulated_nic::options& device = {},
                   std::size_t packets = 512, memory_view view = memory_view::iommu)
      : packet_memory(page_sized(packets), 4u << 20),
        domain(make_domain(view, *packet_memory.memory)),
        nic(clock, *domain, device, wire) {
    auto made = nic_port::open(nic, *packet_memory.memory, *packet_memory, opts);
    EXPECT_TRUE(made) << made.error().message();
    port = std::move(*made);
    if (wire == nullptr) nic.set_carrier(true);
  }
  ~machine() {
    port.reset();
    if (const auto* d = dynamic_cast<const iommu_domain*>(domain.get())) {
      EXPECT_EQ(d->stats().mappings, 0u);
      EXPECT_EQ(d->debug()->mistakes(), 0u);
    }
    if (const auto* d = dynamic_cast<const bounce_domain*>(domain.get())) {
      EXPECT_EQ(d->mappings(), 0u);
      EXPECT_EQ(d->strange_calls(), 0u);
    }
    const auto b = packet_memory->statistics().buffers;
    EXPECT_EQ(b.allocations, b.frees);
  }
  machine(const machine&) = delete;
  machine& operator=(const machine&) = delete;

  // The account of what was received adds up, if nothing is in the device.
  void expect_account() {
    const port_statistics s = port->statistics();
    EXPECT_EQ(s.received, s.delivered + s.dropped_full + s.dropped_memory + s.dropped_malformed);
  }

  test_packets packet_memory;
  std::unique_ptr<simulated_domain> domain;
  simulated_nic nic;
  std::unique_ptr<nic_port> port;
};

inline std::size_t length_of(std::uint32_t number) { return 60 + number * 37 % 1455; }

inline std::vector<std::byte> bytes_of(std::uint32_t number, std::size_t length) {
  std::vector<std::byte> b(length);
  for (std::size_t i = 0; i < length; ++i) b[i] = static_cast<std::byte>(number * 131 + i * 7);
  std::memcpy(b.data(), &number, sizeof number);
  return b;
}

inline std::uint32_t number_of(const packet_buffer& p) {
  std::uint32_t number = 0;
  EXPECT_TRUE(p.copy_out(0, std::as_writable_bytes(std::span(&number, 1))));
  std::vector<std::byte> got(p.length());
  EXPECT_TRUE(p.copy_out(0, got));
  EXPECT_EQ(got, bytes_of(number, length_of(number)));
  return number;
}

inline wire_frame frame_of(std::uint32_t number) {
  wire_frame f{bytes_of(number, length_of(number)), 0};
  f.check = frame_check(f.data);
  return f;
}

inline packet packet_of(packet_pool& pool, std::uint32_t number) {
  packet p = pool.try_allocate();
  EXPECT_TRUE(p);
  std::ranges::copy(bytes_of(number, length_of(number)), p->put_unchecked(length_of(number)));
  return p;
}

// The numbers of all packets that are there, or come within a millisecond.
inline std::vector<std::uint32_t> receive(machine& m) {
  std::vector<std::uint32_t> numbers;
  const std::uint64_t end = m.nic.clock().now_ns() + 1 * ms;
  for (bool over = false; !over;) {
    over = m.nic.clock().now_ns() >= end;
    std::array<packet, 32> burst;
    while (const std::size_t n = m.port->receive(burst)) {
      for (std::size_t i = 0; i < n; ++i) numbers.push_back(number_of(*burst[i]));
    }
    EXPECT_TRUE(m.port->wait(1));
  }
  return numbers;
}

}  // namespace forebay
