#include "forebay/net/headers.h"

#include "forebay/net/checksum.h"

namespace forebay {
namespace {

constexpr std::uint16_t arp_ethernet = 1;
constexpr std::size_t first_look_bytes = 128;
constexpr std::uint8_t hop_limit = 64;

// Walks over the first bytes of a packet. `limit` shrinks as headers say how much belongs to them.
class walker {
 public:
  walker(std::span<const std::byte> first, std::size_t length) noexcept
      : first_(first), limit_(length) {}

  result<packet_headers> run() noexcept {
    if (const auto r = ethernet(); !r) return fail(r.error());
    result<> r;
    switch (h_.type) {
      case ether_type::arp:
        r = arp();
        break;
      case ether_type::ipv4:
        r = ipv4();
        break;
      case ether_type::ipv6:
        r = ipv6();
        break;
      default:
        break;
    }
    if (!r) return fail(r.error());
    h_.payload_offset = static_cast<std::uint32_t>(at_);
    h_.end = static_cast<std::uint32_t>(limit_);
    return h_;
  }

 private:
  // The next `n` bytes are there.
  result<> need(std::size_t n) const noexcept {
    if (n > limit_ - at_) return fail(EBADMSG);
    if (n > first_.size() - std::min(first_.size(), at_)) return fail(ENODATA);
    return {};
  }
  template <typename Header>
  const Header& header() const noexcept {
    return header_at<Header>(first_, at_);
  }
  // What belongs to the packet are the next `n` bytes, which are not more than there are.
  result<> shorten(std::size_t n) noexcept {
    if (n > limit_ - at_) return fail(EBADMSG);
    limit_ = at_ + n;
    return {};
  }

  result<> ethernet() noexcept {
    if (const auto r = need(sizeof(ethernet_header)); !r) return r;
    h_.type = header<ethernet_header>().type;
    at_ = sizeof(ethernet_header);
    while (h_.type == ether_type::vlan || h_.type == ether_type::service_vlan) {
      if (h_.vlan_count == vlan_tags_max) return fail(EBADMSG);
      if (const auto r = need(sizeof(vlan_tag)); !r) return r;
      h_.vlan_tci[h_.vlan_count++] = header<vlan_tag>().tci;
      h_.type = header<vlan_tag>().type;
      at_ += sizeof(vlan_tag);
    }
    h_.network_offset = static_cast<std::uint32_t>(at_);
    return h_.type < ether_type::smallest ? shorten(h_.type) : result<>();
  }

  result<> arp() noexcept {
    constexpr std::size_t fixed = 8;
    if (const auto r = need(fixed); !r) return r;
    const auto byte = [&](std::size_t i) { return std::to_integer<std::size_t>(first_[at_ + i]); };
    const std::size_t n = fixed + 2 * (byte(4) + byte(5));
    if (const auto r = need(n); !r) return r;
    h_.network = network_kind::arp;
    at_ += n;
    return {};
  }

  result<> ipv4() noexcept {
    if (const auto r = need(sizeof(ipv4_header)); !r) return r;
    const auto& ip = header<ipv4_header>();
    const std::size_t n = ip.bytes();
    if (ip.version() != 4 || n < sizeof(ipv4_header) || n > ip.total_bytes) return fail(EBADMSG);
    if (const auto r = shorten(ip.total_bytes); !r) return r;
    if (const auto r = need(n); !r) return r;
    h_.network = network_kind::ipv4;
    h_.fragmented = ip.fragment_offset() != 0 || (ip.fragment & ipv4_header::more_fragments) != 0;
    at_ += n;
    return transport(ip.protocol, ip.fragment_offset() != 0);
  }

