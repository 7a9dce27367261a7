// forebay stat: one screen of what a running server does.

#include <chrono>
#include <nlohmann/json.hpp>
#include <string_view>
#include <thread>

#include "forebay/os/socket.h"
#include "forebay/serve/nbd_protocol.h"
#include "tools/forebay/command.h"

namespace forebay::tool {
namespace {

using json = nlohmann::ordered_json;

constexpr unsigned answer_timeout_ms = 5000;
constexpr std::uint32_t max_statistics_bytes = 64u << 20;

struct stat_options {
  std::string where;
  bool as_json = false;
};

// A client of the server's own NBD option for statistics (see nbd_protocol.h).
class statistics_client {
 public:
  explicit statistics_client(unique_fd socket) noexcept : socket_(std::move(socket)) {}

  result<> handshake() {
    std::array<std::byte, 18> greeting;
    if (auto r = receive_all(socket_.get(), greeting); !r) return r;
    if (nbd::load<std::uint64_t>(greeting.data()) != nbd::init_magic ||
        nbd::load<std::uint64_t>(greeting.data() + 8) != nbd::option_magic) {
      return fail(errc::protocol);
    }
    nbd::message<4> flags;
    flags.put(std::uint32_t{nbd::fixed_newstyle | nbd::no_zeroes});
    return send_all(socket_.get(), {flags.data(), flags.size()});
  }

  // The statistics as JSON text. Error: ENOTSUP from a server that is not a forebay.
  result<std::string> ask() {
    if (auto r = send_option(nbd::option::statistics); !r) return fail(r.error());
    std::string text;
    for (;;) {
      std::array<std::byte, 20> header;
      if (auto r = receive_all(socket_.get(), header); !r) return fail(r.error());
      const auto type =
          static_cast<nbd::option_reply>(nbd::load<std::uint32_t>(header.data() + 12));
      const auto length = nbd::load<std::uint32_t>(header.data() + 16);
      if (nbd::load<std::uint64_t>(header.data()) != nbd::option_reply_magic ||
          length > max_statistics_bytes) {
        return fail(errc::protocol);
      }
      std::string payload(length, '\0');
      if (auto r = receive_all(socket_.get(), std::as_writable_bytes(std::span(payload))); !r) {
        return fail(r.error());
      }
      if (type == nbd::option_reply::ack) return text;
      if (type != nbd::option_reply::statistics) return fail(ENOTSUP);
      text = std::move(payload);
    }
  }

  void leave() { static_cast<void>(send_option(nbd::option::abort)); }

 private:
  result<> send_option(nbd::option which) {
    nbd::message<16> m;
    m.put(nbd::option_magic).put(static_cast<std::uint32_t>(which)).put(std::uint32_t{0});
    return send_all(socket_.get(), {m.data(), m.size()});
  }

