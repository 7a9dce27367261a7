#include "forebay/memory/cpu_cache.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <mutex>
#include <numeric>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "forebay/os/cpu.h"
#include "forebay/os/test_cpu.h"

namespace forebay {
namespace {

// Items 0 to n - 1 behind a lock.
class plain_list final : public free_list {
 public:
  explicit plain_list(std::uint32_t n) : items_(n) {
    std::iota(items_.rbegin(), items_.rend(), 0u);
  }

  std::size_t take(std::span<std::uint32_t> items) noexcept override {
    const std::lock_guard hold(lock_);
    const std::size_t n = std::min(items.size(), items_.size());
    for (std::size_t i = 0; i < n; ++i) {
      items[i] = items_.back();
      items_.pop_back();
    }
    return n;
  }

  void give(std::span<const std::uint32_t> items) noexcept override {
    const std::lock_guard hold(lock_);
    items_.insert(items_.end(), items.begin(), items.end());
  }

  std::vector<std::uint32_t> items() const {
    const std::lock_guard hold(lock_);
    return items_;
  }

 private:
  mutable std::mutex lock_;
  std::vector<std::uint32_t> items_;
};

// With restartable sequences and without.
class CpuCache : public testing::TestWithParam<bool> {
 protected:
  cpu_cache::options with(std::uint32_t magazine_items, std::uint32_t depot = 64) const {
    return {.magazine_items = magazine_items,
            .depot_magazines = depot,
            .restartable_sequences = GetParam()};
  }
};

INSTANTIATE_TEST_SUITE_P(Kinds, CpuCache, testing::Bool(),
                         [](const auto& kind) { return kind.param ? "PerCpu" : "PerThread"; });

TEST_P(CpuCache, HandsOutEachItemOnceAndThenNone) {
  plain_list list(1000);
  cpu_cache cache(list, with(16));
  std::set<std::uint32_t> got;
  for (int i = 0; i < 1000; ++i) got.insert(cache.pop());
  EXPECT_EQ(got.size(), 1000u);
  EXPECT_EQ(*got.rbegin(), 999u);
  EXPECT_EQ(cache.pop(), cpu_cache::none);
  EXPECT_EQ(cache.statistics().pops, 1000u);
  for (const std::uint32_t item : got) cache.push(item);
  EXPECT_EQ(cache.cached() + list.items().size(), 1000u);
}

TEST_P(CpuCache, TheLastFreedIsTheNextAllocated) {
  plain_list list(100);
  cpu_cache cache(list, with(8));
  const stay_on_cpu here;  // another CPU has a cache of its own
  const std::uint32_t a = cache.pop();
  const std::uint32_t b = cache.pop();
  cache.push(a);
  cache.push(b);
  EXPECT_EQ(cache.pop(), b);
  EXPECT_EQ(cache.pop(), a);
  cache.push(a);
  cache.push(b);
}

TEST_P(CpuCache, ItsEndGivesEverythingBack) {
  plain_list list(500);
  {
    cpu_cache cache(list, with(16, 3));
    std::vector<std::uint32_t> held(300);
    EXPECT_EQ(cache.pop(held), 300u);
    cache.push(held);
  }
  auto items = list.items();
  std::sort(items.begin(), items.end());
  std::vector<std::uint32_t> all(500);
  std::iota(all.begin(), all.end(), 0u);
  EXPECT_EQ(items, all);
}

TEST_P(CpuCache, TheDepotKeepsNoMoreThanItsLimit) {
  plain_list list(1000);
  cpu_cache cache(list, with(10, 2));
  std::vector<std::uint32_t> held(1000);
  ASSERT_EQ(cache.pop(held), 1000u);
  cache.push(held);
  // Loaded, spare and two in the depot, if the thread stayed on its CPU; more if it moved.
  EXPECT_LE(cache.cached(), (2u + 2 * cpu_limit()) * 10);
  EXPECT_GT(cache.statistics().drains, 0u);
}

TEST_P(CpuCache, ReclaimTakesItemsOutOfEveryCache) {
  plain_list list(64);
  cpu_cache cache(list, with(32));
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) threads.emplace_back([&] { cache.push(cache.pop()); });
  for (auto& t : threads) t.join();
  const std::uint64_t cached = cache.cached();
  EXPECT_GT(cached, 0u);
  EXPECT_EQ(cache.reclaim(), cached);
  EXPECT_EQ(cache.cached(), 0u);
  EXPECT_EQ(list.items().size(), 64u);
  cache.push(cache.pop());  // the caches are in use again
  EXPECT_GT(cache.cached(), 0u);
}

// A list that hands the processor to another thread in the middle of a refill.
class slow_list final : public free_list {
 public:
  explicit slow_list(std::uint32_t n) : list_(n) {}
  std::size_t take(std::span<std::uint32_t> items) noexcept override {
    const std::size_t n = list_.take(items);
    if (items.size() > 1) std::this_thread::sleep_for(std::chrono::microseconds(300));
    return n;
  }
  void give(std::span<const std::uint32_t> items) noexcept override {
    std::this_thread::sleep_for(std::chrono::microseconds(100));
    list_.give(items);
  }

