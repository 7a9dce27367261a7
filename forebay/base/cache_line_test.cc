// One thread: not in the thread sanitizer's tree.

#include "forebay/base/cache_line.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cstdint>

namespace forebay {
namespace {

RC_GTEST_PROP(CacheLine, RoundingAgreesWithDivision, ()) {
  const std::uint64_t power = std::uint64_t{1} << *rc::gen::inRange(0, 31);
  const auto value = static_cast<std::uint64_t>(*rc::gen::arbitrary<std::uint32_t>());
  RC_ASSERT(round_down(value, power) == value / power * power);
  RC_ASSERT(round_up(value, power) == (value + power - 1) / power * power);
  RC_ASSERT(is_aligned(value, power) == (value % power == 0));
}

TEST(CacheLine, RoundingIsExactAtTheEdges) {
  EXPECT_EQ(round_up(0u, 4096u), 0u);
  EXPECT_EQ(round_up(1u, 4096u), 4096u);
  EXPECT_EQ(round_up(4096u, 4096u), 4096u);
  EXPECT_EQ(round_down(4095u, 4096u), 0u);
  EXPECT_EQ(round_down(UINT64_MAX, std::uint64_t{1} << 63), std::uint64_t{1} << 63);
}

}  // namespace
}  // namespace forebay