  result<> ipv6() noexcept {
    if (const auto r = need(sizeof(ipv6_header)); !r) return r;
    const auto& ip = header<ipv6_header>();
    if (ip.version() != 6) return fail(EBADMSG);
    std::uint8_t next = ip.next;
    const std::size_t payload = ip.payload_bytes;
    at_ += sizeof(ipv6_header);
    if (const auto r = shorten(payload); !r) return r;
    h_.network = network_kind::ipv6;
    bool later = false;
    for (unsigned i = 0; !later && is_extension(next); ++i) {
      if (i == extension_headers_max) return fail(EBADMSG);
      if (const auto r = need(8); !r) return r;
      const std::size_t n = extension_bytes(next);
      if (const auto r = need(n); !r) return r;
      if (next == ip_protocol::fragment) {
        const std::uint16_t offset = header_at<be16>(first_, at_ + 2);
        later = (offset & 0xfff8) != 0;
        h_.fragmented = later || (offset & 1) != 0 || h_.fragmented;
      }
      next = std::to_integer<std::uint8_t>(first_[at_]);
      at_ += n;
    }
    return transport(next, later);
  }
  static bool is_extension(std::uint8_t next) noexcept {
    return next == ip_protocol::hop_by_hop || next == ip_protocol::routing ||
           next == ip_protocol::fragment || next == ip_protocol::destination ||
           next == ip_protocol::authentication;
  }
  std::size_t extension_bytes(std::uint8_t kind) const noexcept {
    const auto field = std::to_integer<std::size_t>(first_[at_ + 1]);
    if (kind == ip_protocol::fragment) return 8;
    return kind == ip_protocol::authentication ? (field + 2) * 4 : (field + 1) * 8;
  }

  result<> transport(std::uint8_t protocol, bool later_fragment) noexcept {
    h_.protocol = protocol;
    if (later_fragment || protocol == ip_protocol::nothing) return {};
    h_.transport_offset = static_cast<std::uint32_t>(at_);
    switch (protocol) {
      case ip_protocol::udp:
        return udp();
      case ip_protocol::tcp:
        return tcp();
      case ip_protocol::icmp:
      case ip_protocol::icmpv6:
        return icmp(protocol);
      default:
        h_.transport = transport_kind::other;
        return {};
    }
  }
  result<> udp() noexcept {
    if (const auto r = need(sizeof(udp_header)); !r) return r;
    const std::size_t n = header<udp_header>().bytes;
    if (n < sizeof(udp_header)) return fail(EBADMSG);
    // The first of several fragments has the length of them all.
    if (!h_.fragmented) {
      if (const auto r = shorten(n); !r) return r;
    }
    h_.transport = transport_kind::udp;
    at_ += sizeof(udp_header);
    return {};
  }
  result<> tcp() noexcept {
    if (const auto r = need(sizeof(tcp_header)); !r) return r;
    const std::size_t n = header<tcp_header>().bytes();
    if (n < sizeof(tcp_header)) return fail(EBADMSG);
    if (const auto r = need(n); !r) return r;
    h_.transport = transport_kind::tcp;
    at_ += n;
    return {};
  }
  result<> icmp(std::uint8_t protocol) noexcept {
    if (const auto r = need(sizeof(icmp_header)); !r) return r;
    h_.transport = protocol == ip_protocol::icmp ? transport_kind::icmp : transport_kind::icmpv6;
    at_ += sizeof(icmp_header);
    return {};
  }

