// Forebay's own rings as the measuring loop wants them.
#pragma once

#include <utility>

#include "forebay/ring/mpmc_ring.h"
#include "forebay/ring/spsc_ring.h"
#include "tools/forebay/ring_pipe.h"

namespace forebay::tool {

template <typename Ring>
class piped_ring {
 public:
  explicit piped_ring(std::unique_ptr<Ring> ring) noexcept : ring_(std::move(ring)) {}

  bool push(std::span<void* const> items) noexcept {
    return items.size() == 1 ? ring_->try_push(items[0]) : ring_->try_push_all(items);
  }
  bool pop(std::span<void*> items) noexcept {
    return items.size() == 1 ? ring_->try_pop(items[0]) : ring_->try_pop_all(items);
  }

 private:
  const std::unique_ptr<Ring> ring_;
};

using piped_spsc = piped_ring<spsc_ring<void*>>;
using piped_mpmc = piped_ring<mpmc_ring<void*>>;

}  // namespace forebay::tool
