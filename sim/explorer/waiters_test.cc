// One thread: not in the thread sanitizer's tree.
// Waiting in queues (forebay/base/waiter_count.h, ring/wait_list.h) and for a place on a device
// (block/admission.h) in the explorer.
#include <array>

#include "forebay/base/exhaustion.h"
#include "forebay/base/waiter_count.h"
#include "forebay/block/admission.h"
#include "forebay/ring/mpsc_stack.h"
#include "forebay/ring/wake_word.h"
#include "sim/explorer/test_explore.h"
#include "sim/explorer/test_waiter.h"

namespace forebay::explorer {
namespace {

// --- a condition that comes true ---

template <unsigned Waiters>
struct condition_comes_true {
  static constexpr unsigned threads = Waiters + 1;
  wait_list list;
  std::array<waiter, Waiters> waiters;
  model_atomics::atomic<bool> open{false};

  void run(unsigned thread) {
    if (thread == Waiters) {
      open.store(true, std::memory_order_relaxed);  // relaxed: the list's fences order it
      list.wake_all([](waiter& w) { w.wake(); });
      return;
    }
    waiter& w = waiters[thread];
    if (list.add_unless(w, [this] { return open.load(std::memory_order_relaxed); })) {  // relaxed
      w.sleep();
    }
    check(open.load(std::memory_order_relaxed));  // relaxed: see above
  }
  void finish() {}
};

// It comes true, is taken, and comes true again: a counter of permits.
struct permits {
  static constexpr unsigned threads = 3;
  static constexpr options bounds{.preemptions = 3};
  wait_list list;
  std::array<waiter, 2> waiters;
  model_atomics::atomic<int> free{0};

  bool take() {
    int n = free.load(std::memory_order_relaxed);  // relaxed: the exchange decides
    while (n != 0) {
      if (free.compare_exchange_weak(n, n - 1)) return true;
    }
    return false;
  }
  void run(unsigned thread) {
    if (thread == 2) {
      for (int i = 0; i < 2; ++i) {
        free.fetch_add(1);
        list.wake_all([](waiter& w) { w.wake(); });
      }
      return;
    }
    waiter& w = waiters[thread];
    while (!take()) {
      w.woken.store(0, std::memory_order_relaxed);  // relaxed: nobody has it on a list
      if (list.add_unless(w, [this] { return free.load() != 0; })) w.sleep();
    }
  }
  void finish() { check(free.load() == 0); }
};

// A waiter gives up while it is being woken: it is either removed or woken.
struct gives_up {
  static constexpr unsigned threads = 2;
  wait_list list;
  waiter w;
  model_atomics::atomic<bool> open{false};
  bool removed = false;

  void run(unsigned thread) {
    if (thread == 0) {
      open.store(true, std::memory_order_relaxed);  // relaxed: the list's fences order it
      list.wake_all([](waiter& x) { x.wake(); });
      list.wake_all([](waiter& x) { x.wake(); });
    } else if (list.add_unless(w, [this] {
                 return open.load(std::memory_order_relaxed);  // relaxed: see above
               })) {
      removed = list.remove(w);
      if (!removed) w.sleep();
    }
  }
  void finish() { check(!(removed && w.is_woken())); }
};

TEST(explored_waiters, wait_list) {
  expect_explored_and_needed<condition_comes_true<1>, condition_comes_true<2>, permits, gives_up>(
      {"ring/wait_list.h", "base/waiter_count.h"});
}

// --- the gate of a buffer pool: who frees looks for waiters after the list has the item, who waits
// looks into the list after it has announced itself ---

struct gate_of_a_pool {
  static constexpr unsigned threads = 3;
  static constexpr options bounds{.preemptions = 3};
  basic_waiter_count<model_atomics> waiting;
  model_mutex lock;
  std::array<waiter, 2> waiters;
  intrusive_list<waiter, &waiter::link> queue;
  model_atomics::atomic<unsigned> list{0};  // free items

  bool take() {
    unsigned n = list.load(std::memory_order_relaxed);  // relaxed: the exchange decides
    while (n != 0) {
      // acquire, relaxed: as the free lists do.
      if (list.compare_exchange_weak(n, n - 1, std::memory_order_acquire,
                                     std::memory_order_relaxed)) {  // relaxed: retried
        return true;
      }
    }
    return false;
  }
  void serve() {
    const model_scoped_lock hold(lock);
    while (!queue.empty()) {
      if (!take()) return;
      waiter& w = *queue.pop_front();
      waiting.withdraw();
      w.wake();
    }
  }
  void run(unsigned thread) {
    if (thread == 2) {
      for (int i = 0; i < 2; ++i) {
        list.fetch_add(1, std::memory_order_release);  // release: as the free lists do
        if (waiting.anybody()) serve();
      }
      return;
    }
    if (waiting.value() == 0 && take()) return;
    {
      const model_scoped_lock hold(lock);
      queue.push_back(waiters[thread]);
      waiting.announce();
    }
    serve();
    waiters[thread].sleep();
  }
  void finish() { check(list.load() == 0 && waiting.value() == 0); }
};

// --- places on a device: never more are taken than there are, and whoever waits gets one ---

template <unsigned Threads, std::uint16_t Places>
struct places_on_a_device {
  static constexpr unsigned threads = Threads;
  static constexpr options bounds{.preemptions = Threads == 2 ? 4u : 2u};
  using gate = basic_admission<model_atomics>;
  gate admission{{Places, Places, 1}, 1};
  model_mutex lock;
  std::array<waiter, Threads> waiters;
  std::array<intrusive_list<waiter, &waiter::link>, gate::classes> queues;
  model_atomics::atomic<unsigned> inside{0};

