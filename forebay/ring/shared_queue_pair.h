// The host's side of a queue pair in shared memory: it makes the queues, submits commands and reaps
// their completions. shared_queue.h says how the queues work.
//
// It is a queue pair as io_uring is one (queue_pair.h): submit() queues, ring_doorbell() hands over
// what is queued and waits, reap() gives the completions that have ended. How many commands one
// doorbell publishes is up to the caller, or to `doorbell_batch`; a doorbell is a store, and a
// system call only if the controller sleeps.
//
// The controller is another process and not trusted: what a command was is kept in memory of this
// side's own, and of a completion nothing is believed that does not fit. What does not is the
// fault(): submit() and ring_doorbell() fail with it from then on, nothing more is published, and
// reap() gives nothing more, unless the fault is that the controller is gone: then it gives what
// had been completed. Commands that are under way after that stay so, and their buffers may still
// be written by the other process. When that cannot be any more (it is gone, or the memory was
// taken from it), abandon() gives them back.
//
// A command ends only after its controller has said that it has read it. So no buffer is given back
// whose command is still in the queue, and a queue whose commands have all ended is empty: a
// controller cannot keep it full with nothing under way.
//
// One thread at a time.
#pragma once

#include <algorithm>
#include <memory>

#include "forebay/base/assert.h"
#include "forebay/ring/queue_pair.h"
#include "forebay/ring/shared_queue.h"

namespace forebay {

template <AtomicsPolicy Atomics = real_atomics, typename Waiter = shared_futex>
class basic_shared_queue_pair {
  using layout = shared_queue_layout<Atomics>;

 public:
  using submission = shared_command;

  struct options {
    std::uint32_t entries = 64;        // of the submission queue, a power of two
    std::uint32_t completions = 64;    // of the completion queue, a power of two
    std::uint32_t doorbell_batch = 0;  // submit() publishes by itself when so many are queued
    std::uint32_t start = 0;           // the first position of both queues
  };

  // Bytes of region that such queues take; no check.
  static constexpr std::size_t region_bytes(std::uint32_t entries,
                                            std::uint32_t completions) noexcept {
    return layout::bytes(entries, completions);
  }

  // Makes the queues in `region`, which must outlive both sides. Errors, the region is untouched
  // then: ring_errc::too_few_entries, no_power_of_two, too_many_entries, region_too_small,
  // region_misaligned; ENOMEM.
  static result<basic_shared_queue_pair> create(std::span<std::byte> region, const options& wanted,
                                                Waiter waiter = Waiter()) noexcept;

  // Queues `command`; `done` is reaped when it has ended, with done.status a count of bytes up to
  // command.length, or a negative errno value. Both the record and the buffer stay until then.
  // Errors, nothing is queued then: EAGAIN if a queue is full (reap, and it will have room),
  // ring_errc::bad_length above shared_command_bytes_max, ring_errc::bad_flags, fault().
  result<> submit(const shared_command& command, completion& done) noexcept;

  // Publishes what is queued without waiting, and wakes the controller if it sleeps. Nothing after
  // a fault() or abandon().
  void publish() noexcept {
    if (side_.fault() || abandoned_ != 0) return;
    publish_consumed();
    // release: who sees the position sees the commands before it.
    side_.own().position.store(queued_, std::memory_order_release);
    published_ = queued_;
    side_.tell(queued_);
  }

  // Publishes what is queued (the doorbell) and waits for `completions`, at most `timeout_ns`; 0
  // only publishes. A wait for several is one wake instead of several. An end of the time is no
  // error. Errors: fault(); errc::end_of_stream if the controller has closed and so many will not
  // come; ECANCELED if all that was under way has been abandoned and reaped.
  result<> ring_doorbell(std::uint64_t timeout_ns, std::uint32_t completions = 1) noexcept {
    publish();
    if (timeout_ns == 0) return side_.fault() ? fail(side_.fault()) : result<>();
    auto r = wait(timeout_ns, completions);
    if (!r && r.error() == std::errc::timed_out) return {};
    return r;
  }

