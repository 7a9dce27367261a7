// One thread: not in the thread sanitizer's tree.
// The page cache's lookup in the explorer: the index that is read without a lock (forebay/cache/
// page_index.h), the frame that is pinned on a guess (memory/page.h) or read without a pin, and its
// lock bit (page_wait.h).
#include "forebay/cache/page_wait.h"
#include "sim/explorer/test_pages.h"
#include "sim/explorer/test_waiter.h"

namespace forebay::explorer {
namespace {

// A page comes while another thread looks for it.
struct page_comes : space {
  static constexpr unsigned threads = 2;
  static constexpr options bounds{.preemptions = 3, .spin_reads = spin_reads};

  void run(unsigned thread) {
    if (thread == 0) {
      add(0, 0);
      add(3, 1);
    } else {
      read(0);
      read(3);
      read(0);
    }
  }
  void finish() { clear(); }
};

// A page goes, and its frame and nodes serve another page.
struct frame_is_used_again : space {
  static constexpr unsigned threads = 2;
  static constexpr options bounds{.preemptions = 3, .spin_reads = spin_reads};

  frame_is_used_again() { add(0, 0); }
  void run(unsigned thread) {
    if (thread == 0) {
      if (evict(0)) add(3, 0);
    } else {
      read(0);
      read(3);
    }
  }
  void finish() { clear(); }
};

// Two frames change places.
struct frames_change_places : space {
  static constexpr unsigned threads = 2;
  static constexpr options bounds{.preemptions = 2, .spin_reads = spin_reads};

  frames_change_places() {
    add(0, 0);
    add(1, 1);
  }
  void run(unsigned thread) {
    if (thread == 0) {
      if (!evict(0) || !evict(1)) return;
      add(0, 1);
      add(1, 0);
    } else {
      read(0);
      read(1);
    }
  }
  void finish() { clear(); }
};

// The index gets a root above the one it has, while another thread makes a page readable that it
// has locked, and looks for it: both without the owner's lock.
struct index_grows : space_over<1, 2> {
  static constexpr unsigned threads = 2;
  static constexpr options bounds{.preemptions = 1, .spin_reads = spin_reads};

  index_grows() { add(1, 0); }
  void run(unsigned thread) {
    if (thread == 0) {
      grow();
    } else {
      index.end_change(1);
      check(static_cast<bool>(index.look(1)), "a page that is readable is not seen");
    }
  }
  void finish() {
    check(index.lookup(1) == &memory.frame(0));
    clear();
  }
};

// The frame of a page is exchanged for a fresh one, as when its chunk of the arena is emptied.
struct frame_is_moved : space {
  static constexpr unsigned threads = 2;
  static constexpr options bounds{.preemptions = 4, .spin_reads = spin_reads};

  frame_is_moved() { add(0, 0); }
  void run(unsigned thread) {
    if (thread == 1) {
      read(0);
      read(0);
      return;
    }
    model_frame& fresh = memory.frame(1);
    fresh.refs().set(1);
    {
      const model_scoped_lock hold(lock);
      model_frame& f = memory.frame(0);
      if (!f.refs().freeze(1)) return;
      fresh.data.set(f.data.get());
      fresh.set(page_uptodate);
      fresh.set_identity(this, 0);
      index.replace(0, fresh);
      f.owner.store(nullptr, std::memory_order_relaxed);  // relaxed: nobody can take a reference
    }
    memory.frame(0).data.set(-1);
  }
  void finish() { clear(); }
};

// A large page comes while another thread looks for its parts.
template <unsigned Bits>
struct large_page_comes : space_over<Bits> {
  static constexpr unsigned threads = 2;
  static constexpr options bounds{.preemptions = 3, .spin_reads = spin_reads};

  void run(unsigned thread) {
    if (thread == 0) {
      this->add(2, 0, 1);
    } else {
      this->read(3);
      this->read(2);
    }
  }
  void finish() { this->clear(); }
};

// A large page goes, and a frame behind its head serves one of its numbers.
template <unsigned Bits>
struct large_page_goes : space_over<Bits> {
  static constexpr unsigned threads = 2;
  static constexpr options bounds{.preemptions = 2, .spin_reads = spin_reads};

