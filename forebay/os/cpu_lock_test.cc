#include "forebay/os/cpu_lock.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <thread>
#include <vector>

namespace forebay {
namespace {

// Not atomic: the lock is all that keeps its two halves equal.
struct pair_of_counts {
  std::uint64_t first = 0;
  std::uint64_t second = 0;
};

class cpu_lock : public testing::TestWithParam<bool> {};

TEST_P(cpu_lock, is_only_tried) {
  cpu_locked<int> slots({.restartable_sequences = GetParam()});
  const auto held = slots.this_cpu();
  ASSERT_TRUE(held);
  *held = 7;
  // Pinned or not: in the fall-back it is the thread's slot, and with sequences the CPU's. A thread
  // that was moved gets another one.
  for (int i = 0; i < 1000; ++i) {
    const auto again = slots.this_cpu();
    EXPECT_TRUE(!again || &*again != &*held);
  }
}

TEST_P(cpu_lock, threads_and_a_visitor_exclude_each_other) {
  cpu_locked<pair_of_counts> slots({.restartable_sequences = GetParam()});
  const std::uint64_t rounds = std::getenv("FOREBAY_STRESS") != nullptr ? 5'000'000 : 20'000;
  std::atomic<std::uint64_t> done{0};
  std::atomic<unsigned> running{3};
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&] {
      std::uint64_t mine = 0;
      while (mine < rounds) {
        if (const auto held = slots.this_cpu()) {
          ASSERT_EQ(held->first, held->second);
          ++held->first;
          ++held->second;
          ++mine;
        }
      }
      done += mine;
      --running;
    });
  }
  std::uint64_t taken = 0;
  const auto visit = [&] {
    slots.for_each_locked([&](pair_of_counts& c) {
      EXPECT_EQ(c.first, c.second);
      taken += c.first;
      c = {};
    });
  };
  while (running != 0) {
    visit();
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
  for (std::thread& t : threads) t.join();
  visit();
  EXPECT_EQ(taken, done.load());
  EXPECT_EQ(taken, 3 * rounds);
}

INSTANTIATE_TEST_SUITE_P(sequences, cpu_lock, testing::Bool());

TEST(cpu_lock_slots, lie_apart) {
  cpu_locked<char> slots;
  EXPECT_GE(slots.slot_count(), 1u);
  const char* before = nullptr;
  slots.for_each([&](const char& c) {
    EXPECT_TRUE(before == nullptr || &c - before >= std::ptrdiff_t{no_sharing_bytes});
    before = &c;
  });
}

}  // namespace
}  // namespace forebay
