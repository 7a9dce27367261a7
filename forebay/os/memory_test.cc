// One thread: not in the thread sanitizer's tree.

#include "forebay/os/memory.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "forebay/base/cache_line.h"

namespace forebay {
namespace {

constexpr std::size_t mebibyte = 1u << 20;

memory_request huge_request(std::size_t bytes) {
  return {.bytes = bytes, .largest = page_backing::huge_reserved};
}

bool is_mapped(const std::byte* address, std::size_t bytes) {
  std::vector<unsigned char> residency(bytes / 4096 + 1);
  return ::mincore(const_cast<std::byte*>(address), bytes, residency.data()) == 0;
}

void expect_zeroed_and_writable(const memory_mapping& m) {
  for (std::size_t at = 0; at < m.size_bytes(); at += 4096) {
    ASSERT_EQ(m.data()[at], std::byte{0});
    ASSERT_EQ(m.data()[at + 4095], std::byte{0});
    m.data()[at] = std::byte{0x77};
  }
  m.data()[m.size_bytes() - 1] = std::byte{0x77};
}

TEST(MemorySource, MapsWholePages) {
  for (const std::size_t bytes : {std::size_t{1}, std::size_t{4095}, std::size_t{4096},
                                  std::size_t{4097}, mebibyte, 3 * mebibyte + 1}) {
    const auto m = memory_source::system().map({.bytes = bytes});
    ASSERT_TRUE(m) << m.error().message();
    EXPECT_EQ(m->size_bytes(), round_up(bytes, 4096));
    EXPECT_TRUE(is_aligned(reinterpret_cast<std::uintptr_t>(m->data()), 4096));
    EXPECT_EQ(m->backing(), page_backing::ordinary);
    expect_zeroed_and_writable(*m);
  }
}

TEST(MemorySource, HugeIsAlignedAndRoundedWhateverCameOfIt) {
  for (const std::size_t bytes : {std::size_t{1}, 2 * mebibyte, 2 * mebibyte + 1, 5 * mebibyte}) {
    const auto m = memory_source::system().map(huge_request(bytes));
    ASSERT_TRUE(m) << m.error().message();
    EXPECT_EQ(m->size_bytes(), round_up(bytes, 2 * mebibyte));
    EXPECT_TRUE(is_aligned(reinterpret_cast<std::uintptr_t>(m->data()), 2 * mebibyte));
    expect_zeroed_and_writable(*m);
    // What was mapped for the sake of the alignment has been given back.
    EXPECT_TRUE(is_mapped(m->data(), m->size_bytes()));
  }
}

TEST(MemorySource, HugeFallsBackWhereNoneAreReserved) {
  std::ifstream in("/proc/sys/vm/nr_hugepages");
  long reserved = -1;
  in >> reserved;
  if (reserved != 0) GTEST_SKIP() << "this machine has reserved huge pages";
  const auto m = memory_source::system().map(huge_request(2 * mebibyte));
  ASSERT_TRUE(m);
  EXPECT_NE(m->backing(), page_backing::huge_reserved);
}

TEST(MemorySource, RefusesNothingAndTooMuch) {
  for (const bool huge : {false, true}) {
    const auto error_of = [&](std::size_t bytes) {
      const memory_request request = huge ? huge_request(bytes) : memory_request{.bytes = bytes};
      return memory_source::system().map(request).error().value();
    };
    EXPECT_EQ(error_of(0), EINVAL);
    EXPECT_EQ(error_of(SIZE_MAX), EINVAL);
    EXPECT_EQ(error_of(SIZE_MAX - 1), EINVAL);
    EXPECT_EQ(error_of(std::size_t{1} << 60), ENOMEM);
  }
}

TEST(MemoryMapping, UnmapsOnceAndMoves) {
  std::byte* first = nullptr;
  std::byte* second = nullptr;
  {
    auto a = memory_source::system().map({.bytes = mebibyte});
    auto b = memory_source::system().map({.bytes = 2 * mebibyte});
    ASSERT_TRUE(a && b);
    first = a->data();
    second = b->data();
    memory_mapping moved = std::move(*a);
    EXPECT_EQ(moved.data(), first);
    EXPECT_EQ(a->data(), nullptr);
    EXPECT_EQ(a->size_bytes(), 0u);
    moved = std::move(*b);
    EXPECT_EQ(moved.data(), second);
    EXPECT_EQ(moved.size_bytes(), 2 * mebibyte);
    EXPECT_TRUE(is_mapped(second, 2 * mebibyte));
  }
  EXPECT_FALSE(is_mapped(first, mebibyte));
  EXPECT_FALSE(is_mapped(second, 2 * mebibyte));
}

TEST(MemoryLimit, IsAtMostWhatTheMachineHas) {
  std::ifstream in("/proc/meminfo");
  std::string word;
  std::uint64_t total_kib = 0;
  in >> word >> total_kib;
  ASSERT_EQ(word, "MemTotal:");
  EXPECT_GT(memory_limit_bytes(), 16 * mebibyte);
  EXPECT_LE(memory_limit_bytes(), total_kib * 1024);
}

TEST(PageBacking, EveryKindHasAName) {
  const std::vector<std::string> names = {to_string(page_backing::huge_reserved),
                                          to_string(page_backing::huge_transparent),
                                          to_string(page_backing::ordinary)};
  for (const std::string& n : names) EXPECT_EQ(std::count(names.begin(), names.end(), n), 1);
}

}  // namespace
}  // namespace forebay
