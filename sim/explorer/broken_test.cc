// One thread: not in the thread sanitizer's tree.
// Classic mistakes. The explorer has to find each of them: a test that finds nothing wrong in right
// programs shows little by itself. Each has its right counterpart beside it, which passes.
#include <array>

#include "sim/explorer/test_explore.h"

namespace forebay::explorer {
namespace {

using order = std::memory_order;
// relaxed, acquire, release: short names.
constexpr order rlx = order::relaxed;
constexpr order acq = order::acquire;
constexpr order rel = order::release;

template <typename T>
using atomic = model_atomics::atomic<T>;
template <typename T>
using plain = model_atomics::plain<T>;

// --- a stack whose head has no tag: between reading the links and the exchange, another thread
// takes two items and puts the first one back (ABA) ---

template <bool Tagged>
struct treiber_stack {
  static constexpr unsigned threads = 2;
  static constexpr unsigned none = 15;
  atomic<unsigned> head{0};  // tag * 16 + item
  std::array<atomic<unsigned>, 3> links;
  std::array<plain<int>, 3> owned;

  treiber_stack() {
    for (unsigned i = 0; i < 3; ++i) links[i].store(i == 2 ? none : i + 1, rlx);
  }

  unsigned pop() {
    unsigned old = head.load(acq);
    for (;;) {
      const unsigned item = old % 16;
      if (item == none) return none;
      const unsigned tag = Tagged ? old / 16 + 1 : 0;
      const unsigned next = links[item].load(rlx);
      if (head.compare_exchange_weak(old, tag * 16 + next, acq, acq)) return item;
    }
  }
  void push(unsigned item) {
    unsigned old = head.load(rlx);
    do {
      links[item].store(old % 16, rlx);
    } while (!head.compare_exchange_weak(old, old / 16 * 16 + item, rel, rlx));
  }
  void use(unsigned item) {
    if (item != none) owned[item].set(owned[item].get() + 1);
  }

  void run(unsigned thread) {
    if (thread == 0) {
      use(pop());
    } else {
      const unsigned a = pop();
      const unsigned b = pop();
      use(a);
      use(b);
      if (a != none) push(a);
      const unsigned c = pop();
      check(c == none || c != b, "an item is given out twice");
      use(c);
    }
  }
  void finish() {}
};

TEST(explorer_finds, a_stack_without_a_tag) {
  expect_explored<treiber_stack<true>>();
  expect_caught<treiber_stack<false>>("an item is given out twice");
}

// --- reference counts ---

template <order Put, order Last>
struct counted_object {
  static constexpr unsigned threads = 2;
  atomic<int> refs{2};
  plain<int> data{0};
  std::array<plain<int>, 2> own;

  void run(unsigned thread) {
    own[thread].set(1);
    if (refs.fetch_sub(1, Put) != 1) return;
    static_cast<void>(refs.load(Last));
    for (plain<int>& o : own) o.set(2);
  }
  void finish() {}
};

// Two threads that both see 1 and both take it for their own.
struct load_then_store {
  static constexpr unsigned threads = 2;
  atomic<int> refs{2};
  std::array<bool, 2> freed{};

  void run(unsigned thread) {
    const int n = refs.load(acq) - 1;
    refs.store(n, rel);
    freed[thread] = n == 0;
  }
  void finish() { check(freed[0] != freed[1], "freed twice or not at all"); }
};

// A lookup that takes a reference to what has none any more.
template <bool UnlessZero>
struct resurrected {
  static constexpr unsigned threads = 2;
  atomic<int> refs{1};
  std::array<bool, 2> freed{};

  bool get() {
    int old = refs.load(rlx);
    do {
      if (UnlessZero && old == 0) return false;
    } while (!refs.compare_exchange_weak(old, old + 1, acq, rlx));
    return true;
  }
  void run(unsigned thread) {
    if (thread == 1 && !get()) return;
    freed[thread] = refs.fetch_sub(1, order::acq_rel) == 1;  // acq_rel: as a count has to
  }
  void finish() { check(freed[0] != freed[1], "freed twice"); }
};

TEST(explorer_finds, counts_that_do_not_order) {
  expect_explored<counted_object<rel, acq>>();
  expect_caught<counted_object<rlx, acq>>("data race");
  expect_caught<counted_object<rel, rlx>>("data race");
  expect_caught<load_then_store>("freed twice or not at all");
  expect_explored<resurrected<true>>();
  expect_caught<resurrected<false>>("freed twice");
}

// --- a ring of one producer and one consumer ---

enum class ring_fault { none, publishes_first, publishes_relaxed, frees_first, full_by_one };

template <ring_fault Fault>
struct ring {
  static constexpr unsigned threads = 2;
  static constexpr unsigned capacity = 2;
  atomic<unsigned> head{0}, tail{0};
  std::array<plain<int>, capacity> slots;
  int popped = 0;

