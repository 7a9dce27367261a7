#include "forebay/net/echo.h"

#include "forebay/net/checksum.h"

namespace forebay {
namespace {

constexpr std::uint8_t answer_hop_limit = 64;
constexpr std::uint16_t first_common_port = 1024;

// Of a neighbour solicitation and its advertisement (RFC 4861, 4.3 and 4.4).
struct neighbour_message {
  static constexpr std::uint32_t solicited_override = 0x6000'0000;
  static constexpr std::uint8_t target_mac_option = 2;
  static constexpr std::uint8_t hop_limit = 255;  // of one that no router has passed on
  icmp_header icmp;
  ipv6_address target;
  std::uint8_t option;
  std::uint8_t option_words;  // of 8 bytes
  mac_address mac;
};
static_assert(sizeof(neighbour_message) == 32);

template <typename Address>
bool is_zero(const Address& a) noexcept {
  return a == Address{};
}
bool is_group(const mac_address& a) noexcept { return (a[0] & 1) != 0; }
// Something that one host has as its own.
bool is_one_host(const ipv4_address& a) noexcept { return a[0] != 0 && a[0] < 224; }
bool is_one_host(const ipv6_address& a) noexcept { return !is_zero(a) && a[0] != 0xff; }

// ff02::1:ff and the last three bytes of the address.
ipv6_address solicited_node(const ipv6_address& a) noexcept {
  return {0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a[13], a[14], a[15]};
}

// One packet on its way up and down again.
class turn {
 public:
  turn(packet_buffer& p, const echo_identity& us, const packet_headers& h,
       std::span<std::byte> bytes) noexcept
      : p_(p), us_(us), h_(h), bytes_(bytes) {}

  echo_answer run() noexcept {
    if (us_.swap_everything) {
      auto& link = at<ethernet_header>(0);
      std::swap(link.source, link.destination);
      return echo_answer::swapped;
    }
    const auto& link = at<ethernet_header>(0);
    for_us_alone_ = link.destination == us_.mac;
    if (is_group(link.source) || !(for_us_alone_ || is_group(link.destination))) {
      return echo_answer::not_ours;
    }
    switch (h_.network) {
      case network_kind::arp:
        return arp();
      case network_kind::ipv4:
        return ipv4();
      case network_kind::ipv6:
        return ipv6();
      default:
        return echo_answer::not_ours;
    }
  }

 private:
  template <typename Header>
  Header& at(std::size_t offset) const noexcept {
    return header_at<Header>(bytes_, offset);
  }
  std::size_t transport_bytes() const noexcept { return h_.end - h_.transport_offset; }

  echo_answer arp() noexcept {
    if (h_.payload_offset - h_.network_offset != sizeof(arp_packet)) return echo_answer::not_ours;
    const auto& asked = at<arp_packet>(h_.network_offset);
    if (asked.operation != arp_packet::request || asked.protocol != ether_type::ipv4 ||
        asked.hardware_bytes != sizeof(mac_address) || asked.target != us_.ipv4 ||
        is_zero(us_.ipv4)) {
      return echo_answer::not_ours;
    }
    static_cast<void>(p_.pull_unchecked(h_.network_offset));
    auto& answer = at<arp_packet>(h_.network_offset);
    answer.operation = arp_packet::reply;
    answer.target_mac = answer.sender_mac;
    answer.target = answer.sender;
    answer.sender_mac = us_.mac;
    answer.sender = us_.ipv4;
    push_link();
    return echo_answer::arp;
  }

  echo_answer ipv4() noexcept {
    const auto& ip = at<ipv4_header>(h_.network_offset);
    if (!for_us_alone_ || is_zero(us_.ipv4) || ip.destination != us_.ipv4 ||
        !is_one_host(ip.source) || ip.bytes() != sizeof(ipv4_header)) {
      return echo_answer::not_ours;
    }
    const echo_answer kind = h_.transport == transport_kind::icmp  ? echo_answer::icmp
                             : h_.transport == transport_kind::udp ? echo_answer::udp
                                                                   : echo_answer::not_ours;
    return answer_transport(kind, icmp_header::echo_request, icmp_header::echo_reply);
  }

