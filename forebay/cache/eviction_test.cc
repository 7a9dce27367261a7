// One thread: not in the thread sanitizer's tree.
// The eviction policies over entries of the test's own: what each promises, and what all of them do
// whatever their owner refuses.

#include "forebay/cache/eviction.h"

#include <gtest/gtest.h>

#include <climits>
#include <random>
#include <set>
#include <vector>

#include "forebay/cache/eviction_lists.h"
#include "forebay/cache/s3_fifo.h"

namespace forebay {
namespace {

struct entry {
  list_node link;
  std::uint64_t number = 0;
  std::uint32_t weight = 1;
  unsigned uses = 0;
  std::uint8_t place = 0;
  bool pinned = false;

  void touch(unsigned times = 1) { uses = std::min(uses + times, eviction_uses_max); }
};

struct entry_traits {
  using entry = forebay::entry;
  using list = intrusive_list<entry, &entry::link>;
  static unsigned uses(const entry& e) noexcept { return e.uses; }
  static void set_uses(entry& e, unsigned n) noexcept { e.uses = n; }
  static std::uint8_t& place(entry& e) noexcept { return e.place; }
  static std::uint32_t weight(const entry& e) noexcept { return e.weight; }
  static std::uint64_t key(const entry& e) noexcept { return e.number; }
  static void coming(const entry&) noexcept {}
};

// A cache of so much weight over a policy; entry i is the object of number i.
template <EvictionPolicy Policy>
struct cache_of {
  explicit cache_of(std::uint64_t capacity, std::size_t objects)
      : policy(capacity), free(capacity), all(objects) {
    for (std::size_t i = 0; i < objects; ++i) all[i].number = i;
  }
  ~cache_of() {
    for (entry& e : all) {
      if (e.link.linked()) policy.erase(e);
    }
  }

  bool in(std::size_t i) const { return all[i].link.linked(); }

  eviction_progress reclaim(std::uint64_t wanted, unsigned scan_limit = UINT_MAX) {
    const eviction_progress done = policy.reclaim(wanted, scan_limit, [](entry& e) noexcept {
      EXPECT_FALSE(e.link.linked());
      return !e.pinned;
    });
    free += done.freed;
    return done;
  }

  // True if it was a hit.
  bool access(std::size_t i, unsigned times = 1) {
    entry& e = all[i];
    const bool hit = in(i);
    if (hit) {
      e.touch();
    } else {
      while (free < e.weight) EXPECT_NE(reclaim(e.weight - free).freed, 0u);
      free -= e.weight;
      policy.insert(e);
    }
    e.touch(times - 1);
    return hit;
  }

