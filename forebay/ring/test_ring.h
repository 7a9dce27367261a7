// What the tests of the rings share.
#pragma once

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <deque>
#include <thread>
#include <vector>

#include "forebay/ring/ring_slots.h"

namespace forebay {

// How many more aligned allocations of this thread succeed; fewer than 0: all. Defined in
// spsc_ring_test.cc. Where the sanitizer does not let operator new be replaced it does nothing.
extern thread_local int ring_allocations_left;
extern const bool ring_allocations_can_fail;

// Just before the slots' 32-bit numbers overflow.
inline constexpr std::uint64_t before_overflow = (std::uint64_t{1} << 32) - 5;

struct counted_item {
  std::uint64_t number = 0;
  std::uint64_t check = 0;  // its complement, so that a torn item shows
  static counted_item of(std::uint64_t n) { return {n, ~n}; }
  bool whole() const { return check == ~number; }
};

inline std::vector<int> numbers_from(int first, std::size_t n) {
  std::vector<int> v(n);
  for (std::size_t i = 0; i < n; ++i) v[i] = first + static_cast<int>(i);
  return v;
}

enum class ring_action : std::uint8_t {
  push,
  push_all,
  push_some,
  write,
  pop,
  pop_all,
  pop_some,
  read,
};

// The same actions on a ring and on a queue of the standard library.
template <typename Ring>
class ring_model {
 public:
  explicit ring_model(Ring& ring) : ring_(ring) {}

  void act(ring_action action, std::size_t n) {
    switch (action) {
      case ring_action::push:
        RC_ASSERT(ring_.try_push(next_) == (room() >= 1));
        if (room() >= 1)
          pushed(1, 1);
        else
          ++full_;
        break;
      case ring_action::push_all: {
        const bool fits = n <= room();
        RC_ASSERT(ring_.try_push_all(numbers_from(next_, n)) == fits);
        if (fits)
          pushed(n, n);
        else
          ++full_;
        break;
      }
      case ring_action::push_some: {
        const std::size_t fit = std::min(n, room());
        RC_ASSERT(ring_.try_push_some(numbers_from(next_, n)) == fit);
        pushed(fit, n);
        break;
      }
      case ring_action::write: {
        const std::size_t fit = std::min(n, room());
        RC_ASSERT(write(n) == fit);
        pushed(fit, n);
        break;
      }
      case ring_action::pop: {
        int item = -1;
        const bool there = !queue_.empty();
        RC_ASSERT(ring_.try_pop(item) == there);
        if (!there) RC_ASSERT(item == -1);
        if (there)
          popped({&item, 1}, 1);
        else
          ++empty_;
        break;
      }
      case ring_action::pop_all: {
        std::vector<int> items(n, -1);
        const bool there = n <= queue_.size();
        RC_ASSERT(ring_.try_pop_all(items) == there);
        if (there) {
          popped(items, n);
        } else {
          ++empty_;
          RC_ASSERT(std::ranges::count(items, -1) == static_cast<std::ptrdiff_t>(n));
        }
        break;
      }
      case ring_action::pop_some: {
        std::vector<int> items(n, -1);
        const std::size_t there = std::min(n, queue_.size());
        RC_ASSERT(ring_.try_pop_some(items) == there);
        popped(std::span(items).first(there), n);
        break;
      }
      case ring_action::read:
        read(n);
        break;
    }
    check();
  }

 private:
  std::size_t room() const { return ring_.capacity() - queue_.size(); }

  void pushed(std::size_t n, std::size_t wanted) {
    for (std::size_t i = 0; i < n; ++i) queue_.push_back(next_++);
    pushed_ += n;
    if (n < wanted) ++full_;
  }
  void popped(std::span<const int> items, std::size_t wanted) {
    for (const int item : items) {
      RC_ASSERT(item == queue_.front());
      queue_.pop_front();
    }
    popped_ += items.size();
    if (items.size() < wanted) ++empty_;
  }

