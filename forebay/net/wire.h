// The headers of a packet as they lie on the wire: structs of bytes, with an alignment of one, that
// may be laid over any bytes of the right length. Numbers are big-endian there and native when they
// are read. What a peer wrote is not to be believed: headers.h has looked at it before anybody uses
// a length from here.
//
// Values; no state. Formats: RFC 791 (IPv4), 8200 (IPv6), 768 (UDP), 9293 (TCP), 792 (ICMP), 4443
// (ICMPv6), 826 (ARP), IEEE 802.3 and 802.1Q.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace forebay {

// A number on the wire, most significant byte first. It reads and is set as the number that it is.
template <typename T>
class big_endian {
 public:
  big_endian() noexcept = default;
  // NOLINTNEXTLINE(google-explicit-constructor): a number stands for itself
  big_endian(T value) noexcept { *this = value; }
  // NOLINTNEXTLINE(google-explicit-constructor): as above
  operator T() const noexcept {
    T value = 0;
    for (const std::byte b : bytes_) value = static_cast<T>(value << 8 | std::to_integer<T>(b));
    return value;
  }
  big_endian& operator=(T value) noexcept {
    for (std::size_t i = sizeof(T); i-- > 0; value = static_cast<T>(std::uint64_t{value} >> 8)) {
      bytes_[i] = static_cast<std::byte>(value);
    }
    return *this;
  }

 private:
  std::array<std::byte, sizeof(T)> bytes_{};
};

using be16 = big_endian<std::uint16_t>;
using be32 = big_endian<std::uint32_t>;

using mac_address = std::array<std::uint8_t, 6>;
using ipv4_address = std::array<std::uint8_t, 4>;
using ipv6_address = std::array<std::uint8_t, 16>;

namespace ether_type {
inline constexpr std::uint16_t ipv4 = 0x0800;
inline constexpr std::uint16_t arp = 0x0806;
inline constexpr std::uint16_t ipv6 = 0x86dd;
inline constexpr std::uint16_t vlan = 0x8100;
inline constexpr std::uint16_t service_vlan = 0x88a8;
inline constexpr std::uint16_t smallest = 0x0600;  // below: a length (IEEE 802.3)
}  // namespace ether_type

namespace ip_protocol {
inline constexpr std::uint8_t hop_by_hop = 0;
inline constexpr std::uint8_t icmp = 1;
inline constexpr std::uint8_t tcp = 6;
inline constexpr std::uint8_t udp = 17;
inline constexpr std::uint8_t routing = 43;
inline constexpr std::uint8_t fragment = 44;
inline constexpr std::uint8_t authentication = 51;
inline constexpr std::uint8_t icmpv6 = 58;
inline constexpr std::uint8_t nothing = 59;
inline constexpr std::uint8_t destination = 60;
}  // namespace ip_protocol

struct ethernet_header {
  mac_address destination;
  mac_address source;
  be16 type;
};

// Behind the addresses, before the type of what follows.
struct vlan_tag {
  be16 tci;  // priority (3 bits), drop eligible (1), VLAN (12)
  be16 type;
};

// Of IPv4 over Ethernet.
struct arp_packet {
  static constexpr std::uint16_t request = 1;
  static constexpr std::uint16_t reply = 2;
  be16 hardware;
  be16 protocol;
  std::uint8_t hardware_bytes;
  std::uint8_t protocol_bytes;
  be16 operation;
  mac_address sender_mac;
  ipv4_address sender;
  mac_address target_mac;
  ipv4_address target;
};

struct ipv4_header {
  std::uint8_t version_and_words;  // version, length of the header in words of 4 bytes
  std::uint8_t service;
  be16 total_bytes;  // the header included
  be16 id;
  be16 fragment;  // flags (3 bits), offset in units of 8 bytes (13)
  std::uint8_t ttl;
  std::uint8_t protocol;
  be16 checksum;
  ipv4_address source;
  ipv4_address destination;

  static constexpr std::uint16_t more_fragments = 0x2000;
  static constexpr std::uint16_t dont_fragment = 0x4000;
  unsigned version() const noexcept { return version_and_words >> 4; }
  std::size_t bytes() const noexcept { return (version_and_words & 15u) * std::size_t{4}; }
  unsigned fragment_offset() const noexcept { return (fragment & 0x1fffu) * 8u; }
};

struct ipv6_header {
  be32 version_class_flow;
  be16 payload_bytes;  // extension headers included
  std::uint8_t next;
  std::uint8_t hop_limit;
  ipv6_address source;
  ipv6_address destination;

  unsigned version() const noexcept { return version_class_flow >> 28; }
};

struct udp_header {
  be16 source;
  be16 destination;
  be16 bytes;  // the header included
  be16 checksum;
};

struct tcp_header {
  be16 source;
  be16 destination;
  be32 sequence;
  be32 acknowledged;
  std::uint8_t words;  // in the high 4 bits: length of the header in words of 4 bytes
  std::uint8_t flags;
  be16 window;
  be16 checksum;
  be16 urgent;

  std::size_t bytes() const noexcept { return (words >> 4) * std::size_t{4}; }
};

// ICMP and ICMPv6.
struct icmp_header {
  static constexpr std::uint8_t echo_reply = 0;
  static constexpr std::uint8_t echo_request = 8;
  static constexpr std::uint8_t v6_echo_request = 128;
  static constexpr std::uint8_t v6_echo_reply = 129;
  static constexpr std::uint8_t v6_neighbour_solicitation = 135;
  static constexpr std::uint8_t v6_neighbour_advertisement = 136;
  std::uint8_t type;
  std::uint8_t code;
  be16 checksum;
  be32 rest;  // echo: identifier and sequence number
};

static_assert(sizeof(ethernet_header) == 14 && alignof(ethernet_header) == 1);
static_assert(sizeof(vlan_tag) == 4 && sizeof(arp_packet) == 28 && alignof(arp_packet) == 1);
static_assert(sizeof(ipv4_header) == 20 && alignof(ipv4_header) == 1);
static_assert(sizeof(ipv6_header) == 40 && alignof(ipv6_header) == 1);
static_assert(sizeof(udp_header) == 8 && sizeof(tcp_header) == 20 && sizeof(icmp_header) == 8);
static_assert(alignof(udp_header) == 1 && alignof(tcp_header) == 1 && alignof(icmp_header) == 1);

// The header at `offset` of `bytes`; the caller knows that it is whole.
template <typename Header>
const Header& header_at(std::span<const std::byte> bytes, std::size_t offset) noexcept {
  static_assert(alignof(Header) == 1);
  return *reinterpret_cast<const Header*>(bytes.data() + offset);
}
template <typename Header>
Header& header_at(std::span<std::byte> bytes, std::size_t offset) noexcept {
  static_assert(alignof(Header) == 1);
  return *reinterpret_cast<Header*>(bytes.data() + offset);
}

// The options of an IPv4 or TCP header: f(kind, data) for each but padding, until the end or an
// end-of-options. False if one's length lies.
template <typename F>
bool for_each_option(std::span<const std::byte> options, F f) {
  while (!options.empty()) {
    const auto kind = std::to_integer<std::uint8_t>(options[0]);
    if (kind == 0) return true;
    if (kind == 1) {
      options = options.subspan(1);
      continue;
    }
    if (options.size() < 2) return false;
    const auto n = std::to_integer<std::size_t>(options[1]);
    if (n < 2 || n > options.size()) return false;
    f(kind, options.subspan(2, n - 2));
    options = options.subspan(n);
  }
  return true;
}

}  // namespace forebay
