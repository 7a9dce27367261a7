// One thread: not in the thread sanitizer's tree.
// Litmus tests: which results of the classic small programs the explorer finds, and which it must
// not (the names are those of Alglave, Maranget and Tautschnig, 2014). What is asked of each is the
// C++20 standard's answer.
#include <gtest/gtest.h>

#include "sim/explorer/explore.h"

namespace forebay::explorer {
namespace {

using order = std::memory_order;
// relaxed, acquire, release: the orders that the tests are made of.
constexpr order rlx = order::relaxed;
constexpr order acq = order::acquire;
constexpr order rel = order::release;
constexpr order sc = order::seq_cst;

using atomic = model_atomics::atomic<int>;

// Whether some execution of S ends in what S::weak() says; a failure of any other kind fails the
// test.
template <typename S>
bool shows() {
  const outcome out = explore<S>();
  if (out.failed) {
    EXPECT_NE(out.message.find("weak result"), std::string::npos) << out.message;
    return true;
  }
  EXPECT_TRUE(out.exhausted);
  return false;
}

// Fails the execution whose result is asked for.
inline void found(bool weak) { check(!weak, "weak result"); }

// SB: store buffering.
template <order Store, order Load, bool Fence = false>
struct store_buffering {
  static constexpr unsigned threads = 2;
  atomic x{0}, y{0};
  int a = -1, b = -1;

  void run(unsigned thread) {
    atomic& mine = thread == 0 ? x : y;
    atomic& other = thread == 0 ? y : x;
    mine.store(1, Store);
    if (Fence) model_atomics::fence(sc);
    (thread == 0 ? a : b) = other.load(Load);
  }
  void finish() { found(a == 0 && b == 0); }
};

TEST(litmus, store_buffering) {
  EXPECT_TRUE((shows<store_buffering<rlx, rlx>>()));
  EXPECT_TRUE((shows<store_buffering<rel, acq>>()));
  EXPECT_TRUE((shows<store_buffering<sc, acq>>()));
  EXPECT_TRUE((shows<store_buffering<rel, sc>>()));
  EXPECT_FALSE((shows<store_buffering<sc, sc>>()));
  EXPECT_FALSE((shows<store_buffering<rlx, rlx, true>>()));
}

// MP: message passing.
template <order Store, order Load>
struct message_passing {
  static constexpr unsigned threads = 2;
  atomic data{0}, flag{0};
  int seen = -1, read = -1;

  void run(unsigned thread) {
    if (thread == 0) {
      data.store(1, rlx);
      flag.store(1, Store);
    } else {
      seen = flag.load(Load);
      read = data.load(rlx);
    }
  }
  void finish() { found(seen == 1 && read == 0); }
};

TEST(litmus, message_passing) {
  EXPECT_TRUE((shows<message_passing<rlx, acq>>()));
  EXPECT_TRUE((shows<message_passing<rel, rlx>>()));
  EXPECT_FALSE((shows<message_passing<rel, acq>>()));
  EXPECT_FALSE((shows<message_passing<sc, sc>>()));
}

// The same by fences.
template <order Release, order Acquire>
struct message_passing_fences {
  static constexpr unsigned threads = 2;
  atomic data{0}, flag{0};
  int seen = -1, read = -1;

  void run(unsigned thread) {
    if (thread == 0) {
      data.store(1, rlx);
      model_atomics::fence(Release);
      flag.store(1, rlx);
    } else {
      seen = flag.load(rlx);
      model_atomics::fence(Acquire);
      read = data.load(rlx);
    }
  }
  void finish() { found(seen == 1 && read == 0); }
};

TEST(litmus, message_passing_by_fences) {
  EXPECT_FALSE((shows<message_passing_fences<rel, acq>>()));
  EXPECT_FALSE((shows<message_passing_fences<sc, acq>>()));
  EXPECT_TRUE((shows<message_passing_fences<rlx, acq>>()));
  EXPECT_TRUE((shows<message_passing_fences<rel, rlx>>()));
  EXPECT_TRUE((shows<message_passing_fences<acq, acq>>()));
}

// LB: load buffering. C++ allows it; the model has no loads from stores that are still to come.
struct load_buffering {
  static constexpr unsigned threads = 2;
  atomic x{0}, y{0};
  int a = -1, b = -1;

