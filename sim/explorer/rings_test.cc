// One thread: not in the thread sanitizer's tree.
// The rings between threads (forebay/ring/spsc_ring.h, mpmc_ring.h), and those of an AF_XDP socket
// (forebay/os/xdp_ring.h) with a thread for the kernel, in the explorer.
#include <algorithm>
#include <array>
#include <memory>
#include <utility>

#include "forebay/os/xdp_ring.h"
#include "forebay/ring/mpmc_ring.h"
#include "forebay/ring/spsc_ring.h"
#include "sim/explorer/test_explore.h"

namespace forebay::explorer {
namespace {

using one_to_one = basic_spsc_ring<int, model_atomics>;
using many = basic_mpmc_ring<int, model_atomics>;

// The slots' 32-bit numbers come round in the middle of each scenario.
constexpr std::uint64_t near_overflow = (std::uint64_t{1} << 32) - 1;

template <typename Ring>
struct with_ring {
  std::unique_ptr<Ring> ring =
      std::move(*Ring::create({.capacity = 2, .first_position = near_overflow}));
  int next_out = 1;  // the consumer's

  void take(int item) { check(item == next_out++, "out of order, lost or doubled"); }
  // What is still there when all have ended.
  void take_rest() {
    int item = 0;
    while (ring->try_pop(item)) take(item);
  }
};

// --- one to one ---

struct singly : with_ring<one_to_one> {
  static constexpr unsigned threads = 2;
  unsigned pushed = 0;

  void run(unsigned thread) {
    for (int i = 0; i < 3; ++i) {
      int item = 0;
      if (thread == 0) {
        if (ring->try_push(static_cast<int>(pushed) + 1)) ++pushed;
      } else if (ring->try_pop(item)) {
        take(item);
      }
    }
  }
  void finish() {
    take_rest();
    check(next_out == static_cast<int>(pushed) + 1);
    const ring_statistics s = ring->statistics();
    check(s.pushed == pushed && s.popped == pushed && ring->empty());
  }
};

struct in_batches : with_ring<one_to_one> {
  static constexpr unsigned threads = 2;
  int pushed = 0;

  void run(unsigned thread) {
    std::array<int, 2> items;
    if (thread == 0) {
      for (int i = 0; i < 2; ++i) {
        items = {pushed + 1, pushed + 2};
        pushed += static_cast<int>(i == 0 ? ring->try_push_some(items)
                                          : 2 * std::size_t{ring->try_push_all(items)});
      }
      if (ring->try_push(pushed + 1)) ++pushed;
      return;
    }
    if (ring->try_pop_all(items)) {
      take(items[0]);
      take(items[1]);
    }
    for (int i = 0; i < 2; ++i) {
      const std::size_t n = ring->try_pop_some(items);
      for (std::size_t j = 0; j < n; ++j) take(items[j]);
    }
  }
  void finish() {
    take_rest();
    check(next_out == pushed + 1);
  }
};

struct in_place : with_ring<one_to_one> {
  static constexpr unsigned threads = 2;
  int pushed = 0;

  void run(unsigned thread) {
    for (int i = 0; i < 2; ++i) {
      if (thread == 0) {
        const auto w = ring->reserve(2);
        for (std::size_t j = 0; j < w.size(); ++j) w[j].set(++pushed);
        ring->commit(w.size());
      } else {
        const auto w = ring->peek(2);
        for (std::size_t j = 0; j < w.size(); ++j) take(w[j].get());
        ring->release(w.size());
      }
    }
  }
  void finish() {
    take_rest();
    check(next_out == pushed + 1);
  }
};

// Who sees the ring closed finds all that there will be.
struct closes : with_ring<one_to_one> {
  static constexpr unsigned threads = 2;

  void run(unsigned thread) {
    if (thread == 0) {
      check(ring->try_push(1));
      check(ring->try_push(2));
      ring->close();
      check(!ring->try_push(3));
      return;
    }
    const bool closed = ring->closed();
    int item = 0;
    int n = 0;
    while (n < 3 && ring->try_pop(item)) {
      take(item);
      ++n;
    }
    check(!closed || n == 2, "closed, and an item was not found");
  }
  void finish() {
    take_rest();
    check(next_out == 3);
  }
};

// What the sizes promise to each side.
struct sizes : with_ring<one_to_one> {
  static constexpr unsigned threads = 2;

