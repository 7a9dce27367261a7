#include "forebay/ring/executor.h"

#include "forebay/base/assert.h"
#include "forebay/os/clock.h"

namespace forebay {
namespace {

thread_local executor* current_executor = nullptr;

}  // namespace

executor* executor::current() noexcept { return current_executor; }

executor::scope::scope(executor& e) noexcept : previous_(current_executor) {
  current_executor = &e;
}

executor::scope::~scope() { current_executor = previous_; }

void executor::post(completion& c) noexcept {
  if (current_executor == this) {
    ready_.push(c);
  } else if (posted_.push(c)) {
    wake();
  }
}

void executor::start(timer& t) noexcept {
  auto before = timers_.end();
  do {
    --before;
  } while (before != timers_.end() && before->deadline_ns > t.deadline_ns);
  if (before == timers_.end()) {
    timers_.push_front(t);
  } else {
    t.link.insert_after(before->link);
  }
}

bool executor::cancel(timer& t) noexcept {
  const bool running = t.link.linked();
  t.link.unlink();
  return running;
}

void executor::expire_timers() noexcept {
  if (timers_.empty()) return;
  const std::uint64_t now = monotonic_clock::now_ns();
  while (!timers_.empty() && timers_.front().deadline_ns <= now) {
    ready_.push(*timers_.pop_front()->done);
  }
}

std::uint64_t executor::until_next_timer_ns() const noexcept {
  if (timers_.empty()) return UINT64_MAX;
  const std::uint64_t now = monotonic_clock::now_ns();
  const std::uint64_t deadline = timers_.front().deadline_ns;
  return deadline <= now ? 0 : deadline - now;
}

void executor::take_posted() noexcept {
  completion* batch = posted_.take_all();
  if (batch != nullptr) ++batches_taken_;
  while (batch != nullptr) {
    completion* next = batch->next;
    ready_.push(*batch);
    batch = next;
  }
}

void executor::run_ready(unsigned completions_max) noexcept {
  expire_timers();
  take_posted();
  turn_over_ = false;
  for (unsigned left = completions_max; left != 0;) {
    if (deferred_.empty()) {
      run_beside_deferred_ = 0;
    } else if (ready_.empty() || run_beside_deferred_ >= deferral_max) {
      run_beside_deferred_ = 0;
      ready_.splice(deferred_);
    }
    if (completion* c = ready_.pop()) {
      --left;
      ++run_beside_deferred_;
      c->run(*c);
      if (turn_over_) [[unlikely]]
        return run_deferred();
    }
    if (!ready_.empty()) continue;
    take_posted();
    if (!busy()) return;
  }
}

void executor::run_deferred() noexcept {
  run_beside_deferred_ = 0;
  completion_queue now;
  now.splice(deferred_);
  while (completion* c = now.pop()) c->run(*c);
}

void blocking_executor::wake() noexcept { wakes_.wake(); }

void blocking_executor::run_until(const bool& finished) noexcept {
  FOREBAY_ASSERT(current() == nullptr || current()->as_loop() == nullptr);
  const scope in(*this);
  const auto turn = [this]() noexcept {
    run_ready();
    return busy();
  };
  wakes_.run(
      turn, [&finished]() noexcept { return finished; },
      [this]() noexcept { return until_next_timer_ns(); });
  // The post that ended the wait was perhaps taken before its thread came to wake(): that call is
  // the last it does to this object.
  wakes_.settle(batches_taken());
}

}  // namespace forebay
