#include "forebay/serve/vhost_queue.h"

#include <utility>

#include "forebay/base/spin.h"

namespace forebay {

vhost_queue::vhost_queue(connection_host& host, nbd_export& served, client_entry& client,
                         const guest_memory& memory, const std::atomic<bool>& writeback,
                         const reporter& report, loop& on, std::uint64_t spin_ns) noexcept
    : host_(host),
      export_(served),
      client_(client),
      memory_(memory),
      writeback_(writeback),
      report_(report),
      loop_(on),
      polls_(spin_ns) {}

vhost_queue::~vhost_queue() { FOREBAY_ASSERT(!running_); }

// Has done what it was ordered to.
void vhost_queue::answer(int error) noexcept {
  done_->status = -error;
  home_->post(*std::exchange(done_, nullptr));
}

void vhost_queue::do_start() noexcept {
  FOREBAY_ASSERT(!running_);
  auto ring = virtqueue::create(setup_.ring, memory_);
  if (!ring) return answer(ring.error() == ring_errc::unmapped_address ? EFAULT : EINVAL);
  inflight_log log;
  if (!setup_.log.empty()) {
    auto opened = inflight_log::open(setup_.log, *ring);
    if (!opened) return answer(to_errno(opened.error()));
    log = std::move(*opened);
  }
  auto one = own<std::span<std::byte>>(std::as_writable_bytes(std::span(&one_, 1)));
  auto mapped = std::move(one).map(loop_.registered(), dma_direction::to_device);
  if (!mapped) return answer(to_errno(mapped.error()));
  // Its own, so that there is always one request that gets on.
  if (!host_.memory().take_request_share(request_memory::long_request_bytes)) return answer(ENOMEM);
  one_memory_ = std::move(*mapped);
  call_.fd = setup_.call;
  error_.fd = setup_.error;
  ring_ = std::move(*ring);
  log_ = std::move(log);
  running_ = true;
  stopping_ = wound_up_ = broken_ = full_ = false;
  looking_since_ns_ = 0;
  loop_.turns().join(share_);
  export_.vhost().queues.add();
  answer(0);
  // A driver that sleeps must not wait for a call that the device before this one did not get to.
  if (log_.is_continued() || setup_.call_first) give(call_);
  ring_.disable_kicks();
  turn_soon();
}

void vhost_queue::do_stop() noexcept {
  FOREBAY_ASSERT(running_);
  stopping_ = true;
  if (kick_awaited_) {
    if (setup_.kick >= 0) {
      loop_.cancel(kick_);
    } else if (loop_.cancel(pause_)) {
      kick_awaited_ = false;
    }
  }
  if (hold_awaited_ && loop_.cancel(hold_)) hold_awaited_ = false;
  stopped_perhaps();
}

// Ends a queue that is to stop, once nothing of it is under way.
void vhost_queue::stopped_perhaps() noexcept {
  const auto awaited = [this]() noexcept {
    return turn_queued_ || publish_queued_ || kick_awaited_ || hold_awaited_ ||
           tasks_.running() != 0;
  };
  if (awaited()) return;
  if (held_) end_hold();
  if (awaited()) return;
  if (!wind_up()) return;
  base_ = ring_.base();
  running_ = false;
  one_memory_.reset();
  log_ = {};
  host_.memory().return_request_share(request_memory::long_request_bytes);
  loop_.turns().leave(share_);
  export_.vhost().queues.add(-1);
  answer(0);
}

// Publishes what is left, and tells the driver; false while that is under way.
bool vhost_queue::wind_up() noexcept {
  if (!std::exchange(wound_up_, true)) {
    if (!broken_) {
      publish();
      call();
    }
    // What can be written has been, when the ring comes to this: the rest would wait for ever.
    for (signal* const s : {&call_, &error_}) {
      if (s->under_way) loop_.cancel(*s);
    }
  }
  return !call_.under_way && !error_.under_way;
}

void vhost_queue::turn_soon() noexcept {
  if (std::exchange(turn_queued_, true)) return;
  loop_.ready(turn_);
}

void vhost_queue::turn() noexcept {
  turn_queued_ = false;
  if (stopping_) return stopped_perhaps();
  if (broken_) return;
  if (share_.spent() && !loop_.turns().may_go_on(share_, loop_.wanted())) {
    turn_queued_ = true;
    return loop_.turns().wait(waiter_, share_, turn_);
  }
  if (work() != 0) {
    if (std::exchange(looking_since_ns_, 0) != 0) polls_.found(true);
    return turn_soon();
  }
  if (broken_ || full_) return;  // the end of a request goes on
  if (look()) return turn_soon();
  sleep();
}

// Nothing is available: whether to look again rather than to sleep.
bool vhost_queue::look() noexcept {
  const std::uint64_t now = monotonic_clock::now_ns();
  if (looking_since_ns_ == 0) {
    if (!polls_.wanted()) return false;
    looking_since_ns_ = now;
  }
  if (now - looking_since_ns_ >= polls_.length_ns()) {
    looking_since_ns_ = 0;
    polls_.found(false);
    return false;
  }
  // The loop looks at its other work in between.
  for (unsigned i = 0; i < looks_a_turn; ++i) {
    const auto there = ring_.available();
    if (!there || *there) break;
    cpu_relax();
  }
  return true;
}

void vhost_queue::sleep() noexcept {
  const auto there = ring_.enable_kicks();
  if (!there) return break_ring(there.error());
  if (*there) {
    ring_.disable_kicks();
    return turn_soon();
  }
  kick_awaited_ = true;
  if (setup_.kick >= 0) return loop_.submit(uring_request::poll_readable(setup_.kick), kick_);
  // The driver has no way to kick: looked at from time to time.
  pause_.deadline_ns = monotonic_clock::in_ns(no_kick_pause_ns);
  pause_.done = &kick_;
  loop_.start(pause_);
}

void vhost_queue::kicked() noexcept {
  kick_awaited_ = false;
  if (stopping_) return stopped_perhaps();
  if (broken_) return;
  if (setup_.kick >= 0) {
    if (kick_.status < 0) return break_ring({-kick_.status, std::generic_category()});
    drain_event_fd(setup_.kick);
    export_.vhost().kicks.add();
  }
  ring_.disable_kicks();
  turn_soon();
}

// Looks at the held request again in so long.
void vhost_queue::hold(std::uint64_t ns) noexcept {
  hold_awaited_ = true;
  hold_.deadline_ns = monotonic_clock::in_ns(ns);
  hold_.done = &hold_over_;
  loop_.start(hold_);
}

void vhost_queue::hold_over() noexcept {
  hold_awaited_ = false;
  if (stopping_) return stopped_perhaps();
  if (!broken_) turn_soon();
}

// Nobody waits for a limit before he goes: what has been taken is done.
void vhost_queue::end_hold() noexcept {
  const std::uint64_t now_ns = monotonic_clock::now_ns();
  request r = *std::exchange(held_, std::nullopt);
  if (broken_) return export_.rate().leave(place_, now_ns);
  export_.rate().begin_early(place_, now_ns);
  now_ns_ = now_ns;
  begin(r);
}

void vhost_queue::break_ring(std::error_code why) noexcept {
  broken_ = true;
  report_("its ring", why);
  export_.vhost().rings_broken.add();
  give(error_);
}

// The next chain: first those that the last device left.
result<bool> vhost_queue::next(virtqueue::element& e, std::uint16_t& number) noexcept {
  if (log_ && log_.next_again(ring_, e, storage_, number)) return true;
  const auto taken = ring_.take(e, storage_);
  if (taken && *taken && log_) number = log_.taken(e);
  return taken;
}

// Takes what is available, as far as there is room; how many chains.
unsigned vhost_queue::work() noexcept {
  if (memory_.damaged()) {
    break_ring({EFAULT, std::generic_category()});
    return 0;
  }
  unsigned count = 0;
  full_ = false;
  turn_bytes_ = 0;
  for (; count < turn_max && turn_bytes_ < turn_bytes_max && !broken_; ++count) {
    full_ = hold_awaited_ || tasks_.running() >= tasks_max || !reserve();
    if (full_) break;
    if (held_) {
      if (count == 0) now_ns_ = monotonic_clock::now_ns();
      full_ = !let_held_go();
      if (full_) break;
      continue;
    }
    virtqueue::element e;
    std::uint16_t number = 0;
    const auto taken = next(e, number);
    if (!taken) {
      break_ring(taken.error());
      break;
    }
    if (!*taken) break;
    if (count == 0) now_ns_ = monotonic_clock::now_ns();
    handle(e, number);
    if (unpublished_ >= publish_batch) publish();
  }
  end_reserve();
  if (count != 0) {
    share_.charge(count * chain_cost + turn_bytes_);
    publish();
    call();
  }
  return count;
}

void vhost_queue::put(std::uint16_t id, std::uint16_t slots, std::uint16_t number,
                      std::uint32_t written) noexcept {
  if (log_) log_.before_put(ring_, number, slots);
  ring_.put(id, slots, written);
  if (log_ && ring_.is_packed()) log_.after_publish(0);
  ++unpublished_;
}

void vhost_queue::publish() noexcept {
  if (std::exchange(unpublished_, 0) == 0) return;
  ring_.publish();
  if (log_ && !ring_.is_packed()) log_.after_publish(ring_.split().used());
  if (unaccounted_count_ == 0) return;
  const std::uint64_t took = monotonic_clock::now_ns() - now_ns_;
  std::uint64_t read = 0;
  std::uint64_t written = 0;
  for (unsigned i = 0; i < unaccounted_count_; ++i) {
    const auto& [what, bytes] = unaccounted_[i];
    export_.of(what).record(bytes, false, took);
    (what == nbd::command::read ? read : written) += bytes;
  }
  client_.count_all(unaccounted_count_, read, written);
  unaccounted_count_ = 0;
}

void vhost_queue::call() noexcept {
  if (!ring_.wants_call() || setup_.call < 0) return;
  give(call_);
  export_.vhost().calls.add();
}

void vhost_queue::give(signal& s) noexcept {
  if (s.fd < 0) return;
  s.again = std::exchange(s.under_way, true);
  if (s.again) return;
  loop_.submit(uring_request::write(s.fd, {&one_memory_->segment(), 1}, 0), s);
}

void vhost_queue::signal::ended(completion& c) noexcept {
  auto& s = static_cast<signal&>(c);
  s.under_way = false;
  // A failure is the front-end's: it has no such event then.
  if (s.again && s.status >= 0) {
    s.again = false;
    s.self->give(s);
    if (s.self->wound_up_) s.self->loop_.cancel(s);
  }
  if (s.self->stopping_) s.self->stopped_perhaps();
}

// Some tasks have ended.
void vhost_queue::publish_ended() noexcept {
  publish_queued_ = false;
  if (!broken_) {
    publish();
    call();
  }
  if (stopping_) return stopped_perhaps();
  if (full_) turn_soon();
}

}  // namespace forebay
