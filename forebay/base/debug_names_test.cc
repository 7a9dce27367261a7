// One thread: not in the thread sanitizer's tree.

#include "forebay/base/debug_names.h"

#include <gtest/gtest.h>

#include <cstdlib>

namespace forebay {
namespace {

constexpr const char* variable = "FOREBAY_TEST_NAMES";

bool named(const char* value, std::string_view name) {
  ::setenv(variable, value, 1);
  const bool yes = named_in_environment(variable, name);
  ::unsetenv(variable);
  return yes;
}

TEST(DebugNames, AreAllOrThoseOfAList) {
  ::unsetenv(variable);
  EXPECT_FALSE(named_in_environment(variable, "bio"));
  for (const char* all : {"*", "all", "1"}) EXPECT_TRUE(named(all, "bio")) << all;
  EXPECT_TRUE(named("bio", "bio"));
  EXPECT_TRUE(named("page,bio,", "bio"));
  EXPECT_TRUE(named(",,bio", "bio"));
  EXPECT_FALSE(named("", "bio"));
  EXPECT_FALSE(named("bios,bi,page", "bio"));
  EXPECT_FALSE(named("10", "bio"));
}

}  // namespace
}  // namespace forebay
