// One thread: not in the thread sanitizer's tree.
// Waiting (forebay/ring/event_count.h, waiting_ring.h) in the explorer: no wake-up is lost, and who
// waits for what never comes is told so.
#include <array>
#include <memory>
#include <utility>

#include "forebay/ring/waiting_ring.h"
#include "sim/explorer/test_explore.h"

namespace forebay::explorer {
namespace {

using event = basic_event_count<model_atomics, model_futex>;

// Two who wait for a flag, one who sets it.
template <unsigned Waiters>
struct flag_is_set {
  static constexpr unsigned threads = Waiters + 1;
  event changed;
  model_atomics::atomic<bool> flag{false};
  model_atomics::plain<int> data{0};

  bool is_set() const {
    return flag.load(std::memory_order_acquire);  // acquire: pairs with the store below
  }
  void run(unsigned thread) {
    if (thread == Waiters) {
      data.set(1);
      flag.store(true, std::memory_order_release);  // release: for the data
      changed.notify_all();
      return;
    }
    while (!is_set()) {
      const auto ticket = changed.announce();
      if (is_set()) {
        changed.withdraw();
      } else {
        changed.wait(ticket);
      }
    }
    check(data.get() == 1);
  }
  void finish() {}
};

// One item at a time for two who wait: each is woken for one.
struct items_one_by_one {
  static constexpr unsigned threads = 3;
  static constexpr options bounds{.preemptions = 3};
  event more;
  model_atomics::atomic<int> items{0};

  bool take() {
    int n = items.load(std::memory_order_relaxed);  // relaxed: the exchange decides
    while (n != 0) {
      if (items.compare_exchange_weak(n, n - 1)) return true;
    }
    return false;
  }
  void run(unsigned thread) {
    if (thread == 2) {
      for (int i = 0; i < 2; ++i) {
        items.fetch_add(1);
        more.notify();
      }
      return;
    }
    while (!take()) {
      const auto ticket = more.announce();
      if (take()) {
        more.withdraw();
        more.pass_on([&] { return items.load() != 0; });
        return;
      }
      more.wait(ticket);
    }
  }
  void finish() { check(items.load() == 0); }
};

// The data may be read through the epoch alone.
struct ordered_by_the_epoch {
  static constexpr unsigned threads = 2;
  event changed;
  model_atomics::atomic<int> flag{0};

  void run(unsigned thread) {
    if (thread == 0) {
      flag.store(1, std::memory_order_relaxed);  // relaxed: the fences of the event order it
      changed.notify();
      flag.store(2, std::memory_order_relaxed);  // relaxed: see above
      changed.notify();
      return;
    }
    for (;;) {
      const auto ticket = changed.announce();
      if (flag.load(std::memory_order_relaxed) == 2) break;  // relaxed: see above
      changed.wait(ticket);
    }
    changed.withdraw();
  }
  void finish() {}
};

template <typename Ring>
struct with_waiting {
  std::unique_ptr<Ring> ring = std::move(*Ring::create(waiting_options{
      .ring = {.capacity = 2, .first_position = (std::uint64_t{1} << 32) - 1}, .spins = 0}));
};

using one_to_one = basic_waiting_ring<int, basic_spsc_ring, model_atomics, model_futex>;
using many = basic_waiting_ring<int, basic_mpmc_ring, model_atomics, model_futex>;

// More items than the ring holds go through it, then it is closed.
struct one_producer_one_consumer : with_waiting<one_to_one> {
  static constexpr unsigned threads = 2;
  static constexpr options bounds{.preemptions = 2};
  int got = 0;

  void run(unsigned thread) {
    if (thread == 0) {
      for (int i = 1; i <= 3; ++i) check(ring->push(i).has_value());
      ring->close();
      check(!ring->push(4));
      return;
    }
    for (;;) {
      const auto item = ring->pop();
      if (!item) {
        check(item.error() == errc::end_of_stream);
        return;
      }
      check(*item == ++got);
    }
  }
  void finish() { check(got == 3); }
};

// Two consumers, one item each and the end.
struct two_consumers : with_waiting<many> {
  static constexpr unsigned threads = 3;
  static constexpr options bounds{.preemptions = 1};
  std::array<int, 2> got{};

  void run(unsigned thread) {
    if (thread == 2) {
      check(ring->push(1).has_value());
      check(ring->push(2).has_value());
      ring->close();
      return;
    }
    while (const auto item = ring->pop()) got[thread] += *item;
  }
  void finish() { check(got[0] + got[1] == 3); }
};

// Two producers wait for room that one consumer makes.
struct two_producers : with_waiting<many> {
  static constexpr unsigned threads = 3;
  static constexpr options bounds{.preemptions = 2};
  int sum = 0;

  two_producers() {
    check(ring->try_push(1));
    check(ring->try_push(2));
  }
  void run(unsigned thread) {
    if (thread < 2) {
      check(ring->push(10).has_value());
      return;
    }
    for (int i = 0; i < 4; ++i) {
      const auto item = ring->pop();
      check(item.has_value());
      sum += *item;
    }
  }
  void finish() { check(sum == 23); }
};

// The ring is closed while one waits for room and one for items.
struct closed_under_waiters : with_waiting<many> {
  static constexpr unsigned threads = 3;
  static constexpr options bounds{.preemptions = 2};
  unsigned got = 0;
  bool pushed = false;

  closed_under_waiters() {
    check(ring->try_push(1));
    check(ring->try_push(2));
  }
  void run(unsigned thread) {
    if (thread == 0) {
      pushed = ring->push(3).has_value();
    } else if (thread == 1) {
      while (ring->pop()) ++got;
    } else {
      ring->close();
    }
  }
  void finish() { check(got == (pushed ? 3u : 2u)); }
};

// A timeout ends a wait; an item that comes at the last moment is not lost.
struct timed : with_waiting<many> {
  static constexpr unsigned threads = 2;
  static constexpr options bounds{.preemptions = 2};
  bool got = false;

  void run(unsigned thread) {
    if (thread == 0) {
      check(ring->push(7).has_value());
    } else {
      const auto item = ring->pop({.timeout = std::chrono::seconds(1)});
      got = item.has_value();
      if (!got) check(item.error() == std::errc::timed_out);
    }
  }
  void finish() { check(ring->ring().size() == (got ? 0 : 1)); }
};

TEST(explored_waiting, event_count) {
  expect_explored_and_needed<flag_is_set<1>, flag_is_set<2>, items_one_by_one,
                             ordered_by_the_epoch>({"ring/event_count.h"});
}

TEST(explored_waiting, one_to_one) { expect_explored<one_producer_one_consumer>(); }
TEST(explored_waiting, two_consumers) { expect_explored<two_consumers>(); }
TEST(explored_waiting, two_producers) { expect_explored<two_producers>(); }
TEST(explored_waiting, closed) { expect_explored<closed_under_waiters>(); }
TEST(explored_waiting, timed) { expect_explored<timed>(); }

}  // namespace
}  // namespace forebay::explorer
