// Allocation, handles, sizes, growth, statistics, bad input.
#include "forebay/memory/buffer_pool.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "forebay/memory/test_pool.h"
#include "forebay/os/cpu.h"

namespace forebay {
namespace {

class BufferPool : public testing::TestWithParam<free_list_kind> {};

INSTANTIATE_TEST_SUITE_P(Lists, BufferPool, testing::ValuesIn(free_list_kinds),
                         [](const auto& kind) {
                           std::string name = to_string(kind.param);
                           std::erase_if(name, [](unsigned char c) { return !std::isalnum(c); });
                           return name;
                         });

std::vector<buffer*> take_all(buffer_pool& pool) {
  std::vector<buffer*> got;
  while (buffer* b = pool.try_allocate_raw()) got.push_back(b);
  return got;
}

void free_all(buffer_pool& pool, const std::vector<buffer*>& buffers) {
  EXPECT_TRUE(pool.free_bulk_raw(buffers));
}

TEST_P(BufferPool, HandsOutEachBufferOnceAndThenNone) {
  const test_pool pool({.name = "test", .buffer_bytes = 1500, .count = 300, .list = GetParam()});
  const auto got = take_all(*pool);
  ASSERT_EQ(got.size(), 300u);
  std::set<std::byte*> starts;
  for (std::size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(got[i]->size(), 1500u);
    EXPECT_EQ(got[i]->holders(), 1u);
    EXPECT_EQ(&got[i]->pool(), pool.pool.get());
    EXPECT_EQ(&pool->at(got[i]->index()), got[i]);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(got[i]->data()) % 64, 0u);
    starts.insert(got[i]->data());
    std::memset(got[i]->data(), static_cast<int>(i), got[i]->size());
  }
  ASSERT_EQ(starts.size(), 300u);
  for (auto next = starts.begin(), at = next++; next != starts.end(); at = next++) {
    EXPECT_GE(*next - *at, 1536) << "buffers overlap";
  }
  for (std::size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(got[i]->data()[0], static_cast<std::byte>(i));
    EXPECT_EQ(got[i]->data()[1499], static_cast<std::byte>(i));
  }
  EXPECT_FALSE(pool->try_allocate());
  free_all(*pool, got);
  EXPECT_EQ(take_all(*pool).size(), 300u);
  for (buffer* b : got) EXPECT_TRUE(pool->free_raw(*b));
}

TEST_P(BufferPool, StatisticsAreExactAtRest) {
  const test_pool pool({.name = "test", .count = 100, .list = GetParam()});
  auto got = take_all(*pool);
  EXPECT_EQ(pool->statistics().in_use, 100u);
  EXPECT_EQ(pool->statistics().high_watermark, 100u);
  free_all(*pool, got);
  for (int i = 0; i < 50; ++i) EXPECT_TRUE(pool->try_allocate());
  std::vector<buffer*> some(60);
  ASSERT_TRUE(pool->try_allocate_bulk_raw(some));
  std::vector<buffer*> too_many(41);
  const auto before = pool->statistics();
  EXPECT_EQ(before.allocations, 100u + 50 + 60);
  EXPECT_EQ(before.frees, 150u);
  EXPECT_EQ(before.in_use, 60u);
  EXPECT_EQ(before.failures, 1u) << "take_all()'s last";
  EXPECT_EQ(before.total, 100u);
  EXPECT_EQ(before.high_watermark, 100u);
  EXPECT_EQ(before.waits, 0u);
  EXPECT_FALSE(pool->try_allocate_bulk_raw(too_many));
  EXPECT_EQ(pool->statistics().failures, 2u);
  EXPECT_EQ(pool->statistics().in_use, 60u);
  free_all(*pool, some);
  const auto s = pool->statistics();
  EXPECT_EQ(s.in_use, 0u);
  EXPECT_EQ(s.frees, s.allocations);
  const auto report = pool->report();
  EXPECT_EQ(report.kind, memory_kind::pool);
  EXPECT_EQ(report.allocations, s.allocations);
  EXPECT_EQ(report.object_bytes, 2048u);
  EXPECT_EQ(report.total, 100u);
}

TEST_P(BufferPool, WithoutCpuCachesTheHighWatermarkIsExact) {
  const test_pool pool({.name = "test", .count = 100, .list = GetParam(), .magazine_buffers = 8});
  std::vector<buffer*> some(13);
  ASSERT_TRUE(pool->try_allocate_bulk_raw(some));
  free_all(*pool, some);
  ASSERT_TRUE(pool->try_allocate());
  const auto s = pool->statistics();
  if (GetParam() == free_list_kind::cached) {
    EXPECT_GE(s.high_watermark, 13u);
    EXPECT_LE(s.high_watermark, 13u + 2 * 8 * cpu_limit());
  } else {
    EXPECT_EQ(s.high_watermark, 13u);
    EXPECT_EQ(s.cached, 0u);
  }
}

TEST(BufferPoolHandles, TheLastHolderGivesTheBufferBack) {
  const test_pool pool({.name = "test", .count = 1});
  buffer_ref a = pool->try_allocate();
  ASSERT_TRUE(a);
  a->flags = 7;
  buffer_ref b = a.share();
  EXPECT_EQ(a->holders(), 2u);
  buffer_ref c = std::move(a);
  c.reset();
  EXPECT_EQ(b->holders(), 1u);
  EXPECT_FALSE(pool->try_allocate());
  buffer* raw = b.release();
  EXPECT_FALSE(pool->try_allocate());
  b = pool->adopt(*raw);
  b.reset();
  a = pool->try_allocate();
  ASSERT_TRUE(a);
  EXPECT_EQ(a.get(), raw);
  EXPECT_EQ(a->holders(), 1u);
  EXPECT_EQ(a->flags, 0u) << "flags of the last life";
}

TEST(BufferPoolMisuse, FreesThatAreWrongAreRefusedAndCounted) {
  const test_pool pool({.name = "one", .count = 4});
  const test_pool other({.name = "two", .count = 4});
  buffer* b = pool->try_allocate_raw();
  ASSERT_NE(b, nullptr);
  testing::internal::CaptureStderr();
  EXPECT_EQ(other->free_raw(*b).error(), error_of(EINVAL));
  {
    const buffer_ref held = pool->adopt(*b);
    buffer* again = held.share().release();
    EXPECT_EQ(pool->free_raw(*again).error(), error_of(EBUSY));
    EXPECT_EQ(b->holders(), 2u);
    static_cast<void>(pool->adopt(*again));
  }
  b = pool->try_allocate_raw();
  EXPECT_TRUE(pool->free_raw(*b));
  EXPECT_EQ(pool->free_raw(*b).error(), error_of(EALREADY));
  EXPECT_EQ(pool->free_bulk_raw(std::array{b}).error(), error_of(EALREADY));
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_NE(said.find("pool \"two\": buffer"), std::string::npos) << said;
  EXPECT_NE(said.find("of \"one\" is another pool's"), std::string::npos) << said;
  EXPECT_NE(said.find("has other holders"), std::string::npos) << said;
  EXPECT_NE(said.find("is free already"), std::string::npos) << said;
  EXPECT_EQ(pool->statistics().misuses, 3u);
  EXPECT_EQ(other->statistics().misuses, 1u);
  EXPECT_EQ(take_all(*pool).size(), 4u) << "nothing was freed twice or lost";
  for (std::uint32_t i = 0; i < 4; ++i) EXPECT_TRUE(pool->free_raw(pool->at(i)));
}

TEST(BufferPoolEnd, IsRefusedWhileABufferIsInUse) {
  test_pool pool({.name = "test", .count = 10, .limit = 100});
  buffer_ref b = pool->try_allocate();
  EXPECT_EQ(buffer_pool::destroy(pool.pool).error(), error_of(EBUSY));
  ASSERT_NE(pool.pool, nullptr);
  EXPECT_TRUE(pool->try_allocate()) << "refused, and nothing has happened";
  b.reset();
  EXPECT_TRUE(buffer_pool::destroy(pool.pool));
  EXPECT_EQ(pool.pool, nullptr);
  EXPECT_EQ(pool.frames_taken(), 0u);
  EXPECT_TRUE(pool.registry.snapshot().empty());
}

TEST(BufferPoolEndDeathTest, ItsDestructorAsserts) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        test_pool pool({.name = "frames", .count = 10});
        static_cast<void>(pool->try_allocate_raw());
        pool.pool.reset();
      },
      "pool \"frames\": 1 buffers are in use at its end");
}

