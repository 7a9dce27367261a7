// Event loop: an executor with an io_uring queue pair, one to a server thread.
//
// One turn: run everything that is ready (which queues submissions), hand the submissions over and
// wait for completions in one system call, make the completions ready. All members but stop() and
// post() belong to the loop's thread, which is the one that created it.
#pragma once

#include <atomic>
#include <memory>
#include <optional>

#include "forebay/dma/ownership.h"
#include "forebay/os/fd.h"
#include "forebay/ring/busy_poll.h"
#include "forebay/ring/executor.h"
#include "forebay/ring/fair_turns.h"
#include "forebay/ring/task.h"
#include "forebay/ring/uring_queue_pair.h"

namespace forebay {

class loop final : public executor {
 public:
  // Errors: as uring::create, and of eventfd(2).
  static result<std::unique_ptr<loop>> create(unsigned entries = 256);

  // The loop that the calling thread is running, null outside of one.
  static loop* current() noexcept {
    executor* e = executor::current();
    return e == nullptr ? nullptr : e->as_loop();
  }

  loop* as_loop() noexcept override { return this; }

  uring_queue_pair& queue() noexcept { return queue_; }

  // The domains that memory for its operations is mapped in: for transfers of files, and for those
  // of sockets. Of the loop's thread.
  uring_domain& registered() noexcept { return queue_.registered(); }
  identity_domain& plain() noexcept { return queue_.plain(); }

  // Whose turn it is among those who may have more work than the loop has time for.
  fair_turns& turns() noexcept { return turns_; }
  // Whether something may want the loop beside what is running.
  bool wanted() const noexcept { return busy() || queue_.pending(); }

  // Before run(): for so long the loop looks for completions before it sleeps, as far as that turns
  // out to be of use; at first not at all.
  void set_busy_poll(std::uint64_t length_ns) noexcept { busy_poll_ = busy_poll(length_ns); }
  // Of the loop's thread.
  const busy_poll& polls() const noexcept { return busy_poll_; }

  // Runs until stop(). Operations that are in flight then are left to the ring's destruction.
  void run() noexcept;

  // Any thread.
  void stop() noexcept;

  // Starts an operation; `done` is run from this loop with the result, also when it could not even
  // be queued.
  void submit(const uring_request& r, completion& done) noexcept;

  // co_await io(r): the operation's result, a count or a negative errno.
  static auto io(const uring_request& r) noexcept {
    return await_completion([r](completion& done) noexcept { loop::current()->submit(r, done); });
  }

  // The same for an operation whose end starts new work, such as a receive: it is taken before
  // what is ready already, so that devices have that work to do meanwhile.
  static auto io_first(const uring_request& r) noexcept {
    return await_completion([r](completion& done) noexcept {
      done.urgent = true;
      loop::current()->submit(r, done);
    });
  }

  using executor::cancel;  // of a timer

  // Asks the kernel to give up the operation that ends in `target`, which then ends with -ECANCELED
  // or what it had reached.
  void cancel(completion& target) noexcept;

 private:
  // A long turn hands over so many submissions at a time, so that the device works while the turn
  // goes on. Fewer cost system calls, more leave the device idle.
  static constexpr unsigned hand_over_batch = 4;

  // Small, because completions come in lumps: what a client sends after the first replies to a lump
  // should reach the device while the rest is answered.
  static constexpr unsigned turn_completions_max = 8;

  // With many transfers under way the loop sleeps until a share of them has ended: that saves
  // wake-ups, and the device is not idle meanwhile. Not longer than what ends first may wait: the
  // share goes by how fast transfers end, and the sleep has an end in any case.
  static constexpr unsigned coalesce_share = 5;
  static constexpr unsigned coalesce_max = 8;
  static constexpr std::uint64_t coalesce_ns = 100'000;
  static constexpr std::uint64_t coalesce_limit_ns = 1'000'000;

  loop(uring ring, unique_fd wakeup) noexcept;

  void sleep() noexcept;
  bool poll(std::uint64_t limit_ns) noexcept;
  void ring_doorbell(std::uint64_t timeout_ns, unsigned completions) noexcept;
  unsigned coalesce() noexcept;
  void wake() noexcept override;
  void listen_for_wakeups() noexcept;

  unique_fd wakeup_;  // an eventfd, always being read
  uring_queue_pair queue_;
  std::uint64_t wakeup_count_ = 0;
  // Where that is read to, for as long as there is the loop.
  std::optional<device_owned<std::span<std::byte>>> wakeup_memory_;
  unsigned transfers_ = 0;               // under way, the eventfd's among them
  unsigned ended_ = 0;                   // of them, since measured_ns_
  std::uint64_t measured_ns_ = 0;        // when the pace was last looked at
  std::uint64_t pace_ns_ = coalesce_ns;  // from the end of one to that of the next, of late
  bool eager_ = false;                   // looks for each of many transfers, and hands over each
  busy_poll busy_poll_;
  fair_turns turns_{*this};
  completion woken_;
  completion cancelled_;  // of every cancel request; never queued
  std::atomic<bool> stopping_{false};
};

}  // namespace forebay
