// The domain of an AF_XDP socket, as a test double: one area of memory (UMEM) is registered, and a
// device address is an offset in it.
//
// Aligned mode: a descriptor's bytes lie in one chunk, which is the area's boundary. Unaligned mode
// (XDP_UMEM_UNALIGNED_CHUNK_FLAG): anywhere in the area.
//
// Nothing is kept for a mapping: the device may access all of the area at any time.
#pragma once

#include "sim/simulated_domain.h"

namespace forebay {

class simulated_umem_domain final : public simulated_domain {
 public:
  // `chunk_bytes` is a power of two.
  simulated_umem_domain(std::span<std::byte> area, std::uint32_t chunk_bytes, bool aligned)
      : simulated_domain("umem", limits_of(chunk_bytes, aligned)), area_(area) {}

 protected:
  result<dma_segment> do_map(std::span<std::byte> memory, dma_direction) noexcept override {
    if (!reaches(memory)) return fail(EFAULT);
    return dma_segment{dma_address{static_cast<std::uint64_t>(memory.data() - area_.data())},
                       static_cast<std::uint32_t>(memory.size()), dma_segment::no_region};
  }
  void do_unmap(const dma_segment&, dma_direction) noexcept override {}
  bool reaches(std::span<const std::byte> memory) const noexcept override {
    return memory.data() >= area_.data() && memory.data() <= area_.data() + area_.size() &&
           memory.size() <= static_cast<std::size_t>(area_.data() + area_.size() - memory.data());
  }
  std::expected<std::span<std::byte>, dma_fault_reason> reach(dma_address address,
                                                              dma_direction) noexcept override
      FOREBAY_REQUIRES(lock_) {
    if (to_number(address) >= area_.size()) return std::unexpected(dma_fault_reason::not_mapped);
    return area_.subspan(to_number(address));
  }

 private:
  static dma_limits limits_of(std::uint32_t chunk_bytes, bool aligned) noexcept {
    dma_limits l;
    l.max_segment_bytes = chunk_bytes;
    if (aligned) l.boundary_mask = chunk_bytes - 1u;
    return l;
  }

  const std::span<std::byte> area_;
};

}  // namespace forebay
