// Saturating reference count, after Linux's refcount_t (include/linux/refcount.h).
//
// Invariants: 0 means "no owner, may be reused"; 1 .. max are real counts; everything above `max`
// is the saturated zone, and a count that enters it by overflow or underflow is set to its middle
// and stays there for ever: the object leaks, which is a report, instead of being freed under a
// holder, which would be a hole. The zone is wide enough that racing increments and decrements
// cannot cross it before one of them sets the count back.
//
// All members may be called from any thread. One locked instruction for get() and put().
#pragma once

#include <atomic>
#include <cstdint>

#include "forebay/base/assert.h"
#include "forebay/base/atomics.h"

namespace forebay {

// How many times any refcount of the process has been caught overflowing, underflowing or being
// taken from zero.
std::uint64_t refcount_misuses() noexcept;

namespace detail {
void refcount_misused(const char* what) noexcept;
}

template <AtomicsPolicy Atomics = real_atomics>
class basic_refcount {
 public:
  static constexpr std::uint32_t max = 0x7fff'ffff;
  static constexpr std::uint32_t saturated = 0xc000'0000;

  explicit basic_refcount(std::uint32_t initial = 1) noexcept : count_(initial) {}

  // Starts a new life with `count` owners; only for who holds the object alone. release: who takes
  // a reference afterwards sees everything written to the object before.
  void set(std::uint32_t count) noexcept { count_.store(count, std::memory_order_release); }

  // A value that may be old by the time it is looked at. relaxed: it orders nothing.
  std::uint32_t value() const noexcept { return count_.load(std::memory_order_relaxed); }

  // One more reference for who already has one. relaxed: the caller's own reference orders what it
  // reads.
  void get() noexcept {
    const std::uint32_t old = count_.fetch_add(1, std::memory_order_relaxed);
    if (old == 0 || old >= max) [[unlikely]]
      saturate(old == 0 ? "get from zero" : "overflow");
  }

  // A reference to an object that may be gone: false if the count is zero.
  bool get_unless_zero() noexcept {
    std::uint32_t old =
        count_.load(std::memory_order_relaxed);  // relaxed: the exchange below decides
    do {
      if (old == 0) return false;
      if (old >= max) [[unlikely]] {
        if (old == max) saturate("overflow");
        return true;
      }
      // acquire: pairs with set(), so that the new holder sees what this life of the object was
      // started with.
    } while (!count_.compare_exchange_weak(old, old + 1, std::memory_order_acquire,
                                           std::memory_order_relaxed));  // relaxed: retried
    return true;
  }

  // Gives a reference back. True exactly once, for the last holder, who then owns the object alone.
  [[nodiscard]] bool put() noexcept {
    // release: what this holder wrote is seen by who frees the object.
    const std::uint32_t old = count_.fetch_sub(1, std::memory_order_release);
    if (old == 1) {
      // acquire: pairs with the releases of all the others. A load, not a fence: the thread
      // sanitizer does not know fences, and only the last holder pays for it.
      static_cast<void>(count_.load(std::memory_order_acquire));
      return true;
    }
    if (old == 0 || old > max) [[unlikely]]
      saturate("underflow");
    return false;
  }

  // From exactly `expected` to zero in one step: true makes the caller the only owner ("freeze").
  // False leaves the count as it was. acq_rel: sees the writes of earlier holders and publishes the
  // caller's own.
  bool freeze(std::uint32_t expected) noexcept {
    return count_.compare_exchange_strong(
        expected, 0, std::memory_order_acq_rel,
        std::memory_order_relaxed);  // relaxed: nothing was learnt
  }

 private:
  void saturate(const char* what) noexcept {
    count_.store(saturated,
                 std::memory_order_relaxed);  // relaxed: the value itself is all that matters
    detail::refcount_misused(what);
  }

  typename Atomics::template atomic<std::uint32_t> count_;
};

using refcount = basic_refcount<>;

}  // namespace forebay
