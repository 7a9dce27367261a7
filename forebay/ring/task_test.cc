#include "forebay/ring/task.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "forebay/base/sanitizer.h"

namespace {

// While set, nothrow allocations of this thread, which coroutine frames are, fail.
[[maybe_unused]] thread_local bool fail_allocations = false;

}  // namespace

// The thread sanitizer brings an operator of its own, which cannot be replaced.
#if !FOREBAY_TSAN
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  return fail_allocations ? nullptr : ::operator new(bytes);
}
#endif

namespace forebay {
namespace {

task<int> give(int value) { co_return value; }

task<> give_nothing() { co_return result<>{}; }

task<int> refuse(errc why) { co_return fail(why); }

task<int> increase(int value) {
  const auto r = co_await give(value);
  if (!r) co_return fail(r.error());
  co_return *r + 1;
}

TEST(Task, ReturnsItsValueThroughAChain) {
  EXPECT_EQ(sync_wait(give(4)).value(), 4);
  EXPECT_EQ(sync_wait(increase(4)).value(), 5);
  EXPECT_TRUE(sync_wait(give_nothing()).has_value());
}

TEST(Task, IsLazy) {
  bool started = false;
  const auto work = [&]() -> task<> {
    started = true;
    co_return result<>{};
  };
  {
    const task<> never = work();
  }
  EXPECT_FALSE(started) << "destroyed before it started";
  task<> later = work();
  EXPECT_FALSE(started);
  EXPECT_TRUE(sync_wait(std::move(later)));
  EXPECT_TRUE(started);
}

TEST(Task, ErrorsPropagateAsValues) {
  const auto outer = []() -> task<std::string> {
    const auto r = co_await refuse(errc::protocol);
    if (!r) co_return fail(r.error());
    co_return std::string("not reached");
  };
  const auto r = sync_wait(outer());
  ASSERT_FALSE(r);
  EXPECT_EQ(r.error(), errc::protocol);
}

TEST(Task, ResultsMayBeMoveOnly) {
  const auto make = []() -> task<std::unique_ptr<int>> { co_return std::make_unique<int>(7); };
  const auto pass = [&]() -> task<std::unique_ptr<int>> {
    auto r = co_await make();
    co_return std::move(*r);
  };
  const auto r = sync_wait(pass());
  ASSERT_TRUE(r);
  EXPECT_EQ(**r, 7);
}

TEST(Task, ArgumentsAndLocalsDieWithTheFrame) {
  const auto shared = std::make_shared<int>(1);
  const auto work = [](std::shared_ptr<int> p) -> task<int> {
    const std::shared_ptr<int> copy = p;
    co_return static_cast<int>(copy.use_count());
  };
  EXPECT_EQ(sync_wait(work(shared)).value(), 3);
  EXPECT_EQ(shared.use_count(), 1);
  {
    const task<int> never = work(shared);
    EXPECT_EQ(shared.use_count(), 2);
  }
  EXPECT_EQ(shared.use_count(), 1);
}

TEST(Task, MovingGivesTheWorkAway) {
  task<int> a = give(1);
  task<int> b = std::move(a);
  task<int> c = give(2);
  c = std::move(b);
  EXPECT_EQ(sync_wait(std::move(c)).value(), 1);
}

const char* stack_here() { return static_cast<const char*>(__builtin_frame_address(0)); }

std::size_t distance(const char* a, const char* b) {
  return static_cast<std::size_t>(a < b ? b - a : a - b);
}

constexpr std::size_t small_stack_bytes = 16 * 1024;

// The compilers turn a transfer from coroutine to coroutine into a jump only when they optimize.
#ifdef __OPTIMIZE__
constexpr int depth = 100'000;
#else
constexpr int depth = 100;
#endif

TEST(Task, ALoopOfAwaitsNeedsNoStack) {
  const auto work = []() -> task<int> {
    const char* const top = stack_here();
    int sum = 0;
    std::size_t deepest = 0;
    for (int i = 0; i < depth; ++i) {
      sum += *co_await give(1);
      deepest = std::max(deepest, distance(top, stack_here()));
    }
#ifdef __OPTIMIZE__
    EXPECT_LT(deepest, small_stack_bytes);
#endif
    co_return sum;
  };
  EXPECT_EQ(sync_wait(work()).value(), depth);
}

struct descent {
  const char* top = nullptr;
  std::size_t deepest = 0;

