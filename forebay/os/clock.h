// Monotonic time in nanoseconds, behind a concept so that a simulated clock can stand in.
#pragma once

#include <chrono>
#include <concepts>
#include <cstdint>

namespace forebay {

template <typename C>
concept Clock = requires {
  { C::now_ns() } noexcept -> std::same_as<std::uint64_t>;
};

struct monotonic_clock {
  // Nanoseconds since an arbitrary start; never goes back. Any thread.
  static std::uint64_t now_ns() noexcept {
    const auto t = std::chrono::steady_clock::now().time_since_epoch();
    return static_cast<std::uint64_t>(std::chrono::nanoseconds(t).count());
  }
};

static_assert(Clock<monotonic_clock>);

}  // namespace forebay
