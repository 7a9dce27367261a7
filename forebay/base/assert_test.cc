// One thread: not in the thread sanitizer's tree.

#include "forebay/base/assert.h"

#include <cstdio>

#include <gtest/gtest.h>

namespace forebay {
namespace {

TEST(AssertDeathTest, AFailedAssertionNamesTheExpressionAndAborts) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const int pages = 3;
  EXPECT_EXIT(FOREBAY_ASSERT(pages == 4), testing::KilledBySignal(SIGABRT),
              "assertion failed at .*assert_test\\.cc:[0-9]+: pages == 4");
}

TEST(AssertDeathTest, AHookIsToldFirst) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const int pages = 3;
  const auto hook = [](const char* expression, const char*, int) noexcept {
    std::fprintf(stderr, "told of %s\n", expression);
  };
  EXPECT_EXIT((set_assertion_hook(hook), FOREBAY_ASSERT(pages == 4)),
              testing::KilledBySignal(SIGABRT),
              "told of pages == 4\n(.|\n)*assertion failed at .*: pages == 4");
}

TEST(Assert, TheConditionIsEvaluatedOnceAndMayHold) {
  int evaluated = 0;
  FOREBAY_ASSERT(++evaluated == 1);
  EXPECT_EQ(evaluated, 1);
}

TEST(Assert, DcheckIsThereExactlyWhenDebugIs) {
  int evaluated = 0;
  FOREBAY_DCHECK(++evaluated == 1);
#ifdef FOREBAY_DEBUG
  EXPECT_EQ(evaluated, 1);
#else
  EXPECT_EQ(evaluated, 0);
#endif
}

}  // namespace
}  // namespace forebay
