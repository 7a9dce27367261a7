#include "forebay/base/refcount.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <array>
#include <cstdlib>
#include <thread>
#include <vector>

#include "forebay/base/test_counting_atomics.h"

namespace forebay {
namespace {

// Runs `use` and returns how many misuses it was caught at.
template <typename F>
std::uint64_t misuses_of(F use) {
  const std::uint64_t before = refcount_misuses();
  use();
  return refcount_misuses() - before;
}

// Runs `use` and returns how many misuses of each kind it was caught at, in the order of the enum.
template <typename F>
std::array<std::uint64_t, refcount_misuse_kinds> kinds_of(F use) {
  std::array<std::uint64_t, refcount_misuse_kinds> counts{};
  for (unsigned k = 0; k < refcount_misuse_kinds; ++k) {
    counts[k] = 0 - refcount_misuses(static_cast<refcount_misuse>(k));
  }
  use();
  for (unsigned k = 0; k < refcount_misuse_kinds; ++k) {
    counts[k] += refcount_misuses(static_cast<refcount_misuse>(k));
  }
  return counts;
}
using kinds = std::array<std::uint64_t, refcount_misuse_kinds>;

// One misuse of each kind, on a count of its own.
void misuse(refcount_misuse kind) {
  refcount zero(0);
  refcount one(1);
  refcount full(refcount::max);
  switch (kind) {
    case refcount_misuse::add_not_zero_overflow:
      static_cast<void>(full.get_unless_zero());
      break;
    case refcount_misuse::add_overflow:
      full.get();
      break;
    case refcount_misuse::add_use_after_free:
      zero.get();
      break;
    case refcount_misuse::sub_use_after_free:
      static_cast<void>(zero.put());
      break;
    case refcount_misuse::dec_leak:
      one.put_not_last();
      break;
  }
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

TEST(Refcount, PutNotLastCountsDown) {
  refcount r(3);
  EXPECT_EQ(misuses_of([&] {
              r.put_not_last();
              r.put_not_last();
            }),
            0u);
  EXPECT_EQ(r.value(), 1u);
}

TEST(Refcount, PutNotLastThatIsTheLastLeaksTheObject) {
  for (const std::uint32_t count : {1u, 0u}) {
    refcount r(count);
    EXPECT_EQ(kinds_of([&] { r.put_not_last(); }), (kinds{0, 0, 0, 0, 1}));
    EXPECT_EQ(r.value(), refcount::saturated);
    EXPECT_FALSE(r.put());
  }
}

TEST(Refcount, EachKindOfMisuseIsCountedByItself) {
  for (unsigned k = 0; k < refcount_misuse_kinds; ++k) {
    kinds expected{};
    expected[k] = 1;
    EXPECT_EQ(kinds_of([&] { misuse(static_cast<refcount_misuse>(k)); }), expected) << k;
  }
}

TEST(Refcount, ACountThatHasGoneBadIsCountedOnce) {
  refcount r(refcount::max);
  EXPECT_EQ(kinds_of([&] {
              r.get();
              r.get();
              EXPECT_FALSE(r.put());
              EXPECT_TRUE(r.get_unless_zero());
              r.put_not_last();
            }),
            (kinds{0, 1, 0, 0, 0}));
  EXPECT_EQ(r.value(), refcount::saturated);
}

// A process of its own for each kind, in which it is the first: exactly one line, which names it.
TEST(RefcountDeath, TheFirstMisuseOfEachKindIsPrinted) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const char* const lines[] = {
      "^forebay: refcount 0x[0-9a-f]+: add-not-zero overflow: [^\n]*count was 2147483647[^\n]*\n$",
      "^forebay: refcount 0x[0-9a-f]+: add overflow: [^\n]*count was 2147483647[^\n]*\n$",
      "^forebay: refcount 0x[0-9a-f]+: add use-after-free: [^\n]*count was 0[^\n]*\n$",
      "^forebay: refcount 0x[0-9a-f]+: sub use-after-free: [^\n]*count was 0[^\n]*\n$",
      "^forebay: refcount 0x[0-9a-f]+: dec leak: [^\n]*count was 1[^\n]*\n$",
  };
  for (unsigned k = 0; k < refcount_misuse_kinds; ++k) {
    EXPECT_EXIT(
        {
          const auto kind = static_cast<refcount_misuse>(k);
          for (int i = 0; i < 3; ++i) misuse(kind);
          std::_Exit(refcount_misuses(kind) == 3 && refcount_misuses() == 3 ? 0 : 1);
        },
        testing::ExitedWithCode(0), lines[k]);
  }
}

TEST(RefcountDeath, EachKindHasALineOfItsOwn) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        for (unsigned k = 0; k < refcount_misuse_kinds; ++k) {
          misuse(static_cast<refcount_misuse>(k));
        }
        std::_Exit(0);
      },
      testing::ExitedWithCode(0),
      "add-not-zero overflow(.|\n)*add overflow(.|\n)*add use-after-free(.|\n)*"
      "sub use-after-free(.|\n)*dec leak");
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

