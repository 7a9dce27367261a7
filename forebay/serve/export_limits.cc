#include "forebay/serve/export_limits.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>

#include "forebay/cache/memory_share.h"

namespace forebay {
namespace {

// A whole number, perhaps with a unit behind it.
std::optional<std::uint64_t> read_size(std::string_view text) noexcept {
  unsigned shift = 0;
  if (!text.empty()) {
    constexpr std::string_view units = "KMGT";
    constexpr std::string_view small_units = "kmgt";
    std::size_t unit = units.find(text.back());
    if (unit == units.npos) unit = small_units.find(text.back());
    if (unit != units.npos) {
      shift = 10 * (static_cast<unsigned>(unit) + 1);
      text.remove_suffix(1);
    }
  }
  std::uint64_t n = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), n);
  if (error != std::errc{} || end != text.data() + text.size() || n > UINT64_MAX >> shift)
    return std::nullopt;
  return n << shift;
}

std::optional<std::uint64_t> read_seconds(std::string_view text) noexcept {
  double s = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), s);
  constexpr double most = static_cast<double>(rate_limit::burst_ns_max) / 1e9;
  if (error != std::errc{} || end != text.data() + text.size() || !(s >= 0 && s <= most))
    return std::nullopt;
  return static_cast<std::uint64_t>(std::llround(s * 1e9));
}

// One KEY=VALUE.
std::string read_limit(std::string_view text, export_limits& out) {
  const std::size_t equals = text.find('=');
  if (equals == text.npos) return fmt::format("{}: must be KEY=VALUE", text);
  const std::string_view key = text.substr(0, equals);
  const std::string_view value = text.substr(equals + 1);
  if (key == "burst") {
    out.burst_ns = read_seconds(value);
    if (out.burst_ns) return {};
    return fmt::format("burst {}: must be a number of seconds, from 0 to 3600", value);
  }
  const std::optional<std::uint64_t> n = read_size(value);
  if (key == "iops") {
    out.requests_per_s = n;
    if (n && *n <= rate_limit::requests_per_s_max) return {};
    return fmt::format("iops {}: must be a number of requests a second, at most {}", value,
                       rate_limit::requests_per_s_max);
  }
  if (key == "bytes") {
    out.bytes_per_s = n;
    const bool fits =
        n && (*n == 0 || (*n >= rate_limit::bytes_per_s_min && *n <= rate_limit::bytes_per_s_max));
    if (fits) return {};
    return fmt::format("bytes {}: must be bytes a second as 20M, from 64K to 1T, or 0", value);
  }
  if (key == "memory") {
    constexpr std::uint64_t least = std::uint64_t{memory_share::pages_min} << page_shift;
    if (n && (*n == 0 || *n >= least)) {
      out.memory_bytes = *n == 0 ? UINT64_MAX : *n;
      return {};
    }
    return fmt::format("memory {}: must be a size as 64M, at least 4M, or 0", value);
  }
  return fmt::format("{}: there is no such limit; choose iops, bytes, burst or memory", key);
}

}  // namespace

rate_limits export_limits::over(rate_limits old) const noexcept {
  return {.requests_per_s = requests_per_s.value_or(old.requests_per_s),
          .bytes_per_s = bytes_per_s.value_or(old.bytes_per_s),
          .burst_ns = burst_ns.value_or(old.burst_ns)};
}

std::string read_limits(std::string_view text, export_limits& out) {
  if (const std::size_t colon = text.rfind(':'); colon != text.npos) {
    out.name = text.substr(0, colon);
    text.remove_prefix(colon + 1);
  }
  for (;;) {
    const std::size_t comma = text.find(',');
    if (std::string problem = read_limit(text.substr(0, comma), out); !problem.empty()) {
      return problem;
    }
    if (comma == text.npos) return {};
    text.remove_prefix(comma + 1);
  }
}

}  // namespace forebay
