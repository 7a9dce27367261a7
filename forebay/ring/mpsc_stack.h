// Many-producer, single-consumer hand-over: producers push, the consumer takes everything at once
// (Treiber 1986, with a pop of the whole list, so there is no ABA problem: no element is ever
// compared and swapped out singly).
#pragma once

#include <atomic>

#include "forebay/base/atomics.h"

namespace forebay {

// T has a member `T* next`, which belongs to the stack while the element is on it.
template <typename T, AtomicsPolicy Atomics = real_atomics>
class mpsc_stack {
 public:
  // Any thread. True if the stack was empty: the consumer may sleep and has to be woken.
  bool push(T& item) noexcept {
    T* head = head_.load(std::memory_order_relaxed);  // relaxed: a guess, the exchange verifies it
    do {
      item.next = head;
      // release: the consumer that takes the item sees what its producer wrote before.
    } while (!head_.compare_exchange_weak(head, &item, std::memory_order_release,
                                          std::memory_order_relaxed));  // relaxed: retried
    return head == nullptr;
  }

  // The consumer. All items, the oldest first, linked by next; null if there are none.
  T* take_all() noexcept {
    // relaxed: a look that saves the exchange when there is nothing; the next call sees what it
    // misses.
    if (head_.load(std::memory_order_relaxed) == nullptr) return nullptr;
    // acquire: pairs with push.
    T* newest = head_.exchange(nullptr, std::memory_order_acquire);
    T* oldest = nullptr;
    while (newest != nullptr) {
      T* next = newest->next;
      newest->next = oldest;
      oldest = newest;
      newest = next;
    }
    return oldest;
  }

 private:
  typename Atomics::template atomic<T*> head_{nullptr};
};

}  // namespace forebay