// How many locked instructions an operation takes, by atomics that count them.
static_assert(AtomicsPolicy<counting_atomics>);

TEST(RefcountCost, OneLockedInstructionForEachGetAndPut) {
  basic_refcount<counting_atomics> r(1);
  EXPECT_EQ(locked_by([&] { r.get(); }), 1u);
  EXPECT_EQ(locked_by([&] { EXPECT_TRUE(r.get_unless_zero()); }), 1u);
  EXPECT_EQ(locked_by([&] { r.put_not_last(); }), 1u);
  EXPECT_EQ(locked_by([&] { EXPECT_FALSE(r.put()); }), 1u);
  EXPECT_EQ(locked_by([&] { EXPECT_TRUE(r.put()); }), 1u) << "anybody may look it up";
  EXPECT_EQ(locked_by([&] { EXPECT_FALSE(r.get_unless_zero()); }), 0u);
}

TEST(RefcountCost, WhoIsAloneTakesNone) {
  basic_holder_refcount<counting_atomics> r(1);
  EXPECT_EQ(locked_by([&] { r.get_likely_alone(); }), 0u);
  EXPECT_EQ(locked_by([&] { r.get_likely_alone(); }), 1u);
  EXPECT_EQ(locked_by([&] { EXPECT_FALSE(r.put()); }), 1u);
  EXPECT_EQ(locked_by([&] { EXPECT_FALSE(r.put()); }), 1u);
  EXPECT_EQ(locked_by([&] { EXPECT_TRUE(r.put()); }), 0u);
  EXPECT_EQ(r.value(), 0u);
}

TEST(HolderRefcount, IsLastExactlyOnceAndReportsMisuse) {
  holder_refcount r;
  r.get();
  r.get();
  r.put_not_last();
  EXPECT_FALSE(r.put());
  EXPECT_TRUE(r.put());
  EXPECT_EQ(kinds_of([&] { EXPECT_FALSE(r.put()); }), (kinds{0, 0, 0, 1, 0}));
  EXPECT_EQ(r.value(), holder_refcount::saturated);
  EXPECT_FALSE(r.put());
  r.set(2);
  EXPECT_FALSE(r.put());
  EXPECT_TRUE(r.put());
}

template <typename Count>
concept Guessable = requires(Count& c) { c.get_unless_zero(); };
static_assert(Guessable<refcount>);
static_assert(!Guessable<holder_refcount>, "its last put would race with the guess");

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

constexpr int stress_holders = 2;

template <typename Count>
struct held_object {
  Count refs{stress_holders};
  int data[stress_holders] = {};
};

// Many lives of one object: each ends in exactly one last put(), whose caller sees what every other
// holder wrote. `data` is plain on purpose: a missing order shows as a race.
template <typename Count>
void exactly_one_thread_is_last() {
  constexpr int lives = 2'000;
  std::vector<held_object<Count>> objects(lives);
  std::atomic<int> lasts{0};
  std::atomic<int> incomplete{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < stress_holders; ++t) {
    threads.emplace_back([&, t] {
      for (held_object<Count>& o : objects) {
        o.refs.get();
        o.data[t] = t + 1;
        if (o.refs.put()) ++incomplete;  // this thread's first reference is still held
        if (!o.refs.put()) continue;
        ++lasts;
        for (int h = 0; h < stress_holders; ++h) {
          if (o.data[h] != h + 1) ++incomplete;
        }
      }
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(lasts.load(), lives);
  EXPECT_EQ(incomplete.load(), 0);
}

TEST(RefcountStress, ExactlyOneThreadIsLastAndOwnsTheObject) {
  exactly_one_thread_is_last<refcount>();
}

TEST(RefcountStress, ExactlyOneHolderIsLastWithoutALockedInstruction) {
  exactly_one_thread_is_last<holder_refcount>();
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
