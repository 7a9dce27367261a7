#include "forebay/memory/shrinker.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace forebay {
namespace {

constexpr std::uint64_t mebibyte = 1u << 20;

// Has so many bytes, and lets go of what it is told to.
class store : public shrinker {
 public:
  store(options opts, std::uint64_t bytes) : shrinker(std::move(opts)), bytes_(bytes) {}
  ~store() override {
    if (registry_ != nullptr) registry_->remove(*this);
  }

  void join(shrinker_registry& r) {
    r.add(*this);
    registry_ = &r;
  }

  std::uint64_t bytes() const { return bytes_.load(); }
  void fill(std::uint64_t bytes) { bytes_ = bytes; }
  void stops_after(unsigned calls) { calls_left_ = calls; }
  void stuck() { stuck_ = true; }
  const std::vector<std::uint64_t>& asked() const { return asked_; }
  shrink_goal goal() const { return goal_; }
  std::function<void()> meanwhile;

 private:
  std::uint64_t count_bytes() noexcept override { return bytes_.load(); }
  scan_result scan_bytes(std::uint64_t bytes, shrink_goal goal) noexcept override {
    asked_.push_back(bytes);
    goal_ = goal;
    if (meanwhile) meanwhile();
    if (stuck_) return {};
    if (calls_left_ == 0) return {.freed_bytes = 0, .stop = true};
    --calls_left_;
    const std::uint64_t n = std::min(bytes, bytes_.load());
    bytes_ -= n;
    return {.freed_bytes = n, .stop = false};
  }