 private:
  plain_list list_;
};

// Fewer threads than items, each holding one at most: nobody ever goes without, though a refill
// takes all there is and others take all back.
TEST_P(CpuCache, AnItemInTheHandsOfAnotherCallIsWaitedFor) {
  slow_list list(8);
  cpu_cache cache(list, with(16));
  std::atomic<int> without{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 100; ++i) {
        if (t == 0 && i % 8 == 0) cache.reclaim();
        const std::uint32_t item = cache.pop();
        if (item == cpu_cache::none) {
          ++without;
        } else {
          cache.push(item);
        }
      }
    });
  }
  for (auto& t : threads) t.join();
  EXPECT_EQ(without, 0);
}

// Threads fill the caches of every CPU and then sleep, holding nothing: the last one still gets
// all.
TEST_P(CpuCache, WhatSleepersLeftInTheirCachesIsNotStranded) {
  plain_list list(200);
  cpu_cache cache(list, with(100));
  for (unsigned cpu = 0; cpu < cpu_limit(); ++cpu) {
    std::thread([&] {
      static_cast<void>(pin_to_cpu(cpu));
      cache.push(cache.pop());
    }).join();
  }
  EXPECT_GE(cache.cached(), 100u);
  std::vector<std::uint32_t> all(200);
  EXPECT_EQ(cache.pop(all), 200u);
  EXPECT_EQ(cache.pop(), cpu_cache::none);
  cache.push(all);
}

TEST_P(CpuCache, WhileClosedItemsGoStraightToTheList) {
  plain_list list(50);
  cpu_cache cache(list, with(8));
  const std::uint32_t held = cache.pop();
  cache.close();
  cache.close();
  EXPECT_EQ(list.items().size(), 49u);
  cache.push(held);
  EXPECT_EQ(list.items().size(), 50u);
  cache.push(cache.pop());
  EXPECT_EQ(list.items().size(), 50u);
  cache.open();
  EXPECT_EQ(cache.reclaim(), 0u) << "closed once more than opened";
  cache.open();
  cache.push(cache.pop());
  EXPECT_LT(list.items().size(), 50u);
}

// Any sequence of single and bulk calls against a set of what is out.
RC_GTEST_PROP(CpuCacheModel, NoItemIsOutTwiceOrLost, ()) {
  const auto total = *rc::gen::inRange<std::uint32_t>(1, 120);
  plain_list list(total);
  cpu_cache cache(list, {.magazine_items = *rc::gen::inRange(1u, 20u),
                         .depot_magazines = *rc::gen::inRange(0u, 4u),
                         .restartable_sequences = *rc::gen::arbitrary<bool>()});
  std::vector<std::uint32_t> out;
  std::uint64_t pops = 0;
  for (int step = 0; step < 100; ++step) {
    const auto n = *rc::gen::inRange<std::size_t>(0, 40);
    switch (*rc::gen::inRange(0, 5)) {
      case 0: {
        std::vector<std::uint32_t> got(n);
        got.resize(cache.pop(got));
        RC_ASSERT(got.size() == std::min<std::size_t>(n, total - out.size()));
        pops += got.size();
        out.insert(out.end(), got.begin(), got.end());
        break;
      }
      case 1: {
        const std::size_t k = std::min(n, out.size());
        cache.push(std::span(out).last(k));
        out.resize(out.size() - k);
        break;
      }
      case 2:
        if (const std::uint32_t item = cache.pop(); item != cpu_cache::none) {
          out.push_back(item);
          ++pops;
        } else {
          RC_ASSERT(out.size() == total);
        }
        break;
      case 3:
        if (!out.empty()) {
          cache.push(out.front());
          out.erase(out.begin());
        }
        break;
      default:
        cache.reclaim();
    }
    RC_ASSERT(std::set<std::uint32_t>(out.begin(), out.end()).size() == out.size());
    RC_ASSERT(cache.cached() + list.items().size() + out.size() == total);
    RC_ASSERT(cache.statistics().pops == pops);
  }
  cache.push(out);
}

