#include "forebay/ring/event_index.h"

#include <gtest/gtest.h>

#include <thread>

#include "forebay/ring/test_region.h"

namespace forebay {
namespace {

using words = event_words<real_atomics>;

TEST(EventIndex, PassedMeansBetweenOldAndNow) {
  for (const std::uint32_t base : {0u, 1'000u, UINT32_MAX - 2, UINT32_MAX}) {
    for (std::uint32_t count = 0; count < 10; ++count) {
      for (int wanted = -12; wanted < 12; ++wanted) {
        EXPECT_EQ(event_passed(base + static_cast<std::uint32_t>(wanted), base, base + count),
                  wanted >= 0 && wanted < static_cast<int>(count))
            << base << ' ' << count << ' ' << wanted;
      }
    }
  }
}

TEST(EventIndex, RingsOnlyForWhatIsWanted) {
  words w;
  test_waiter waiter;
  w.wanted = 5;
  EXPECT_FALSE(ring_bell_if_wanted(w, waiter, 3, 5));
  EXPECT_FALSE(ring_bell_if_wanted(w, waiter, 5, 5));
  EXPECT_TRUE(ring_bell_if_wanted(w, waiter, 5, 6));
  EXPECT_EQ(w.bell.load(), 1u);
  EXPECT_EQ(*waiter.wakes, 1u);
  // It has passed: whoever is awake is not woken.
  EXPECT_FALSE(ring_bell_if_wanted(w, waiter, 6, 2'000'000'000));
  EXPECT_EQ(*waiter.wakes, 1u);
}

TEST(EventIndex, AWaitAnnouncesAndLooksAgain) {
  words w;
  test_waiter waiter;
  std::uint64_t sleeps = 0;
  unsigned looks = 0;
  ASSERT_TRUE(wait_for_event(w, waiter, 7, UINT64_MAX, sleeps, [&]() noexcept {
    EXPECT_EQ(w.wanted.load(), 7u) << "looked before it was announced";
    return ++looks == 3;
  }));
  EXPECT_EQ(sleeps, 1u);
  EXPECT_EQ(*waiter.waits, 1u);
}

TEST(EventIndex, AWaitHasAnEnd) {
  words w;
  test_waiter waiter;
  std::uint64_t sleeps = 0;
  const auto never = []() noexcept { return false; };
  EXPECT_EQ(wait_for_event(w, waiter, 7, 10, sleeps, never).error(), std::errc::timed_out);
  EXPECT_GT(sleeps, 1u);
  EXPECT_LE(sleeps, 10u);
  EXPECT_EQ(wait_for_event(w, waiter, 7, 0, sleeps, never).error(), std::errc::timed_out);

  waiter.peer_gone = std::make_shared<bool>(true);
  EXPECT_EQ(wait_for_event(w, waiter, 7, UINT64_MAX, sleeps, never).error(), ring_errc::peer_gone);
  // What it left behind is still found.
  unsigned looks = 0;
  EXPECT_TRUE(
      wait_for_event(w, waiter, 7, UINT64_MAX, sleeps, [&]() noexcept { return ++looks == 3; }));
}

// Whoever publishes waits for the answer: a wake that is lost would take the 10 s of a wait.
TEST(EventIndexStress, NoWakeIsLost) {
  struct side {
    std::atomic<std::uint32_t> position{0};
    words event;
  };
  side sides[2];
  constexpr std::uint32_t rounds = 3'000;
  std::atomic<unsigned> failures{0};
  const auto play = [&](int me) {
    side& mine = sides[me];
    side& theirs = sides[1 - me];
    shared_futex waiter(nullptr, 0);  // no spinning: every wait announces
    std::uint64_t sleeps = 0;
    for (std::uint32_t i = 0; i < rounds; ++i) {
      if (me == 0) {
        mine.position.store(i + 1, std::memory_order_release);  // release: as the rings do
        ring_bell_if_wanted(theirs.event, waiter, i, i + 1);
      }
      const auto r = wait_for_event(mine.event, waiter, i, 10'000'000'000, sleeps, [&]() noexcept {
        return theirs.position.load(std::memory_order_acquire) > i;  // acquire: as the rings do
      });
      if (!r) ++failures;
      if (me == 1) {
        mine.position.store(i + 1, std::memory_order_release);  // release: as the rings do
        ring_bell_if_wanted(theirs.event, waiter, i, i + 1);
      }
    }
  };
  std::thread other(play, 1);
  play(0);
  other.join();
  EXPECT_EQ(failures.load(), 0u);
}

}  // namespace
}  // namespace forebay
