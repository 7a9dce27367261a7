// Cache-line helpers. 64 bytes is the line of every processor Forebay is built for; two lines where
// the adjacent-line prefetcher would make neighbours share.
#pragma once

#include <cstddef>
#include <type_traits>

namespace forebay {

inline constexpr std::size_t cache_line_bytes = 64;
inline constexpr std::size_t no_sharing_bytes = 128;

template <typename T>
constexpr T round_up(T value, std::type_identity_t<T> power_of_two) noexcept {
  return (value + power_of_two - 1) & ~(power_of_two - 1);
}

template <typename T>
constexpr T round_down(T value, std::type_identity_t<T> power_of_two) noexcept {
  return value & ~(power_of_two - 1);
}

template <typename T>
constexpr bool is_aligned(T value, std::type_identity_t<T> power_of_two) noexcept {
  return (value & (power_of_two - 1)) == 0;
}

}  // namespace forebay