  const std::span<const std::byte> first_;
  std::size_t limit_;   // bytes that belong to what is looked at
  std::size_t at_ = 0;  // at most limit_
  packet_headers h_;
};

std::size_t checksum_field(transport_kind t) noexcept {
  switch (t) {
    case transport_kind::udp:
      return offsetof(udp_header, checksum);
    case transport_kind::tcp:
      return offsetof(tcp_header, checksum);
    default:
      return offsetof(icmp_header, checksum);
  }
}

bool has_checksum(const packet_headers& h) noexcept {
  return h.transport > transport_kind::other && !h.fragmented;
}

// What is before the transport header in its sum. ICMP has nothing there.
internet_sum pseudo_header(std::span<const std::byte> bytes, const packet_headers& h) noexcept {
  internet_sum sum;
  if (h.transport == transport_kind::icmp) return sum;
  const std::size_t length = h.end - h.transport_offset;
  if (h.network == network_kind::ipv4) {
    sum.add_pseudo_header(header_at<ipv4_header>(bytes, h.network_offset), h.protocol, length);
  } else {
    sum.add_pseudo_header(header_at<ipv6_header>(bytes, h.network_offset), h.protocol, length);
  }
  return sum;
}

// A UDP checksum of 0 stands for none, so that one that is 0 is sent as its other form.
std::uint16_t as_sent(std::uint16_t checksum, transport_kind t) noexcept {
  return checksum == 0 && t == transport_kind::udp ? 0xffff : checksum;
}

template <typename Header>
result<Header*> push_header(packet_buffer& p, const Header& value) noexcept {
  const auto at = p.push(sizeof(Header));
  if (!at) return fail(at.error());
  return new (*at) Header(value);
}

internet_sum pseudo_header_of(const ipv4_endpoints& ip, std::uint8_t protocol, std::size_t length) {
  internet_sum sum;
  ipv4_header h{};
  h.source = ip.source;
  h.destination = ip.destination;
  sum.add_pseudo_header(h, protocol, length);
  return sum;
}
internet_sum pseudo_header_of(const ipv6_endpoints& ip, std::uint8_t protocol, std::size_t length) {
  internet_sum sum;
  ipv6_header h{};
  h.source = ip.source;
  h.destination = ip.destination;
  sum.add_pseudo_header(h, protocol, length);
  return sum;
}

template <typename Endpoints>
result<> push_udp_for(packet_buffer& p, std::uint16_t source, std::uint16_t destination,
                      const Endpoints& ip) noexcept {
  const std::size_t length = p.length() + sizeof(udp_header);
  if (length > UINT16_MAX) return fail(errc::too_large);
  const auto h = push_header<udp_header>(p, {.source = source,
                                             .destination = destination,
                                             .bytes = static_cast<std::uint16_t>(length),
                                             .checksum = 0});
  if (!h) return fail(h.error());
  internet_sum sum = pseudo_header_of(ip, ip_protocol::udp, length);
  add_to_sum(sum, p, 0, length);
  (*h)->checksum = as_sent(sum.checksum(), transport_kind::udp);
  return p.set_transport_header();
}

template <typename Endpoints>
result<> push_tcp_for(packet_buffer& p, tcp_header header, const Endpoints& ip) noexcept {
  const std::size_t length = p.length() + sizeof(tcp_header);
  if (length > UINT16_MAX) return fail(errc::too_large);
  header.words = sizeof(tcp_header) / 4 << 4;
  header.checksum = 0;
  const auto h = push_header(p, header);
  if (!h) return fail(h.error());
  internet_sum sum = pseudo_header_of(ip, ip_protocol::tcp, length);
  add_to_sum(sum, p, 0, length);
  (*h)->checksum = sum.checksum();
  return p.set_transport_header();
}

result<> push_icmp_after(internet_sum sum, packet_buffer& p, const icmp_header& header) noexcept {
  const auto h = push_header(p, header);
  if (!h) return fail(h.error());
  add_to_sum(sum, p, 0, p.length());
  (*h)->checksum = sum.checksum();
  return p.set_transport_header();
}

}  // namespace

result<packet_headers> parse_headers(std::span<const std::byte> first,
                                     std::size_t length) noexcept {
  return walker(first, std::min<std::size_t>(length, UINT32_MAX)).run();
}

result<packet_headers> parse_headers(packet& p) noexcept {
  std::size_t look = first_look_bytes;
  for (;;) {
    const std::size_t bytes = std::min(p->length(), look);
    if (const auto r = p.make_linear(bytes); !r) return fail(r.error());
    const auto h = parse_headers(p->linear(), p->length());
    if (!h) {
      if (h.error() != std::errc::no_message_available) return h;
      if (bytes >= headers_bytes_max) return fail(errc::too_large);
      look = headers_bytes_max;
      continue;
    }
    static_cast<void>(p->set_link_header());
    static_cast<void>(p->set_network_header(h->network_offset));
    if (h->transport_offset != 0) static_cast<void>(p->set_transport_header(h->transport_offset));
    return h;
  }
}

checksum_state check_checksums(const packet_buffer& p, const packet_headers& h) noexcept {
  const auto bytes = p.linear();
  if (h.network == network_kind::ipv4) {
    const auto& ip = header_at<ipv4_header>(bytes, h.network_offset);
    if (internet_checksum(bytes.subspan(h.network_offset, ip.bytes())) != 0) {
      return checksum_state::wrong;
    }
  }
  if (!has_checksum(h)) return checksum_state::right;
  const std::uint16_t there =
      header_at<be16>(bytes, h.transport_offset + checksum_field(h.transport));
  if (there == 0 && h.transport == transport_kind::udp && h.network == network_kind::ipv4) {
    return checksum_state::right;  // none was made
  }
  internet_sum sum = pseudo_header(bytes, h);
  const std::uint16_t of_pseudo_header = sum.folded();
  add_to_sum(sum, p, h.transport_offset, h.end - h.transport_offset);
  if (sum.folded() == 0xffff) return checksum_state::right;
  const bool partial = there == of_pseudo_header && h.transport != transport_kind::icmp;
  return partial ? checksum_state::partial : checksum_state::wrong;
}

result<> complete_checksum(packet_buffer& p, const packet_headers& h) noexcept {
  if (!has_checksum(h)) return fail(EINVAL);
  const auto bytes = p.writable();
  if (!bytes) return fail(bytes.error());
  auto& field = header_at<be16>(*bytes, h.transport_offset + checksum_field(h.transport));
  field = 0;
  internet_sum sum = pseudo_header(*bytes, h);
  add_to_sum(sum, p, h.transport_offset, h.end - h.transport_offset);
  field = as_sent(sum.checksum(), h.transport);
  return {};
}

result<> push_udp(packet_buffer& p, std::uint16_t source, std::uint16_t destination,
                  const ipv4_endpoints& ip) noexcept {
  return push_udp_for(p, source, destination, ip);
}
result<> push_udp(packet_buffer& p, std::uint16_t source, std::uint16_t destination,
                  const ipv6_endpoints& ip) noexcept {
  return push_udp_for(p, source, destination, ip);
}

result<> push_tcp(packet_buffer& p, const tcp_header& header, const ipv4_endpoints& ip) noexcept {
  return push_tcp_for(p, header, ip);
}
result<> push_tcp(packet_buffer& p, const tcp_header& header, const ipv6_endpoints& ip) noexcept {
  return push_tcp_for(p, header, ip);
}

result<> push_icmp(packet_buffer& p, std::uint8_t type, std::uint8_t code,
                   std::uint32_t rest) noexcept {
  return push_icmp_after({}, p, {.type = type, .code = code, .checksum = 0, .rest = rest});
}
result<> push_icmpv6(packet_buffer& p, std::uint8_t type, std::uint8_t code, std::uint32_t rest,
                     const ipv6_endpoints& ip) noexcept {
  const std::size_t length = p.length() + sizeof(icmp_header);
  return push_icmp_after(pseudo_header_of(ip, ip_protocol::icmpv6, length), p,
                         {.type = type, .code = code, .checksum = 0, .rest = rest});
}

result<> push_ipv4(packet_buffer& p, const ipv4_endpoints& ip, std::uint8_t protocol,
                   std::uint16_t id) noexcept {
  const std::size_t length = p.length() + sizeof(ipv4_header);
  if (length > UINT16_MAX) return fail(errc::too_large);
  const auto h = push_header<ipv4_header>(p, {.version_and_words = 4 << 4 | sizeof(ipv4_header) / 4,
                                              .service = 0,
                                              .total_bytes = static_cast<std::uint16_t>(length),
                                              .id = id,
                                              .fragment = ipv4_header::dont_fragment,
                                              .ttl = hop_limit,
                                              .protocol = protocol,
                                              .checksum = 0,
                                              .source = ip.source,
                                              .destination = ip.destination});
  if (!h) return fail(h.error());
  (*h)->checksum = internet_checksum(p.linear().first(sizeof(ipv4_header)));
  return p.set_network_header();
}

result<> push_ipv6(packet_buffer& p, const ipv6_endpoints& ip, std::uint8_t next) noexcept {
  if (p.length() > UINT16_MAX) return fail(errc::too_large);
  const auto h =
      push_header<ipv6_header>(p, {.version_class_flow = 6u << 28,
                                   .payload_bytes = static_cast<std::uint16_t>(p.length()),
                                   .next = next,
                                   .hop_limit = hop_limit,
                                   .source = ip.source,
                                   .destination = ip.destination});
  if (!h) return fail(h.error());
  return p.set_network_header();
}

result<> push_vlan(packet_buffer& p, std::uint16_t tci, std::uint16_t type) noexcept {
  const auto h = push_header<vlan_tag>(p, {.tci = tci, .type = type});
  return h ? result<>() : fail(h.error());
}

result<> push_ethernet(packet_buffer& p, const mac_address& source, const mac_address& destination,
                       std::uint16_t type) noexcept {
  const auto h =
      push_header<ethernet_header>(p, {.destination = destination, .source = source, .type = type});
  if (!h) return fail(h.error());
  return p.set_link_header();
}

result<> put_arp(packet_buffer& p, const arp_packet& arp) noexcept {
  if (!p.empty()) return fail(EINVAL);
  const auto at = p.put(sizeof arp);
  if (!at) return fail(at.error());
  auto* const h = new (*at) arp_packet(arp);
  h->hardware = arp_ethernet;
  h->protocol = ether_type::ipv4;
  h->hardware_bytes = sizeof(mac_address);
  h->protocol_bytes = sizeof(ipv4_address);
  return p.set_network_header();
}

}  // namespace forebay