  void run(unsigned thread) {
    for (int i = 1; i <= 2; ++i) {
      if (thread == 0) {
        const std::size_t room = ring->free_count();
        std::array<int, 2> items{2 * i - 1, 2 * i};
        const std::size_t n = std::min<std::size_t>(room, 2);
        if (n == 2) check(ring->try_push_all(items), "less room than it said");
        if (n != 2) break;
      } else {
        std::array<int, 2> items;
        const std::size_t n = ring->size();
        check(ring->try_pop_some(std::span(items).first(n)) == n, "fewer items than it said");
        for (std::size_t j = 0; j < n; ++j) take(items[j]);
      }
    }
  }
  void finish() { take_rest(); }
};

// The consumer's place goes from one thread to another.
struct other_consumer : with_ring<one_to_one> {
  static constexpr unsigned threads = 3;
  model_mutex turn;

  void run(unsigned thread) {
    if (thread == 0) {
      check(ring->try_push(1));
      check(ring->try_push(2));
      static_cast<void>(ring->try_push(3));
      return;
    }
    turn.lock();
    int item = 0;
    if (ring->try_pop(item)) take(item);
    turn.unlock();
  }
  void finish() { take_rest(); }
};

TEST(explored_rings, one_to_one) {
  expect_explored_and_needed<singly, in_batches, in_place, closes, sizes, other_consumer>(
      {"ring/spsc_ring.h", "ring/ring_slots.h"});
}

// --- many to many ---

// Each item once, and those of one producer in their order.
template <unsigned Items>
struct with_many {
  std::unique_ptr<many> ring =
      std::move(*many::create({.capacity = 2, .first_position = near_overflow}));
  std::array<std::array<int, Items>, 4> got{};
  std::array<unsigned, 4> count{};
  std::array<int, 3> pushed{};

  void took(unsigned thread, int item) { got[thread][count[thread]++] = item; }
  // The items of a producer are 10 * (its number + 1) + 0, 1, …
  void push(unsigned thread) {
    if (ring->try_push(static_cast<int>(10 * (thread + 1)) + pushed[thread])) ++pushed[thread];
  }
  void pop(unsigned thread) {
    int item = 0;
    if (ring->try_pop(item)) took(thread, item);
  }
  void check_all() {
    int item = 0;
    while (ring->try_pop(item)) took(3, item);
    std::array<int, 4> seen{};
    unsigned n = 0;
    for (unsigned thread = 0; thread < 4; ++thread) {
      std::array<int, 4> last{};
      for (unsigned i = 0; i < count[thread]; ++i, ++n) {
        const int g = got[thread][i];
        check(g >= 10 && g < 40);
        check(g >= last[static_cast<unsigned>(g / 10)], "out of order");
        last[static_cast<unsigned>(g / 10)] = g;
        seen[static_cast<unsigned>(g / 10)] |= 1 << g % 10;
      }
    }
    unsigned wanted = 0;
    for (unsigned thread = 0; thread < 3; ++thread) {
      wanted += static_cast<unsigned>(pushed[thread]);
      check(seen[thread + 1] == (1 << pushed[thread]) - 1, "lost");
    }
    check(n == wanted, "doubled");
    check(ring->empty());
  }
};

struct two_push_one_pops : with_many<4> {
  static constexpr unsigned threads = 3;

  void run(unsigned thread) {
    if (thread < 2) {
      push(thread);
    } else {
      pop(thread);
      pop(thread);
    }
  }
  void finish() { check_all(); }
};

struct one_pushes_two_pop : with_many<4> {
  static constexpr unsigned threads = 3;

  void run(unsigned thread) {
    if (thread == 0) {
      push(0);
      push(0);
    } else {
      pop(thread);
    }
  }
  void finish() { check_all(); }
};

// Both threads push and pop three times: the ring is full, empty, and comes round.
struct both_do_both : with_many<4> {
  static constexpr unsigned threads = 2;

  void run(unsigned thread) {
    push(thread);
    pop(thread);
    if (thread == 0) {
      push(thread);
    } else {
      pop(thread);
    }
  }
  void finish() { check_all(); }
};

struct many_in_batches : with_many<6> {
  static constexpr unsigned threads = 2;

  void run(unsigned thread) {
    std::array<int, 2> items;
    if (thread == 0) {
      items = {10, 11};
      if (ring->try_push_all(items)) pushed[0] = 2;
      pop(0);
      const int more[] = {10 + pushed[0], 11 + pushed[0]};
      pushed[0] += static_cast<int>(ring->try_push_some(more));
      return;
    }
    if (ring->try_pop_all(items)) {
      took(1, items[0]);
      took(1, items[1]);
    }
    const std::size_t n = ring->try_pop_some(items);
    for (std::size_t i = 0; i < n; ++i) took(1, items[i]);
  }
  void finish() { check_all(); }
};

struct many_in_place : with_many<4> {
  static constexpr unsigned threads = 2;

