// forebay echo: answers ARP, pings and UDP on an interface from user space.
#include <algorithm>
#include <array>
#include <bit>
#include <csignal>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>

#include "forebay/memory/arena.h"
#include "forebay/net/echo.h"
#include "forebay/net/packet_port.h"
#include "forebay/net/tap_port.h"
#include "forebay/net/xdp_port.h"
#include "forebay/os/address.h"
#include "forebay/os/fd.h"
#include "forebay/os/net_interface.h"
#include "forebay/os/poll.h"
#include "tools/forebay/command.h"

namespace forebay::tool {
namespace {

constexpr std::size_t burst_packets = 64;
constexpr int look_ms = 200;        // how often the interface's state is looked at
constexpr int transmit_tries = 50;  // of a millisecond each
constexpr std::size_t arena_bytes = std::size_t{16} << 20;
constexpr std::uint32_t xdp_frames = 2048;     // to receive into, by all queues; and to send
constexpr std::uint32_t xdp_frames_min = 256;  // by one

struct echo_options {
  std::string interface;
  std::string port = "auto";
  std::string ipv4;
  std::string ipv6;
  std::string mac;
  std::uint16_t udp_port = 0;
  bool swap_everything = false;
};

struct echo_account {
  std::array<std::uint64_t, echo_answers> by_answer{};
  std::uint64_t unsent = 0;  // answers that the interface did not take
};

// One line of what is wrong with an option, if anything.
std::optional<std::string> identify(const echo_options& o, const net_interface& at,
                                    echo_identity& us) {
  us.mac = at.address;
  // A TAP's address is that of the machine, at the other end.
  if (o.port == "tap") us.mac[5] ^= 1;
  us.udp_port = o.udp_port;
  us.swap_everything = o.swap_everything;
  if (!o.ipv4.empty()) {
    const auto address = parse_ipv4(o.ipv4);
    if (!address) return fmt::format("--ipv4: '{}' is no IPv4 address", o.ipv4);
    us.ipv4 = *address;
  }
  if (!o.ipv6.empty()) {
    const auto address = parse_ipv6(o.ipv6);
    if (!address) return fmt::format("--ipv6: '{}' is no IPv6 address", o.ipv6);
    us.ipv6 = *address;
  }
  if (!o.mac.empty()) {
    std::array<unsigned, 6> v{};
    int end = 0;
    if (std::sscanf(o.mac.c_str(), "%2x:%2x:%2x:%2x:%2x:%2x%n", &v[0], &v[1], &v[2], &v[3], &v[4],
                    &v[5], &end) != 6 ||
        static_cast<std::size_t>(end) != o.mac.size() || (v[0] & 1) != 0) {
      return fmt::format("--mac: '{}' is no address of one interface, as 02:00:00:00:00:01", o.mac);
    }
    for (std::size_t i = 0; i < v.size(); ++i) us.mac[i] = static_cast<std::uint8_t>(v[i]);
  }
  if (o.ipv4.empty() && o.ipv6.empty() && !o.swap_everything) {
    return "say for which address: --ipv4, --ipv6, or --macswap for everything";
  }
  return std::nullopt;
}

// The port, with the memory of its packets, and what to call it.
struct echo_port {
  std::unique_ptr<arena> memory;
  std::unique_ptr<packet_pool> pool;
  std::unique_ptr<port> on;
  std::string kind;
};

std::optional<std::string> make_pool(const packet_pool::options& opts, std::size_t bytes,
                                     echo_port& p) {
  auto memory = arena::create({.bytes = bytes});
  if (!memory) return fmt::format("no memory: {}", memory.error().message());
  auto pool = packet_pool::create(**memory, opts);
  if (!pool) return fmt::format("no memory: {}", pool.error().message());
  p.memory = std::move(*memory);
  p.pool = std::move(*pool);
  return std::nullopt;
}

std::string refusal(const echo_options& o, std::error_code e, std::string_view needed) {
  if (e == std::errc::operation_not_permitted) {
    return fmt::format("{}: needs {}", o.interface, needed);
  }
  if (e == std::errc::device_or_resource_busy || e == std::errc::file_exists) {
    return fmt::format("{}: has another XDP program or socket already", o.interface);
  }
  return fmt::format("{}: {}", o.interface, e.message());
}

std::optional<std::string> open_packet(const echo_options& o, const net_interface& at,
                                       echo_port& p) {
  // Packets lie in the port's ring; what is from here are their descriptors.
  if (auto problem = make_pool({.name = "echo", .count = burst_packets}, arena_bytes, p)) {
    return problem;
  }
  const packet_socket::options ring{
      .block_bytes = 1u << 18, .blocks = 32, .retire_ms = 1, .outgoing = false};
  auto on = packet_port::open(at, ring, *p.pool);
  if (!on) return refusal(o, on.error(), name_of(capability::net_raw));
  p.on = std::move(*on);
  p.kind = "packet socket";
  return std::nullopt;
}

// What is for us, also with a VLAN tag; nothing that the machine could want.
std::string filter_of(const echo_options& o, const echo_identity& us) {
  if (o.swap_everything) return {};
  std::string ours;
  if (!o.ipv4.empty()) ours = "dst host " + o.ipv4;  // IP and ARP
  if (!o.ipv6.empty()) {
    // And solicitations (135) that ask for it, wherever they are sent.
    ours += fmt::format("{}ip6 dst host {} or (icmp6 and ip6[40] = 135", ours.empty() ? "" : " or ",
                        o.ipv6);
    for (std::size_t i = 0; i < us.ipv6.size(); i += 4) {
      ours += fmt::format(" and ip6[{}:4] = 0x{:02x}{:02x}{:02x}{:02x}", 48 + i, us.ipv6[i],
                          us.ipv6[i + 1], us.ipv6[i + 2], us.ipv6[i + 3]);
    }
    ours += ")";
  }
  return fmt::format("({0}) or (vlan and ({0}))", ours);
}

std::optional<std::string> open_xdp(const echo_options& o, const net_interface& at,
                                    const echo_identity& us, echo_port& p) {
  const auto bytes = xdp_port::buffer_bytes_for(at.mtu_bytes);
  if (!bytes) return fmt::format("{}: its MTU is too large for AF_XDP", o.interface);
  const std::uint32_t queues = std::min(receive_queues(at), xdp_port::queues_max);
  const std::uint32_t frames = std::max(std::bit_floor(xdp_frames / queues), xdp_frames_min);
  const std::size_t count = std::size_t{frames} * queues + std::size_t{2} * xdp_frames;
  if (auto problem = make_pool(xdp_port::pool_options("echo", *bytes, count),
                               arena_bytes + count * *bytes, p)) {
    return problem;
  }
  packet_filter filter;
  if (const std::string text = filter_of(o, us); !text.empty()) {
    auto made = packet_filter::for_packets(text, pcapng::link_type::ethernet, UINT16_MAX);
    if (!made) return fmt::format("the filter '{}': {}", text, made.error());
    filter = std::move(*made);
  }
  auto on = xdp_port::open(
      at, {.receive_frames = frames, .transmit_frames = xdp_frames, .filter = filter.program()},
      *p.memory, *p.pool);
  if (!on) return refusal(o, on.error(), "CAP_NET_ADMIN, CAP_BPF and CAP_NET_RAW for AF_XDP");
  for (const std::string& remark : (*on)->remarks()) fmt::print(stderr, "forebay: {}\n", remark);
  p.kind = fmt::format("AF_XDP, {}", to_string((*on)->mode()));
  p.on = std::move(*on);
  return std::nullopt;
}

std::optional<std::string> open_tap(const echo_options& o, echo_port& p) {
  if (auto problem = make_pool({.name = "echo", .buffer_bytes = 4096, .count = 4 * burst_packets},
                               arena_bytes, p)) {
    return problem;
  }
  auto on = tap_port::open(o.interface, *p.pool);
  if (!on) return refusal(o, on.error(), name_of(capability::net_admin));
  p.on = std::move(*on);
  p.kind = "TAP";
  return std::nullopt;
}

// AF_XDP where that takes nothing from the machine and sees all that is for us; a packet socket
// otherwise, and the reason is printed.
std::optional<std::string> open_best(const echo_options& o, const net_interface& at,
                                     const echo_identity& us, echo_port& p) {
  std::optional<std::string> why;
  if (o.swap_everything) {
    why = fmt::format("{}: AF_XDP would take everything from the machine", o.interface);
  } else if (receive_queues(at) > xdp_port::queues_max) {
    why = fmt::format("{}: AF_XDP would see {} receive queues of {}", o.interface,
                      xdp_port::queues_max, receive_queues(at));
  } else {
    why = open_xdp(o, at, us, p);
  }
  if (!why) return std::nullopt;
  fmt::print(stderr, "forebay: {}; using a packet socket\n", *why);
  p = {};
  return open_packet(o, at, p);
}

std::optional<std::string> open_port(const echo_options& o, const net_interface& at,
                                     const echo_identity& us, echo_port& p) {
  if (o.port == "packet") return open_packet(o, at, p);
  if (o.port == "xdp") return open_xdp(o, at, us, p);
  if (o.port == "tap") return open_tap(o, p);
  return open_best(o, at, us, p);
}

// Sends what there is, waiting a while for room.
void transmit(port& to, std::span<packet> answers, echo_account& account) {
  for (int tries = 0; !answers.empty() && tries < transmit_tries; ++tries) {
    const auto sent = to.transmit(answers);
    if (!sent) break;
    answers = answers.subspan(*sent);
    if (!answers.empty() && *sent == 0) static_cast<void>(to.wait(1));
  }
  account.unsent += answers.size();
  packet_pool::release_burst(answers);
}

// One burst from the interface and back to it; whether there was any.
bool turn_burst(port& on, const echo_identity& us, echo_account& account) {
  std::array<packet, burst_packets> burst;
  const std::size_t n = on.receive(burst);
  std::size_t answers = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const echo_answer a = turn_round(*burst[i], us);
    ++account.by_answer[static_cast<std::size_t>(a)];
    if (!is_answer(a)) continue;
    if (i != answers) burst[answers] = std::move(burst[i]);
    ++answers;
  }
  transmit(on, std::span(burst).first(answers), account);
  return n != 0;
}

void print_account(const port_statistics& s, const echo_account& account) {
  fmt::print("received {}, dropped by the kernel {}, answers not sent {}\n", s.received,
             s.dropped_full + s.dropped_memory, account.unsent);
  for (std::size_t i = 0; i < account.by_answer.size(); ++i) {
    if (account.by_answer[i] == 0) continue;
    fmt::print("{} {}\n", to_string(static_cast<echo_answer>(i)), account.by_answer[i]);
  }
}

// Until a signal comes or the interface goes; the exit status.
int answer(port& on, const echo_identity& us, int signals) {
  echo_account account;
  int status = 0;
  for (;;) {
    while (turn_burst(on, us, account)) {
    }
    if (!on.wait(look_ms, signals)) break;
    const std::array<int, 1> fds{signals};
    const auto ready = wait_readable(fds, 0);
    if (!ready || (*ready & 1) != 0) break;
    if (on.state() == link_state::gone) {
      status = complain(fmt::format("{}: the interface is gone", on.name()));
      break;
    }
  }
  print_account(on.statistics(), account);
  return status;
}

int echo(const echo_options& o) {
  const auto at = net_interface::find(o.interface);
  if (!at) return complain(fmt::format("{}: no such interface", o.interface));
  echo_identity us;
  if (const auto problem = identify(o, *at, us)) return complain(*problem);
  if (o.port != "tap" && !has_capability(capability::net_raw)) {
    return complain(fmt::format("{}: needs {}", o.interface, name_of(capability::net_raw)));
  }
  echo_port p;
  if (const auto problem = open_port(o, *at, us, p)) return complain(*problem);
  auto signals = make_signal_fd({SIGINT, SIGTERM, SIGHUP});
  if (!signals) return complain(fmt::format("no signals: {}", signals.error().message()));
  fmt::print(stderr, "forebay: answering on {} ({})\n", o.interface, p.kind);
  return answer(*p.on, us, signals->get());
}

}  // namespace

