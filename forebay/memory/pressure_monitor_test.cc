#include "forebay/memory/pressure_monitor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "forebay/os/clock.h"
#include "forebay/os/test_await.h"

namespace forebay {
namespace {

namespace fs = std::filesystem;
using ::testing::Contains;
using ::testing::HasSubstr;

constexpr std::uint64_t mebibyte = 1u << 20;
constexpr std::uint64_t ms = 1'000'000;

// Holds frames of an arena, and lets go of the ones it took last.
class holder : public shrinker {
 public:
  holder(arena& memory, shrinker_registry& registry)
      : shrinker({.name = "holder", .batch_bytes = arena::chunk_bytes}),
        arena_(memory),
        registry_(registry) {
    registry_.add(*this);
  }
  ~holder() override {
    registry_.remove(*this);
    let_go(UINT64_MAX);
  }

  // Takes all frames there are but `but`.
  void fill(std::size_t but = 0) {
    const scoped_lock hold(lock_);
    while (page* p = arena_.allocate()) frames_.push_back(p);
    while (but-- != 0 && !frames_.empty()) put_last();
  }
  void stick(bool sticks) { stuck_ = sticks; }
  unsigned scans() const { return scans_.load(); }
  std::uint64_t held_bytes() {
    const scoped_lock hold(lock_);
    return frames_.size() * page_bytes;
  }

 private:
  std::uint64_t count_bytes() noexcept override { return held_bytes(); }
  scan_result scan_bytes(std::uint64_t bytes, shrink_goal) noexcept override {
    ++scans_;
    if (stuck_) return {.freed_bytes = 0, .stop = true};
    return {.freed_bytes = let_go(bytes), .stop = false};
  }
  std::uint64_t let_go(std::uint64_t bytes) {
    const scoped_lock hold(lock_);
    std::uint64_t freed = 0;
    for (; freed < bytes && !frames_.empty(); freed += page_bytes) put_last();
    return freed;
  }
  void put_last() FOREBAY_REQUIRES(lock_) {
    put_page(*frames_.back());
    frames_.pop_back();
  }

  arena& arena_;
  shrinker_registry& registry_;
  mutex lock_;
  std::vector<page*> frames_ FOREBAY_GUARDED_BY(lock_);
  std::atomic<unsigned> scans_{0};
  std::atomic<bool> stuck_{false};
};

// An arena of 64 MiB, and a machine with cgroups v2 as plain files.
class PressureMonitorTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "forebay-monitor-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    root_ = name;
    auto memory = arena::create({.bytes = 64 * mebibyte, .huge_pages = false});
    ASSERT_TRUE(memory);
    arena_ = std::move(*memory);
    capacity_ = arena_->memory().size();
    holder_.emplace(*arena_, registry_);
  }
  void TearDown() override {
    monitor_.reset();
    holder_.reset();
    fs::remove_all(root_);
  }

