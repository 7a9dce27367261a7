#include "forebay/ring/loop.h"

#include <new>

namespace forebay {

result<std::unique_ptr<loop>> loop::create(unsigned entries) {
  auto ring = uring::create(entries);
  if (!ring) return fail(ring.error());
  auto wakeup = make_event_fd();
  if (!wakeup) return fail(wakeup.error());
  std::unique_ptr<loop> made(new (std::nothrow) loop(std::move(*ring), std::move(*wakeup)));
  if (made == nullptr) return fail(ENOMEM);
  auto count =
      own<std::span<std::byte>>(std::as_writable_bytes(std::span(&made->wakeup_count_, 1)));
  auto mapped = std::move(count).map(made->registered(), dma_direction::from_device);
  if (!mapped) return fail(mapped.error());
  made->wakeup_memory_ = std::move(*mapped);
  return made;
}

loop::loop(uring ring, unique_fd wakeup) noexcept
    : wakeup_(std::move(wakeup)), queue_(std::move(ring)) {
  woken_.run = [](completion&) noexcept { loop::current()->listen_for_wakeups(); };
  // What an arena asks is answered by the next doorbell.
  registered().set_waker([](void* self) noexcept { static_cast<loop*>(self)->wake(); }, this);
}

void loop::listen_for_wakeups() noexcept {
  submit(uring_request::read(wakeup_.get(), {&wakeup_memory_->segment(), 1}, 0), woken_);
}

void loop::wake() noexcept { signal_event_fd(wakeup_.get()); }

void loop::stop() noexcept {
  stopping_.store(true, std::memory_order_release);  // release: pairs with run()
  wake();
}

void loop::submit(const uring_request& r, completion& done) noexcept {
  if (auto queued = queue_.submit(r, done); !queued) {
    done.status = -to_errno(queued.error());
    ready(done);
    return;
  }
  // What cannot be handed over now stays queued for the turn's end.
  if (queue_.queued() >= hand_over_batch) static_cast<void>(queue_.ring_doorbell(0));
}

void loop::cancel(completion& target) noexcept {
  // Nobody waits for the request itself. One record serves all of them, so it must never be queued:
  // run() drops it. A request that could not be made leaves the operation as it is.
  static_cast<void>(queue_.cancel(target, cancelled_));
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
