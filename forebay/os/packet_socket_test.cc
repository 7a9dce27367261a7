#include "forebay/os/packet_socket.h"

#include <gtest/gtest.h>
#include <linux/filter.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "forebay/os/poll.h"
#include "forebay/os/tap.h"
#include "forebay/os/test_await.h"
#include "forebay/os/test_network.h"
#include "forebay/os/test_xdp.h"
#include "forebay/os/xdp_socket.h"

namespace forebay {
namespace {

constexpr std::uint16_t local_experimental = 0x88b5;  // an EtherType for tests (IEEE 802)

// An Ethernet frame whose payload is `length` bytes that count from `first` on.
std::vector<std::byte> frame_of(std::size_t length, unsigned first, bool tagged = false) {
  std::vector<std::byte> f(12, std::byte{2});
  const auto put = [&f](unsigned v) {
    f.push_back(static_cast<std::byte>(v >> 8));
    f.push_back(static_cast<std::byte>(v));
  };
  if (tagged) {
    put(0x8100);
    put(0x2005);  // priority 1, VLAN 5
  }
  put(local_experimental);
  for (std::size_t i = 0; i < length; ++i) f.push_back(static_cast<std::byte>(first + i));
  return f;
}

std::size_t send(packet_socket& s, std::vector<std::vector<std::byte>>& frames) {
  std::vector<iovec> segments;
  for (auto& f : frames) segments.push_back({f.data(), f.size()});
  std::vector<std::span<iovec>> each;
  for (iovec& i : segments) each.emplace_back(&i, 1);
  const auto sent = s.transmit(each);
  EXPECT_TRUE(sent) << sent.error().message();
  return sent.value_or(0);
}

struct copied_frame {
  std::vector<std::byte> data;
  std::uint32_t wire_bytes;
  std::uint64_t stamp_ns;
};

// Everything that comes until there are so many frames that were not sent from here; a minute at
// the most.
std::vector<copied_frame> receive(packet_socket& s, std::size_t wanted) {
  std::vector<copied_frame> got;
  const auto end = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  while (got.size() < wanted && std::chrono::steady_clock::now() < end) {
    const auto block = s.take_block();
    if (!block) {
      EXPECT_TRUE(s.wait(100));
      continue;
    }
    received_frame f;
    for (auto frames = s.frames_of(*block); frames.next(f);) {
      if (f.outgoing) continue;
      got.push_back({{f.data.begin(), f.data.end()}, f.wire_bytes, f.stamp_ns});
    }
    s.give_back(*block);
  }
  return got;
}

result<packet_socket> open_lo(packet_socket::options opts, std::uint32_t blocks = 4) {
  auto lo = net_interface::find("lo");
  if (!lo) return fail(lo.error());
  opts.block_bytes = 1u << 16;
  opts.blocks = blocks;
  opts.retire_ms = 1;
  return packet_socket::open(*lo, opts);
}

TEST(PacketSocket, FramesComeAsTheyWereSent) {
  const std::string skipped = run_in_own_network([] {
    // A block is closed when it has been open for a millisecond: where the sender is held up
    // between any two frames, each takes one.
    auto s = open_lo({}, 256);
    ASSERT_TRUE(s) << s.error().message();
    std::vector<std::vector<std::byte>> frames;
    for (unsigned i = 0; i < 200; ++i) frames.push_back(frame_of(46 + i * 7, i, i % 3 == 0));
    ASSERT_EQ(send(*s, frames), frames.size());
    const auto got = receive(*s, frames.size());
    ASSERT_EQ(got.size(), frames.size());
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    const auto now_ns = std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
    std::uint64_t last = 0;
    for (std::size_t i = 0; i < got.size(); ++i) {
      EXPECT_EQ(got[i].data, frames[i]) << i;
      EXPECT_EQ(got[i].wire_bytes, frames[i].size());
      EXPECT_GE(got[i].stamp_ns, last);
      last = got[i].stamp_ns;
    }
    EXPECT_LT(static_cast<std::uint64_t>(now_ns) - last, 100'000'000'000u);
    const auto seen = s->statistics();
    EXPECT_GE(seen.received, frames.size());
    EXPECT_EQ(seen.dropped, 0u);
    EXPECT_EQ(s->statistics().received, seen.received);
  });
  if (!skipped.empty()) GTEST_SKIP() << skipped;
}

TEST(PacketSocket, TheFilterChoosesAndCuts) {
  const std::string skipped = run_in_own_network([] {
    // 60 bytes of every frame of more than 100; nothing of the others.
    const std::array<filter_instruction, 4> program{{{BPF_LD | BPF_W | BPF_LEN, 0, 0, 0},
                                                     {BPF_JMP | BPF_JGT | BPF_K, 0, 1, 100},
                                                     {BPF_RET | BPF_K, 0, 0, 60},
                                                     {BPF_RET | BPF_K, 0, 0, 0}}};
    auto s = open_lo({.outgoing = false, .filter = program});
    ASSERT_TRUE(s) << s.error().message();
    std::vector<std::vector<std::byte>> frames{frame_of(50, 1), frame_of(500, 2), frame_of(60, 3),
                                               frame_of(900, 4)};
    ASSERT_EQ(send(*s, frames), 4u);
    const auto got = receive(*s, 2);
    ASSERT_EQ(got.size(), 2u);
    EXPECT_EQ(got[0].wire_bytes, frames[1].size());
    EXPECT_EQ(got[1].wire_bytes, frames[3].size());
    frames[1].resize(60);
    EXPECT_EQ(got[0].data, frames[1]);
    EXPECT_EQ(s->statistics().received, 2u);
  });
  if (!skipped.empty()) GTEST_SKIP() << skipped;
}

TEST(PacketSocket, AFullRingIsCountedByTheKernelAndNothingElseIsLost) {
  const std::string skipped = run_in_own_network([] {
    auto s = open_lo({.outgoing = false});
    ASSERT_TRUE(s) << s.error().message();
    std::vector<std::vector<std::byte>> frames(100, frame_of(4000, 0));
    for (int i = 0; i < 3; ++i) ASSERT_EQ(send(*s, frames), frames.size());
    s->stop_receiving();
    ASSERT_EQ(send(*s, frames), frames.size());  // not seen any more
    const auto seen = s->statistics();
    EXPECT_EQ(seen.received, 300u);
    EXPECT_GT(seen.dropped, 200u);
    EXPECT_GT(seen.stalls, 0u);
    EXPECT_EQ(receive(*s, seen.received - seen.dropped).size(), seen.received - seen.dropped);
  });
  if (!skipped.empty()) GTEST_SKIP() << skipped;
}

TEST(PacketSocket, ABlockIsTakenOnceUntilItIsGivenBack) {
  const std::string skipped = run_in_own_network([] {
    auto s = open_lo({.outgoing = false});
    ASSERT_TRUE(s) << s.error().message();
    std::vector<std::vector<std::byte>> frames(100, frame_of(4000, 0));
    ASSERT_EQ(send(*s, frames), frames.size());
    std::vector<std::uint32_t> held;
    for (int i = 0; i < 20; ++i) {
      if (const auto block = s->take_block()) held.push_back(*block);
    }
    EXPECT_EQ(held, (std::vector<std::uint32_t>{0, 1, 2, 3}));
    s->give_back(1);  // not in its turn
    EXPECT_FALSE(s->take_block());
    s->give_back(0);
    frames.resize(2);  // each has a block, should the first one's be closed before the second comes
    ASSERT_EQ(send(*s, frames), frames.size());
    EXPECT_EQ(receive(*s, 2).size(), 2u);
    s->give_back(2);
    s->give_back(3);
  });
  if (!skipped.empty()) GTEST_SKIP() << skipped;
}

TEST(PacketSocket, SaysWhenTheInterfaceGoesDown) {
  const std::string skipped = run_in_own_network([] {
    auto s = open_lo({});
    ASSERT_TRUE(s) << s.error().message();
    EXPECT_FALSE(s->take_error());
    ASSERT_TRUE(set_interface_up("lo", false));
    EXPECT_FALSE(net_interface::find("lo")->up);
    EXPECT_TRUE(s->wait(1000));
    EXPECT_EQ(s->take_error().value(), ENETDOWN);
    std::vector<std::byte> frame = frame_of(46, 0);
    iovec segment{frame.data(), frame.size()};
    std::span<iovec> segments(&segment, 1);
    const auto sent = s->transmit({&segments, 1});
    ASSERT_FALSE(sent);
    EXPECT_EQ(sent.error().value(), ENETDOWN);
    ASSERT_TRUE(set_interface_up("lo", true));
    std::vector<std::vector<std::byte>> frames{frame};
    ASSERT_EQ(send(*s, frames), 1u);
    EXPECT_EQ(receive(*s, 1).size(), 1u);
  });
  if (!skipped.empty()) GTEST_SKIP() << skipped;
}

TEST(PacketSocket, RefusesWhatCannotBe) {
  const std::string skipped = run_in_own_network([] {
    const auto lo = net_interface::find("lo");
    ASSERT_TRUE(lo);
    EXPECT_EQ(lo->kind, link_kind::ethernet);
    EXPECT_TRUE(lo->up);
    EXPECT_EQ(lo->mtu_bytes, 65536u);
    for (const std::uint32_t bytes : {0u, 2048u, 5000u}) {
      const auto s = packet_socket::open(*lo, {.block_bytes = bytes});
      ASSERT_FALSE(s) << bytes;
      EXPECT_EQ(s.error().value(), EINVAL);
    }
    const std::array<filter_instruction, 1> endless{{{BPF_JMP | BPF_JA, 0, 0, 7}}};
    EXPECT_EQ(packet_socket::open(*lo, {.filter = endless}).error().value(), EINVAL);
    net_interface gone = *lo;
    gone.index = 4711;
    EXPECT_EQ(packet_socket::open(gone, {}).error().value(), ENODEV);
    for (const char* name : {"", "nowhere", "a-name-that-no-interface-may-have"}) {
      EXPECT_EQ(net_interface::find(name).error().value(), ENODEV) << name;
    }
    EXPECT_EQ(read_counters(4711).error().value(), ENODEV);
  });
  if (!skipped.empty()) GTEST_SKIP() << skipped;
}

TEST(TapInterface, IsAWireOfTheKernels) {
  const std::string skipped = run_in_own_network([] {
    const auto tap = tap_interface::open("fb%d");
    ASSERT_TRUE(tap) << tap.error().message();
    EXPECT_EQ(tap->name(), "fb0");
    const auto down = net_interface::find("fb0");
    ASSERT_TRUE(down);
    EXPECT_FALSE(down->up);
    std::vector<std::byte> frame = frame_of(100, 9);
    const iovec out{frame.data(), frame.size()};
    EXPECT_EQ(tap->send({&out, 1}).error().value(), EIO);
    ASSERT_TRUE(set_interface_up("fb0", true));

    // Written to the descriptor, the kernel has received it.
    auto s = packet_socket::open(*net_interface::find("fb0"),
                                 {.block_bytes = 1u << 16, .blocks = 64, .retire_ms = 1});
    ASSERT_TRUE(s) << s.error().message();
    const auto before = read_counters(down->index);
    ASSERT_TRUE(before);
    ASSERT_TRUE(tap->send({&out, 1}));
    const auto got = receive(*s, 1);
    ASSERT_EQ(got.size(), 1u);
    EXPECT_EQ(got[0].data, frame);
    EXPECT_EQ(read_counters(down->index)->rx_packets, before->rx_packets + 1);

    // Sent by the kernel, it is read from the descriptor; beside what the kernel sends of itself.
    std::vector<std::vector<std::byte>> frames{frame};
    ASSERT_EQ(send(*s, frames), 1u);
    std::array<std::byte, 2048> room;
    const iovec in{room.data(), room.size()};
    bool found = false;
    for (int i = 0; i < 600 && !found; ++i) {
      const int fd = tap->fd();
      ASSERT_TRUE(wait_readable({&fd, 1}, 100));
      const auto n = tap->receive({&in, 1});
      if (!n) {
        EXPECT_EQ(n.error().value(), EAGAIN);
        continue;
      }
      found = *n == frame.size() && std::memcmp(room.data(), frame.data(), *n) == 0;
    }
    EXPECT_TRUE(found);
    EXPECT_EQ(tap_interface::open("fb0").error().value(), EBUSY);
    EXPECT_EQ(tap_interface::open("lo").error().value(), EINVAL);
  });
  if (!skipped.empty()) GTEST_SKIP() << skipped;
}

TEST(Capability, IsNamedAsInTheManual) {
  EXPECT_EQ(name_of(capability::net_raw), "CAP_NET_RAW");
  EXPECT_EQ(name_of(capability::net_admin), "CAP_NET_ADMIN");
  // Who has it may open packet sockets, and nobody else.
  bool has = false;
  int error = 0;
  const std::string skipped = run_in_own_network([&] {
    has = has_capability(capability::net_raw);
    if (auto s = open_lo({}); !s) error = s.error().value();
  });
  if (!skipped.empty()) GTEST_SKIP() << skipped;
  EXPECT_EQ(error, has ? 0 : EPERM);
}

// ---- AF_XDP: here the raw rings; net/port_test.cc has the rest ----

TEST(XdpSocket, RingsCarryFramesToTheKernelAndBack) {
  std::string why;
  const std::string skipped = run_in_own_network([&why] {
    why = why_no_xdp();
    if (!why.empty()) return;
    constexpr std::uint32_t chunk = 2048;
    constexpr std::uint32_t count = 64;
    struct free_memory {
      void operator()(std::byte* p) const { ::operator delete(p, std::align_val_t{4096}); }
    };
    const std::unique_ptr<std::byte, free_memory> memory(
        static_cast<std::byte*>(::operator new(count * chunk, std::align_val_t{4096})));
    const net_interface lo = *net_interface::find("lo");
    xdp_socket::options opts{.memory = {memory.get(), count * chunk},
                             .fill_entries = 32,
                             .rx_entries = 32,
                             .tx_entries = 32,
                             .completion_entries = 32};
    xdp_socket::options wrong = opts;
    wrong.fill_entries = 33;
    EXPECT_EQ(xdp_socket::open(lo, wrong).error(), std::errc::invalid_argument);
    wrong = opts;
    wrong.headroom = chunk;
    EXPECT_EQ(xdp_socket::open(lo, wrong).error(), std::errc::invalid_argument);
    wrong = opts;
    wrong.worst = xdp_mode::native_copy;  // lo has none
    EXPECT_FALSE(xdp_socket::open(lo, wrong));

    auto s = xdp_socket::open(lo, opts);
    ASSERT_TRUE(s) << s.error().message();
    EXPECT_EQ(s->mode(), xdp_mode::generic_copy);
    ASSERT_EQ(s->remarks().size(), 2u);
    EXPECT_NE(s->remarks()[1].find("native, copy on lo"), std::string::npos) << s->remarks()[1];
    // The first half of the chunks to receive into, the second to send from.
    ASSERT_EQ(s->fill().free(32), 32u);
    for (std::uint32_t i = 0; i < 32; ++i) s->fill().put(i, std::uint64_t{i} * chunk);
    s->fill().commit(32);
    ASSERT_EQ(s->tx().free(32), 32u);
    for (std::uint32_t i = 0; i < 32; ++i) {
      const std::vector<std::byte> f = frame_of(46 + i * 40, i);
      const std::uint64_t address = std::uint64_t{32 + i} * chunk;
      std::memcpy(memory.get() + address, f.data(), f.size());
      s->tx().put(i, {address, static_cast<std::uint32_t>(f.size()), 0});
    }
    s->tx().commit(32);
    ASSERT_TRUE(s->tx_needs_wakeup());  // as always where the kernel copies
    for (int tries = 0; tries < 100 && !s->tx().all_taken(); ++tries) {
      static_cast<void>(s->wake_tx());
    }
    for (int tries = 0; tries < 6000 && s->rx().ready(32) < 32; ++tries) {
      ASSERT_TRUE(s->wait(10));
    }
    ASSERT_EQ(s->rx().ready(32), 32u);
    for (std::uint32_t i = 0; i < 32; ++i) {
      const xdp_descriptor d = s->rx().get(i);
      const std::vector<std::byte> f = frame_of(46 + i * 40, i);
      EXPECT_EQ(d.address % chunk, xdp_socket::headroom_min);
      EXPECT_LT(d.address, std::uint64_t{32} * chunk);
      ASSERT_EQ(d.length, f.size());
      EXPECT_EQ(std::memcmp(memory.get() + d.address, f.data(), f.size()), 0);
    }
    s->rx().release(32);
    ASSERT_TRUE(eventually([&] { return s->completion().ready(32) == 32; }));
    for (std::uint32_t i = 0; i < 32; ++i) {
      EXPECT_EQ(s->completion().get(i), std::uint64_t{32 + i} * chunk);
    }
    s->completion().release(32);
    const xdp_socket::counters c = s->statistics();
    EXPECT_EQ(c.rx_dropped + c.rx_ring_full + c.rx_bad_addresses + c.tx_bad_descriptors, 0u);
  });
  if (!skipped.empty() || !why.empty()) GTEST_SKIP() << skipped << why;
}

}  // namespace
}  // namespace forebay
