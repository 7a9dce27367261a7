#include "forebay/ring/policy_ring.h"

#include <atomic>
#include <map>
#include <thread>

#include "forebay/os/test_await.h"
#include "forebay/ring/test_ring.h"

namespace forebay {
namespace {

using namespace std::chrono_literals;
using enum exhaustion_policy;
using ring_type = policy_ring<int>;

struct observer final : policy_ring_observer<int> {
  void dropped(const int& item) noexcept override { given_up.push_back(item); }
  void pressure(bool high) noexcept override { signals.push_back(high); }
  std::vector<int> given_up;
  std::vector<bool> signals;
};

std::error_code error_of(int e) { return fail(e).error(); }

std::unique_ptr<ring_type> make(const ring_type::options& o) {
  return std::move(ring_type::create(o).value());
}

std::vector<int> drain(ring_type& ring) {
  std::vector<int> items;
  for (int item = 0; ring.try_pop(item);) items.push_back(item);
  return items;
}

// What every policy does as long as there is room: all of it in order, and nothing counted.
TEST(policy_ring, below_its_capacity_no_policy_does_anything) {
  for (const auto policy : {tail_drop, head_drop, back_pressure, expand, block}) {
    observer seen;
    const auto ring = make({.capacity = 8,
                            .when_full = policy,
                            .limit = 8,
                            .marks = {.high = 8, .low = 0},
                            .observer = &seen});
    EXPECT_EQ(ring->policy(), policy);
    for (int round = 0; round < 3; ++round) {
      for (int i = 0; i < 7; ++i) ASSERT_TRUE(ring->push(i)) << name_of(policy);
      EXPECT_EQ(ring->size(), 7u);
      EXPECT_EQ(drain(*ring), numbers_from(0, 7));
    }
    EXPECT_EQ(ring->statistics(), exhaustion_statistics{}) << name_of(policy);
    EXPECT_TRUE(seen.given_up.empty() && seen.signals.empty());
  }
}

TEST(policy_ring, tail_drop_refuses_the_newcomer) {
  const auto ring = make({.capacity = 4, .when_full = tail_drop});
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(ring->push(i));
  for (int i = 4; i < 7; ++i) EXPECT_EQ(ring->push(i).error(), error_of(ENOBUFS));
  EXPECT_EQ(ring->statistics(), (exhaustion_statistics{.tail_drops = 3}));
  int item = -1;
  ASSERT_TRUE(ring->try_pop(item));
  EXPECT_TRUE(ring->push(9));  // one level below full there is room
  EXPECT_EQ(ring->push(10).error(), error_of(ENOBUFS));
  EXPECT_EQ(drain(*ring), (std::vector<int>{1, 2, 3, 9}));
}

TEST(policy_ring, head_drop_gives_up_the_oldest) {
  observer seen;
  const auto ring = make({.capacity = 4, .when_full = head_drop, .observer = &seen});
  for (int i = 0; i < 11; ++i) ASSERT_TRUE(ring->push(i));
  EXPECT_EQ(seen.given_up, numbers_from(0, 7));
  EXPECT_EQ(ring->statistics(), (exhaustion_statistics{.head_drops = 7}));
  EXPECT_EQ(drain(*ring), numbers_from(7, 4));
}

TEST(policy_ring, back_pressure_signals_at_its_marks) {
  observer seen;
  const auto ring = make({.capacity = 8, .when_full = back_pressure, .observer = &seen});
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(ring->push(i));
  EXPECT_FALSE(ring->pressure());
  ASSERT_TRUE(ring->push(5));  // the sixth of eight
  EXPECT_TRUE(ring->pressure());
  EXPECT_EQ(seen.signals, std::vector<bool>{true});
  ASSERT_TRUE(ring->push(6));  // what was under way still has room
  ASSERT_TRUE(ring->push(7));
  EXPECT_EQ(ring->push(8).error(), error_of(EAGAIN));
  int item = -1;
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(ring->try_pop(item));
  EXPECT_TRUE(ring->pressure());  // three are left
  ASSERT_TRUE(ring->try_pop(item));
  EXPECT_FALSE(ring->pressure());
  EXPECT_EQ(seen.signals, (std::vector<bool>{true, false}));
  EXPECT_EQ(ring->statistics(), (exhaustion_statistics{.refusals = 1, .raised = 1, .lowered = 1}));
}

TEST(policy_ring, expand_doubles_up_to_its_limit) {
  const auto ring = make({.capacity = 4, .when_full = expand, .limit = 16});
  int item = -1;
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(ring->push(i));
  ASSERT_TRUE(ring->try_pop(item));  // so that the items go over the end when it grows
  ASSERT_TRUE(ring->try_pop(item));
  for (int i = 3; i < 6; ++i) ASSERT_TRUE(ring->push(i));
  EXPECT_EQ(ring->capacity(), 4u);
  ASSERT_TRUE(ring->push(6));
  EXPECT_EQ(ring->capacity(), 8u);
  for (int i = 7; i < 18; ++i) ASSERT_TRUE(ring->push(i));
  EXPECT_EQ(ring->capacity(), 16u);
  EXPECT_EQ(ring->size(), 16u);
  EXPECT_EQ(ring->push(18).error(), error_of(ENOBUFS));
  EXPECT_EQ(ring->statistics(), (exhaustion_statistics{.tail_drops = 1, .expansions = 2}));
  EXPECT_EQ(drain(*ring), numbers_from(2, 16));
}

TEST(policy_ring, block_waits_for_room) {
  const auto ring = make({.capacity = 2, .when_full = block});
  ASSERT_TRUE(ring->push(0));
  ASSERT_TRUE(ring->push(1));
  EXPECT_EQ(ring->push(2, {.timeout = 5ms}).error(), error_of(ETIMEDOUT));
  std::stop_source stop;
  stop.request_stop();
  EXPECT_EQ(ring->push(2, {.stop = stop.get_token()}).error(), error_of(ECANCELED));
  std::thread consumer([&] {
    EXPECT_TRUE(eventually([&] { return ring->statistics().waits == 3; }));
    std::this_thread::sleep_for(10ms);  // it is counted before it sleeps
    int item = -1;
    EXPECT_TRUE(ring->try_pop(item));
  });
  EXPECT_TRUE(ring->push(2));
  consumer.join();
  EXPECT_EQ(ring->statistics(),
            (exhaustion_statistics{.waits = 3, .timeouts = 1, .cancellations = 1}));
  EXPECT_EQ(drain(*ring), numbers_from(1, 2));
}

TEST(policy_ring, refuses_bad_options) {
  const auto error = [](const ring_type::options& o) { return ring_type::create(o).error(); };
  for (const auto policy : {tail_drop, head_drop, back_pressure, block}) {
    for (const std::size_t bad : {0u, 1u, 12u}) {
      EXPECT_EQ(error({.capacity = bad, .when_full = policy}), error_of(EINVAL)) << bad;
    }
    EXPECT_EQ(error({.capacity = 2 * ring_capacity_max, .when_full = policy}), errc::too_large);
  }
  const auto expand_error = [&](std::size_t capacity, std::size_t limit) {
    return error({.capacity = capacity, .when_full = expand, .limit = limit});
  };
  EXPECT_EQ(expand_error(1, 4), error_of(EINVAL));
  EXPECT_EQ(expand_error(6, 12), error_of(EINVAL));
  EXPECT_EQ(expand_error(8, 4), error_of(EINVAL));
  EXPECT_EQ(expand_error(8, 24), error_of(EINVAL));
  EXPECT_EQ(expand_error(8, 0), error_of(EINVAL));
  EXPECT_EQ(expand_error(8, 2 * ring_capacity_max), errc::too_large);
  const auto marks_error = [&](std::size_t high, std::size_t low) {
    return error({.capacity = 8, .when_full = back_pressure, .marks = {.high = high, .low = low}});
  };
  EXPECT_EQ(marks_error(4, 4), error_of(EINVAL));
  EXPECT_EQ(marks_error(9, 1), error_of(EINVAL));
  EXPECT_EQ(marks_error(0, 1), error_of(EINVAL));
  if (!ring_allocations_can_fail) return;
  ring_allocations_left = 0;
  EXPECT_EQ(error({.capacity = 8}), error_of(ENOMEM));
  ring_allocations_left = -1;
}

// Against a queue that is written down: random pushes and pops under each policy that never waits.
RC_GTEST_PROP(policy_ring, does_what_its_policy_says, ()) {
  const auto policy = *rc::gen::element(tail_drop, head_drop, back_pressure, expand);
  const auto pushes = *rc::gen::container<std::vector<bool>>(rc::gen::arbitrary<bool>());
  observer seen;
  const auto ring = make({.capacity = 4,
                          .when_full = policy,
                          .limit = 8,
                          .marks = {.high = 3, .low = 1},
                          .observer = &seen});
  const std::size_t limit = policy == expand ? 8 : 4;
  std::deque<int> queue;
  exhaustion_statistics expected;
  bool high = false;
  int next = 0;
  for (const bool push : pushes) {
    if (push) {
      const bool full = queue.size() == limit;
      RC_ASSERT(ring->push(next).has_value() == (!full || policy == head_drop));
      if (full && policy == head_drop) {
        RC_ASSERT(seen.given_up.back() == queue.front());
        queue.pop_front();
        ++expected.head_drops;
      } else if (full) {
        ++(policy == back_pressure ? expected.refusals : expected.tail_drops);
      }
      if (!full || policy == head_drop) queue.push_back(next++);
      if (policy == expand && queue.size() == 5 && expected.expansions == 0) ++expected.expansions;
      if (policy == back_pressure && !high && queue.size() >= 3) {
        high = true;
        ++expected.raised;
      }
    } else {
      int item = -1;
      RC_ASSERT(ring->try_pop(item) == !queue.empty());
      if (!queue.empty()) {
        RC_ASSERT(item == queue.front());
        queue.pop_front();
        if (high && queue.size() <= 1) {
          high = false;
          ++expected.lowered;
        }
      }
    }
    RC_ASSERT(ring->size() == queue.size());
    RC_ASSERT(ring->pressure() == high);
    RC_ASSERT(ring->statistics() == expected);
  }
  RC_ASSERT(seen.signals.size() == expected.raised + expected.lowered);
}

// With threads on both sides: each item is popped, or given up, or refused, once; and the books say
// how many of each.
TEST(policy_ring_stress, every_item_is_accounted_for) {
  struct counting final : policy_ring_observer<int> {
    void dropped(const int& item) noexcept override {
      sum += static_cast<std::uint64_t>(item);
      ++count;
    }
    void pressure(bool high) noexcept override { last = high; }
    std::atomic<std::uint64_t> sum{0};
    std::atomic<std::uint64_t> count{0};
    std::atomic<bool> last{false};
  };
  constexpr int per_producer = 10'000;
  for (const auto policy : {tail_drop, head_drop, back_pressure, expand, block}) {
    counting seen;
    const auto ring = make({.capacity = 8, .when_full = policy, .limit = 32, .observer = &seen});
    std::atomic<int> producing{2};
    std::atomic<std::uint64_t> sum{0};
    std::atomic<std::uint64_t> refused{0};
    std::vector<std::thread> threads;
    for (int p = 0; p < 2; ++p) {
      threads.emplace_back([&] {
        for (int i = 1; i <= per_producer; ++i) {
          if (!ring->push(i)) {
            sum += static_cast<std::uint64_t>(i);
            ++refused;
          }
          if (i % 64 == 0) std::this_thread::yield();
        }
        --producing;
      });
    }
    for (int c = 0; c < 2; ++c) {
      threads.emplace_back([&] {
        for (;;) {
          const bool last = producing == 0;
          int item = 0;
          if (ring->try_pop(item))
            sum += static_cast<std::uint64_t>(item);
          else if (last)
            return;
          else
            std::this_thread::yield();
        }
      });
    }
    for (std::thread& t : threads) t.join();
    EXPECT_EQ(sum + seen.sum, 2ull * per_producer * (per_producer + 1) / 2) << name_of(policy);
    const exhaustion_statistics s = ring->statistics();
    EXPECT_EQ(s.head_drops, seen.count.load());
    EXPECT_EQ(s.tail_drops + s.refusals, refused.load()) << name_of(policy);
    EXPECT_EQ(s.raised, s.lowered);
    EXPECT_FALSE(ring->pressure());
    EXPECT_FALSE(seen.last.load());
    EXPECT_TRUE(policy != block || refused == 0);
    EXPECT_TRUE(policy == back_pressure || s.raised == 0);
  }
}

}  // namespace
}  // namespace forebay
