// One thread: not in the thread sanitizer's tree.
// slab_cache: options that cannot be, names that are taken, caches in use, and objects that are not
// the cache's. What the debug mode sees is in slab_debug_test.cc.

#include <gtest/gtest.h>

#include <cstddef>
#include <memory>
#include <vector>

#include "forebay/memory/slab.h"

namespace forebay {
namespace {

std::unique_ptr<arena> make_arena(std::size_t bytes = 4u << 20) {
  auto made = arena::create({.bytes = bytes, .huge_pages = false});
  return made ? std::move(*made) : nullptr;
}

std::error_code errno_code(int e) { return {e, std::generic_category()}; }

TEST(Slab, WrongOptionsAreErrors) {
  const auto memory = make_arena(arena::min_bytes);
  const auto error = [&](slab_cache::options o) {
    const auto r = slab_cache::create(*memory, std::move(o));
    return r ? std::error_code() : r.error();
  };
  EXPECT_EQ(error({.name = "none", .object_bytes = 0}), errno_code(EINVAL));
  EXPECT_EQ(error({.name = "", .object_bytes = 8}), errno_code(EINVAL));
  EXPECT_EQ(error({.name = "odd", .object_bytes = 8, .alignment = 96}), errno_code(EINVAL));
  EXPECT_EQ(error({.name = "odd", .object_bytes = 8, .alignment = 0}), errno_code(EINVAL));
  EXPECT_EQ(error({.name = "odd", .object_bytes = 8, .alignment = 8192}), errno_code(EINVAL));
  EXPECT_EQ(error({.name = "big", .object_bytes = slab_cache::max_object_bytes + 1}),
            errc::too_large);
  EXPECT_EQ(error({.name = "huge", .object_bytes = SIZE_MAX}), errc::too_large);
  EXPECT_EQ(error({.name = "big", .object_bytes = slab_cache::max_object_bytes}),
            std::error_code());

  const auto first = slab_cache::create(*memory, {.name = "name", .object_bytes = 8});
  ASSERT_TRUE(first.has_value());
  EXPECT_EQ(error({.name = "name", .object_bytes = 8}), errno_code(EEXIST));
  memory_registry other;
  EXPECT_EQ(error({.name = "name", .object_bytes = 8, .registry = &other}), std::error_code());
  const auto second = slab_cache::create(
      *memory, {.name = "name", .object_bytes = 8, .number_if_name_is_taken = true});
  ASSERT_TRUE(second.has_value());
  EXPECT_EQ((*second)->name(), "name:2");
  const slab_cache third(*memory, {.name = "name", .object_bytes = 8});
  EXPECT_EQ(third.name(), "name:3");
  EXPECT_EQ(memory->free_pages(), memory->page_count()) << "nothing is taken before it is needed";
}

TEST(Slab, ACacheInUseIsNotDestroyed) {
  const auto memory = make_arena(arena::min_bytes);
  auto cache = std::move(*slab_cache::create(*memory, {.name = "busy", .object_bytes = 100}));
  void* const p = cache->allocate();
  EXPECT_EQ(slab_cache::destroy(cache).error(), errno_code(EBUSY));
  ASSERT_NE(cache, nullptr);
  void* const q = cache->allocate();
  ASSERT_NE(q, nullptr) << "it works on";
  cache->free(p);
  cache->free(q);
  EXPECT_TRUE(slab_cache::destroy(cache).has_value());
  EXPECT_EQ(cache, nullptr);
  EXPECT_EQ(memory->free_pages(), memory->page_count());
}

TEST(Slab, TheRegistryShowsIt) {
  const auto memory = make_arena();
  memory_registry registry;
  {
    slab_cache cache(*memory, {.name = "shown", .object_bytes = 200, .registry = &registry});
    std::vector<void*> held(50);
    ASSERT_EQ(cache.allocate(std::span(held)), held.size());
    for (int i = 0; i < 10; ++i) {
      cache.free(held.back());
      held.pop_back();
    }
    const auto all = registry.snapshot();
    ASSERT_EQ(all.size(), 1u);
    const memory_statistics& s = all[0];
    EXPECT_EQ(s.name, "shown");
    EXPECT_EQ(s.kind, memory_kind::slab);
    EXPECT_EQ(s.object_bytes, 200u);
    EXPECT_EQ(s.stride_bytes, cache.stride_bytes());
    EXPECT_EQ(s.objects_per_slab, cache.objects_per_slab());
    EXPECT_EQ(s.active, 40u);
    EXPECT_EQ(s.allocations, 50u);
    EXPECT_EQ(s.frees, 10u);
    EXPECT_GE(s.total, 50u);
    EXPECT_EQ(s.bytes, s.slabs * s.slab_bytes);
    EXPECT_GE(s.high_watermark, 50u);
    EXPECT_LE(s.cpu_hits, 50u);
    cache.free(std::span<void* const>(held));
  }
  EXPECT_TRUE(registry.snapshot().empty());
}

TEST(SlabDeathTest, MisuseIsCaught) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto memory = make_arena();
  EXPECT_DEATH(
      {
        slab_cache cache(*memory, {.name = "leak", .object_bytes = 64});
        static_cast<void>(cache.allocate());
      },
      "\"leak\" is destroyed with 1 objects in use");
  EXPECT_DEATH(
      {
        slab_cache cache(*memory, {.name = "twice", .object_bytes = 64});
        void* const p = cache.allocate();
        cache.free(p);
        cache.free(p);
        cache.shrink();
      },
      "\"twice\": double free");
  EXPECT_DEATH(
      {
        slab_cache cache(*memory, {.name = "inside", .object_bytes = 192});
        cache.free(static_cast<std::byte*>(cache.allocate()) + 64);
        cache.shrink();
      },
      "\"inside\": free of what is inside an object");
  EXPECT_DEATH(
      {
        slab_cache cache(*memory, {.name = "odd", .object_bytes = 192});
        cache.free(static_cast<std::byte*>(cache.allocate()) + 8);
      },
      "\"odd\": free of what is");
  EXPECT_DEATH(
      {
        slab_cache cache(*memory, {.name = "foreign", .object_bytes = 192});
        alignas(64) std::byte local[64];
        cache.free(local);
      },
      "\"foreign\": free of what is not in the arena");
  EXPECT_DEATH(
      {
        slab_cache cache(*memory, {.name = "frame", .object_bytes = 192});
        cache.free(memory->allocate()->data());
        cache.shrink();
      },
      "\"frame\": free of|owns_frame_of");
#ifndef FOREBAY_DEBUG  // where it is caught sooner
  EXPECT_DEATH(
      {
        slab_cache cache(*memory, {.name = "one", .object_bytes = 192});
        slab_cache other(*memory, {.name = "other", .object_bytes = 192});
        cache.free(other.allocate());
        cache.shrink();
      },
      "\"one\": free of an object of another cache");
#endif
  EXPECT_DEATH(slab_cache(*memory, {.name = "none", .object_bytes = 0}), "slab cache");
  EXPECT_DEATH(slab_cache(*memory, {.name = "odd", .object_bytes = 8, .alignment = 96}),
               "slab cache");
}

}  // namespace
}  // namespace forebay
