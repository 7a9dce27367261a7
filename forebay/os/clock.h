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

  // The moment that is so far from now; the end of time if that is beyond it. Any thread.
  static std::uint64_t in_ns(std::uint64_t length_ns) noexcept {
    const std::uint64_t now = now_ns();
    return length_ns < UINT64_MAX - now ? now + length_ns : UINT64_MAX;
  }
};

static_assert(Clock<monotonic_clock>);

}  // namespace forebay
