// One thread: not in the thread sanitizer's tree.

#include "forebay/base/result.h"

#include <gtest/gtest.h>

#include <array>
#include <string>
#include <utility>

namespace forebay {
namespace {

constexpr std::array all_conditions = {
    errc::empty_device, errc::misaligned_size, errc::in_use,
    errc::too_small,    errc::too_large,       errc::not_a_device,
    errc::protocol,     errc::end_of_stream,   errc::corrupt,
};

TEST(Result, ConditionsMapToAnErrnoValue) {
  const std::pair<errc, int> table[] = {
      {errc::empty_device, EINVAL}, {errc::misaligned_size, EINVAL},   {errc::in_use, EBUSY},
      {errc::too_small, EINVAL},    {errc::too_large, EINVAL},         {errc::not_a_device, EINVAL},
      {errc::protocol, EPROTO},     {errc::end_of_stream, ECONNRESET}, {errc::corrupt, EIO},
  };
  ASSERT_EQ(std::size(table), all_conditions.size());
  for (const auto& [condition, expected] : table) {
    EXPECT_EQ(to_errno(make_error_code(condition)), expected) << static_cast<int>(condition);
  }
}

TEST(Result, ErrnoValuesComeBackAsTheyAre) {
  for (const int e : {EPERM, EIO, EINVAL, ENOSPC, EDQUOT, EHWPOISON}) {
    EXPECT_EQ(to_errno({e, std::generic_category()}), e);
    EXPECT_EQ(to_errno({e, std::system_category()}), e);
  }
}

TEST(Result, NoErrorIsZeroAndOnlyNoErrorIs) {
  EXPECT_EQ(to_errno({}), 0);
  EXPECT_EQ(to_errno({0, error_category()}), 0);
  EXPECT_EQ(to_errno({12345, error_category()}), EIO) << "a condition of a newer version";

  class foreign final : public std::error_category {
    const char* name() const noexcept override { return "foreign"; }
    std::string message(int) const override { return "foreign"; }
  };
  const foreign category;
  EXPECT_EQ(to_errno({1, category}), EIO);
  EXPECT_EQ(to_errno({-1, category}), EIO);
}

TEST(Result, EveryConditionHasAMessageOfItsOwn) {
  const std::string unknown = std::error_code(12345, error_category()).message();
  for (std::size_t i = 0; i < all_conditions.size(); ++i) {
    const std::string message = make_error_code(all_conditions[i]).message();
    EXPECT_FALSE(message.empty());
    EXPECT_NE(message, unknown);
    for (std::size_t j = 0; j < i; ++j) {
      EXPECT_NE(message, make_error_code(all_conditions[j]).message());
    }
  }
  EXPECT_STREQ(error_category().name(), "forebay");
}

TEST(Result, FailMakesAFailedResultOfAnyType) {
  const auto from_errno = []() -> result<int> { return fail(ENOSPC); };
  const auto from_condition = []() -> result<std::string> { return fail(errc::protocol); };
  const auto passed_on = [&]() -> result<> { return fail(from_errno().error()); };
  const auto from_global = []() -> result<> {
    errno = EDOM;
    return fail_errno();
  };

  ASSERT_FALSE(from_errno());
  EXPECT_EQ(from_errno().error(), std::errc::no_space_on_device);
  EXPECT_EQ(from_condition().error(), errc::protocol);
  EXPECT_EQ(passed_on().error(), from_errno().error());
  EXPECT_EQ(from_global().error().value(), EDOM);
  EXPECT_NE(from_condition().error(), errc::corrupt);
}

}  // namespace
}  // namespace forebay
