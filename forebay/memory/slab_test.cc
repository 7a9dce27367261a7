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
#include "forebay/os/test_cpu.h"

namespace forebay {
namespace {

std::unique_ptr<arena> make_arena(std::size_t bytes = 4u << 20) {
  auto made = arena::create({.bytes = bytes, .huge_pages = false});
  return made ? std::move(*made) : nullptr;
}

std::uint32_t pages_of(const slab_statistics& s) {
  return static_cast<std::uint32_t>(s.total_bytes / page_bytes);
}

// Random allocations and frees beside a map of live ranges. Each object is filled from end to end,
// so a header, a stack or a neighbour that lies in it shows.
RC_GTEST_PROP(Slab, ObjectsNeverOverlapAndKeepTheirContents, ()) {
  const auto object_bytes = *rc::gen::oneOf(
      rc::gen::inRange<std::size_t>(1, 2049), rc::gen::inRange<std::size_t>(2049, 20'000),
      rc::gen::element<std::size_t>(1, 64, 65, 2047, 2048, 4096, 65'536));
  const std::size_t alignment = std::size_t{1} << *rc::gen::inRange(0, 13);
  const bool type_stable = *rc::gen::arbitrary<bool>();
  const bool debug = *rc::gen::element(false, false, true);
  const auto memory = make_arena(16u << 20);
  {
    slab_cache cache(*memory, {.name = "model",
                               .object_bytes = object_bytes,
                               .alignment = alignment,
                               .type_stable = type_stable,
                               .debug = debug,
                               .cpu_caches = *rc::gen::arbitrary<bool>(),
                               .colour = *rc::gen::arbitrary<bool>()});
    RC_ASSERT(cache.name() == "model");
    RC_ASSERT(cache.debug() == debug);
    const std::size_t stride = cache.stride_bytes();
    RC_ASSERT(stride >= object_bytes && stride % 64 == 0u && stride % alignment == 0u);
    std::map<std::byte*, int> live;
    std::uint64_t allocations = 0;
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
        RC_ASSERT(per_slab == cache.objects_per_slab());
        RC_ASSERT(per_slab * stride <= s.slab_bytes);
        RC_ASSERT(s.total_bytes == s.slabs * s.slab_bytes);
        RC_ASSERT(s.partial_slabs + s.empty_slabs <= s.slabs);
      }
      RC_ASSERT(s.objects_in_use + s.objects_cached <= s.objects_total);
      RC_ASSERT(s.allocations == allocations);
      RC_ASSERT(s.frees == allocations - live.size());
      RC_ASSERT(s.high_watermark >= live.size());
      RC_ASSERT(memory->free_pages() == memory->page_count() - pages_of(s));
    };
    std::uint64_t most_slabs = 0;
    const auto let_go = [&](std::byte* object) {
      const std::span<const std::byte> bytes(object, object_bytes);
      const auto expected = static_cast<std::byte>(live.at(object));
      RC_ASSERT(
          std::all_of(bytes.begin(), bytes.end(), [&](std::byte b) { return b == expected; }));
      live.erase(object);
    };
    const auto take_up = [&](std::byte* object) {
      ++allocations;
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
    };
    const auto any_live = [&] {
      auto at = live.begin();
      std::advance(at, random() % live.size());
      return at->first;
    };
    for (int step = 0; step < 200; ++step) {
      const bool grow = (step / 50) % 2 == 0;
      const bool many = random() % 16 == 0;
      if (live.empty() || random() % 4 < (grow ? 3u : 1u)) {
        std::vector<void*> got(many ? random() % 100 : 1);
        // 128 KiB each, with red zones about 64 KiB: the arena does not hold many more of them.
        if (live.size() + got.size() > 100) got.clear();
        if (many) {
          RC_ASSERT(cache.allocate(std::span(got)) == got.size());
        } else if (!got.empty()) {
          got[0] = cache.allocate();
        }
        for (void* p : got) {
          RC_ASSERT(static_cast<bool>(p != nullptr));
          take_up(static_cast<std::byte*>(p));
        }
      } else if (many) {
        std::vector<void*> back;
        for (std::size_t n = random() % (live.size() + 1); n-- > 0;) {
          back.push_back(any_live());
          let_go(static_cast<std::byte*>(back.back()));
        }
        cache.free(std::span<void* const>(back));
      } else {
        std::byte* const object = any_live();
        let_go(object);
        cache.free(object);
      }
      if (random() % 32 == 0) {
        cache.shrink();
        RC_ASSERT(type_stable || cache.statistics().empty_slabs == 0u);
        RC_ASSERT(cache.statistics().objects_cached == 0u);
      }
      if (random() % 32 == 0) cache.check();
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
    cache.shrink();
    RC_ASSERT(cache.statistics().slabs == (type_stable ? most_slabs : 0u));
  }
  RC_ASSERT(memory->free_pages() == memory->page_count());
}

struct counted {
  static inline int constructed = 0;
  std::uint64_t generation;
  std::uint64_t padding[3];
};

TEST(Slab, TypeStableObjectsAreConstructedOnceAndKeepTheirContents) {
  const stay_on_cpu here;  // what another one has kept for itself is not allocated again
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

TEST(Slab, ABreathingCacheKeepsItsSlab) {
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
  EXPECT_EQ(cache.shrink(), cache.statistics().slab_bytes);
  EXPECT_EQ(cache.statistics().slabs, 0u);
  EXPECT_EQ(memory->free_pages(), memory->page_count());
  EXPECT_EQ(cache.shrink(), 0u);
}

TEST(Slab, EmptySlabsGoBackButForAFew) {
  const auto memory = make_arena();
  slab_cache cache(*memory, {.name = "peak", .object_bytes = 256});
  std::vector<void*> held(8'000);
  ASSERT_EQ(cache.allocate(std::span(held)), held.size());
  EXPECT_GE(cache.statistics().slabs, 500u);
  EXPECT_GE(cache.statistics().high_watermark, held.size());
  cache.free(std::span<void* const>(held));
  const slab_statistics s = cache.statistics();
  EXPECT_EQ(s.objects_in_use, 0u);
  // What lies in CPU caches (1/16 of the arena) may be one object of each slab, but was not freed
  // in such an order here.
  EXPECT_LT(s.slabs, 130u);
  EXPECT_LE(s.objects_cached * cache.stride_bytes(), memory->memory().size() / 16);
}

// 3% with the frames' state, at 256 bytes.
TEST(Slab, FullSlabsHaveLittleBesidesObjects) {
  for (const std::size_t bytes : {64u, 128u, 256u, 512u, 1024u, 2048u, 4096u}) {
    const auto memory = make_arena();
    slab_cache cache(*memory, {.name = "dense", .object_bytes = bytes});
    std::vector<void*> held;
    while (void* p = cache.allocate()) held.push_back(p);
    const slab_statistics s = cache.statistics();
    const double used = static_cast<double>(s.total_bytes) *
                        (1 + static_cast<double>(page_state_bytes) / page_bytes);
    EXPECT_LT(used / static_cast<double>(held.size() * bytes), 1.03) << bytes;
    cache.free(std::span<void* const>(held));
  }
}

// Of every size at most 1/8 of a slab is left over, if the arena is not too small for it.
TEST(Slab, NoSizeWastesMuch) {
  const auto memory = make_arena(64u << 20);
  for (std::size_t bytes = 64; bytes <= 64u << 10; bytes += bytes / 8) {
    slab_cache cache(*memory, {.name = "size", .object_bytes = bytes});
    if (cache.debug()) return;
    void* const p = cache.allocate();
    ASSERT_NE(p, nullptr) << bytes;
    const slab_statistics s = cache.statistics();
    EXPECT_GE(static_cast<double>(s.objects_total * cache.stride_bytes()),
              static_cast<double>(s.total_bytes) * 7 / 8)
        << bytes;
    cache.free(p);
  }
}

TEST(Slab, FullerSlabsAreUsedFirst) {
  const auto memory = make_arena();
  slab_cache cache(*memory, {.name = "fullest", .object_bytes = 1024, .cpu_caches = false});
  const std::uint32_t n = cache.objects_per_slab();
  std::vector<void*> held(std::size_t{n} * 4);
  ASSERT_EQ(cache.allocate(std::span(held)), held.size());
  // The four slabs get 1, n / 2, 1 and n - 1 free objects.
  const auto slab_of = [&](const void* p) {
    return static_cast<std::size_t>(static_cast<const std::byte*>(p) - memory->memory().data()) /
           cache.statistics().slab_bytes;
  };
  std::map<std::size_t, std::vector<void*>> slabs;
  for (void* p : held) slabs[slab_of(p)].push_back(p);
  ASSERT_EQ(slabs.size(), 4u);
  const std::size_t wanted[] = {1, n / 2, 1, n - 1};
  std::vector<void*> left;
  std::size_t i = 0;
  std::map<std::size_t, std::size_t> free_of;
  for (auto& [slab, objects] : slabs) {
    for (std::size_t k = 0; k < objects.size(); ++k) {
      if (k < wanted[i]) {
        cache.free(objects[k]);
      } else {
        left.push_back(objects[k]);
      }
    }
    free_of[slab] = wanted[i++];
  }
  std::vector<std::size_t> order;
  for (std::size_t k = 0; k < 2 + n / 2; ++k) {
    left.push_back(cache.allocate());
    order.push_back(free_of[slab_of(left.back())]);
  }
  EXPECT_EQ(order[0], 1u);
  EXPECT_EQ(order[1], 1u);
  for (std::size_t k = 2; k < order.size(); ++k) EXPECT_EQ(order[k], n / 2) << k;
  for (void* p : left) cache.free(p);
}

TEST(Slab, NeighbouringSlabsBeginAtDifferentLines) {
  const auto memory = make_arena();
  for (const bool colour : {true, false}) {
    slab_cache cache(
        *memory, {.name = "colour", .object_bytes = 320, .cpu_caches = false, .colour = colour});
    if (cache.debug()) return;
    std::vector<void*> held(12 * 8);
    ASSERT_EQ(cache.allocate(std::span(held)), held.size());
    std::set<std::size_t> starts;
    std::map<std::size_t, std::size_t> lowest;
    for (void* p : held) {
      const auto at =
          static_cast<std::size_t>(static_cast<std::byte*>(p) - memory->memory().data());
      auto [entry, fresh] = lowest.try_emplace(at / page_bytes, at % page_bytes);
      entry->second = std::min(entry->second, at % page_bytes);
    }
    EXPECT_EQ(lowest.size(), 8u);
    for (const auto& [frame, start] : lowest) starts.insert(start);
    EXPECT_EQ(starts.size(), colour ? 4u : 1u);
    cache.free(std::span<void* const>(held));
  }
}

// Where no block of the wished size is left, single frames do.
TEST(Slab, ScatteredMemoryIsUsed) {
  const auto memory = make_arena(2u << 20);
  std::vector<page*> frames;
  while (page* p = memory->allocate(0)) frames.push_back(p);
  std::sort(frames.begin(), frames.end());
  for (std::size_t i = 0; i < frames.size(); i += 2) put_page(*frames[i]);
  {
    slab_cache cache(*memory, {.name = "scattered", .object_bytes = 1024});
    EXPECT_GT(cache.statistics().slab_bytes, page_bytes);
    std::vector<void*> held;
    while (void* p = cache.allocate()) held.push_back(p);
    EXPECT_EQ(memory->free_pages(), 0u);
    EXPECT_EQ(cache.statistics().objects_total, held.size());
    EXPECT_EQ(cache.statistics().total_bytes, (frames.size() + 1) / 2 * page_bytes);
    if (!cache.debug()) {
      EXPECT_EQ(held.size(), (frames.size() + 1) / 2 * 4);
    }
    for (void* p : held) std::memset(p, 1, 1024);
    cache.free(std::span<void* const>(held));
    cache.shrink();
    EXPECT_EQ(memory->free_pages(), (frames.size() + 1) / 2);
  }
  for (std::size_t i = 1; i < frames.size(); i += 2) put_page(*frames[i]);
}

// What another thread's CPU holds is not out of reach.
TEST(Slab, TheLastObjectCanBeHadAnywhere) {
  const auto memory = make_arena(arena::min_bytes);
  slab_cache cache(*memory, {.name = "stranded", .object_bytes = 64});
  std::vector<void*> held;
  while (void* p = cache.allocate()) held.push_back(p);
  std::thread([&] {
    for (int i = 0; i < 100; ++i) {
      cache.free(held.back());
      held.pop_back();
    }
  }).join();
  for (int i = 0; i < 100; ++i) {
    held.push_back(cache.allocate());
    ASSERT_NE(held.back(), nullptr) << i;
  }
  EXPECT_EQ(cache.allocate(), nullptr);
  cache.free(std::span<void* const>(held));
  cache.shrink();
  EXPECT_EQ(memory->free_pages(), memory->page_count());
}

TEST(Slab, AFewObjectsDoNotKeepASmallArena) {
  const auto memory = make_arena(arena::min_bytes);
  std::vector<std::unique_ptr<slab_cache>> caches;
  for (const std::size_t bytes : {64u, 320u, 1024u, 4096u}) {
    auto made = slab_cache::create(
        *memory, {.name = "share-" + std::to_string(bytes), .object_bytes = bytes});
    ASSERT_TRUE(made.has_value());
    std::vector<void*> held((100u << 10) / bytes);
    ASSERT_EQ((*made)->allocate(std::span(held)), held.size());
    (*made)->free(std::span<void* const>(held));
    EXPECT_LE((*made)->cached_bytes(), memory->memory().size() / 16);
    EXPECT_EQ((*made)->cached_bytes(),
              (*made)->statistics().objects_cached * (*made)->stride_bytes());
    caches.push_back(std::move(*made));
  }
  EXPECT_GT(memory->free_pages(), memory->page_count() / 2);
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
    cache.shrink();
    EXPECT_TRUE(type_stable || cache.statistics().slabs == 0);
  }
  EXPECT_EQ(memory->free_pages(), memory->page_count());
}

// Readers of statistics beside threads that allocate; exact afterwards.
TEST(SlabStress, StatisticsAreReadMeanwhile) {
  const auto memory = make_arena();
  memory_registry registry;
  slab_cache cache(*memory, {.name = "read", .object_bytes = 500, .registry = &registry});
  std::atomic<bool> done{false};
  std::thread reader([&] {
    while (!done.load()) {
      for (const memory_statistics& s : registry.snapshot()) EXPECT_LE(s.active, s.total);
      cache.shrink();
      std::this_thread::yield();
    }
  });
  std::vector<std::thread> threads;
  constexpr unsigned rounds = 300;
  for (unsigned t = 0; t < 2; ++t) {
    threads.emplace_back([&] {
      std::vector<void*> held(70);
      for (unsigned i = 0; i < rounds; ++i) {
        ASSERT_EQ(cache.allocate(std::span(held)), held.size());
        cache.free(std::span<void* const>(held));
      }
    });
  }
  for (std::thread& t : threads) t.join();
  done.store(true);
  reader.join();
  const slab_statistics s = cache.statistics();
  EXPECT_EQ(s.objects_in_use, 0u);
  EXPECT_EQ(s.allocations, 2u * rounds * 70);
  EXPECT_EQ(s.frees, s.allocations);
}

}  // namespace
}  // namespace forebay
