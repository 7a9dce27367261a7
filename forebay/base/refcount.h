// Saturating reference counts, after Linux's refcount_t (include/linux/refcount.h).
//
//   0          1 ................ max   max + 1 ..... saturated ..... 2^32 - 1
//   no owner   real counts              the saturated zone: stays there for ever
//
// Invariants: 0 means "no owner, may be reused"; 1 .. max are real counts. A count that would leave
// these by overflow or underflow is set to the middle of the saturated zone and stays there: the
// object leaks, which is a report, instead of being freed under a holder, which would be a hole.
// The zone is wide enough that racing increments and decrements cannot cross it before one of them
// sets the count back.
//
// The five kinds of misuse are Linux's. Each is counted (refcount_misuses), and the first of each
// kind is printed. A count is counted once, when it leaves the real ones: what is done to it
// afterwards only puts it back to the middle.
//
// Two types, which differ in who may look:
//
//   refcount         anybody may try get_unless_zero() at any time, also on an object that is just
//                    being given up (the page cache's lookup). One locked instruction for each get
//                    and each put.
//   holder_refcount  only a holder takes references. A holder that sees a count of 1 is then alone
//                    for good, and its put is a load and a store, without a locked instruction.
//
// All members may be called from any thread.
#pragma once

#include <atomic>
#include <cstdint>

#include "forebay/base/atomics.h"

namespace forebay {

enum class refcount_misuse : std::uint8_t {
  add_not_zero_overflow,  // get_unless_zero() past the maximum
  add_overflow,           // get() past the maximum
  add_use_after_free,     // get() from zero: the caller holds nothing
  sub_use_after_free,     // put() at zero: more puts than gets
  dec_leak,               // put_not_last() was the last, and nobody will free the object
};
inline constexpr unsigned refcount_misuse_kinds = 5;

const char* to_string(refcount_misuse kind) noexcept;

// How many counts of the process have been caught at this, and at any of them.
std::uint64_t refcount_misuses(refcount_misuse kind) noexcept;
std::uint64_t refcount_misuses() noexcept;

namespace detail {
// Counts one misuse of the count at `where`, which held `value`, and prints the first of its kind.
[[gnu::cold]] void refcount_misused(refcount_misuse kind, const void* where,
                                    std::uint32_t value) noexcept;
}  // namespace detail

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
    // 0 and max and above, in one comparison.
    if (old - 1 >= max - 1) [[unlikely]]
      saturate(old == 0 ? refcount_misuse::add_use_after_free : refcount_misuse::add_overflow, old);
  }

  // A reference to an object that may be gone: false if the count is zero.
  [[nodiscard]] bool get_unless_zero() noexcept {
    std::uint32_t old =
        count_.load(std::memory_order_relaxed);  // relaxed: the exchange below decides
    do {
      if (old == 0) return false;
      if (old >= max) [[unlikely]] {
        saturate(refcount_misuse::add_not_zero_overflow, old);
        return true;
      }
      // acquire: pairs with set(), so that the new holder sees what this life of the object was
      // started with.
    } while (!count_.compare_exchange_weak(old, old + 1, std::memory_order_acquire,
                                           std::memory_order_relaxed));  // relaxed: retried
    return true;
  }

  // The same for `n` references at once, which are few against the maximum: none, if the count is
  // zero.
  [[nodiscard]] bool get_unless_zero(std::uint32_t n) noexcept {
    std::uint32_t old =
        count_.load(std::memory_order_relaxed);  // relaxed: the exchange below decides
    do {
      if (old == 0) return false;
      if (old > max - n) [[unlikely]] {
        saturate(refcount_misuse::add_not_zero_overflow, old);
        return true;
      }
      // acquire: as for one reference.
    } while (!count_.compare_exchange_weak(old, old + n, std::memory_order_acquire,
                                           std::memory_order_relaxed));  // relaxed: retried
    return true;
  }

  // Gives `n` references back, at least one; true as put().
  [[nodiscard]] bool put(std::uint32_t n) noexcept {
    // release: as in put().
    const std::uint32_t old = count_.fetch_sub(n, std::memory_order_release);
    if (old == n) {
      static_cast<void>(count_.load(std::memory_order_acquire));  // acquire: as in put()
      return true;
    }
    if (old < n || old > max) [[unlikely]]
      saturate(refcount_misuse::sub_use_after_free, old);
    return false;
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
    if (old - 1 >= max) [[unlikely]]
      saturate(refcount_misuse::sub_use_after_free, old);
    return false;
  }

  // Gives a reference back by who knows of another holder, and so needs not look whether it was the
  // last (Linux's refcount_dec).
  void put_not_last() noexcept {
    // release: as in put().
    const std::uint32_t old = count_.fetch_sub(1, std::memory_order_release);
    if (old - 2 >= max - 1) [[unlikely]]
      saturate(refcount_misuse::dec_leak, old);
  }

  // From exactly `expected` to zero in one step: true makes the caller the only owner ("freeze").
  // False leaves the count as it was. acquire: sees the writes of earlier holders. It publishes
  // nothing: who finds the 0 has no reference and reads no more.
  [[nodiscard]] bool freeze(std::uint32_t expected) noexcept {
    return count_.compare_exchange_strong(
        expected, 0, std::memory_order_acquire,
        std::memory_order_relaxed);  // relaxed: nothing was learnt
  }

 protected:
  // put() of a count that nobody takes a reference from without having one.
  [[nodiscard]] bool put_by_holders() noexcept { return put_by_last_holder() || put(); }

  // Whether the caller, who has a reference, is alone.
  [[nodiscard]] bool only_holder() const noexcept {
    // acquire: 1 is the caller's own reference, so all the others have been put; pairs with their
    // releases, since between two stores by an only holder, who has seen all that was before, the
    // count is one chain of read-modify-writes.
    return count_.load(std::memory_order_acquire) == 1;
  }

  // relaxed: nobody else looks before the caller has given him the second reference.
  void set_to_two() noexcept { count_.store(2, std::memory_order_relaxed); }

  [[nodiscard]] bool put_by_last_holder() noexcept {
    if (!only_holder()) return false;
    count_.store(0, std::memory_order_relaxed);  // relaxed: nobody else may look any more
    return true;
  }

 private:
  // Puts the count, which held `old` before this operation, to the middle of the saturated zone;
  // reports it unless it was in the zone already.
  [[gnu::cold, gnu::noinline]] void saturate(refcount_misuse kind, std::uint32_t old) noexcept {
    count_.store(saturated,
                 std::memory_order_relaxed);  // relaxed: the value itself is all that matters
    if (old <= max) detail::refcount_misused(kind, this, old);
  }

  typename Atomics::template atomic<std::uint32_t> count_;
};

