#include "forebay/memory/slab.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "forebay/base/cache_line.h"

namespace forebay {
namespace {

std::unique_ptr<arena> make_arena(std::size_t bytes = 4u << 20) {
  auto made = arena::create({.bytes = bytes, .huge_pages = false});
  return made ? std::move(*made) : nullptr;
}

std::uint32_t pages_of(const slab_statistics& s) {
  return static_cast<std::uint32_t>(s.slabs * s.slab_bytes / page_bytes);
}

// Random allocations and frees beside a map of live ranges. Each object is filled from end to end,
// so a header, a stack or a neighbour that lies in it shows.
RC_GTEST_PROP(Slab, ObjectsNeverOverlapAndKeepTheirContents, ()) {
  const auto object_bytes = *rc::gen::oneOf(rc::gen::inRange<std::size_t>(1, 2049),
                                            rc::gen::element<std::size_t>(1, 64, 65, 2047, 2048));
  const std::size_t alignment = std::size_t{64} << *rc::gen::inRange(0, 7);
  const bool type_stable = *rc::gen::arbitrary<bool>();
  const auto memory = make_arena();
  {
    slab_cache cache(*memory, {.name = "model",
                               .object_bytes = object_bytes,
                               .alignment = alignment,
                               .type_stable = type_stable});
    RC_ASSERT(cache.name() == "model");
    const std::size_t stride = round_up(object_bytes, alignment);
    std::map<std::byte*, int> live;
    std::mt19937 random(*rc::gen::arbitrary<std::uint32_t>());
    const auto check = [&] {
      const slab_statistics s = cache.statistics();
      RC_ASSERT(s.objects_in_use == live.size());
      RC_ASSERT(s.objects_total >= s.objects_in_use);
      RC_ASSERT(s.failures == 0u);
      RC_ASSERT(s.slab_bytes % page_bytes == 0u);
      if (s.slabs > 0) {
        const std::uint64_t per_slab = s.objects_total / s.slabs;
        RC_ASSERT(s.objects_total == per_slab * s.slabs);
        RC_ASSERT(per_slab >= 8u);
        RC_ASSERT(per_slab * stride < s.slab_bytes);
        RC_ASSERT(type_stable || s.slabs <= s.objects_in_use + 1);
      }
      RC_ASSERT(memory->free_pages() == memory->page_count() - pages_of(s));
    };
    std::uint64_t most_slabs = 0;
    for (int step = 0; step < 200; ++step) {
      const bool grow = (step / 50) % 2 == 0;
      if (live.empty() || random() % 4 < (grow ? 3u : 1u)) {
        auto* const object = static_cast<std::byte*>(cache.allocate());
        RC_ASSERT(object != nullptr);
        RC_ASSERT(is_aligned(reinterpret_cast<std::uintptr_t>(object), alignment));
        const std::span<std::byte> all = memory->memory();
        RC_ASSERT(object >= all.data());
        RC_ASSERT(object + object_bytes <= all.data() + all.size());
        const auto next = live.lower_bound(object);
        if (next != live.end()) RC_ASSERT(object + object_bytes <= next->first);
        if (next != live.begin()) RC_ASSERT(std::prev(next)->first + object_bytes <= object);
        const std::uint32_t handle = cache.handle_of(object);
        RC_ASSERT(handle < (1u << 31));
        RC_ASSERT(static_cast<std::byte*>(cache.from_handle(handle)) == object);
        const int fill = static_cast<int>(random() % 256);
        std::memset(object, fill, object_bytes);
        live.emplace(object, fill);
      } else {
        auto at = live.begin();
        std::advance(at, random() % live.size());
        const std::span<const std::byte> bytes(at->first, object_bytes);
        const auto expected = static_cast<std::byte>(at->second);
        RC_ASSERT(
            std::all_of(bytes.begin(), bytes.end(), [&](std::byte b) { return b == expected; }));
        cache.free(at->first);
        live.erase(at);
      }
      check();
      if (type_stable) {
        RC_ASSERT(cache.statistics().slabs >= most_slabs);
        most_slabs = cache.statistics().slabs;
      }
    }
    while (!live.empty()) {
      cache.free(live.begin()->first);
      live.erase(live.begin());
      check();
    }
    RC_ASSERT(cache.statistics().slabs == (type_stable ? most_slabs : 1u));
  }
  RC_ASSERT(memory->free_pages() == memory->page_count());
}

struct counted {
  static inline int constructed = 0;
  std::uint64_t generation;
  std::uint64_t padding[3];
};

TEST(Slab, TypeStableObjectsAreConstructedOnceAndKeepTheirContents) {
  const auto memory = make_arena();
  counted::constructed = 0;
  {
    slab_cache cache(*memory, {.name = "stable",
                               .object_bytes = sizeof(counted),
                               .type_stable = true,
                               .construct = [](void* p) {
                                 new (p) counted{.generation = 1, .padding = {}};
                                 ++counted::constructed;
                               }});
    std::set<counted*> all;
    std::vector<counted*> held;
    for (int i = 0; i < 500; ++i) held.push_back(static_cast<counted*>(cache.allocate()));
    const auto total = static_cast<int>(cache.statistics().objects_total);
    EXPECT_EQ(counted::constructed, total);
    for (counted* c : held) {
      ASSERT_EQ(c->generation, 1u);
      c->generation = 2;
      all.insert(c);
    }
    for (counted* c : held) cache.free(c);
    const std::uint64_t slabs = cache.statistics().slabs;
    EXPECT_EQ(static_cast<int>(cache.statistics().objects_total), total) << "no slab has gone";
    for (counted* c : all) EXPECT_EQ(c->generation, 2u) << "a stale reader sees the last life";
    held.clear();
    for (int i = 0; i < total; ++i) {
      held.push_back(static_cast<counted*>(cache.allocate()));
      EXPECT_EQ(held.back()->generation, all.contains(held.back()) ? 2u : 1u);
    }
    EXPECT_EQ(cache.statistics().slabs, slabs);
    EXPECT_EQ(counted::constructed, total);
    for (counted* c : held) cache.free(c);
  }
  EXPECT_EQ(memory->free_pages(), memory->page_count()) << "they go with the cache";
}

TEST(Slab, ABreathingCacheKeepsOneEmptySlab) {
  const auto memory = make_arena();
  slab_cache cache(*memory, {.name = "breath", .object_bytes = 100});
  void* const first = cache.allocate();
  const std::uint32_t free = memory->free_pages();
  cache.free(first);
  for (int i = 0; i < 100; ++i) {
    void* const p = cache.allocate();
    EXPECT_EQ(memory->free_pages(), free) << "no way to the arena and back";
    cache.free(p);
  }
  EXPECT_EQ(cache.statistics().slabs, 1u);
}

TEST(Slab, ExhaustionGivesNullAndIsCounted) {
  const auto memory = make_arena(arena::min_bytes);
  slab_cache cache(*memory, {.name = "full", .object_bytes = 1000});
  std::vector<void*> held;
  while (void* p = cache.allocate()) held.push_back(p);
  EXPECT_GT(held.size(), 500u);
  EXPECT_EQ(cache.statistics().failures, 1u);
  EXPECT_EQ(cache.statistics().objects_in_use, held.size());
  EXPECT_EQ(cache.statistics().objects_total, held.size());
  EXPECT_EQ(cache.allocate(), nullptr);
  EXPECT_EQ(cache.statistics().failures, 2u);

  void* const given_back = held[held.size() / 2];
  cache.free(given_back);
  EXPECT_EQ(cache.allocate(), given_back) << "the only one there is";
  for (void* p : held) cache.free(p);
  EXPECT_EQ(cache.statistics().objects_in_use, 0u);
  EXPECT_EQ(memory->free_pages(), memory->page_count() - pages_of(cache.statistics()));
}

TEST(Slab, TwoCachesShareAnArena) {
  const auto memory = make_arena();
  {
    slab_cache small(*memory, {.name = "small", .object_bytes = 40});
    slab_cache large(*memory, {.name = "large", .object_bytes = 2048});
    std::vector<void*> smalls;
    std::vector<void*> larges;
    for (int i = 0; i < 300; ++i) {
      smalls.push_back(small.allocate());
      std::memset(smalls.back(), 0x11, 40);
      larges.push_back(large.allocate());
      std::memset(larges.back(), 0x22, 2048);
    }
    for (void* p : smalls) {
      const auto* const b = static_cast<const unsigned char*>(p);
      EXPECT_TRUE(std::all_of(b, b + 40, [](unsigned char c) { return c == 0x11; }));
      small.free(p);
    }
    for (void* p : larges) {
      const auto* const b = static_cast<const unsigned char*>(p);
      EXPECT_TRUE(std::all_of(b, b + 2048, [](unsigned char c) { return c == 0x22; }));
      large.free(p);
    }
  }
  EXPECT_EQ(memory->free_pages(), memory->page_count());
}

struct alignas(128) wide {
  explicit wide(int v) : value(v) { ++alive; }
  ~wide() { --alive; }
  int value;
  static inline int alive = 0;
};

TEST(ObjectCache, MakesAndUnmakesObjects) {
  const auto memory = make_arena(arena::min_bytes);
  object_cache<wide> cache(*memory, "wide");
  std::vector<wide*> held;
  while (wide* w = cache.create(static_cast<int>(held.size()))) held.push_back(w);
  EXPECT_EQ(wide::alive, static_cast<int>(held.size())) << "none for the one that was refused";
  EXPECT_EQ(cache.slabs().statistics().failures, 1u);
  EXPECT_EQ(cache.slabs().name(), "wide");
  for (std::size_t i = 0; i < held.size(); ++i) {
    EXPECT_EQ(held[i]->value, static_cast<int>(i));
    EXPECT_TRUE(is_aligned(reinterpret_cast<std::uintptr_t>(held[i]), alignof(wide)));
    cache.destroy(held[i]);
  }
  EXPECT_EQ(wide::alive, 0);
}

TEST(SlabStress, ThreadsNeverShareAnObject) {
  const auto memory = make_arena(2u << 20);
  for (const bool type_stable : {false, true}) {
    slab_cache cache(*memory, {.name = "stress", .object_bytes = 192, .type_stable = type_stable});
    std::atomic<int> damaged{0};
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < 3; ++t) {
      threads.emplace_back([&, t] {
        std::mt19937 random(t);
        std::vector<std::pair<std::uint64_t*, std::uint64_t>> held;
        const auto free_last = [&] {
          const auto [words, mark] = held.back();
          held.pop_back();
          if (!std::all_of(words, words + 24, [m = mark](std::uint64_t w) { return w == m; })) {
            ++damaged;
          }
          cache.free(words);
        };
        for (std::uint64_t i = 0; i < 4'000; ++i) {
          if (held.size() < 100 && random() % 2 == 0) {
            auto* const words = static_cast<std::uint64_t*>(cache.allocate());
            if (words == nullptr) continue;
            const std::uint64_t mark = (std::uint64_t{t} << 32) | i;
            std::fill(words, words + 24, mark);
            held.emplace_back(words, mark);
          } else if (!held.empty()) {
            std::swap(held[random() % held.size()], held.back());
            free_last();
          }
        }
        while (!held.empty()) free_last();
      });
    }
    for (std::thread& t : threads) t.join();
    EXPECT_EQ(damaged.load(), 0);
    const slab_statistics s = cache.statistics();
    EXPECT_EQ(s.objects_in_use, 0u);
    EXPECT_EQ(memory->free_pages(), memory->page_count() - pages_of(s));
    EXPECT_TRUE(type_stable || s.slabs == 1);
  }
  EXPECT_EQ(memory->free_pages(), memory->page_count());
}

TEST(SlabDeathTest, MisuseIsCaught) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto memory = make_arena();
  EXPECT_DEATH(
      {
        slab_cache cache(*memory, {.name = "leak", .object_bytes = 64});
        static_cast<void>(cache.allocate());
      },
      "objects_in_use");
  EXPECT_DEATH(
      {
        slab_cache cache(*memory, {.name = "twice", .object_bytes = 64});
        void* const p = cache.allocate();
        cache.free(p);
        cache.free(p);
      },
      "free_count");
  EXPECT_DEATH(
      {
        slab_cache cache(*memory, {.name = "inside", .object_bytes = 192});
        cache.free(static_cast<std::byte*>(cache.allocate()) + 64);
      },
      "stride");
  EXPECT_DEATH(slab_cache(*memory, {.name = "none", .object_bytes = 0}), "object_bytes");
  EXPECT_DEATH(slab_cache(*memory, {.name = "big", .object_bytes = 2049}), "object_bytes");
  EXPECT_DEATH(slab_cache(*memory, {.name = "odd", .object_bytes = 8, .alignment = 96}),
               "alignment");
}

}  // namespace
}  // namespace forebay