  echo_answer ipv6() noexcept {
    const auto& ip = at<ipv6_header>(h_.network_offset);
    const bool plain = h_.transport_offset == h_.network_offset + sizeof(ipv6_header);
    if (is_zero(us_.ipv6) || !is_one_host(ip.source) || !plain) return echo_answer::not_ours;
    if (is_solicitation(ip)) return neighbour();
    if (!for_us_alone_ || ip.destination != us_.ipv6) return echo_answer::not_ours;
    const echo_answer kind = h_.transport == transport_kind::icmpv6 ? echo_answer::icmpv6
                             : h_.transport == transport_kind::udp  ? echo_answer::udp
                                                                    : echo_answer::not_ours;
    return answer_transport(kind, icmp_header::v6_echo_request, icmp_header::v6_echo_reply);
  }

  bool is_wanted(echo_answer kind, std::uint8_t request) const noexcept {
    if (kind == echo_answer::not_ours || h_.fragmented) return false;
    if (kind == echo_answer::udp) {
      const auto& udp = at<udp_header>(h_.transport_offset);
      // What comes from a port of a service could be another service that answers, for ever.
      return udp.source >= first_common_port &&
             (us_.udp_port == 0 || udp.destination == us_.udp_port);
    }
    const auto& icmp = at<icmp_header>(h_.transport_offset);
    return icmp.type == request && icmp.code == 0;
  }

  echo_answer answer_transport(echo_answer kind, std::uint8_t request,
                               std::uint8_t reply) noexcept {
    if (!is_wanted(kind, request)) return echo_answer::not_ours;
    const checksum_state sums = check_checksums(p_, h_);
    if (sums == checksum_state::wrong) return echo_answer::bad_checksum;
    pull_up();
    if (kind == echo_answer::udp) {
      auto& udp = at<udp_header>(h_.transport_offset);
      std::swap(udp.source, udp.destination);  // a sum does not mind the order
    } else {
      auto& icmp = at<icmp_header>(h_.transport_offset);
      icmp.checksum = updated_checksum(icmp.checksum, static_cast<std::uint16_t>(request << 8),
                                       static_cast<std::uint16_t>(reply << 8));
      icmp.type = reply;
    }
    push_down();
    if (sums == checksum_state::partial) static_cast<void>(complete_checksum(p_, h_));
    return kind;
  }

  bool is_solicitation(const ipv6_header& ip) const noexcept {
    if (h_.transport != transport_kind::icmpv6 || h_.fragmented ||
        transport_bytes() < offsetof(neighbour_message, option) ||
        bytes_.size() < h_.transport_offset + offsetof(neighbour_message, option) ||
        ip.hop_limit != neighbour_message::hop_limit) {
      return false;
    }
    const auto& icmp = at<icmp_header>(h_.transport_offset);
    const auto& target =
        at<ipv6_address>(h_.transport_offset + offsetof(neighbour_message, target));
    return icmp.type == icmp_header::v6_neighbour_solicitation && icmp.code == 0 &&
           target == us_.ipv6 &&
           (ip.destination == us_.ipv6 || ip.destination == solicited_node(us_.ipv6));
  }