// More threads than CPUs pop, hold and push while others reclaim, close and open: an item is never
// with two owners, and in the end all are there.
void stress(bool restartable_sequences, std::chrono::milliseconds length) {
  constexpr std::uint32_t total = 400;
  constexpr int workers = 4;
  plain_list list(total);
  cpu_cache cache(
      list,
      {.magazine_items = 12, .depot_magazines = 4, .restartable_sequences = restartable_sequences});
  std::vector<std::atomic<int>> owner(total);
  std::atomic<bool> stop{false};
  std::atomic<int> faults{0};
  std::atomic<std::uint64_t> pops{0};
  const auto check = [&](std::uint32_t item, int from, int to) {
    if (owner[item].exchange(to) != from) ++faults;
  };
  std::vector<std::thread> threads;
  for (int me = 1; me <= workers; ++me) {
    threads.emplace_back([&, me] {
      std::minstd_rand random(static_cast<unsigned>(me));
      std::vector<std::uint32_t> held;
      std::uint64_t mine = 0;
      while (!stop) {
        if (random() % 2 == 0) {
          std::vector<std::uint32_t> got(random() % 30);
          got.resize(cache.pop(got));
          mine += got.size();
          for (const std::uint32_t item : got) check(item, 0, me);
          held.insert(held.end(), got.begin(), got.end());
        } else if (!held.empty()) {
          const std::size_t k = 1 + random() % held.size();
          const auto back = std::span(held).last(k);
          for (const std::uint32_t item : back) check(item, me, 0);
          if (k == 1) {
            cache.push(back[0]);
          } else {
            cache.push(back);
          }
          held.resize(held.size() - k);
        }
        if (const std::uint32_t item = cache.pop(); item != cpu_cache::none) {
          ++mine;
          check(item, 0, me);
          check(item, me, 0);
          cache.push(item);
        }
      }
      for (const std::uint32_t item : held) check(item, me, 0);
      cache.push(held);
      pops += mine;
    });
  }
  threads.emplace_back([&] {
    for (unsigned round = 0; !stop; ++round) {
      if (round % 4 == 0) {
        cache.close();
        std::this_thread::yield();
        cache.open();
      } else {
        cache.reclaim();
      }
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
  });
  std::this_thread::sleep_for(length);
  stop = true;
  for (auto& t : threads) t.join();
  EXPECT_EQ(faults, 0);
  EXPECT_EQ(cache.cached() + list.items().size(), total);
  EXPECT_EQ(cache.statistics().pops, pops);
  cache.reclaim();
  auto items = list.items();
  std::sort(items.begin(), items.end());
  EXPECT_EQ(items.size(), total);
  EXPECT_EQ(std::unique(items.begin(), items.end()), items.end());
}

std::chrono::milliseconds stress_length() {
  return std::chrono::milliseconds(std::getenv("FOREBAY_STRESS") != nullptr ? 20'000 : 300);
}

TEST(CpuCacheStress, PerCpu) {
  if (!rseq_usable()) GTEST_SKIP() << "no restartable sequences here";
  stress(true, stress_length());
}
TEST(CpuCacheStress, PerThread) { stress(false, stress_length()); }

}  // namespace
}  // namespace forebay
