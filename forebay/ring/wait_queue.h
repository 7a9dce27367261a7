// Waiting for a condition, across threads: coroutines queue up, whoever makes the condition true
// wakes them.
//
//   // suspends only while the condition is false:
//   co_await q.wait_unless([&] { return free > 0; });
//
//   // the same, for at most a millisecond:
//   co_await q.wait_unless(condition, 1'000'000);
//
//   ...
//   free.fetch_add(1); q.wake_all();
//
// A wake-up is a hint: the caller looks at its condition again. Each waiter resumes on the executor
// that it waited on.
//
// Locks: lock_ guards the list; it is a leaf, and the condition is evaluated under it.
#pragma once

#include <atomic>
#include <coroutine>
#include <utility>

#include "forebay/base/list.h"
#include "forebay/os/clock.h"
#include "forebay/os/mutex.h"
#include "forebay/ring/executor.h"
#include "forebay/ring/task.h"

namespace forebay {

class wait_queue {
 public:
  static constexpr std::uint64_t no_timeout = UINT64_MAX;

  // The awaiting side; lives in the coroutine's frame while it waits.
  class waiter {
   public:
    waiter() noexcept = default;
    waiter(const waiter&) = delete;
    waiter& operator=(const waiter&) = delete;

   private:
    friend class wait_queue;

    // A record for each of the two events that can end the wait; the coroutine goes on when neither
    // is queued any more.
    struct event : completion {
      waiter* self = nullptr;
    };

    list_node link_;
    executor* home_ = nullptr;
    wait_queue* queue_ = nullptr;
    std::coroutine_handle<> handle_;
    timer timer_;
    event woken_;
    event expired_;
    bool timed_ = false;
    bool woken_ran_ = false;    // seen on the home thread only
    bool expired_ran_ = false;  // as above
  };

  // True once the condition held at the time of the call, or the wait has ended by a wake or the
  // timeout.
  template <typename Condition>
  auto wait_unless(Condition condition, std::uint64_t timeout_ns = no_timeout) noexcept {
    class awaiter {
     public:
      awaiter(wait_queue& q, Condition c, std::uint64_t timeout) noexcept
          : queue_(q), condition_(std::move(c)), timeout_ns_(timeout) {}
      bool await_ready() const noexcept { return condition_(); }
      bool await_suspend(std::coroutine_handle<> h) noexcept {
        return queue_.enqueue(waiter_, h, timeout_ns_, condition_);
      }
      void await_resume() const noexcept {}

     private:
      wait_queue& queue_;
      Condition condition_;
      std::uint64_t timeout_ns_;
      waiter waiter_;
    };
    return awaiter(*this, std::move(condition), timeout_ns);
  }

  // Wakes everybody who waits. Any thread; costs a fence and a load when nobody does.
  void wake_all() noexcept {
    // seq_cst: the caller's change of the condition comes before this look, a waiter's count before
    // its look at the condition, so one of the two sees the other.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (waiting_.load(std::memory_order_relaxed) != 0)
      wake_waiters();  // relaxed: the fence orders it
  }

 private:
  using waiter_list = intrusive_list<waiter, &waiter::link_>;

  template <typename Condition>
  bool enqueue(waiter& w, std::coroutine_handle<> h, std::uint64_t timeout_ns,
               const Condition& condition) noexcept {
    prepare(w, h);
    const scoped_lock hold(lock_);
    waiting_.fetch_add(1, std::memory_order_relaxed);     // relaxed: the fence below orders it
    std::atomic_thread_fence(std::memory_order_seq_cst);  // seq_cst: see wake_all
    if (condition()) {
      waiting_.fetch_sub(1, std::memory_order_relaxed);  // relaxed: a count that went nowhere
      return false;
    }
    waiters_.push_back(w);
    if (timeout_ns != no_timeout) start_timer(w, timeout_ns);
    return true;
  }

  void prepare(waiter& w, std::coroutine_handle<> h) noexcept;
  static void start_timer(waiter& w, std::uint64_t timeout_ns) noexcept;
  static void on_woken(waiter& w) noexcept;
  static void on_expired(waiter& w) noexcept;
  void wake_waiters() noexcept;

  std::atomic<std::uint32_t> waiting_{0};  // written under lock_, read anywhere
  mutex lock_;
  waiter_list waiters_ FOREBAY_GUARDED_BY(lock_);
};

}  // namespace forebay
