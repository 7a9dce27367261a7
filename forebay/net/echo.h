// Answering packets by turning them round: what a host does to be pinged, without one.
//
//    up:    pull Ethernet, IP, ICMP …            the positions of the headers stay
//    down:  push them again, their addresses exchanged
//
// A packet that is to be answered becomes its own answer, in place: no copy, no allocation, the
// same descriptor and buffer. What is answered: ARP requests for our address, ICMP echo requests,
// ICMPv6 echo requests and neighbour solicitations, UDP to any port (or to one). As an alternative
// everything goes back with its Ethernet addresses exchanged (what DPDK's testpmd calls macswap).
//
// Checksums are brought up to date by the difference (RFC 1624), but where a device was to make
// them: then they are made. What has a wrong one is not answered, nor is what comes from or goes to
// more than one host, and fragments are not put together.
#pragma once

#include "forebay/net/headers.h"

namespace forebay {

struct echo_identity {
  mac_address mac{};
  ipv4_address ipv4{};           // zeros: none
  ipv6_address ipv6{};           // zeros: none
  std::uint16_t udp_port = 0;    // 0: every one
  bool swap_everything = false;  // macswap; addresses of ours do not matter then
};

enum class echo_answer : std::uint8_t {
  arp,
  icmp,
  icmpv6,
  neighbour,
  udp,
  swapped,
  not_ours,      // left as it was: for somebody else, or of a kind that is not answered
  bad_checksum,  // left as it was
  malformed,     // left as it was
  not_writable,  // left as it was: shared, or its headers do not lie in the linear part
};
inline constexpr unsigned echo_answers = 10;

constexpr bool is_answer(echo_answer a) noexcept { return a <= echo_answer::swapped; }
const char* to_string(echo_answer a) noexcept;

// Makes `p`, which begins with its Ethernet header, the answer to itself, if is_answer() of what is
// returned. Any thread.
echo_answer turn_round(packet_buffer& p, const echo_identity& us) noexcept;

}  // namespace forebay