  // Waits until `completions` can be reaped, or as many as are under way if those are fewer, but at
  // least one. Errors: ETIMEDOUT; errc::end_of_stream if the controller has closed;
  // ring_errc::peer_gone; fault(). Some may be there all the same. What is abandoned is not waited
  // for; ECANCELED if nothing of it is left.
  result<> wait(std::uint64_t timeout_ns, std::uint32_t completions = 1) noexcept {
    if (abandoned_ != 0 && !side_.fault()) {
      return in_flight_ != 0 ? result<>() : fail(ECANCELED);
    }
    const std::uint32_t last = reaped_ + std::max(1u, std::min(completions, in_flight_)) - 1;
    return side_.wait(last, timeout_ns, [this, last]() noexcept {
      // relaxed: reap() looks again. They come in order, so the last one is enough.
      return is_there(completions_[last & completion_mask_].state.load(std::memory_order_relaxed),
                      last);
    });
  }

  // The next command that has ended, null when there is none for now, or a fault().
  completion* reap() noexcept;

  // Ends every command that is under way with `status`, a negative errno value: reap() gives them,
  // and nothing else any more. Only when the controller cannot reach the buffers any more.
  void abandon(std::int32_t status) noexcept {
    FOREBAY_ASSERT(status < 0);
    abandoned_ = status;
  }

  // Nothing more will be submitted. What is under way may still end.
  void close() noexcept { side_.close(); }

  // Submitted and not published yet.
  std::uint32_t queued() const noexcept { return queued_ - published_; }
  // Submitted and not reaped.
  std::uint32_t in_flight() const noexcept { return in_flight_; }

  std::error_code fault() const noexcept { return side_.fault(); }
  const shared_side_statistics& statistics() const noexcept { return side_.statistics(); }

 private:
  // A command under way, by its number.
  struct flight {
    completion* done = nullptr;  // null: the number is free
    std::uint32_t id = 0;        // uses << 16 | number
    std::uint32_t length = 0;
    std::uint64_t turn = 0;  // how many commands were submitted before it
  };

  basic_shared_queue_pair(shared_side<Atomics, Waiter> side, std::span<std::byte> region,
                          const options& o, std::unique_ptr<flight[]> flights,
                          std::unique_ptr<std::uint16_t[]> free) noexcept;

  bool is_there(std::uint64_t state, std::uint32_t position) const noexcept {
    return completion_state::phase(state) == phase_of(position, completion_mask_ + 1);
  }
  void publish_consumed() noexcept {
    if (consumed_ == reaped_) return;
    consumed_ = reaped_;
    // relaxed: only a command that is published later needs the entries again, and its position
    // comes after this store and after the entries have been read.
    side_.own().consumed.store(consumed_, std::memory_order_relaxed);
  }
  // How many commands the controller says it has read, once its head is at `head`.
  std::uint64_t turns_read(std::uint32_t head) const noexcept { return turns_ - (queued_ - head); }
  // The flight that a completion ends, null with a fault if there is none.
  flight* check(std::uint64_t state, std::uint64_t what) noexcept;
  completion* end(flight& f, std::int32_t status) noexcept;
  completion* reap_abandoned() noexcept;