  large_page_goes() { this->add(2, 0, 1); }
  void run(unsigned thread) {
    if (thread == 0) {
      if (!this->evict(2)) return;
      this->add(3, 0);
      this->add(2, 1);
    } else {
      this->read(3);
      this->read(2);
    }
  }
  void finish() { this->clear(); }
};

// Two pages go, and their frames become one large page somewhere else.
template <unsigned Bits>
struct frames_become_a_large_page : space_over<Bits> {
  static constexpr unsigned threads = 2;
  static constexpr options bounds{.preemptions = 2, .spin_reads = spin_reads};

  frames_become_a_large_page() {
    this->add(2, 1);
    this->add(1, 0);
  }
  void run(unsigned thread) {
    if (thread == 0) {
      if (this->evict(1) && this->evict(2)) this->add(2, 0, 1);
    } else {
      this->read(2);
      this->read(3);
      this->read(1);
    }
  }
  void finish() { this->clear(); }
};

// A large page becomes small ones, of which one goes.
template <unsigned Bits>
struct large_page_is_split : space_over<Bits> {
  static constexpr unsigned threads = 3;
  static constexpr options bounds{.preemptions = 2, .spin_reads = spin_reads};

  large_page_is_split() { this->add(2, 0, 1); }
  void run(unsigned thread) {
    if (thread != 0) return this->read(thread + 1);
    if (this->split(2)) this->evict(3);
  }
  void finish() { this->clear(); }
};

// --- pages that are read without a pin ---

// Four pages again. Who writes a page's data has its lock, or the only reference; here that is
// always the same thread, or the page is not there for others yet.
template <unsigned Bits>
struct viewed_space_over {
  static constexpr unsigned threads = 2;
  static constexpr options bounds{.preemptions = 2, .spin_reads = spin_reads};
  static constexpr std::uint64_t pages = 4;
  frames memory;
  nodes<Bits> cache;
  small_index<Bits> index{cache, memory, pages};
  model_mutex lock;

  static int contents(std::uint64_t n, int version) { return static_cast<int>(n) * 16 + version; }
  // relaxed, and in move() and view(): the data itself, which the index orders.
  void fill(std::uint32_t frame, int value) {
    // relaxed: see above
    for (auto& w : memory.frame(frame).words) w.store(value, std::memory_order_relaxed);
  }
  void add(std::uint64_t n, std::uint32_t frame, std::uint8_t order = 0) {
    model_frame& f = memory.frame(frame);
    f.order = order;
    {
      const model_scoped_lock hold(lock);
      check(index.insert(n, f).has_value());
    }
    for (std::uint32_t i = 0; i < f.frames(); ++i) fill(frame + i, contents(n + i, 0));
    index.end_change(n);
  }
  void split(std::uint64_t n, std::uint32_t frame) {
    const model_scoped_lock hold(lock);
    check(index.split(n, memory.frame(frame)).has_value());
    memory.frame(frame).order = 0;
  }
  void change(std::uint64_t n, std::uint32_t frame, int version) {
    index.begin_change(n);
    fill(frame, contents(n, version));
    index.end_change(n);
  }
  void evict(std::uint64_t n) {
    const model_scoped_lock hold(lock);
    index.erase(n);
  }
  void move(std::uint64_t n, std::uint32_t from, std::uint32_t to) {
    const model_scoped_lock hold(lock);
    model_atomics::fence(std::memory_order_release);  // release: as address_space::move()
    fill(to, memory.frame(from).words[0].load(std::memory_order_relaxed));  // relaxed: see above
    index.replace(n, memory.frame(to));
  }
  void view(std::uint64_t n) {
    const auto s = index.look(n);
    if (!s) return;
    auto& words = memory.frame(s.frame_number()).words;
    const int first = words[0].load(std::memory_order_relaxed);   // relaxed: see above
    const int second = words[1].load(std::memory_order_relaxed);  // relaxed: see above
    if (!s.still_valid()) return;
    check(first == second, "a torn read");
    check(first / 16 == static_cast<int>(n), "another page's data");
  }
  void finish() {
    for (std::uint64_t n = 0; n < pages; ++n) {
      if (index.lookup(n) != nullptr) evict(n);
    }
    check(index.size() == 0 && cache.free_count == nodes<Bits>::count, "nodes were lost");
  }
};

using viewed_space = viewed_space_over<1>;

// A page comes, and is written to.
struct viewed_page_changes : viewed_space {
  void run(unsigned thread) {
    if (thread == 0) {
      add(1, 0);
      change(1, 0, 1);
      change(1, 0, 2);
    } else {
      view(1);
      view(1);
    }
  }
};

// A page goes, and its frame serves another one.
struct viewed_frame_is_used_again : viewed_space {
  viewed_frame_is_used_again() {
    add(0, 0);
    add(2, 1);
  }
  void run(unsigned thread) {
    if (thread == 0) {
      evict(0);
      add(3, 0);
    } else {
      view(0);
      view(3);
    }
  }
};

// A page goes, and its leaf serves elsewhere with another frame.
struct viewed_leaf_is_used_again : viewed_space {
  viewed_leaf_is_used_again() { add(1, 0); }
  void run(unsigned thread) {
    if (thread == 0) {
      evict(1);
      add(3, 1);
    } else {
      view(1);
    }
  }
};

// A page gets another frame, and its own serves elsewhere; the new one had been another page.
struct viewed_page_is_moved : viewed_space {
  viewed_page_is_moved() {
    add(0, 0);
    add(1, 1);
  }
  void run(unsigned thread) {
    if (thread == 0) {
      evict(1);
      move(0, 0, 1);
      add(1, 0);
    } else {
      view(1);
      view(0);
    }
  }
};

// A large page becomes small ones, of which one changes, and goes, and its frame serves elsewhere.
template <unsigned Bits>
struct viewed_page_is_split : viewed_space_over<Bits> {
  viewed_page_is_split() { this->add(2, 0, 1); }
  void run(unsigned thread) {
    if (thread == 0) {
      this->split(2, 0);
      this->change(3, 1, 1);
      this->evict(3);
      this->add(1, 1);
    } else {
      this->view(3);
    }
  }
};

// --- the lock of a page, and its waiters ---

struct page_state : basic_page<model_atomics> {};

template <unsigned Threads>
struct page_lock {
  static constexpr unsigned threads = Threads;
  static constexpr options bounds{.preemptions = Threads == 2 ? unlimited : 4u};
  page_state frame;
  wait_list queue;
  std::array<waiter, Threads> waiters;
  number data{0};