  bool push(int item) {
    const unsigned at = tail.load(rlx);
    const unsigned room = Fault == ring_fault::full_by_one ? capacity + 1 : capacity;
    if (at - head.load(acq) == room) return false;
    if (Fault == ring_fault::publishes_first) tail.store(at + 1, rel);
    slots[at % capacity].set(item);
    if (Fault == ring_fault::publishes_relaxed) tail.store(at + 1, rlx);
    if (Fault != ring_fault::publishes_first) tail.store(at + 1, rel);
    return true;
  }
  bool pop(int& item) {
    const unsigned at = head.load(rlx);
    if (tail.load(acq) == at) return false;
    if (Fault == ring_fault::frees_first) head.store(at + 1, rel);
    item = slots[at % capacity].get();
    if (Fault != ring_fault::frees_first) head.store(at + 1, rel);
    return true;
  }

  void run(unsigned thread) {
    for (int i = 1; i <= 3; ++i) {
      int item = 0;
      if (thread == 0) {
        static_cast<void>(push(i));
      } else if (pop(item)) {
        check(item > popped, "out of order");
        popped = item;
      }
    }
  }
  void finish() {}
};

TEST(explorer_finds, rings_that_publish_wrongly) {
  expect_explored<ring<ring_fault::none>>();
  expect_caught<ring<ring_fault::publishes_first>>("data race");
  expect_caught<ring<ring_fault::publishes_relaxed>>("data race");
  expect_caught<ring<ring_fault::frees_first>>("data race");
  expect_caught<ring<ring_fault::full_by_one>>("out of order");
}

// --- double-checked locking ---

template <order Look, order Publish>
struct made_once {
  static constexpr unsigned threads = 2;
  model_mutex lock;
  atomic<bool> made{false};
  plain<int> object{0};

  void run(unsigned) {
    if (!made.load(Look)) {
      lock.lock();
      if (!made.load(rlx)) {  // under the lock
        object.set(7);
        made.store(true, Publish);
      }
      lock.unlock();
    }
    check(object.get() == 7);
  }
  void finish() {}
};

TEST(explorer_finds, double_checked_locking_without_acquire) {
  expect_explored<made_once<acq, rel>>();
  expect_caught<made_once<rlx, rel>>("data race");
  expect_caught<made_once<acq, rlx>>("data race");
}

// --- Dekker's and Peterson's locks: a store, then a look at the other's ---

template <order Order>
struct peterson {
  static constexpr unsigned threads = 2;
  std::array<atomic<bool>, 2> wants;
  atomic<unsigned> turn{0};
  plain<int> inside{0};

  void run(unsigned thread) {
    wants[thread].store(true, Order);
    turn.store(1 - thread, Order);
    while (wants[1 - thread].load(Order) && turn.load(Order) == 1 - thread) {
    }
    inside.set(inside.get() + 1);
    wants[thread].store(false, Order == order::seq_cst ? Order : rel);
  }
  void finish() {}
};

TEST(explorer_finds, petersons_lock_without_sequential_consistency) {
  expect_explored<peterson<order::seq_cst>>();
  expect_caught<peterson<rlx>>("data race");
}

// --- a sleeper that looks, and then says that it sleeps ---

template <bool Fenced>
struct sleeper {
  static constexpr unsigned threads = 2;
  atomic<bool> item{false};
  atomic<unsigned> waiting{0};
  atomic<std::uint32_t> word{0};

  void fence() {
    if (Fenced) model_atomics::fence(order::seq_cst);
  }
  void run(unsigned thread) {
    if (thread == 0) {
      item.store(true, rel);
      fence();
      if (waiting.load(rlx) == 0) return;
      word.fetch_add(1, rel);
      model_futex::wake(word);
      return;
    }
    while (!item.load(acq)) {
      const std::uint32_t seen = word.load(acq);
      waiting.store(1, rlx);
      fence();
      if (!item.load(acq)) model_futex::wait(word, seen);
      waiting.store(0, rlx);
    }
  }
  void finish() {}
};

TEST(explorer_finds, a_lost_wake_up) {
  expect_explored<sleeper<true>>();
  expect_caught<sleeper<false>>("deadlock: thread 2 sleeps");
}

// --- a sequence lock whose reader does not look again ---

template <bool LooksAgain>
struct sequence_lock {
  static constexpr unsigned threads = 2;
  atomic<unsigned> sequence{0};
  atomic<int> a{0}, b{0};

  void run(unsigned thread) {
    if (thread == 0) {
      sequence.store(1, rlx);
      model_atomics::fence(rel);
      a.store(1, rlx);
      b.store(1, rlx);
      sequence.store(2, rel);
      return;
    }
    const unsigned before = sequence.load(acq);
    const int x = a.load(rlx);
    const int y = b.load(rlx);
    model_atomics::fence(acq);
    const unsigned after = LooksAgain ? sequence.load(rlx) : before;
    if (before % 2 == 0 && before == after) check(x == y, "torn");
  }
  void finish() {}
};

TEST(explorer_finds, a_reader_that_does_not_look_again) {
  expect_explored<sequence_lock<true>>();
  expect_caught<sequence_lock<false>>("torn");
}

}  // namespace
}  // namespace forebay::explorer
