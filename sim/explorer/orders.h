// What a memory order means.
#pragma once

#include <atomic>

namespace forebay::explorer {

inline bool sequential(std::memory_order order) noexcept {
  return order == std::memory_order_seq_cst;
}

inline bool acquires(std::memory_order order) noexcept {
  // acquire, and what is more than it.
  return order == std::memory_order_acquire || order == std::memory_order_acq_rel ||
         sequential(order);
}

inline bool releases(std::memory_order order) noexcept {
  // release, and what is more than it.
  return order == std::memory_order_release || order == std::memory_order_acq_rel ||
         sequential(order);
}

}  // namespace forebay::explorer