  void lock(unsigned thread) {
    waiter& w = waiters[thread];
    while (!try_lock_page(frame)) {
      w.woken.store(0, std::memory_order_relaxed);  // relaxed: nobody has it on a list
      if (queue.add_unless(w, [this] { return clear_or_wanted(frame, page_locked); })) w.sleep();
    }
  }
  void unlock() {
    clear_and_call(frame, page_locked, [this] { queue.wake_all([](waiter& w) { w.wake(); }); });
  }
  void run(unsigned thread) {
    lock(thread);
    data.set(data.get() + 1);
    unlock();
  }
  void finish() { check(data.get() == static_cast<int>(Threads)); }
};

// The data is filled under the lock; who finds the page uptodate needs no lock to read it.
struct page_is_filled {
  static constexpr unsigned threads = 2;
  page_state frame;
  number data{0};

  void run(unsigned thread) {
    if (thread == 0) {
      if (!try_lock_page(frame)) return;
      data.set(1);
      frame.set(page_uptodate);
      frame.clear(page_locked);
    } else if (frame.test(page_uptodate)) {
      check(data.get() == 1);
    } else if (try_lock_page(frame)) {
      if (!frame.test(page_uptodate)) check(data.get() == 0);
    }
  }
  void finish() {}
};

TEST(explored_pages, lookups_views_and_bits) {
  expect_explored_and_needed<page_lock<2>, page_is_filled, page_comes, frame_is_moved,
                             frame_is_used_again, frames_change_places, viewed_page_changes,
                             viewed_frame_is_used_again, viewed_leaf_is_used_again,
                             viewed_page_is_moved, index_grows>(
      {"cache/page_index.h", "cache/page_index_code.h", "memory/page.h"});
}

TEST(explored_pages, large_pages) {
  expect_explored<large_page_comes<1>>();
  expect_explored<large_page_comes<2>>();
  expect_explored<large_page_goes<1>>();
  expect_explored<large_page_goes<2>>();
  expect_explored<frames_become_a_large_page<1>>();
  expect_explored<frames_become_a_large_page<2>>();
  expect_explored<large_page_is_split<1>>();
  expect_explored<large_page_is_split<2>>();
  expect_explored<viewed_page_is_split<1>>();
  expect_explored<viewed_page_is_split<2>>();
}

TEST(explored_pages, page_lock_of_three) { expect_explored<page_lock<3>>(); }

}  // namespace
}  // namespace forebay::explorer
