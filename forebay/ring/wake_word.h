// The sleep of one thread that runs what others hand to it, and that goes away afterwards.
//
//    others:   hand over (mpsc_stack.h says: it was empty) -> wake()
//    sleeper:  look at the word -> take and run everything -> sleep while the word is the same
//
// The word counts wakes: one that comes between the look and the sleep keeps the sleeper awake. And
// since each batch that was taken has been announced by one wake, the sleeper knows when the last
// of those calls has been made: before that it must not go away, since the caller still needs the
// word.
#pragma once

#include <cstdint>

#include "forebay/ring/event_count.h"

namespace forebay {

template <AtomicsPolicy Atomics = real_atomics, WaitPolicy<Atomics> Wait = futex_waiting>
class basic_wake_word {
 public:
  // Any thread.
  void wake() noexcept {
    // release: pairs with the acquires below. From here on settle() may return and this object go:
    // the futex call uses its address as a number only, and a wake that meets another word there is
    // one of the spurious wakes that every waiter allows for.
    wakes_.fetch_add(1, std::memory_order_release);
    Wait::wake(wakes_, 1);
  }

  // The sleeper. Calls turn(), which takes and runs what there is and says whether there is more,
  // until finished() is true after a turn; sleeps in between, at most timeout_ns() each time.
  template <typename Turn, typename Finished, typename Timeout>
  void run(const Turn& turn, const Finished& finished, const Timeout& timeout_ns) noexcept {
    for (;;) {
      const std::uint32_t seen =
          wakes_.load(std::memory_order_acquire);  // acquire: pairs with wake
      if (turn()) continue;
      if (finished()) return;
      Wait::wait(wakes_, seen, timeout_ns());
    }
  }

  // The sleeper: waits until wake() has been called `batches` times since the start. Who called it
  // does nothing to this object any more.
  void settle(std::uint32_t batches) noexcept {
    for (;;) {
      // acquire: pairs with wake, so that what its thread read of this object comes before its end.
      const std::uint32_t seen = wakes_.load(std::memory_order_acquire);
      if (static_cast<std::int32_t>(seen - batches) >= 0) return;
      Wait::wait(wakes_, seen, UINT64_MAX);
    }
  }

 private:
  typename Atomics::template atomic<std::uint32_t> wakes_{0};  // futex word
};

using wake_word = basic_wake_word<>;

}  // namespace forebay