void add_echo(CLI::App& app, action& chosen) {
  auto o = std::make_shared<echo_options>();
  CLI::App* c = app.add_subcommand("echo", "Answer pings and UDP on an interface");
  c->add_option("IF", o->interface, "The interface")->required();
  c->add_option("--port", o->port, "How to get at its packets: auto, xdp, packet or tap (auto)")
      ->type_name("KIND")
      ->check(CLI::IsMember({"auto", "xdp", "packet", "tap"}));
  c->add_option("--ipv4", o->ipv4, "Answer ARP, ICMP and UDP for this address")
      ->type_name("ADDRESS");
  c->add_option("--ipv6", o->ipv6, "Answer neighbours, ICMPv6 and UDP for this address")
      ->type_name("ADDRESS");
  c->add_option("--mac", o->mac, "Answer as this Ethernet address (the interface's)")
      ->type_name("ADDRESS");
  c->add_option("--udp-port", o->udp_port, "Answer UDP to this port only (all)");
  c->add_flag("--macswap", o->swap_everything,
              "Send everything back, with its Ethernet addresses exchanged");
  c->footer(
      "Packets are turned round where they were received, in user space. The addresses must not\n"
      "be the machine's own. Ctrl-C ends it and prints an account.\n"
      "An example: forebay echo veth1 --ipv4 10.0.0.2");
  c->callback([o, &chosen] { chosen = [o] { return echo(*o); }; });
}

}  // namespace forebay::tool
