#include "forebay/ring/pool_await.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "forebay/memory/test_pool.h"
#include "forebay/ring/loop.h"

namespace forebay {
namespace {

task<> take_and_free(buffer_pool* pool, std::vector<int>* order, int me) {
  const auto b = co_await allocate_buffer(*pool);
  if (!b) co_return fail(b.error());
  order->push_back(me);
  co_return result<>{};
}

task<> free_later(buffer_ref b) {
  co_await sleep_for(1'000'000);
  b.reset();
  co_return result<>{};
}

TEST(PoolAwait, ABufferThatIsFreeComesAtOnce) {
  const test_pool pool({.name = "test", .count = 1});
  std::vector<int> order;
  EXPECT_TRUE(sync_wait(take_and_free(pool.pool.get(), &order, 1)));
  EXPECT_EQ(pool->statistics().waits, 0u);
  EXPECT_EQ(pool->statistics().in_use, 0u);
}

TEST(PoolAwait, CoroutinesOfOneThreadTakeTurns) {
  const test_pool pool({.name = "test", .count = 1});
  std::vector<int> order;
  const auto all = [](buffer_pool* p, std::vector<int>* o) -> task<> {
    task_group group;
    buffer_ref b = p->try_allocate();
    for (int me = 0; me < 4; ++me) {
      EXPECT_TRUE(take_and_free(p, o, me).spawn(group));
    }
    EXPECT_EQ(p->statistics().waiting, 4u);
    EXPECT_TRUE(free_later(std::move(b)).spawn(group));
    co_await group.idle();
    co_return result<>{};
  };
  EXPECT_TRUE(sync_wait(all(pool.pool.get(), &order)));
  EXPECT_EQ(order, (std::vector{0, 1, 2, 3}));
  EXPECT_EQ(pool->statistics().in_use, 0u);
}

TEST(PoolAwait, ATimeoutEndsTheWait) {
  const test_pool pool({.name = "test", .count = 1});
  buffer_ref held = pool->try_allocate();
  const auto impatient = [](buffer_pool* p) -> task<> {
    const auto b = co_await allocate_buffer(*p, 2'000'000);
    if (!b) co_return fail(b.error());
    co_return result<>{};
  };
  EXPECT_EQ(sync_wait(impatient(pool.pool.get())).error(), error_of(ETIMEDOUT));
  EXPECT_EQ(pool->statistics().waiting, 0u);
  held.reset();
  EXPECT_TRUE(sync_wait(impatient(pool.pool.get())));
  EXPECT_EQ(pool->statistics().in_use, 0u);
}

// On an event loop, which a thread outside wakes by freeing the buffer.
TEST(PoolAwait, OnALoop) {
  const test_pool pool({.name = "test", .count = 1});
  buffer_ref held = pool->try_allocate();
  auto made = loop::create(8);
  ASSERT_TRUE(made);
  struct start : completion {
    buffer_pool* pool = nullptr;
    loop* on = nullptr;
    task_group group;
    std::vector<int> order;
  } begin;
  begin.pool = pool.pool.get();
  begin.on = made->get();
  begin.run = [](completion& c) noexcept {
    auto& b = static_cast<start&>(c);
    const auto work = [](start* s) -> task<> {
      EXPECT_TRUE(co_await take_and_free(s->pool, &s->order, 1));
      s->on->stop();
      co_return result<>{};
    };
    EXPECT_TRUE(work(&b).spawn(b.group));
  };
  (*made)->post(begin);
  std::thread other([&] {
    while (pool->statistics().waiting == 0) std::this_thread::yield();
    held.reset();
  });
  (*made)->run();
  other.join();
  EXPECT_EQ(begin.order, std::vector{1});
  EXPECT_EQ(pool->statistics().in_use, 0u);
}

// A timeout beyond the end of the clock is none.
TEST(PoolAwait, TheLongestTimeoutDoesNotPassAtOnce) {
  const test_pool pool({.name = "test", .count = 1});
  buffer_ref held = pool->try_allocate();
  std::thread other([&] {
    while (pool->statistics().waiting == 0) std::this_thread::yield();
    held.reset();
  });
  const auto patient = [](buffer_pool* p) -> task<> {
    auto b = co_await allocate_buffer(*p, allocate_buffer::no_timeout - 1);
    if (!b) co_return fail(b.error());
    co_return result<>{};
  };
  EXPECT_TRUE(sync_wait(patient(pool.pool.get())));
  other.join();
}

TEST(PoolAwait, WithoutAnyBufferIsAnError) {
  const test_pool pool({.name = "test", .limit = 4}, 1u << 20);
  std::vector<page*> held;
  while (page* p = pool.memory->allocate()) held.push_back(p);
  std::vector<int> order;
  EXPECT_EQ(sync_wait(take_and_free(pool.pool.get(), &order, 1)).error(), error_of(ENOMEM));
  for (page* p : held) put_page(*p);
}

// Coroutines of several threads, and of one thread several, with and without timeouts, beside a
// plain thread: the wake-ups cross threads and meet timers that expire.
task<> work(buffer_pool* pool, std::atomic<int>* faults, std::atomic<int>* got, int rounds,
            std::uint64_t timeout_ns) {
  for (int i = 0; i < rounds; ++i) {
    auto b = co_await allocate_buffer(*pool, timeout_ns);
    if (!b) {
      if (b.error() != error_of(ETIMEDOUT) || timeout_ns == allocate_buffer::no_timeout) ++*faults;
      continue;
    }
    if ((*b)->holders() != 1) ++*faults;
    ++*got;
    if (i % 4 == 0) co_await sleep_for(20'000);
  }
  co_return result<>{};
}

task<> several(buffer_pool* pool, std::atomic<int>* faults, std::atomic<int>* got) {
  task_group group;
  for (int i = 0; i < 3; ++i) {
    const std::uint64_t timeout = i == 0 ? 30'000 : allocate_buffer::no_timeout;
    if (!work(pool, faults, got, 200, timeout).spawn(group)) ++*faults;
  }
  co_await group.idle();
  co_return result<>{};
}

TEST(PoolAwait, ManyThreads) {
  const test_pool pool({.name = "test", .count = 2});
  std::atomic<int> faults{0};
  std::atomic<int> got{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&] {
      if (!sync_wait(several(pool.pool.get(), &faults, &got))) ++faults;
    });
  }
  threads.emplace_back([&] {
    for (int i = 0; i < 200; ++i) {
      if (!pool->allocate(std::chrono::seconds(60))) ++faults;
      ++got;
    }
  });
  for (auto& t : threads) t.join();
  EXPECT_EQ(faults, 0);
  EXPECT_GE(got, 3 * 400 + 200);
  const auto s = pool->statistics();
  EXPECT_EQ(s.in_use, 0u);
  EXPECT_EQ(s.waiting, 0u);
  EXPECT_EQ(s.allocations, static_cast<std::uint64_t>(got.load()));
}

}  // namespace
}  // namespace forebay
