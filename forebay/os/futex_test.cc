#include "forebay/os/futex.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "forebay/os/clock.h"
#include "forebay/os/mutex.h"

namespace forebay {
namespace {

TEST(Futex, ReturnsAtOnceIfTheWordDiffers) {
  std::atomic<std::uint32_t> word{1};
  futex_wait(word, 2);
  EXPECT_EQ(word.load(), 1u);
}

TEST(Futex, ATimeoutEndsTheWait) {
  std::atomic<std::uint32_t> word{0};
  const std::uint64_t start = monotonic_clock::now_ns();
  // A signal may end a wait early, so the time is what counts.
  while (monotonic_clock::now_ns() - start < 3'000'000) futex_wait(word, 0, 3'000'000);
  EXPECT_LT(monotonic_clock::now_ns() - start, 30'000'000'000u);
  futex_wait(word, 0, 0);  // not at all
}

TEST(Futex, AWakeEndsAWaitWithoutLimit) {
  std::atomic<std::uint32_t> word{0};
  std::thread waiter([&] {
    while (word.load() == 0) futex_wait(word, 0);
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(2));
  word = 1;
  futex_wake(word);
  waiter.join();
}

TEST(Futex, WakesAsManyAsAskedFor) {
  std::atomic<std::uint32_t> word{0};
  std::vector<std::thread> waiters;
  for (int i = 0; i < 3; ++i) {
    waiters.emplace_back([&] {
      while (word.load() == 0) futex_wait(word, 0);
    });
  }
  word = 1;
  futex_wake(word, 3);
  for (std::thread& w : waiters) w.join();
}

// Every hand-over goes through the futex: a lost wake would hang here.
TEST(FutexStress, PingPongLosesNoWake) {
  std::atomic<std::uint32_t> word{0};
  constexpr std::uint32_t rounds = 2'000;
  const auto play = [&](std::uint32_t parity) {
    for (std::uint32_t i = parity; i < rounds; i += 2) {
      for (std::uint32_t seen = word.load(); seen != i; seen = word.load()) futex_wait(word, seen);
      word = i + 1;
      futex_wake(word);
    }
  };
  std::thread odd(play, 1u);
  play(0);
  odd.join();
  EXPECT_EQ(word.load(), rounds);
}

TEST(Clock, NeverGoesBack) {
  std::uint64_t last = monotonic_clock::now_ns();
  for (int i = 0; i < 1'000; ++i) {
    const std::uint64_t now = monotonic_clock::now_ns();
    ASSERT_GE(now, last);
    last = now;
  }
}

TEST(Mutex, ExcludesOthers) {
  mutex m;
  int shared = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 5'000; ++i) {
        const scoped_lock hold(m);
        ++shared;
      }
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(shared, 15'000);
}

}  // namespace
}  // namespace forebay
