// forebay stat: one screen of what a running server does.

#include <chrono>
#include <string>
#include <thread>

#include "tools/forebay/command.h"
#include "tools/forebay/statistics_client.h"

namespace forebay::tool {
namespace {

using json = nlohmann::ordered_json;

struct stat_options {
  std::string where;
  bool as_json = false;
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

// Only when memory is, or was, short.
void print_pressure(const json& p) {
  const auto n = [&](const char* key) { return p[key].get<std::uint64_t>(); };
  if (n("limit_bytes") >= n("capacity_bytes") && n("given_back_bytes") == 0) return;
  fmt::print("  limit       {} of {} while memory is short, {} were given back so far\n",
             human_bytes(n("limit_bytes")), human_bytes(n("capacity_bytes")),
             human_bytes(n("given_back_bytes")));
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
  fmt::print("  read {} pages, written {}, evicted {} ({})\n", n("pages_read"), n("pages_written"),
             n("evictions"), c["eviction"].get<std::string>());
  if (n("paced_writes") + n("throttled_writes") != 0) {
    fmt::print("  writers slowed {} times, stopped {}\n", n("paced_writes"), n("throttled_writes"));
  }
  if (n("buffer_lru_hits") != 0) {
    fmt::print("  blocks found in their CPU's array {} times of {}\n", n("buffer_lru_hits"),
               n("buffer_lru_hits") + n("buffer_lru_misses"));
  }
  if (n("readahead_pages") != 0) {
    fmt::print("  read ahead {} pages: {} used so far, {} evicted unused\n", n("readahead_pages"),
               n("readahead_used"), n("readahead_wasted"));
  }
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
  print_pressure(after["pressure"]);
  print_commands(before["commands"], after["commands"], seconds);
}

int stat(const stat_options& o) {
  const auto first = ask_statistics(o.where);
  if (!first) return complain(first.error());
  if (o.as_json) {
    fmt::print("{}\n", first->dump(2));
    return 0;
  }
  const auto start = std::chrono::steady_clock::now();
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  const auto second = ask_statistics(o.where);
  if (!second) return complain(second.error());
  const std::chrono::duration<double> apart = std::chrono::steady_clock::now() - start;
  print_screen(*first, *second, apart.count());
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
