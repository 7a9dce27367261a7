// The domain of a guest's devices, as a test double: guest-physical addresses, in regions that lie
// anywhere in the host's memory, as a vhost-user front end announces them.
//
//    guest:  | region 0 |     hole     | region 1 |
//    host:        | region 0 | region 1 |             neighbours here need not be neighbours there
//
// A piece that lies in two regions is several segments in a list, and cannot be mapped alone.
// Nothing is kept for a mapping: the guest may access all of its memory at any time.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "sim/simulated_domain.h"

namespace forebay {

class guest_domain final : public simulated_domain {
 public:
  struct region {
    std::uint64_t guest_physical = 0;
    std::span<std::byte> memory;  // in the host
  };

  explicit guest_domain(std::vector<region> regions)
      : simulated_domain("guest", {}), regions_(std::move(regions)) {}

  // Whether all of it lies in the region that it names, as a device would check.
  bool holds(const dma_segment& s) const noexcept {
    if (s.region >= regions_.size()) return false;
    const region& r = regions_[s.region];
    const std::uint64_t offset = to_number(s.address) - r.guest_physical;
    return offset < r.memory.size() && s.length <= r.memory.size() - offset;
  }

 protected:
  result<dma_segment> do_map(std::span<std::byte> memory, dma_direction) noexcept override {
    for (std::uint32_t i = 0; i < regions_.size(); ++i) {
      const std::span<std::byte> r = regions_[i].memory;
      if (memory.data() < r.data() || memory.data() >= r.data() + r.size()) continue;
      const auto offset = static_cast<std::size_t>(memory.data() - r.data());
      const std::size_t bytes = std::min(memory.size(), r.size() - offset);
      return dma_segment{dma_address{regions_[i].guest_physical + offset},
                         static_cast<std::uint32_t>(bytes), i};
    }
    return fail(EFAULT);
  }
  void do_unmap(const dma_segment&, dma_direction) noexcept override {}
  std::expected<std::span<std::byte>, dma_fault_reason> reach(dma_address address,
                                                              dma_direction) noexcept override
      FOREBAY_REQUIRES(lock_) {
    for (const region& r : regions_) {
      const std::uint64_t offset = to_number(address) - r.guest_physical;
      if (offset < r.memory.size()) return r.memory.subspan(offset);
    }
    return std::unexpected(dma_fault_reason::not_mapped);
  }

 private:
  const std::vector<region> regions_;
};

}  // namespace forebay
