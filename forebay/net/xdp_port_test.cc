// The port on AF_XDP, its domain, and the filters that are translated for it.

#include "forebay/net/xdp_port.h"

#include <bpf/bpf.h>
#include <gtest/gtest.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "forebay/net/headers.h"
#include "forebay/net/packet_filter.h"
#include "forebay/net/packet_port.h"
#include "forebay/net/packet_queue.h"
#include "forebay/net/test_port.h"
#include "forebay/os/test_await.h"
#include "forebay/os/test_network.h"
#include "forebay/os/test_xdp.h"
#include "forebay/os/xdp_filter.h"

namespace forebay {
namespace {

// A pair of interfaces of the own network, near and far, and a pool for an XDP port on far.
class XdpPort : public Port {
 protected:
  void SetUp() override {
    Port::SetUp();
    auto a = arena::create({.bytes = 8 << 20});
    ASSERT_TRUE(a);
    frames_ = std::move(*a);
    auto options = xdp_port::pool_options("frames", 2048, 1024);
    options.registry = &registry_;
    auto p = packet_pool::create(*frames_, options);
    ASSERT_TRUE(p) << p.error().message();
    frame_pool_ = std::move(*p);
  }

  // Runs `body` with the pair; skips if that cannot be.
  void with_pair(const std::function<void()>& body) {
    std::string reason = "no veth pair can be made with ip(8)";
    std::string skipped = run_in_own_network([&] {
      if (const std::string why = why_no_xdp(); !why.empty()) {
        reason = why;
        return;
      }
      if (std::system("ip link add near type veth peer name far 2>/dev/null") != 0) return;
      // Else the kernel speaks on them by itself, when it likes. Where it cannot, all the better.
      static_cast<void>(std::system(
          "for i in near far; do echo 1 > /proc/sys/net/ipv6/conf/$i/disable_ipv6; done "
          "2>/dev/null"));
      ASSERT_TRUE(set_interface_up("near", true));
      ASSERT_TRUE(set_interface_up("far", true));
      made_pair_ = true;
      body();
    });
    if (skipped.empty() && !made_pair_) skipped = reason;
    if (!skipped.empty()) GTEST_SKIP() << skipped;
  }
  std::unique_ptr<xdp_port> open_far(const xdp_port::options& opts = {}) {
    auto made = xdp_port::open(*net_interface::find("far"), opts, *frames_, *frame_pool_);
    EXPECT_TRUE(made) << made.error().message();
    return made ? std::move(*made) : nullptr;
  }
  std::unique_ptr<packet_port> open_near() {
    auto made = packet_port::open(
        *net_interface::find("near"),
        {.block_bytes = 1u << 16, .blocks = 64, .retire_ms = 1, .outgoing = false}, *pool_);
    EXPECT_TRUE(made) << made.error().message();
    return made ? std::move(*made) : nullptr;
  }
  std::vector<packet> numbered(std::uint32_t first, std::uint32_t count) {
    std::vector<packet> made;
    for (std::uint32_t i = 0; i < count; ++i) made.push_back(frame(first + i));
    return made;
  }
  bool is_in_umem(const packet& p) const {
    const std::span<std::byte> all = frames_->memory();
    return p->data() >= all.data() && p->data() < all.data() + all.size();
  }
  std::uint64_t frames_in_use() const { return frame_pool_->statistics().buffers.in_use; }

