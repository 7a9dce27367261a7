#include "forebay/os/cpu.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>

namespace forebay {
namespace {

TEST(Cpu, AThreadStaysWhereItIsPinned) {
  const std::vector<unsigned> cpus = allowed_cpus();
  ASSERT_FALSE(cpus.empty());
  EXPECT_TRUE(std::ranges::is_sorted(cpus));
  EXPECT_LT(cpus.back(), cpu_limit());
  std::thread([&] {
    for (const unsigned cpu : cpus) {
      ASSERT_TRUE(pin_to_cpu(cpu));
      EXPECT_EQ(current_cpu(), cpu);
      EXPECT_EQ(allowed_cpus(), std::vector{cpu});
    }
    EXPECT_EQ(pin_to_cpu(1'000'000).error(), fail(EINVAL).error());
    EXPECT_EQ(pin_to_cpu(1023).error(), fail(EINVAL).error());  // no machine here has so many
    EXPECT_EQ(allowed_cpus(), std::vector{cpus.back()});
  }).join();
}

// Two threads on one CPU take it from each other. Each goes on until both have lost it: otherwise
// the first may have lost it to somebody else, and leave the other one alone.
TEST(Cpu, ALostCpuIsCounted) {
  const unsigned cpu = allowed_cpus().front();
  std::atomic<unsigned> have_lost_it{0};
  const auto spin = [cpu, &have_lost_it] {
    ASSERT_TRUE(pin_to_cpu(cpu));
    const std::uint64_t before = preemptions_of_thread();
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    bool counted = false;
    while ((!counted || have_lost_it < 2) && std::chrono::steady_clock::now() < end) {
      if (counted || preemptions_of_thread() == before) continue;
      counted = true;
      ++have_lost_it;
    }
    EXPECT_TRUE(counted);
  };
  std::thread one(spin);
  std::thread other(spin);
  one.join();
  other.join();
}

}  // namespace
}  // namespace forebay
