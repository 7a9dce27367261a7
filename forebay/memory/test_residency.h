// For tests: how much of a range is in memory, as /proc tells it.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <span>
#include <vector>

#include "forebay/memory/page.h"

namespace forebay {

// Bit 63 of each page's word in /proc/self/pagemap. (The resident set of the whole process moves
// with what a sanitizer notes about the memory that is touched.)
inline std::size_t resident_bytes(std::span<const std::byte> range) {
  std::ifstream in("/proc/self/pagemap", std::ios::binary);
  const auto first = reinterpret_cast<std::uintptr_t>(range.data()) / page_bytes;
  std::vector<std::uint64_t> words(range.size() / page_bytes);
  in.seekg(static_cast<std::streamoff>(first * sizeof(std::uint64_t)));
  in.read(reinterpret_cast<char*>(words.data()),
          static_cast<std::streamsize>(words.size() * sizeof(std::uint64_t)));
  EXPECT_TRUE(in.good());
  const auto present = [](std::uint64_t w) { return w >> 63 != 0; };
  return page_bytes * static_cast<std::size_t>(std::count_if(words.begin(), words.end(), present));
}

}  // namespace forebay
