// The atomics policy. Every lock-free type takes `Atomics` as a template parameter and declares its
// shared words as `typename Atomics::template atomic<T>`, so that the same source runs on the
// processor's atomics (real_atomics) and under a model checker that supplies its own.
#pragma once

#include <atomic>
#include <concepts>

namespace forebay {

struct real_atomics {
  template <typename T>
  using atomic = std::atomic<T>;

  static void fence(std::memory_order order) noexcept { std::atomic_thread_fence(order); }
};

template <typename A>
concept AtomicsPolicy = requires {
  typename A::template atomic<unsigned>;
  typename A::template atomic<void*>;
  A::fence(std::memory_order_seq_cst);
};

static_assert(AtomicsPolicy<real_atomics>);

}  // namespace forebay
