// forebay top: what a running server does at the moment, again and again.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "forebay/serve/server_statistics.h"
#include "tools/forebay/command.h"
#include "tools/forebay/statistics_client.h"
#include "tools/forebay/statistics_view.h"

namespace forebay::tool {
namespace {

using json = nlohmann::ordered_json;

constexpr double page_size = 4096;
constexpr std::size_t bar_cells = 60;
constexpr std::size_t exports_shown = 12;
constexpr std::size_t pools_shown = 6;
constexpr std::size_t clients_shown = 6;

struct top_options : live_options {
  std::string where;
};

double number(const json& of, const char* key) { return of[key].get<double>(); }

std::string size_of(double bytes) { return human_bytes(static_cast<std::uint64_t>(bytes)); }

double share(double part, double whole) { return whole > 0 ? part / whole : 0; }

// What happened between two looks: {name: value}, rates by the second.
json command_between(const json& before, const json& after, double seconds) {
  return {{"per_s", (number(after, "count") - number(before, "count")) / seconds},
          {"bytes_per_s", (number(after, "bytes") - number(before, "bytes")) / seconds},
          {"errors_per_s", (number(after, "errors") - number(before, "errors")) / seconds},
          {"p50_us", percentile_between(before, after, 0.5)},
          {"p99_us", percentile_between(before, after, 0.99)},
          {"p999_us", percentile_between(before, after, 0.999)}};
}

json export_between(const json& before, const json& after, double seconds) {
  json commands = json::object();
  for (const char* const name : {"read", "write", "flush", "trim", "write_zeroes"}) {
    commands[name] = command_between(before["commands"][name], after["commands"][name], seconds);
  }
  return {
      {"name", after["name"]},
      {"dirty_bytes", number(after, "dirty_pages") * page_size},
      {"requests_in_flight", after["requests_in_flight"]},
      {"throttled_per_s",
       (number(after["limits"], "throttled") - number(before["limits"], "throttled")) / seconds},
      {"throttled", after["limits"]["waiting"]},
      {"device_requests_in_flight", after["queue"]["in_flight"]},
      {"commands", std::move(commands)}};
}

json cache_between(const json& before, const json& after, double seconds) {
  const auto rate = [&](const char* key) {
    return (number(after, key) - number(before, key)) / seconds;
  };
  const double hits = number(after, "hits") - number(before, "hits");
  const double looks = hits + number(after, "misses") - number(before, "misses");
  const double capacity = number(after, "capacity_bytes");
  const json& points = after["miss_ratio_curve"]["points"];
  json would_miss = json::array();
  for (const double times : {0.5, 1.0, 2.0, 4.0}) {
    if (points.empty()) break;
    would_miss.push_back(
        {{"bytes", times * capacity}, {"miss_ratio", miss_ratio_at(points, times * capacity)}});
  }
  return {{"capacity_bytes", capacity},
          {"lookups_per_s", looks / seconds},
          {"hit_ratio", looks > 0 ? json(hits / looks) : json(nullptr)},
          {"hit_ratio_since_start", after["hit_ratio"]},
          {"resident_bytes", number(after, "resident_pages") * page_size},
          {"dirty_bytes", number(after, "dirty_pages") * page_size},
          {"writeback_bytes", number(after, "writeback_pages") * page_size},
          {"error_bytes", number(after, "error_pages") * page_size},
          {"free_bytes", number(after, "free_pages") * page_size},
          {"dirty_limit_bytes", number(after, "dirty_limit_pages") * page_size},
          {"read_bytes_per_s", rate("pages_read") * page_size},
          {"written_bytes_per_s", rate("pages_written") * page_size},
          {"evictions_per_s", rate("evictions")},
          {"paced_writes_per_s", rate("paced_writes")},
          {"throttled_writes_per_s", rate("throttled_writes")},
          {"would_miss", std::move(would_miss)}};
}

// The clients that the second look has told of, those that have asked for something in between
// first.
json clients_between(const json& before, const json& after, double seconds) {
  std::vector<json> all;
  for (const json& c : after["client_list"]["most_active"]) {
    const json* was = nullptr;
    for (const json& b : before["client_list"]["most_active"]) {
      if (b["id"] == c["id"]) was = &b;
    }
    const auto rate = [&](const char* key) {
      return (number(c, key) - (was == nullptr ? 0 : number(*was, key))) / seconds;
    };
    // Of who was not among them at the first look it is not known what he did since.
    const bool known = was != nullptr || number(c, "connected_s") <= seconds;
    all.push_back({{"peer", c["peer"]},
                   {"export", c["export"]},
                   {"door", c["door"]},
                   {"per_s", known ? rate("requests") : 0.0},
                   {"read_bytes_per_s", known ? rate("read_bytes") : 0.0},
                   {"written_bytes_per_s", known ? rate("written_bytes") : 0.0},
                   {"requests_in_flight", c["requests_in_flight"]},
                   {"connected_s", c["connected_s"]}});
  }
  std::ranges::sort(
      all, [](const json& a, const json& b) { return number(a, "per_s") > number(b, "per_s"); });
  return all;
}

// The same exports in the same order: they do not change while a server runs.
json between(const json& before, const json& after) {
  const double seconds = std::max(number(after, "uptime_s") - number(before, "uptime_s"), 0.001);
  json exports = json::array();
  for (std::size_t i = 0; i < after["exports"].size(); ++i) {
    exports.push_back(export_between(before["exports"][i], after["exports"][i], seconds));
  }
  json pools = json::array();
  for (const json& c : after["memory"]["caches"]) {
    pools.push_back({{"name", c["name"]},
                     {"bytes", c["bytes"]},
                     {"active", c["active"]},
                     {"total", c["total"]},
                     {"failures", c["failures"]}});
  }
  return {{"version", after["version"]},
          {"uptime_s", after["uptime_s"]},
          {"seconds", seconds},
          {"threads", after["threads"]},
          {"clients", after["clients"]},
          {"clients_total", after["clients_total"]},
          {"clients_refused", after["clients_refused"]},
          {"requests_in_flight", after["requests_in_flight"]},
          {"cache", cache_between(before["cache"], after["cache"], seconds)},
          {"exports", std::move(exports)},
          {"client_list", clients_between(before, after, seconds)},
          {"pools", std::move(pools)}};
}

// The cache from left to right: dirty pages, clean ones, what is neither, nothing.
std::string bar(const json& cache) {
  const double capacity = number(cache, "capacity_bytes");
  const double dirty = number(cache, "dirty_bytes") + number(cache, "writeback_bytes");
  const auto cells = [&](double bytes) {
    return static_cast<std::size_t>(std::lround(share(bytes, capacity) * bar_cells));
  };
  const std::size_t resident = cells(std::max(number(cache, "resident_bytes"), dirty));
  const std::size_t used = std::max(cells(capacity - number(cache, "free_bytes")), resident);
  std::string out(std::min(used, bar_cells), '.');
  out.resize(bar_cells, ' ');
  std::fill_n(out.begin(), std::min(resident, bar_cells), '|');
  std::fill_n(out.begin(), std::min(cells(dirty), bar_cells), '#');
  return out;
}

void print_cache(const json& c) {
  fmt::print("\ncache  [{}] {}\n", bar(c), size_of(number(c, "capacity_bytes")));
  const json& now = c["hit_ratio"];
  fmt::print("  hit ratio   {:>8} of {} lookups/s   {:.2f} % since the start\n",
             now.is_null() ? "-" : fmt::format("{:.2f} %", now.get<double>() * 100),
             short_count(number(c, "lookups_per_s")), number(c, "hit_ratio_since_start") * 100);
  fmt::print("  resident  {:>10}   # dirty {} of at most {}, {} being written   free {}\n",
             size_of(number(c, "resident_bytes")), size_of(number(c, "dirty_bytes")),
             size_of(number(c, "dirty_limit_bytes")), size_of(number(c, "writeback_bytes")),
             size_of(number(c, "free_bytes")));
  fmt::print("  devices   {:>10}/s read, {}/s written back, {} pages/s evicted\n",
             size_of(number(c, "read_bytes_per_s")), size_of(number(c, "written_bytes_per_s")),
             short_count(number(c, "evictions_per_s")));
  if (number(c, "paced_writes_per_s") + number(c, "throttled_writes_per_s") > 0) {
    fmt::print("  writers slowed {}/s, stopped {}/s\n",
               short_count(number(c, "paced_writes_per_s")),
               short_count(number(c, "throttled_writes_per_s")));
  }
  if (number(c, "error_bytes") > 0) {
    fmt::print("  CANNOT BE WRITTEN: {}\n", size_of(number(c, "error_bytes")));
  }
  if (!c["would_miss"].empty()) {
    fmt::print("  would miss ");
    for (const json& w : c["would_miss"]) {
      fmt::print("   {:.1f} % in {}", number(w, "miss_ratio") * 100, size_of(number(w, "bytes")));
    }
    fmt::print("\n");
  }
}

void print_exports(const json& exports) {
  fmt::print("\n{:<20}{:<7}{:>8}{:>12}{:>9}{:>9}{:>9}{:>11}{:>8}\n", "EXPORT", "", "PER S",
             "BYTES/S", "P50", "P99", "P99.9", "DIRTY", "DEVICE");
  std::size_t shown = 0;
  for (const json& e : exports) {
    if (++shown > exports_shown) {
      fmt::print("... and {} more\n", exports.size() - exports_shown);
      return;
    }
    bool first = true;
    for (const auto& [name, c] : e["commands"].items()) {
      // Reads and writes always have their lines, so that the picture does not jump.
      if (number(c, "per_s") == 0 && name != "read" && name != "write") continue;
      fmt::print("{:<20}{:<7}{:>8}{:>12}{:>9}{:>9}{:>9}",
                 first ? e["name"].get<std::string>().substr(0, 19) : "",
                 name == "write_zeroes" ? "zero" : name, short_count(number(c, "per_s")),
                 size_of(number(c, "bytes_per_s")), latency(number(c, "p50_us")),
                 latency(number(c, "p99_us")), latency(number(c, "p999_us")));
      if (first) {
        fmt::print("{:>11}{:>8}", size_of(number(e, "dirty_bytes")),
                   short_count(number(e, "device_requests_in_flight")));
      }
      fmt::print("\n");
      first = false;
    }
    if (number(e, "throttled_per_s") + number(e, "throttled") > 0) {
      fmt::print("{:<20}over its limit: {} waited/s, {} do\n", "",
                 short_count(number(e, "throttled_per_s")), short_count(number(e, "throttled")));
    }
  }
}

void print_clients(const json& clients) {
  if (clients.empty()) return;
  fmt::print("\n{:<25}{:<16}{:<11}{:>8}{:>12}{:>12}{:>8}\n", "CLIENT", "EXPORT", "DOOR", "PER S",
             "READ/S", "WRITTEN/S", "FLIGHT");
  for (std::size_t i = 0; i < std::min(clients.size(), clients_shown); ++i) {
    const json& c = clients[i];
    fmt::print("{:<25.24}{:<16.15}{:<11}{:>8}{:>12}{:>12}{:>8}\n", c["peer"].get<std::string>(),
               c["export"].get<std::string>(), c["door"].get<std::string>(),
               short_count(number(c, "per_s")), size_of(number(c, "read_bytes_per_s")),
               size_of(number(c, "written_bytes_per_s")),
               short_count(number(c, "requests_in_flight")));
  }
}

void print_pools(const json& pools) {
  fmt::print("\n{:<27}{:>12}{:>10}{:>10}{:>9}\n", "POOL", "SIZE", "IN USE", "OF", "FAILED");
  for (std::size_t i = 0; i < std::min(pools.size(), pools_shown); ++i) {
    const json& p = pools[i];
    fmt::print("{:<27}{:>12}{:>10}{:>10}{:>9}\n", p["name"].get<std::string>().substr(0, 26),
               size_of(number(p, "bytes")), short_count(number(p, "active")),
               short_count(number(p, "total")), short_count(number(p, "failures")));
  }
}

void print_screen(const json& t) {
  fmt::print(
      "forebay {}   up {:.0f} s   {} threads   {} clients ({} so far, {} turned away)   {} "
      "requests in flight\n",
      t["version"].get<std::string>(), number(t, "uptime_s"), t["threads"].get<unsigned>(),
      t["clients"].get<unsigned>(), t["clients_total"].get<std::uint64_t>(),
      t["clients_refused"].get<std::uint64_t>(), t["requests_in_flight"].get<std::int64_t>());
  print_cache(t["cache"]);
  print_exports(t["exports"]);
  print_clients(t["client_list"]);
  print_pools(t["pools"]);
}

int top(const top_options& o) {
  const bool refresh = o.refreshes();
  auto before = ask_statistics(o.where);
  if (!before) return complain(before.error());
  if (!(*before)["cache"].contains("miss_ratio_curve") ||
      !(*before)["exports"][0].contains("limits") || !before->contains("client_list")) {
    return complain(fmt::format("{}: a forebay server that is too old to tell this", o.where));
  }
  // The first picture soon, the others as asked for.
  double wait_s = std::min(o.interval_s, 0.5);
  for (;;) {
    std::this_thread::sleep_for(std::chrono::duration<double>(wait_s));
    auto after = ask_statistics(o.where);
    if (!after) return complain(after.error());
    // Another server at the same place counts from the start.
    if (number(*after, "uptime_s") < number(*before, "uptime_s") ||
        (*after)["exports"].size() != (*before)["exports"].size()) {
      *before = *after;
    }
    const json seen = between(*before, *after);
    if (o.as_json) {
      fmt::print("{}\n", seen.dump(2));
      return 0;
    }
    if (refresh) clear_terminal();
    print_screen(seen);
    if (!refresh) return 0;
    std::fflush(stdout);
    before = std::move(after);
    wait_s = o.interval_s;
  }
}

}  // namespace

void add_top(CLI::App& app, action& chosen) {
  auto o = std::make_shared<top_options>();
  CLI::App* c = app.add_subcommand("top", "Show what a running server does at the moment, live");
  c->add_option("SOCKET", o->where, "The server's unix socket, or its HOST:PORT")->required();
  add_live_options(*c, *o, "One picture, also on a terminal",
                   "The figures of one picture, as JSON");
  c->callback([o, &chosen] { chosen = [o] { return top(*o); }; });
}

}  // namespace forebay::tool