  task<int> to(int levels) {
    deepest = std::max(deepest, distance(top, stack_here()));
    if (levels == 0) co_return 0;
    const auto r = co_await to(levels - 1);
    deepest = std::max(deepest, distance(top, stack_here()));
    co_return *r + 1;
  }
};

TEST(Task, DeepNestingNeedsNoStackEitherWay) {
  descent d{.top = stack_here()};
  EXPECT_EQ(sync_wait(d.to(depth)).value(), depth);
#ifdef __OPTIMIZE__
  EXPECT_LT(d.deepest, small_stack_bytes);
#endif
}

#if !FOREBAY_TSAN
TEST(Task, WithoutMemoryForAFrameAwaitingGivesEnomem) {
  int reached = 0;
  const auto work = [&]() -> task<int> {
    fail_allocations = true;
    const auto r = co_await give(1);
    fail_allocations = false;
    ++reached;
    if (!r) co_return fail(r.error());
    co_return *r;
  };
  const auto r = sync_wait(work());
  ASSERT_FALSE(r);
  EXPECT_EQ(r.error(), std::errc::not_enough_memory);
  EXPECT_EQ(reached, 1);

  fail_allocations = true;
  const auto direct = sync_wait(give(1));
  fail_allocations = false;
  ASSERT_FALSE(direct);
  EXPECT_EQ(direct.error(), std::errc::not_enough_memory);
}

TEST(Task, WithoutMemoryForAFrameSpawningSaysSo) {
  task_group group;
  fail_allocations = true;
  const bool spawned = give(1).spawn(group);
  fail_allocations = false;
  EXPECT_FALSE(spawned);
  EXPECT_EQ(group.running(), 0u);
}
#endif

// Awaiting this gives the completion to a thread of its own, which posts it back.
auto from_another_thread(std::int32_t status, std::vector<std::thread>& threads) {
  return await_completion([status, &threads](completion& c) noexcept {
    executor* const home = executor::current();
    threads.emplace_back([&c, home, status] {
      c.status = status;
      home->post(c);
    });
  });
}

TEST(SyncWait, WaitsForAnotherThreadsPost) {
  std::vector<std::thread> threads;
  const auto work = [&]() -> task<int> {
    int sum = 0;
    for (int i = 0; i < 50; ++i) sum += co_await from_another_thread(i, threads);
    co_return sum;
  };
  EXPECT_EQ(sync_wait(work()).value(), 49 * 50 / 2);
  for (std::thread& t : threads) t.join();
}

TEST(SyncWait, ResumesOnTheWaitingThread) {
  std::vector<std::thread> threads;
  const auto work = [&]() -> task<> {
    const auto before = std::this_thread::get_id();
    co_await from_another_thread(0, threads);
    EXPECT_EQ(std::this_thread::get_id(), before);
    EXPECT_NE(executor::current(), nullptr);
    co_return result<>{};
  };
  EXPECT_TRUE(sync_wait(work()));
  EXPECT_EQ(executor::current(), nullptr);
  for (std::thread& t : threads) t.join();
}

TEST(SyncWait, MayNestOnAPlainThread) {
  const auto outer = []() -> task<int> { co_return *sync_wait(increase(1)) * 10; };
  EXPECT_EQ(sync_wait(outer()).value(), 20);
}

TEST(SleepFor, SleepsAtLeastThatLong) {
  const auto work = []() -> task<> {
    const std::uint64_t start = monotonic_clock::now_ns();
    co_await sleep_for(2'000'000);
    EXPECT_GE(monotonic_clock::now_ns() - start, 2'000'000u);
    co_return result<>{};
  };
  EXPECT_TRUE(sync_wait(work()));
}

TEST(TaskGroup, IdleWaitsForTheLastMember) {
  std::vector<int> order;
  const auto member = [&](int number, std::uint64_t ns) -> task<> {
    co_await sleep_for(ns);
    order.push_back(number);
    co_return fail(errc::corrupt);  // a spawned task's result is dropped
  };
  const auto work = [&]() -> task<> {
    task_group group;
    co_await group.idle();  // nobody runs: at once
    EXPECT_TRUE(member(3, 3'000'000).spawn(group));
    EXPECT_TRUE(member(1, 1'000).spawn(group));
    EXPECT_TRUE(member(2, 1'500'000).spawn(group));
    EXPECT_EQ(group.running(), 3u);
    co_await group.idle();
    EXPECT_EQ(group.running(), 0u);
    EXPECT_EQ(order, (std::vector{1, 2, 3}));
    EXPECT_TRUE(give_nothing().spawn(group));  // ends before spawn returns
    EXPECT_EQ(group.running(), 0u);
    co_await group.idle();
    co_return result<>{};
  };
  EXPECT_TRUE(sync_wait(work()));
}

TEST(TaskGroup, ManyMembersEndInAnyOrder) {
  int ended = 0;
  const auto member = [&](int n) -> task<> {
    for (int i = 0; i < n % 5; ++i) co_await sleep_for(static_cast<std::uint64_t>(n % 7) * 10'000);
    ++ended;
    co_return result<>{};
  };
  const auto work = [&]() -> task<> {
    task_group group;
    for (int n = 0; n < 500; ++n) EXPECT_TRUE(member(n).spawn(group));
    co_await group.idle();
    co_return result<>{};
  };
  EXPECT_TRUE(sync_wait(work()));
  EXPECT_EQ(ended, 500);
}

}  // namespace
}  // namespace forebay
