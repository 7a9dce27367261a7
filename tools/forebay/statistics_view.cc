#include "tools/forebay/statistics_view.h"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <vector>

namespace forebay::tool {

using json = nlohmann::ordered_json;

std::string latency(double us) {
  if (us == 0) return "-";
  if (us < 1) return fmt::format("{:.0f} ns", us * 1000);
  if (us < 1000) return fmt::format("{:.3g} us", us);
  if (us < 1e6) return fmt::format("{:.3g} ms", us / 1000);
  return fmt::format("{:.3g} s", us / 1e6);
}

std::string short_count(double n) {
  if (n < 999.5) return fmt::format("{:.0f}", n);
  constexpr std::array<const char*, 4> units = {"k", "M", "G", "T"};
  std::size_t unit = 0;
  for (n /= 1000; n >= 999.5 && unit + 1 < units.size(); n /= 1000) ++unit;
  return fmt::format("{:.{}f}{}", n, n < 9.995 ? 2 : n < 99.95 ? 1 : 0, units[unit]);
}

double percentile_between(const json& before, const json& after, double fraction) {
  const json& then = before["latency_ns"];
  const json& now = after["latency_ns"];
  std::vector<std::pair<double, std::uint64_t>> fresh;
  std::uint64_t total = 0;
  // Both are in rising order, and what was counted stays.
  std::size_t at = 0;
  for (const json& bucket : now) {
    std::uint64_t count = bucket[1].get<std::uint64_t>();
    if (at < then.size() && then[at][0] == bucket[0]) {
      count -= then[at++][1].get<std::uint64_t>();
    }
    total += count;
    fresh.emplace_back(bucket[0].get<double>(), count);
  }
  const double wanted = std::ceil(fraction * static_cast<double>(total));
  std::uint64_t seen = 0;
  for (const auto& [top_ns, count] : fresh) {
    seen += count;
    if (count != 0 && static_cast<double>(seen) >= wanted) return top_ns / 1000;
  }
  return 0;
}

}  // namespace forebay::tool
