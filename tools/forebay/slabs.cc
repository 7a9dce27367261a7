// forebay slabs: the live table of a running server's slab caches and buffer pools, after
// slabtop(1).

#include <algorithm>
#include <chrono>
#include <map>
#include <thread>

#include "tools/forebay/command.h"
#include "tools/forebay/statistics_client.h"

namespace forebay::tool {
namespace {

using json = nlohmann::ordered_json;

struct slabs_options : live_options {
  std::string where;
  std::string sort_by = "size";
};

// What --sort takes, and the member of a cache's statistics that it stands for.
const std::map<std::string, std::string> sort_keys = {
    {"size", "bytes"},          {"objects", "total"},       {"active", "active"},
    {"object", "object_bytes"}, {"slabs", "slabs"},         {"allocations", "allocations"},
    {"failures", "failures"},   {"high", "high_watermark"}, {"name", "name"},
};

std::uint64_t number(const json& cache, const char* key) { return cache[key].get<std::uint64_t>(); }

double percent(std::uint64_t part, std::uint64_t whole) {
  return whole == 0 ? 0.0 : 100.0 * static_cast<double>(part) / static_cast<double>(whole);
}

// The largest first, equal ones and names from a to z.
void sort_caches(json& caches, const std::string& sort_by) {
  const std::string& key = sort_keys.at(sort_by);
  std::sort(caches.begin(), caches.end(), [&](const json& a, const json& b) {
    if (key != "name" && number(a, key.c_str()) != number(b, key.c_str())) {
      return number(a, key.c_str()) > number(b, key.c_str());
    }
    return a["name"].get<std::string>() < b["name"].get<std::string>();
  });
}

void print_totals(const json& memory) {
  std::uint64_t active = 0;
  std::uint64_t total = 0;
  std::uint64_t slabs = 0;
  std::uint64_t bytes = 0;
  std::uint64_t allocations = 0;
  std::uint64_t hits = 0;
  std::uint64_t failures = 0;
  for (const json& c : memory["caches"]) {
    active += number(c, "active");
    total += number(c, "total");
    slabs += number(c, "slabs");
    bytes += number(c, "bytes");
    allocations += number(c, "allocations");
    hits += number(c, "cpu_hits");
    failures += number(c, "failures");
  }
  fmt::print("objects      {} active of {} ({:.1f} %)   {} slabs   {}\n", active, total,
             percent(active, total), slabs, human_bytes(bytes));
  fmt::print("allocations  {}   {:.2f} % from the CPU's own cache   {} failed\n", allocations,
             percent(hits, allocations), failures);
}

void print_table(const json& memory) {
  print_totals(memory);
  fmt::print("\n{:>10}{:>10}{:>6}{:>10}{:>8}{:>10}{:>11}{:>9}{:>9}{:>8}{:>10}  {}\n", "OBJS",
             "ACTIVE", "USE", "OBJ SIZE", "SLABS", "OBJ/SLAB", "SIZE", "CPU HIT", "CACHED",
             "FAILED", "HIGH", "NAME");
  for (const json& c : memory["caches"]) {
    fmt::print("{:>10}{:>10}{:>5.0f}%{:>10}{:>8}{:>10}{:>11}{:>8.1f}%{:>9}{:>8}{:>10}  {}\n",
               number(c, "total"), number(c, "active"),
               percent(number(c, "active"), number(c, "total")),
               human_bytes(number(c, "object_bytes")), number(c, "slabs"),
               number(c, "objects_per_slab"), human_bytes(number(c, "bytes")),
               percent(number(c, "cpu_hits"), number(c, "allocations")), number(c, "cached"),
               number(c, "failures"), number(c, "high_watermark"), c["name"].get<std::string>());
  }
}

int slabs(const slabs_options& o) {
  const bool refresh = o.refreshes();
  for (;;) {
    auto statistics = ask_statistics(o.where);
    if (!statistics) return complain(statistics.error());
    if (!statistics->contains("memory")) {
      return complain(fmt::format("{}: a forebay server that is too old to tell this", o.where));
    }
    json& memory = (*statistics)["memory"];
    sort_caches(memory["caches"], o.sort_by);
    if (o.as_json) {
      fmt::print("{}\n", memory.dump(2));
      return 0;
    }
    if (refresh) clear_terminal();
    print_table(memory);
    if (!refresh) return 0;
    std::fflush(stdout);
    std::this_thread::sleep_for(std::chrono::duration<double>(o.interval_s));
  }
}

std::string sort_key_names() {
  std::string names;
  for (const auto& [name, key] : sort_keys) names += (names.empty() ? "" : ", ") + name;
  return names;
}

}  // namespace

void add_slabs(CLI::App& app, action& chosen) {
  auto o = std::make_shared<slabs_options>();
  CLI::App* c = app.add_subcommand("slabs", "Show the slab caches and buffer pools of a server");
  c->add_option("SOCKET", o->where, "The server's unix socket, or its HOST:PORT")->required();
  c->add_option("--sort", o->sort_by, fmt::format("Order: {}", sort_key_names()))
      ->check([](const std::string& key) {
        return sort_keys.contains(key)
                   ? std::string()
                   : fmt::format("no sort key '{}'; there are {}", key, sort_key_names());
      })
      ->capture_default_str();
  add_live_options(*c, *o, "One look, also on a terminal", "All of it as JSON, once");
  c->callback([o, &chosen] { chosen = [o] { return slabs(*o); }; });
}

}  // namespace forebay::tool