  void write(const std::string& path, const std::string& text) {
    const fs::path p = root_ + path;
    fs::create_directories(p.parent_path());
    // As the kernel's files change: from one content to the next.
    std::ofstream(p.string() + ".new") << text;
    fs::rename(p.string() + ".new", p);
  }
  void group(const std::string& limit, std::uint64_t usage_bytes) {
    write("/proc/self/cgroup", "0::/a\n");
    write("/proc/self/mountinfo", "41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
    write("/sys/fs/cgroup/a/memory.max", limit + "\n");
    write("/sys/fs/cgroup/a/memory.high", "max\n");
    write("/sys/fs/cgroup/a/memory.current", std::to_string(usage_bytes) + "\n");
  }
  // In place, as the monitor has it open.
  void events(unsigned high, unsigned max) {
    fs::create_directories(root_ + "/sys/fs/cgroup/a");
    std::ofstream(root_ + "/sys/fs/cgroup/a/memory.events")
        << "high " + std::to_string(high) + "\nmax " + std::to_string(max) + "\n";
  }

  void make(std::uint64_t calm_ns = 100 * ms) {
    auto m = pressure_monitor::create(
        *arena_, registry_,
        {.root = root_, .calm_ns = calm_ns, .limit_changed = [this](std::uint64_t bytes) {
           told_.push_back(bytes);
         }});
    ASSERT_TRUE(m);
    monitor_ = std::move(*m);
  }

  std::string root_;
  std::unique_ptr<arena> arena_;
  shrinker_registry registry_;
  std::optional<holder> holder_;
  std::uint64_t capacity_ = 0;
  std::vector<std::uint64_t> told_;
  std::unique_ptr<pressure_monitor> monitor_;
};

TEST_F(PressureMonitorTest, WithoutSourcesItSaysSoAndLimitsNothing) {
  make();
  EXPECT_TRUE(monitor_->sources().empty());
  EXPECT_THAT(monitor_->remarks(), Contains(HasSubstr("/proc/pressure/memory")));
  EXPECT_THAT(monitor_->remarks(), Contains(HasSubstr("no memory control group")));
  const pressure_statistics s = monitor_->statistics();
  EXPECT_EQ(s.limit_bytes, capacity_);
  EXPECT_EQ(s.capacity_bytes, capacity_);
  EXPECT_FALSE(s.has_group_limit);
  EXPECT_EQ(arena_->limit_bytes(), UINT64_MAX);
  EXPECT_TRUE(told_.empty());
  monitor_->stop();  // that never started
}

TEST_F(PressureMonitorTest, StartsWithinTheLimitOfItsGroup) {
  group(std::to_string(48 * mebibyte), 6 * mebibyte);
  write("/proc/self/statm", "0 0 0\n");  // nothing is touched yet
  events(0, 0);
  make();
  EXPECT_THAT(monitor_->sources(), Contains(HasSubstr("memory.events")));
  const pressure_statistics s = monitor_->statistics();
  EXPECT_EQ(s.limit_bytes, 38 * mebibyte) << "48 less 6 of others and 4 of margin";
  EXPECT_EQ(arena_->limit_bytes(), 38 * mebibyte);
  EXPECT_LE(s.committed_bytes, 38 * mebibyte) << "free chunks went at once";
  EXPECT_TRUE(s.has_group_limit);
  EXPECT_EQ(s.group_limit_bytes, 48 * mebibyte);
  EXPECT_EQ(s.group_usage_bytes, 6 * mebibyte);
  EXPECT_THAT(told_, ::testing::ElementsAre(38 * mebibyte));
  holder_->fill();
  EXPECT_LE(arena_->committed_bytes(), 38 * mebibyte);
}

TEST_F(PressureMonitorTest, ALimitThatIsLoweredIsKeptAndOneThatIsRaisedIsUsed) {
  group("max", 70 * mebibyte);
  events(0, 0);
  make();
  holder_->fill();
  monitor_->start();
  EXPECT_EQ(monitor_->statistics().limit_bytes, capacity_);
  group(std::to_string(40 * mebibyte), capacity_ + 6 * mebibyte);
  ASSERT_TRUE(eventually([&] { return arena_->committed_bytes() <= 30 * mebibyte; }));
  EXPECT_LE(holder_->held_bytes(), 30 * mebibyte);
  pressure_statistics s = monitor_->statistics();
  EXPECT_GE(s.limit_lowered, 1u);
  EXPECT_GE(s.given_back_bytes, 30 * mebibyte);
  EXPECT_EQ(s.given_back_bytes + s.committed_bytes, capacity_) << "the last chunk is there";
  // Room again, of which it takes a bit at a time.
  group("max", s.committed_bytes + 6 * mebibyte);
  ASSERT_TRUE(eventually([&] { return monitor_->statistics().limit_bytes >= 42 * mebibyte; }));
  monitor_->stop();
  holder_->fill();
  EXPECT_GT(arena_->committed_bytes(), 38 * mebibyte);
  EXPECT_LE(arena_->committed_bytes(), arena_->limit_bytes());
  s = monitor_->statistics();
  EXPECT_GE(s.limit_raised, 3u) << "in steps";
  EXPECT_EQ(told_.back(), s.limit_bytes);
}

TEST_F(PressureMonitorTest, AnEventTakesAShare) {
  group("max", 70 * mebibyte);
  events(3, 3);
  make(3'600'000 * ms);
  holder_->fill();
  monitor_->run_once(0);
  EXPECT_EQ(monitor_->statistics().limit_bytes, capacity_) << "what was before does not count";
  events(4, 3);
  monitor_->run_once(0);
  const std::uint64_t moderate = monitor_->statistics().limit_bytes;
  EXPECT_LT(moderate, capacity_ * 15 / 16 + mebibyte);
  EXPECT_GT(moderate, capacity_ * 7 / 8);
  EXPECT_LE(arena_->committed_bytes(), moderate);
  events(4, 4);
  std::this_thread::sleep_for(std::chrono::milliseconds(60));
  monitor_->run_once(0);
  EXPECT_LT(monitor_->statistics().limit_bytes, moderate * 3 / 4 + mebibyte);
  EXPECT_LE(arena_->committed_bytes(), monitor_->statistics().limit_bytes);
  monitor_->run_once(0);
  const pressure_statistics s = monitor_->statistics();
  EXPECT_EQ(s.cgroup_events, 2u);
  EXPECT_EQ(s.limit_lowered, 2u);
  EXPECT_EQ(s.psi_events, 0u);
}

TEST_F(PressureMonitorTest, WhatCannotBeFreedNowIsTriedAgainButNotAllTheTime) {
  group("max", 70 * mebibyte);
  make();
  holder_->fill();
  holder_->stick(true);
  monitor_->start();
  group(std::to_string(32 * mebibyte), capacity_ + 6 * mebibyte);
  ASSERT_TRUE(eventually([&] { return monitor_->statistics().failed_shrinks >= 2; }));
  const std::uint64_t start_of_wait = monotonic_clock::now_ns();
  const std::uint64_t looks_before = monitor_->statistics().failed_shrinks;
  const unsigned scans_before = holder_->scans();
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  const unsigned scans = holder_->scans() - scans_before;
  const std::uint64_t looks = monitor_->statistics().failed_shrinks - looks_before;
  const std::uint64_t waited_ns = monotonic_clock::now_ns() - start_of_wait;
  EXPECT_LE(looks, waited_ns / (50 * ms) + 2) << "20 a second";
  EXPECT_LE(scans, 2 * looks + 4) << "once in a look for the limit, once for the watermark";
  holder_->stick(false);
  EXPECT_TRUE(eventually([&] { return arena_->committed_bytes() <= 22 * mebibyte; }));
  monitor_->stop();
}

TEST_F(PressureMonitorTest, AStopDoesNotWaitForTheNextLook) {
  make();
  // One of them is fast: the machine may be busy.
  EXPECT_TRUE(eventually([this] {
    monitor_->start();
    const std::uint64_t start = monotonic_clock::now_ns();
    monitor_->stop();
    return monotonic_clock::now_ns() - start < 200 * ms;
  }));
}

TEST_F(PressureMonitorTest, BelowTheLowWatermarkFramesAreMadeFree) {
  make();
  holder_->fill(200);
  monitor_->run_once(0);
  EXPECT_EQ(monitor_->statistics().watermark_events, 0u) << "enough is free";
  holder_->fill(3);
  const std::uint64_t before = arena_->free_pages();
  monitor_->run_once(0);
  EXPECT_EQ(monitor_->statistics().watermark_events, 1u);
  EXPECT_GT(arena_->free_pages(), before + 60);
  EXPECT_EQ(arena_->committed_bytes(), capacity_) << "nothing was given back for that";
  monitor_->run_once(0);
  EXPECT_EQ(monitor_->statistics().watermark_events, 1u) << "the high one was reached";
}

}  // namespace
}  // namespace forebay
