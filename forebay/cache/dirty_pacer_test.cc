// One thread: not in the thread sanitizer's tree.

#include "forebay/cache/dirty_pacer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace forebay {
namespace {

constexpr std::uint32_t background = 1000;
constexpr std::uint32_t limit = 4000;
constexpr std::uint32_t free_run = (background + limit) / 2;

// A device that writes `pace` pages a second in batches, and writers that would dirty a page each
// ten microseconds, on a clock of its own.
struct simulation {
  dirty_pacer pacer;
  std::uint64_t now_ns = 1'000'000'000;
  std::uint32_t dirty = 0;
  std::vector<std::uint64_t> ready;  // when each writer may go on
  std::uint64_t longest_ns = 0;
  std::uint64_t stopped = 0;  // times a writer met the limit
  std::uint64_t done = 0;     // pages dirtied

  explicit simulation(unsigned writers) : ready(writers) {}

  void run(std::uint64_t length_ns, std::uint32_t pace, std::uint64_t batch_ns = 2'000'000) {
    const std::uint64_t end = now_ns + length_ns;
    std::uint64_t next_batch = now_ns + batch_ns;
    for (; now_ns < end; now_ns += 10'000) {
      if (now_ns >= next_batch) {
        next_batch += batch_ns;
        const auto pages =
            std::min(dirty, static_cast<std::uint32_t>(pace * (batch_ns / 1000) / 1'000'000));
        dirty -= pages;
        if (pages != 0) pacer.written(now_ns, pages);
      }
      for (std::uint64_t& at : ready) {
        if (at > now_ns) continue;
        if (dirty >= limit) {
          ++stopped;
          continue;
        }
        const std::uint64_t pause = pacer.pause_ns(now_ns);
        longest_ns = std::max(longest_ns, pause);
        if (pause != 0) {
          at = now_ns + pause;
          continue;
        }
        ++dirty;
        ++done;
        pacer.dirtied(now_ns, 1, {dirty, free_run, limit});
        at = now_ns + 10'000;
      }
    }
  }
};

TEST(dirty_pacer, writers_go_at_the_pace_of_the_device_and_never_stop) {
  for (const unsigned writers : {1u, 8u, 64u}) {
    for (const std::uint32_t pace : {2'000u, 20'000u, 60'000u}) {
      simulation s(writers);
      s.run(3'000'000'000, pace);  // finds its pace
      s.done = s.stopped = s.longest_ns = 0;
      s.run(4'000'000'000, pace);
      EXPECT_EQ(s.stopped, 0u) << writers << " writers, " << pace;
      EXPECT_NEAR(static_cast<double>(s.done), 4.0 * pace, 0.4 * pace);
      EXPECT_GT(s.dirty, free_run * 9 / 10);
      EXPECT_LT(s.dirty, limit);
      // Nobody waits longer than the device needs for a page of each writer, and some.
      EXPECT_LE(s.longest_ns, 2'000'000'000ull * (writers + 2) / pace + 2'000'000);
    }
  }
}

TEST(dirty_pacer, follows_a_device_that_changes_its_speed) {
  simulation s(8);
  s.run(3'000'000'000, 40'000);
  s.run(2'000'000'000, 5'000);
  s.done = 0;
  s.run(2'000'000'000, 5'000);
  EXPECT_NEAR(static_cast<double>(s.done), 10'000, 2'000);
  s.run(2'000'000'000, 40'000);
  s.done = 0;
  s.run(2'000'000'000, 40'000);
  EXPECT_NEAR(static_cast<double>(s.done), 80'000, 8'000);
}

TEST(dirty_pacer, nobody_waits_below_free_run_or_before_the_pace_is_known) {
  dirty_pacer p;
  p.dirtied(1'000, 100, {limit, free_run, limit});
  EXPECT_EQ(p.pause_ns(1'000), 0u);
  for (std::uint64_t t = 1; t <= 20; ++t) p.written(t * 10'000'000, 100);
  EXPECT_NEAR(p.pace(), 10'000, 500);
  p.dirtied(200'000'000, 1000, {free_run, free_run, limit});
  EXPECT_EQ(p.pause_ns(200'000'000), 0u);
  p.dirtied(200'000'000, 100, {(free_run + limit) / 2, free_run, limit});
  EXPECT_NEAR(static_cast<double>(p.pause_ns(200'000'000)), 10e6, 1e6);
  EXPECT_EQ(p.pause_ns(211'000'000), 0u);
  p.dirtied(300'000'000, 1'000'000, {limit, free_run, limit});
  EXPECT_EQ(p.pause_ns(300'000'000), dirty_pacer::pause_max_ns);
}

TEST(dirty_pacer, the_factor_falls_from_two_to_nearly_nothing) {
  EXPECT_DOUBLE_EQ(dirty_pacer::factor({free_run, free_run, limit}), 2);
  EXPECT_DOUBLE_EQ(dirty_pacer::factor({(free_run + limit) / 2, free_run, limit}), 1);
  EXPECT_LT(dirty_pacer::factor({limit, free_run, limit}), 0.02);
  EXPECT_LT(dirty_pacer::factor({limit * 2, free_run, limit}), 0.02);
  EXPECT_GT(dirty_pacer::factor({limit, limit, limit}), 0);
}

}  // namespace
}  // namespace forebay
