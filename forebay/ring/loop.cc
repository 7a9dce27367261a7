#include "forebay/ring/loop.h"

namespace forebay {

result<std::unique_ptr<loop>> loop::create(unsigned entries) {
  auto queue = uring_queue_pair::create(entries);
  if (!queue) return fail(queue.error());
  auto wakeup = make_event_fd();
  if (!wakeup) return fail(wakeup.error());
  return std::unique_ptr<loop>(new loop(std::move(*queue), std::move(*wakeup)));
}

loop::loop(uring_queue_pair queue, unique_fd wakeup) noexcept
    : queue_(std::move(queue)), wakeup_(std::move(wakeup)) {
  woken_.run = [](completion&) noexcept { loop::current()->listen_for_wakeups(); };
}

void loop::listen_for_wakeups() noexcept {
  submit({.opcode = uring_opcode::read,
          .fd = wakeup_.get(),
          .address = &wakeup_count_,
          .length = sizeof wakeup_count_},
         woken_);
}

void loop::wake() noexcept { signal_event_fd(wakeup_.get()); }

void loop::stop() noexcept {
  stopping_.store(true, std::memory_order_release);  // release: pairs with run()
  wake();
}

void loop::submit(const uring_submission& s, completion& done) noexcept {
  if (auto r = queue_.submit(s, done); !r) {
    done.status = -to_errno(r.error());
    ready(done);
    return;
  }
  // What cannot be handed over now stays queued for the turn's end.
  if (queue_.queued() >= hand_over_batch) static_cast<void>(queue_.ring_doorbell(0));
}

void loop::cancel(completion& target) noexcept {
  // Nobody waits for the request itself. One record serves all of them, so it must never be queued:
  // run() drops it. A request that could not be made leaves the operation as it is.
  static_cast<void>(
      queue_.submit({.opcode = uring_opcode::cancel, .address = &target}, cancelled_));
}

void loop::run() noexcept {
  const scope in(*this);
  listen_for_wakeups();
  // acquire: pairs with stop().
  while (!stopping_.load(std::memory_order_acquire)) {
    run_ready(turn_completions_max);
    if (auto r = queue_.ring_doorbell(busy() ? 0 : until_next_timer_ns()); !r) {
      // The ring itself is broken (never seen; a kernel out of memory would be EAGAIN): nothing can
      // go on without it.
      FOREBAY_ASSERT(!"io_uring_enter failed");
    }
    while (completion* done = queue_.reap()) {
      if (done == &cancelled_) continue;
      if (done->urgent) {
        ready_first(*done);
      } else {
        ready(*done);
      }
    }
  }
}

}  // namespace forebay
