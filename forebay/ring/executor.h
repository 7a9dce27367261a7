// Executors: where completions are run.
//
//   post(c) from any thread ---> remote stack --+
//   ready(c) on its own thread -> ready queue --+--> run_ready(): one flat loop
//   defer(c) on its own thread -> deferred -----+    (deferred ones when nothing else is ready)
//   start(timer) --------------> timers -------+
//
// A thread has at most one current executor: a `loop` (loop.h) on a server thread, or a
// blocking_executor for the time of a sync_wait() on a plain one. All members but post() belong to
// the executor's own thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "forebay/base/list.h"
#include "forebay/ring/completion.h"
#include "forebay/ring/mpsc_stack.h"
#include "forebay/ring/wake_word.h"

namespace forebay {

class frame_memory;
class loop;

// Runs its completion once the clock has reached deadline_ns. Cancelling takes it off before that.
struct timer {
  std::uint64_t deadline_ns = 0;  // of monotonic_clock
  completion* done = nullptr;
  list_node link;  // on its executor's list while it runs
};

class executor {
 public:
  executor(const executor&) = delete;
  executor& operator=(const executor&) = delete;
  virtual ~executor() = default;

  // The calling thread's executor, null if it has none.
  static executor* current() noexcept;

  // This executor as an event loop with a ring, or null.
  virtual loop* as_loop() noexcept { return nullptr; }

  // Where tasks that are made on this executor take their frames from; null, as at first: the heap.
  // It must outlive them.
  frame_memory* frames() const noexcept { return frames_; }
  void set_frames(frame_memory* memory) noexcept { frames_ = memory; }

  // Queues `c` to be run soon.
  void ready(completion& c) noexcept { ready_.push(c); }

  // Queues `c` to be run next.
  void ready_first(completion& c) noexcept { ready_.push_front(c); }

  // Queues `c` to be run when nothing else is ready, or deferral_max others have been run since:
  // the place to gather a batch.
  void defer(completion& c) noexcept { deferred_.push(c); }

  // Has the turn that is on end with the completion that is running and what is deferred: timers,
  // posts and I/O are looked at before what is ready goes on.
  void end_turn() noexcept { turn_over_ = true; }

  // Queues `c` from any thread and wakes the executor if it sleeps. The executor must stay alive
  // until this returns, which for a blocking_executor its run_until() sees to.
  void post(completion& c) noexcept;

  // Timers: the record must stay alive until its completion runs or it is cancelled. cancel()
  // returns false if the timer has expired already: its completion is queued or has run. Starting
  // costs O(1) when it is the latest to expire, as it is when all have the same length.
  void start(timer& t) noexcept;
  bool cancel(timer& t) noexcept;

 protected:
  executor() noexcept = default;

  // Makes a sleeping executor look at its queues; called from any thread.
  virtual void wake() noexcept = 0;

  // Makes this the thread's current executor for the scope's life.
  class scope {
   public:
    explicit scope(executor& e) noexcept;
    ~scope();
    scope(const scope&) = delete;
    scope& operator=(const scope&) = delete;

   private:
    executor* previous_;
  };

  // One turn: runs everything that is ready, posted or deferred, and whatever that makes ready,
  // until nothing is, `completions_max` have run, or one has ended it. The bound lets timers
  // expire, posts be taken and I/O go on beside work that never runs dry.
  void run_ready(unsigned completions_max = 1024) noexcept;

  // Whether a turn ended at its bound: the next one must come without sleeping.
  bool busy() const noexcept { return !ready_.empty() || !deferred_.empty(); }

  // How many batches of posts have been taken; each was announced by one call of wake().
  std::uint32_t batches_taken() const noexcept { return batches_taken_; }

  // Nanoseconds until the next timer expires: 0 if one has, UINT64_MAX without timers.
  std::uint64_t until_next_timer_ns() const noexcept;

 private:
  static constexpr unsigned deferral_max = 64;

  void expire_timers() noexcept;
  void take_posted() noexcept;
  void run_deferred() noexcept;

  completion_queue ready_;
  completion_queue deferred_;
  mutable intrusive_list<timer, &timer::link> timers_;  // the earliest first
  mpsc_stack<completion> posted_;
  frame_memory* frames_ = nullptr;
  unsigned run_beside_deferred_ = 0;  // completions since the first deferred one came
  std::uint32_t batches_taken_ = 0;   // its own thread only; wraps round
  bool turn_over_ = false;            // end_turn() has been called in this turn
};

// Lends a plain thread an executor: run_until() sleeps on a futex between completions.
class blocking_executor final : public executor {
 public:
  // Runs completions until `finished` is set by one of them, and what was queued by then. Returns
  // when no thread whose post has run is inside post() any more: the executor may then go.
  void run_until(const bool& finished) noexcept;

 private:
  void wake() noexcept override;

  wake_word wakes_;
};

}  // namespace forebay