  bool enter(unsigned c, waiter& w) {
    if (admission.try_enter(c) != 0) return true;
    const model_scoped_lock hold(lock);
    if (admission.enter_or_wait(c) != 0) return true;
    queues[c].push_back(w);
    return false;
  }
  void leave() {
    if (admission.try_leave()) return;
    waiter* next = nullptr;
    {
      const model_scoped_lock hold(lock);
      const auto c = admission.leave();
      if (c) next = queues[*c].pop_front();
      check(!c || next != nullptr);
    }
    if (next != nullptr) next->wake();
  }
  void run(unsigned thread) {
    if (!enter(thread % gate::classes, waiters[thread])) waiters[thread].sleep();
    // relaxed, both: numbers to check.
    check(inside.fetch_add(1, std::memory_order_relaxed) < Places);
    inside.fetch_sub(1, std::memory_order_relaxed);  // relaxed: see above
    leave();
  }
  void finish() {
    check(admission.taken() == 0);
    for (unsigned c = 0; c < gate::classes; ++c) check(admission.waiting(c) == 0);
  }
};

TEST(explored_waiters, places_on_a_device) {
  expect_explored<places_on_a_device<2, 1>>();
  expect_explored<places_on_a_device<3, 1>>();
  expect_explored<places_on_a_device<3, 2>>();
}

TEST(explored_waiters, gate_of_a_pool) {
  expect_explored_and_needed<gate_of_a_pool>({"base/waiter_count.h"});
}

// --- an executor that is lent to a thread, and goes when it is done (ring/executor.cc) ---

struct posted_item {
  posted_item* next = nullptr;
  model_atomics::plain<int> data{0};
};

struct short_lived_executor {
  static constexpr unsigned threads = 3;
  struct mailbox {
    mpsc_stack<posted_item, model_atomics> posted;
    basic_wake_word<model_atomics, model_futex> wakes;
  };
  alignas(mailbox) std::array<std::byte, sizeof(mailbox)> memory;
  mailbox* const box = new (memory.data()) mailbox;
  std::array<posted_item, 2> items;
  unsigned done = 0;
  std::uint32_t batches = 0;

  void run(unsigned thread) {
    if (thread < 2) {
      items[thread].data.set(1);
      if (box->posted.push(items[thread])) box->wakes.wake();
      return;
    }
    const auto turn = [this] {
      posted_item* batch = box->posted.take_all();
      if (batch != nullptr) ++batches;
      for (; batch != nullptr; batch = batch->next) done += batch->data.get() == 1 ? 1 : 0;
      return false;
    };
    box->wakes.run(turn, [this] { return done == 2; }, [] { return UINT64_MAX; });
    box->wakes.settle(batches);
    box->~mailbox();
  }
  void finish() { check(done == 2); }
};

TEST(explored_waiters, executor) {
  expect_explored_and_needed<short_lived_executor>({"ring/wake_word.h", "ring/mpsc_stack.h"});
}

// --- the signal of a queue that is nearly full (base/exhaustion.h) ---

struct pressure {
  static constexpr unsigned threads = 2;
  basic_pressure_gate<model_atomics> gate{{.high = 2, .low = 0}};
  model_atomics::atomic<std::size_t> level{0};
  model_atomics::plain<int> before{0};

  std::size_t now() const {
    return level.load(std::memory_order_relaxed);  // relaxed: the gate's fences order it
  }
  void run(unsigned thread) {
    for (int i = 0; i < 2; ++i) {
      if (thread == 0) {
        if (i == 1) before.set(1);
        level.fetch_add(1, std::memory_order_relaxed);  // relaxed: see above
        gate.added([this] { return now(); });
      } else if (now() != 0) {
        if (gate.raised()) check(before.get() == 1);
        level.fetch_sub(1, std::memory_order_relaxed);  // relaxed: see above
        gate.taken([this] { return now(); });
      }
    }
  }
  void finish() { check(now() > 0 || !gate.raised(), "the signal stays up"); }
};

TEST(explored_waiters, pressure_gate) {
  expect_explored_and_needed<pressure>({"base/exhaustion.h"});
}

}  // namespace
}  // namespace forebay::explorer
