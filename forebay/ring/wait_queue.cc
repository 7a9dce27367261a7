#include "forebay/ring/wait_queue.h"

namespace forebay {

void wait_queue::prepare(waiter& w, std::coroutine_handle<> h) noexcept {
  w.home_ = executor::current();
  w.queue_ = this;
  w.handle_ = h;
  w.woken_.self = &w;
  w.woken_.run = [](completion& c) noexcept { on_woken(*static_cast<waiter::event&>(c).self); };
  w.expired_.self = &w;
  w.expired_.run = [](completion& c) noexcept { on_expired(*static_cast<waiter::event&>(c).self); };
}

void wait_queue::start_timer(waiter& w, std::uint64_t timeout_ns) noexcept {
  w.timed_ = true;
  w.timer_.deadline_ns = monotonic_clock::in_ns(timeout_ns);
  w.timer_.done = &w.expired_;
  w.home_->start(w.timer_);
}

// A wake has taken the waiter off the list. If its timer went off too, that record is still queued:
// the one that runs last resumes.
void wait_queue::on_woken(waiter& w) noexcept {
  w.woken_ran_ = true;
  if (!w.timed_ || w.expired_ran_ || w.home_->cancel(w.timer_)) w.handle_.resume();
}

void wait_queue::on_expired(waiter& w) noexcept {
  w.expired_ran_ = true;
  const bool still_waiting = w.queue_->waiters_.remove(w);
  if (still_waiting || w.woken_ran_) w.handle_.resume();
}

}  // namespace forebay