  void run(unsigned thread) {
    if (thread == 0) {
      a = x.load(rlx);
      y.store(1, rlx);
    } else {
      b = y.load(rlx);
      x.store(1, rlx);
    }
  }
  void finish() { found(a == 1 && b == 1); }
};

TEST(litmus, load_buffering_is_left_out) { EXPECT_FALSE(shows<load_buffering>()); }

// IRIW: independent reads of independent writes.
template <order Store, order Load>
struct independent_reads {
  static constexpr unsigned threads = 4;
  atomic x{0}, y{0};
  int r[4] = {-1, -1, -1, -1};

  void run(unsigned thread) {
    switch (thread) {
      case 0:
        x.store(1, Store);
        break;
      case 1:
        y.store(1, Store);
        break;
      case 2:
        r[0] = x.load(Load);
        r[1] = y.load(Load);
        break;
      default:
        r[2] = y.load(Load);
        r[3] = x.load(Load);
    }
  }
  void finish() { found(r[0] == 1 && r[1] == 0 && r[2] == 1 && r[3] == 0); }
};

TEST(litmus, independent_reads_of_independent_writes) {
  EXPECT_TRUE((shows<independent_reads<rlx, rlx>>()));
  EXPECT_TRUE((shows<independent_reads<rel, acq>>()));
  EXPECT_TRUE((shows<independent_reads<sc, acq>>()));
  EXPECT_FALSE((shows<independent_reads<sc, sc>>()));
}

// CoRR, CoWW, CoWR, CoRW: one location behaves, whatever the orders.
struct coherence {
  static constexpr unsigned threads = 3;
  atomic x{0};
  int a = -1, b = -1, c = -1;

  void run(unsigned thread) {
    if (thread == 0) {
      x.store(1, rlx);
      x.store(2, rlx);
    } else if (thread == 1) {
      a = x.load(rlx);
      b = x.load(rlx);
    } else {
      x.store(3, rlx);
      c = x.load(rlx);
    }
  }
  void finish() {
    const bool read_read = (a == 2 && b == 1) || (a != 0 && b == 0);
    const bool write_read = c == 0;
    found(read_read || write_read || x.load(rlx) == 1);
  }
};

TEST(litmus, coherence) { EXPECT_FALSE(shows<coherence>()); }

// 2+2W: two locations written by both in opposite orders.
template <order Store>
struct two_plus_two_writes {
  static constexpr unsigned threads = 2;
  atomic x{0}, y{0};

  void run(unsigned thread) {
    atomic& first = thread == 0 ? x : y;
    atomic& second = thread == 0 ? y : x;
    first.store(1, rlx);
    second.store(2, Store);
  }
  void finish() { found(x.load(rlx) == 1 && y.load(rlx) == 1); }
};

struct two_plus_two_sequential {
  static constexpr unsigned threads = 2;
  atomic x{0}, y{0};

  void run(unsigned thread) {
    (thread == 0 ? x : y).store(1, sc);
    (thread == 0 ? y : x).store(2, sc);
  }
  void finish() { found(x.load(rlx) == 1 && y.load(rlx) == 1); }
};

TEST(litmus, two_plus_two_writes) {
  EXPECT_TRUE(shows<two_plus_two_writes<rlx>>());
  EXPECT_TRUE(shows<two_plus_two_writes<rel>>());
  EXPECT_FALSE(shows<two_plus_two_sequential>());
}

// S and R: a store that comes behind another in the location's order though it was seen before it.
template <order Store, order Load>
struct shape_s {
  static constexpr unsigned threads = 2;
  atomic x{0}, y{0};
  int a = -1;

  void run(unsigned thread) {
    if (thread == 0) {
      x.store(2, rlx);
      y.store(1, Store);
    } else {
      a = y.load(Load);
      x.store(1, rlx);
    }
  }
  void finish() { found(a == 1 && x.load(rlx) == 2); }
};

template <order Fence>
struct shape_r {
  static constexpr unsigned threads = 2;
  atomic x{0}, y{0};
  int a = -1;

