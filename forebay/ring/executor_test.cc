#include "forebay/ring/executor.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "forebay/os/clock.h"

namespace forebay {
namespace {

// An executor that is turned by hand and counts how often it was woken.
class hand_executor final : public executor {
 public:
  using executor::run_ready;
  using executor::until_next_timer_ns;

  // Calls f with this as the thread's executor.
  template <typename F>
  void inside(F f) {
    const scope in(*this);
    f();
  }

  std::atomic<int> wakes{0};

 private:
  void wake() noexcept override { ++wakes; }
};

struct call : completion {
  explicit call(std::function<void()> f) : action(std::move(f)) {
    run = [](completion& c) noexcept { static_cast<call&>(c).action(); };
  }
  std::function<void()> action;
};

// Calls that write their number down.
class recorder {
 public:
  call& add(int number) {
    return calls_.emplace_back([this, number] { ran.push_back(number); });
  }
  std::vector<int> ran;

 private:
  std::deque<call> calls_;
};

TEST(Executor, RunsReadyThenPostedThenDeferred) {
  hand_executor e;
  recorder r;
  e.defer(r.add(5));
  e.ready(r.add(1));
  e.post(r.add(3));  // this thread is not inside: a post from outside
  e.defer(r.add(6));
  e.ready(r.add(2));
  e.post(r.add(4));
  e.run_ready();
  EXPECT_EQ(r.ran, (std::vector{1, 2, 3, 4, 5, 6}));
}

TEST(Executor, WhatACompletionMakesReadyComesBeforeTheDeferred) {
  hand_executor e;
  recorder r;
  call second([&] { r.ran.push_back(2); });
  call first([&] {
    r.ran.push_back(1);
    e.ready(second);
  });
  call deferred([&] {
    r.ran.push_back(3);
    e.ready(r.add(4));
    e.defer(r.add(5));
  });
  e.defer(deferred);
  e.ready(first);
  e.run_ready();
  EXPECT_EQ(r.ran, (std::vector{1, 2, 3, 4, 5}));
}

TEST(Executor, ADeferredCompletionGathersWhatIsReadyBeforeIt) {
  hand_executor e;
  int gathered = 0;
  int batch = 0;
  call flush([&] { batch = gathered; });
  std::deque<call> work;
  for (int i = 0; i < 100; ++i) work.emplace_back([&] { ++gathered; });
  e.defer(flush);
  for (call& c : work) e.ready(c);
  e.run_ready();
  EXPECT_EQ(batch, 100);
}

// Work that keeps the executor busy for ever holds up neither what others post nor what was
// deferred.
TEST(Executor, PostsAndDeferredOnesAreNotStarvedByWhatIsAlwaysReady) {
  hand_executor e;
  call again([&] { e.ready(again); });
  call also([&] { e.ready(also); });
  bool posted = false;
  bool deferred = false;
  call post([&] { posted = true; });
  call defer([&] { deferred = true; });
  e.ready(again);
  e.ready(also);
  e.run_ready(4);
  e.post(post);
  e.run_ready(4);
  EXPECT_TRUE(posted);
  e.defer(defer);
  e.run_ready(4);
  EXPECT_FALSE(deferred) << "it waits for a batch to gather";
  for (int turn = 0; turn < 20; ++turn) e.run_ready(4);
  EXPECT_TRUE(deferred);
}

TEST(Executor, ATurnEndsWhenItIsToldTo) {
  hand_executor e;
  recorder r;
  call last([&] {
    r.ran.push_back(2);
    e.end_turn();
  });
  e.ready(r.add(1));
  e.ready(last);
  e.ready(r.add(4));
  e.defer(r.add(3));
  e.run_ready();
  EXPECT_EQ(r.ran, (std::vector{1, 2, 3}));
  e.post(r.add(5));
  e.run_ready();
  EXPECT_EQ(r.ran, (std::vector{1, 2, 3, 4, 5})) << "and only that one";
}

TEST(Executor, AChainOfReadyCompletionsNeedsNoStack) {
  hand_executor e;
  int left = 100'000;
  call again([&] {
    if (--left > 0) e.ready(again);
  });
  e.ready(again);
  while (left > 0) e.run_ready();
  EXPECT_EQ(left, 0);
}

TEST(Executor, WakesOncePerBatchOfPostsAndNeverForItsOwn) {
  hand_executor e;
  recorder r;
  e.post(r.add(1));
  e.post(r.add(2));
  EXPECT_EQ(e.wakes, 1);
  e.run_ready();
  e.post(r.add(3));
  EXPECT_EQ(e.wakes, 2);
  e.inside([&] { e.post(r.add(4)); });
  EXPECT_EQ(e.wakes, 2);
  e.run_ready();
  EXPECT_EQ(r.ran, (std::vector{1, 2, 4, 3})) << "its own post needs no hand-over";
}

TEST(Executor, CurrentIsTheInnermostScopeOfThisThread) {
  hand_executor outer;
  hand_executor inner;
  EXPECT_EQ(executor::current(), nullptr);
  outer.inside([&] {
    EXPECT_EQ(executor::current(), &outer);
    inner.inside([&] { EXPECT_EQ(executor::current(), &inner); });
    EXPECT_EQ(executor::current(), &outer);
    std::thread([] { EXPECT_EQ(executor::current(), nullptr); }).join();
  });
  EXPECT_EQ(executor::current(), nullptr);
  EXPECT_EQ(outer.as_loop(), nullptr);
}

// Timers that are all due run by deadline, and in the order of starting among equals; cancelled
// ones do not run.
RC_GTEST_PROP(ExecutorTimers, RunInOrderOfTheirDeadlines, ()) {
  const auto deadlines =
      *rc::gen::container<std::vector<std::uint64_t>>(rc::gen::inRange<std::uint64_t>(0, 12));
  hand_executor e;
  recorder r;
  std::deque<timer> timers(deadlines.size());
  std::vector<int> expected;
  for (std::size_t i = 0; i < deadlines.size(); ++i) {
    timers[i].deadline_ns = deadlines[i];
    timers[i].done = &r.add(static_cast<int>(i));
    e.start(timers[i]);
  }
  for (std::size_t i = 0; i < deadlines.size(); ++i) {
    if (*rc::gen::inRange(0, 4) == 0) {
      RC_ASSERT(e.cancel(timers[i]));
      RC_ASSERT(!e.cancel(timers[i]));
    } else {
      expected.push_back(static_cast<int>(i));
    }
  }
  // Not std::stable_sort, of which Clang 19 says that it uses a deprecated function.
  std::sort(expected.begin(), expected.end(), [&](int a, int b) {
    const auto key = [&](int i) { return std::pair(deadlines[static_cast<std::size_t>(i)], i); };
    return key(a) < key(b);
  });
  e.run_ready();
  RC_ASSERT(r.ran == expected);
  for (timer& t : timers) RC_ASSERT(!e.cancel(t));
}

TEST(ExecutorTimers, AreNeverEarlyAndSayHowLongIsLeft) {
  constexpr std::uint64_t millisecond = 1'000'000;
  hand_executor e;
  recorder r;
  EXPECT_EQ(e.until_next_timer_ns(), UINT64_MAX);
  timer later;
  timer sooner;
  const std::uint64_t start = monotonic_clock::now_ns();
  later.deadline_ns = start + 3'600'000 * millisecond;
  later.done = &r.add(2);
  sooner.deadline_ns = start + 2 * millisecond;
  sooner.done = &r.add(1);
  e.start(later);
  e.start(sooner);
  EXPECT_LE(e.until_next_timer_ns(), 2 * millisecond);
  while (r.ran.empty()) e.run_ready();
  EXPECT_GE(monotonic_clock::now_ns(), sooner.deadline_ns);
  EXPECT_EQ(r.ran, std::vector{1});
  EXPECT_FALSE(e.cancel(sooner));
  EXPECT_GT(e.until_next_timer_ns(), 3'000'000 * millisecond);
  EXPECT_TRUE(e.cancel(later));
  EXPECT_EQ(e.until_next_timer_ns(), UINT64_MAX);
  sooner.deadline_ns = start;  // a record may be started again
  e.start(sooner);
  EXPECT_EQ(e.until_next_timer_ns(), 0u);
  EXPECT_TRUE(e.cancel(sooner));
}

TEST(ExecutorTimers, AreNotStarvedByACompletionThatIsAlwaysReady) {
  hand_executor e;
  bool fired = false;
  call stop([&] { fired = true; });
  call again([&] {
    if (!fired) e.ready(again);
  });
  timer t;
  t.deadline_ns = monotonic_clock::now_ns() + 100'000;
  t.done = &stop;
  e.start(t);
  e.ready(again);
  while (!fired) e.run_ready();
  e.run_ready();
  EXPECT_FALSE(e.cancel(t));
}

TEST(BlockingExecutor, SleepsUntilAPostOrATimer) {
  blocking_executor e;
  bool finished = false;
  call finish([&] { finished = true; });
  std::thread poster([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    e.post(finish);
  });
  e.run_until(finished);
  poster.join();
  EXPECT_TRUE(finished);

  bool again = false;
  call expire([&] { again = true; });
  timer t;
  t.deadline_ns = monotonic_clock::now_ns() + 2'000'000;
  t.done = &expire;
  e.start(t);
  e.run_until(again);
  EXPECT_GE(monotonic_clock::now_ns(), t.deadline_ns);
}

TEST(BlockingExecutor, RunsWhatIsReadyWithItsEndBeforeItReturns) {
  blocking_executor e;
  bool finished = false;
  int ran = 0;
  std::deque<call> others;
  call finish([&] { finished = true; });
  e.ready(finish);
  for (int i = 0; i < 5'000; ++i) e.ready(others.emplace_back([&] { ++ran; }));
  e.run_until(finished);
  EXPECT_EQ(ran, 5'000);
}

// Who posts the completion that ends run_until() may still be inside post() when it returns: the
// executor, which is about to go, has to wait for that.
TEST(BlockingExecutorStress, OutlivesThePostThatEndsIt) {
  struct request {
    executor* home = nullptr;
    completion* done = nullptr;
  };
  std::atomic<request*> box{nullptr};
  std::atomic<bool> stop{false};
  std::thread poster([&] {
    while (!stop.load()) {
      request* const r = box.exchange(nullptr);
      if (r != nullptr) {
        r->home->post(*r->done);
      } else {
        std::this_thread::yield();
      }
    }
  });
  for (int i = 0; i < 500; ++i) {
    blocking_executor e;
    bool finished = false;
    call finish([&] { finished = true; });
    request r{&e, &finish};
    // Keeps the executor awake and looking, so that it takes the post as soon as it is there.
    call look([&] {
      std::this_thread::yield();
      if (!finished) e.defer(look);
    });
    e.defer(look);
    box = &r;
    e.run_until(finished);
  }
  stop = true;
  poster.join();
}

TEST(BlockingExecutorStress, ManyThreadsPostAndEachKeepsItsOrder) {
  constexpr int posters = 3;
  constexpr int per_poster = 3'000;
  blocking_executor e;
  bool finished = false;
  std::vector<int> next(posters, 0);
  int out_of_order = 0;
  int ran = 0;
  std::vector<std::deque<call>> calls(posters);
  for (int p = 0; p < posters; ++p) {
    for (int n = 0; n < per_poster; ++n) {
      calls[static_cast<std::size_t>(p)].emplace_back([&, p, n] {
        if (next[static_cast<std::size_t>(p)]++ != n) ++out_of_order;
        finished = ++ran == posters * per_poster;
      });
    }
  }
  std::vector<std::thread> threads;
  for (auto& mine : calls) {
    threads.emplace_back([&e, &mine] {
      for (std::size_t i = 0; i < mine.size(); ++i) {
        e.post(mine[i]);
        if (i % 256 == 0) std::this_thread::sleep_for(std::chrono::microseconds(50));
      }
    });
  }
  e.run_until(finished);
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(ran, posters * per_poster);
  EXPECT_EQ(out_of_order, 0);
}

}  // namespace
}  // namespace forebay
