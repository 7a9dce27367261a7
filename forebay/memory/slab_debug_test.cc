// The debug mode of slab caches: what is caught, and what the report says.

#include "forebay/memory/slab_debug.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "forebay/base/sanitizer.h"
#include "forebay/memory/general_cache.h"
#include "forebay/memory/slab.h"

namespace forebay {
namespace {

std::unique_ptr<arena> make_arena(std::size_t bytes = 4u << 20) {
  auto made = arena::create({.bytes = bytes, .huge_pages = false});
  return made ? std::move(*made) : nullptr;
}

slab_cache::options debug_options(std::string name, std::size_t bytes = 100) {
  return {.name = std::move(name), .object_bytes = bytes, .debug = true};
}

// Functions that a report is to name.
[[gnu::noinline]] void* allocated_here(slab_cache& cache) {
  void* p = cache.allocate();
  asm volatile("" : : "r"(p) : "memory");  // no tail call
  return p;
}
[[gnu::noinline]] void freed_here(slab_cache& cache, void* p) {
  cache.free(p);
  asm volatile("" : : : "memory");  // no tail call
}

class environment {
 public:
  explicit environment(const char* value) { ::setenv("FOREBAY_SLAB_DEBUG", value, 1); }
  ~environment() { ::unsetenv("FOREBAY_SLAB_DEBUG"); }
};

TEST(SlabDebug, TheEnvironmentNamesCaches) {
  const auto asked = [](const char* value, const char* name) {
    const environment e(value);
    return slab_debug::asked_for(name);
  };
  EXPECT_TRUE(asked("*", "any"));
  EXPECT_TRUE(asked("a,bio,c", "bio"));
  EXPECT_TRUE(asked("bio", "bio"));
  EXPECT_TRUE(asked("x,*", "bio"));
  EXPECT_FALSE(asked("a,bio2,c", "bio"));
  EXPECT_FALSE(asked("", "bio"));
  EXPECT_FALSE(asked(",,", "bio"));
  EXPECT_FALSE(slab_debug::asked_for("bio")) << "unless the environment of the tests asks";

  const auto memory = make_arena();
  const environment e("bio,general");
  EXPECT_TRUE(slab_cache(*memory, {.name = "bio", .object_bytes = 8}).debug());
  EXPECT_FALSE(slab_cache(*memory, {.name = "other", .object_bytes = 8}).debug());
  memory_registry registry;
  const auto all = general_cache::create(*memory, {.registry = &registry});
  ASSERT_TRUE(all.has_value());
  for (const memory_statistics& s : registry.snapshot()) EXPECT_TRUE(s.debug) << s.name;
}

TEST(SlabDebug, NewAndFreeObjectsAreFilled) {
  const auto memory = make_arena();
  slab_cache cache(*memory, debug_options("filled"));
  auto* const p = static_cast<std::byte*>(cache.allocate());
  EXPECT_TRUE(std::all_of(p, p + 100, [](std::byte b) { return b == slab_debug::new_fill; }));
  std::memset(p, 1, 100);
  cache.free(p);
  EXPECT_TRUE(std::all_of(p, p + 99, [](std::byte b) { return b == slab_debug::free_fill; }));
  EXPECT_EQ(p[99], slab_debug::end_fill);
  EXPECT_EQ(p[-1], slab_debug::free_red);
  EXPECT_EQ(p[100], slab_debug::free_red);
  EXPECT_EQ(cache.allocate(), p) << "no CPU cache lies between";
  EXPECT_EQ(p[-1], slab_debug::used_red);
  EXPECT_EQ(p[100], slab_debug::used_red);
  cache.check();
  cache.free(p);
  const slab_statistics s = cache.statistics();
  EXPECT_TRUE(s.debug);
  EXPECT_FALSE(s.per_cpu);
  EXPECT_EQ(s.allocations, 2u);
  EXPECT_EQ(s.frees, 2u);
  EXPECT_EQ(s.objects_cached, 0u);
}

TEST(SlabDebug, ConstructedObjectsKeepTheirContents) {
  const auto memory = make_arena();
  auto o = debug_options("constructed", 16);
  o.construct = [](void* p) { std::memset(p, 7, 16); };
  slab_cache cache(*memory, o);
  auto* const p = static_cast<std::byte*>(cache.allocate());
  EXPECT_TRUE(std::all_of(p, p + 16, [](std::byte b) { return b == std::byte{7}; }));
  std::memset(p, 8, 16);
  cache.free(p);
  EXPECT_EQ(cache.allocate(), p);
  EXPECT_TRUE(std::all_of(p, p + 16, [](std::byte b) { return b == std::byte{8}; }));
  cache.free(p);
}

TEST(SlabDebug, ThreadsUseIt) {
  const auto memory = make_arena();
  slab_cache cache(*memory, debug_options("threads", 64));
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&] {
      std::vector<void*> held(20);
      for (int i = 0; i < 20; ++i) {
        ASSERT_EQ(cache.allocate(std::span(held)), held.size());
        for (void* p : held) std::memset(p, i, 64);
        cache.free(std::span<void* const>(held));
      }
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(cache.statistics().objects_in_use, 0u);
  cache.check();
}

class SlabDebugDeathTest : public testing::Test {
 protected:
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "threadsafe"); }