// --- sizes ---

TEST(BufferPoolSize, BadInputIsAnError) {
  const auto memory = std::move(*arena::create({.bytes = 8u << 20, .huge_pages = false}));
  memory_registry registry;
  const std::size_t frames = memory->free_pages();
  const buffer_pool::options good{
      .name = "good", .buffer_bytes = 100, .count = 10, .registry = &registry};
  const auto error_with = [&](auto change) {
    buffer_pool::options opts = good;
    change(opts);
    const auto pool = buffer_pool::create(*memory, opts);
    return pool ? std::error_code() : pool.error();
  };
  using options = buffer_pool::options;
  const auto invalid = error_of(EINVAL);
  const auto large = make_error_code(errc::too_large);
  EXPECT_EQ(error_with([](options&) {}), std::error_code());
  EXPECT_EQ(error_with([](options& o) { o.name.clear(); }), invalid);
  EXPECT_EQ(error_with([](options& o) { o.buffer_bytes = 0; }), invalid);
  EXPECT_EQ(error_with([](options& o) { o.buffer_bytes = SIZE_MAX; }), large);
  EXPECT_EQ(error_with([](options& o) { o.buffer_bytes = buffer_pool::buffer_bytes_max; }), large);
  EXPECT_EQ(error_with([](options& o) { o.count = 0; }), invalid);
  EXPECT_EQ(error_with([](options& o) { o.count = SIZE_MAX; }), large);
  EXPECT_EQ(error_with([](options& o) { o.count = 1'000'000; }), large);
  EXPECT_EQ(error_with([](options& o) { o.limit = 9; }), invalid);
  EXPECT_EQ(error_with([](options& o) { o.limit = SIZE_MAX; }), large);
  EXPECT_EQ(error_with([](options& o) { o.grow_count = SIZE_MAX; }), large);
  EXPECT_EQ(error_with([](options& o) { o.alignment = 0; }), invalid);
  EXPECT_EQ(error_with([](options& o) { o.alignment = 48; }), invalid);
  EXPECT_EQ(error_with([](options& o) { o.alignment = buffer_pool::alignment_max * 2; }), large);
  EXPECT_EQ(error_with([](options& o) { o.alignment = std::size_t{1} << 63; }), large);
  const auto first = buffer_pool::create(*memory, good);
  ASSERT_TRUE(first);
  const std::size_t with_one = memory->free_pages();
  EXPECT_EQ(error_with([](options&) {}), error_of(EEXIST));
  EXPECT_EQ(memory->free_pages(), with_one);
  EXPECT_EQ(registry.snapshot().size(), 1u);
  EXPECT_LT(with_one, frames);
}

