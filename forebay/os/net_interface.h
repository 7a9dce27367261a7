// Network interfaces as the kernel knows them: what one is, what it has counted, and what this
// process may do with it. Names are those of the calling thread's network namespace.
//
// Values; any thread.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "forebay/base/result.h"

namespace forebay {

// What the frames of an interface begin with.
enum class link_kind : std::uint8_t {
  ethernet,  // also the loopback interface, whose addresses are zeros
  raw_ip,    // nothing: an IPv4 or IPv6 header (TUN, some tunnels)
  radiotap,  // 802.11 in monitor mode
  other,
};

struct net_interface {
  std::string name;
  int index = 0;
  std::uint32_t mtu_bytes = 0;
  link_kind kind = link_kind::other;
  std::array<std::uint8_t, 6> address{};  // zeros where there is none of that length
  bool up = false;                        // as the administrator set it
  bool running = false;                   // up, and there is a carrier

  // Error: ENODEV if there is none of that name.
  static result<net_interface> find(const std::string& name);
};

// What an interface has counted since it came to be (struct rtnl_link_stats64).
struct net_interface_counters {
  std::uint64_t rx_packets = 0;
  std::uint64_t tx_packets = 0;
  std::uint64_t rx_bytes = 0;
  std::uint64_t tx_bytes = 0;
  std::uint64_t rx_dropped = 0;  // for want of room in the interface or in the kernel's backlog
  std::uint64_t rx_errors = 0;
};

// Errors: ENODEV; errno of the netlink socket.
result<net_interface_counters> read_counters(int interface_index);

// The privileges that ports need (capabilities(7)).
enum class capability : std::uint8_t {
  net_admin = 12,  // CAP_NET_ADMIN: TAP interfaces, promiscuous mode, XDP
  net_raw = 13,    // CAP_NET_RAW: packet sockets
};

// As the manual writes it: "CAP_NET_RAW".
std::string_view name_of(capability c) noexcept;

// Whether the calling thread has it in effect (in its user namespace).
bool has_capability(capability c);

// The administrator's switch. Errors: ENODEV; EPERM without CAP_NET_ADMIN.
result<> set_interface_up(const std::string& name, bool up);

}  // namespace forebay