  void run(unsigned thread) {
    if (thread == 0) {
      x.store(1, rlx);
      model_atomics::fence(Fence);
      y.store(1, rlx);
    } else {
      y.store(2, rlx);
      model_atomics::fence(Fence);
      a = x.load(rlx);
    }
  }
  void finish() { found(y.load(rlx) == 2 && a == 0); }
};

TEST(litmus, stores_that_come_behind) {
  EXPECT_TRUE((shows<shape_s<rlx, rlx>>()));
  EXPECT_TRUE((shows<shape_s<rlx, acq>>()));
  EXPECT_FALSE((shows<shape_s<rel, acq>>()));
  EXPECT_TRUE(shows<shape_r<order::acq_rel>>());  // acq_rel: not enough for R
  EXPECT_FALSE(shows<shape_r<sc>>());
}

// WRC: write-to-read causality.
template <order Store, order Load>
struct causality {
  static constexpr unsigned threads = 3;
  atomic x{0}, y{0};
  int a = -1, b = -1, c = -1;

  void run(unsigned thread) {
    if (thread == 0) {
      x.store(1, rlx);
    } else if (thread == 1) {
      a = x.load(rlx);
      y.store(1, Store);
    } else {
      b = y.load(Load);
      c = x.load(rlx);
    }
  }
  void finish() { found(a == 1 && b == 1 && c == 0); }
};

TEST(litmus, causality) {
  EXPECT_TRUE((shows<causality<rlx, acq>>()));
  EXPECT_TRUE((shows<causality<rel, rlx>>()));
  EXPECT_FALSE((shows<causality<rel, acq>>()));
}

// A release sequence goes on through read-modify-writes of any order, and ends with a store of any
// thread (since C++20 also of the one that released).
template <bool Modify>
struct release_sequence {
  static constexpr unsigned threads = 3;
  atomic data{0}, flag{0};
  int seen = -1, read = -1;

  void run(unsigned thread) {
    if (thread == 0) {
      data.store(1, rlx);
      flag.store(1, rel);
    } else if (thread == 1) {
      if (Modify) {
        flag.fetch_add(10, rlx);
      } else if (flag.load(rlx) == 1) {
        flag.store(11, rlx);
      }
    } else {
      seen = flag.load(acq);
      read = data.load(rlx);
    }
  }
  void finish() { found(seen == 11 && read == 0); }
};

TEST(litmus, release_sequences) {
  EXPECT_FALSE(shows<release_sequence<true>>());
  EXPECT_TRUE(shows<release_sequence<false>>());
}

// Read-modify-writes lose nothing, whatever their order.
struct additions {
  static constexpr unsigned threads = 3;
  atomic x{0};

  void run(unsigned) {
    x.fetch_add(1, rlx);
    x.fetch_add(1, rlx);
  }
  void finish() { found(x.load(rlx) != 6); }
};

TEST(litmus, read_modify_writes_are_atomic) { EXPECT_FALSE(shows<additions>()); }

// A store may come between others, but not between a read-modify-write and what it has read.
struct store_and_modify {
  static constexpr unsigned threads = 2;
  atomic x{0};
  int old = -1;

  void run(unsigned thread) {
    if (thread == 0) {
      x.store(5, rlx);
    } else {
      old = x.fetch_add(1, rlx);
    }
  }
  void finish() {
    const int last = x.load(rlx);
    found(!((old == 0 && last == 5) || (old == 5 && last == 6)));
  }
};

TEST(litmus, nothing_comes_between) { EXPECT_FALSE(shows<store_and_modify>()); }

// A read-modify-write may miss a store that another location has told of, if nothing orders them.
template <order Store, order Load>
struct old_modify {
  static constexpr unsigned threads = 2;
  atomic x{0}, y{0};
  int seen = -1, old = -1;

  void run(unsigned thread) {
    if (thread == 0) {
      x.store(5, rlx);
      y.store(1, Store);
    } else {
      seen = y.load(Load);
      old = x.fetch_add(1, rlx);
    }
  }
  void finish() { found(seen == 1 && old == 0); }
};

TEST(litmus, read_modify_writes_may_be_early) {
  EXPECT_TRUE((shows<old_modify<rlx, rlx>>()));
  EXPECT_FALSE((shows<old_modify<rel, acq>>()));
}

// A weak compare-exchange may fail without a reason, if it is asked for.
struct weak_failure {
  static constexpr unsigned threads = 1;
  static constexpr options bounds{.spurious_failures = 1};
  atomic x{0};
  bool done = false;

  void run(unsigned) {
    int expected = 0;
    done = x.compare_exchange_weak(expected, 1, rlx, rlx);
  }
  void finish() { found(!done); }
};

TEST(litmus, weak_compare_exchange) { EXPECT_TRUE(shows<weak_failure>()); }

}  // namespace
}  // namespace forebay::explorer