  shared_side<Atomics, Waiter> side_;
  submission_slot<Atomics>* submissions_;
  completion_slot<Atomics>* completions_;
  std::uint32_t submission_mask_;
  std::uint32_t completion_mask_;
  std::uint32_t doorbell_batch_;
  std::uint32_t queued_;     // submissions: [head_, queued_) may be in the queue
  std::uint32_t published_;  // up to here the controller knows
  std::uint32_t head_;       // up to here it has read
  std::uint32_t reaped_;     // completions: the next one
  std::uint32_t consumed_;   // what the controller knows of that
  std::uint64_t turns_ = 0;  // commands submitted
  std::uint32_t in_flight_ = 0;
  std::uint32_t free_count_;
  std::int32_t abandoned_ = 0;             // the status of what is abandoned
  std::uint32_t abandoned_next_ = 0;       // the flight to look at next
  std::unique_ptr<flight[]> flights_;      // one for each entry of the completion queue
  std::unique_ptr<std::uint16_t[]> free_;  // numbers without a command, a stack of free_count_
};

using shared_queue_pair = basic_shared_queue_pair<>;

static_assert(QueuePair<shared_queue_pair>);

// ---- Implementation ----

template <AtomicsPolicy Atomics, typename Waiter>
auto basic_shared_queue_pair<Atomics, Waiter>::create(std::span<std::byte> region,
                                                      const options& wanted, Waiter waiter) noexcept
    -> result<basic_shared_queue_pair> {
  if (auto r = check_entries(wanted.entries); !r) return fail(r.error());
  if (auto r = check_entries(wanted.completions); !r) return fail(r.error());
  const std::size_t bytes = layout::bytes(wanted.entries, wanted.completions);
  if (auto r = check_region(region, bytes); !r) return fail(r.error());
  std::unique_ptr<flight[]> flights(new (std::nothrow) flight[wanted.completions]);
  std::unique_ptr<std::uint16_t[]> free(new (std::nothrow) std::uint16_t[wanted.completions]);
  if (flights == nullptr || free == nullptr) return fail(ENOMEM);
  auto& header = *make_in<typename layout::header>(region, 0);
  auto& host = *make_in<typename layout::side>(region, layout::host_at);
  auto& controller = *make_in<typename layout::side>(region, layout::controller_at);
  make_in<typename layout::submission>(region, layout::submissions_at, wanted.entries);
  auto* const completions = make_in<typename layout::completion>(
      region, layout::completions_at(wanted.entries), wanted.completions);
  begin_side(host, wanted.start);
  begin_side(controller, wanted.start);
  for (std::uint32_t i = 0; i < wanted.completions; ++i) {
    // No entry is there: each has the phase that it will not have when it comes.
    const std::uint32_t p = wanted.start + i;
    completions[p & (wanted.completions - 1)].state.store(
        completion_state::pack(0, 0, !phase_of(p, wanted.completions)),
        std::memory_order_relaxed);  // relaxed: as in write_shape
  }
  write_shape(header, {.kind = shared_ring_kind::queue_pair,
                       .entries = wanted.entries,
                       .entries2 = wanted.completions,
                       .start = wanted.start,
                       .bytes = bytes});
  return basic_shared_queue_pair({host, controller, wanted.start, std::move(waiter)}, region,
                                 wanted, std::move(flights), std::move(free));
}

template <AtomicsPolicy Atomics, typename Waiter>
basic_shared_queue_pair<Atomics, Waiter>::basic_shared_queue_pair(
    shared_side<Atomics, Waiter> side, std::span<std::byte> region, const options& o,
    std::unique_ptr<flight[]> flights, std::unique_ptr<std::uint16_t[]> free) noexcept
    : side_(std::move(side)),
      submissions_(find_in<typename layout::submission>(region, layout::submissions_at)),
      completions_(find_in<typename layout::completion>(region, layout::completions_at(o.entries))),
      submission_mask_(o.entries - 1),
      completion_mask_(o.completions - 1),
      doorbell_batch_(o.doorbell_batch),
      queued_(o.start),
      published_(o.start),
      head_(o.start),
      reaped_(o.start),
      consumed_(o.start),
      free_count_(o.completions),
      flights_(std::move(flights)),
      free_(std::move(free)) {
  for (std::uint32_t i = 0; i < o.completions; ++i) {
    free_[i] = static_cast<std::uint16_t>(o.completions - 1 - i);  // the lowest on top
    flights_[i].id = i;
  }
}

template <AtomicsPolicy Atomics, typename Waiter>
result<> basic_shared_queue_pair<Atomics, Waiter>::submit(const shared_command& command,
                                                          completion& done) noexcept {
  if (side_.fault()) return fail(side_.fault());
  if (abandoned_ != 0) return fail(ECANCELED);
  if (command.length > shared_command_bytes_max) return fail(ring_errc::bad_length);
  if ((command.flags & ~(command_write | command_indirect | command_user_bits)) != 0) {
    return fail(ring_errc::bad_flags);
  }
  if (queued_ - head_ > submission_mask_ || free_count_ == 0) return fail(EAGAIN);
  flight& f = flights_[free_[--free_count_]];
  f.done = &done;
  f.length = command.length;
  f.turn = turns_++;
  f.id += 1u << 16;
  submissions_[queued_ & submission_mask_].write(command, f.id);
  ++queued_;
  ++in_flight_;
  if (doorbell_batch_ != 0 && queued() >= doorbell_batch_) publish();
  return {};
}

template <AtomicsPolicy Atomics, typename Waiter>
auto basic_shared_queue_pair<Atomics, Waiter>::check(std::uint64_t state,
                                                     std::uint64_t what) noexcept -> flight* {
  const auto id = static_cast<std::uint32_t>(what);
  const std::uint32_t number = id & 0xffff;
  const std::uint16_t error = completion_state::error(state);
  // The head is 16 bits of a position that lies between the last one and what was published.
  const std::uint32_t moved =
      static_cast<std::uint16_t>(completion_state::head(state) - static_cast<std::uint16_t>(head_));
  ring_errc wrong{};
  if ((state & completion_state::unused) != 0 || error > completion_state::error_max) {
    wrong = ring_errc::bad_status;
  } else if (moved > published_ - head_) {
    wrong = ring_errc::position_jump;
  } else if (number > completion_mask_) {
    wrong = ring_errc::unknown_id;
  } else if (flights_[number].done == nullptr || flights_[number].id != id ||
             flights_[number].turn >= turns_read(head_ + moved)) {
    wrong = ring_errc::stale_id;
  } else if ((what >> 32) > (error == 0 ? flights_[number].length : 0)) {
    wrong = ring_errc::bad_length;
  } else {
    head_ += moved;
    return &flights_[number];
  }
  static_cast<void>(side_.set_fault(wrong));
  return nullptr;
}

template <AtomicsPolicy Atomics, typename Waiter>
completion* basic_shared_queue_pair<Atomics, Waiter>::end(flight& f, std::int32_t status) noexcept {
  completion* const done = std::exchange(f.done, nullptr);
  free_[free_count_++] = static_cast<std::uint16_t>(f.id);
  --in_flight_;
  done->status = status;
  return done;
}

template <AtomicsPolicy Atomics, typename Waiter>
completion* basic_shared_queue_pair<Atomics, Waiter>::reap() noexcept {
  if (abandoned_ != 0) return reap_abandoned();
  // What a controller has completed before it went is still good.
  if (side_.fault() && side_.fault() != ring_errc::peer_gone) return nullptr;
  const completion_slot<Atomics>& slot = completions_[reaped_ & completion_mask_];
  // acquire: `what`, and the data that the controller has written, are before the phase bit.
  const std::uint64_t state = slot.state.load(std::memory_order_acquire);
  if (!is_there(state, reaped_)) {
    publish_consumed();
    return nullptr;
  }
  const std::uint64_t what = slot.what.load(std::memory_order_relaxed);  // relaxed: see above
  flight* const f = check(state, what);
  if (f == nullptr) return nullptr;
  ++reaped_;
  const std::uint16_t error = completion_state::error(state);
  return end(*f, error != 0 ? -std::int32_t{error} : static_cast<std::int32_t>(what >> 32));
}

template <AtomicsPolicy Atomics, typename Waiter>
completion* basic_shared_queue_pair<Atomics, Waiter>::reap_abandoned() noexcept {
  while (abandoned_next_ <= completion_mask_) {
    flight& f = flights_[abandoned_next_++];
    if (f.done != nullptr) return end(f, abandoned_);
  }
  return nullptr;
}

}  // namespace forebay
