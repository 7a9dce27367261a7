// One thread: not in the thread sanitizer's tree.
// The explorer's own behaviour: data races, waiting, deadlocks, bounds, replay, weakening.
#include "forebay/base/assert.h"
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

// --- data races ---

template <order Store, order Load>
struct handed_over {
  static constexpr unsigned threads = 2;
  plain<int> data{0};
  atomic<bool> ready{false};

  void run(unsigned thread) {
    if (thread == 0) {
      data.set(42);
      ready.store(true, Store);
    } else if (ready.load(Load)) {
      check(data.get() == 42);
    }
  }
  void finish() { check(data.get() == 42); }
};

TEST(explorer, finds_data_races) {
  expect_explored<handed_over<rel, acq>>();
  expect_caught<handed_over<rlx, acq>>("data race: thread 2 reads plain data that thread 1");
  expect_caught<handed_over<rel, rlx>>("data race");
}

struct read_then_written {
  static constexpr unsigned threads = 2;
  plain<int> data{0};
  atomic<bool> done{false};

  void run(unsigned thread) {
    if (thread == 0) {
      check(data.get() == 0);
      done.store(true, rlx);
    } else if (done.load(acq)) {
      data.set(1);
    }
  }
  void finish() {}
};

TEST(explorer, finds_a_write_that_races_with_a_read) {
  expect_caught<read_then_written>("writes plain data that thread 1 has read");
}

// An object made by one thread and found by another through a pointer.
template <order Store>
struct published {
  struct node {
    atomic<int> value{7};
  };
  static constexpr unsigned threads = 2;
  atomic<node*> head{nullptr};

  void run(unsigned thread) {
    if (thread == 0) {
      head.store(new node, Store);
    } else if (node* n = head.load(acq)) {
      check(n->value.load(rlx) == 7);
    }
  }
  void finish() { delete head.load(rlx); }
};

TEST(explorer, finds_an_object_that_is_used_before_it_is_made) {
  expect_explored<published<rel>>();
  expect_caught<published<rlx>>("its making does not happen before");
}

struct freed_too_early {
  static constexpr unsigned threads = 2;
  atomic<int>* const object = new atomic<int>(0);

  void run(unsigned thread) {
    if (thread == 0) {
      object->fetch_add(1);
    } else if (object->load() == 0) {
      delete object;
    }
  }
  void finish() {}
};

TEST(explorer, finds_an_object_that_is_used_after_its_end) {
  if (sanitized) GTEST_SKIP() << "the sanitizer sees it first";
  const outcome out = explore<freed_too_early>();
  EXPECT_TRUE(out.failed);
  EXPECT_TRUE(out.message.contains("after its end") || out.message.contains("is destroyed"))
      << out.message;
}

struct follows_a_wild_pointer {
  static constexpr unsigned threads = 2;
  atomic<int*> at{nullptr};
  int number = 0;

  void run(unsigned thread) {
    if (thread == 0) {
      at.store(&number);
    } else {
      number = *at.load();
    }
  }
  void finish() {}
};

TEST(explorer, finds_wild_pointers) {
  if (sanitized) GTEST_SKIP() << "the sanitizer sees it first";
  expect_caught<follows_a_wild_pointer>("a wild pointer");
}

// --- waiting ---

struct waits_for_a_flag {
  static constexpr unsigned threads = 2;
  atomic<bool> ready{false};
  plain<int> data{0};

  void run(unsigned thread) {
    if (thread == 0) {
      data.set(1);
      ready.store(true, rel);
    } else {
      while (!ready.load(acq)) {
      }
      check(data.get() == 1);
    }
  }
  void finish() {}
};

struct waits_for_nobody {
  static constexpr unsigned threads = 2;
  atomic<bool> ready{false};

  void run(unsigned thread) {
    if (thread == 0) return;
    while (!ready.load(acq)) {
    }
  }
  void finish() {}
};

struct reads_often {
  static constexpr unsigned threads = 2;
  atomic<int> x{0};

  void run(unsigned) {
    for (int i = 0; i < 8; ++i) x.load(rlx);
  }
  void finish() {}
};

TEST(explorer, a_loop_that_waits_is_not_run_for_ever) {
  expect_explored<waits_for_a_flag>();
  expect_caught<waits_for_nobody>("deadlock: thread 2 loops until something changes");
  expect_explored<reads_often>();
}