  Policy policy;
  std::uint64_t free;
  std::vector<entry> all;
};

template <typename Policy>
class eviction_policies : public testing::Test {};

using policies = testing::Types<adaptive_s3_fifo<entry_traits>, plain_s3_fifo<entry_traits>,
                                clock_policy<entry_traits>, lru_policy<entry_traits>>;
TYPED_TEST_SUITE(eviction_policies, policies);

TYPED_TEST(eviction_policies, whatever_is_done_each_entry_is_there_once_and_can_be_had) {
  constexpr std::size_t objects = 400;
  std::mt19937 random(7);
  cache_of<TypeParam> cache(200, objects);
  for (entry& e : cache.all) e.weight = random() % 8 == 0 ? 16 : 1;
  entry moved;
  for (int i = 0; i < 20'000; ++i) {
    const std::size_t at = random() % objects;
    entry& e = cache.all[at];
    switch (random() % 8) {
      case 0:
        e.pinned = !e.pinned && random() % 4 == 0;
        break;
      case 1:
        if (cache.in(at)) {
          cache.policy.erase(e);
          cache.free += e.weight;
        }
        break;
      case 2:
        if (!cache.in(at)) break;
        moved.weight = e.weight;
        moved.number = e.number;
        cache.policy.replace(e, moved);
        ASSERT_FALSE(cache.in(at));
        ASSERT_EQ(moved.uses, e.uses);
        cache.policy.replace(moved, e);
        break;
      case 3:
        cache.policy.set_capacity(150 + random() % 51);
        break;
      default:
        if (cache.in(at)) {
          e.touch();
        } else if (cache.free >= e.weight || cache.reclaim(e.weight, 1000).freed >= e.weight) {
          cache.free -= e.weight;
          cache.policy.insert(e);
        }
    }
    std::uint64_t weight = 0;
    for (const entry& one : cache.all) weight += one.link.linked() ? one.weight : 0;
    ASSERT_EQ(weight + cache.free, 200u);
  }
  // Pinned ones stay, all others go.
  while (true) {
    const eviction_progress p = cache.reclaim(UINT64_MAX);
    if (p.freed == 0 && p.second_chances == 0) break;
  }
  for (std::size_t i = 0; i < objects; ++i) {
    EXPECT_TRUE(!cache.in(i) || cache.all[i].pinned);
  }
}

TYPED_TEST(eviction_policies, what_is_refused_hides_nothing) {
  cache_of<TypeParam> cache(1000, 1000);
  for (std::size_t i = 0; i < 1000; ++i) cache.access(i, 1 + i % 4);
  // All but one of each ten cannot be had, wherever they are.
  for (std::size_t i = 0; i < 1000; ++i) cache.all[i].pinned = i % 10 != 3;
  std::uint64_t freed = 0;
  for (int calls = 0; calls < 20 && freed < 100; ++calls) freed += cache.reclaim(1000).freed;
  EXPECT_EQ(freed, 100u);
  // And when nothing can be had, that is found out in bounded time.
  EXPECT_EQ(cache.reclaim(1, 4096).freed, 0u);
  for (std::size_t i = 0; i < 1000; ++i) EXPECT_EQ(cache.in(i), i % 10 != 3);
}

// Writers that are faster than their device: what is new is dirty, what is old is not.
TYPED_TEST(eviction_policies, what_is_new_and_refused_is_not_gone_through_for_each_that_is_wanted) {
  cache_of<TypeParam> cache(4000, 40'000);
  for (std::size_t i = 0; i < 6000; ++i) cache.access(i);
  std::uint64_t looks = 0;
  constexpr std::size_t fresh = 2000;
  constexpr std::size_t dirty = 1500;
  for (std::size_t i = 6000; i < 6000 + fresh; ++i) {
    while (cache.free == 0) {
      cache.free += cache.policy
                        .reclaim(32, 4096,
                                 [&looks](entry& e) noexcept {
                                   ++looks;
                                   return !e.pinned;
                                 })
                        .freed;
    }
    --cache.free;
    cache.policy.insert(cache.all[i]);
    cache.all[i].pinned = true;
    cache.all[i - dirty].pinned = false;  // written back
  }
  EXPECT_LE(looks, 10 * fresh);
}

TYPED_TEST(eviction_policies, one_call_looks_at_no_more_than_it_may) {
  cache_of<TypeParam> cache(1000, 1000);
  for (std::size_t i = 0; i < 1000; ++i) cache.access(i);
  for (std::size_t i = 0; i < 1000; ++i) cache.access(i, 4);
  const eviction_progress p = cache.reclaim(1000, 10);
  EXPECT_EQ(p.freed, 0u);
  EXPECT_LE(p.second_chances, 10u);
  EXPECT_GT(p.second_chances, 0u);
}

TYPED_TEST(eviction_policies, no_more_leaves_than_is_wanted) {
  cache_of<TypeParam> cache(10, 10);
  for (std::size_t i = 0; i < 10; ++i) cache.access(i);
  std::set<std::size_t> left;
  for (std::size_t i = 0; i < 10; ++i) {
    EXPECT_EQ(cache.reclaim(1).freed, 1u);
    for (std::size_t j = 0; j < 10; ++j) {
      if (!cache.in(j)) left.insert(j);
    }
    EXPECT_EQ(left.size(), i + 1);
  }
}

TEST(clock_policy, a_use_is_worth_one_round) {
  cache_of<clock_policy<entry_traits>> cache(4, 8);
  for (std::size_t i = 0; i < 4; ++i) cache.access(i, i == 0 ? 4 : 1);
  cache.access(4);
  EXPECT_TRUE(cache.in(0));
  EXPECT_FALSE(cache.in(1)) << "the oldest that was not used";
  cache.access(5);
  cache.access(6);
  EXPECT_TRUE(cache.in(0));
  cache.access(7);
  EXPECT_FALSE(cache.in(0)) << "the round is over";
}

TEST(lru_policy, the_second_touch_activates_and_the_balance_deactivates) {
  cache_of<lru_policy<entry_traits>> cache(10, 100);
  for (std::size_t i = 0; i < 10; ++i) cache.access(i, i < 5 ? 2 : 1);
  for (std::size_t i = 10; i < 60; ++i) cache.access(i);
  for (std::size_t i = 0; i < 5; ++i) EXPECT_TRUE(cache.in(i)) << "active: a scan passes by";
  // More want to be active than half: the oldest of them make room.
  for (std::size_t i = 60; i < 80; ++i) cache.access(i, 2);
  for (std::size_t i = 0; i < 5; ++i) EXPECT_FALSE(cache.in(i));
}

TEST(lru_policy, keeps_relatively_less_inactive_in_a_large_cache) {
  constexpr std::uint64_t gib = 1u << 18;
  // 1 GiB: as many as active. 40 GiB: a twentieth.
  for (const auto& [capacity, active_left] : {std::pair{gib / 2, 8u}, std::pair{40 * gib, 15u}}) {
    cache_of<lru_policy<entry_traits>> cache(capacity, 16);
    for (std::size_t i = 0; i < 16; ++i) cache.access(i, 2);
    while (cache.reclaim(1, 1).freed == 0) {
    }
    unsigned active = 0;
    for (std::size_t i = 0; i < 16; ++i) active += cache.all[i].place == 1 ? 1 : 0;
    EXPECT_EQ(active, active_left) << capacity;
  }
}

TEST(s3_fifo, what_is_used_twice_on_its_way_stays_and_what_is_remembered_comes_in_at_once) {
  cache_of<plain_s3_fifo<entry_traits>> cache(100, 1000);
  for (std::size_t i = 0; i < 100; ++i) cache.access(i);
  cache.access(100, 3);
  cache.access(101, 2);
  for (std::size_t i = 200; i < 240; ++i) cache.access(i);
  EXPECT_TRUE(cache.in(100));
  EXPECT_FALSE(cache.in(101)) << "one use is not enough";
  cache.access(101);
  for (std::size_t i = 240; i < 280; ++i) cache.access(i);
  EXPECT_TRUE(cache.in(101)) << "it came back soon";
  // Half of the cache is main, filled at the beginning, and not touched by all this.
  for (std::size_t i = 12; i < 90; ++i) EXPECT_TRUE(cache.in(i)) << i;
}

TEST(s3_fifo, uses_in_the_window_count_as_one_if_there_is_one) {
  cache_of<adaptive_s3_fifo<entry_traits>> with(1000, 3000);
  cache_of<plain_s3_fifo<entry_traits>> without(1000, 3000);
  const auto kept = [](auto& cache) {
    for (std::size_t i = 0; i < 1000; ++i) cache.access(i);
    // One pass in small pieces: each page is used many times, all at once.
    for (std::size_t i = 1000; i < 2000; ++i) cache.access(i, 8);
    std::size_t n = 0;
    for (std::size_t i = 200; i < 1000; ++i) n += cache.in(i) ? 1 : 0;
    return n;
  };
  EXPECT_GT(kept(with), 790u);
  EXPECT_LT(kept(without), 10u);
}

TEST(s3_fifo, the_small_queue_follows_the_load) {
  constexpr std::size_t capacity = 1000;
  cache_of<adaptive_s3_fifo<entry_traits>> cache(capacity, 200'000);
  EXPECT_EQ(cache.policy.small_target(), capacity / 10);
  std::mt19937 random(3);
  // Recency is all that counts: everything is used again after 120 others, and never after that.
  for (std::size_t i = 0; i < 50'000; ++i) {
    cache.access(i);
    if (i > 120) cache.access(i - 120);
  }
  EXPECT_GT(cache.policy.small_target(), 120u) << "long enough to be there when it is used";
  const std::uint64_t large = cache.policy.small_target();
  // Frequency is all that counts: a set that nearly fills the cache, and a scan through it.
  for (std::size_t i = 0; i < 100'000; ++i) {
    cache.access(random() % 1100);
    if (i % 2 == 0) cache.access(60'000 + i);
  }
  EXPECT_LT(cache.policy.small_target(), large / 2);
  cache.policy.set_capacity(capacity / 2);
  EXPECT_EQ(cache.policy.small_target(), capacity / 20);
}

TEST(eviction_history, remembers_the_latest_and_each_once) {
  constexpr std::uint64_t capacity = 10'000;
  eviction_history history(capacity);
  EXPECT_LE(history.bytes(), 2 * capacity + 64);
  EXPECT_GE(history.bytes(), 2 * capacity);
  for (std::uint64_t key = 0; key < 2 * capacity; ++key) history.remember(key);
  const auto count = [&](std::uint64_t from, std::uint64_t to) {
    std::uint64_t n = 0;
    for (std::uint64_t key = from; key < to; ++key) n += history.recall(key) ? 1 : 0;
    return n;
  };
  EXPECT_LT(count(1'000'000, 1'010'000), 20u) << "nearly never what was not there";
  EXPECT_GT(count(capacity + capacity / 2, 2 * capacity), capacity / 2 - 50) << "the newer half";
  EXPECT_LT(count(capacity + capacity / 2, 2 * capacity), 20u) << "once";
  EXPECT_LT(count(0, capacity / 2), capacity / 50) << "long ago";
}

TEST(eviction_history, may_remember_less_or_nothing) {
  eviction_history history(1024);
  history.set_capacity(256);
  for (std::uint64_t key = 0; key < 1024; ++key) history.remember(key);
  std::uint64_t n = 0;
  for (std::uint64_t key = 0; key < 1024; ++key) n += history.recall(key) ? 1 : 0;
  EXPECT_GE(n, 250u);
  EXPECT_LE(n, 262u);
  eviction_history none(0);
  none.remember(1);
  EXPECT_FALSE(none.recall(1));
  EXPECT_EQ(none.bytes(), 0u);
}

TEST(eviction, policies_have_names) {
  for (const eviction_policy p : all_eviction_policies) {
    EXPECT_EQ(eviction_policy_named(to_string(p)), p);
    EXPECT_NE(eviction_policy_names.find(to_string(p)), std::string_view::npos) << to_string(p);
  }
  EXPECT_FALSE(eviction_policy_named("none"));
  EXPECT_FALSE(eviction_policy_named(""));
}

}  // namespace
}  // namespace forebay
