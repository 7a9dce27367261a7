// One thread: not in the thread sanitizer's tree.

#include "forebay/memory/pressure_governor.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>

namespace forebay {
namespace {

constexpr std::uint64_t mebibyte = 1u << 20;
constexpr std::uint64_t ms = 1'000'000;
constexpr std::uint64_t capacity = 256 * mebibyte;

// An arena, the group that it is in, and a clock.
struct world {
  pressure_governor governor{{.capacity_bytes = capacity, .floor_bytes = 8 * mebibyte}};
  std::uint64_t now = 1'000 * ms;
  std::uint64_t held = capacity;  // by the arena, all of it touched
  std::uint64_t others = 10 * mebibyte;
  std::uint64_t limit = UINT64_MAX;

  std::uint64_t look(memory_pressure event = memory_pressure::none) {
    pressure_governor::look l{.now_ns = now, .committed_bytes = held, .resident_bytes = held};
    if (limit != UINT64_MAX) l.room = memory_room{limit, held + others, 0};
    l.event = event;
    held = std::min(held, governor.decide(l));
    now += 50 * ms;
    return governor.limit_bytes();
  }
  // The arena takes what it may have.
  void fill() { held = governor.limit_bytes(); }
};

TEST(PressureGovernor, WithoutPressureThereIsNoLimit) {
  world w;
  for (int i = 0; i < 100; ++i) EXPECT_EQ(w.look(), capacity);
  EXPECT_FALSE(w.governor.is_limited());
  EXPECT_FALSE(w.governor.is_tense(w.now));
}

TEST(PressureGovernor, AWishIsACeilingThatIsReachedAtOnce) {
  world w;
  const auto wish = [&w](std::uint64_t bytes) {
    pressure_governor::look l{.now_ns = w.now, .committed_bytes = w.held, .resident_bytes = w.held};
    if (w.limit != UINT64_MAX) l.room = memory_room{w.limit, w.held + w.others, 0};
    w.governor.set_ceiling(bytes, l);
    return w.look();
  };
  EXPECT_EQ(wish(101 * mebibyte), 100 * mebibyte);
  EXPECT_TRUE(w.governor.is_limited());
  EXPECT_FALSE(w.governor.is_tense(w.now)) << "nothing is short";
  for (int i = 0; i < 100; ++i) EXPECT_EQ(w.look(), 100 * mebibyte) << "grows past the wish";
  EXPECT_EQ(wish(1), 8 * mebibyte) << "the floor";
  EXPECT_EQ(wish(200 * mebibyte), 200 * mebibyte);
  w.fill();
  // What is known to be there comes before the wish, and growth is slow once memory was short.
  w.limit = 128 * mebibyte;
  EXPECT_EQ(w.look(), 110 * mebibyte);
  EXPECT_EQ(wish(240 * mebibyte), 110 * mebibyte);
  w.limit = UINT64_MAX;
  EXPECT_EQ(wish(UINT64_MAX), 110 * mebibyte) << "it was short a moment ago";
  for (int i = 0; i < 200; ++i) w.look();
  EXPECT_EQ(w.governor.limit_bytes(), capacity);
  EXPECT_FALSE(w.governor.is_limited());
}

TEST(PressureGovernor, AKnownLimitIsKeptAtOnceWithAMargin) {
  world w;
  w.limit = 128 * mebibyte;
  EXPECT_EQ(w.look(), 110 * mebibyte) << "128 less 8 of margin and 10 of the others";
  EXPECT_TRUE(w.governor.is_tense(w.now));
  EXPECT_LE(w.held + w.others + pressure_governor::margin_bytes(w.limit), w.limit);
  // And stays where it is.
  for (int i = 0; i < 200; ++i) EXPECT_EQ(w.look(), 110 * mebibyte);
  EXPECT_TRUE(w.governor.is_limited());
}

TEST(PressureGovernor, ALimitAboveWhatIsNeededIsNone) {
  world w;
  w.limit = 512 * mebibyte;
  EXPECT_EQ(w.look(), capacity);
  w.limit = capacity + 10 * mebibyte + 18 * mebibyte;
  EXPECT_EQ(w.look(), capacity) << "just enough with the margin";
}

TEST(PressureGovernor, WhatWasNeverTouchedDoesNotCountAsHad) {
  world w;
  // At the start: everything is committed and nothing of it used.
  const pressure_governor::look l{.now_ns = w.now,
                                  .committed_bytes = capacity,
                                  .resident_bytes = 0,
                                  .room = memory_room{128 * mebibyte, 10 * mebibyte, 0}};
  EXPECT_EQ(w.governor.decide(l), 110 * mebibyte);
}

TEST(PressureGovernor, WhenTheOthersGrowItMakesRoom) {
  world w;
  w.limit = 512 * mebibyte;
  EXPECT_EQ(w.look(), capacity);
  w.others = 400 * mebibyte;
  EXPECT_EQ(w.look(), 80 * mebibyte);  // 512 less 400 and 32
  w.others = 600 * mebibyte;
  EXPECT_EQ(w.look(), 8 * mebibyte) << "never below the floor";
}

TEST(PressureGovernor, AnEventTakesAShareAndMoreTakeMore) {
  world w;
  EXPECT_EQ(w.look(memory_pressure::moderate), 240 * mebibyte);
  EXPECT_EQ(w.look(memory_pressure::critical), 180 * mebibyte);
  EXPECT_EQ(w.look(memory_pressure::critical), 134 * mebibyte) << "135, in whole chunks";
  for (int i = 0; i < 100; ++i) w.look(memory_pressure::moderate);
  EXPECT_EQ(w.governor.limit_bytes(), 8 * mebibyte) << "down to the floor, by a chunk at least";
}

TEST(PressureGovernor, AnEventIsNotTakenTwiceForTheSameShortage) {
  world w;
  w.look(memory_pressure::critical);
  const std::uint64_t once = w.governor.limit_bytes();
  w.now -= 45 * ms;
  EXPECT_EQ(w.look(memory_pressure::critical), once) << "what was given back shows no effect yet";
  w.held = capacity;
  EXPECT_EQ(w.look(memory_pressure::critical), once) << "it has not been given back yet";
  EXPECT_TRUE(w.governor.is_tense(w.now));
  EXPECT_LT(w.look(memory_pressure::critical), once);
}

TEST(PressureGovernor, TheShareIsOfWhatThereIsNotOfWhatThereMightBe) {
  world w;
  w.held = 64 * mebibyte;
  EXPECT_EQ(w.look(memory_pressure::critical), 48 * mebibyte);
}

TEST(PressureGovernor, GrowsAgainInStepsAfterAWhileOfCalm) {
  world w;
  for (int i = 0; i < 4; ++i) w.look(memory_pressure::critical);
  const std::uint64_t low = w.governor.limit_bytes();
  const std::uint64_t start = w.now;
  while (w.look() == low) ASSERT_LT(w.now - start, 10'000 * ms);
  EXPECT_GE(w.now - start, 1'900 * ms);
  EXPECT_EQ(w.governor.limit_bytes(), low + capacity / 16);
  std::uint64_t before = w.governor.limit_bytes();
  while (w.governor.is_limited()) {
    const std::uint64_t now = w.look();
    EXPECT_LE(now - before, capacity / 16);
    before = now;
    ASSERT_LT(w.now - start, 20'000 * ms);
  }
  EXPECT_LT(w.now - start, 8'000 * ms);
}

TEST(PressureGovernor, GrowsAsFarAsIsAllowed) {
  world w;
  w.limit = 128 * mebibyte;
  w.look();
  w.limit = 192 * mebibyte;  // less 12 and 10: 170
  for (int i = 0; i < 400; ++i) {
    w.look();
    w.fill();
    EXPECT_LE(w.held + w.others, w.limit);
  }
  EXPECT_EQ(w.governor.limit_bytes(), 170 * mebibyte);
  w.limit = UINT64_MAX;
  for (int i = 0; i < 400; ++i) w.look();
  EXPECT_FALSE(w.governor.is_limited());
}

TEST(PressureGovernor, CalmStartsAnewWithEachEvent) {
  world w;
  w.look(memory_pressure::critical);
  for (int i = 0; i < 100; ++i) {
    w.look(i % 20 == 0 ? memory_pressure::moderate : memory_pressure::none);
  }
  EXPECT_LT(w.governor.limit_bytes(), capacity * 3 / 4) << "every second one: no growth in between";
}

TEST(PressureGovernor, AFloorAboveTheCapacityIsTheCapacity) {
  pressure_governor g({.capacity_bytes = 4 * mebibyte, .floor_bytes = 100 * mebibyte});
  EXPECT_EQ(
      g.decide({.now_ns = 1, .committed_bytes = 4 * mebibyte, .event = memory_pressure::critical}),
      4 * mebibyte);
}

// Whatever is seen: the limit stays in its bounds, goes up only in calm, and is never more than
// allowed but for the floor.
RC_GTEST_PROP(PressureGovernor, StaysInItsBounds, ()) {
  world w;
  const auto steps = *rc::gen::inRange(1, 60);
  for (int i = 0; i < steps; ++i) {
    w.limit = *rc::gen::element<std::uint64_t>(0, mebibyte, 100 * mebibyte, 300 * mebibyte,
                                               UINT64_MAX - 1, UINT64_MAX);
    w.others = *rc::gen::inRange<std::uint64_t>(0, 400 * mebibyte);
    w.held = *rc::gen::inRange<std::uint64_t>(0, capacity + 1);
    const auto event = *rc::gen::element(memory_pressure::none, memory_pressure::none,
                                         memory_pressure::moderate, memory_pressure::critical);
    w.now += *rc::gen::inRange<std::uint64_t>(0, 3'000) * ms;
    pressure_governor::look l{.now_ns = w.now, .committed_bytes = w.held, .resident_bytes = w.held};
    if (w.limit != UINT64_MAX) l.room = memory_room{w.limit, w.held + w.others, 0};
    l.event = event;
    const std::uint64_t before = w.governor.limit_bytes();
    const std::uint64_t after = w.governor.decide(l);
    RC_ASSERT(after >= 8 * mebibyte);
    RC_ASSERT(after <= capacity);
    RC_ASSERT(after <= std::max(w.governor.allowed_bytes(l), 8 * mebibyte));
    if (event != memory_pressure::none) RC_ASSERT(after <= before);
    RC_ASSERT(after <= before + capacity / 16);
  }
}

}  // namespace
}  // namespace forebay
