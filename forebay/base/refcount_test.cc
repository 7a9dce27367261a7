#include "forebay/base/refcount.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <thread>
#include <vector>

namespace forebay {
namespace {

// Runs `use` and returns how many misuses it was caught at.
template <typename F>
std::uint64_t misuses_of(F use) {
  const std::uint64_t before = refcount_misuses();
  use();
  return refcount_misuses() - before;
}

TEST(Refcount, CountsAndIsLastExactlyOnce) {
  refcount r;
  EXPECT_EQ(r.value(), 1u);
  EXPECT_EQ(misuses_of([&] {
              r.get();
              EXPECT_TRUE(r.get_unless_zero());
              EXPECT_EQ(r.value(), 3u);
              EXPECT_FALSE(r.put());
              EXPECT_FALSE(r.put());
              EXPECT_TRUE(r.put());
            }),
            0u);
  EXPECT_EQ(r.value(), 0u);
}

TEST(Refcount, GetUnlessZeroRefusesADeadObject) {
  refcount r(0);
  EXPECT_EQ(misuses_of([&] { EXPECT_FALSE(r.get_unless_zero()); }), 0u);
  EXPECT_EQ(r.value(), 0u);
  r.set(1);
  EXPECT_TRUE(r.get_unless_zero());
  EXPECT_EQ(r.value(), 2u);
}

TEST(Refcount, GetFromZeroSaturates) {
  refcount r(0);
  EXPECT_EQ(misuses_of([&] { r.get(); }), 1u);
  EXPECT_EQ(r.value(), refcount::saturated);
}

TEST(Refcount, PutOnZeroSaturatesAndIsNotTheLastOne) {
  refcount r(0);
  EXPECT_EQ(misuses_of([&] { EXPECT_FALSE(r.put()); }), 1u);
  EXPECT_EQ(r.value(), refcount::saturated);
}

TEST(Refcount, GetPastTheMaximumSaturates) {
  refcount r(refcount::max - 1);
  EXPECT_EQ(misuses_of([&] { r.get(); }), 0u);
  EXPECT_EQ(r.value(), refcount::max);
  EXPECT_EQ(misuses_of([&] { r.get(); }), 1u);
  EXPECT_EQ(r.value(), refcount::saturated);
}

TEST(Refcount, GetUnlessZeroPastTheMaximumSaturatesButGivesTheReference) {
  refcount r(refcount::max - 1);
  EXPECT_EQ(misuses_of([&] { EXPECT_TRUE(r.get_unless_zero()); }), 0u);
  EXPECT_EQ(r.value(), refcount::max);
  EXPECT_EQ(misuses_of([&] { EXPECT_TRUE(r.get_unless_zero()); }), 1u);
  EXPECT_EQ(r.value(), refcount::saturated);
}

TEST(Refcount, TheMaximumItselfIsARealCount) {
  refcount r(refcount::max);
  EXPECT_EQ(misuses_of([&] { EXPECT_FALSE(r.put()); }), 0u);
  EXPECT_EQ(r.value(), refcount::max - 1);
}

TEST(Refcount, ASaturatedCountStaysForEverAndIsNeverFreed) {
  refcount r(0);
  r.get();
  ASSERT_EQ(r.value(), refcount::saturated);
  for (int i = 0; i < 1000; ++i) {
    EXPECT_FALSE(r.put());
    EXPECT_EQ(r.value(), refcount::saturated);
    r.get();
    EXPECT_EQ(r.value(), refcount::saturated);
    EXPECT_TRUE(r.get_unless_zero());
    EXPECT_EQ(r.value(), refcount::saturated);
    EXPECT_FALSE(r.freeze(1));
  }
}

TEST(Refcount, FreezeTakesExactlyTheExpectedCount) {
  refcount r(2);
  EXPECT_EQ(misuses_of([&] {
              EXPECT_FALSE(r.freeze(1));
              EXPECT_EQ(r.value(), 2u);
              EXPECT_TRUE(r.freeze(2));
              EXPECT_EQ(r.value(), 0u);
              EXPECT_FALSE(r.get_unless_zero());
            }),
            0u);
}

RC_GTEST_PROP(Refcount, FollowsAPlainCounter, ()) {
  refcount r(1);
  std::uint32_t model = 1;
  for (const int step : *rc::gen::container<std::vector<int>>(rc::gen::inRange(0, 4))) {
    switch (step) {
      case 0:
        if (model > 0) r.get(), ++model;
        break;
      case 1:
        RC_ASSERT(r.get_unless_zero() == (model > 0));
        if (model > 0) ++model;
        break;
      case 2:
        if (model > 0) RC_ASSERT(r.put() == (--model == 0));
        break;
      default:
        RC_ASSERT(r.freeze(2) == (model == 2));
        if (model == 2) model = 0;
        if (model == 0) r.set(model = 1);
        break;
    }
    RC_ASSERT(r.value() == model);
  }
}

// Many lives of one object: each ends in exactly one last put(), whose caller sees what every other
// holder wrote. `data` is plain on purpose: a missing order shows as a race.
TEST(RefcountStress, ExactlyOneThreadIsLastAndOwnsTheObject) {
  constexpr int lives = 2'000;
  constexpr int holders = 2;
  struct object {
    refcount refs{holders};
    int data[holders] = {};
  };
  std::vector<object> objects(lives);
  std::atomic<int> lasts{0};
  std::atomic<int> incomplete{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < holders; ++t) {
    threads.emplace_back([&, t] {
      for (object& o : objects) {
        o.refs.get();
        o.data[t] = t + 1;
        if (o.refs.put()) ++incomplete;  // this thread's first reference is still held
        if (!o.refs.put()) continue;
        ++lasts;
        for (int h = 0; h < holders; ++h) {
          if (o.data[h] != h + 1) ++incomplete;
        }
      }
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(lasts.load(), lives);
  EXPECT_EQ(incomplete.load(), 0);
}

// One thread starts and freezes lives, the other guesses: a reference that it gets shows the data
// of the life that it belongs to, and a frozen object has no other holder.
TEST(RefcountStress, AGuessedReferenceSeesItsLifeAndFreezeExcludesIt) {
  refcount refs(0);
  int data = 0;  // written only by who owns the object alone
  std::atomic<bool> stop{false};
  std::atomic<int> torn{0};
  std::atomic<int> last_by_reader{0};
  std::thread reader([&] {
    while (!stop.load()) {
      if (!refs.get_unless_zero()) continue;
      if (data % 2 != 0) ++torn;
      if (refs.put()) ++last_by_reader;
    }
  });
  int lives = 0;
  for (int i = 0; i < 5'000; ++i) {
    ++data;  // odd: nobody may see it
    ++data;
    refs.set(1);
    for (int tries = 0; !refs.freeze(1); ++tries) {
      if (tries % 64 == 63) std::this_thread::yield();
    }
    ++lives;
  }
  stop = true;
  reader.join();
  EXPECT_EQ(lives, 5'000);
  EXPECT_EQ(torn.load(), 0);
  EXPECT_EQ(last_by_reader.load(), 0) << "the writer's reference outlived every guess";
}

TEST(RefcountStress, RacingMisuseNeverLeavesTheSaturatedZone) {
  refcount r(refcount::max - 50);
  std::atomic<int> freed{0};
  std::thread up([&] {
    for (int i = 0; i < 20'000; ++i) r.get();
  });
  std::thread down([&] {
    while (r.value() <= refcount::max) std::this_thread::yield();
    for (int i = 0; i < 20'000; ++i) freed += r.put() ? 1 : 0;
  });
  up.join();
  down.join();
  EXPECT_EQ(freed.load(), 0);
  EXPECT_GT(r.value(), refcount::max);
  r.get();
  EXPECT_EQ(r.value(), refcount::saturated);
}

}  // namespace
}  // namespace forebay
