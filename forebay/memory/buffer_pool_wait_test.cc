// Waiting for a buffer: wake-up, order, timeout, stop.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <random>
#include <stop_token>
#include <thread>
#include <vector>

#include "forebay/memory/test_pool.h"

namespace forebay {
namespace {

using namespace std::chrono_literals;

// Until `n` wait.
void wait_for_waiters(const buffer_pool& pool, std::uint64_t n) {
  while (pool.statistics().waiting != n) std::this_thread::sleep_for(100us);
}

class PoolWait : public testing::TestWithParam<free_list_kind> {};

INSTANTIATE_TEST_SUITE_P(Lists, PoolWait,
                         testing::Values(free_list_kind::cached, free_list_kind::lock_free_stack),
                         [](const auto& kind) {
                           return kind.param == free_list_kind::cached ? "cached" : "stack";
                         });

TEST_P(PoolWait, OfABufferThatIsFreeIsNone) {
  const test_pool pool({.name = "test", .count = 1, .list = GetParam()});
  const auto b = pool->allocate(0ns);
  ASSERT_TRUE(b);
  EXPECT_EQ(pool->statistics().waits, 0u);
}

TEST_P(PoolWait, EndsWithTheTimeout) {
  const test_pool pool({.name = "test", .count = 1, .list = GetParam()});
  buffer_ref held = pool->try_allocate();
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(pool->allocate(20ms).error(), error_of(ETIMEDOUT));
  EXPECT_GE(std::chrono::steady_clock::now() - start, 20ms);
  EXPECT_EQ(pool->allocate(0ns).error(), error_of(ETIMEDOUT));
  EXPECT_EQ(pool->allocate(-1ns).error(), error_of(ETIMEDOUT));
  const auto s = pool->statistics();
  EXPECT_EQ(s.waits, 3u);
  EXPECT_EQ(s.waiting, 0u);
  EXPECT_EQ(s.failures, 0u);
  held.reset();
  EXPECT_TRUE(pool->allocate(0ns));
}

TEST_P(PoolWait, EndsWhenABufferIsFreed) {
  const test_pool pool({.name = "test", .count = 3, .list = GetParam()});
  std::vector<buffer*> held(3);
  ASSERT_TRUE(pool->try_allocate_bulk_raw(held));
  std::thread waiter([&] {
    const auto b = pool->allocate(60s);
    ASSERT_TRUE(b);
    EXPECT_EQ((*b)->holders(), 1u);
  });
  wait_for_waiters(*pool, 1);
  EXPECT_TRUE(pool->free_raw(*held[0]));
  waiter.join();
  EXPECT_TRUE(pool->free_raw(*held[1]));
  EXPECT_TRUE(pool->free_raw(*held[2]));
  const auto s = pool->statistics();
  EXPECT_EQ(s.in_use, 0u);
  EXPECT_EQ(s.allocations, 4u);
  EXPECT_EQ(s.frees, 4u);
}

TEST_P(PoolWait, EndsWhenAStopIsRequested) {
  const test_pool pool({.name = "test", .count = 1, .list = GetParam()});
  const buffer_ref held = pool->try_allocate();
  std::jthread waiter([&](const std::stop_token& stop) {
    EXPECT_EQ(pool->allocate(60s, stop).error(), error_of(ECANCELED));
    EXPECT_EQ(pool->allocate(60s, stop).error(), error_of(ECANCELED)) << "stopped before";
  });
  wait_for_waiters(*pool, 1);
  waiter.request_stop();
  waiter.join();
  EXPECT_EQ(pool->statistics().waiting, 0u);
}

TEST_P(PoolWait, FollowsThePolicy) {
  const test_pool failing({.name = "test", .count = 1, .list = GetParam()});
  const auto one = failing->allocate();
  EXPECT_TRUE(one);
  EXPECT_EQ(failing->allocate().error(), error_of(EAGAIN));
  EXPECT_EQ(failing->statistics().failures, 1u);

  const test_pool waiting(
      {.name = "test", .count = 1, .list = GetParam(), .exhausted = when_exhausted::wait});
  buffer_ref held = waiting->try_allocate();
  std::thread waiter([&] { EXPECT_TRUE(waiting->allocate()); });
  wait_for_waiters(*waiting, 1);
  held.reset();
  waiter.join();
}

TEST_P(PoolWait, GrowsFirst) {
  const test_pool pool(
      {.name = "test", .count = 1, .limit = 3, .grow_count = 1, .list = GetParam()});
  std::vector<buffer_ref> held;
  for (int i = 0; i < 3; ++i) {
    auto b = pool->allocate(60s);
    ASSERT_TRUE(b);
    held.push_back(std::move(*b));
  }
  EXPECT_EQ(pool->statistics().waits, 0u);
  EXPECT_EQ(pool->allocate(1ms).error(), error_of(ETIMEDOUT));
}

// With no buffer at all and no memory for one nobody could end the wait.
TEST(PoolWaitOne, IsNotForWhatCannotCome) {
  const test_pool pool({.name = "test", .limit = 4}, 1u << 20);
  std::vector<page*> held;
  while (page* p = pool.memory->allocate()) held.push_back(p);
  EXPECT_FALSE(pool->try_allocate());
  EXPECT_EQ(pool->allocate(60s).error(), error_of(ENOMEM));
  for (page* p : held) put_page(*p);
  EXPECT_TRUE(pool->allocate(60s));
}

// Memory for more buffers was wanting and is there again: the next one who asks has them made, and
// who waited is served first.
TEST(PoolWaitOne, IsServedByGrowth) {
  const test_pool pool({.name = "test", .limit = 2, .grow_count = 1}, 1u << 20);
  const buffer_ref first = pool->try_allocate();
  ASSERT_TRUE(first);
  std::vector<page*> held;
  while (page* p = pool.memory->allocate()) held.push_back(p);
  std::thread waiter([&] { EXPECT_TRUE(pool->allocate(60s)); });
  wait_for_waiters(*pool, 1);
  for (page* p : held) put_page(*p);
  buffer_ref mine = pool->try_allocate();
  waiter.join();
  if (!mine) mine = pool->try_allocate();
  EXPECT_TRUE(mine);
}

// Those who wait get buffers in the order in which they came, and before anybody who does not wait.
TEST_P(PoolWait, FirstComeFirstServed) {
  constexpr int waiters = 6;
  const test_pool pool({.name = "test", .count = 1, .list = GetParam()});
  buffer* held = pool->try_allocate_raw();
  std::vector<int> order;  // guarded by holding the only buffer
  std::vector<std::thread> threads;
  for (int me = 0; me < waiters; ++me) {
    threads.emplace_back([&, me] {
      const auto b = pool->allocate(60s);
      ASSERT_TRUE(b);
      order.push_back(me);
    });
    wait_for_waiters(*pool, static_cast<std::uint64_t>(me) + 1);
  }
  EXPECT_FALSE(pool->try_allocate());
  EXPECT_TRUE(pool->free_raw(*held));
  for (auto& t : threads) t.join();
  EXPECT_EQ(order, (std::vector{0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(pool->statistics().waits, 6u);
  EXPECT_EQ(pool->statistics().in_use, 0u);
}

// Who gives up in the middle of the queue leaves it to the others.
TEST_P(PoolWait, WhoGivesUpIsPassedOver) {
  const test_pool pool({.name = "test", .count = 1, .list = GetParam()});
  buffer* held = pool->try_allocate_raw();
  std::jthread first([&](const std::stop_token& stop) { EXPECT_FALSE(pool->allocate(60s, stop)); });
  wait_for_waiters(*pool, 1);
  std::thread second([&] { EXPECT_TRUE(pool->allocate(60s)); });
  wait_for_waiters(*pool, 2);
  first.request_stop();
  first.join();
  EXPECT_EQ(pool->statistics().waiting, 1u);
  EXPECT_TRUE(pool->free_raw(*held));
  second.join();
}

TEST_P(PoolWait, ThePoolIsNotDestroyedUnderAWaiter) {
  test_pool pool({.name = "test", .count = 1, .list = GetParam()});
  buffer_wait w([](buffer_wait&) noexcept {});
  buffer_ref held = pool->try_allocate();
  EXPECT_FALSE(pool->start_wait(w));
  held.reset();
  EXPECT_FALSE(pool->cancel_wait(w)) << "granted";
  EXPECT_EQ(buffer_pool::destroy(pool.pool).error(), error_of(EBUSY));
  EXPECT_TRUE(pool->finish_wait(w));
  EXPECT_TRUE(buffer_pool::destroy(pool.pool));
}

// The one who is awake waits, and a buffer lies in the cache of another CPU's sleeper: it is found.
// Then the last buffer is freed by a push that the cache would otherwise have kept.
TEST(PoolWaitOne, SeesEveryFree) {
  const test_pool pool({.name = "test", .count = 2, .magazine_buffers = 64});
  for (int round = 0; round < 200; ++round) {
    std::vector<buffer*> held(2);
    ASSERT_TRUE(pool->try_allocate_bulk_raw(held)) << round;
    std::thread other([&] { EXPECT_TRUE(pool->free_raw(*held[0])); });
    const auto b = pool->allocate(60s);
    ASSERT_TRUE(b);
    other.join();
    EXPECT_TRUE(pool->free_raw(*held[1]));
  }
}

// Many threads on few buffers, some with timeouts, some that do not wait: nobody waits for ever and
// no buffer is with two or lost.
TEST_P(PoolWait, ManyThreadsOnFewBuffers) {
  const test_pool pool({.name = "test", .count = 3, .list = GetParam()});
  std::atomic<bool> stop{false};
  std::atomic<int> faults{0};
  std::vector<std::atomic<int>> owner(3);
  std::atomic<std::uint64_t> got{0};
  std::vector<std::thread> threads;
  for (int me = 1; me <= 6; ++me) {
    threads.emplace_back([&, me] {
      std::minstd_rand random(static_cast<unsigned>(me));
      while (!stop) {
        buffer_ref b;
        if (me == 1) {
          b = pool->try_allocate();
        } else {
          auto r = pool->allocate(me == 2 ? 50us : std::chrono::nanoseconds(60s));
          if (!r && (me != 2 || r.error() != error_of(ETIMEDOUT))) ++faults;
          if (r) b = std::move(*r);
        }
        if (!b) continue;
        ++got;
        if (owner[b->index()].exchange(me) != 0) ++faults;
        if (random() % 8 == 0) std::this_thread::yield();
        if (owner[b->index()].exchange(0) != me) ++faults;
      }
    });
  }
  std::this_thread::sleep_for(
      std::chrono::milliseconds(std::getenv("FOREBAY_STRESS") != nullptr ? 20'000 : 300));
  stop = true;
  for (auto& t : threads) t.join();
  EXPECT_EQ(faults, 0);
  const auto s = pool->statistics();
  EXPECT_EQ(s.in_use, 0u);
  EXPECT_EQ(s.waiting, 0u);
  EXPECT_EQ(s.allocations, got);
}

// The last free buffer is not given back to the arena while somebody waits for it: he would wait
// for ever, since nobody else asks.
TEST_P(PoolWait, ShrinkingTakesNothingFromWhoWaits) {
  const test_pool pool({.name = "test", .limit = 1, .list = GetParam()});
  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> asked{0};
  std::atomic<std::uint64_t> served{0};
  std::atomic<int> faults{0};
  std::thread waiter([&] {
    while (!stop) {
      if (asked == served) {
        std::this_thread::yield();
        continue;
      }
      if (!pool->allocate(60s)) ++faults;
      ++served;
    }
  });
  std::thread shrinker([&] {
    while (!stop) pool->shrink();
  });
  const auto length =
      std::chrono::milliseconds(std::getenv("FOREBAY_STRESS") != nullptr ? 20'000 : 300);
  const auto end = std::chrono::steady_clock::now() + length;
  while (std::chrono::steady_clock::now() < end && faults == 0) {
    auto mine = pool->allocate(60s);
    if (!mine) ++faults;
    ++asked;
    if (asked % 2 == 0) std::this_thread::yield();
    if (mine) mine->reset();
    while (served != asked) std::this_thread::yield();
  }
  stop = true;
  waiter.join();
  shrinker.join();
  EXPECT_EQ(faults, 0);
  EXPECT_GT(served, 0u);
  const auto s = pool->statistics();
  EXPECT_EQ(s.in_use, 0u);
  EXPECT_EQ(s.waiting, 0u);
  EXPECT_EQ(s.failures, 0u) << "there was memory all the time";
}

}  // namespace
}  // namespace forebay
