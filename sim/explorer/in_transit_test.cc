// One thread: not in the thread sanitizer's tree.
// The search for the last free item (forebay/memory/in_transit.h, as memory/cpu_cache.cc uses it)
// in the explorer: while an item is moved between places, nobody may conclude that there is none.
#include "forebay/memory/in_transit.h"

#include <array>

#include "forebay/memory/closable_place.h"

#include "sim/explorer/test_explore.h"

namespace forebay::explorer {
namespace {

// One item in one of the places, which is moved on `Moves` times.
template <unsigned Moves>
struct item_on_the_move {
  static constexpr unsigned threads = 2;
  basic_in_transit<model_atomics> hands;
  std::array<model_atomics::atomic<unsigned>, 3> places;  // how many items lie there

  item_on_the_move() { places[0].store(1); }
  // relaxed, all: the places order nothing.
  void move(unsigned from, unsigned to) {
    hands.begin();
    const unsigned n = places[from].exchange(0, std::memory_order_relaxed);  // relaxed: see above
    if (n != 0) places[to].store(n, std::memory_order_relaxed);              // relaxed: see above
    hands.end();
  }
  bool found() const {
    for (unsigned i = 3; i-- != 0;) {
      if (places[i].load(std::memory_order_relaxed) != 0) return true;  // relaxed: see above
    }
    return false;
  }
  void run(unsigned thread) {
    if (thread == 0) {
      for (unsigned i = 0; i < Moves; ++i) move(i % 3, (i + 1) % 3);
      return;
    }
    const std::uint64_t before = hands.look();
    if (!found()) check(!hands.none_since(before), "an item is free, and none was found");
  }
  void finish() { check(found()); }
};

// Two movers.
struct two_movers : item_on_the_move<0> {
  static constexpr unsigned threads = 3;

  void run(unsigned thread) {
    if (thread == 0) {
      move(0, 1);
      move(1, 2);
    } else if (thread == 1) {
      move(1, 0);
      move(2, 0);
    } else {
      item_on_the_move<0>::run(1);
    }
  }
};

TEST(explored_in_transit, cpu_cache) {
  expect_explored_and_needed<item_on_the_move<3>, item_on_the_move<4>, two_movers>(
      {"memory/in_transit.h"});
}

// Two threads put their magazines into one place while a third closes it.
struct place_is_closed {
  static constexpr unsigned threads = 3;
  using number = model_atomics::plain<int>;
  model_atomics::atomic<bool> closed{false};
  model_atomics::atomic<number*> place{nullptr};
  std::array<number, 2> magazines;
  std::array<unsigned, 3> got{};

  void take(unsigned thread, number* m) {
    if (m == nullptr) return;
    m->set(m->get() + 1);
    ++got[thread];
  }
  void run(unsigned thread) {
    if (thread == 2) {
      closed.store(true);
      take(2, place.exchange(nullptr));
      return;
    }
    magazines[thread].set(0);
    const displaced<number> out = put_unless_closed(place, closed, &magazines[thread]);
    take(thread, out.before);
    take(thread, out.after);
  }
  void finish() {
    check(place.load() == nullptr, "closed, and something lies there");
    check(got[0] + got[1] + got[2] == 2, "lost or taken twice");
    for (number& m : magazines) check(m.get() == 1);
  }
};

TEST(explored_in_transit, closable_place) {
  expect_explored_and_needed<place_is_closed>({"memory/closable_place.h"});
}

}  // namespace
}  // namespace forebay::explorer
