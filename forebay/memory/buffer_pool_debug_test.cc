// One thread: not in the thread sanitizer's tree.
// The debug mode: what is reported, and that it names buffers and owners.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstdlib>
#include <vector>

#include "forebay/memory/test_pool.h"

namespace forebay {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

// Not inlined, so that reports can name them.
[[gnu::noinline]] buffer* first_user(buffer_pool& pool) {
  buffer* b = pool.try_allocate_raw();
  asm volatile("" : "+r"(b));
  return b;
}
[[gnu::noinline]] buffer_ref second_user(buffer_pool& pool) {
  buffer_ref b = pool.try_allocate();
  asm volatile("" ::: "memory");
  return b;
}
[[gnu::noinline]] result<> releaser(buffer_pool& pool, buffer& b) {
  const auto freed = pool.free_raw(b);
  asm volatile("" ::: "memory");
  return freed;
}

std::string said_by(auto&& action) {
  testing::internal::CaptureStderr();
  action();
  return testing::internal::GetCapturedStderr();
}

std::string label(const buffer& b) { return "buffer " + std::to_string(b.index()) + " ("; }

TEST(PoolDebug, ABufferFreedTwiceIsNamedWithItsLastOwner) {
  const test_pool pool({.name = "frames", .count = 4, .debug = true});
  EXPECT_TRUE(pool->statistics().debug);
  buffer* b = first_user(*pool);
  ASSERT_TRUE(releaser(*pool, *b));
  const std::string said =
      said_by([&] { EXPECT_EQ(pool->free_raw(*b).error(), error_of(EALREADY)); });
  EXPECT_THAT(said,
              AllOf(HasSubstr("\"frames\""), HasSubstr(label(*b)), HasSubstr("is free already"),
                    HasSubstr("first_user"), HasSubstr("releaser")));
}

TEST(PoolDebug, ABufferFreedTwiceIsNamedAfterAHandleToo) {
  const test_pool pool({.name = "frames", .count = 4, .debug = true});
  buffer_ref held = second_user(*pool);
  buffer& b = *held;
  held.reset();
  const std::string said =
      said_by([&] { EXPECT_EQ(pool->free_raw(b).error(), error_of(EALREADY)); });
  EXPECT_THAT(said, AllOf(HasSubstr(label(b)), HasSubstr("second_user")));
}

TEST(PoolDebug, ABufferOfAnotherPoolIsNamedWithItsHolder) {
  const test_pool pool({.name = "frames", .count = 4, .debug = true});
  const test_pool other({.name = "requests", .count = 4, .debug = true});
  buffer* b = first_user(*pool);
  const std::string said =
      said_by([&] { EXPECT_EQ(other->free_raw(*b).error(), error_of(EINVAL)); });
  EXPECT_THAT(said, AllOf(HasSubstr("pool \"requests\": " + label(*b)), HasSubstr("of \"frames\""),
                          HasSubstr("first_user")));
  EXPECT_TRUE(pool->free_raw(*b));
}

TEST(PoolDebug, ABufferWithOtherHoldersIsNamedWithThem) {
  const test_pool pool({.name = "frames", .count = 4, .debug = true});
  const buffer_ref held = second_user(*pool);
  buffer* mine = held.share().release();
  const std::string said =
      said_by([&] { EXPECT_EQ(pool->free_raw(*mine).error(), error_of(EBUSY)); });
  EXPECT_THAT(said, AllOf(HasSubstr("has other holders"), HasSubstr("second_user")));
  static_cast<void>(pool->adopt(*mine));
}

TEST(PoolDebug, DestroyNamesWhatIsOut) {
  test_pool pool({.name = "frames", .count = 4, .debug = true});
  buffer* raw = first_user(*pool);
  buffer_ref held = second_user(*pool);
  std::string said =
      said_by([&] { EXPECT_EQ(buffer_pool::destroy(pool.pool).error(), error_of(EBUSY)); });
  EXPECT_THAT(said,
              AllOf(HasSubstr("2 still held"), HasSubstr("first_user"), HasSubstr("second_user")));
  held.reset();
  EXPECT_THAT(pool->owners(), AllOf(HasSubstr("first_user"), Not(HasSubstr("second_user"))));
  // Handed from hand to hand, a buffer has the holder it has now.
  held = pool->adopt(*raw);
  EXPECT_THAT(pool->owners(), AllOf(HasSubstr("1 still held"), Not(HasSubstr("first_user"))));
  held.reset();
  said = said_by([&] { EXPECT_TRUE(buffer_pool::destroy(pool.pool)); });
  EXPECT_EQ(said, "");
}

TEST(PoolDebug, RawAndBulkAreFollowedToTheirEnd) {
  const test_pool pool({.name = "frames", .count = 200, .debug = true});
  std::vector<buffer*> some(150);
  ASSERT_TRUE(pool->try_allocate_bulk_raw(some));
  EXPECT_THAT(pool->owners(), HasSubstr("150 still held"));
  EXPECT_TRUE(pool->free_bulk_raw(some));
  buffer* b = second_user(*pool).release();
  EXPECT_EQ(pool->owners(), "");
  EXPECT_TRUE(pool->free_raw(*b));
  auto waited = pool->allocate(std::chrono::nanoseconds(0));
  EXPECT_THAT(pool->owners(), HasSubstr("1 still held"));
}

TEST(PoolDebug, CanBeSwitchedAtRunTime) {
  const test_pool pool({.name = "frames", .count = 4});
  buffer* before = first_user(*pool);
  EXPECT_TRUE(pool->set_debug());
  buffer* after = first_user(*pool);
  EXPECT_THAT(pool->owners(), HasSubstr("1 still held"));
  EXPECT_TRUE(pool->free_raw(*before));
  EXPECT_TRUE(pool->set_debug(false));
  EXPECT_FALSE(pool->statistics().debug);
  EXPECT_TRUE(pool->free_raw(*after));
  buffer* last = first_user(*pool);
  const std::string said = said_by([&] {
    EXPECT_TRUE(releaser(*pool, *last));
    EXPECT_FALSE(pool->free_raw(*last));
  });
  EXPECT_THAT(said, HasSubstr("is free already"));
}

TEST(PoolDebug, WhatWasAllocatedBeforeItWasSwitchedOffLeavesNoRecord) {
  const test_pool pool({.name = "frames", .count = 4, .debug = true});
  buffer* const freed = first_user(*pool);
  buffer* const adopted = first_user(*pool);
  std::array<buffer*, 2> bulk{first_user(*pool), first_user(*pool)};
  EXPECT_THAT(pool->owners(), HasSubstr("4 still held"));
  EXPECT_TRUE(pool->set_debug(false));
  EXPECT_TRUE(pool->free_raw(*freed));
  pool->adopt(*adopted).reset();
  EXPECT_TRUE(pool->free_bulk_raw(bulk));
  EXPECT_TRUE(pool->set_debug());
  EXPECT_THAT(pool->owners(), testing::Not(HasSubstr("still held")));
}

TEST(PoolDebug, TheEnvironmentNamesPools) {
  ::setenv("FOREBAY_POOL_DEBUG", "requests,frames", 1);
  EXPECT_TRUE(test_pool({.name = "frames", .count = 1})->statistics().debug);
  EXPECT_TRUE(test_pool({.name = "requests", .count = 1})->statistics().debug);
  EXPECT_FALSE(test_pool({.name = "frame", .count = 1})->statistics().debug);
  ::setenv("FOREBAY_POOL_DEBUG", "1", 1);
  EXPECT_TRUE(test_pool({.name = "frame", .count = 1})->statistics().debug);
  ::unsetenv("FOREBAY_POOL_DEBUG");
  EXPECT_FALSE(test_pool({.name = "frames", .count = 1})->statistics().debug);
}

TEST(PoolDebugDeathTest, TheDestructorNamesWhatIsOut) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        test_pool pool({.name = "frames", .count = 4, .debug = true});
        first_user(*pool);
        pool.pool.reset();
      },
      "1 buffers are in use at its end.*(.|\n)*first_user");
}

}  // namespace
}  // namespace forebay
