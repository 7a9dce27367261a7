#include "forebay/net/echo.h"

#include <random>
#include <vector>

#include "forebay/net/test_headers.h"
#include "forebay/net/test_packets.h"

namespace forebay {
namespace {

constexpr mac_address peer_mac{2, 0, 0, 0, 0, 1};
constexpr mac_address our_mac{2, 0, 0, 0, 0, 2};
constexpr mac_address everybody{255, 255, 255, 255, 255, 255};
constexpr ipv4_address peer4{10, 0, 0, 1};
constexpr ipv4_address our4{10, 0, 0, 2};
constexpr ipv6_address peer6{0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1};
constexpr ipv6_address our6{0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xa, 0xb, 0xc, 0xd, 2};
constexpr echo_identity us{.mac = our_mac, .ipv4 = our4, .ipv6 = our6};

packet payload(const test_packets& t, std::size_t n) {
  packet p = t->try_allocate();
  std::byte* const at = *p->put(n);
  for (std::size_t i = 0; i < n; ++i) at[i] = static_cast<std::byte>(i);
  return p;
}

packet ping4(const test_packets& t, const ipv4_endpoints& ip = {peer4, our4}) {
  packet p = payload(t, 56);
  EXPECT_TRUE(push_icmp(*p, icmp_header::echo_request, 0, 0x00010002));
  EXPECT_TRUE(push_ipv4(*p, ip, ip_protocol::icmp));
  EXPECT_TRUE(push_vlan(*p, 5, ether_type::ipv4));
  EXPECT_TRUE(push_ethernet(*p, peer_mac, our_mac, ether_type::vlan));
  return p;
}

packet udp6(const test_packets& t, std::uint16_t source = 5000) {
  packet p = payload(t, 33);
  const ipv6_endpoints ip{peer6, our6};
  EXPECT_TRUE(push_udp(*p, source, 7, ip));
  EXPECT_TRUE(push_ipv6(*p, ip, ip_protocol::udp));
  EXPECT_TRUE(push_ethernet(*p, peer_mac, our_mac, ether_type::ipv6));
  return p;
}

// What is at `offset` once the answer has been looked through.
template <typename Header>
const Header& answer(const packet& p, std::size_t offset) {
  return header_at<Header>(p->linear(), offset);
}

void expect_right(packet& p) {
  const auto h = parse_headers(p);
  ASSERT_TRUE(h);
  EXPECT_EQ(check_checksums(*p, *h), checksum_state::right);
  EXPECT_EQ(answer<ethernet_header>(p, 0).source, our_mac);
  EXPECT_EQ(answer<ethernet_header>(p, 0).destination, peer_mac);
}

TEST(echo, arp_for_our_address) {
  const test_packets t;
  packet p = t->try_allocate();
  arp_packet request{};
  request.operation = arp_packet::request;
  request.sender_mac = peer_mac;
  request.sender = peer4;
  request.target = our4;
  ASSERT_TRUE(put_arp(*p, request));
  ASSERT_TRUE(push_ethernet(*p, peer_mac, everybody, ether_type::arp));
  packet other = std::move(*p->copy());
  EXPECT_EQ(turn_round(*p, us), echo_answer::arp);
  expect_right(p);
  const auto& a = answer<arp_packet>(p, 14);
  EXPECT_EQ(a.operation, arp_packet::reply);
  EXPECT_EQ(a.sender_mac, our_mac);
  EXPECT_EQ(a.sender, our4);
  EXPECT_EQ(a.target_mac, peer_mac);
  EXPECT_EQ(a.target, peer4);
  EXPECT_EQ(turn_round(*p, us), echo_answer::not_ours);  // an answer is not answered
  header_at<arp_packet>(*other->writable(), 14).target = {10, 0, 0, 3};
  EXPECT_EQ(turn_round(*other, us), echo_answer::not_ours);
}

TEST(echo, pings_and_udp_in_the_same_buffer_without_an_allocation) {
  const test_packets t;
  packet p = ping4(t);
  const std::byte* const data = p->data();
  const std::uint64_t allocations = t->statistics().buffers.allocations;
  EXPECT_EQ(turn_round(*p, us), echo_answer::icmp);
  EXPECT_EQ(p->data(), data);
  expect_right(p);
  EXPECT_EQ(answer<icmp_header>(p, 38).type, icmp_header::echo_reply);
  EXPECT_EQ(answer<icmp_header>(p, 38).rest, 0x00010002u);
  EXPECT_EQ(answer<ipv4_header>(p, 18).destination, peer4);
  EXPECT_EQ(p->network_offset(), 18);
  EXPECT_EQ(p->length(), 18u + 20 + 8 + 56);

  packet u = udp6(t);
  EXPECT_EQ(turn_round(*u, us), echo_answer::udp);
  expect_right(u);
  EXPECT_EQ(answer<udp_header>(u, 54).source, 7);
  EXPECT_EQ(answer<udp_header>(u, 54).destination, 5000);
  EXPECT_EQ(t->statistics().buffers.allocations, allocations + 1);

  packet six = payload(t, 8);
  const ipv6_endpoints ip{peer6, our6};
  ASSERT_TRUE(push_icmpv6(*six, icmp_header::v6_echo_request, 0, 9, ip));
  ASSERT_TRUE(push_ipv6(*six, ip, ip_protocol::icmpv6));
  ASSERT_TRUE(push_ethernet(*six, peer_mac, our_mac, ether_type::ipv6));
  EXPECT_EQ(turn_round(*six, us), echo_answer::icmpv6);
  expect_right(six);
}

TEST(echo, a_neighbour_learns_our_address_with_and_without_an_option_in_the_question) {
  const test_packets t;
  for (const std::size_t option : {0u, 8u, 16u}) {
    packet p = t->try_allocate();
    std::byte* const at = *p->put(16 + option);
    std::fill_n(at, 16 + option, std::byte{1});
    std::ranges::copy(std::as_bytes(std::span(our6)), at);
    const ipv6_endpoints ip{peer6, {0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0xc, 0xd, 2}};
    ASSERT_TRUE(push_icmpv6(*p, icmp_header::v6_neighbour_solicitation, 0, 0, ip));
    ASSERT_TRUE(push_ipv6(*p, ip, ip_protocol::icmpv6));
    header_at<ipv6_header>(*p->writable(), 0).hop_limit = 255;
    ASSERT_TRUE(push_ethernet(*p, peer_mac, {0x33, 0x33, 0xff, 0xc, 0xd, 2}, ether_type::ipv6));
    EXPECT_EQ(turn_round(*p, us), echo_answer::neighbour);
    expect_right(p);
    EXPECT_EQ(p->length(), 14u + 40 + 32);
    EXPECT_EQ(answer<icmp_header>(p, 54).type, icmp_header::v6_neighbour_advertisement);
    EXPECT_EQ(answer<ipv6_address>(p, 62), our6);
    EXPECT_EQ(answer<mac_address>(p, 80), our_mac);
  }
}

TEST(echo, what_is_not_answered_is_left_as_it_was) {
  const test_packets t;
  const auto expect = [&](packet p, echo_answer answer) {
    packet before = std::move(*p->copy());
    EXPECT_EQ(turn_round(*p, us), answer);
    EXPECT_TRUE(std::ranges::equal(p->linear(), before->linear()));
  };
  expect(ping4(t, {peer4, {10, 0, 0, 9}}), echo_answer::not_ours);
  expect(ping4(t, {{224, 0, 0, 1}, our4}), echo_answer::not_ours);
  expect(udp6(t, 53), echo_answer::not_ours);  // another service could answer, for ever
  packet wrong = ping4(t);
  (*wrong->writable())[60] ^= std::byte{1};
  expect(std::move(wrong), echo_answer::bad_checksum);
  packet fragment = ping4(t);
  auto& ip = header_at<ipv4_header>(*fragment->writable(), 18);
  ip.checksum = updated_checksum(ip.checksum, ip.fragment, ipv4_header::more_fragments);
  ip.fragment = ipv4_header::more_fragments;
  expect(std::move(fragment), echo_answer::not_ours);
  packet cut = ping4(t);
  cut->trim(60);
  expect(std::move(cut), echo_answer::malformed);
  packet shared = ping4(t);
  const packet clone = std::move(*shared->clone());
  expect(std::move(shared), echo_answer::not_writable);
}

TEST(echo, macswap_turns_everything_round) {
  const test_packets t;
  packet p = payload(t, 14);
  ASSERT_TRUE(push_ethernet(*p, peer_mac, everybody, 0x9999));
  EXPECT_EQ(turn_round(*p, {.swap_everything = true}), echo_answer::swapped);
  EXPECT_EQ(answer<ethernet_header>(p, 0).destination, peer_mac);
  EXPECT_EQ(answer<ethernet_header>(p, 0).source, everybody);
  p->trim(13);
  EXPECT_EQ(turn_round(*p, {.swap_everything = true}), echo_answer::malformed);
}

// A checksum that the sender left to his device, as on a veth pair, is made.
TEST(echo, completes_the_checksum_that_a_device_was_to_make) {
  const test_packets t;
  packet p = udp6(t);
  internet_sum pseudo;
  pseudo.add_pseudo_header(answer<ipv6_header>(p, 14), ip_protocol::udp, 41);
  header_at<udp_header>(*p->writable(), 54).checksum = pseudo.folded();
  EXPECT_EQ(turn_round(*p, us), echo_answer::udp);
  expect_right(p);
}

// Whatever comes: answers have right checksums and go to who asked.
TEST(echo, answers_to_changed_packets_are_right_or_none) {
  const test_packets t;
  std::minstd_rand random(2);
  unsigned answers = 0;
  for (int i = 0; i < 5'000; ++i) {
    packet p = random() % 2 == 0 ? ping4(t) : udp6(t);
    const auto bytes = *p->writable();
    for (unsigned n = random() % 3; n > 0; --n) {
      bytes[random() % bytes.size()] = static_cast<std::byte>(random());
    }
    const ethernet_header before = answer<ethernet_header>(p, 0);
    if (!is_answer(turn_round(*p, us))) continue;
    ++answers;
    const auto h = parse_headers(p);
    ASSERT_TRUE(h);
    ASSERT_EQ(check_checksums(*p, *h), checksum_state::right);
    ASSERT_EQ(answer<ethernet_header>(p, 0).destination, before.source);
  }
  EXPECT_GT(answers, 1'000u);
}

}  // namespace
}  // namespace forebay