  shrinker_registry* registry_ = nullptr;
  std::atomic<std::uint64_t> bytes_;
  unsigned calls_left_ = UINT32_MAX;
  bool stuck_ = false;
  std::vector<std::uint64_t> asked_;
  shrink_goal goal_ = shrink_goal::frames;
};

class ShrinkerTest : public ::testing::Test {
 protected:
  shrinker_registry registry_;
};

TEST_F(ShrinkerTest, WithoutAnyThereIsNothingToBeHad) {
  EXPECT_EQ(registry_.shrink(mebibyte, shrink_goal::frames), 0u);
  EXPECT_TRUE(registry_.statistics().empty());
}

TEST_F(ShrinkerTest, StopsWhenThereIsEnough) {
  store s({.name = "a", .batch_bytes = 4096}, 64 * mebibyte);
  s.join(registry_);
  EXPECT_EQ(registry_.shrink(0, shrink_goal::frames), 0u);
  EXPECT_TRUE(s.asked().empty());
  for (const std::uint64_t wanted : {std::uint64_t{1}, std::uint64_t{4096}, 3 * mebibyte}) {
    const std::uint64_t before = s.bytes();
    const std::uint64_t freed = registry_.shrink(wanted, shrink_goal::give_back);
    EXPECT_EQ(before - s.bytes(), freed);
    EXPECT_GE(freed, wanted);
    EXPECT_LT(freed, wanted + 4096) << "no more than a batch too much";
  }
  EXPECT_EQ(s.goal(), shrink_goal::give_back);
}

TEST_F(ShrinkerTest, GivesAllItHasIfNeedBe) {
  store s({.name = "a", .batch_bytes = 2 * mebibyte}, 7 * mebibyte + 123);
  store t({.name = "b", .seeks = 4}, 100);
  s.join(registry_);
  t.join(registry_);
  EXPECT_EQ(registry_.shrink(1024 * mebibyte, shrink_goal::frames), 7 * mebibyte + 123 + 100);
  EXPECT_EQ(s.bytes(), 0u);
  EXPECT_EQ(t.bytes(), 0u);
}

// The reference values are those of do_shrink_slab(): count >> priority, times 4 / seeks.
TEST_F(ShrinkerTest, SharesByCountAndInverselyBySeeks) {
  const std::uint64_t batch = 4096;
  store cheap({.name = "cheap", .seeks = 1, .batch_bytes = batch}, 64 * mebibyte);
  store dear({.name = "dear", .seeks = 4, .batch_bytes = batch}, 64 * mebibyte);
  store small({.name = "small", .seeks = 1, .batch_bytes = batch}, 16 * mebibyte);
  cheap.join(registry_);
  dear.join(registry_);
  small.join(registry_);
  // One pass at priority 12: 64 MiB >> 12 is 16 KiB, times 4 is 64 KiB, a quarter of that for each
  // of the others.
  const std::uint64_t freed = registry_.shrink((64 + 16 + 16) << 10, shrink_goal::frames);
  EXPECT_EQ(freed, std::uint64_t{96} << 10);
  EXPECT_EQ(64 * mebibyte - cheap.bytes(), std::uint64_t{64} << 10);
  EXPECT_EQ(64 * mebibyte - dear.bytes(), std::uint64_t{16} << 10);
  EXPECT_EQ(16 * mebibyte - small.bytes(), std::uint64_t{16} << 10);
}

TEST_F(ShrinkerTest, WhatCostsNothingGivesHalfAtOnce) {
  store nothing({.name = "free", .seeks = 0, .batch_bytes = 4096}, 8 * mebibyte);
  store cache({.name = "cache", .batch_bytes = 4096}, 64 * mebibyte);
  nothing.join(registry_);
  cache.join(registry_);
  EXPECT_EQ(registry_.shrink(4 * mebibyte, shrink_goal::frames), 4 * mebibyte);
  EXPECT_EQ(nothing.bytes(), 4 * mebibyte);
  EXPECT_EQ(cache.bytes(), 64 * mebibyte);
}

TEST_F(ShrinkerTest, LessThanABatchIsDeferred) {
  // 128 KiB at a time; a pass of priority 12 is due 64 KiB × 2, which is one batch, of s but not of
  // t, whose 4 KiB wait until a more urgent pass makes a batch of them.
  store s({.name = "s", .seeks = 2, .batch_bytes = 128u << 10}, 256 * mebibyte);
  store t({.name = "t", .seeks = 2, .batch_bytes = 128u << 10}, 8 * mebibyte);
  s.join(registry_);
  t.join(registry_);
  EXPECT_EQ(registry_.shrink(128u << 10, shrink_goal::frames), 128u << 10);
  EXPECT_EQ(s.asked().size(), 1u);
  EXPECT_TRUE(t.asked().empty());
  registry_.shrink(64 * mebibyte, shrink_goal::frames);
  ASSERT_FALSE(t.asked().empty());
  EXPECT_TRUE(std::all_of(t.asked().begin(), t.asked().end(),
                          [](std::uint64_t n) { return n == 128u << 10; }));
}

TEST_F(ShrinkerTest, OneThatIsStuckOrStopsDoesNotHoldUpTheOthers) {
  store stuck({.name = "stuck", .batch_bytes = mebibyte}, 64 * mebibyte);
  stuck.stuck();
  store stops({.name = "stops", .batch_bytes = mebibyte}, 64 * mebibyte);
  stops.stops_after(2);
  store s({.name = "s", .batch_bytes = mebibyte}, 64 * mebibyte);
  stuck.join(registry_);
  stops.join(registry_);
  s.join(registry_);
  EXPECT_EQ(registry_.shrink(1024 * mebibyte, shrink_goal::frames), 66 * mebibyte);
  EXPECT_EQ(s.bytes(), 0u);
  EXPECT_EQ(stops.bytes(), 62 * mebibyte);
  EXPECT_LT(stuck.asked().size(), 400u) << "bounded: at most twice its count in a pass";
}

TEST_F(ShrinkerTest, AStopIsHeardBetweenTwoBatches) {
  store s({.name = "s", .batch_bytes = 4096}, 64 * mebibyte);
  s.join(registry_);
  std::stop_source stop;
  s.meanwhile = [&] {
    if (s.asked().size() == 3) stop.request_stop();
  };
  EXPECT_EQ(registry_.shrink(64 * mebibyte, shrink_goal::frames, stop.get_token()), 3u * 4096);
  EXPECT_EQ(registry_.shrink(64 * mebibyte, shrink_goal::frames, stop.get_token()), 0u);
}

TEST_F(ShrinkerTest, Statistics) {
  store s({.name = "s", .seeks = 3, .batch_bytes = 4096}, 10 * 4096);
  s.join(registry_);
  registry_.shrink(4 * 4096, shrink_goal::frames);
  const auto all = registry_.statistics();
  ASSERT_EQ(all.size(), 1u);
  EXPECT_EQ(all[0].name, "s");
  EXPECT_EQ(all[0].seeks, 3u);
  EXPECT_EQ(all[0].calls, 4u);
  EXPECT_EQ(all[0].scanned_bytes, 4u * 4096);
  EXPECT_EQ(all[0].freed_bytes, 4u * 4096);
  EXPECT_EQ(all[0].count_bytes, 6u * 4096);
}

// What has been removed is not asked any more, also when a shrink was under way.
TEST_F(ShrinkerTest, RemoveWaitsForTheShrinkUnderWay) {
  for (int round = 0; round < 5; ++round) {
    shrinker_registry registry;
    store lasting({.name = "lasting", .batch_bytes = 4096}, 4 * mebibyte);
    lasting.join(registry);
    auto passing = std::make_unique<store>(
        shrinker::options{.name = "passing", .batch_bytes = 4096}, 4 * mebibyte);
    registry.add(*passing);
    std::jthread shrinking([&](const std::stop_token& stop) {
      while (!stop.stop_requested()) {
        registry.shrink(mebibyte, shrink_goal::frames);
        lasting.fill(4 * mebibyte);
      }
    });
    std::jthread looking([&](const std::stop_token& stop) {
      while (!stop.stop_requested()) EXPECT_GE(registry.statistics().size(), 1u);
    });
    registry.remove(*passing);
    passing.reset();
    looking.request_stop();
    looking.join();
    shrinking.request_stop();
    shrinking.join();
  }
}

}  // namespace
}  // namespace forebay
