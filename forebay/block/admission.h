// Who may have an operation under way on a device: a limited number of places, and classes of which
// the more urgent ones come first.
//
//      places   0 ............ limit[2] ..... limit[1] ..... limit[0]
//      class 2  enters up to here ^               ^              ^
//      class 1  ................................. ^              ^
//      class 0  ................................................ ^
//
// The less urgent a class, the fewer places may be taken when it enters: so there is nearly always
// one for the most urgent. Who finds none waits, and a place that is given up goes to the most
// urgent class that waits and may enter. A class that waits is passed over at most
// `passed_over_max` times in a row; then the next place is its own, whatever its limit.
//
// One word holds how many places are taken and how many wait of each class, so both entering and
// leaving are one compare-and-swap while nobody waits. Whoever comes to wait or lets somebody in
// does it under the owner's lock, which guards the lists of those that wait (not here) and
// `passed_over_`.
//
// Why there is always somebody to let the waiting in: a class is announced only in a step that sees
// its limit reached, hence a place taken; and the last to leave sees the announcement in the word,
// or the announcement sees that he has left.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>

#include "forebay/base/assert.h"
#include "forebay/base/atomics.h"

namespace forebay {

template <AtomicsPolicy Atomics = real_atomics>
class basic_admission {
 public:
  static constexpr unsigned classes = 3;
  static constexpr unsigned places_max = 0xffff;
  static constexpr unsigned waiting_max = 0xffff;  // of each class

  basic_admission(std::array<std::uint16_t, classes> limits, unsigned passed_over_max) noexcept
      : limits_(limits), passed_over_max_(passed_over_max) {
    for (const std::uint16_t limit : limits_) FOREBAY_ASSERT(limit != 0);
  }

  // Takes a place if there is one, and returns how many are taken then; 0 if there is none.
  unsigned try_enter(unsigned c) noexcept {
    // relaxed, here and below: numbers only; who waits is handed over under the owner's lock, and
    // the operations themselves share nothing.
    std::uint64_t word = word_.load(std::memory_order_relaxed);
    while (may_enter(word, c)) {
      if (word_.compare_exchange_weak(word, word + 1,
                                      std::memory_order_relaxed)) {  // relaxed: above
        return taken(word) + 1;
      }
    }
    return 0;
  }

  // The same under the owner's lock; who gets 0 counts as waiting.
  unsigned enter_or_wait(unsigned c) noexcept {
    std::uint64_t word = word_.load(std::memory_order_relaxed);  // relaxed: see try_enter
    for (;;) {
      const bool enters = may_enter(word, c);
      // relaxed: see try_enter
      if (word_.compare_exchange_weak(word, word + (enters ? 1 : one_waiting(c)),
                                      std::memory_order_relaxed)) {
        return enters ? taken(word) + 1 : 0;
      }
    }
  }

  // Gives up a place if nobody waits.
  bool try_leave() noexcept {
    std::uint64_t word = word_.load(std::memory_order_relaxed);  // relaxed: see try_enter
    while (word <= places_max) {
      if (word_.compare_exchange_weak(word, word - 1,
                                      std::memory_order_relaxed)) {  // relaxed: above
        return true;
      }
    }
    return false;
  }

  // The same under the owner's lock, whoever waits; the class that has got the place, if one has.
  std::optional<unsigned> leave() noexcept {
    std::uint64_t word = word_.load(std::memory_order_relaxed);  // relaxed: see try_enter
    for (;;) {
      const std::optional<unsigned> next = choose(word);
      // relaxed: see try_enter
      if (!word_.compare_exchange_weak(word, next ? word - one_waiting(*next) : word - 1,
                                       std::memory_order_relaxed)) {
        continue;
      }
      for (unsigned c = 0; c < classes; ++c) {
        const bool passed = waiting(word, c) != 0 && next != c;
        passed_over_[c] = passed ? passed_over_[c] + 1 : 0;
      }
      return next;
    }
  }

  unsigned taken() const noexcept {
    return taken(word_.load(std::memory_order_relaxed));  // relaxed: see try_enter
  }
  unsigned waiting(unsigned c) const noexcept {
    return waiting(word_.load(std::memory_order_relaxed), c);  // relaxed: see try_enter
  }
  unsigned limit(unsigned c) const noexcept { return limits_[c]; }

 private:
  static constexpr std::uint64_t one_waiting(unsigned c) noexcept {
    return std::uint64_t{1} << (16 * (c + 1));
  }
  static unsigned taken(std::uint64_t word) noexcept { return word & places_max; }
  static unsigned waiting(std::uint64_t word, unsigned c) noexcept {
    return (word >> (16 * (c + 1))) & waiting_max;
  }

  // Not past those that wait and are as urgent.
  bool may_enter(std::uint64_t word, unsigned c) const noexcept {
    const std::uint64_t up_to_c = ~std::uint64_t{0} >> (16 * (classes - 1 - c));
    return taken(word) < limits_[c] && (word & up_to_c) <= places_max;
  }

  // Who gets the place of one that leaves.
  std::optional<unsigned> choose(std::uint64_t word) const noexcept {
    for (unsigned c = classes; c-- != 0;) {
      if (waiting(word, c) != 0 && passed_over_[c] >= passed_over_max_) return c;
    }
    for (unsigned c = 0; c < classes; ++c) {
      if (waiting(word, c) != 0 && taken(word) <= limits_[c]) return c;
    }
    return std::nullopt;
  }

  const std::array<std::uint16_t, classes> limits_;
  const unsigned passed_over_max_;
  typename Atomics::template atomic<std::uint64_t> word_{0};
  std::array<unsigned, classes> passed_over_{};  // in a row; the owner's lock
};

using admission = basic_admission<>;

}  // namespace forebay