  std::unique_ptr<arena> memory_ = make_arena();
};

TEST_F(SlabDebugDeathTest, WriteBehindAnObject) {
  EXPECT_DEATH(
      {
        slab_cache cache(*memory_, debug_options("behind"));
        auto* const p = static_cast<char*>(allocated_here(cache));
        p[100] = 0;
        cache.free(p);
      },
      "\"behind\": write behind the object.*\n.*is 00 instead of cc(.|\n)*last allocated by "
      "thread(.|\n)*allocated_here(.|\n)*seen here");
}

TEST_F(SlabDebugDeathTest, WriteBeforeAnObject) {
  EXPECT_DEATH(
      {
        slab_cache cache(*memory_, debug_options("before"));
        auto* const p = static_cast<char*>(cache.allocate());
        p[-3] = 0;
        cache.check();
      },
      "\"before\": write before the object.*\n.*is 00 instead of cc");
}

TEST_F(SlabDebugDeathTest, WriteToAFreeObject) {
  EXPECT_DEATH(
      {
        slab_cache cache(*memory_, debug_options("late"));
        auto* const p = static_cast<char*>(allocated_here(cache));
        freed_here(cache, p);
        p[50] = 1;
        static_cast<void>(cache.allocate());
      },
      "\"late\": write to a free object.*\n.*is 01 instead of 6b(.|\n)*last freed by "
      "thread(.|\n)*freed_here");
  EXPECT_DEATH(
      {
        slab_cache cache(*memory_, debug_options("end"));
        auto* const p = static_cast<char*>(cache.allocate());
        cache.free(p);
        p[99] = 1;
        cache.shrink();
      },
      "\"end\": write to a free object.*\n.*is 01 instead of a5");
}

TEST_F(SlabDebugDeathTest, DoubleFree) {
  EXPECT_DEATH(
      {
        slab_cache cache(*memory_, debug_options("twice"));
        void* const p = allocated_here(cache);
        freed_here(cache, p);
        cache.free(p);
      },
      "\"twice\": double free(.|\n)*allocated_here(.|\n)*last freed(.|\n)*freed_here(.|\n)*seen");
}

TEST_F(SlabDebugDeathTest, WhatIsNoObject) {
  EXPECT_DEATH(
      {
        slab_cache cache(*memory_, debug_options("inside"));
        cache.free(static_cast<char*>(allocated_here(cache)) + 8);
      },
      "\"inside\": free of what is inside an object(.|\n)*allocated_here");
  EXPECT_DEATH(
      {
        slab_cache cache(*memory_, debug_options("line", 200));
        cache.free(static_cast<char*>(cache.allocate()) + 64);
      },
      "\"line\": free of what is inside an object");
  EXPECT_DEATH(
      {
        slab_cache cache(*memory_, debug_options("foreign"));
        int local = 0;
        cache.free(&local);
      },
      "\"foreign\": free of what is not in the arena");
  EXPECT_DEATH(
      {
        slab_cache cache(*memory_, debug_options("frame"));
        cache.free(memory_->allocate()->data());
      },
      "\"frame\": free of what is no slab's object");
  EXPECT_DEATH(
      {
        slab_cache one(*memory_, debug_options("one"));
        slab_cache other(*memory_, debug_options("other"));
        one.free(other.allocate());
      },
      "\"one\": free of an object of another cache, \"other\"");
}

TEST_F(SlabDebugDeathTest, LeaksAreNamed) {
  EXPECT_DEATH(
      {
        slab_cache cache(*memory_, debug_options("leak"));
        static_cast<void>(allocated_here(cache));
      },
      "\"leak\" is destroyed with 1 objects in use(.|\n)*allocated_here");
}

#if FOREBAY_ASAN
TEST(SlabAsanDeathTest, FreeObjectsAreForbidden) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto memory = make_arena();
  EXPECT_DEATH(
      {
        slab_cache cache(*memory, {.name = "asan", .object_bytes = 100});
        auto* const p = static_cast<volatile char*>(cache.allocate());
        cache.free(const_cast<char*>(p));
        p[3] = 1;
      },
      "use-after-poison");
  EXPECT_DEATH(
      {
        slab_cache cache(*memory, {.name = "asan", .object_bytes = 100});
        auto* const p = static_cast<volatile char*>(cache.allocate());
        p[100] = 1;
      },
      "use-after-poison");
}
#endif

}  // namespace
}  // namespace forebay
