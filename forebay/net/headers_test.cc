#include "forebay/net/headers.h"

#include <random>
#include <vector>

#include <rapidcheck/gtest.h>

#include "forebay/net/test_headers.h"
#include "forebay/net/test_packets.h"

namespace forebay {
namespace {

using bytes = std::vector<std::byte>;

constexpr mac_address mac_a{2, 0, 0, 0, 0, 1};
constexpr mac_address mac_b{2, 0, 0, 0, 0, 2};
constexpr ipv4_endpoints v4{.source = {10, 0, 0, 1}, .destination = {10, 0, 0, 2}};
constexpr ipv6_endpoints v6{.source = {0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1},
                            .destination = {0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2}};

bytes of(std::initializer_list<unsigned> values) {
  bytes b;
  for (const unsigned v : values) b.push_back(static_cast<std::byte>(v));
  return b;
}

packet payload(const test_packets& t, std::size_t n) {
  packet p = t->try_allocate();
  std::byte* const at = *p->put(n);
  for (std::size_t i = 0; i < n; ++i) at[i] = static_cast<std::byte>(i * 7);
  return p;
}

void finish(packet& p, std::uint16_t type) { ASSERT_TRUE(push_ethernet(*p, mac_a, mac_b, type)); }

packet udp4(const test_packets& t, std::size_t n) {
  packet p = payload(t, n);
  EXPECT_TRUE(push_udp(*p, 1000, 7, v4));
  EXPECT_TRUE(push_ipv4(*p, v4, ip_protocol::udp, 55));
  finish(p, ether_type::ipv4);
  return p;
}

packet tcp6(const test_packets& t, std::size_t n) {
  packet p = payload(t, n);
  tcp_header h{};
  h.source = 80;
  h.destination = 40000;
  h.sequence = 0x12345678;
  h.flags = 0x18;
  EXPECT_TRUE(push_tcp(*p, h, v6));
  EXPECT_TRUE(push_ipv6(*p, v6, ip_protocol::tcp));
  EXPECT_TRUE(push_vlan(*p, 42, ether_type::ipv6));
  EXPECT_TRUE(push_vlan(*p, 7, ether_type::vlan));
  finish(p, ether_type::service_vlan);
  return p;
}

TEST(checksum, of_the_examples_in_the_standards) {
  const bytes example = of({0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7});  // RFC 1071, 3
  EXPECT_EQ(internet_checksum(example), 0x220d);
  EXPECT_EQ(updated_checksum(0xdd2f, 0x5555, 0x3285), 0x0000);  // RFC 1624, 4
}

RC_GTEST_PROP(checksum, is_the_same_in_pieces_and_when_updated, (std::vector<std::uint8_t> raw)) {
  const auto all = std::as_writable_bytes(std::span(raw));
  std::uint64_t plain = 0;
  for (std::size_t i = 0; i < raw.size(); ++i) plain += std::uint64_t{raw[i]} << (i % 2 * 8 ^ 8);
  while (plain >> 16 != 0) plain = (plain & 0xffff) + (plain >> 16);
  internet_sum sum;
  for (std::size_t at = 0; at < all.size();) {
    const auto n = *rc::gen::inRange<std::size_t>(1, all.size() - at + 1);
    sum.add(all.subspan(at, n));
    at += n;
  }
  RC_ASSERT(sum.folded() == plain);
  if (all.size() < 4) return;
  raw[0] |= 1;  // or the checksum of zeros only, which has two forms
  auto& word = header_at<be16>(all, 2);
  const std::uint16_t before = word;
  const std::uint16_t checksum = internet_checksum(all);
  word = static_cast<std::uint16_t>(before + 259);
  RC_ASSERT(updated_checksum(checksum, before, word) == internet_checksum(all));
}

TEST(headers, what_is_built_is_found_again) {
  const test_packets t;
  packet u = udp4(t, 100);
  const auto h = parse_headers(u);
  ASSERT_TRUE(h);
  EXPECT_EQ(h->network, network_kind::ipv4);
  EXPECT_EQ(h->transport, transport_kind::udp);
  EXPECT_EQ(h->payload_offset, 42u);
  EXPECT_EQ(h->payload_length(), 100u);
  EXPECT_EQ(u->transport_offset(), 34);
  EXPECT_EQ(header_at<udp_header>(u->linear(), 34).destination, 7);
  EXPECT_EQ(check_checksums(*u, *h), checksum_state::right);

  packet c = tcp6(t, 33);
  const auto g = parse_headers(c);
  ASSERT_TRUE(g);
  EXPECT_EQ(g->vlan_count, 2);
  EXPECT_EQ(g->vlan_tci[0], 7);
  EXPECT_EQ(g->vlan_tci[1], 42);
  EXPECT_EQ(g->transport, transport_kind::tcp);
  EXPECT_EQ(g->payload_length(), 33u);
  EXPECT_EQ(check_checksums(*c, *g), checksum_state::right);
  (*c->writable())[g->payload_offset + 32] ^= std::byte{1};
  EXPECT_EQ(check_checksums(*c, *g), checksum_state::wrong);
  ASSERT_TRUE(complete_checksum(*c, *g));
  EXPECT_EQ(check_checksums(*c, *g), checksum_state::right);
}

TEST(headers, a_checksum_left_to_a_device_is_known_and_completed) {
  const test_packets t;
  packet p = udp4(t, 11);
  const auto h = parse_headers(p);
  internet_sum pseudo;
  pseudo.add_pseudo_header(header_at<ipv4_header>(p->linear(), 14), ip_protocol::udp, 19);
  header_at<udp_header>(*p->writable(), 34).checksum = pseudo.folded();
  EXPECT_EQ(check_checksums(*p, *h), checksum_state::partial);
  ASSERT_TRUE(complete_checksum(*p, *h));
  EXPECT_EQ(check_checksums(*p, *h), checksum_state::right);
}

TEST(headers, extension_headers_and_fragments) {
  const test_packets t;
  packet p = payload(t, 24);
  std::ranges::copy(of({ip_protocol::udp, 0, 0, 0, 0, 0, 0, 0}), *p->push(8));
  std::ranges::copy(of({ip_protocol::destination, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}),
                    *p->push(16));
  ASSERT_TRUE(push_ipv6(*p, v6, ip_protocol::hop_by_hop));
  finish(p, ether_type::ipv6);
  header_at<be16>(*p->writable(), 54 + 24 + 4) = 24;  // the length of UDP
  const auto h = parse_headers(p);
  ASSERT_TRUE(h);
  EXPECT_EQ(h->transport, transport_kind::udp);
  EXPECT_EQ(h->transport_offset, 78u);

  packet later = payload(t, 64);
  ASSERT_TRUE(push_ipv4(*later, v4, ip_protocol::udp));
  header_at<ipv4_header>(*later->writable(), 0).fragment = 100;
  finish(later, ether_type::ipv4);
  const auto g = parse_headers(later);
  ASSERT_TRUE(g);
  EXPECT_TRUE(g->fragmented);
  EXPECT_EQ(g->transport, transport_kind::none);
  EXPECT_FALSE(later->has_transport_header());
}

TEST(headers, are_made_linear_when_they_lie_in_fragments) {
  const test_packets t;
  packet whole = tcp6(t, 50);
  const auto expected = parse_headers(whole);
  for (const std::size_t at : {1u, 13u, 20u, 60u, 81u, 82u}) {
    packet rest = std::move(*whole->split(at));
    ASSERT_TRUE(whole->append(std::move(rest)));
    const auto h = parse_headers(whole);
    ASSERT_TRUE(h) << at;
    EXPECT_EQ(h->payload_offset, expected->payload_offset);
    EXPECT_EQ(check_checksums(*whole, *h), checksum_state::right);
  }
}

TEST(headers, that_do_not_fit_are_refused) {
  const test_packets t;
  const packet good = udp4(t, 20);
  const auto with = [&](std::size_t at, unsigned value) {
    packet p = std::move(*good->copy());
    (*p->writable())[at] = static_cast<std::byte>(value);
    const auto h = parse_headers(p);
    return h ? std::error_code() : h.error();
  };
  EXPECT_FALSE(with(15, 1));                          // service
  EXPECT_EQ(with(14, 0x44), std::errc::bad_message);  // header below 20 bytes
  EXPECT_EQ(with(14, 0x4f), std::errc::bad_message);  // and above the packet
  EXPECT_EQ(with(14, 0x65), std::errc::bad_message);  // another version
  EXPECT_EQ(with(17, 19), std::errc::bad_message);    // total length below the header's
  EXPECT_EQ(with(16, 1), std::errc::bad_message);     // and above what is there
  EXPECT_EQ(with(39, 7), std::errc::bad_message);     // UDP below its header
  EXPECT_EQ(with(39, 29), std::errc::bad_message);    // and above IP's
}

TEST(headers, options_end_where_they_say_or_lie) {
  unsigned seen = 0;
  const auto walk = [&](const bytes& b) {
    return for_each_option(b, [&](std::uint8_t, std::span<const std::byte>) { ++seen; });
  };
  EXPECT_TRUE(walk(of({1, 1, 2, 4, 5, 180, 0, 9})));
  EXPECT_EQ(seen, 1u);
  EXPECT_FALSE(walk(of({2})));
  EXPECT_FALSE(walk(of({2, 1})));
  EXPECT_FALSE(walk(of({2, 4, 0})));
}

// What fuzz/headers.cc does for as long as one likes, from these seeds, for a short time.
TEST(headers, say_nothing_untrue_of_bytes_that_were_changed) {
  const test_packets t;
  std::minstd_rand random(1);
  std::vector<bytes> seeds;
  for (const packet& p : {udp4(t, 30), tcp6(t, 30)}) {
    seeds.emplace_back(p->linear().begin(), p->linear().end());
  }
  seeds.push_back(bytes(64, std::byte{0}));
  const int rounds = std::getenv("FOREBAY_STRESS") != nullptr ? 2'000'000 : 20'000;
  for (int i = 0; i < rounds; ++i) {
    bytes b = seeds[random() % seeds.size()];
    b.resize(random() % (b.size() + 1));
    for (unsigned n = random() % 4; n > 0 && !b.empty(); --n) {
      b[random() % b.size()] = static_cast<std::byte>(random());
    }
    check_parsing(b);
  }
}

}  // namespace
}  // namespace forebay