  memory_registry registry_;
  std::unique_ptr<arena> frames_;
  std::unique_ptr<packet_pool> frame_pool_;
  bool made_pair_ = false;
};

TEST_F(XdpPort, PacketsTurnRoundWhereTheyWereReceived) {
  for (const xdp_mode mode : {xdp_mode::native_zero_copy, xdp_mode::generic_copy}) {
    with_pair([&] {
      const auto far = open_far({.receive_frames = 256,
                                 .transmit_frames = 256,
                                 .best = mode,
                                 .checks = {.check = dma_check::abort}});
      const auto near = open_near();
      ASSERT_TRUE(far && near);
      // A veth pair has no zero copy: that is said.
      EXPECT_EQ(far->mode(), mode == xdp_mode::generic_copy ? mode : xdp_mode::native_copy);
      EXPECT_EQ(far->remarks().size(), mode == xdp_mode::generic_copy ? 0u : 1u);
      EXPECT_EQ(frames_in_use(), 256u);
      std::uint32_t came = 0;
      for (std::uint32_t sent = 0; sent < 1000; sent += 100) {
        auto out = numbered(sent, 100);
        send_all(*near, out);
        auto got = receive(*far, 100);
        ASSERT_EQ(got.size(), 100u);
        for (const packet& p : got) {
          EXPECT_EQ(number_of(p), came++);
          EXPECT_TRUE(is_in_umem(p));
          EXPECT_EQ(&p->pool(), frame_pool_.get());
          EXPECT_GE(p->headroom(), 256u);
          EXPECT_NE(p->timestamp_ns(), 0u);
          EXPECT_TRUE(p->push(64) && p->pull(64));
        }
        send_all(*far, got);
        got = receive(*near, 100);
        ASSERT_EQ(got.size(), 100u);
        EXPECT_EQ(number_of(got[99]), sent + 99);
      }
      EXPECT_EQ(far->copied(), 0u);
      const port_statistics s = far->statistics();
      EXPECT_EQ(s.transmitted, 1000u);
      EXPECT_GE(s.delivered, 1000u);  // the kernel has to say something, too, now and then
      EXPECT_EQ(s.received, s.delivered + s.dropped_full + s.dropped_memory + s.dropped_malformed);
      EXPECT_EQ(s.dropped_full + s.dropped_memory + s.dropped_malformed + s.dropped_interface, 0u);
    });
    EXPECT_EQ(frames_in_use(), 0u);  // also those that were in the kernel's hands
    made_pair_ = false;
  }
}

TEST_F(XdpPort, WhatIsKeptIsReplacedAndWhatIsForeignIsCopiedOnce) {
  with_pair([&] {
    const auto far = open_far({.receive_frames = 256, .transmit_frames = 64});
    const auto near = open_near();
    ASSERT_TRUE(far && near);
    // More packets are kept than the fill ring has room for.
    std::vector<packet> kept;
    for (std::uint32_t i = 0; i < 600; i += 100) {
      auto out = numbered(i, 100);
      send_all(*near, out);
      for (packet& p : receive(*far, 100)) kept.push_back(std::move(p));
    }
    ASSERT_EQ(kept.size(), 600u);
    for (std::uint32_t i = 0; i < 600; ++i) EXPECT_EQ(number_of(kept[i]), i);
    EXPECT_GE(frames_in_use(), 600u + 192);

    // A clone goes as it is; the second of two in one frame, what lies in fragments, and what is of
    // another pool are copied.
    std::vector<packet> out;
    out.push_back(std::move(*kept[0]->clone()));
    out.push_back(std::move(*kept[0]->clone()));
    packet parts = frame(500);
    packet rest = std::move(*parts->split(40));
    ASSERT_TRUE(parts->append(std::move(rest)));
    out.push_back(std::move(parts));
    out.push_back(frame(700));
    send_all(*far, out);
    const std::vector<packet> got = receive(*near, 4);
    ASSERT_EQ(got.size(), 4u);
    EXPECT_EQ(number_of(got[0]), 0);
    EXPECT_EQ(number_of(got[1]), 0);
    EXPECT_EQ(got[2]->length(), 60u + 500 * 7 % 1400);
    EXPECT_EQ(number_of(got[3]), 700);
    EXPECT_GE(far->copied(), 2u);
    EXPECT_LE(far->copied(), 3u);  // the first clone may have come back before the second went

    // What no frame has room for, and what is no frame, is refused and stays.
    packet large = pool_->try_allocate();
    static_cast<void>(large->put_unchecked(1600));
    packet small = pool_->try_allocate();
    static_cast<void>(small->put_unchecked(13));
    for (packet* p : {&large, &small}) {
      EXPECT_EQ(far->transmit({p, 1}).error(), std::errc::message_size);
      EXPECT_TRUE(*p);
    }
  });
}

TEST_F(XdpPort, WhatFindsNoRoomIsCountedByItsCause) {
  with_pair([&] {
    const auto far = open_far({.receive_frames = 64, .transmit_frames = 64});
    const auto near = open_near();
    ASSERT_TRUE(far && near);
    // The rx ring is full before a frame is wanting.
    for (std::uint32_t i = 0; i < 200; i += 50) {
      auto out = numbered(i, 50);
      send_all(*near, out);
    }
    EXPECT_TRUE(eventually([&] { return far->statistics().received >= 200; }));
    port_statistics s = far->statistics();
    EXPECT_GE(s.dropped_full + s.dropped_memory, 136u);
    const std::vector<packet> got = receive(*far, 1000, 10);
    EXPECT_LE(got.size(), 64u);
    s = far->statistics();
    // One of the kernel's own, which speaks IPv6 on a new interface, may have come just now.
    for (int i = 0; i < 100 && s.received != s.delivered + s.dropped_full + s.dropped_memory; ++i) {
      receive(*far, 1, 1);
      s = far->statistics();
    }
    EXPECT_EQ(s.dropped_malformed, 0u);
    EXPECT_EQ(s.received, s.delivered + s.dropped_full + s.dropped_memory);
    EXPECT_EQ(s.dropped_interface, 0u);

    // When all buffers are in other hands none is left to receive into.
    std::vector<packet> hoarded;
    while (packet p = frame_pool_->try_allocate()) hoarded.push_back(std::move(p));
    const std::uint64_t before = s.dropped_memory;
    for (std::uint32_t i = 0; i < 300; i += 50) {
      auto out = numbered(i, 50);
      send_all(*near, out);
      for (packet& p : receive(*far, 50, 2)) hoarded.push_back(std::move(p));
    }
    EXPECT_GT(far->statistics().dropped_memory, before);
    hoarded.clear();
    auto out = numbered(0, 10);
    static_cast<void>(receive(*far, 1, 1));  // takes frames again
    send_all(*near, out);
    EXPECT_EQ(receive(*far, 10).size(), 10u);

    // After stop() the packets are the machine's again.
    far->stop();
    out = numbered(0, 10);
    send_all(*near, out);
    EXPECT_EQ(receive(*far, 10, 10).size(), 0u);
    EXPECT_TRUE(far->drained());
  });
}

TEST_F(XdpPort, GoesDownAndAwayWithItsInterface) {
  with_pair([&] {
    const net_interface at = *net_interface::find("far");
    auto far = open_far({.receive_frames = 64, .transmit_frames = 64});
    ASSERT_TRUE(far);
    // A second one at the same place finds it taken; when the first goes the place is free.
    EXPECT_EQ(xdp_port::open(at, {}, *frames_, *frame_pool_).error(),
              std::errc::device_or_resource_busy);
    far.reset();
    far = open_far({.receive_frames = 64, .transmit_frames = 64});
    ASSERT_TRUE(far);
    EXPECT_EQ(far->state(), link_state::up);
    ASSERT_TRUE(set_interface_up("far", false));
    EXPECT_EQ(far->state(), link_state::down);
    auto out = numbered(1, 2);
    // The first is taken and waits; then it is known.
    static_cast<void>(far->transmit(std::span(out).first(1)));
    EXPECT_EQ(far->transmit(std::span(out).last(1)).error(), std::errc::network_down);
    EXPECT_TRUE(out[1]);
    ASSERT_TRUE(set_interface_up("far", true));
    EXPECT_TRUE(far->transmit(std::span(out).last(1)));
    EXPECT_FALSE(out[1]);
    ASSERT_EQ(std::system("ip link del far"), 0);
    EXPECT_EQ(far->state(), link_state::gone);
    EXPECT_TRUE(far->wait(0));
  });
}

// The sender's kernel chooses the queue by the flow.
TEST_F(XdpPort, ReadsAllQueuesOrThoseItIsToldTo) {
  with_pair([&] {
    ASSERT_EQ(std::system("ip link del far && ip link add near numtxqueues 2 numrxqueues 2 "
                          "type veth peer name far numtxqueues 2 numrxqueues 2"),
              0);
    ASSERT_TRUE(set_interface_up("near", true) && set_interface_up("far", true));
    ASSERT_EQ(receive_queues(*net_interface::find("far")), 2u);
    constexpr std::size_t flows = 64;
    const auto near = open_near();
    ASSERT_TRUE(near);
    // What passes goes on to the machine, of which this is a part.
    auto machine = packet_port::open(
        *net_interface::find("far"),
        {.block_bytes = 1u << 16, .blocks = 64, .retire_ms = 1, .outgoing = false}, *pool_);
    ASSERT_TRUE(machine);
    // The flows that come at a port.
    const auto take = [](port& from, std::set<std::uint16_t>& came) {
      std::array<packet, 32> burst;
      const std::size_t n = from.receive(burst);
      for (std::size_t i = 0; i < n; ++i) {
        const auto h = parse_headers(burst[i]);
        if (!h || h->transport != transport_kind::udp) continue;
        const std::span<const std::byte> d = burst[i]->linear().subspan(h->transport_offset);
        came.insert(static_cast<std::uint16_t>(std::to_integer<unsigned>(d[0]) << 8 |
                                               std::to_integer<unsigned>(d[1])));
      }
      return n;
    };
    // A packet of each flow; the flows that come at `far`, once all have come there or passed.
    const auto pass = [&](xdp_port& far) {
      std::vector<packet> out;
      for (std::uint16_t i = 0; i < flows; ++i) {
        packet p = pool_->try_allocate();
        std::memset(*p->put(20), 1, 20);
        const ipv4_endpoints ends{.source = {10, 9, 0, 1}, .destination = {10, 9, 0, 2}};
        EXPECT_TRUE(push_udp(*p, static_cast<std::uint16_t>(4000 + i), 7777, ends));
        EXPECT_TRUE(push_ipv4(*p, ends, ip_protocol::udp));
        EXPECT_TRUE(push_ethernet(*p, {2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}, ether_type::ipv4));
        out.push_back(std::move(p));
      }
      send_all(*near, out);
      std::set<std::uint16_t> came;
      std::set<std::uint16_t> passed;
      for (int tries = 0; tries < 6000 && came.size() + passed.size() < flows; ++tries) {
        if (take(far, came) + take(**machine, passed) == 0) static_cast<void>(far.wait(10));
      }
      return came;
    };
    auto far = open_far({.receive_frames = 128, .transmit_frames = 64});
    ASSERT_TRUE(far);
    EXPECT_EQ(far->queues(), 2u);
    EXPECT_EQ(far->remarks().size(), 1u);  // no zero copy
    EXPECT_EQ(pass(*far).size(), flows);
    EXPECT_EQ(far->statistics().dropped_interface, 0u);
    // One of the two: it is said that there is another one, whose packets are the machine's.
    std::set<std::uint16_t> each_once;
    for (std::uint32_t queue = 0; queue < 2; ++queue) {
      far.reset();
      far = open_far({.queue = queue, .queues = 1, .receive_frames = 128, .transmit_frames = 64});
      ASSERT_TRUE(far);
      ASSERT_EQ(far->remarks().size(), 2u);
      EXPECT_NE(far->remarks()[1].find("2 receive queues"), std::string::npos);
      const std::set<std::uint16_t> came = pass(*far);
      EXPECT_TRUE(!came.empty() && came.size() < flows) << came.size();
      for (const std::uint16_t flow : came) EXPECT_TRUE(each_once.insert(flow).second) << flow;
    }
    EXPECT_EQ(each_once.size(), flows);
  });
}

// Packets go round: near sends, one thread receives them at far, another sends them back.
TEST_F(XdpPort, OneThreadReceivesAndAnotherSends) {
  with_pair([&] {
    const auto far = open_far(
        {.receive_frames = 256, .transmit_frames = 256, .checks = {.check = dma_check::abort}});
    const auto near = open_near();
    ASSERT_TRUE(far && near);
    const auto between = std::move(*packet_queue::create({.capacity = 256}));
    constexpr std::uint32_t count = 2000;
    std::jthread sender([&](const std::stop_token& stop) {
      while (!stop.stop_requested()) {
        std::array<packet, 16> burst;
        std::span<packet> left = std::span(burst).first(between->pop_burst(burst));
        if (left.empty()) std::this_thread::yield();
        while (!left.empty()) {
          const auto n = far->transmit(left);
          ASSERT_TRUE(n);
          left = left.subspan(*n);
        }
      }
    });
    std::uint32_t came_back = 0;
    for (std::uint32_t i = 0; i < count; i += 50) {
      auto out = numbered(i, 50);
      send_all(*near, out);
      for (packet& p : receive(*far, 50)) ASSERT_TRUE(between->push(std::move(p)));
      for (const packet& p : receive(*near, 50)) EXPECT_EQ(number_of(p), came_back++);
    }
    sender.request_stop();
    sender.join();
    EXPECT_EQ(came_back, count);
    EXPECT_EQ(far->copied(), 0u);
    EXPECT_EQ(far->statistics().transmitted, count);
  });
  EXPECT_EQ(frames_in_use(), 0u);
}

TEST_F(XdpPort, RefusesWhatCannotBe) {
  with_pair([&] {
    const net_interface at = *net_interface::find("far");
    // A pool of another arena.
    EXPECT_EQ(xdp_port::open(at, {}, *frames_, *pool_).error(), std::errc::invalid_argument);
    EXPECT_EQ(xdp_port::open(at, {.queue = 100}, *frames_, *frame_pool_).error(),
              std::errc::invalid_argument);
    ASSERT_EQ(std::system("ip link set far mtu 3000; ip link set near mtu 3000"), 0);
    EXPECT_EQ(*xdp_port::buffer_bytes_for(3000), 4096u);
    EXPECT_EQ(xdp_port::buffer_bytes_for(9000).error(), errc::too_large);
    EXPECT_EQ(xdp_port::open(*net_interface::find("far"), {}, *frames_, *frame_pool_).error(),
              errc::too_large);
    EXPECT_EQ(receive_queues(at), 1u);
  });
  EXPECT_EQ(frames_in_use(), 0u);
}

// Packets of many kinds, and what is cut off or spoilt in them, through the kernel's own run of the
// translated filter and through libpcap's of the classic one.
TEST(XdpFilter, ChoosesWhatTheClassicProgramChooses) {
  constexpr std::array<const char*, 17> texts{
      "arp",
      "ip host 10.9.0.2 or arp dst host 10.9.0.2",
      "icmp[icmptype] = icmp-echo",
      "udp port 7777 or tcp[13] & 2 != 0",
      "ip6 and udp dst portrange 1000-8000",
      "greater 100",
      "less 200 and not broadcast",
      "vlan 5 and ip",
      "ip[2:2] - 20 > ether[14] % 7",
      "ether[12:2] * 3 + ether[20] << 2 > 4000",
      "net 10.9.0.0/16 and not multicast",
      "ip6 proto 17",
      "(ether[14] >> 2 ^ 5) & 3 = 1",
      "-ether[15] < 0xffffff80",
      "2 << (len & 63) > 100 or 0x80000000 >> (len & 63) > 7",
      "ether[14:4] % ether[15] > 9 or ether[22:2] | len = 0x4011",
      "udp[8:4] & 0x00ff00ff = 0x00010002 or len / (ether[13] & 3) > 90",
  };
  const std::array<bpf_insn, 2> drop{{
      {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .src_reg = 0, .off = 0, .imm = XDP_DROP},
      {.code = BPF_JMP | BPF_EXIT, .dst_reg = 0, .src_reg = 0, .off = 0, .imm = 0},
  }};
  std::mt19937 random(5);
  const auto below = [&](unsigned n) { return static_cast<unsigned>(random() % n); };
  unsigned chosen = 0;
  for (const char* text : texts) {
    auto filter = packet_filter::for_packets(text, pcapng::link_type::ethernet, 65535);
    ASSERT_TRUE(filter) << text << ": " << filter.error();
    const auto code = translate_filter(filter->program(), drop);
    ASSERT_TRUE(code) << text << ": " << code.error().message();
    const unique_fd program(
        bpf_prog_load(BPF_PROG_TYPE_XDP, "test", "BSD", code->data(), code->size(), nullptr));
    if (!program && errno == EPERM) GTEST_SKIP() << "not allowed to load programs";
    ASSERT_TRUE(program) << text << ": " << std::strerror(errno);
    for (unsigned turn = 0; turn < 200; ++turn) {
      // A packet with headers that make sense, mostly.
      static constexpr std::array<unsigned char, 62> good{
          2,    0, 0,    0,    0, 2,  2, 0, 0,  0,  0, 1, 8,  0,                     // Ethernet
          0x45, 0, 0,    48,   0, 0,  0, 0, 64, 17, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2,  // IPv4
          0x30, 0, 0x1e, 0x61, 0, 28, 0, 0, 0,  1,  0, 2};                           // UDP
      std::array<unsigned char, 300> bytes{};
      std::ranges::copy(good, bytes.begin());
      const unsigned kind = below(8);
      if (kind == 0) bytes[13] = 6;                                       // ARP
      if (kind == 1) bytes[12] = 0x86, bytes[13] = 0xdd, bytes[20] = 17;  // IPv6
      if (kind == 2) bytes[12] = 0x81, bytes[13] = 0, bytes[15] = 5, bytes[16] = 8, bytes[17] = 0;
      if (kind == 3) bytes[23] = 1, bytes[34] = 8;  // ICMP
      if (kind == 4) bytes[23] = 6, bytes[47] = 2;  // TCP
      if (kind == 5) bytes[14] = static_cast<unsigned char>(0x40 | below(16));
      for (unsigned spoilt = below(4); spoilt > 0; --spoilt) {
        bytes[below(60)] = static_cast<unsigned char>(below(256));
      }
      const unsigned length = 14 + below(turn % 2 == 0 ? 60 : 286);
      bpf_test_run_opts run{};
      run.sz = sizeof run;
      run.data_in = bytes.data();
      run.data_size_in = length;
      ASSERT_EQ(bpf_prog_test_run_opts(program.get(), &run), 0) << std::strerror(errno);
      const bool wanted = filter->matches(std::as_bytes(std::span(bytes).first(length)), length);
      ASSERT_EQ(run.retval == XDP_DROP, wanted) << text << ", length " << length;
      ASSERT_TRUE(wanted || run.retval == XDP_PASS);
      chosen += wanted;
    }
  }
  EXPECT_GT(chosen, 300u);
  // Nothing that is no program, nor asks for what a packet does not have.
  const std::array<filter_instruction, 2> extension{
      {{.code = 0x28, .k = 0xffff'f02c}, {.code = 6}}};
  EXPECT_EQ(translate_filter(extension, drop).error().value(), ENOTSUP);
  const std::array<filter_instruction, 2> far{{{.code = 5, .k = 7}, {.code = 6}}};
  EXPECT_EQ(translate_filter(far, drop).error(), std::errc::invalid_argument);
  EXPECT_EQ(translate_filter(std::span(far).first(1), drop).error(), std::errc::invalid_argument);
  EXPECT_FALSE(translate_filter({}, drop));
  // Codes that the classic machine does not have, though their parts are known: loads by another
  // size or class, bits that say nothing there, an odd return; and a shift by all bits.
  for (const std::uint16_t code : {0xa0, 0xa1, 0xb0, 0x29,  0x31, 0x21, 0x41,  0x18, 0x88, 0x0a,
                                   0x8c, 0xb4, 0x0d, 0x107, 0x0f, 0x47, 0x100, 0x3c, 0x64, 0x74}) {
    const std::array<filter_instruction, 2> one{{{.code = code, .k = 32}, {.code = 6}}};
    const bool is_classic = code == 0x3c;  // a / x
    EXPECT_EQ(translate_filter(one, drop).has_value(), is_classic) << code;
  }
  const std::array<filter_instruction, 1> odd_return{{{.code = 0x1e}}};
  EXPECT_FALSE(translate_filter(odd_return, drop));
  // One with a loop, which the kernel does not take for packet sockets either.
  auto loop = packet_filter::for_packets("ip6 protochain 17", pcapng::link_type::ethernet, 65535);
  ASSERT_TRUE(loop) << loop.error();
  EXPECT_EQ(translate_filter(loop->program(), drop).error(), std::errc::invalid_argument);
}

TEST_F(XdpPort, TakesFromTheMachineOnlyWhatItsFilterChooses) {
  with_pair([&] {
    auto filter = packet_filter::for_packets("greater 1000", pcapng::link_type::ethernet, 65535);
    ASSERT_TRUE(filter);
    const auto far =
        open_far({.receive_frames = 256, .transmit_frames = 64, .filter = filter->program()});
    const auto near = open_near();
    // What passes goes on to the machine, of which this is a part.
    auto machine = packet_port::open(
        *net_interface::find("far"),
        {.block_bytes = 1u << 16, .blocks = 16, .retire_ms = 1, .outgoing = false}, *pool_);
    ASSERT_TRUE(far && near && machine);
    auto out = numbered(0, 200);
    std::size_t large = 0;
    for (const packet& p : out) large += p->length() >= 1000;
    send_all(*near, out);
    EXPECT_EQ(receive(*far, large).size(), large);
    EXPECT_EQ(receive(**machine, 200 - large).size(), 200 - large);
    EXPECT_EQ(receive(*far, 1, 2).size(), 0u);
  });
}

TEST_F(XdpPort, AChunkThatLeftTheArenaIsNoneOfTheUmems) {
  auto domain = std::move(*umem_domain::create(*frames_, 2048, {.check = dma_check::off}));
  EXPECT_EQ(umem_domain::create(*frames_, 1000).error(), std::errc::invalid_argument);
  const std::span<std::byte> all = domain->area();
  ASSERT_EQ(all.data(), frames_->memory().data());
  constexpr auto from = dma_direction::from_device;
  const auto mapped = domain->map(all.subspan(4096 + 256, 1500), from);
  ASSERT_TRUE(mapped);
  EXPECT_EQ(to_number(mapped->address), 4096u + 256);
  domain->unmap(*mapped, from);
  EXPECT_EQ(domain->map(all.subspan(2000, 100), from).error(), errc::too_large);
  std::array<std::byte, 64> elsewhere{};
  EXPECT_EQ(domain->map(elsewhere, from).error(), std::errc::bad_address);

  const std::uint32_t last = frames_->chunk_count() - 1;
  const std::span<std::byte> part = frames_->memory_of(last).first(2048);
  EXPECT_TRUE(domain->map(part, from));
  ASSERT_TRUE(frames_->isolate_chunk(last));
  ASSERT_TRUE(frames_->give_back(last));
  EXPECT_TRUE(domain->is_lost(last));
  ASSERT_TRUE(frames_->bring_back());
  EXPECT_EQ(domain->map(part, from).error(), std::errc::bad_address);
}

}  // namespace
}  // namespace forebay
