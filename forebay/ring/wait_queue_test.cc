#include "forebay/ring/wait_queue.h"

#include <gtest/gtest.h>

#include <atomic>
#include <barrier>
#include <thread>
#include <vector>

#include "forebay/ring/task.h"

namespace forebay {
namespace {

TEST(WaitQueue, DoesNotWaitForWhatHolds) {
  wait_queue q;
  int asked = 0;
  const auto work = [&]() -> task<> {
    co_await q.wait_unless([&] { return ++asked > 0; });
    co_return result<>{};
  };
  EXPECT_TRUE(sync_wait(work()));
  EXPECT_EQ(asked, 1);
}

TEST(WaitQueue, AWakeFromAnotherThreadResumesOnTheWaitersOwn) {
  wait_queue q;
  std::atomic<bool> open{false};
  std::thread opener([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
    open = true;
    q.wake_all();
  });
  const auto work = [&]() -> task<> {
    const auto self = std::this_thread::get_id();
    while (!open) co_await q.wait_unless([&] { return open.load(); });
    EXPECT_EQ(std::this_thread::get_id(), self);
    co_return result<>{};
  };
  EXPECT_TRUE(sync_wait(work()));
  opener.join();
}

TEST(WaitQueue, ATimeoutEndsTheWait) {
  wait_queue q;
  const auto work = [&]() -> task<> {
    const std::uint64_t start = monotonic_clock::now_ns();
    co_await q.wait_unless([] { return false; }, 2'000'000);
    EXPECT_GE(monotonic_clock::now_ns() - start, 2'000'000u);
    co_await q.wait_unless([] { return false; }, 0);
    co_return result<>{};
  };
  EXPECT_TRUE(sync_wait(work()));
  q.wake_all();  // nobody is left on it
}

TEST(WaitQueue, WakesEveryWaiterOfOneThread) {
  wait_queue q;
  bool open = false;
  int passed = 0;
  const auto waiter = [&]() -> task<> {
    while (!open) co_await q.wait_unless([&] { return open; }, 3'600'000'000'000);
    ++passed;
    co_return result<>{};
  };
  const auto work = [&]() -> task<> {
    task_group group;
    for (int i = 0; i < 100; ++i) EXPECT_TRUE(waiter().spawn(group));
    EXPECT_EQ(passed, 0);
    open = true;
    q.wake_all();
    co_await group.idle();
    co_return result<>{};
  };
  EXPECT_TRUE(sync_wait(work()));
  EXPECT_EQ(passed, 100);
}

// Tokens go round between threads: a lost wake-up hangs here. Every second waiter has a timeout of
// the length that races with the wakes.
TEST(WaitQueueStress, NoWakeIsLostBesideTimeouts) {
  constexpr int threads = 3;
  constexpr int rounds = 1'500;
  wait_queue q;
  std::atomic<int> tokens{0};
  std::atomic<int> passed{0};
  std::atomic<int> inside{0};
  std::atomic<int> crowded{0};
  std::atomic<int> waits{0};
  std::barrier<> start(threads);
  const auto take = [&] {
    int seen = tokens.load();
    while (seen > 0) {
      if (tokens.compare_exchange_weak(seen, seen - 1)) return true;
    }
    return false;
  };
  const auto work = [&](int number) -> task<> {
    for (int i = 0; i < rounds; ++i) {
      while (!take()) {
        const bool timed = (number + i) % 2 == 0;
        ++waits;
        co_await q.wait_unless([&] { return tokens.load() > 0; },
                               timed ? 20'000 : wait_queue::no_timeout);
      }
      if (inside.fetch_add(1) != 0) ++crowded;
      if (i % 4 == 0) std::this_thread::yield();  // so that the others come and wait
      ++passed;
      inside.fetch_sub(1);
      tokens.fetch_add(1);
      q.wake_all();
    }
    co_return result<>{};
  };
  std::vector<std::thread> workers;
  for (int t = 0; t < threads; ++t) {
    workers.emplace_back([&, t] {
      start.arrive_and_wait();
      EXPECT_TRUE(sync_wait(work(t)));
    });
  }
  // The token comes when all of them wait, so that somebody has for certain.
  while (waits.load() < threads) std::this_thread::yield();
  tokens = 1;
  q.wake_all();
  for (std::thread& w : workers) w.join();
  EXPECT_EQ(passed.load(), threads * rounds);
  EXPECT_EQ(crowded.load(), 0);
  EXPECT_EQ(tokens.load(), 1);
}

}  // namespace
}  // namespace forebay
