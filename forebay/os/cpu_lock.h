// A lock for what belongs to a CPU, tried without a locked instruction.
//
//    slots[cpu]: | busy | closed | what the lock guards … |
//
// this_cpu() finds the slot of the CPU that the thread runs on and makes it busy in one restartable
// sequence (os/rseq.h): two looks and one store, which on that CPU no other thread can come
// between. So a hit on a per-CPU structure costs two plain stores for its lock, and the code that
// the lock guards is ordinary code: the thread may be preempted or moved while it holds the lock.
// Who then finds the slot busy does not wait but does without: this is a lock that is only tried.
//
// Another CPU takes a slot in its turn: it closes all slots that it wants, calls rseq_fence(),
// after which every sequence has either made its slot busy or will find it closed, and waits until
// they are not busy.
//
// Where there are no restartable sequences the slots belong to threads, several to a slot, and the
// look and the store are one exchange.
//
// Guards: `busy` is written by who holds the lock or takes it; `closed` under close_lock_.
// Lock order: close_lock_ comes before the slots, which are leaves.
#pragma once

#include <atomic>
#include <bit>
#include <chrono>
#include <memory>
#include <new>
#include <thread>
#include <type_traits>
#include <utility>

#include "forebay/base/atomics.h"
#include "forebay/base/stats.h"
#include "forebay/os/cpu.h"
#include "forebay/os/mutex.h"
#include "forebay/os/rseq.h"

namespace forebay {

// The two words of a slot, as the exchange sees them. The explorer runs this part.
template <AtomicsPolicy Atomics = real_atomics>
class basic_cpu_lock_word {
 public:
  template <typename T>
  using atomic = typename Atomics::template atomic<T>;

  bool try_lock() noexcept {
    // relaxed: a look that saves the exchange of a line that another CPU writes.
    if (closed_.load(std::memory_order_relaxed) != 0) return false;
    // acquire: sees what the last holder did.
    return busy_.exchange(1, std::memory_order_acquire) == 0;
  }
  // What a close_and_lock() of somebody else's does once the slot is closed.
  bool try_lock_closed() noexcept {
    return busy_.exchange(1, std::memory_order_acquire) == 0;  // acquire: as in try_lock
  }
  // release: the next holder sees what this one did.
  void unlock() noexcept { busy_.store(0, std::memory_order_release); }

  // relaxed: where it has to be seen, rseq_fence() comes next; elsewhere it only makes room.
  void close() noexcept { closed_.store(1, std::memory_order_relaxed); }
  void open() noexcept {
    // release: a sequence that found the slot not busy before it was taken, and not closed now,
    // sees it as it was left. beyond the explorer: there are no sequences in it.
    closed_.store(0, std::memory_order_release);
  }

 private:
  atomic<std::uint32_t> busy_{0};
  atomic<std::uint32_t> closed_{0};
};

using cpu_lock_word = basic_cpu_lock_word<>;
static_assert(sizeof(cpu_lock_word) == 8);

// One T for each CPU (or for some threads), default-constructed.
template <typename T>
class cpu_locked {
  struct slot;

 public:
  struct options {
    bool restartable_sequences = true;  // false: as where there are none
  };

  explicit cpu_locked(options opts) noexcept
      : per_cpu_(opts.restartable_sequences && rseq_usable()),
        // With fewer slots than threads, threads that share one find it busy.
        slots_(new(std::nothrow) slot[wanted()]),
        count_(slots_ ? wanted() : 0),
        cpu_count_(per_cpu_ ? count_ : 0) {}
  cpu_locked() noexcept : cpu_locked(options{}) {}
  cpu_locked(const cpu_locked&) = delete;
  cpu_locked& operator=(const cpu_locked&) = delete;

  // Holds a slot until it goes. False: there is none to be had just now.
  class holder {
   public:
    holder(holder&& other) noexcept : slot_(std::exchange(other.slot_, nullptr)) {}
    holder& operator=(holder&&) = delete;
    ~holder() {
      if (slot_ != nullptr) slot_->lock.unlock();
    }
    explicit operator bool() const noexcept { return slot_ != nullptr; }
    T* operator->() const noexcept { return &slot_->value; }
    T& operator*() const noexcept { return slot_->value; }

   private:
    friend class cpu_locked;
    explicit holder(slot* s) noexcept : slot_(s) {}
    slot* slot_;
  };

  // The calling thread's slot, if nobody else is in it. Any thread; never waits.
  holder this_cpu() noexcept {
#if FOREBAY_HAVE_RSEQ
    if (cpu_count_ != 0) [[likely]] {
      return holder(static_cast<slot*>(cpu_stack::try_lock(
          slots_.get(), cpu_count_, std::integral_constant<std::size_t, sizeof(slot)>{})));
    }
#endif
    if (count_ == 0) return holder(nullptr);
    slot& s = slots_[thread_number() & (count_ - 1)];
    return holder(s.lock.try_lock() ? &s : nullptr);
  }

  // Calls f(T&) for each slot, holding it, one after the other. f must not wait. Any thread.
  template <typename F>
  void for_each_locked(F f) noexcept FOREBAY_EXCLUDES(close_lock_) {
    const scoped_lock hold(close_lock_);
    for (std::uint32_t i = 0; i < count_; ++i) slots_[i].lock.close();
    if (per_cpu_) rseq_fence();
    for (std::uint32_t i = 0; i < count_; ++i) {
      // A holder is inside for some nanoseconds, unless it has lost its CPU.
      for (unsigned looks = 0; !slots_[i].lock.try_lock_closed(); ++looks) {
        if (looks < looks_in_haste) {
          cpu_relax();
        } else {
          std::this_thread::sleep_for(look_pause);
        }
      }
      f(slots_[i].value);
      slots_[i].lock.unlock();
      slots_[i].lock.open();
    }
  }

  // Calls f(const T&) for each slot without holding it: for what may be read so.
  template <typename F>
  void for_each(F f) const noexcept {
    for (std::uint32_t i = 0; i < count_; ++i) f(std::as_const(slots_[i].value));
  }

  std::uint32_t slot_count() const noexcept { return count_; }
  bool per_cpu() const noexcept { return per_cpu_; }

 private:
  static constexpr unsigned looks_in_haste = 100;
  static constexpr std::chrono::microseconds look_pause{50};

  // The lock's words come first: this_cpu() finds them by the slot's address.
  struct alignas(no_sharing_bytes) slot {
    cpu_lock_word lock;
    T value;
  };

  std::uint32_t wanted() const noexcept {
    return per_cpu_ ? cpu_limit() : std::bit_ceil(2 * cpu_limit());
  }

  const bool per_cpu_;
  std::unique_ptr<slot[]> slots_;
  const std::uint32_t count_;  // a power of two where slots belong to threads
  const std::uint32_t cpu_count_;
  mutex close_lock_;
};

}  // namespace forebay
