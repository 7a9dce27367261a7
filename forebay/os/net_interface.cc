#include "forebay/os/net_interface.h"

#include <linux/if_link.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <fstream>
#include <span>

#include "forebay/os/fd.h"

namespace forebay {
namespace {

// Interfaces are asked about over a socket of any kind.
result<unique_fd> control_socket() {
  unique_fd fd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!fd) fd.reset(::socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!fd) fd.reset(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!fd) return fail_errno();
  return fd;
}

// A request about one interface. Error: ENODEV for a name that none can have.
result<ifreq> request_for(const std::string& name) {
  ifreq r{};
  if (name.empty() || name.size() >= sizeof r.ifr_name) return fail(ENODEV);
  std::memcpy(r.ifr_name, name.c_str(), name.size() + 1);
  return r;
}

link_kind kind_of(unsigned short hardware_type) noexcept {
  switch (hardware_type) {
    case ARPHRD_ETHER:
    case ARPHRD_LOOPBACK:
      return link_kind::ethernet;
    case ARPHRD_NONE:
    case ARPHRD_TUNNEL:
    case ARPHRD_TUNNEL6:
    case ARPHRD_SIT:
    case ARPHRD_IPGRE:
      return link_kind::raw_ip;
    case ARPHRD_IEEE80211_RADIOTAP:
      return link_kind::radiotap;
    default:
      return link_kind::other;
  }
}

// The front of `bytes` as a T, which netlink pads to 4 bytes; `bytes` goes past it.
template <typename T>
result<T> take(std::span<const std::byte>& bytes) noexcept {
  T value{};
  if (bytes.size() < sizeof value) return fail(EPROTO);
  std::memcpy(&value, bytes.data(), sizeof value);
  bytes = bytes.subspan(sizeof value);
  return value;
}

// The counters out of the answer to RTM_GETLINK: a header, an ifinfomsg, attributes.
result<net_interface_counters> counters_in(std::span<const std::byte> answer) {
  const auto header = take<nlmsghdr>(answer);
  if (!header) return fail(header.error());
  if (header->nlmsg_type == NLMSG_ERROR) {
    const auto error = take<int>(answer);
    return fail(error && *error < 0 ? -*error : EPROTO);
  }
  if (const auto link = take<ifinfomsg>(answer); !link) return fail(link.error());
  while (!answer.empty()) {
    const auto attribute = take<rtattr>(answer);
    if (!attribute || attribute->rta_len < sizeof(rtattr)) break;
    const std::size_t length = attribute->rta_len - sizeof(rtattr);
    if (length > answer.size()) break;
    if (attribute->rta_type == IFLA_STATS64) {
      rtnl_link_stats64 s{};
      std::memcpy(&s, answer.data(), std::min(sizeof s, length));
      return net_interface_counters{.rx_packets = s.rx_packets,
                                    .tx_packets = s.tx_packets,
                                    .rx_bytes = s.rx_bytes,
                                    .tx_bytes = s.tx_bytes,
                                    .rx_dropped = s.rx_dropped + s.rx_missed_errors,
                                    .rx_errors = s.rx_errors};
    }
    answer = answer.subspan(std::min(answer.size(), (length + 3) & ~std::size_t{3}));
  }
  return fail(EPROTO);
}

}  // namespace

result<net_interface> net_interface::find(const std::string& name) {
  auto request = request_for(name);
  if (!request) return fail(request.error());
  auto socket = control_socket();
  if (!socket) return fail(socket.error());
  net_interface found;
  found.name = name;
  ifreq& r = *request;
  if (::ioctl(socket->get(), SIOCGIFINDEX, &r) != 0) return fail_errno();
  found.index = r.ifr_ifindex;
  if (::ioctl(socket->get(), SIOCGIFMTU, &r) != 0) return fail_errno();
  found.mtu_bytes = static_cast<std::uint32_t>(r.ifr_mtu);
  if (::ioctl(socket->get(), SIOCGIFFLAGS, &r) != 0) return fail_errno();
  found.up = (r.ifr_flags & IFF_UP) != 0;
  found.running = found.up && (r.ifr_flags & IFF_RUNNING) != 0;
  if (::ioctl(socket->get(), SIOCGIFHWADDR, &r) != 0) return fail_errno();
  found.kind = kind_of(r.ifr_hwaddr.sa_family);
  if (found.kind == link_kind::ethernet) {
    std::memcpy(found.address.data(), r.ifr_hwaddr.sa_data, found.address.size());
  }
  return found;
}

result<net_interface_counters> read_counters(int interface_index) {
  const unique_fd fd(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
  if (!fd) return fail_errno();
  struct {
    nlmsghdr header;
    ifinfomsg link;
  } ask{};
  ask.header.nlmsg_len = sizeof ask;
  ask.header.nlmsg_type = RTM_GETLINK;
  ask.header.nlmsg_flags = NLM_F_REQUEST;
  ask.link.ifi_family = AF_UNSPEC;
  ask.link.ifi_index = interface_index;
  if (::send(fd.get(), &ask, sizeof ask, 0) < 0) return fail_errno();
  std::array<std::byte, 16384> answer;
  const ssize_t n = ::recv(fd.get(), answer.data(), answer.size(), 0);
  if (n < 0) return fail_errno();
  return counters_in(std::span(answer).first(static_cast<std::size_t>(n)));
}

std::string_view name_of(capability c) noexcept {
  return c == capability::net_admin ? "CAP_NET_ADMIN" : "CAP_NET_RAW";
}

bool has_capability(capability c) {
  std::ifstream status("/proc/thread-self/status");
  constexpr std::string_view key = "CapEff:\t";
  for (std::string line; std::getline(status, line);) {
    if (!line.starts_with(key)) continue;
    std::uint64_t effective = 0;
    std::from_chars(line.data() + key.size(), line.data() + line.size(), effective, 16);
    return (effective >> static_cast<unsigned>(c) & 1) != 0;
  }
  return false;
}

result<> set_interface_up(const std::string& name, bool up) {
  auto request = request_for(name);
  if (!request) return fail(request.error());
  auto socket = control_socket();
  if (!socket) return fail(socket.error());
  ifreq& r = *request;
  if (::ioctl(socket->get(), SIOCGIFFLAGS, &r) != 0) return fail_errno();
  const int wanted = up ? r.ifr_flags | IFF_UP : r.ifr_flags & ~IFF_UP;
  r.ifr_flags = static_cast<short>(wanted);
  if (::ioctl(socket->get(), SIOCSIFFLAGS, &r) != 0) return fail_errno();
  return {};
}

}  // namespace forebay
