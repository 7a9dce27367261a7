// One thread: not in the thread sanitizer's tree.

#include "forebay/dma/range_index.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace forebay {
namespace {

using index = range_index<int>;

std::vector<int*> found(const index& all, std::uint32_t space, std::uint64_t first,
                        std::uint64_t last) {
  std::vector<int*> result;
  all.overlapping(space, first, last, [&](const index::range& r) {
    result.push_back(r.of);
    return true;
  });
  return result;
}

TEST(RangeIndex, FindsWhatOverlaps) {
  index all;
  EXPECT_TRUE(found(all, 0, 0, UINT64_MAX).empty());
  int a = 0;
  int b = 0;
  int c = 0;
  ASSERT_TRUE(all.reserve(3));
  all.insert({.first = 0, .last = UINT64_MAX, .of = &a});
  all.insert({.first = 100, .last = 199, .of = &b});
  all.insert({.first = 100, .last = 199, .of = &c, .space = 1});
  EXPECT_EQ(found(all, 0, 199, 199), (std::vector{&a, &b}));
  EXPECT_EQ(found(all, 0, 200, 300), std::vector{&a});
  EXPECT_EQ(found(all, 1, 0, 100), std::vector{&c});
  EXPECT_TRUE(found(all, 2, 0, UINT64_MAX).empty());
  EXPECT_EQ(found(all, 0, UINT64_MAX, UINT64_MAX), std::vector{&a});
  all.erase({.first = 0, .last = UINT64_MAX, .of = &b});
  EXPECT_EQ(all.size(), 3u) << "it is another's";
  all.erase({.first = 0, .last = UINT64_MAX, .of = &a});
  EXPECT_EQ(all.size(), 2u);
  EXPECT_EQ(found(all, 0, 0, UINT64_MAX), std::vector{&b});
  int looks = 0;
  all.overlapping(1, 0, 1000, [&](const index::range&) { return ++looks, false; });
  EXPECT_EQ(looks, 1);
}

TEST(RangeIndex, AgreesWithAList) {
  std::mt19937 random(7);
  const auto up_to = [&](std::uint64_t n) { return random() % (n + 1); };
  index all;
  std::vector<index::range> model;
  std::vector<int> values(64);
  for (int step = 0; step < 5000; ++step) {
    if (model.size() < 40 && (model.empty() || up_to(1) != 0)) {
      const std::uint64_t first = up_to(300);
      const index::range r{.first = first,
                           .last = first + up_to(up_to(9) == 0 ? 200 : 20),
                           .of = &values[up_to(63)],
                           .space = static_cast<std::uint32_t>(up_to(1)),
                           .part = static_cast<std::uint32_t>(step)};
      ASSERT_TRUE(all.reserve(1));
      all.insert(r);
      model.push_back(r);
    } else {
      const auto gone = model.begin() + static_cast<std::ptrdiff_t>(up_to(model.size() - 1));
      all.erase(*gone);
      model.erase(gone);
    }
    ASSERT_EQ(all.size(), model.size());
    const auto space = static_cast<std::uint32_t>(up_to(1));
    const std::uint64_t first = up_to(300);
    const std::uint64_t last = first + up_to(30);
    std::vector<std::uint32_t> parts;
    all.overlapping(space, first, last, [&](const index::range& r) {
      parts.push_back(r.part);
      return true;
    });
    std::vector<std::uint32_t> expected;
    for (const index::range& r : model) {
      if (r.space == space && r.first <= last && r.last >= first) expected.push_back(r.part);
    }
    std::ranges::sort(parts);
    std::ranges::sort(expected);
    ASSERT_EQ(parts, expected);
  }
}

}  // namespace
}  // namespace forebay
