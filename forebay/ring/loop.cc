#include "forebay/ring/loop.h"

#include <algorithm>
#include <new>

#include "forebay/base/spin.h"
#include "forebay/base/stats.h"

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
  done.transfer = r.is_transfer();
  transfers_ += done.transfer ? 1 : 0;
  // What cannot be handed over now stays queued for the turn's end.
  if (queue_.queued() >= (eager_ ? 1 : hand_over_batch)) static_cast<void>(queue_.ring_doorbell(0));
}

void loop::cancel(completion& target) noexcept {
  // Nobody waits for the request itself. One record serves all of them, so it must never be queued:
  // run() drops it. A request that could not be made leaves the operation as it is.
  static_cast<void>(queue_.cancel(target, cancelled_));
}

// How many completions to sleep for: more than one only with many transfers under way on a device
// that ends them fast.
unsigned loop::coalesce() noexcept {
  const unsigned share = std::min(transfers_ / coalesce_share, coalesce_max);
  if (share < 2) {
    ended_ = 0;
    measured_ns_ = 0;
    return 1;
  }
  if (ended_ >= 64 || measured_ns_ == 0) {
    const std::uint64_t now = monotonic_clock::now_ns();
    if (measured_ns_ != 0) pace_ns_ = (now - measured_ns_) / ended_;
    measured_ns_ = now;
    ended_ = 0;
  }
  return static_cast<unsigned>(
      std::clamp<std::uint64_t>(coalesce_ns / std::max<std::uint64_t>(pace_ns_, 1), 1, share));
}

// Hands over what is queued, and waits unless there is work.
void loop::sleep() noexcept {
  std::uint64_t limit_ns = busy() ? 0 : until_next_timer_ns();
  const unsigned completions = limit_ns == 0 ? 1 : coalesce();
  if (completions > 1) {
    limit_ns = std::min(limit_ns, coalesce_limit_ns);
    eager_ = completions * pace_ns_ <= busy_poll_.length_ns();
  }
  // Who waits for several has no hurry, unless a look that is allowed to last so long sees them all
  // come: then it takes each as soon as it is there.
  if (limit_ns != 0 && (completions == 1 || eager_) && busy_poll_.wanted()) {
    if (poll(limit_ns)) {
      if (queue_.ready()) return;
      limit_ns = 0;
    }
  }
  ring_doorbell(limit_ns, completions);
}

// Hands over what is queued and looks for completions, no longer than so; whether there are any.
bool loop::poll(std::uint64_t limit_ns) noexcept {
  constexpr unsigned looks_a_time = 8;  // reading the clock takes as long as a few looks
  if (queue_.queued() != 0) ring_doorbell(0, 1);
  if (queue_.pending()) return true;  // what ended at once says nothing about waiting
  const std::uint64_t end = monotonic_clock::in_ns(std::min(limit_ns, busy_poll_.length_ns()));
  bool found = false;
  for (unsigned looks = 1; !found; ++looks) {
    if (looks % looks_a_time == 0 && monotonic_clock::now_ns() >= end) break;
    cpu_relax();
    found = queue_.pending();
  }
  busy_poll_.found(found);
  return found;
}

void loop::ring_doorbell(std::uint64_t timeout_ns, unsigned completions) noexcept {
  if (auto r = queue_.ring_doorbell(timeout_ns, completions); !r) {
    // The ring itself is broken (never seen; a kernel out of memory would be EAGAIN): nothing can
    // go on without it.
    FOREBAY_ASSERT(!"io_uring_enter failed");
  }
}

void loop::run() noexcept {
  const scope in(*this);
  prepare_thread_to_count();
  listen_for_wakeups();
  // acquire: pairs with stop().
  while (!stopping_.load(std::memory_order_acquire)) {
    run_ready(turn_completions_max);
    sleep();
    while (completion* done = queue_.reap()) {
      if (done == &cancelled_) continue;
      if (done->transfer) {
        --transfers_;
        ++ended_;
      }
      if (done->urgent) {
        ready_first(*done);
      } else {
        ready(*done);
      }
    }
  }
}

}  // namespace forebay
