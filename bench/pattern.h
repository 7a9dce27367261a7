// Data that depends only on its offset: incompressible, different in every 8-byte word, and
// checkable piece by piece.
//
// The word at byte offset 8 * i is the i-th output of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>

namespace forebay::bench {

inline std::uint64_t pattern_word(std::uint64_t index) noexcept {
  std::uint64_t z = (index + 1) * 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

// Fills `data`, which lies at `offset` bytes of the image. Offset and size are multiples of 8.
inline void pattern_fill(std::uint64_t offset, std::span<std::byte> data) noexcept {
  std::uint64_t index = offset / 8;
  for (std::size_t at = 0; at < data.size(); at += 8, ++index) {
    const std::uint64_t word = pattern_word(index);
    std::memcpy(data.data() + at, &word, 8);
  }
}

namespace detail {

// Whether 64 bytes are the words `index` to `index` + 7.
inline bool line_matches(std::uint64_t index, const std::byte* data) noexcept {
  std::uint64_t difference = 0;
  for (unsigned i = 0; i < 8; ++i) {
    std::uint64_t word;
    std::memcpy(&word, data + 8 * std::size_t{i}, 8);
    difference |= word ^ pattern_word(index + i);
  }
  return difference == 0;
}

}  // namespace detail

// The image offset of the first 8-byte word that differs; nothing if `data` is as pattern_fill
// makes it. Any alignment.
inline std::optional<std::uint64_t> pattern_mismatch(std::uint64_t offset,
                                                     std::span<const std::byte> data) noexcept {
  while (!data.empty()) {
    if (offset % 8 ==
        0) {  // whole lines first: a difference is found by the line and located below
      std::uint64_t index = offset / 8;
      while (data.size() >= 64 && detail::line_matches(index, data.data())) {
        index += 8;
        data = data.subspan(64);
      }
      offset = index * 8;
      if (data.empty()) break;
    }
    const std::uint64_t word = pattern_word(offset / 8);
    std::byte bytes[8];
    std::memcpy(bytes, &word, 8);
    const std::size_t skip = offset % 8;
    const std::size_t n = std::min<std::size_t>(8 - skip, data.size());
    if (std::memcmp(bytes + skip, data.data(), n) != 0) return offset - skip;
    offset += n;
    data = data.subspan(n);
  }
  return std::nullopt;
}

}  // namespace forebay::bench