  std::size_t write(std::size_t n) {
    auto slots = ring_.reserve(n);
    for (std::size_t i = 0; i < slots.size(); ++i) slots[i].set(next_ + static_cast<int>(i));
    const std::size_t written = slots.size();
    if constexpr (requires { ring_.commit(written); }) {
      ring_.commit(written);
    } else {
      slots.finish();
      RC_ASSERT(slots.empty());
      slots.finish();  // a second time does nothing
    }
    return written;
  }
  void read(std::size_t n) {
    std::vector<int> items;
    const auto look = [&](auto& slots) {
      for (std::size_t i = 0; i < slots.size(); ++i) items.push_back(slots[i].get());
    };
    if constexpr (requires { ring_.peek(n); }) {
      const auto slots = ring_.peek(n);
      look(slots);
      ring_.release(items.size());
    } else {
      auto slots = ring_.take(n);
      look(slots);
    }
    RC_ASSERT(items.size() == std::min(n, queue_.size()));
    popped(items, n);
  }

  void check() const {
    RC_ASSERT(ring_.size() == queue_.size());
    RC_ASSERT(ring_.free_count() == room());
    RC_ASSERT(ring_.empty() == queue_.empty());
    const ring_statistics s = ring_.statistics();
    RC_ASSERT(s.pushed == pushed_);
    RC_ASSERT(s.popped == popped_);
    RC_ASSERT(s.found_full == full_);
    RC_ASSERT(s.found_empty == empty_);
  }

  Ring& ring_;
  std::deque<int> queue_;
  int next_ = 0;
  std::uint64_t pushed_ = 0;
  std::uint64_t popped_ = 0;
  std::uint64_t full_ = 0;
  std::uint64_t empty_ = 0;
};

// Random actions, on small rings of which the numbers overflow soon.
template <typename Ring>
void check_against_model() {
  const auto capacity = *rc::gen::element<std::size_t>(2, 4, 8, 32);
  const auto first = *rc::gen::element<std::uint64_t>(0, 7, before_overflow, before_overflow * 3,
                                                      first_position_end - 1);
  const auto actions = *rc::gen::container<std::vector<std::pair<int, std::size_t>>>(
      rc::gen::pair(rc::gen::inRange(0, 8), rc::gen::inRange<std::size_t>(0, capacity + 3)));
  auto ring = Ring::create({.capacity = capacity, .first_position = first});
  RC_ASSERT(ring.has_value());
  ring_model<Ring> model(**ring);
  for (const auto& [action, n] : actions) model.act(static_cast<ring_action>(action), n);
}

template <typename Ring>
void check_bad_sizes() {
  for (const std::size_t bad : {0u, 1u, 3u, 6u, 1000u, 1025u}) {
    const auto made = Ring::create(bad);
    ASSERT_FALSE(made.has_value()) << bad;
    EXPECT_EQ(made.error(), fail(EINVAL).error()) << bad;
  }
  const auto large = Ring::create(ring_capacity_max * 2);
  ASSERT_FALSE(large.has_value());
  EXPECT_EQ(large.error(), errc::too_large);
  EXPECT_EQ(Ring::create(SIZE_MAX).error(), fail(EINVAL).error());
  EXPECT_EQ(Ring::create({.capacity = 2, .first_position = first_position_end}).error(),
            fail(EINVAL).error());
}

template <typename Ring>
void check_without_memory() {
  if (!ring_allocations_can_fail) GTEST_SKIP() << "operator new cannot be replaced here";
  for (const int succeed :
       {0, 1}) {  // the slots, then the ring; the address sanitizer finds a leak
    ring_allocations_left = succeed;
    const auto made = Ring::create(64);
    ring_allocations_left = -1;
    ASSERT_FALSE(made.has_value());
    EXPECT_EQ(made.error(), fail(ENOMEM).error());
  }
  EXPECT_TRUE(Ring::create(64).has_value());
}

}  // namespace forebay
