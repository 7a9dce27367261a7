// co_await on a buffer of a pool:
//
//   auto b = co_await allocate_buffer(pool);                 // result<buffer_ref>
//   auto b = co_await allocate_buffer(pool, 1'000'000);      // for at most a millisecond
//
// Suspends only if no buffer is free. First come, first served, threads and coroutines alike; the
// coroutine goes on upon the executor that it waited on. Errors: ETIMEDOUT; ENOMEM if there is no
// buffer at all that could become free.
//
// Who frees a buffer grants it and posts a completion; the executor's timer may expire at the same
// time. The coroutine goes on when neither of the two events is on the way any more.
#pragma once

#include "forebay/memory/buffer_pool.h"
#include "forebay/ring/task.h"

namespace forebay {

class allocate_buffer {
 public:
  static constexpr std::uint64_t no_timeout = UINT64_MAX;

  explicit allocate_buffer(buffer_pool& pool, std::uint64_t timeout_ns = no_timeout) noexcept
      : pool_(pool), timeout_ns_(timeout_ns) {}
  allocate_buffer(const allocate_buffer&) = delete;
  allocate_buffer& operator=(const allocate_buffer&) = delete;

  bool await_ready() const noexcept { return false; }  // start_wait() looks

  bool await_suspend(std::coroutine_handle<> h) noexcept {
    handle_ = h;
    home_ = executor::current();
    // From here on the grant may come, but it runs only when this thread is back in its executor.
    if (pool_.start_wait(wait_)) return false;
    if (timeout_ns_ != no_timeout) {
      timed_ = true;
      timer_.deadline_ns = monotonic_clock::in_ns(timeout_ns_);
      timer_.done = &expired_;
      home_->start(timer_);
    }
    return true;
  }

  result<buffer_ref> await_resume() noexcept {
    result<buffer_ref> b = pool_.finish_wait(wait_);
    if (timed_out_) return fail(ETIMEDOUT);
    return b;
  }

 private:
  struct granted_wait : buffer_wait {
    explicit granted_wait(allocate_buffer& who) noexcept
        : buffer_wait([](buffer_wait& w) noexcept {
            allocate_buffer& a = static_cast<granted_wait&>(w).owner;
            a.home_->post(a.granted_);
          }),
          owner(who) {}
    allocate_buffer& owner;
  };
  struct event : completion {
    event(allocate_buffer& who, function f) noexcept : completion(f), owner(who) {}
    allocate_buffer& owner;
  };

  // Both run on the home thread.
  void on_granted() noexcept {
    granted_ran_ = true;
    if (!timed_ || expired_ran_ || home_->cancel(timer_)) handle_.resume();
  }
  void on_expired() noexcept {
    expired_ran_ = true;
    timed_out_ = pool_.cancel_wait(wait_);
    if (timed_out_ || granted_ran_) handle_.resume();
  }

  buffer_pool& pool_;
  const std::uint64_t timeout_ns_;
  executor* home_ = nullptr;
  std::coroutine_handle<> handle_;
  timer timer_;
  granted_wait wait_{*this};
  event granted_{*this, [](completion& c) noexcept { static_cast<event&>(c).owner.on_granted(); }};
  event expired_{*this, [](completion& c) noexcept { static_cast<event&>(c).owner.on_expired(); }};
  bool timed_ = false;
  bool timed_out_ = false;
  bool granted_ran_ = false;
  bool expired_ran_ = false;
};

}  // namespace forebay
