// A ring between any number of threads that has one of the five policies for when it is full
// (base/exhaustion.h), and counts what it did.
//
//    fill level:    0 …… low mark …………… high mark …………… capacity ……… limit
//
//    tail_drop                                           | refuses
//
//    head_drop                                           | gives up the oldest
//
//    back_pressure       | signal down   | signal up     | refuses
//
//    expand                                              | doubles … | refuses
//
//    block                                               | waits
//
// What is refused stays the caller's; what is given up is handed to the observer, whose it then is.
// The observer is called by the thread that pushes or pops.
//
// Over the lock-free many-to-many ring, but for `expand`, which has a lock (growing_ring.h).
//
// Locks: signal_lock_ guards told_ and orders the observer's calls of pressure(): the last one it
// got says what is so. It is held while the observer is called, which must not push or pop.
#pragma once

#include "forebay/base/exhaustion.h"
#include "forebay/os/mutex.h"
#include "forebay/ring/growing_ring.h"
#include "forebay/ring/waiting_ring.h"

namespace forebay {

template <RingItem T>
class policy_ring_observer {
 public:
  virtual ~policy_ring_observer() = default;
  // head_drop: `item` has been given up.
  virtual void dropped(const T& item) noexcept { static_cast<void>(item); }
  // back_pressure: the level has reached the high mark, or come back to the low one.
  virtual void pressure(bool high) noexcept { static_cast<void>(high); }

 protected:
  policy_ring_observer() = default;
  policy_ring_observer(const policy_ring_observer&) = default;
  policy_ring_observer& operator=(const policy_ring_observer&) = default;
};

template <RingItem T>
class policy_ring {
 public:
  struct options {
    std::size_t capacity = 0;  // items; a power of two
    exhaustion_policy when_full = exhaustion_policy::tail_drop;
    std::size_t limit = 0;   // expand: items; a power of two
    water_marks marks = {};  // back_pressure; {0, 0}: three quarters and one quarter
    policy_ring_observer<T>* observer = nullptr;  // must outlive the ring
  };

  // Errors: EINVAL for a capacity that is no power of two or 1, a limit that does not suit it,
  // marks that are not low < high <= capacity; errc::too_large; ENOMEM.
  static result<std::unique_ptr<policy_ring>> create(options opts) noexcept {
    water_marks& marks = opts.marks;
    if (marks.high == 0 && marks.low == 0) {
      marks = {.high = opts.capacity - opts.capacity / 4, .low = opts.capacity / 4};
    }
    if (opts.when_full == exhaustion_policy::back_pressure &&
        (marks.low >= marks.high || marks.high > opts.capacity)) {
      return fail(EINVAL);
    }
    std::unique_ptr<growing_ring<T>> growing;
    std::unique_ptr<waiting_mpmc_ring<T>> fixed;
    if (opts.when_full == exhaustion_policy::expand) {
      auto made = growing_ring<T>::create(opts.capacity, opts.limit);
      if (!made) return fail(made.error());
      growing = std::move(*made);
    } else {
      auto made = waiting_mpmc_ring<T>::create(opts.capacity);
      if (!made) return fail(made.error());
      fixed = std::move(*made);
    }
    std::unique_ptr<policy_ring> made(new (std::nothrow)
                                          policy_ring(opts, std::move(growing), std::move(fixed)));
    if (made == nullptr) return fail(ENOMEM);
    return made;
  }
  policy_ring(const policy_ring&) = delete;
  policy_ring& operator=(const policy_ring&) = delete;

  // Any thread, all of them.

  // As the policy says. Errors, after which the item is the caller's as before: ENOBUFS if it was
  // dropped (tail_drop; expand at the limit; head_drop if pops that are under way hold the room),
  // EAGAIN if there is no room in spite of the signal, ETIMEDOUT and ECANCELED by `limit`, for
  // which only `block` looks.
  result<> push(const T& item, const wait_limit& limit = {}) noexcept {
    switch (options_.when_full) {
      case exhaustion_policy::head_drop:
        return push_over_the_oldest(item);
      case exhaustion_policy::block:
        return push_and_wait(item, limit);
      case exhaustion_policy::back_pressure:
        if (!try_push(item)) return refuse(counters_.refusals, EAGAIN);
        signal(gate_.added([this] { return size(); }));
        return {};
      default:
        if (!try_push(item)) return refuse(counters_.tail_drops, ENOBUFS);
        return {};
    }
  }

