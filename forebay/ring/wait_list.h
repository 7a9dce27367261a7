// Those who wait for a condition, in their order, and the calls by which they come and go without
// losing a wake-up (base/waiter_count.h). What a waiter is, and how it is woken, is the user's:
// wait_queue.h has coroutines.
//
// Locks: lock_ guards the list; it is a leaf. The condition and the waking are called under it.
#pragma once

#include "forebay/base/list.h"
#include "forebay/base/waiter_count.h"
#include "forebay/os/mutex.h"

namespace forebay {

// The lock and its scope are parameters for the explorer, as the atomics are.
template <typename Waiter, list_node Waiter::* Link, AtomicsPolicy Atomics = real_atomics,
          typename Mutex = mutex, typename Scope = scoped_lock>
class basic_wait_list {
 public:
  basic_wait_list() noexcept = default;
  basic_wait_list(const basic_wait_list&) = delete;
  basic_wait_list& operator=(const basic_wait_list&) = delete;

  // Queues `w`, who then waits until it is woken or removed. False, and it is not queued, if the
  // condition holds. Who makes it hold afterwards, and then calls wake_all(), wakes it.
  template <typename Condition>
  [[nodiscard]] bool add_unless(Waiter& w, const Condition& condition) noexcept {
    const Scope hold(lock_);
    count_.announce();
    if (condition()) {
      count_.withdraw();
      return false;
    }
    waiters_.push_back(w);
    return true;
  }

  // Takes `w` off, who will not be woken then. False if it is, or will be in a moment.
  [[nodiscard]] bool remove(Waiter& w) noexcept {
    const Scope hold(lock_);
    if (!(w.*Link).linked()) return false;
    waiters_.erase(w);
    count_.withdraw();
    return true;
  }

  // Calls wake() with each who waits and takes it off. After a change that a condition looks at;
  // costs a fence and a load when nobody waits. Any thread.
  template <typename Wake>
  void wake_all(const Wake& wake) noexcept {
    if (count_.anybody()) wake_waiters(wake);
  }

 private:
  template <typename Wake>
  [[gnu::noinline]] void wake_waiters(const Wake& wake) noexcept {
    const Scope hold(lock_);
    while (Waiter* w = waiters_.pop_front()) {
      count_.withdraw();
      wake(*w);
    }
  }

  basic_waiter_count<Atomics> count_;  // rises under lock_
  Mutex lock_;
  intrusive_list<Waiter, Link> waiters_ FOREBAY_GUARDED_BY(lock_);
};

}  // namespace forebay
