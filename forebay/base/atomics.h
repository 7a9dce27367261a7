// The atomics policy. Every lock-free type takes `Atomics` as a template parameter and declares its
// shared words as `typename Atomics::template atomic<T>`, so that the same source runs on the
// processor's atomics (real_atomics) and under a model checker that supplies its own.
//
// What is not atomic but is handed from thread to thread by atomics, as a slot of a ring, is a
// `typename Atomics::template plain<T>`: a T on the processor; in a model, one that knows who has
// read and written it, so that two accesses with no order between them are found.
#pragma once

#include <atomic>
#include <concepts>
#include <type_traits>

namespace forebay {

struct real_atomics {
  template <typename T>
  using atomic = std::atomic<T>;

  // T is trivially copyable. Every call is one access, by the thread that owns the object now.
  template <typename T>
  class plain {
   public:
    static_assert(std::is_trivially_copyable_v<T>);

    plain() = default;
    explicit plain(const T& value) noexcept : value_(value) {}

    T get() const noexcept { return value_; }
    void set(const T& value) noexcept { value_ = value; }

    // To read or write it in place. A model takes the call for the access, so what is done through
    // the reference has to be over before ownership goes to another thread.
    const T& read() const noexcept { return value_; }
    T& write() noexcept { return value_; }

   private:
    T value_{};
  };

  static void fence(std::memory_order order) noexcept { std::atomic_thread_fence(order); }
};

template <typename A>
concept AtomicsPolicy =
    requires(typename A::template plain<unsigned> p, const typename A::template plain<unsigned> c) {
      typename A::template atomic<unsigned>;
      typename A::template atomic<void*>;
      A::fence(std::memory_order_seq_cst);
      requires std::default_initializable<typename A::template plain<unsigned>>;
      p.set(1u);
      { c.get() } -> std::same_as<unsigned>;
      { c.read() } -> std::same_as<const unsigned&>;
      { p.write() } -> std::same_as<unsigned&>;
    };

static_assert(AtomicsPolicy<real_atomics>);

}  // namespace forebay
