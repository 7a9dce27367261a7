// Atomics that count their locked instructions, to show what an operation costs. For one thread.
#pragma once

#include <atomic>
#include <cstdint>

#include "forebay/base/atomics.h"

namespace forebay {

struct counting_atomics {
  static inline std::uint64_t locked = 0;  // read-modify-writes so far

  template <typename T>
  class atomic {
   public:
    explicit atomic(T value = {}) noexcept : value_(value) {}

    T load(std::memory_order order) const noexcept { return value_.load(order); }
    void store(T value, std::memory_order order) noexcept { value_.store(value, order); }
    T fetch_add(T n, std::memory_order order) noexcept {
      ++locked;
      return value_.fetch_add(n, order);
    }
    T fetch_sub(T n, std::memory_order order) noexcept {
      ++locked;
      return value_.fetch_sub(n, order);
    }
    bool compare_exchange_weak(T& expected, T desired, std::memory_order success,
                               std::memory_order failure) noexcept {
      ++locked;
      return value_.compare_exchange_strong(expected, desired, success, failure);
    }
    bool compare_exchange_strong(T& expected, T desired, std::memory_order success,
                                 std::memory_order failure) noexcept {
      ++locked;
      return value_.compare_exchange_strong(expected, desired, success, failure);
    }

   private:
    std::atomic<T> value_;
  };

  template <typename T>
  using plain = real_atomics::plain<T>;

  static void fence(std::memory_order order) noexcept { std::atomic_thread_fence(order); }
};

// How many locked instructions `f` takes.
template <typename F>
std::uint64_t locked_by(F f) {
  const std::uint64_t before = counting_atomics::locked;
  f();
  return counting_atomics::locked - before;
}

}  // namespace forebay
