// The ports: on an interface, on TAP, on files.

#include "forebay/net/port.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <string>
#include <vector>

#include "forebay/memory/arena.h"
#include "forebay/net/file_port.h"
#include "forebay/net/packet_port.h"
#include "forebay/net/tap_port.h"
#include "forebay/net/test_port.h"
#include "forebay/os/clock.h"
#include "forebay/os/test_network.h"

namespace forebay {
namespace {

TEST_F(Port, AnInterfacesPacketsLieInItsRing) {
  const std::string skipped = run_in_own_network([this] {
    auto at = packet_port::open(
        *net_interface::find("lo"),
        {.block_bytes = 1u << 16, .blocks = 8, .retire_ms = 1, .outgoing = false}, *pool_);
    ASSERT_TRUE(at) << at.error().message();
    port& lo = **at;
    EXPECT_EQ(lo.state(), link_state::up);
    std::vector<packet> frames;
    for (std::uint32_t i = 0; i < 100; ++i) frames.push_back(frame(i));
    send_all(lo, frames);
    for (std::int64_t i = 0, tries = 0; i < 100 && tries < 6000; ++tries) {
      // Not held for long: how many packets a block gets depends on how fast they come.
      for (const packet& p : receive(lo, 1, 1)) {
        EXPECT_EQ(number_of(p), i++);
        EXPECT_EQ(p->block().what(), packet_block::kind::external);  // no copy
        EXPECT_NE(p->timestamp_ns(), 0u);
      }
    }
    EXPECT_EQ(lo.statistics().received, 100u);
    EXPECT_EQ(lo.statistics().delivered, 100u);
    EXPECT_EQ(lo.statistics().transmitted, 100u);

    // As long as the packets are held their blocks are, and what comes then finds no room; when
    // they are gone everything comes again.
    std::vector<packet> got;
    constexpr std::uint32_t sent = 1500;
    for (std::uint32_t i = 0; i < sent; i += 100) {
      frames.clear();
      for (std::uint32_t j = 0; j < 100; ++j) frames.push_back(frame(i + j));
      send_all(lo, frames);
      for (packet& p : receive(lo, 100, 5)) got.push_back(std::move(p));
      if (lo.statistics().dropped_full != 0) break;
    }
    EXPECT_GT(lo.statistics().dropped_full, 0u);
    // Who waits meanwhile for more sleeps, once all signs from before have been heard.
    const auto sleeps = [&] {
      const std::uint64_t start = monotonic_clock::now_ns();
      for (packet& p : receive(lo, 1000, 1)) got.push_back(std::move(p));
      return monotonic_clock::now_ns() - start > 9'000'000;
    };
    int tries = 0;
    while (!sleeps() && tries < 50) ++tries;
    EXPECT_LT(tries, 50);
    got.clear();
    frames.clear();
    frames.push_back(frame(4711));
    send_all(lo, frames);
    bool came = false;
    for (tries = 0; tries < 1000 && !came; ++tries) {
      for (const packet& p : receive(lo, 1, 5)) came = came || number_of(p) == 4711;
    }
    EXPECT_TRUE(came);

    lo.stop();
    while (!lo.drained()) receive(lo, 1, 1);
    const port_statistics s = lo.statistics();
    EXPECT_EQ(s.received, s.delivered + s.dropped_full + s.dropped_memory);
  });
  if (!skipped.empty()) GTEST_SKIP() << skipped;
}

TEST_F(Port, TapIsTheOtherSideOfAnInterface) {
  const std::string skipped = run_in_own_network([this] {
    auto made = tap_port::open("fbt%d", *pool_);
    ASSERT_TRUE(made) << made.error().message();
    port& tap = **made;
    EXPECT_EQ(tap.state(), link_state::down);
    std::vector<packet> frames;
    frames.push_back(frame(1));
    EXPECT_EQ(tap.transmit(frames).error().value(), ENETDOWN);
    EXPECT_TRUE(frames[0]);
    ASSERT_TRUE(set_interface_up("fbt0", true));
    EXPECT_EQ(tap.state(), link_state::up);
    auto at = packet_port::open(
        *net_interface::find("fbt0"),
        {.block_bytes = 1u << 16, .blocks = 64, .retire_ms = 1, .outgoing = false}, *pool_);
    ASSERT_TRUE(at) << at.error().message();
    for (std::uint32_t i = 2; i < 50; ++i) frames.push_back(frame(i));
    send_all(tap, frames);
    const std::vector<packet> up = receive(**at, 49);
    ASSERT_EQ(up.size(), 49u);
    frames.clear();
    for (std::uint32_t i = 0; i < 50; ++i) frames.push_back(frame(i));
    send_all(**at, frames);
    const std::vector<packet> down = receive(tap, 50);
    ASSERT_EQ(down.size(), 50u);
    for (std::size_t i = 0; i < 50; ++i) EXPECT_EQ(number_of(down[i]), static_cast<int>(i));
    EXPECT_EQ(tap.statistics().transmitted, 49u);
    EXPECT_GE(tap.statistics().delivered, 50u);
  });
  if (!skipped.empty()) GTEST_SKIP() << skipped;
}

TEST_F(Port, FilesGiveWhatTheirFilterLetsPass) {
  std::array<std::string, 2> paths;
  for (std::string& path : paths) {
    char name[] = "/tmp/forebay-port-XXXXXX";
    const int fd = ::mkstemp(name);
    ASSERT_GE(fd, 0);
    ::close(fd);
    path = name;
  }
  {
    auto out = file_port::open("", paths[0], *pool_);
    ASSERT_TRUE(out) << out.error().message();
    for (std::uint32_t i = 0; i < 400; i += 100) {
      std::vector<packet> frames;
      for (std::uint32_t j = 0; j < 100; ++j) frames.push_back(frame(i + j));
      send_all(**out, frames);
    }
    std::array<packet, 1> none;
    EXPECT_EQ((*out)->receive(none), 0u);
  }
  auto in = file_port::open(paths[0], paths[1], *pool_);
  ASSERT_TRUE(in) << in.error().message();
  auto filter = packet_filter::for_packets("greater 1000", pcapng::link_type::ethernet, 65535);
  ASSERT_TRUE(filter) << filter.error();
  (*in)->set_filter(std::move(*filter));
  EXPECT_FALSE(packet_filter::for_packets("udp porridge", pcapng::link_type::ethernet, 65535));
  std::uint64_t expected = 0;
  for (std::uint32_t i = 0; i < 400; ++i) expected += 60 + i * 7 % 1400 >= 1000;
  while (!(*in)->drained()) {
    std::array<packet, 32> burst;
    const std::size_t n = (*in)->receive(burst);
    for (std::size_t i = 0; i < n; ++i) EXPECT_GE(burst[i]->length(), 1000u);
    const auto sent = (*in)->transmit(std::span(burst).first(n));
    ASSERT_TRUE(sent);
    EXPECT_EQ(*sent, n);
  }
  EXPECT_EQ((*in)->statistics().received, expected);
  EXPECT_EQ((*in)->state(), link_state::gone);
  auto copy = file_port::open(paths[1], "", *pool_);
  ASSERT_TRUE(copy);
  EXPECT_EQ(receive(**copy, expected).size(), expected);
  std::vector<packet> frames;
  frames.push_back(frame(1));
  EXPECT_EQ((*copy)->transmit(frames).error().value(), ENOTSUP);
  for (const std::string& path : paths) ::unlink(path.c_str());
}

}  // namespace
}  // namespace forebay
