// What an export may have of the server, as a user writes it:
//
//   [EXPORT:]KEY=VALUE[,KEY=VALUE...]
//
//   iops=N      requests a second
//   bytes=SIZE  bytes a second
//   burst=S     seconds, at the rate, that may begin at once (0.1)
//   memory=SIZE of the cache
//
// SIZE may end with K, M, G or T, the powers of 1024; 0 means without a limit. Without EXPORT it is
// meant for every export, each by itself. An export's name is all that stands before the last
// colon, and may be empty.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "forebay/serve/rate_limit.h"

namespace forebay {

// What is not set stays as it is.
struct export_limits {
  std::optional<std::string> name;  // none: every export
  std::optional<std::uint64_t> requests_per_s;
  std::optional<std::uint64_t> bytes_per_s;
  std::optional<std::uint64_t> burst_ns;
  std::optional<std::uint64_t> memory_bytes;  // UINT64_MAX: any

  // These limits over those that were.
  rate_limits over(rate_limits old) const noexcept;
};

// Empty, or what is wrong with the text, in a line for the user. Throws std::bad_alloc.
std::string read_limits(std::string_view text, export_limits& out);

}  // namespace forebay