  [[nodiscard]] bool try_pop(T& item) noexcept { return try_pop_some({&item, 1}) != 0; }
  // As many as there are, at most as many as `items` has; how many.
  [[nodiscard]] std::size_t try_pop_some(std::span<T> items) noexcept {
    const std::size_t n =
        growing_ != nullptr ? growing_->try_pop_some(items) : fixed_->try_pop_some(items);
    if (n != 0 && options_.when_full == exhaustion_policy::back_pressure) {
      signal(gate_.taken([this] { return size(); }));
    }
    return n;
  }

  std::size_t size() const noexcept {
    return growing_ != nullptr ? growing_->size() : fixed_->ring().size();
  }
  // Now: `expand` makes it larger.
  std::size_t capacity() const noexcept {
    return growing_ != nullptr ? growing_->capacity() : fixed_->ring().capacity();
  }
  exhaustion_policy policy() const noexcept { return options_.when_full; }
  // back_pressure: whether the signal is up.
  bool pressure() const noexcept { return gate_.raised(); }

  exhaustion_statistics statistics() const noexcept {
    exhaustion_statistics s = counters_.read();
    if (growing_ != nullptr) s.expansions = growing_->expansions();
    return s;
  }

 private:
  policy_ring(const options& opts, std::unique_ptr<growing_ring<T>> growing,
              std::unique_ptr<waiting_mpmc_ring<T>> fixed) noexcept
      : options_(opts), growing_(std::move(growing)), fixed_(std::move(fixed)), gate_(opts.marks) {}

  bool try_push(const T& item) noexcept {
    return growing_ != nullptr ? growing_->try_push_some({&item, 1}) != 0 : fixed_->try_push(item);
  }

  static result<> refuse(std::atomic<std::uint64_t>& counted, int error) noexcept {
    add_to(counted);
    return fail(error);
  }

  // The room of an item that was popped by another thread is there when that thread has read it: a
  // short while, unless it was stopped just then, for which nobody waits and nothing more is given
  // up.
  result<> push_over_the_oldest(const T& item) noexcept {
    back_off pause;
    for (int tries = 0; tries < head_drop_tries; ++tries) {
      if (try_push(item)) return {};
      T oldest{};
      if (fixed_->ring().free_count() == 0 && fixed_->try_pop(oldest)) {
        add_to(counters_.head_drops);
        if (options_.observer != nullptr) options_.observer->dropped(oldest);
      } else {
        pause.wait();
      }
    }
    return refuse(counters_.tail_drops, ENOBUFS);
  }

  result<> push_and_wait(const T& item, const wait_limit& limit) noexcept {
    if (try_push(item)) return {};
    add_to(counters_.waits);
    const result<> r = fixed_->push(item, limit);
    if (!r && r.error() == std::errc::timed_out) add_to(counters_.timeouts);
    if (!r && r.error() == std::errc::operation_canceled) add_to(counters_.cancellations);
    return r;
  }

  void signal(pressure_gate::change c) noexcept FOREBAY_EXCLUDES(signal_lock_) {
    using change = pressure_gate::change;
    if (c == change::none) return;
    if (c != change::lowered) add_to(counters_.raised);
    if (c != change::raised) add_to(counters_.lowered);
    const scoped_lock held(signal_lock_);
    const bool high = gate_.raised();
    if (high == told_) return;  // another thread has told the later news
    told_ = high;
    if (options_.observer != nullptr) options_.observer->pressure(high);
  }

  static constexpr int head_drop_tries = 32;

  const options options_;
  const std::unique_ptr<growing_ring<T>> growing_;     // for expand,
  const std::unique_ptr<waiting_mpmc_ring<T>> fixed_;  // for the others
  pressure_gate gate_;
  exhaustion_counters counters_;
  mutex signal_lock_;
  bool told_ FOREBAY_GUARDED_BY(signal_lock_) = false;
};

}  // namespace forebay
