// A device that cannot reach the memory itself, but a copy of it in a pool of its own (Linux's
// swiotlb): data moves when a piece is mapped, synced and unmapped, and only then. So a sync that
// was forgotten shows: the other side reads what was there before.
//
//    map              memory -> slots, in every direction, so that a device which writes less than
//                     it might leaves the rest as it was (as Linux does since 5.18)
//    sync_for_device  memory -> slots, if the device reads
//    sync_for_cpu     slots -> memory, if the device writes
//    unmap            slots -> memory, if the device writes; the slots are overwritten
//
// The pool has slots of 2 KiB; a mapping has up to 128 of them side by side, so that nothing longer
// than 256 KiB can be mapped at once. map() fails with ENOSPC when there is no such run.
//
// The device reaches exactly the bytes that are mapped.
#pragma once

#include <cstdint>
#include <vector>

#include "sim/simulated_domain.h"

namespace forebay {

class bounce_domain final : public simulated_domain {
 public:
  static constexpr std::size_t slot_bytes = 2048;
  static constexpr std::size_t max_slots = 128;  // of one mapping

  struct options {
    std::string name = "bounce";
    dma_limits limits{};
    std::size_t pool_bytes = std::size_t{1} << 20;  // a multiple of slot_bytes
    dma_address first{0x1000'0000};
  };

  explicit bounce_domain(const options& opts);

  std::size_t mappings() const noexcept;
  // Unmaps and syncs of what is not mapped: nothing was done.
  std::uint64_t strange_calls() const noexcept;

 protected:
  result<dma_segment> do_map(std::span<std::byte> memory, dma_direction d) noexcept override;
  void do_unmap(const dma_segment& s, dma_direction d) noexcept override;
  void do_sync_for_cpu(const dma_segment& s, std::uint32_t offset, std::uint32_t length,
                       dma_direction d) noexcept override;
  void do_sync_for_device(const dma_segment& s, std::uint32_t offset, std::uint32_t length,
                          dma_direction d) noexcept override;
  std::expected<std::span<std::byte>, dma_fault_reason> reach(
      dma_address address, dma_direction access) noexcept override FOREBAY_REQUIRES(lock_);

 private:
  struct slot {
    std::uint32_t before = 0;     // slots of the same mapping before this one
    std::span<std::byte> memory;  // of the mapping, all of it; empty: the slot is free
    dma_direction direction = dma_direction::bidirectional;
  };
  // Bytes of one mapping, in the pool and where they belong.
  struct place {
    std::span<std::byte> copy;
    std::span<std::byte> memory;
    dma_direction direction = dma_direction::bidirectional;
  };

  place find(dma_address address) noexcept FOREBAY_REQUIRES(lock_);
  template <typename Move>
  void each_place(dma_address address, std::size_t bytes, Move move) noexcept
      FOREBAY_REQUIRES(lock_);

  const dma_address first_;
  std::vector<std::byte> pool_ FOREBAY_GUARDED_BY(lock_);
  std::vector<slot> slots_ FOREBAY_GUARDED_BY(lock_);
  std::size_t mappings_ FOREBAY_GUARDED_BY(lock_) = 0;
  std::uint64_t strange_ FOREBAY_GUARDED_BY(lock_) = 0;
};

}  // namespace forebay
