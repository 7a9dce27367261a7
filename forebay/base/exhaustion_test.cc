#include "forebay/base/exhaustion.h"

#include <gtest/gtest.h>

#include <set>
#include <thread>

#include "forebay/base/test_counting_atomics.h"

namespace forebay {
namespace {

using change = pressure_gate::change;

TEST(exhaustion, policies_have_names) {
  std::set<std::string_view> names;
  for (const auto p :
       {exhaustion_policy::tail_drop, exhaustion_policy::head_drop,
        exhaustion_policy::back_pressure, exhaustion_policy::expand, exhaustion_policy::block}) {
    names.insert(name_of(p));
  }
  EXPECT_EQ(names.size(), 5u);
  EXPECT_TRUE(names.contains("head_drop"));
  EXPECT_EQ(name_of(static_cast<exhaustion_policy>(77)), "unknown");
}

TEST(exhaustion, each_counter_is_read_as_itself) {
  exhaustion_counters c;
  add_to(c.tail_drops, 1);
  add_to(c.head_drops, 2);
  add_to(c.refusals, 3);
  add_to(c.raised, 4);
  add_to(c.lowered, 5);
  add_to(c.expansions, 6);
  add_to(c.waits, 7);
  add_to(c.timeouts, 8);
  add_to(c.cancellations, 9);
  EXPECT_EQ(c.read(), (exhaustion_statistics{1, 2, 3, 4, 5, 6, 7, 8, 9}));
}

TEST(pressure_gate, goes_up_at_the_high_mark_and_down_at_the_low_one) {
  pressure_gate gate({.high = 6, .low = 2});
  std::size_t level = 0;
  const auto now = [&] { return level; };
  for (level = 1; level < 6; ++level) EXPECT_EQ(gate.added(now), change::none) << level;
  EXPECT_EQ(gate.added(now), change::raised);
  EXPECT_TRUE(gate.raised());
  level = 8;
  EXPECT_EQ(gate.added(now), change::none);  // it is up already
  for (level = 7; level > 2; --level) EXPECT_EQ(gate.taken(now), change::none) << level;
  EXPECT_EQ(gate.taken(now), change::lowered);
  EXPECT_FALSE(gate.raised());
  level = 0;
  EXPECT_EQ(gate.taken(now), change::none);
  level = 5;
  EXPECT_EQ(gate.added(now), change::none);  // between the marks nothing changes
}

TEST(pressure_gate, who_raises_it_takes_it_down_if_the_others_have_left_meanwhile) {
  pressure_gate gate({.high = 6, .low = 2});
  unsigned looks = 0;
  EXPECT_EQ(gate.added([&]() -> std::size_t { return looks++ == 0 ? 6 : 1; }), change::both);
  EXPECT_FALSE(gate.raised());
}

TEST(pressure_gate, below_the_high_mark_who_adds_pays_no_locked_instruction) {
  basic_pressure_gate<counting_atomics> gate({.high = 6, .low = 2});
  EXPECT_EQ(locked_by([&] { gate.added([] { return std::size_t{5}; }); }), 0u);
  EXPECT_EQ(locked_by([&] { gate.added([] { return std::size_t{6}; }); }), 1u);
  EXPECT_EQ(locked_by([&] { gate.added([] { return std::size_t{7}; }); }), 0u);
}

// With everything taken, the signal is down; each change was somebody's.
TEST(pressure_gate_stress, is_never_left_up) {
  for (unsigned round = 0; round < 200; ++round) {
    pressure_gate gate({.high = 3, .low = 1});
    std::atomic<std::size_t> level{0};
    std::atomic<unsigned> raised{0};
    std::atomic<unsigned> lowered{0};
    const auto now = [&] { return level.load(std::memory_order_relaxed); };  // relaxed: a gate's
    const auto count = [&](change c) {
      if (c == change::raised || c == change::both) ++raised;
      if (c == change::lowered || c == change::both) ++lowered;
    };
    constexpr unsigned items = 300;
    std::thread adder([&] {
      for (unsigned i = 0; i < items; ++i) {
        level.fetch_add(1, std::memory_order_relaxed);  // relaxed: see now
        count(gate.added(now));
      }
    });
    for (unsigned taken = 0; taken < items;) {
      if (now() == 0) {
        std::this_thread::yield();
        continue;
      }
      level.fetch_sub(1, std::memory_order_relaxed);  // relaxed: see now
      ++taken;
      count(gate.taken(now));
    }
    adder.join();
    ASSERT_FALSE(gate.raised());
    ASSERT_EQ(raised.load(), lowered.load());
  }
}

}  // namespace
}  // namespace forebay