  void run(unsigned thread) {
    if (thread == 0) {
      for (int i = 0; i < 2; ++i) {
        many::claim c = ring->reserve(2);
        for (std::size_t j = 0; j < c.size(); ++j) c[j].set(10 + pushed[0]++);
      }
      return;
    }
    for (int i = 0; i < 2; ++i) {
      many::claim c = ring->take(2);
      for (std::size_t j = 0; j < c.size(); ++j) took(1, c[j].get());
    }
  }
  void finish() { check_all(); }
};

struct many_close : with_many<4> {
  static constexpr unsigned threads = 3;
  model_atomics::plain<int> before_close{0};

  void run(unsigned thread) {
    if (thread == 0) {
      push(0);
    } else if (thread == 1) {
      before_close.set(1);
      ring->close();
      check(!ring->try_push(30));
    } else {
      if (ring->drained()) {
        check(before_close.get() == 1);
        int item = 0;
        check(!ring->try_pop(item), "drained, and an item was there");
      }
      if (ring->closed()) check(before_close.get() == 1);
      pop(2);
    }
  }
  void finish() {
    check_all();
    check(ring->drained());
  }
};

TEST(explored_rings, many_to_many) {
  expect_explored_and_needed<two_push_one_pops, one_pushes_two_pop, both_do_both, many_in_batches,
                             many_in_place, many_close>({"ring/mpmc_ring.h", "ring/ring_slots.h"});
}

// --- a program and the kernel ---

struct shared_ring {
  static constexpr std::uint32_t capacity = 2;
  static constexpr std::uint32_t first = UINT32_MAX;  // comes round in the middle

  model_atomics::atomic<std::uint32_t> producer{first};
  model_atomics::atomic<std::uint32_t> consumer{first};
  std::array<model_atomics::plain<int>, capacity> entries;

  xdp_ring_words<int, model_atomics> words() {
    return {&producer, &consumer, entries.data(), capacity};
  }
};

// The same ring again and again, one entry or two at a time.
struct descriptors_come_in_order {
  static constexpr unsigned threads = 2;
  shared_ring ring;
  basic_xdp_producer<int, model_atomics> in{ring.words()};
  basic_xdp_consumer<int, model_atomics> out{ring.words()};
  int put = 0;
  int taken = 0;

  void take(std::uint32_t wanted) {
    const std::uint32_t n = std::min(out.ready(wanted), wanted);
    for (std::uint32_t i = 0; i < n; ++i) check(out.get(i) == ++taken, "not what was put");
    out.release(n);
  }
  void run(unsigned thread) {
    for (std::uint32_t wanted : {2u, 1u, 2u}) {
      if (thread == 1) {
        take(wanted);
        continue;
      }
      const std::uint32_t n = std::min(in.free(wanted), wanted);
      for (std::uint32_t i = 0; i < n; ++i) in.put(i, ++put);
      in.commit(n);
    }
  }
  void finish() {
    take(2);
    check(taken == put && in.all_taken());
  }
};

// A frame goes with its entry: to the kernel by one ring, filled, and back by the other.
struct frames_go_round {
  static constexpr unsigned threads = 2;
  shared_ring fill;
  shared_ring rx;
  std::array<model_atomics::plain<int>, 2> frames;
  basic_xdp_producer<int, model_atomics> to_kernel{fill.words()};
  basic_xdp_consumer<int, model_atomics> from_program{fill.words()};
  basic_xdp_producer<int, model_atomics> to_program{rx.words()};
  basic_xdp_consumer<int, model_atomics> from_kernel{rx.words()};

  frames_go_round() {
    to_kernel.put(0, 0);
    to_kernel.put(1, 1);
    to_kernel.commit(2);
  }
  void run(unsigned thread) {
    for (int i = 0; i < 3; ++i) {
      if (thread == 0) {
        if (from_kernel.ready(1) == 0) continue;
        const int frame = from_kernel.get(0);
        from_kernel.release(1);
        auto& data = frames[static_cast<std::size_t>(frame)];
        check(data.get() == 1, "empty");
        data.set(0);
        check(to_kernel.free(1) != 0);
        to_kernel.put(0, frame);
        to_kernel.commit(1);
      } else {
        if (from_program.ready(1) == 0) continue;
        const int frame = from_program.get(0);
        from_program.release(1);
        auto& data = frames[static_cast<std::size_t>(frame)];
        check(data.get() == 0, "full");
        data.set(1);
        check(to_program.free(1) != 0);
        to_program.put(0, frame);
        to_program.commit(1);
      }
    }
  }
  void finish() {}
};

TEST(explored_rings, with_the_kernel) {
  expect_explored_and_needed<descriptors_come_in_order, frames_go_round>({"os/xdp_ring.h"});
}

}  // namespace
}  // namespace forebay::explorer