// A lock that spins with an exchange stores each time, so only yield() shows that it waits.
struct spin_lock {
  static constexpr unsigned threads = 2;
  static constexpr options bounds{.steps = 100};
  atomic<bool> locked{false};
  plain<int> count{0};

  void run(unsigned) {
    for (int i = 0; i < 2; ++i) {
      while (locked.exchange(true, acq)) yield();
      count.set(count.get() + 1);
      locked.store(false, rel);
    }
  }
  void finish() { check(count.get() == 4); }
};

TEST(explorer, yield_waits_for_a_change) { expect_explored<spin_lock>(); }

struct counts_under_a_lock {
  static constexpr unsigned threads = 3;
  model_mutex lock;
  plain<int> count{0};

  void run(unsigned) {
    lock.lock();
    count.set(count.get() + 1);
    lock.unlock();
  }
  void finish() { check(count.get() == 3); }
};

struct locks_crosswise {
  static constexpr unsigned threads = 2;
  model_mutex a, b;

  void run(unsigned thread) {
    model_mutex& first = thread == 0 ? a : b;
    model_mutex& second = thread == 0 ? b : a;
    first.lock();
    second.lock();
    second.unlock();
    first.unlock();
  }
  void finish() {}
};

TEST(explorer, locks) {
  expect_explored<counts_under_a_lock>();
  expect_caught<locks_crosswise>("deadlock: thread 1 waits for a lock, thread 2 waits for a lock");
}

// The futex protocol: a waker that looks for sleepers before it sets the word loses one.
template <bool SetFirst>
struct futex_flag {
  static constexpr unsigned threads = 2;
  atomic<std::uint32_t> word{0};
  atomic<std::uint32_t> sleepers{0};

  void run(unsigned thread) {
    if (thread == 0) {
      sleepers.fetch_add(1);
      while (word.load() == 0) model_futex::wait(word, 0);
      sleepers.fetch_sub(1);
    } else if (SetFirst) {
      word.store(1);
      if (sleepers.load() != 0) model_futex::wake(word);
    } else {
      const bool any = sleepers.load() != 0;
      word.store(1);
      if (any) model_futex::wake(word);
    }
  }
  void finish() {}
};

TEST(explorer, futexes) {
  expect_explored<futex_flag<true>>();
  expect_caught<futex_flag<false>>("deadlock: thread 1 sleeps");
}

struct timed_wait {
  static constexpr unsigned threads = 1;
  atomic<std::uint32_t> word{0};

  void run(unsigned) { model_futex::wait(word, 0, 1000); }
  void finish() {}
};

TEST(explorer, a_timed_wait_ends) { expect_explored<timed_wait>(); }

// --- bounds, assertions, replay ---

struct never_ends {
  static constexpr unsigned threads = 1;
  static constexpr options bounds{.steps = 50};
  atomic<int> x{0};

  void run(unsigned) {
    for (;;) x.fetch_add(1);
  }
  void finish() {}
};

TEST(explorer, an_endless_execution_is_a_failure) { expect_caught<never_ends>("no end in sight"); }

struct asserts {
  static constexpr unsigned threads = 2;
  atomic<int> x{0};

  void run(unsigned thread) {
    if (thread == 0) {
      x.store(1);
    } else {
      FOREBAY_ASSERT(x.load() == 0);
    }
  }
  void finish() {}
};

TEST(explorer, a_failed_assertion_is_a_failure) {
  expect_caught<asserts>("assertion failed: x.load() == 0");
}

// Needs two preemptions at just the right places.
struct two_preemptions {
  static constexpr unsigned threads = 2;
  atomic<int> x{0}, y{0};

  void run(unsigned thread) {
    if (thread == 0) {
      x.store(1);
      x.store(2);
    } else {
      const int before = x.load();
      y.store(1);
      const int after = x.load();
      check(!(before == 0 && after == 1), "between");
    }
  }
  void finish() {}
};

TEST(explorer, the_preemption_bound_bounds) {
  EXPECT_FALSE(explore<two_preemptions>({.preemptions = 0}).failed);
  EXPECT_FALSE(explore<two_preemptions>({.preemptions = 1}).failed);
  EXPECT_TRUE(explore<two_preemptions>({.preemptions = 2}).failed);
}

