// Bytes that tests write and compare. In words and by memcmp(), not one by one: the thread
// sanitizer would call its library for each.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <vector>

namespace forebay {

inline std::vector<std::byte> random_bytes(std::mt19937_64& rng, std::size_t n) {
  std::vector<std::byte> v(n);
  for (std::size_t i = 0; i < n; i += sizeof(std::uint64_t)) {
    const std::uint64_t word = rng();
    std::memcpy(v.data() + i, &word, std::min(n - i, sizeof word));
  }
  return v;
}

// Whether the bytes that begin at `other` are these.
inline bool same_bytes(std::span<const std::byte> bytes, const std::byte* other) noexcept {
  return bytes.empty() || std::memcmp(bytes.data(), other, bytes.size()) == 0;
}
inline bool same_bytes(std::span<const std::byte> a, std::span<const std::byte> b) noexcept {
  return a.size() == b.size() && same_bytes(a, b.data());
}

}  // namespace forebay
