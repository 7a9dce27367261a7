// One thread: not in the thread sanitizer's tree.
// The buffers that each CPU used last (forebay/cache/buffer_lru.h) in the explorer, and the lock of
// what belongs to a CPU, as it is where there are no restartable sequences (os/cpu_lock.h): one
// slot that all threads try, which is what threads of one CPU are to each other.
#include "forebay/cache/buffer_lru.h"
#include "sim/explorer/test_explore.h"

namespace forebay::explorer {
namespace {

using number = model_atomics::plain<int>;

template <typename T>
class one_slot {
 public:
  class holder {
   public:
    explicit holder(one_slot* s) : slot_(s) {}
    holder(const holder&) = delete;
    holder& operator=(const holder&) = delete;
    ~holder() {
      if (slot_ != nullptr) slot_->lock_.unlock();
    }
    explicit operator bool() const { return slot_ != nullptr; }
    T* operator->() const { return &slot_->value_; }
    T& operator*() const { return slot_->value_; }

   private:
    one_slot* slot_;
  };

  holder this_cpu() { return holder(lock_.try_lock() ? this : nullptr); }
  template <typename F>
  void for_each_locked(F f) {
    lock_.close();
    while (!lock_.try_lock_closed()) yield();
    f(value_);
    lock_.unlock();
    lock_.open();
  }

 private:
  basic_cpu_lock_word<model_atomics> lock_;
  T value_;
};

// Two threads of a CPU, and one of another CPU that takes the slot in its turn.
struct slot_is_held_by_one {
  static constexpr unsigned threads = 3;
  static constexpr options bounds{.preemptions = 3};
  one_slot<number> slot;

  void run(unsigned thread) {
    const auto add = [](number& n) { n.set(n.get() + 1); };
    if (thread == 2) {
      slot.for_each_locked(add);
    } else if (const auto held = slot.this_cpu()) {
      add(*held);
    }
  }
  void finish() {
    slot.for_each_locked([](number& n) { check(n.get() >= 1); });
  }
};

struct model_buffer {
  basic_refcount<model_atomics> refs{1};  // the index's
  number data{1};
  std::uint64_t block = 0;
  bool freed = false;
};

struct small_arrays {
  using buffer = model_buffer;
  template <typename T>
  using slots = one_slot<T>;
  static constexpr unsigned places = 1;
  static constexpr std::uint32_t lendable = 2;

  static bool is(const buffer& b, std::uint64_t block, std::uint32_t) { return b.block == block; }
  static void put(buffer& b, std::uint32_t references) {
    check(!b.refs.put(references), "the index's reference was given back");
  }
  static void touch(const buffer&) {}
  static bool same_page(const buffer&, const buffer&) { return false; }
};

template <unsigned Buffers>
struct with_buffers {
  std::array<model_buffer, Buffers> all;
  basic_buffer_lru<small_arrays> lru;

  with_buffers() {
    for (unsigned i = 0; i < Buffers; ++i) all[i].block = i;
  }
  auto get(unsigned i) {
    return lru.get(this, i, 0, [&](std::uint32_t n) -> model_buffer* {
      return all[i].refs.get_unless_zero(n) ? &all[i] : nullptr;
    });
  }
  void use(unsigned i) {
    const auto u = get(i);
    if (u.b == nullptr) return;
    check(u.b->data.get() == 1, "somebody else's by now");
    lru.put(u);
  }
  // As address_space::evict(): whose count is frozen has no user.
  void evict(unsigned i) {
    if (!all[i].refs.freeze(1)) return;
    all[i].data.set(-1);
    all[i].freed = true;
  }
  void finish() {
    lru.invalidate();
    for (model_buffer& b : all) check(b.freed || b.refs.value() == 1, "a reference was lost");
  }
};

// A buffer is found in the array, or past it, while the array is emptied and its page evicted.
struct used_and_evicted : with_buffers<1> {
  static constexpr unsigned threads = 3;
  static constexpr options bounds{.preemptions = 2};

  void run(unsigned thread) {
    if (thread == 2) {
      lru.invalidate();
      evict(0);
      return;
    }
    use(0);
    if (thread == 0) use(0);
  }
};

// It drops off while it is used, and the use ends where another buffer has its place.
struct dropped_while_used : with_buffers<2> {
  static constexpr unsigned threads = 2;
  static constexpr options bounds{.preemptions = 3};

  void run(unsigned thread) {
    if (thread == 0) {
      const auto u = get(0);
      use(1);
      if (u.b != nullptr) {
        check(u.b->data.get() == 1);
        lru.put(u);
      }
    } else {
      use(0);
      evict(0);
      evict(1);
    }
  }
};

// More uses at once than a place has to lend.
struct lent_out : with_buffers<1> {
  static constexpr unsigned threads = 2;
  static constexpr options bounds{.preemptions = 2};

  void run(unsigned thread) {
    const auto a = get(0);
    const auto b = get(0);
    if (thread == 0) evict(0);
    if (a.b != nullptr) lru.put(a);
    if (b.b != nullptr) lru.put(b);
    if (thread == 1) lru.invalidate();
  }
};

TEST(explored_buffers, slots_of_cpus) {
  expect_explored_and_needed<slot_is_held_by_one>({"os/cpu_lock.h"});
}

TEST(explored_buffers, arrays_of_cpus) {
  expect_explored<used_and_evicted>();
  expect_explored<dropped_while_used>();
  expect_explored<lent_out>();
}

}  // namespace
}  // namespace forebay::explorer
