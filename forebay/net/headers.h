// What headers a packet has, and where; and headers to put before a payload.
//
//    | Ethernet | VLAN tags | ARP                          |
//    |          |           | IPv4, options     | UDP      | payload | padding
//    |          |           | IPv6, extensions  | TCP, options
//    |          |           |                   | ICMP
//               ^           ^                   ^          ^         ^
//               14          network             transport  payload   end
//
// Parsing believes no length: each is held against what is there, and against the length around it.
// What does not fit is EBADMSG, and the packet is as it was. What is only unknown (another ether
// type, another protocol, a later fragment) is no error: the description ends there.
//
// Bounds: at most vlan_tags_max tags, extension_headers_max extension headers, headers_bytes_max
// bytes of headers together. Any thread, with packets of its own.
#pragma once

#include "forebay/net/packet_buffer.h"
#include "forebay/net/wire.h"

namespace forebay {

inline constexpr std::size_t vlan_tags_max = 4;
inline constexpr unsigned extension_headers_max = 8;
inline constexpr std::size_t headers_bytes_max = 1024;

enum class network_kind : std::uint8_t { other, arp, ipv4, ipv6 };
enum class transport_kind : std::uint8_t { none, other, udp, tcp, icmp, icmpv6 };

// Offsets in bytes from the packet's first.
struct packet_headers {
  std::uint16_t type = 0;  // ether type behind the tags; a length if it is below smallest
  std::uint8_t vlan_count = 0;
  std::array<std::uint16_t, vlan_tags_max> vlan_tci{};  // the outermost first
  network_kind network = network_kind::other;
  transport_kind transport = transport_kind::none;  // none: of a later fragment, too
  std::uint8_t protocol = 0;                        // of IP, behind extension headers
  bool fragmented = false;                          // a part of an IP packet
  std::uint32_t network_offset = 0;
  std::uint32_t transport_offset = 0;  // 0 if there is none; of ARP its end
  std::uint32_t payload_offset = 0;    // behind the last header that is known
  std::uint32_t end = 0;               // of what the IP header says is there; padding follows

  std::size_t payload_length() const noexcept { return end - payload_offset; }
};

// Of a packet of `length` bytes that begins with `first`. Errors: EBADMSG; ENODATA if headers go on
// behind `first`, but not behind `length`.
result<packet_headers> parse_headers(std::span<const std::byte> first, std::size_t length) noexcept;

// The same of a packet: what is needed of it becomes linear, and its header positions are set.
// Errors also those of make_linear(), and errc::too_large for headers above headers_bytes_max.
result<packet_headers> parse_headers(packet& p) noexcept;

// Whether checksums are right, as far as the packet has them: of the IPv4 header, and of UDP, TCP,
// ICMP and ICMPv6 if the packet is not a fragment. `h` is parse_headers()'s of the same packet.
enum class checksum_state : std::uint8_t {
  right,
  wrong,
  partial,  // the transport's is of the pseudo header only: a device was to complete it
};
checksum_state check_checksums(const packet_buffer& p, const packet_headers& h) noexcept;
// Writes the checksum of the transport header anew. Errors: EBUSY; EINVAL if there is none.
result<> complete_checksum(packet_buffer& p, const packet_headers& h) noexcept;

// ---- Headers before what there is ----
//
// Each pushes one header into the headroom and sets its position. Errors of all: those of push();
// errc::too_large if a length field is too small for the packet.

struct ipv4_endpoints {
  ipv4_address source{};
  ipv4_address destination{};
};
struct ipv6_endpoints {
  ipv6_address source{};
  ipv6_address destination{};
};

// With its checksum, of all that is there, for the IP header that will be pushed next.
result<> push_udp(packet_buffer& p, std::uint16_t source, std::uint16_t destination,
                  const ipv4_endpoints& ip) noexcept;
result<> push_udp(packet_buffer& p, std::uint16_t source, std::uint16_t destination,
                  const ipv6_endpoints& ip) noexcept;
// ICMP: type, code, and the four bytes behind the checksum.
result<> push_icmp(packet_buffer& p, std::uint8_t type, std::uint8_t code,
                   std::uint32_t rest) noexcept;
result<> push_icmpv6(packet_buffer& p, std::uint8_t type, std::uint8_t code, std::uint32_t rest,
                     const ipv6_endpoints& ip) noexcept;
// TCP without options: sequence numbers, flags and window as in `header`; its ports too. Length and
// checksum are filled in.
result<> push_tcp(packet_buffer& p, const tcp_header& header, const ipv4_endpoints& ip) noexcept;
result<> push_tcp(packet_buffer& p, const tcp_header& header, const ipv6_endpoints& ip) noexcept;
// TTL and hop limit 64; not to be fragmented.
result<> push_ipv4(packet_buffer& p, const ipv4_endpoints& ip, std::uint8_t protocol,
                   std::uint16_t id = 0) noexcept;
result<> push_ipv6(packet_buffer& p, const ipv6_endpoints& ip, std::uint8_t next) noexcept;
// A tag before what is of `type`; the header before it then has the type of a VLAN.
result<> push_vlan(packet_buffer& p, std::uint16_t tci, std::uint16_t type) noexcept;
result<> push_ethernet(packet_buffer& p, const mac_address& source, const mac_address& destination,
                       std::uint16_t type) noexcept;
// An ARP packet as the whole content of an empty packet: EINVAL if it is not.
result<> put_arp(packet_buffer& p, const arp_packet& arp) noexcept;

}  // namespace forebay
