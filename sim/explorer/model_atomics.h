// The atomics policy (forebay/base/atomics.h) of the explorer, with the mutex and the futex that go
// with it. Only inside an execution (explore.h).
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <type_traits>

#include "forebay/base/atomics.h"
#include "forebay/os/mutex.h"
#include "sim/explorer/engine.h"

namespace forebay::explorer {

template <typename T>
std::uint64_t to_bits(const T& value) noexcept {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(std::uint64_t));
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <typename T>
T from_bits(std::uint64_t bits) noexcept {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

struct model_atomics {
  using order = std::memory_order;
  using place = std::source_location;

  template <typename T>
  class atomic {
   public:
    using value_type = T;
    static constexpr bool is_always_lock_free = true;

    atomic() noexcept : atomic(T{}) {}
    // NOLINTNEXTLINE(google-explicit-constructor): as std::atomic
    atomic(T value) noexcept { engine::current().make(word_, to_bits(value)); }
    ~atomic() { engine::current().destroy(word_); }
    atomic(const atomic&) = delete;
    atomic& operator=(const atomic&) = delete;

    T load(order o = order::seq_cst, place at = place::current()) const noexcept {
      return from_bits<T>(engine::current().load(word_, o, at));
    }
    void store(T value, order o = order::seq_cst, place at = place::current()) noexcept {
      engine::current().store(word_, to_bits(value), o, at);
    }
    T exchange(T value, order o = order::seq_cst, place at = place::current()) noexcept {
      return modify([](std::uint64_t, std::uint64_t n) { return n; }, value, o, at);
    }
    T fetch_add(T n, order o = order::seq_cst, place at = place::current()) noexcept {
      return modify([](std::uint64_t a, std::uint64_t b) { return wrap(a + b); }, n, o, at);
    }
    T fetch_sub(T n, order o = order::seq_cst, place at = place::current()) noexcept {
      return modify([](std::uint64_t a, std::uint64_t b) { return wrap(a - b); }, n, o, at);
    }
    T fetch_and(T n, order o = order::seq_cst, place at = place::current()) noexcept {
      return modify([](std::uint64_t a, std::uint64_t b) { return a & b; }, n, o, at);
    }
    T fetch_or(T n, order o = order::seq_cst, place at = place::current()) noexcept {
      return modify([](std::uint64_t a, std::uint64_t b) { return a | b; }, n, o, at);
    }
    T fetch_xor(T n, order o = order::seq_cst, place at = place::current()) noexcept {
      return modify([](std::uint64_t a, std::uint64_t b) { return a ^ b; }, n, o, at);
    }
    bool compare_exchange_weak(T& expected, T desired, order success, order failure,
                               place at = place::current()) noexcept {
      return exchange_if(expected, desired, true, success, failure, at);
    }
    bool compare_exchange_strong(T& expected, T desired, order success, order failure,
                                 place at = place::current()) noexcept {
      return exchange_if(expected, desired, false, success, failure, at);
    }
    bool compare_exchange_weak(T& expected, T desired, order o = order::seq_cst,
                               place at = place::current()) noexcept {
      return exchange_if(expected, desired, true, o, load_part(o), at);
    }
    bool compare_exchange_strong(T& expected, T desired, order o = order::seq_cst,
                                 place at = place::current()) noexcept {
      return exchange_if(expected, desired, false, o, load_part(o), at);
    }

    word& words() noexcept { return word_; }

   private:
    static std::uint64_t wrap(std::uint64_t bits) noexcept {
      if constexpr (sizeof(T) < sizeof(bits)) bits &= (std::uint64_t{1} << 8 * sizeof(T)) - 1;
      return bits;
    }
    static order load_part(order o) noexcept {
      // acquire: what the standard makes of one order for the case of failure.
      if (o == order::acq_rel) return order::acquire;
      return o == order::release ? order::relaxed : o;  // relaxed: see above
    }
    T modify(engine::modify f, T operand, order o, place at) noexcept {
      return from_bits<T>(engine::current().read_modify_write(word_, f, to_bits(operand), o, at));
    }
    bool exchange_if(T& expected, T desired, bool weak, order success, order failure,
                     place at) noexcept {
      std::uint64_t bits = to_bits(expected);
      const bool done = engine::current().compare_exchange(word_, bits, to_bits(desired), weak,
                                                           success, failure, at);
      if (!done) expected = from_bits<T>(bits);
      return done;
    }

    mutable word word_;
  };

  template <typename T>
  class plain {
   public:
    plain() noexcept : value_() { engine::current().make(word_); }
    explicit plain(const T& value) noexcept : value_(value) { engine::current().make(word_); }
    ~plain() { engine::current().destroy(word_); }
    plain(const plain&) = delete;
    plain& operator=(const plain&) = delete;

    T get() const noexcept { return read(); }
    void set(const T& value) noexcept { write() = value; }
    const T& read() const noexcept {
      engine::current().read(word_);
      return value_;
    }
    T& write() noexcept {
      engine::current().write(word_);
      return value_;
    }

   private:
    mutable plain_word word_;
    T value_;
  };

  static void fence(order o, place at = place::current()) noexcept {
    engine::current().fence(o, at);
  }
};

static_assert(AtomicsPolicy<model_atomics>);

// forebay::mutex and scoped_lock (forebay/os/mutex.h) in a model.
class FOREBAY_CAPABILITY("mutex") model_mutex {
 public:
  model_mutex() noexcept { engine::current().make(word_); }
  model_mutex(const model_mutex&) = delete;
  model_mutex& operator=(const model_mutex&) = delete;

  void lock() noexcept FOREBAY_ACQUIRE() { engine::current().lock(word_); }
  bool try_lock() noexcept FOREBAY_TSA(try_acquire_capability(true)) {
    return engine::current().try_lock(word_);
  }
  void unlock() noexcept FOREBAY_RELEASE() { engine::current().unlock(word_); }

 private:
  lock_word word_;
};

class FOREBAY_SCOPED_CAPABILITY model_scoped_lock {
 public:
  explicit model_scoped_lock(model_mutex& m) FOREBAY_ACQUIRE(m) : m_(m) { m_.lock(); }
  ~model_scoped_lock() FOREBAY_RELEASE() { m_.unlock(); }
  model_scoped_lock(const model_scoped_lock&) = delete;
  model_scoped_lock& operator=(const model_scoped_lock&) = delete;

 private:
  model_mutex& m_;
};

// futex_wait and futex_wake (forebay/os/futex.h) in a model, with a clock that stands still but for
// the timeouts of the thread that looks at it: each is a minute.
struct model_futex {
  using place = std::source_location;
  static constexpr std::uint64_t timeout_step_ns = 60'000'000'000;

  static std::uint64_t now_ns() noexcept { return timeout_step_ns * engine::current().timeouts(); }

  static void wait(model_atomics::atomic<std::uint32_t>& word, std::uint32_t expected,
                   std::uint64_t timeout_ns = UINT64_MAX, place at = place::current()) noexcept {
    engine::current().futex_wait(word.words(), expected, timeout_ns != UINT64_MAX, at);
  }
  static void wake(model_atomics::atomic<std::uint32_t>& word, int count = 1,
                   place at = place::current()) noexcept {
    engine::current().futex_wake(word.words(), static_cast<unsigned>(count), at);
  }
};

}  // namespace forebay::explorer
