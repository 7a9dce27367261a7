// forebay echo: answers ARP, pings and UDP on an interface from user space.
#include <array>
#include <csignal>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>

#include "forebay/memory/arena.h"
#include "forebay/net/echo.h"
#include "forebay/net/packet_port.h"
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

struct echo_options {
  std::string interface;
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
             s.dropped_full, account.unsent);
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
  auto memory = arena::create({.bytes = arena_bytes});
  if (!memory) return complain(fmt::format("no memory: {}", memory.error().message()));
  // Packets lie in the port's ring; what is from here are their descriptors.
  auto descriptors = packet_pool::create(**memory, {.name = "echo", .count = burst_packets});
  if (!descriptors) return complain(fmt::format("no memory: {}", descriptors.error().message()));
  const packet_socket::options ring{
      .block_bytes = 1u << 18, .blocks = 32, .retire_ms = 1, .outgoing = false};
  auto on = packet_port::open(*at, ring, **descriptors);
  if (!on) {
    if (on.error() == std::errc::operation_not_permitted) {
      return complain(fmt::format("{}: needs {}", o.interface, name_of(capability::net_raw)));
    }
    return complain(fmt::format("{}: {}", o.interface, on.error().message()));
  }
  auto signals = make_signal_fd({SIGINT, SIGTERM, SIGHUP});
  if (!signals) return complain(fmt::format("no signals: {}", signals.error().message()));
  fmt::print(stderr, "forebay: answering on {}\n", o.interface);
  return answer(**on, us, signals->get());
}

}  // namespace

void add_echo(CLI::App& app, action& chosen) {
  auto o = std::make_shared<echo_options>();
  CLI::App* c = app.add_subcommand("echo", "Answer pings and UDP on an interface");
  c->add_option("IF", o->interface, "The interface")->required();
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
