// Sleeping until something happens that others do without a lock: "eventcount" (Reed and Kanodia
// 1979; in this form Vyukov 2008).
//
//    who waits                              who makes it happen
//      t = announce()   waiters + 1           publishes
//      looks                                  notify(n)   waiters? epoch + 1, wake
//      wait(t), or withdraw() if it is there
//
// No wake-up is lost. announce() and notify() have a fence between what they write and what they
// read, so either notify() sees the waiter or the waiter's look sees what was published (Dekker).
// And a notify() that falls between announce() and the sleep has changed the epoch, which the sleep
// compares with t.
//
// Those who wait at one event count wait for the same thing: notify(n) wakes some n of them. A
// waiter that has been woken looks again before it gives up for another reason, or what it was
// woken for would be left to those who sleep; and if it finds what it was waiting for it passes the
// call on, as there may be more: a call may have come too early, when what it was for could not be
// had because something before it was not ready.
//
// notify() costs a fence and a look when nobody waits. Epochs come round after 2^32 notifications
// that found a waiter: one that is stopped for exactly so many sleeps on.
#pragma once

#include <climits>
#include <cstdint>

#include "forebay/base/atomics.h"
#include "forebay/base/cache_line.h"
#include "forebay/os/clock.h"
#include "forebay/os/futex.h"

namespace forebay {

// How a thread sleeps while a word has a value, and what time it is, in nanoseconds. A model
// checker brings its own.
struct futex_waiting {
  static void wait(std::atomic<std::uint32_t>& word, std::uint32_t expected,
                   std::uint64_t timeout_ns) noexcept {
    futex_wait(word, expected, timeout_ns);
  }
  static void wake(std::atomic<std::uint32_t>& word, int count) noexcept {
    futex_wake(word, count);
  }
  static std::uint64_t now_ns() noexcept { return monotonic_clock::now_ns(); }
};

template <typename W, typename Atomics>
concept WaitPolicy = requires(typename Atomics::template atomic<std::uint32_t>& word) {
  W::wait(word, 0u, UINT64_MAX);
  W::wake(word, 1);
  { W::now_ns() } -> std::same_as<std::uint64_t>;
};

template <AtomicsPolicy Atomics = real_atomics, WaitPolicy<Atomics> Wait = futex_waiting>
class basic_event_count {
 public:
  using ticket = std::uint32_t;

  basic_event_count() = default;
  basic_event_count(const basic_event_count&) = delete;
  basic_event_count& operator=(const basic_event_count&) = delete;

  // Before the last look. wait() or withdraw() must follow.
  [[nodiscard]] ticket announce() noexcept {
    waiters_.fetch_add(1, std::memory_order_relaxed);  // relaxed: the fence orders it
    Atomics::fence(std::memory_order_seq_cst);         // the waiter is there before it looks
    return epoch_.load(std::memory_order_acquire);     // acquire: pairs with notify; see there
  }
  void withdraw() noexcept {
    waiters_.fetch_sub(1, std::memory_order_relaxed);  // relaxed: one who is seen too long costs
  }
  // Sleeps until a notify() after announce(), or for `timeout_ns`; may return for no reason.
  void wait(ticket t, std::uint64_t timeout_ns = UINT64_MAX) noexcept {
    Wait::wait(epoch_, t, timeout_ns);
    withdraw();
  }

  // After publishing: wakes `count` of those who wait, or all if they are fewer.
  void notify(std::size_t count = 1) noexcept {
    Atomics::fence(std::memory_order_seq_cst);  // what was published is there before the look
    // relaxed: ordered by the fence.
    if (waiters_.load(std::memory_order_relaxed) == 0) return;
    // relaxed: the fence above has released; a waiter that announces itself after this sees what
    // was published.
    epoch_.fetch_add(1, std::memory_order_relaxed);
    Wait::wake(epoch_, count < INT_MAX ? static_cast<int>(count) : INT_MAX);
  }
  void notify_all() noexcept { notify(INT_MAX); }
  // By who has waited and found something: wakes one more, if there is `more` to be had.
  template <typename More>
  void pass_on(const More& more) noexcept {
    // What was taken is taken before the look. seq_cst is beyond the explorer: withdraw() comes
    // just before, and a waiter whom that does not see finds out by the ring's own
    // compare-and-swap.
    Atomics::fence(std::memory_order_seq_cst);
    // relaxed: ordered by the fence.
    if (waiters_.load(std::memory_order_relaxed) != 0 && more()) notify();
  }

 private:
  // Read by every notify(), written by those who wait: a line of its own.
  alignas(no_sharing_bytes) typename Atomics::template atomic<std::uint32_t> waiters_{0};
  typename Atomics::template atomic<std::uint32_t> epoch_{0};
};

using event_count = basic_event_count<>;

}  // namespace forebay
