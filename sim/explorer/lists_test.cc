// One thread: not in the thread sanitizer's tree.
// The free lists (forebay/memory/lock_free_stack.h, bitmap_list.h) and the hand-over to one
// consumer (forebay/ring/mpsc_stack.h) in the explorer.
#include <array>

#include "forebay/memory/bitmap_list.h"
#include "forebay/memory/lock_free_stack.h"
#include "forebay/ring/mpsc_stack.h"
#include "sim/explorer/test_explore.h"

namespace forebay::explorer {
namespace {

using stack = basic_lock_free_stack<model_atomics>;
using number = model_atomics::plain<int>;

// Items with something that belongs to them: who has taken one writes to it.
template <unsigned Items>
struct owned_items {
  std::array<number, Items> data;
  std::array<unsigned, 2> held{};

  void use(std::uint32_t item) {
    check(item < Items);
    data[item].set(data[item].get() + 1);
  }
};

template <unsigned Items>
struct with_stack : owned_items<Items> {
  std::array<stack::link, Items> links;
  stack free{links};

  with_stack() {
    for (unsigned i = Items; i-- != 0;) free.push(i);
  }
  void check_all_back(unsigned wanted) {
    check(free.count(Items + 1) == wanted, "items were lost or doubled");
    std::array<bool, Items> seen{};
    for (std::uint32_t item = free.pop(); item != stack::none; item = free.pop()) {
      check(!seen[item], "an item was in the list twice");
      seen[item] = true;
    }
  }
};

// The classic: take two, give them back in another order, while another takes one.
struct taken_and_given_back : with_stack<3> {
  static constexpr unsigned threads = 2;

  void run(unsigned thread) {
    if (thread == 0) {
      const std::uint32_t item = free.pop();
      if (item == stack::none) return;
      use(item);
      free.push(item);
    } else {
      const std::uint32_t a = free.pop();
      const std::uint32_t b = free.pop();
      if (a != stack::none) {
        use(a);
        free.push(a);
      }
      if (b != stack::none) {
        use(b);
        free.push(b);
      }
    }
  }
  void finish() { check_all_back(3); }
};

// Batches.
struct batches : with_stack<3> {
  static constexpr unsigned threads = 2;
  // A pop of two reads a next and the head again, which is not waiting.
  static constexpr options bounds{.spin_reads = 8};

  void run(unsigned thread) {
    std::array<std::uint32_t, 2> items;
    const std::size_t n = free.pop(std::span(items).first(thread == 0 ? 2 : 1));
    for (std::size_t i = 0; i < n; ++i) use(items[i]);
    free.push(std::span(items).first(n));
    const std::uint32_t more = free.pop();
    if (more == stack::none) return;
    use(more);
    free.push(more);
  }
  void finish() { check_all_back(3); }
};

// Three threads that each take one and give it back.
struct three_take : with_stack<2> {
  static constexpr unsigned threads = 3;

  void run(unsigned) {
    const std::uint32_t item = free.pop();
    if (item == stack::none) return;
    use(item);
    free.push(item);
  }
  void finish() { check_all_back(2); }
};

// A count taken meanwhile ends.
struct counted : with_stack<2> {
  static constexpr unsigned threads = 2;

  void run(unsigned thread) {
    if (thread == 0) {
      check(free.count(2) <= 2);
    } else {
      const std::uint32_t a = free.pop();
      const std::uint32_t b = free.pop();
      free.push(a);
      free.push(b);
    }
  }
  void finish() { check_all_back(2); }
};

TEST(explored_lists, lock_free_stack) {
  expect_explored_and_needed<taken_and_given_back, batches, three_take, counted>(
      {"memory/lock_free_stack.h"});
}

// --- bitmap ---

using bitmap = basic_bitmap<model_atomics>;

// Two words of which two items each are in use, in the order in which a look comes to them.
struct with_bitmap {
  static constexpr std::array<std::uint32_t, 4> all{0, 1, 64, 65};
  std::array<number, 128> data;
  std::array<bitmap::word, 2> words;
  bitmap free{words};

  with_bitmap() { free.give(all, 0); }
  void use(std::uint32_t item) { data[item].set(data[item].get() + 1); }
};

struct takes_and_gives : with_bitmap {
  static constexpr unsigned threads = 2;

  void run(unsigned thread) {
    std::array<std::uint32_t, 3> items;
    const std::size_t n = free.take(std::span(items).first(thread == 0 ? 3 : 2), thread);
    for (std::size_t i = 0; i < n; ++i) use(items[i]);
    free.give(std::span(items).first(n), thread);
    const std::size_t more = free.take(std::span(items).first(1), thread);
    if (more == 1) {
      use(items[0]);
      free.give(std::span(items).first(1), thread);
    }
  }
  void finish() { check(free.count() == 4); }
};

// An item that is free all the time is found.
struct finds_what_is_free : with_bitmap {
  static constexpr unsigned threads = 3;

  void run(unsigned thread) {
    std::array<std::uint32_t, 1> item;
    check(free.take(item, thread) == 1, "four items, three threads, and one finds none");
    use(item[0]);
    free.give(item, thread);
  }
  void finish() { check(free.count() == 4); }
};

TEST(explored_lists, bitmap) {
  expect_explored_and_needed<takes_and_gives, finds_what_is_free>({"memory/bitmap_list.h"});
}

// --- mpsc_stack ---

// A pointer that belongs to whoever has the element.
template <typename T>
class owned_pointer {
 public:
  owned_pointer& operator=(T* p) {
    pointer_.set(p);
    return *this;
  }
  operator T*() const { return pointer_.get(); }  // NOLINT(google-explicit-constructor)

 private:
  model_atomics::plain<T*> pointer_{nullptr};
};

struct element {
  owned_pointer<element> next;
  number data{0};
};

// Two producers and the consumer, who takes until all have come.
template <unsigned Each>
struct handed_to_one {
  static constexpr unsigned threads = 3;
  mpsc_stack<element, model_atomics> posted;
  std::array<element, 2 * Each> elements;
  std::array<unsigned, 2> woken{};
  std::array<unsigned, 2 * Each> order{};
  unsigned taken = 0;
  unsigned batches = 0;

  void run(unsigned thread) {
    if (thread == 2) {
      take();
      take();
      return;
    }
    for (unsigned i = 0; i < Each; ++i) {
      element& e = elements[thread * Each + i];
      e.data.set(static_cast<int>(i + 1));
      if (posted.push(e)) ++woken[thread];
    }
  }
  void take() {
    element* e = posted.take_all();
    if (e != nullptr) ++batches;
    while (e != nullptr) {
      element* const next = e->next;
      check(e->data.get() != 0);
      order[taken++] = static_cast<unsigned>(e - elements.data());
      e->data.set(0);
      e = next;
    }
  }
  void finish() {
    take();
    check(taken == 2 * Each, "elements were lost");
    check(woken[0] + woken[1] == batches, "one wake for each batch");
    std::array<unsigned, 2> seen{};
    for (const unsigned e : order) check(e % Each == seen[e / Each]++, "out of order");
  }
};

TEST(explored_lists, mpsc_stack) {
  expect_explored_and_needed<handed_to_one<1>, handed_to_one<2>>({"ring/mpsc_stack.h"});
}

}  // namespace
}  // namespace forebay::explorer