TEST(BufferPoolSize, BuffersLieAsTheyWereAskedFor) {
  struct wish {
    std::size_t bytes, alignment, count;
  };
  for (const wish w : {wish{1, 1, 5000}, wish{100, 4, 333}, wish{2048, 2048, 100},
                       wish{512, 4096, 50}, wish{9000, 64, 40}, wish{5000, 16384, 20},
                       wish{1u << 20, 2u << 20, 2}, wish{3u << 20, 64, 1}}) {
    const test_pool pool(
        {.name = "test", .buffer_bytes = w.bytes, .count = w.count, .alignment = w.alignment},
        32u << 20);
    const auto got = take_all(*pool);
    ASSERT_EQ(got.size(), w.count);
    std::set<std::byte*> starts;
    for (buffer* b : got) {
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(b->data()) % w.alignment, 0u);
      starts.insert(b->data());
      std::memset(b->data(), 1, b->size());
    }
    EXPECT_EQ(starts.size(), w.count);
    for (auto next = starts.begin(), at = next++; next != starts.end(); at = next++) {
      EXPECT_GE(*next - *at, static_cast<std::ptrdiff_t>(w.bytes));
    }
    free_all(*pool, got);
  }
}

TEST(BufferPoolSize, WhatItTakesBesideDataAndHeaders) {
  // 2 KiB buffers: no frame more than their data needs.
  for (const std::size_t count : {1u, 2u, 3u, 500u, 1023u, 1025u}) {
    const test_pool pool({.name = "test", .count = count});
    EXPECT_EQ(pool.frames_taken(), (count + 1) / 2) << count;
    EXPECT_EQ(pool->statistics().bytes, pool.frames_taken() * page_bytes + count * sizeof(buffer));
  }
}

