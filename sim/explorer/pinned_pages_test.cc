// One thread: not in the thread sanitizer's tree.
// Pins of pages as they have been seen in the index, without a look at the frame, in the explorer
// (forebay/cache/page_index.h).
#include "sim/explorer/test_pages.h"

namespace forebay::explorer {
namespace {

template <unsigned Bits>
struct seen_space : space_over<Bits> {
  static constexpr unsigned threads = 2;
  static constexpr options bounds{.preemptions = 2, .spin_reads = spin_reads};

  void add_readable(std::uint64_t n, std::uint32_t of, std::uint8_t order = 0) {
    this->add(n, of, order);
    this->index.end_change(n);
  }
  void pin_seen(std::uint64_t n) {
    const auto s = this->index.look(n);
    if (!s) return;
    const pin p = this->index.template pin<pin>(s);
    if (!p) return;
    check(p->is_page_of(this, n), "another page");
    // relaxed: held by the pin.
    const std::uint64_t part = n - p->index.load(std::memory_order_relaxed);
    check((p.operator->() + part)->data.get() == static_cast<int>(n) + 1, "another page's data");
  }
  void finish() { this->clear(); }
};

// A page goes, and its frame serves another one.
struct seen_frame_is_used_again : seen_space<1> {
  seen_frame_is_used_again() { add_readable(0, 0); }
  void run(unsigned thread) {
    if (thread == 0) {
      if (evict(0)) add_readable(3, 0);
    } else {
      pin_seen(0);
      pin_seen(3);
    }
  }
};

// Two frames change places.
struct seen_frames_change_places : seen_space<1> {
  seen_frames_change_places() {
    add_readable(0, 0);
    add_readable(1, 1);
  }
  void run(unsigned thread) {
    if (thread == 0) {
      if (!evict(0) || !evict(1)) return;
      add_readable(0, 1);
      add_readable(1, 0);
    } else {
      pin_seen(0);
    }
  }
};

// A large page becomes pages of one frame each, as address_space::split() does it.
template <unsigned Bits>
struct seen_page_is_split : seen_space<Bits> {
  seen_page_is_split() { this->add_readable(2, 0, 1); }
  void run(unsigned thread) {
    if (thread == 0) {
      split_readable();
    } else {
      this->pin_seen(3);
      this->pin_seen(2);
    }
  }
  void split_readable() {
    const model_scoped_lock hold(this->lock);
    model_frame& f = this->memory.frame(0);
    if (!f.refs().freeze(1)) return;
    this->index.begin_change(2);
    check(this->index.split(2, f).has_value());
    f.order = 0;
    this->memory.frame(1).refs().set(1);
    for (std::uint32_t i = 0; i < 2; ++i) {
      this->memory.frame(i).set_identity(this, 2 + i);
      this->index.end_change(2 + i);
    }
    f.refs().set(1);
  }
};

TEST(explored_pages, pins_of_pages_as_they_are_seen) {
  expect_explored<seen_frame_is_used_again>();
  expect_explored<seen_frames_change_places>();
  expect_explored<seen_page_is_split<1>>();
  expect_explored<seen_page_is_split<2>>();
}

}  // namespace
}  // namespace forebay::explorer
