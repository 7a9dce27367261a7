// forebay stat: one screen of what a running server does.

#include <chrono>
#include <string>
#include <thread>

#include "forebay/serve/server_statistics.h"
#include "tools/forebay/command.h"
#include "tools/forebay/statistics_client.h"
#include "tools/forebay/statistics_view.h"

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

// Only when memory is, or was, short, or the cache was made smaller.
void print_pressure(const json& p) {
  const auto n = [&](const char* key) { return p[key].get<std::uint64_t>(); };
  if (n("limit_bytes") >= n("capacity_bytes") && n("given_back_bytes") == 0) return;
  const bool is_short = n("limit_bytes") < n("capacity_bytes");
  fmt::print("  limit       {} of {}{}, {} were given back so far\n", human_bytes(n("limit_bytes")),
             human_bytes(n("capacity_bytes")), is_short ? " while memory is short" : "",
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

// What came from the run before.
void print_warm(const json& w) {
  const auto n = [&](const char* key) { return w[key].get<std::uint64_t>(); };
  fmt::print("  warm: recovered {} pages, {} dirty", n("recovered_pages"), n("dirty_pages"));
  if (n("dropped_pages") != 0) fmt::print(", dropped {}", n("dropped_pages"));
  if (n("written_back_pages") != 0) fmt::print(", wrote {} back", n("written_back_pages"));
  fmt::print(" ({})\n", w["file"].get<std::string>());
}

// What half, twice and four times the cache would miss.
void print_curve(const json& c) {
  const json& points = c["miss_ratio_curve"]["points"];
  if (points.empty()) return;
  fmt::print("  would miss  ");
  for (const double share : {0.5, 1.0, 2.0, 4.0}) {
    const double bytes = share * c["capacity_bytes"].get<double>();
    fmt::print("{}{:.1f} % in {}", share == 0.5 ? "" : ", ", miss_ratio_at(points, bytes) * 100,
               human_bytes(static_cast<std::uint64_t>(bytes)));
  }
  fmt::print("\n");
}

std::uint64_t count_in(const json& of, const char* key) { return of[key].get<std::uint64_t>(); }

// Between the cache and the device of an export.
void print_queue(const json& q) {
  if (count_in(q, "requests") == 0) return;
  fmt::print("  device    {} requests, {} more merged; {} under way, {} at most\n",
             count_in(q, "requests"), count_in(q, "merged_back") + count_in(q, "merged_front"),
             count_in(q, "in_flight"), count_in(q, "in_flight_max"));
  for (const auto& [name, c] : q["classes"].items()) {
    if (count_in(c, "waited") + count_in(c, "refused") == 0) continue;
    fmt::print("    {:<11} {} waited, {} do; p50 {}, p99 {}; {} refused\n", name,
               count_in(c, "waited"), count_in(c, "waiting"),
               latency(c["wait_p50_us"].get<double>()), latency(c["wait_p99_us"].get<double>()),
               count_in(c, "refused"));
  }
}

// What an export may have and its clients may ask for, if that is limited, or was.
void print_limits(const json& e) {
  const json& l = e["limits"];
  const auto n = [&](const char* key) { return l[key].get<std::uint64_t>(); };
  // An older server has no such limit.
  if (const auto bytes = l.value("memory_bytes", std::uint64_t{0}); bytes != 0) {
    fmt::print("  memory   {} of the {} that it may have\n",
               human_bytes(count_in(e, "resident_pages") * 4096), human_bytes(bytes));
  }
  const bool limited = n("requests_per_s") + n("bytes_per_s") != 0;
  if (!limited && n("throttled") == 0) return;
  const std::string requests =
      n("requests_per_s") == 0 ? "" : fmt::format(" {} requests/s", n("requests_per_s"));
  const std::string bytes =
      n("bytes_per_s") == 0 ? "" : fmt::format(" {}/s", human_bytes(n("bytes_per_s")));
  fmt::print("  limit    {}{}{}; {} requests waited, {} do, {:.1f} s together\n", requests, bytes,
             limited ? "" : " none any more", n("throttled"), n("waiting"),
             l["waited_s"].get<double>());
}

// Who is being served, by what was asked for so far.
void print_clients(const json& clients) {
  const auto numbers = [](const json& c) {
    return fmt::format(
        "{:>10}{:>11}{:>11}{:>7}", count_in(c, "requests"), human_bytes(count_in(c, "read_bytes")),
        human_bytes(count_in(c, "written_bytes")), count_in(c, "requests_in_flight"));
  };
  if (clients["most_active"].empty()) return;
  fmt::print("\n{:<25}{:<16}{:<11}{:>10}{:>11}{:>11}{:>7}{:>8}\n", "client", "export", "door",
             "requests", "read", "written", "flight", "for");
  for (const json& c : clients["most_active"]) {
    fmt::print("{:<25.24}{:<16.15}{:<11}{}{:>8}\n", c["peer"].get<std::string>(),
               c["export"].get<std::string>(), c["door"].get<std::string>(), numbers(c),
               fmt::format("{:.0f} s", c["connected_s"].get<double>()));
  }
  const json& others = clients["others"];
  if (count_in(others, "count") == 0) return;
  fmt::print("{:<52}{}\n", fmt::format("{} others", count_in(others, "count")), numbers(others));
}

// How often a byte that was read or written was copied on its way, and where.
void print_copied(const json& c) {
  if (count_in(c, "served_bytes") == 0) return;
  fmt::print("\ncopied     {:.2f} bytes for each read or written", c["per_byte"].get<double>());
  const char* before = ": ";
  for (const auto& [where, bytes] : c["where"].items()) {
    if (bytes.get<std::uint64_t>() == 0) continue;
    fmt::print("{}{} {}", before, where, human_bytes(bytes.get<std::uint64_t>()));
    before = ", ";
  }
  fmt::print("\n");
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
    if (e.contains("limits")) print_limits(e);
    print_queue(e["queue"]);
  }
  print_cache(after["cache"]);
  if (after.contains("warm")) print_warm(after["warm"]);
  print_curve(after["cache"]);
  print_pressure(after["pressure"]);
  print_commands(before["commands"], after["commands"], seconds);
  if (after.contains("copied")) print_copied(after["copied"]);
  if (after.contains("client_list")) print_clients(after["client_list"]);
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
