// One thread: not in the thread sanitizer's tree.

#include "forebay/memory/arena_shrinker.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "forebay/os/memory.h"
#include "forebay/os/test_cpu.h"

namespace forebay {
namespace {

class ArenaShrinker : public testing::Test {
 protected:
  static constexpr std::size_t chunks = 4;

  void SetUp() override {
    auto a = arena::create({.bytes = chunks * arena::chunk_frames * (page_bytes + page_state_bytes),
                            .huge_pages = false});
    ASSERT_TRUE(a);
    memory_ = std::move(*a);
    auto p = general_cache::create(*memory_, {.name = "shrunk"});
    ASSERT_TRUE(p);
    pieces_ = std::move(*p);
    shrinker_ = std::make_unique<arena_shrinker>("pieces", *memory_, *pieces_);
    registry_.add(*shrinker_);
  }
  void TearDown() override { registry_.remove(*shrinker_); }

  // Uses about so much of the arena, and lets go of it.
  void use(std::size_t bytes) {
    std::vector<void*> taken;
    for (std::size_t n = 0; n < bytes; n += 2048) {
      taken.push_back(pieces_->allocate(2048));
      ASSERT_NE(taken.back(), nullptr);
      std::memset(taken.back(), 1, 2048);
    }
    for (void* p : taken) pieces_->free(p);
  }

  std::size_t resident() const { return resident_bytes(memory_->memory()); }

  const stay_on_cpu here_;  // what another CPU had kept for itself would keep its chunks
  std::unique_ptr<arena> memory_;
  std::unique_ptr<general_cache> pieces_;
  std::unique_ptr<arena_shrinker> shrinker_;
  shrinker_registry registry_;
};

TEST_F(ArenaShrinker, GivesBackWhatHasBeenUsedAndTakesItAgain) {
  use(6u << 20);
  ASSERT_GE(resident(), 6u << 20);
  EXPECT_GE(shrinker_->statistics().count_bytes, 2u << 20);
  EXPECT_GE(registry_.shrink(UINT64_MAX, shrink_goal::give_back), 4u << 20);
  EXPECT_LE(resident(), 2u << 20);
  EXPECT_LT(shrinker_->statistics().count_bytes, 2u << 20);
  use(6u << 20);
  EXPECT_GE(resident(), 6u << 20) << "chunks come back when they are needed";
}

TEST_F(ArenaShrinker, StopsWhenItHasEnough) {
  use(7u << 20);
  const std::uint64_t freed = registry_.shrink(arena::chunk_bytes, shrink_goal::give_back);
  EXPECT_GE(freed, arena::chunk_bytes);
  EXPECT_LE(freed, 2 * arena::chunk_bytes);
  EXPECT_GE(resident(), 3u << 20);
}

TEST_F(ArenaShrinker, HasNoFramesForOthers) {
  use(2u << 20);
  const std::size_t before = resident();
  EXPECT_EQ(registry_.shrink(UINT64_MAX, shrink_goal::frames), 0u);
  EXPECT_EQ(resident(), before);
  EXPECT_EQ(shrinker_->statistics().calls, 0u) << "to count what is resident takes system calls";
}

TEST_F(ArenaShrinker, WhatIsInUseStays) {
  std::vector<void*> kept;
  for (int i = 0; i < 2000; ++i) {
    kept.push_back(pieces_->allocate(2048));
    std::memset(kept.back(), 0x42, 2048);
  }
  use(3u << 20);
  registry_.shrink(UINT64_MAX, shrink_goal::give_back);
  for (void* p : kept) {
    EXPECT_EQ(static_cast<unsigned char*>(p)[2047], 0x42);
    pieces_->free(p);
  }
}

}  // namespace
}  // namespace forebay
