// The domain of a device that is driven through VFIO, as a test double: whole arenas are translated
// once, in pages of 2 MiB, and a mapping is no more than a look at that.
//
//    arena:  | chunk 0 | chunk 1 | chunk 2 | …
//    IOVA:   base + 0    + 2 MiB   + 4 MiB           for as long as the arena is there
//
// A translation keeps its chunk in memory. When the arena wants a chunk back (forget()) it is taken
// off; it comes back with the first mapping of memory in it, when it is certain that the chunk is
// in use again.
#pragma once

#include <memory>
#include <vector>

#include "forebay/memory/arena.h"
#include "sim/io_page_table.h"
#include "sim/simulated_domain.h"

namespace forebay {

class vfio_domain final : public simulated_domain, private arena_device {
 public:
  // Translates what the arena has memory for. The arena must outlive the domain.
  explicit vfio_domain(arena& memory, std::uint64_t base = std::uint64_t{1} << 30);
  ~vfio_domain() override;

  bool has_chunk(std::uint32_t chunk) const noexcept;
  std::size_t huge_pages() const noexcept;

 protected:
  result<dma_segment> do_map(std::span<std::byte> memory, dma_direction d) noexcept override;
  void do_unmap(const dma_segment&, dma_direction) noexcept override {}
  std::expected<std::span<std::byte>, dma_fault_reason> reach(
      dma_address address, dma_direction access) noexcept override FOREBAY_REQUIRES(lock_);

 private:
  void forget(std::uint32_t chunk) noexcept override;
  void remember(std::uint32_t) noexcept override {}
  std::uint64_t iova_of(std::uint32_t chunk) const noexcept {
    return base_ + std::uint64_t{chunk} * arena::chunk_bytes;
  }
  result<> translate(std::uint32_t chunk) noexcept FOREBAY_REQUIRES(lock_);

  arena& memory_;
  const std::uint64_t base_;
  io_page_table table_ FOREBAY_GUARDED_BY(lock_);
};

}  // namespace forebay
