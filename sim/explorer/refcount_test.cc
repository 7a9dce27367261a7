// One thread: not in the thread sanitizer's tree.
// Reference counts (forebay/base/refcount.h, weak_ref.h) in the explorer.
#include "forebay/base/refcount.h"

#include <array>
#include <utility>

#include "forebay/base/stats.h"
#include "forebay/base/weak_ref.h"
#include "sim/explorer/test_explore.h"

namespace forebay::explorer {
namespace {

using count = basic_refcount<model_atomics>;
using holder_count = basic_holder_refcount<model_atomics>;
using number = model_atomics::plain<int>;

// Each holder shares the object, writes to it and gives both references back; the last one sees all
// that was written, and frees it.
template <typename Count, unsigned Threads>
struct last_holder_frees {
  static constexpr unsigned threads = Threads;
  Count refs{Threads};
  std::array<number, Threads> written;
  std::array<bool, Threads> last{};

  void run(unsigned thread) {
    refs.get();
    written[thread].set(1);
    const bool first_put = refs.put();
    check(!first_put);
    last[thread] = refs.put();
    if (!last[thread]) return;
    for (number& w : written) {
      check(w.get() == 1);
      w.set(0);  // whatever the next owner of the memory does
    }
  }
  void finish() {
    unsigned n = 0;
    for (const bool l : last) n += l ? 1 : 0;
    check(n == 1, "the object was freed once");
  }
};

// Who knows of another holder gives back without looking; what it wrote is seen by the last.
template <typename Count>
struct put_not_the_last {
  static constexpr unsigned threads = 2;
  Count refs{3};
  number written;
  model_atomics::atomic<bool> gone{false};

  void run(unsigned thread) {
    if (thread == 0) {
      written.set(1);
      refs.put_not_last();
      refs.get();
      static_cast<void>(refs.put());
    } else {
      static_cast<void>(refs.put());
    }
  }
  void finish() {
    check(refs.put());
    check(written.get() == 1);
  }
};

// The same where the last holder is another thread while the first still runs.
struct put_not_last_then_freed {
  static constexpr unsigned threads = 2;
  count refs{2};
  number written;

  void run(unsigned thread) {
    if (thread == 0) {
      written.set(1);
      refs.put_not_last();
    } else if (refs.freeze(1)) {
      check(written.get() == 1);
      written.set(2);
      refs.set(1);
    }
  }
  void finish() { check(refs.value() == 1); }
};

// A frame that anybody may look at: while it is refused it may be given a new identity; who has a
// reference sees one life of it only.
struct lookups_of_a_frame {
  static constexpr unsigned threads = 3;
  count refs{1};
  number identity{1};

  void run(unsigned thread) {
    if (thread == 0) {
      if (!refs.freeze(1)) return;
      identity.set(2);
      refs.set(1);
      if (!refs.freeze(1)) return;
      identity.set(3);
      refs.set(1);
    } else if (refs.get_unless_zero()) {
      const int seen = identity.get();
      check(seen >= 1 && seen <= 3 && identity.get() == seen);
      check(!refs.put());
    }
  }
  void finish() { check(refs.value() == 1); }
};

// The last holder may be the one that looked up, who then frees.
struct lookup_frees {
  static constexpr unsigned threads = 2;
  count refs{0};
  number identity{0};
  std::array<unsigned, 2> freed{};

  void run(unsigned thread) {
    if (thread == 0) {
      identity.set(7);
      refs.set(1);
      drop(thread);
    } else if (refs.get_unless_zero()) {
      check(identity.get() == 7);
      drop(thread);
    }
  }
  void drop(unsigned thread) {
    if (!refs.put()) return;
    identity.set(0);
    ++freed[thread];
  }
  void finish() { check(refs.value() == 0 && freed[0] + freed[1] == 1); }
};

// A count in the saturated zone stays there, whatever is done to it.
struct saturated_for_ever {
  static constexpr unsigned threads = 2;
  count refs{count::saturated};

  void run(unsigned thread) {
    if (thread == 0) {
      check(!refs.put());
      check(!refs.put());
      refs.put_not_last();
    } else {
      refs.get();
      check(refs.get_unless_zero());
      check(!refs.put());
    }
  }
  void finish() { check(refs.value() > count::max); }
};

TEST(explored_refcount, refcount) {
  expect_explored_and_needed<last_holder_frees<count, 2>, last_holder_frees<count, 3>,
                             put_not_the_last<count>, put_not_last_then_freed, lookups_of_a_frame,
                             lookup_frees, saturated_for_ever>({"base/refcount.h"});
}

// rest_if_last() and put_if_last(): who finds itself alone has the object as if by put().
template <bool Rest>
struct alone_or_not {
  static constexpr unsigned threads = 2;
  holder_count refs{2};
  number written{0};
  std::array<bool, 2> alone{};

  void run(unsigned thread) {
    refs.get();
    check(!refs.put());
    if (thread == 0) written.set(1);
    alone[thread] = Rest ? refs.rest_if_last() : refs.put_if_last();
    if (alone[thread]) {
      written.set(2);
    } else if (refs.put()) {
      written.set(3);
      alone[thread] = true;
    }
  }
  void finish() { check(alone[0] != alone[1], "one of them was the last"); }
};

// A buffer goes out for its next life at count 1, and comes back.
struct next_life {
  static constexpr unsigned threads = 2;
  holder_count refs{2};
  number written{0};

