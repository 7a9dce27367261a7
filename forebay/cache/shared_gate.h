// A gate that many may be inside of, or one alone: a reader-writer lock of coroutines.
//
//   co_await enter(gate);  …  gate.leave();
//   co_await close(gate);  …  gate.open();
//
// Who wants to be alone goes before those who come after him. Not recursive. Any thread; who has
// entered or closed it may leave or open it on another one.
#pragma once

#include "forebay/os/mutex.h"
#include "forebay/ring/task.h"
#include "forebay/ring/wait_queue.h"

namespace forebay {

class shared_gate {
 public:
  // False, and nothing changes, while somebody is alone inside or wants to be.
  bool try_enter() noexcept FOREBAY_EXCLUDES(lock_) {
    const scoped_lock hold(lock_);
    if (closed_) return false;
    ++inside_;
    return true;
  }
  void leave() noexcept FOREBAY_EXCLUDES(lock_) {
    bool last = false;
    {
      const scoped_lock hold(lock_);
      last = --inside_ == 0 && closed_;
    }
    if (last) changed_.wake_all();
  }
  void open() noexcept FOREBAY_EXCLUDES(lock_) {
    {
      const scoped_lock hold(lock_);
      closed_ = false;
    }
    changed_.wake_all();
  }

  // Nobody enters from now on; false if somebody else has said so. Alone is who waits for empty().
  bool try_close() noexcept FOREBAY_EXCLUDES(lock_) {
    const scoped_lock hold(lock_);
    return !std::exchange(closed_, true);
  }
  bool closed() const noexcept FOREBAY_EXCLUDES(lock_) {
    const scoped_lock hold(lock_);
    return closed_;
  }
  bool empty() const noexcept FOREBAY_EXCLUDES(lock_) {
    const scoped_lock hold(lock_);
    return inside_ == 0;
  }

  // co_await these: hints, look again.
  auto opened() noexcept {
    return changed_.wait_unless([this]() noexcept { return !closed(); });
  }
  auto emptied() noexcept {
    return changed_.wait_unless([this]() noexcept { return empty(); });
  }

 private:
  mutable mutex lock_;
  unsigned inside_ FOREBAY_GUARDED_BY(lock_) = 0;
  bool closed_ FOREBAY_GUARDED_BY(lock_) = false;
  wait_queue changed_;
};

// Error: ENOMEM, if there is no memory for the task; the gate is as it was then.
inline task<> enter(shared_gate& gate) {
  while (!gate.try_enter()) co_await gate.opened();
  co_return result<>{};
}
inline task<> close(shared_gate& gate) {
  while (!gate.try_close()) co_await gate.opened();
  while (!gate.empty()) co_await gate.emptied();
  co_return result<>{};
}

}  // namespace forebay