  echo_answer neighbour() noexcept {
    if (check_checksums(p_, h_) == checksum_state::wrong) return echo_answer::bad_checksum;
    // The answer has one option, of 8 bytes, whatever the question had.
    const std::size_t length = h_.transport_offset + sizeof(neighbour_message);
    const std::size_t there = std::min<std::size_t>(h_.end, p_.length());
    if (there < length && (!p_.is_linear() || length > there + p_.tailroom())) {
      return echo_answer::not_writable;
    }
    p_.trim(std::min(there, length));
    if (p_.length() < length) static_cast<void>(p_.put_unchecked(length - p_.length()));
    bytes_ = {p_.writable_unchecked(), length};
    h_.end = static_cast<std::uint32_t>(length);
    pull_up();
    auto& answer = at<neighbour_message>(h_.transport_offset);
    answer.icmp.type = icmp_header::v6_neighbour_advertisement;
    answer.icmp.rest = neighbour_message::solicited_override;
    answer.option = neighbour_message::target_mac_option;
    answer.option_words = 1;
    answer.mac = us_.mac;
    push_down();
    auto& ip = at<ipv6_header>(h_.network_offset);
    ip.payload_bytes = sizeof(neighbour_message);
    ip.hop_limit = neighbour_message::hop_limit;
    static_cast<void>(complete_checksum(p_, h_));
    return echo_answer::neighbour;
  }

  void pull_up() noexcept {
    static_cast<void>(p_.pull_unchecked(h_.network_offset));
    static_cast<void>(p_.pull_unchecked(h_.transport_offset - h_.network_offset));
  }

  // The IP header and what is before it, with the addresses exchanged.
  void push_down() noexcept {
    static_cast<void>(p_.push_unchecked(h_.transport_offset - h_.network_offset));
    if (h_.network == network_kind::ipv4) {
      auto& ip = at<ipv4_header>(h_.network_offset);
      ip.destination = ip.source;
      ip.source = us_.ipv4;
      const auto word = [&](std::uint8_t ttl) {
        return static_cast<std::uint16_t>(ttl << 8 | ip.protocol);
      };
      ip.checksum = updated_checksum(ip.checksum, word(ip.ttl), word(answer_hop_limit));
      ip.ttl = answer_hop_limit;
    } else {
      auto& ip = at<ipv6_header>(h_.network_offset);
      ip.destination = ip.source;
      ip.source = us_.ipv6;
      ip.hop_limit = answer_hop_limit;
    }
    push_link();
  }
  void push_link() noexcept {
    static_cast<void>(p_.push_unchecked(h_.network_offset));
    auto& link = at<ethernet_header>(0);
    link.destination = link.source;
    link.source = us_.mac;
  }

  packet_buffer& p_;
  const echo_identity& us_;
  packet_headers h_;
  std::span<std::byte> bytes_;  // the linear part as it came
  bool for_us_alone_ = false;   // by its Ethernet address
};

}  // namespace

const char* to_string(echo_answer a) noexcept {
  switch (a) {
    case echo_answer::arp:
      return "arp";
    case echo_answer::icmp:
      return "icmp";
    case echo_answer::icmpv6:
      return "icmpv6";
    case echo_answer::neighbour:
      return "neighbour";
    case echo_answer::udp:
      return "udp";
    case echo_answer::swapped:
      return "swapped";
    case echo_answer::not_ours:
      return "not_ours";
    case echo_answer::bad_checksum:
      return "bad_checksum";
    case echo_answer::malformed:
      return "malformed";
    case echo_answer::not_writable:
      return "not_writable";
  }
  return "unknown";
}

echo_answer turn_round(packet_buffer& p, const echo_identity& us) noexcept {
  packet_headers h;
  if (us.swap_everything) {
    if (p.linear_length() < sizeof(ethernet_header)) {
      return p.length() < sizeof(ethernet_header) ? echo_answer::malformed
                                                  : echo_answer::not_writable;
    }
  } else {
    const auto parsed = parse_headers(p.linear(), p.length());
    if (!parsed) {
      return parsed.error() == std::errc::no_message_available ? echo_answer::not_writable
                                                               : echo_answer::malformed;
    }
    h = *parsed;
  }
  const auto bytes = p.writable();
  if (!bytes) return echo_answer::not_writable;
  static_cast<void>(p.set_link_header());
  static_cast<void>(p.set_network_header(h.network_offset));
  if (h.transport_offset != 0) static_cast<void>(p.set_transport_header(h.transport_offset));
  return turn(p, us, h, *bytes).run();
}

}  // namespace forebay
