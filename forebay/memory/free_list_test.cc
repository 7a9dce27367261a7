// What every free list does, whatever its policy.

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <chrono>
#include <cstdlib>
#include <numeric>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "forebay/memory/bitmap_list.h"
#include "forebay/memory/buddy_list.h"
#include "forebay/memory/cached_list.h"
#include "forebay/memory/free_lists.h"
#include "forebay/memory/lock_free_stack.h"

namespace forebay {
namespace {

std::unique_ptr<sized_free_list> full_list(free_list_kind kind, std::uint32_t capacity) {
  auto list = make_free_list(kind, capacity);
  if (!list) return nullptr;
  give_range(**list, 0, capacity);
  return std::move(*list);
}

std::uint32_t take_one(free_list& list) {
  std::uint32_t item = UINT32_MAX;
  return list.take({&item, 1}) == 1 ? item : UINT32_MAX;
}

class FreeList : public testing::TestWithParam<free_list_kind> {};

INSTANTIATE_TEST_SUITE_P(Kinds, FreeList, testing::ValuesIn(free_list_kinds), [](const auto& kind) {
  std::string name = to_string(kind.param);
  std::erase_if(name, [](unsigned char c) { return !std::isalnum(c); });
  return name;
});

TEST_P(FreeList, StartsWithoutItems) {
  const auto list = make_free_list(GetParam(), 100);
  ASSERT_TRUE(list);
  EXPECT_EQ((*list)->capacity(), 100u);
  EXPECT_EQ((*list)->free_count(), 0u);
  EXPECT_EQ(take_one(**list), UINT32_MAX);
}

TEST_P(FreeList, RefusesCapacitiesThatAreNone) {
  EXPECT_EQ(make_free_list(GetParam(), 0).error(),
            std::error_code(EINVAL, std::generic_category()));
  EXPECT_EQ(make_free_list(GetParam(), sized_free_list::capacity_max + 1).error(),
            make_error_code(errc::too_large));
}

TEST_P(FreeList, HandsOutEachItemOnceAndThenNone) {
  for (const std::uint32_t capacity : {1u, 2u, 63u, 64u, 65u, 1000u}) {
    const auto list = full_list(GetParam(), capacity);
    ASSERT_TRUE(list);
    EXPECT_EQ(list->free_count(), capacity);
    std::set<std::uint32_t> got;
    for (std::uint32_t i = 0; i < capacity; ++i) got.insert(take_one(*list));
    EXPECT_EQ(got.size(), capacity);
    EXPECT_EQ(*got.rbegin(), capacity - 1);
    EXPECT_EQ(take_one(*list), UINT32_MAX);
    EXPECT_EQ(list->free_count(), 0u);
  }
}

TEST_P(FreeList, ABatchIsAsManyAsThereAre) {
  const auto list = full_list(GetParam(), 300);
  ASSERT_TRUE(list);
  std::vector<std::uint32_t> items(500, UINT32_MAX);
  EXPECT_EQ(list->take(std::span(items).first(0)), 0u);
  EXPECT_EQ(list->take(std::span(items).first(200)), 200u);
  EXPECT_EQ(list->free_count(), 100u);
  EXPECT_EQ(list->take(std::span(items).subspan(200)), 100u);
  EXPECT_EQ(list->take(items), 0u);
  EXPECT_TRUE(std::all_of(items.begin() + 300, items.end(),
                          [](std::uint32_t i) { return i == UINT32_MAX; }));
  EXPECT_EQ(std::set(items.begin(), items.begin() + 300).size(), 300u);
}

TEST_P(FreeList, WhatComesBackIsHandedOutAgain) {
  const auto list = full_list(GetParam(), 128);
  ASSERT_TRUE(list);
  std::vector<std::uint32_t> items(128);
  ASSERT_EQ(list->take(items), 128u);
  list->give(std::span(items).first(0));
  EXPECT_EQ(list->free_count(), 0u);
  list->give(std::span(items).subspan(77, 1));
  EXPECT_EQ(take_one(*list), items[77]);
  // Some, in an order of their own, among them several of one word or run and single ones.
  std::shuffle(items.begin(), items.end(), std::minstd_rand(7));
  list->give(std::span(items).first(50));
  EXPECT_EQ(list->free_count(), 50u);
  std::vector<std::uint32_t> again(128);
  again.resize(list->take(again));
  std::sort(again.begin(), again.end());
  std::sort(items.begin(), items.begin() + 50);
  EXPECT_EQ(again, std::vector(items.begin(), items.begin() + 50));
}

// Any sequence of calls against a set of what is out.
RC_GTEST_PROP(FreeListModel, NoItemIsOutTwiceOrLost, ()) {
  const auto kind =
      *rc::gen::elementOf(std::vector(free_list_kinds.begin(), free_list_kinds.end()));
  const auto total = *rc::gen::inRange<std::uint32_t>(1, 200);
  const auto list = full_list(kind, total);
  std::vector<std::uint32_t> out;
  for (int step = 0; step < 60; ++step) {
    const auto n = *rc::gen::inRange<std::size_t>(0, 80);
    if (*rc::gen::arbitrary<bool>()) {
      std::vector<std::uint32_t> got(n);
      got.resize(list->take(got));
      RC_ASSERT(got.size() == std::min<std::size_t>(n, total - out.size()));
      out.insert(out.end(), got.begin(), got.end());
    } else {
      const std::size_t k = std::min(n, out.size());
      const std::size_t at = *rc::gen::inRange<std::size_t>(0, out.size() - k + 1);
      list->give(std::span(out).subspan(at, k));
      out.erase(out.begin() + static_cast<std::ptrdiff_t>(at),
                out.begin() + static_cast<std::ptrdiff_t>(at + k));
    }
    const std::set<std::uint32_t> distinct(out.begin(), out.end());
    RC_ASSERT(distinct.size() == out.size());
    RC_ASSERT(distinct.lower_bound(total) == distinct.end());
    RC_ASSERT(list->free_count() + out.size() == total);
  }
}

// More threads than CPUs take, hold and give: an item is never with two owners, what was written by
// its last owner is seen by the next, and in the end all are there.
TEST_P(FreeList, ManyThreads) {
  constexpr std::uint32_t total = 300;
  constexpr int workers = 4;
  const auto list = full_list(GetParam(), total);
  ASSERT_TRUE(list);
  std::vector<std::atomic<int>> owner(total);
  std::vector<std::uint64_t> uses(total);  // plain: the list has to order the accesses
  std::atomic<bool> stop{false};
  std::atomic<int> faults{0};
  std::atomic<std::uint64_t> takes{0};
  std::vector<std::thread> threads;
  for (int me = 1; me <= workers; ++me) {
    threads.emplace_back([&, me] {
      std::minstd_rand random(static_cast<unsigned>(me));
      std::vector<std::uint32_t> held;
      std::uint64_t mine = 0;
      const auto get = [&](std::size_t n) {
        std::vector<std::uint32_t> got(n);
        got.resize(list->take(got));
        for (const std::uint32_t item : got) {
          if (owner[item].exchange(me, std::memory_order_relaxed) != 0)  // relaxed: see uses
            ++faults;
          ++uses[item];
        }
        mine += got.size();
        held.insert(held.end(), got.begin(), got.end());
      };
      const auto put = [&](std::size_t n) {
        for (const std::uint32_t item : std::span(held).last(n)) {
          if (owner[item].exchange(0, std::memory_order_relaxed) != me)  // relaxed: see uses
            ++faults;
        }
        list->give(std::span(held).last(n));
        held.resize(held.size() - n);
      };
      while (!stop) {
        if (random() % 2 == 0) {
          get(random() % 30);
        } else if (!held.empty()) {
          put(1 + random() % held.size());
        }
        get(1);
        if (!held.empty()) put(1);
      }
      put(held.size());
      takes += mine;
    });
  }
  std::this_thread::sleep_for(
      std::chrono::milliseconds(std::getenv("FOREBAY_STRESS") != nullptr ? 20'000 : 200));
  stop = true;
  for (auto& t : threads) t.join();
  EXPECT_EQ(faults, 0);
  EXPECT_EQ(std::accumulate(uses.begin(), uses.end(), std::uint64_t{0}), takes);
  EXPECT_EQ(list->free_count(), total);
  std::vector<std::uint32_t> all(total + 1);
  ASSERT_EQ(list->take(all), total);
  EXPECT_EQ(std::set(all.begin(), all.begin() + total).size(), total);
}

// --- what only one of them does ---

TEST(LockFreeStack, TheLastPushedIsTheFirstPopped) {
  std::vector<basic_lock_free_stack<>::link> links(10);
  basic_lock_free_stack<> stack{std::span(links)};
  stack.push(3);
  stack.push(std::array<std::uint32_t, 3>{5, 7, 9});
  EXPECT_EQ(stack.count(10), 4u);
  EXPECT_EQ(stack.count(2), 2u);
  EXPECT_EQ(stack.pop(), 9u);
  std::array<std::uint32_t, 5> rest{};
  EXPECT_EQ(stack.pop(rest), 3u);
  EXPECT_EQ(rest, (std::array<std::uint32_t, 5>{7, 5, 3, 0, 0}));
  EXPECT_EQ(stack.pop(), stack.none);
}

// A policy whose links tell when they are read: there the test lets another thread's pops and
// pushes happen, which leave the same item on top.
struct interrupted_atomics {
  template <typename T>
  using plain = real_atomics::plain<T>;

  static inline void (*on_link_load)() = nullptr;

  template <typename T>
  struct atomic : std::atomic<T> {
    using std::atomic<T>::atomic;
    T load(std::memory_order order) const noexcept {
      const T value = std::atomic<T>::load(order);
      if constexpr (sizeof(T) == sizeof(std::uint32_t)) {
        if (on_link_load != nullptr) std::exchange(on_link_load, nullptr)();
      }
      return value;
    }
  };
  static void fence(std::memory_order order) noexcept { std::atomic_thread_fence(order); }
};

TEST(LockFreeStack, APopNoticesThatTheItemOnTopCameBack) {
  using stack_type = basic_lock_free_stack<interrupted_atomics>;
  std::vector<stack_type::link> links(3);
  static stack_type* stack = nullptr;
  stack_type here{std::span(links)};
  stack = &here;
  stack->push(std::array<std::uint32_t, 3>{2, 1, 0});
  // 0 1 2 becomes 0 2 after the pop has read that 1 lies below 0.
  interrupted_atomics::on_link_load = [] {
    EXPECT_EQ(stack->pop(), 0u);
    EXPECT_EQ(stack->pop(), 1u);
    stack->push(0);
  };
  EXPECT_EQ(stack->pop(), 0u);
  EXPECT_EQ(stack->pop(), 2u) << "1 is in use and must not be on the stack";
  EXPECT_EQ(stack->pop(), stack_type::none);
}

TEST(BitmapList, TheLowestOfAWordFirstAndGroupsApart) {
  std::vector<basic_bitmap<>::word> words(basic_bitmap<>::words_for(16 * 64 * 2));
  basic_bitmap<> bits{std::span(words)};
  std::vector<std::uint32_t> all(16 * 64 * 2);
  std::iota(all.begin(), all.end(), 0u);
  bits.give(all, 15);
  std::array<std::uint32_t, 3> items{};
  EXPECT_EQ(bits.take(items, 0), 3u);
  EXPECT_EQ(items, (std::array<std::uint32_t, 3>{0, 1, 2}));
  EXPECT_EQ(bits.take(items, 1), 3u);
  EXPECT_EQ(items, (std::array<std::uint32_t, 3>{128, 129, 130}));
  // What comes back is taken again by the same group.
  bits.give(std::array<std::uint32_t, 1>{129}, 0);
  EXPECT_EQ(bits.take(std::span(items).first(1), 0), 1u);
  EXPECT_EQ(items[0], 129u);
}

TEST(BitmapListDeathTest, AnItemThatIsFreeCannotBeGiven) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  bitmap_list list(100);
  give_range(list, 0, 100);
  EXPECT_DEATH(list.give(std::array<std::uint32_t, 1>{40}), "before & bits");
}

TEST(BuddyList, RunsAreAlignedAndComeTogetherAgain) {
  buddy_list list(64);
  give_range(list, 0, 64);
  EXPECT_EQ(list.free_blocks()[6], 1u);
  const std::uint32_t one = take_one(list);
  const auto run = list.take_run(4);
  ASSERT_TRUE(run);
  EXPECT_EQ(*run % 16, 0u);
  EXPECT_EQ(list.free_count(), 64u - 17u);
  EXPECT_FALSE(list.take_run(6)) << "the single item is in the way";
  EXPECT_FALSE(list.take_run(buddy_list::max_order + 1));
  EXPECT_TRUE(list.take_run(5).has_value());
  EXPECT_EQ(list.free_count(), 15u);
  for (std::uint32_t i = 0; i < 16; ++i) list.give(std::array<std::uint32_t, 1>{*run + i});
  list.give(std::array<std::uint32_t, 1>{one});
  EXPECT_EQ(list.free_blocks()[5], 1u);
  list.give_run(list.free_blocks()[5] == 1 && one < 32 ? 32 : 0, 5);
  EXPECT_EQ(list.free_blocks()[6], 1u);
  EXPECT_EQ(list.free_count(), 64u);
}

TEST(BuddyList, ACapacityThatIsNoPowerOfTwo) {
  buddy_list list(100);
  give_range(list, 0, 100);
  EXPECT_EQ(list.free_blocks()[6], 1u);
  EXPECT_EQ(list.free_blocks()[5], 1u);
  EXPECT_EQ(list.free_blocks()[2], 1u);
  EXPECT_EQ(list.take_run(6), 0u);
  EXPECT_FALSE(list.take_run(6));
  list.give_run(0, 6);
  EXPECT_EQ(list.free_count(), 100u);
}

TEST(BuddyListDeathTest, AnItemThatIsFreeCannotBeGiven) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  buddy_list list(100);
  EXPECT_DEATH(list.give(std::array<std::uint32_t, 2>{4, 4}), "no_block");
  EXPECT_DEATH(list.give(std::array<std::uint32_t, 1>{100}), "capacity");
}

TEST(CachedList, SingleItemsStayWithTheCpu) {
  cached_list list(1000, {.magazine_items = 8, .depot_magazines = 4});
  give_range(list, 0, 1000);
  list.give(std::array<std::uint32_t, 1>{take_one(list)});
  EXPECT_GT(list.cache().cached(), 0u);
  EXPECT_EQ(list.free_count(), 1000u);
}

}  // namespace
}  // namespace forebay
