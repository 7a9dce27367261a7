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
// Locks: wait_list.h. The condition is evaluated under the list's lock, which is a leaf.
#pragma once

#include <coroutine>
#include <utility>

#include "forebay/os/clock.h"
#include "forebay/ring/executor.h"
#include "forebay/ring/task.h"
#include "forebay/ring/wait_list.h"

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
    waiters_.wake_all([](waiter& w) noexcept { w.home_->post(w.woken_); });
  }

 private:
  template <typename Condition>
  bool enqueue(waiter& w, std::coroutine_handle<> h, std::uint64_t timeout_ns,
               const Condition& condition) noexcept {
    prepare(w, h);
    if (!waiters_.add_unless(w, condition)) return false;
    // A wake may have been posted to this thread by now; it runs when this has returned.
    if (timeout_ns != no_timeout) start_timer(w, timeout_ns);
    return true;
  }

  void prepare(waiter& w, std::coroutine_handle<> h) noexcept;
  static void start_timer(waiter& w, std::uint64_t timeout_ns) noexcept;
  static void on_woken(waiter& w) noexcept;
  static void on_expired(waiter& w) noexcept;

  basic_wait_list<waiter, &waiter::link_> waiters_;
};

}  // namespace forebay