// Frames lie scattered: no block of two is free.
TEST(BufferPoolSize, ScatteredMemoryDoes) {
  const auto memory = std::move(*arena::create({.bytes = 4u << 20, .huge_pages = false}));
  std::vector<page*> held;
  while (page* p = memory->allocate()) held.push_back(p);
  for (std::size_t i = 0; i < held.size(); i += 2) {
    put_page(*std::exchange(held[i], nullptr));
  }
  memory_registry registry;
  const std::size_t frames = memory->free_pages();
  {
    const auto pool = buffer_pool::create(
        *memory, {.name = "s", .buffer_bytes = 2048, .count = 300, .registry = &registry});
    ASSERT_TRUE(pool);
    EXPECT_EQ(frames - memory->free_pages(), 150u);
    EXPECT_FALSE(buffer_pool::create(
        *memory, {.name = "t", .buffer_bytes = 8192, .count = 1, .registry = &registry}));
  }
  EXPECT_EQ(memory->free_pages(), frames);
  for (page* p : held) {
    if (p != nullptr) put_page(*p);
  }
}

// Memory that runs out after each possible number of frames: all or nothing.
TEST(BufferPoolSize, NothingIsHalfMadeWithoutMemory) {
  const auto memory = std::move(*arena::create({.bytes = 1u << 20, .huge_pages = false}));
  std::vector<page*> held;
  while (page* p = memory->allocate()) held.push_back(p);
  memory_registry registry;
  const buffer_pool::options opts{.name = "small",
                                  .buffer_bytes = 3000,
                                  .count = 7,
                                  .limit = 20,
                                  .grow_count = 5,
                                  .registry = &registry};
  bool made = false;
  for (std::size_t frames = 0; !made; ++frames) {
    ASSERT_EQ(memory->free_pages(), frames);
    auto pool = buffer_pool::create(*memory, opts);
    made = pool.has_value();
    if (!made) {
      EXPECT_EQ(pool.error(), error_of(ENOMEM));
      EXPECT_EQ(memory->free_pages(), frames);
      EXPECT_TRUE(registry.snapshot().empty());
      put_page(*held.back());
      held.pop_back();
      continue;
    }
    // The same for growing: 5 buffers more need up to 5 frames more.
    std::vector<buffer*> got = take_all(**pool);
    EXPECT_EQ(got.size(), 7u);
    for (std::size_t more = memory->free_pages(); got.size() == 7; ++more) {
      ASSERT_EQ(memory->free_pages(), more);
      EXPECT_FALSE((*pool)->try_allocate());
      EXPECT_EQ((*pool)->total(), 7u);
      EXPECT_EQ(memory->free_pages(), more);
      put_page(*held.back());
      held.pop_back();
      if (buffer* b = (*pool)->try_allocate_raw()) got.push_back(b);
    }
    EXPECT_EQ((*pool)->total(), 12u);
    free_all(**pool, got);
  }
  for (page* p : held) put_page(*p);
  EXPECT_EQ(memory->free_pages(), memory->page_count());
}

// --- growing and shrinking ---