TEST(explorer, a_failure_can_be_replayed) {
  const outcome first = explore<two_preemptions>();
  ASSERT_TRUE(first.failed);
  const outcome again = explore<two_preemptions>({.replay = first.choices.c_str()});
  EXPECT_TRUE(again.failed);
  EXPECT_EQ(again.executions, 1u);
  EXPECT_EQ(again.message, first.message);
  EXPECT_FALSE(explore<two_preemptions>({.replay = "-"}).failed);
}

TEST(explorer, random_executions_find_and_replay_the_same) {
  const outcome out =
      explore<two_preemptions>({.executions_max = 0, .random_executions = 10'000, .seed = 7});
  ASSERT_TRUE(out.failed);
  const outcome again = explore<two_preemptions>({.replay = out.choices.c_str()});
  EXPECT_EQ(again.message, out.message);
}

struct chooses {
  static constexpr unsigned threads = 1;
  static inline unsigned seen = 0;

  void run(unsigned) { seen |= 1u << choose(5); }
  void finish() {}
};

TEST(explorer, a_scenario_may_choose) {
  chooses::seen = 0;
  EXPECT_TRUE(explore<chooses>().exhausted);
  EXPECT_EQ(chooses::seen, 0x1fu);
}

// Pruning of equal states must not lose results: all orders of three threads' additions are seen.
struct orders_of_three {
  static constexpr unsigned threads = 3;
  static inline unsigned seen = 0;
  atomic<unsigned> x{1};

  void run(unsigned thread) {
    unsigned old = x.load(rlx);
    while (!x.compare_exchange_weak(old, old * 4 + thread, rlx, rlx)) {
    }
  }
  void finish() { seen |= 1u << (x.load(rlx) & 0x1f); }
};

TEST(explorer, equal_states_are_no_loss) {
  orders_of_three::seen = 0;
  const outcome out = explore<orders_of_three>();
  EXPECT_TRUE(out.exhausted);
  unsigned expected = 0;
  for (const unsigned order_of :
       {0x06u, 0x09u, 0x12u, 0x18u, 0x21u, 0x24u}) {  // 012 021 102 120 201 210, two bits each
    expected |= 1u << (order_of & 0x1f);
  }
  EXPECT_EQ(orders_of_three::seen, expected);
}

// --- weakening ---

struct weakenable {
  static constexpr unsigned threads = 2;
  plain<int> data{0};
  atomic<bool> ready{false};
  atomic<int> unused{0};

  void run(unsigned thread) {
    if (thread == 0) {
      data.set(1);
      ready.store(true, order::release);  // release: pairs with the load
      // release; beyond the explorer: nobody looks.
      unused.store(1, order::release);
    } else if (ready.load(order::acquire)) {  // acquire: pairs with the store
      data.get();
    }
  }
  void finish() {}
};

struct weakenable_silent {
  static constexpr unsigned threads = 1;
  atomic<int> unused{0};

  void run(unsigned) { unused.store(1, order::release); }  // release: for nothing
  void finish() {}
};

TEST(explorer, each_order_is_weakened) {
  const weakening w = weaken<weakenable>({"engine_test.cc"});
  EXPECT_EQ(w.problems, "");
  EXPECT_EQ(w.sites, 3u);
  EXPECT_EQ(w.caught, 2u);
  EXPECT_EQ(w.told, 1u);
  const weakening silent = weaken<weakenable_silent>({"engine_test.cc"});
  EXPECT_NE(silent.problems.find("relaxed does as well"), std::string::npos);
  EXPECT_EQ(weaken<weakenable_silent>({"other.cc"}).sites, 0u);
}

TEST(explorer, where_a_remark_may_stand) {
  const std::string source[] = {
      "  a.store(1,",                                    // 1
      "          release);  // beyond the explorer: b",  // 2
      "  c.store(1, release);",                          // 3
      "  // release; beyond the explorer: d, and",       // 4
      "  // more.",                                      // 5
      "  if (e &&",                                      // 6
      "      d.load(acquire)) {",                        // 7
      "    f.load(acquire);",                            // 8
  };
  EXPECT_TRUE(has_remark(source, 1));
  EXPECT_TRUE(has_remark(source, 2));
  EXPECT_FALSE(has_remark(source, 3));
  EXPECT_TRUE(has_remark(source, 6));
  EXPECT_TRUE(has_remark(source, 7));
  EXPECT_FALSE(has_remark(source, 8));
  EXPECT_FALSE(has_remark(source, 9));
}

}  // namespace
}  // namespace forebay::explorer
