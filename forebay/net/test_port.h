// What the tests of ports share: a pool, frames that tell their number, and how they are sent and
// received.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <memory>
#include <vector>

#include "forebay/memory/arena.h"
#include "forebay/net/packet_pool.h"
#include "forebay/net/port.h"

namespace forebay {

class Port : public testing::Test {
 protected:
  void SetUp() override {
    auto a = arena::create({.bytes = 8 << 20});
    ASSERT_TRUE(a);
    arena_ = std::move(*a);
    auto p = packet_pool::create(*arena_, {.name = "port test", .count = 512});
    ASSERT_TRUE(p) << p.error().message();
    pool_ = std::move(*p);
  }

  // An Ethernet frame that tells its number, of a type for tests (IEEE 802).
  packet frame(std::uint32_t number) {
    packet p = pool_->try_allocate();
    EXPECT_TRUE(p);
    const std::size_t length = 60 + number * 7 % 1400;
    std::byte* const to = p->put_unchecked(length);
    std::memset(to, 2, length);
    to[12] = std::byte{0x88};
    to[13] = std::byte{0xb5};
    std::memcpy(to + 14, &number, sizeof number);
    return p;
  }
  // The number of a frame of that kind, -1 of another.
  static std::int64_t number_of(const packet& p) {
    const std::span<const std::byte> d = p->linear();
    if (d.size() < 60 || d[12] != std::byte{0x88} || d[13] != std::byte{0xb5}) return -1;
    std::uint32_t number = 0;
    std::memcpy(&number, d.data() + 14, sizeof number);
    EXPECT_EQ(p->length(), 60 + number * 7 % 1400);
    return number;
  }

  static void send_all(port& to, std::vector<packet>& packets) {
    for (std::size_t sent = 0; sent < packets.size();) {
      const auto n = to.transmit(std::span(packets).subspan(sent));
      ASSERT_TRUE(n) << n.error().message();
      for (std::size_t i = 0; i < *n; ++i) EXPECT_FALSE(packets[sent + i]);
      sent += *n;
    }
  }
  // The first packets of ours that come, for at most so many times 10 ms.
  static std::vector<packet> receive(port& from, std::size_t wanted, int patience = 6000) {
    std::vector<packet> got;
    for (int tries = 0; tries < patience && got.size() < wanted; ++tries) {
      std::array<packet, 16> burst;
      const std::size_t n = from.receive(burst);
      if (n == 0) static_cast<void>(from.wait(10));
      for (std::size_t i = 0; i < n; ++i) {
        if (number_of(burst[i]) >= 0) got.push_back(std::move(burst[i]));
      }
    }
    return got;
  }

  std::unique_ptr<arena> arena_;
  std::unique_ptr<packet_pool> pool_;
};

}  // namespace forebay