using refcount = basic_refcount<>;

// A count that only its holders change: there is no get_unless_zero() and no freeze().
//
// Who sees a count of 1 is alone, for he holds that one: nobody else can change it under him. So
// his last put(), and a get that looks first, are a load and a store.
//
// With those a put that sees 1 could not skip the locked instruction: between its load and its
// store a lookup may raise the count to 2, the store would wipe that out, and the object be freed
// under the reader. Without them a count of 1 can be raised only by the one who holds it, and that
// is the caller, who is just giving it up. So this is for objects that nobody finds but through a
// holder: buffers, bios, request contexts; never for a page, nor for what a weak reference leads to
// (weak_ref.h has its own way).
//
// The price is that a put which is not the last loads the count before it changes it; on a count
// that many CPUs change at once that costs a second trip of the cache line.
template <AtomicsPolicy Atomics = real_atomics>
class basic_holder_refcount : private basic_refcount<Atomics> {
  using base = basic_refcount<Atomics>;

 public:
  using base::base;
  using base::get;
  using base::max;
  using base::only_holder;
  using base::put_not_last;
  using base::saturated;
  using base::set;
  using base::value;

  // get() for who is probably alone, and then takes no locked instruction either.
  void get_likely_alone() noexcept {
    if (base::only_holder()) {
      base::set_to_two();
    } else {
      base::get();
    }
  }

  // Gives a reference back. True exactly once, for the last holder, who then owns the object alone.
  [[nodiscard]] bool put() noexcept { return base::put_by_holders(); }

  // True for the last holder, who owns the object alone from now on, as if by put(); but the count
  // rests at 1 for its next life. False, and nothing has happened, if there are others.
  [[nodiscard]] bool rest_if_last() noexcept { return base::only_holder(); }

  // The same for who means to be the last holder: false, and nothing has happened, if it is not.
  [[nodiscard]] bool put_if_last() noexcept { return base::put_by_last_holder(); }
};

using holder_refcount = basic_holder_refcount<>;

}  // namespace forebay
