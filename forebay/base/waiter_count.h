// Whether anybody waits, asked by who changes what may be waited for without taking the waiters'
// lock.
//
//   who waits                               who changes something
//     announce()                              changes it
//     looks once more: there? withdraw()      anybody()? takes the lock, wakes
//     queues up
//
// Both have a fence between what they write and what they read (Dekker's idea), so one of the two
// sees the other: either the changer finds somebody announced, or the waiter's last look finds the
// change. How a waiter queues up, and how the changer finds it there, is theirs: the one announces
// itself and queues up under a lock that the other takes when it has found somebody.
#pragma once

#include <atomic>
#include <cstdint>

#include "forebay/base/atomics.h"

namespace forebay {

template <AtomicsPolicy Atomics = real_atomics>
class basic_waiter_count {
 public:
  // Before the last look.
  void announce() noexcept {
    waiting_.fetch_add(1, std::memory_order_relaxed);  // relaxed: the fence orders it
    Atomics::fence(std::memory_order_seq_cst);         // the waiter is there before it looks
  }
  // It has found what it waited for, or is waiting no more.
  void withdraw() noexcept {
    waiting_.fetch_sub(1, std::memory_order_relaxed);  // relaxed: who is seen too long costs a look
  }

  // After a change: whether there may be somebody who has not seen it.
  bool anybody() const noexcept {
    Atomics::fence(std::memory_order_seq_cst);  // the change is there before the look
    return value() != 0;
  }

  // A level: may be old by the time it is looked at.
  std::uint32_t value() const noexcept {
    return waiting_.load(std::memory_order_relaxed);  // relaxed: it orders nothing
  }

 private:
  typename Atomics::template atomic<std::uint32_t> waiting_{0};
};

using waiter_count = basic_waiter_count<>;

}  // namespace forebay
