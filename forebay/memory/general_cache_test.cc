// general_cache: classes, a model beside it, exhaustion, threads, and what is not its own.

#include "forebay/memory/general_cache.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "forebay/base/cache_line.h"

namespace forebay {
namespace {

std::unique_ptr<arena> make_arena(std::size_t bytes = 8u << 20) {
  auto made = arena::create({.bytes = bytes, .huge_pages = false});
  return made ? std::move(*made) : nullptr;
}

std::unique_ptr<general_cache> make_cache(arena& memory) {
  auto made = general_cache::create(memory, {.name = "test", .number_if_name_is_taken = true});
  FOREBAY_ASSERT(made.has_value());
  return std::move(*made);
}

TEST(GeneralCache, EverySizeHasTheSmallestClassThatHoldsIt) {
  for (unsigned i = 0; i + 1 < general_cache::class_count; ++i) {
    EXPECT_LT(general_cache::class_bytes(i), general_cache::class_bytes(i + 1));
    EXPECT_EQ(general_cache::class_bytes(i) % 64, 0u);
  }
  for (std::size_t bytes = 1; bytes <= general_cache::max_bytes; ++bytes) {
    const unsigned c = general_cache::class_of(bytes);
    ASSERT_LT(c, general_cache::class_count);
    ASSERT_GE(general_cache::class_bytes(c), bytes);
    ASSERT_TRUE(c == 0 || general_cache::class_bytes(c - 1) < bytes) << bytes;
    if (bytes > 64) {
      ASSERT_LE(general_cache::class_bytes(c), bytes + std::max<std::size_t>(bytes / 2, 64));
    }
  }
}

RC_GTEST_PROP(GeneralCache, ObjectsNeverOverlapAndKeepTheirContents, ()) {
  const auto memory = make_arena();
  {
    const auto cache = make_cache(*memory);
    std::map<std::byte*, std::pair<std::size_t, int>> live;
    std::mt19937 random(*rc::gen::arbitrary<std::uint32_t>());
    const auto let_go = [&](std::byte* p) {
      const auto [bytes, fill] = live.at(p);
      const auto expected = static_cast<std::byte>(fill);
      RC_ASSERT(std::all_of(p, p + bytes, [&](std::byte b) { return b == expected; }));
      live.erase(p);
      if (random() % 2 == 0) {
        cache->free(p);
      } else {
        cache->free(p, bytes);
      }
    };
    for (int step = 0; step < 200; ++step) {
      if (live.size() < 3 || (live.size() < 60 && random() % 2 == 0)) {
        const std::size_t bytes = 1 + random() % (random() % 4 == 0 ? 65'536 : 2'000);
        auto* const p = static_cast<std::byte*>(cache->allocate(bytes));
        if (p == nullptr) continue;
        RC_ASSERT(is_aligned(reinterpret_cast<std::uintptr_t>(p), 64));
        const std::size_t usable = cache->usable_bytes(p);
        RC_ASSERT(usable >= bytes);
        RC_ASSERT(cache->owns(p));
        const auto next = live.lower_bound(p);
        RC_ASSERT(next == live.end() || p + usable <= next->first);
        if (next != live.begin()) {
          const auto before = std::prev(next);
          RC_ASSERT(before->first + before->second.first <= p);
        }
        const int fill = static_cast<int>(random() % 256);
        std::memset(p, fill, bytes);
        live.emplace(p, std::pair(bytes, fill));
      } else {
        auto at = live.begin();
        std::advance(at, random() % live.size());
        let_go(at->first);
      }
    }
    while (!live.empty()) let_go(live.begin()->first);
    cache->shrink();
    RC_ASSERT(memory->free_pages() == memory->page_count());
  }
}

TEST(GeneralCache, WhatCannotBeIsRefused) {
  const auto memory = make_arena();
  const auto cache = make_cache(*memory);
  EXPECT_EQ(cache->allocate(0), nullptr);
  EXPECT_EQ(cache->allocate(general_cache::max_bytes + 1), nullptr);
  EXPECT_EQ(cache->allocate(SIZE_MAX), nullptr);
  cache->free(nullptr);
  EXPECT_EQ(memory->free_pages(), memory->page_count());
  EXPECT_FALSE(cache->owns(&cache));
  EXPECT_FALSE(cache->owns(memory->memory().data()));

  const auto code = [](int e) { return std::error_code(e, std::generic_category()); };
  EXPECT_EQ(general_cache::create(*memory, {.largest_bytes = 0}).error(), code(EINVAL));
  EXPECT_EQ(general_cache::create(*memory, {.largest_bytes = general_cache::max_bytes + 1}).error(),
            code(EINVAL));
  EXPECT_EQ(general_cache::create(*memory, {.name = ""}).error(), code(EINVAL));
  memory_registry registry;
  const auto small =
      general_cache::create(*memory, {.registry = &registry, .largest_bytes = 1'000});
  ASSERT_TRUE(small.has_value());
  EXPECT_EQ((*small)->largest_bytes(), 1'024u);
  EXPECT_EQ((*small)->allocate(1'025), nullptr);
  EXPECT_EQ(general_cache::create(*memory, {.registry = &registry}).error(), code(EEXIST));
  std::vector<std::string> names;
  for (const memory_statistics& s : registry.snapshot(memory_order_by::object_bytes)) {
    names.push_back(s.name);
  }
  EXPECT_EQ(names,
            (std::vector<std::string>{"general-1k", "general-768", "general-512", "general-384",
                                      "general-256", "general-192", "general-128", "general-64"}))
      << "and nothing is left of the one that failed";
}

// Frames that one class holds free are there for another.
TEST(GeneralCache, AnEmptyArenaIsSharedBetweenClasses) {
  const auto memory = make_arena(2u << 20);
  const auto cache = make_cache(*memory);
  for (const std::size_t bytes : {64u, 1'000u, 8'192u, 64u, 40'000u, 300u}) {
    std::vector<void*> held;
    while (void* p = cache->allocate(bytes)) held.push_back(p);
    EXPECT_GE(held.size() * general_cache::class_bytes(general_cache::class_of(bytes)),
              memory->memory().size() / 2)
        << bytes;
    for (void* p : held) cache->free(p);
  }
  cache->shrink();
  EXPECT_EQ(memory->free_pages(), memory->page_count());
}

TEST(GeneralCacheStress, ThreadsNeverShareAnObject) {
  const auto memory = make_arena();
  const auto cache = make_cache(*memory);
  std::atomic<int> damaged{0};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(t);
      std::vector<std::pair<std::uint64_t*, std::uint64_t>> held;
      for (std::uint64_t i = 0; i < 4'000; ++i) {
        if (held.size() < 50 && random() % 2 == 0) {
          const std::size_t bytes = 8 + random() % 3'000;
          auto* const p = static_cast<std::uint64_t*>(cache->allocate(bytes));
          if (p == nullptr) continue;
          *p = std::uint64_t{t} << 32 | i;
          held.emplace_back(p, *p);
        } else if (!held.empty()) {
          std::swap(held[random() % held.size()], held.back());
          if (*held.back().first != held.back().second) ++damaged;
          cache->free(held.back().first);
          held.pop_back();
        }
      }
      for (const auto& [p, mark] : held) cache->free(p);
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(damaged.load(), 0);
  cache->shrink();
  EXPECT_EQ(memory->free_pages(), memory->page_count());
}

TEST(GeneralCacheDeathTest, WhatIsNotItsOwnIsCaught) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto memory = make_arena();
  EXPECT_DEATH(
      {
        const auto cache = make_cache(*memory);
        int local = 0;
        cache->free(&local);
      },
      "\"test-64\": free of what is no object of it");
  EXPECT_DEATH(
      {
        const auto cache = make_cache(*memory);
        cache->free(memory->allocate()->data());
      },
      "free of what is no object of it");
  EXPECT_DEATH(
      {
        const auto cache = make_cache(*memory);
        static_cast<void>(cache->allocate(100));
      },
      "\"test-128\" is destroyed with 1 objects in use");
}

}  // namespace
}  // namespace forebay
