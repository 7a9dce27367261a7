#include "tools/forebay/command.h"

#include <array>
#include <cstdio>

#include "forebay/os/fd.h"

namespace forebay::tool {

int complain(const std::string& line) {
  fmt::print(stderr, "forebay: {}\n", line);
  return 1;
}

bool live_options::refreshes() const { return !once && !as_json && is_terminal(standard_output); }

void add_live_options(CLI::App& to, live_options& o, const std::string& once,
                      const std::string& as_json) {
  to.add_option("--interval", o.interval_s, "Seconds between two looks, on a terminal; Ctrl-C ends")
      ->check(CLI::Range(0.1, 3600.0))
      ->capture_default_str();
  to.add_flag("--once", o.once, once);
  to.add_flag("--json", o.as_json, as_json);
}

void clear_terminal() { fmt::print("\033[H\033[2J"); }

std::string human_bytes(std::uint64_t bytes) {
  constexpr std::array<const char*, 7> units = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 1024 && unit + 1 < units.size()) {
    value /= 1024;
    ++unit;
  }
  const bool whole = value == static_cast<double>(static_cast<std::uint64_t>(value));
  return whole ? fmt::format("{:.0f} {}", value, units[unit])
               : fmt::format("{:.1f} {}", value, units[unit]);
}

}  // namespace forebay::tool