TEST_P(BufferPool, GrowsByBatchesToItsLimitAndBack) {
  const test_pool pool(
      {.name = "test", .count = 10, .limit = 95, .grow_count = 20, .list = GetParam()});
  EXPECT_EQ(pool->total(), 10u);
  std::vector<buffer*> got(11);
  for (buffer*& b : got) b = pool->try_allocate_raw();
  EXPECT_EQ(pool->total(), 30u);
  EXPECT_EQ(pool->statistics().grows, 1u);
  const auto rest = take_all(*pool);
  got.insert(got.end(), rest.begin(), rest.end());
  EXPECT_EQ(got.size(), 95u);
  EXPECT_EQ(pool->total(), 95u);
  EXPECT_EQ(pool->shrink(), 0u);
  free_all(*pool, got);
  EXPECT_EQ(pool->surplus_bytes(), 85u * 2048);
  EXPECT_EQ(pool->shrink(), 85u * 2048);
  EXPECT_EQ(pool->total(), 10u);
  EXPECT_EQ(pool.frames_taken(), 5u);
  EXPECT_EQ(pool->statistics().shrinks, 5u);
  EXPECT_EQ(pool->surplus_bytes(), 0u);
  got = take_all(*pool);
  EXPECT_EQ(got.size(), 95u);
  free_all(*pool, got);
  EXPECT_EQ(pool->statistics().in_use, 0u);
}

TEST(BufferPoolSize, ADynamicPoolHasNothingAtFirst) {
  const test_pool pool({.name = "test", .limit = 50});
  EXPECT_EQ(pool.frames_taken(), 0u);
  buffer_ref b = pool->try_allocate();
  ASSERT_TRUE(b);
  EXPECT_EQ(pool->total(), 32u) << "64 KiB of 2 KiB buffers";
  EXPECT_EQ(pool->shrink(), 0u) << "its only batch is in use";
  b.reset();
  EXPECT_EQ(pool->shrink(), 32u * 2048);
  EXPECT_EQ(pool.frames_taken(), 0u);
}

TEST(BufferPoolSize, ShrinkTakesNoMoreThanItIsAskedFor) {
  const test_pool pool({.name = "test", .limit = 80, .grow_count = 8});
  const auto got = take_all(*pool);
  EXPECT_TRUE(pool->free_bulk_raw(std::span(got).subspan(1)));
  EXPECT_EQ(pool->shrink(20 * 2048), 24u * 2048);
  EXPECT_EQ(pool->total(), 56u);
  EXPECT_EQ(pool->shrink(), 48u * 2048);
  EXPECT_EQ(pool->total(), 8u);
  EXPECT_TRUE(pool->free_raw(*got[0]));
}

TEST(BufferPoolSize, ShrinkersAskForTheSurplus) {
  shrinker_registry shrinkers;
  const test_pool pool(
      {.name = "test", .count = 8, .limit = 80, .grow_count = 8, .shrinkers = &shrinkers});
  free_all(*pool, take_all(*pool));
  ASSERT_EQ(shrinkers.statistics().size(), 1u);
  EXPECT_EQ(shrinkers.statistics()[0].count_bytes, 72u * 2048);
  EXPECT_GE(shrinkers.shrink(1u << 20, shrink_goal::frames), 72u * 2048);
  EXPECT_EQ(pool->total(), 8u);
}

// Any sequence of allocations, frees and shrinks of a pool that grows.
RC_GTEST_PROP(BufferPoolModel, NoBufferIsOutTwiceOrLost, ()) {
  const auto count = *rc::gen::inRange<std::size_t>(0, 20);
  const auto limit = count + *rc::gen::inRange<std::size_t>(1, 60);
  const test_pool pool(
      {.name = "test",
       .buffer_bytes = *rc::gen::inRange<std::size_t>(1, 5000),
       .count = count,
       .limit = limit,
       .grow_count = *rc::gen::inRange<std::size_t>(0, 25),
       .list = *rc::gen::elementOf(std::vector(free_list_kinds.begin(), free_list_kinds.end()))});
  std::vector<buffer*> out;
  for (int step = 0; step < 60; ++step) {
    const auto n = *rc::gen::inRange<std::size_t>(0, 30);
    switch (*rc::gen::inRange(0, 4)) {
      case 0: {
        std::vector<buffer*> got(n);
        const bool all = pool->try_allocate_bulk_raw(got);
        RC_ASSERT(all == (out.size() + n <= limit));
        if (all) out.insert(out.end(), got.begin(), got.end());
        break;
      }
      case 1: {
        buffer* b = pool->try_allocate_raw();
        RC_ASSERT((b == nullptr) == (out.size() == limit));
        if (b != nullptr) out.push_back(b);
        break;
      }
      case 2: {
        std::ranges::shuffle(out, std::minstd_rand(static_cast<unsigned>(step) + 1));
        const std::size_t k = std::min(n, out.size());
        RC_ASSERT(pool->free_bulk_raw(std::span(out).last(k)).has_value());
        out.resize(out.size() - k);
        break;
      }
      default:
        pool->shrink(n * 4096);
    }
    RC_ASSERT(std::set(out.begin(), out.end()).size() == out.size());
    RC_ASSERT(std::ranges::all_of(out, [](buffer* b) { return b->data() != nullptr; }));
    RC_ASSERT(pool->statistics().in_use == out.size());
    RC_ASSERT(pool->total() >= std::max(count, out.size()) && pool->total() <= limit);
  }
  free_all(*pool, out);
  pool->shrink();
  RC_ASSERT(pool->total() == count);
}