  void run(unsigned thread) {
    written_by(thread);
    if (refs.rest_if_last() || refs.put()) written.set(10);
  }
  void written_by(unsigned thread) {
    if (thread == 1) written.set(1);
  }
  void finish() {}
};

// One holder shares, maybe when it is alone already, and what the other one did is seen by the
// last.
struct shared_by_who_may_be_alone {
  static constexpr unsigned threads = 2;
  holder_count refs{2};
  number written{0};
  std::array<bool, 2> last{};

  void run(unsigned thread) {
    if (thread == 0) {
      written.set(1);
    } else {
      refs.get_likely_alone();
      check(!refs.put());
    }
    last[thread] = refs.put();
    if (last[thread]) check(written.get() == 1);
  }
  void finish() { check(last[0] != last[1], "one of them was the last"); }
};

TEST(explored_refcount, holder_refcount) {
  expect_explored_and_needed<last_holder_frees<holder_count, 2>, last_holder_frees<holder_count, 3>,
                             put_not_the_last<holder_count>, alone_or_not<true>,
                             alone_or_not<false>, next_life, shared_by_who_may_be_alone,
                             put_not_last_then_freed, lookups_of_a_frame>({"base/refcount.h"});
}

// --- strong and weak references ---

struct object {
  number data{1};
  ~object() { data.set(0); }
};

// Memory that says when it has gone back.
struct counting_deleter {
  unsigned* freed;
  void operator()(void*, std::size_t, std::size_t) const noexcept { ++*freed; }
};

using block = counted_block<object, counting_deleter, model_atomics>;
using strong_ref = ref_ptr<object, counting_deleter, model_atomics>;
using weak = weak_ref<object, counting_deleter, model_atomics>;

struct with_object {
  alignas(block) std::array<std::byte, sizeof(block)> memory;
  unsigned freed = 0;
  strong_ref first = make_ref_in<object, model_atomics>(memory.data(), counting_deleter{&freed});
};

// Strong references alone: the last one destroys the object and frees the memory.
struct shared_strongly : with_object {
  static constexpr unsigned threads = 2;
  std::array<strong_ref, 2> refs{first.share(), std::move(first)};

  void run(unsigned thread) {
    strong_ref more = refs[thread].share();
    check(more->data.get() == 1);
    more.reset();
    check(refs[thread]->data.get() == 1);
    refs[thread].reset();
  }
  void finish() { check(freed == 1); }
};

// A weak reference is asked while the last strong one goes.
struct asked_weakly : with_object {
  static constexpr unsigned threads = 2;
  weak back = first.weak();

  void run(unsigned thread) {
    if (thread == 0) {
      check(first->data.get() == 1);
      first.reset();
      return;
    }
    if (strong_ref mine = back.lock()) {
      check(mine->data.get() == 1);
    } else {
      check(back.expired());
    }
    back.reset();
  }
  void finish() { check(freed == 1); }
};

// A weak reference is shared while the object goes.
struct shared_weakly : with_object {
  static constexpr unsigned threads = 2;
  weak back = first.weak();

  void run(unsigned thread) {
    if (thread == 0) {
      first.reset();
      return;
    }
    weak more = back.share();
    back.reset();
    if (strong_ref mine = more.lock()) check(mine->data.get() == 1);
    more.reset();
  }
  void finish() { check(freed == 1); }
};

// Two weak ones and a strong one end in any order.
struct ends_in_any_order : with_object {
  static constexpr unsigned threads = 3;
  std::array<weak, 2> backs{first.weak(), first.weak()};

  void run(unsigned thread) {
    if (thread == 2) {
      first.reset();
      return;
    }
    if (thread == 1) {
      if (strong_ref mine = backs[1].lock()) check(mine->data.get() == 1);
    }
    backs[thread].reset();
  }
  void finish() { check(freed == 1); }
};

// The holder of the last strong reference that a weak one gave writes to the object after the
// others have gone.
struct left_by_others : with_object {
  static constexpr unsigned threads = 2;
  std::array<strong_ref, 1> other{first.share()};
  weak back = first.weak();

  void run(unsigned thread) {
    if (thread == 0) {
      other[0]->data.set(1);
      other[0].reset();
    } else if (strong_ref mine = back.lock()) {
      check(mine.get() != nullptr);
    }
  }
  void finish() {
    first->data.set(2);
    first.reset();
    back.reset();
    check(freed == 1);
  }
};

// Words that the thread with their number adds to, and the next one with it (base/stats.h).
template <typename Slots>
struct numbered_words {
  static constexpr unsigned threads = 2;
  Slots slots;
  std::array<number, 2> words{number{0}, number{0}};

  void run(unsigned) {
    for (int i = 0; i < 2; ++i) {
      const std::uint32_t slot = slots.take();
      check(slot < words.size(), "a number for each thread");
      words[slot].set(words[slot].get() + 1);
      slots.give(slot);
    }
  }
  void finish() { check(words[0].get() + words[1].get() == 4); }
};

TEST(explored_refcount, words_of_threads) {
  expect_explored_and_needed<numbered_words<basic_thread_slots<model_atomics>>>({"base/stats.h"});
}

TEST(explored_refcount, strong_and_weak_references) {
  expect_explored_and_needed<shared_strongly, asked_weakly, shared_weakly, ends_in_any_order,
                             left_by_others>({"base/weak_ref.h"});
}

}  // namespace
}  // namespace forebay::explorer