  unique_fd socket_;
};

std::string pages(std::uint64_t n) {
  return fmt::format("{:>9}  {:>10}", n, human_bytes(n * 4096));
}

// Latency with three digits: 950 ns, 12.3 us, 4.56 ms.
std::string latency(double us) {
  if (us == 0) return "-";
  if (us < 1) return fmt::format("{:.0f} ns", us * 1000);
  if (us < 1000) return fmt::format("{:.3g} us", us);
  if (us < 1e6) return fmt::format("{:.3g} ms", us / 1000);
  return fmt::format("{:.3g} s", us / 1e6);
}

void print_cache(const json& c) {
  const auto n = [&](const char* key) { return c[key].get<std::uint64_t>(); };
  fmt::print("\ncache      {} in {}\n", human_bytes(n("capacity_bytes")),
             c["backing"].get<std::string>());
  fmt::print("  hit ratio    {:>8.2f} %   of {} lookups\n", c["hit_ratio"].get<double>() * 100,
             n("hits") + n("misses"));
  fmt::print("  resident    {}\n", pages(n("resident_pages")));
  fmt::print("  dirty       {}   limit {}\n", pages(n("dirty_pages")),
             human_bytes(n("dirty_limit_pages") * 4096));
  fmt::print("  in flight   {}\n", pages(n("writeback_pages")));
  fmt::print("  free        {}\n", pages(n("free_pages")));
  fmt::print("  read {} pages, written {}, evicted {}\n", n("pages_read"), n("pages_written"),
             n("evictions"));
  if (n("write_errors") != 0) {
    fmt::print("  WRITE ERRORS {}, pages that wait for a retry {}\n", n("write_errors"),
               n("error_pages"));
  }
}

// The table of commands; rates from the difference of two looks, `seconds` apart.
void print_commands(const json& before, const json& after, double seconds) {
  fmt::print("\n{:<13}{:>12}{:>10}{:>12}{:>8}{:>10}{:>10}{:>10}\n", "command", "count", "per s",
             "bytes", "errors", "p50", "p99", "p99.9");
  for (const auto& [name, now] : after.items()) {
    const auto count = now["count"].get<std::uint64_t>();
    if (count == 0) continue;
    const auto was = before[name]["count"].get<std::uint64_t>();
    fmt::print("{:<13}{:>12}{:>10.0f}{:>12}{:>8}{:>10}{:>10}{:>10}\n", name, count,
               static_cast<double>(count - was) / seconds,
               human_bytes(now["bytes"].get<std::uint64_t>()), now["errors"].get<std::uint64_t>(),
               latency(now["p50_us"].get<double>()), latency(now["p99_us"].get<double>()),
               latency(now["p999_us"].get<double>()));
  }
}

void print_screen(const json& before, const json& after, double seconds) {
  fmt::print(
      "forebay {}   up {:.0f} s   {} threads   {} clients ({} so far, {} turned away)   {} "
      "requests in flight\n",
      after["version"].get<std::string>(), after["uptime_s"].get<double>(),
      after["threads"].get<unsigned>(), after["clients"].get<unsigned>(),
      after["clients_total"].get<std::uint64_t>(), after["clients_refused"].get<std::uint64_t>(),
      after["requests_in_flight"].get<std::int64_t>());
  for (const json& e : after["exports"]) {
    fmt::print("export     {}  {}, {}{}\n", e["name"].get<std::string>(),
               human_bytes(e["size"].get<std::uint64_t>()), e["write_policy"].get<std::string>(),
               e["read_only"].get<bool>() ? ", read-only" : "");
  }
  print_cache(after["cache"]);
  print_commands(before["commands"], after["commands"], seconds);
}

result<std::string> ask_once(const endpoint& where) {
  auto socket = connect_to(where);
  if (!socket) return fail(socket.error());
  set_receive_timeout(socket->get(), answer_timeout_ms);
  statistics_client client(std::move(*socket));
  if (auto r = client.handshake(); !r) return fail(r.error());
  auto text = client.ask();
  client.leave();
  return text;
}

std::string stat_problem(const std::string& where, std::error_code e) {
  if (e == std::errc::connection_refused) {
    return fmt::format("{}: nobody listens there any more; is the server running?", where);
  }
  if (e == std::errc::resource_unavailable_try_again) {
    return fmt::format("{}: does not answer; it is no forebay server, or one that is stuck", where);
  }
  if (e == std::errc::no_such_file_or_directory) {
    return fmt::format("{}: no such socket; name the one that forebay serve was given", where);
  }
  if (e == std::errc::not_supported || e == std::errc::operation_not_supported ||
      e == errc::protocol || e == errc::end_of_stream) {
    return fmt::format("{}: not a forebay server, or one that is ending", where);
  }
  return fmt::format("{}: {}", where, e.message());
}

int stat(const stat_options& o) {
  endpoint where;
  if (auto tcp = endpoint::parse_tcp(o.where); tcp && o.where.find('/') == std::string::npos) {
    where = *tcp;
  } else {
    where.path = o.where;
  }
  const auto first = ask_once(where);
  if (!first) return complain(stat_problem(o.where, first.error()));
  if (o.as_json) {
    fmt::print("{}\n", json::parse(*first).dump(2));
    return 0;
  }
  const auto start = std::chrono::steady_clock::now();
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  const auto second = ask_once(where);
  if (!second) return complain(stat_problem(o.where, second.error()));
  const std::chrono::duration<double> apart = std::chrono::steady_clock::now() - start;
  print_screen(json::parse(*first), json::parse(*second), apart.count());
  return 0;
}

}  // namespace

void add_stat(CLI::App& app, action& chosen) {
  auto o = std::make_shared<stat_options>();
  CLI::App* c = app.add_subcommand("stat", "Show what a running server does");
  c->add_option("SOCKET", o->where, "The server's unix socket, or its HOST:PORT")->required();
  c->add_flag("--json", o->as_json, "All of it as JSON");
  c->callback([o, &chosen] { chosen = [o] { return stat(*o); }; });
}

}  // namespace forebay::tool