// --- CPUs and threads ---

// Each thread puts buffers into the cache of a CPU of its own and sleeps, holding none: all buffers
// are there for the one that is awake.
TEST(BufferPoolThreads, SleepersStrandNoBuffer) {
  const test_pool pool({.name = "test", .count = 64, .magazine_buffers = 16});
  std::atomic<bool> wake{false};
  std::atomic<unsigned> asleep{0};
  std::vector<std::thread> sleepers;
  for (unsigned cpu = 0; cpu < cpu_limit(); ++cpu) {
    sleepers.emplace_back([&, cpu] {
      static_cast<void>(pin_to_cpu(cpu));
      std::vector<buffer*> some(16);
      if (pool->try_allocate_bulk_raw(some)) free_all(*pool, some);
      ++asleep;
      asleep.notify_all();
      wake.wait(false);
    });
  }
  for (unsigned n = asleep; n < cpu_limit(); n = asleep) asleep.wait(n);
  EXPECT_GT(pool->statistics().cached, 0u);
  const auto got = take_all(*pool);
  EXPECT_EQ(got.size(), 64u);
  free_all(*pool, got);
  wake = true;
  wake.notify_all();
  for (auto& t : sleepers) t.join();
}

// More threads than CPUs allocate, share and free, beside one that shrinks the pool.
TEST_P(BufferPool, ManyThreads) {
  const test_pool pool({.name = "test",
                        .count = 40,
                        .limit = 400,
                        .grow_count = 30,
                        .list = GetParam(),
                        .magazine_buffers = 8});
  std::atomic<bool> stop{false};
  std::atomic<int> faults{0};
  std::vector<std::thread> threads;
  for (unsigned me = 1; me <= 4; ++me) {
    threads.emplace_back([&, me] {
      std::minstd_rand random(me);
      std::vector<buffer_ref> held;
      std::vector<buffer_ref> shared;
      while (!stop) {
        if (random() % 2 == 0) {
          if (buffer_ref b = pool->try_allocate()) {
            std::memset(b->data(), static_cast<int>(me), 64);
            if (random() % 4 == 0) shared.push_back(b.share());
            held.push_back(std::move(b));
          }
        } else if (!held.empty()) {
          std::swap(held[random() % held.size()], held.back());
          if (held.back()->data()[random() % 64] != static_cast<std::byte>(me)) ++faults;
          held.pop_back();
        }
        if (held.size() > 150) held.resize(20);
        if (shared.size() > 20) shared.clear();
      }
    });
  }
  threads.emplace_back([&] {
    while (!stop) {
      pool->shrink();
      std::this_thread::sleep_for(std::chrono::microseconds(300));
    }
  });
  std::this_thread::sleep_for(
      std::chrono::milliseconds(std::getenv("FOREBAY_STRESS") != nullptr ? 20'000 : 200));
  stop = true;
  for (auto& t : threads) t.join();
  EXPECT_EQ(faults, 0);
  const auto s = pool->statistics();
  EXPECT_EQ(s.in_use, 0u);
  EXPECT_EQ(s.frees, s.allocations);
  pool->shrink();
  EXPECT_EQ(pool->total(), 40u);
  EXPECT_EQ(pool.frames_taken(), 20u);
}

}  // namespace
}  // namespace forebay
