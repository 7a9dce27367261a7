// The domain of a device that uses the processor's own addresses: the kernel behind a plain system
// call, a device in this process. Nothing to look up, nothing to keep, no failures.
#pragma once

#include <bit>

#include "forebay/dma/domain.h"

namespace forebay {

class identity_domain final : public dma_domain {
 public:
  explicit identity_domain(std::string name, const dma_limits& limits = {},
                           const dma_check_options& checks = {}) noexcept
      : dma_domain(std::move(name), limits, dma_guardable::none, checks) {}

 protected:
  result<dma_segment> do_map(std::span<std::byte> memory, dma_direction) noexcept override {
    return dma_segment{dma_address{std::bit_cast<std::uintptr_t>(memory.data())},
                       static_cast<std::uint32_t>(memory.size()), dma_segment::no_region};
  }
  void do_unmap(const dma_segment&, dma_direction) noexcept override {}
};

}  // namespace forebay
