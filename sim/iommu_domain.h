// A device behind a simulated IOMMU: it sees memory at I/O virtual addresses (IOVA) that are made
// for each mapping, and can do there only what the mapping's direction says.
//
//    map:    memory  ->  its pages of 4 KiB (2 MiB where it has whole ones)  ->  the first free
//    IOVA
//            range that is long enough, with the same offset in the page  ->  page table
//    access: IOVA -> IOTLB -> page table -> memory, or a fault
//
// As with real ones, the translation is by pages: a buffer that begins or ends within a page gives
// the device the rest of that page too. Who must not have that uses whole pages, or a
// bounce_domain.
//
// Unmapping takes the translation off the table and out of the IOTLB (strict mode); or out of the
// IOTLB later, for several mappings at once (lazy mode, Linux's iommu.strict=0): until then the
// device still reaches memory that it has been unmapped from, and the IOVA is not used again.
//
// map() fails with ENOSPC when there is no IOVA range, or max_mappings are there.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "sim/io_page_table.h"
#include "sim/simulated_domain.h"

namespace forebay {

class iommu_domain final : public simulated_domain {
 public:
  struct options {
    std::string name = "iommu";
    dma_limits limits{};
    std::uint64_t first_iova = std::uint64_t{1} << 32;  // a multiple of 2 MiB
    std::size_t iova_bytes = std::size_t{256} << 20;    // a multiple of 256 KiB
    std::size_t max_mappings = SIZE_MAX;
    bool huge_pages = true;
    std::size_t lazy_unmaps = 0;  // so many, then the IOTLB is flushed; 0: strict
    dma_check_options checks{};
  };

  explicit iommu_domain(const options& opts);

  // Lazy mode: now.
  void flush() noexcept;

  struct statistics {
    std::size_t mappings = 0;
    std::size_t pages = 0;       // translations of 4 KiB
    std::size_t huge_pages = 0;  // of 2 MiB
    std::size_t iova_bytes = 0;  // in use, or not to be used yet
    std::uint64_t hits = 0;      // of the IOTLB
    std::uint64_t misses = 0;
    std::uint64_t invalidations = 0;   // of a mapping's translations, and flushes of all
    std::uint64_t strange_unmaps = 0;  // of what is no mapping: nothing was done
  };
  statistics stats() const noexcept;

 protected:
  result<dma_segment> do_map(std::span<std::byte> memory, dma_direction d) noexcept override;
  void do_unmap(const dma_segment& s, dma_direction d) noexcept override;
  std::expected<std::span<std::byte>, dma_fault_reason> reach(
      dma_address address, dma_direction access) noexcept override FOREBAY_REQUIRES(lock_);

 private:
  static constexpr std::size_t page_bytes = io_page_table::page_bytes;
  static constexpr std::size_t no_place = SIZE_MAX;

  struct cached {
    std::uint64_t iova_page = UINT64_MAX;
    std::byte* memory = nullptr;
    bool reads = false;
    bool writes = false;
  };

  std::size_t find_free(std::size_t pages, std::size_t align, std::size_t phase) const noexcept
      FOREBAY_REQUIRES(lock_);
  void mark(std::size_t first, std::size_t pages, bool used) noexcept FOREBAY_REQUIRES(lock_);
  void flush_all() noexcept FOREBAY_REQUIRES(lock_);
  cached& slot_of(std::uint64_t iova) noexcept FOREBAY_REQUIRES(lock_) {
    return iotlb_[(iova / page_bytes) % iotlb_.size()];
  }

  const options opts_;
  io_page_table table_ FOREBAY_GUARDED_BY(lock_);
  std::vector<bool> used_ FOREBAY_GUARDED_BY(lock_);               // pages of the IOVA range
  std::vector<std::uint32_t> pages_at_ FOREBAY_GUARDED_BY(lock_);  // of the mapping whose first
                                                                   // page this is; 0: none is
  std::vector<std::pair<std::size_t, std::size_t>> unmapped_
      FOREBAY_GUARDED_BY(lock_);  // lazily:
                                  // first page, pages
  std::array<cached, 64> iotlb_ FOREBAY_GUARDED_BY(lock_){};
  statistics stats_ FOREBAY_GUARDED_BY(lock_);
};

}  // namespace forebay
