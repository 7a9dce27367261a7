// One thread: an executor that is turned by hand.
#include "forebay/ring/fair_turns.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cstdlib>
#include <deque>
#include <vector>

namespace forebay {
namespace {

constexpr std::int64_t quantum = fair_turns::quantum;

class hand_executor final : public executor {
 public:
  using executor::busy;
  using executor::run_ready;

 private:
  void wake() noexcept override {}
};

// Does pieces of work of one cost for as long as it may; waits for its turn then, and again.
struct worker : completion {
  worker(hand_executor& e, fair_turns& t, std::int64_t piece_cost)
      : on(e), turns(t), cost(piece_cost) {
    run = [](completion& c) noexcept { static_cast<worker&>(c).work(); };
    turns.join(me);
    on.ready(*this);
  }
  ~worker() { turns.leave(me); }

  void work() noexcept {
    while (left != 0 && (!me.spent() || turns.may_go_on(me, on.busy()))) {
      --left;
      done += cost;
      me.charge(static_cast<std::uint64_t>(cost));
    }
    if (left != 0) turns.wait(waiter, me, *this);
  }

  hand_executor& on;
  fair_turns& turns;
  fair_turns::party me;
  fair_turns::waiter waiter;
  const std::int64_t cost;
  std::int64_t left = 1 << 20;
  std::int64_t done = 0;
};

// Whatever their pieces cost, parties that always have work never differ by more than a round.
RC_GTEST_PROP(FairTurns, AllWhoAlwaysHaveWorkGetTheSame, ()) {
  const auto costs = *rc::gen::nonEmpty(
      rc::gen::container<std::vector<std::int64_t>>(rc::gen::inRange<std::int64_t>(1, 40)));
  hand_executor e;
  fair_turns turns(e);
  std::deque<worker> all;
  for (const std::int64_t c : costs) all.emplace_back(e, turns, c * (quantum / 8));
  worker other(e, turns, quantum / 8);  // so that nobody is alone
  for (int turn = 0; turn < 400; ++turn) {
    e.run_ready();
    if (turn < 50) continue;
    for (const worker& w : all) {
      // What the two are ahead of their credit is less than a piece of each.
      RC_ASSERT(std::abs(w.done - other.done) <= 2 * quantum + w.cost + other.cost);
    }
  }
  for (worker& w : all) w.left = 0;
  other.left = 0;
  while (e.busy()) e.run_ready();
}

TEST(FairTurns, WhoHasLittleWorkWaitsForNobodysRound) {
  hand_executor e;
  fair_turns turns(e);
  worker a(e, turns, quantum / 4);
  worker b(e, turns, quantum / 4);
  fair_turns::party light;
  turns.join(light);
  for (int turn = 0; turn < 100; ++turn) {
    e.run_ready();
    EXPECT_TRUE(turns.contended());
    // Once in each turn of the others: half of what they get.
    EXPECT_TRUE(!light.spent() || turns.may_go_on(light, true)) << "in turn " << turn;
    light.charge(quantum / 2);
  }
  turns.leave(light);
  a.left = b.left = 0;
  while (e.busy()) e.run_ready();
}

// A party gets no more for being several.
TEST(FairTurns, AWaiterMoreIsNoShareMore) {
  hand_executor e;
  fair_turns turns(e);
  worker a(e, turns, quantum);
  struct lane : completion {
    worker* of = nullptr;
    fair_turns::waiter waiter;
    bool over = false;
  };
  worker many(e, turns, quantum);
  std::deque<lane> lanes(7);
  for (lane& l : lanes) {
    l.of = &many;
    l.run = [](completion& c) noexcept {
      auto& mine = static_cast<lane&>(c);
      if (mine.over) return;
      mine.of->done += 3 * quantum;
      mine.of->me.charge(3 * quantum);
      mine.of->turns.wait(mine.waiter, mine.of->me, mine);
    };
    e.ready(l);
  }
  for (int turn = 0; turn < 1000; ++turn) e.run_ready();
  EXPECT_NEAR(static_cast<double>(many.done) / static_cast<double>(a.done), 1, 0.1);
  for (lane& l : lanes) l.over = true;
  a.left = many.left = 0;
  while (e.busy()) e.run_ready();
}

TEST(FairTurns, WhoIsAloneOrUnwantedGoesOn) {
  hand_executor e;
  fair_turns turns(e);
  fair_turns::party one;
  turns.join(one);
  one.charge(5 * quantum);
  EXPECT_TRUE(turns.may_go_on(one, true)) << "alone";
  EXPECT_FALSE(one.spent());
  fair_turns::party two;
  turns.join(two);
  one.charge(5 * quantum);
  EXPECT_TRUE(turns.may_go_on(one, false));
  one.charge(5 * quantum);
  EXPECT_FALSE(turns.may_go_on(one, true));
  turns.leave(one);
  turns.leave(two);
}

}  // namespace
}  // namespace forebay
