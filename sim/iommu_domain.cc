#include "sim/iommu_domain.h"

#include <bit>

#include "forebay/base/assert.h"

namespace forebay {

iommu_domain::iommu_domain(const options& opts)
    : simulated_domain(opts.name, opts.limits, dma_guardable::none, opts.checks),
      opts_(opts),
      used_(opts.iova_bytes / page_bytes),
      pages_at_(opts.iova_bytes / page_bytes) {
  FOREBAY_ASSERT(opts.first_iova % io_page_table::huge_bytes == 0 &&
                 opts.iova_bytes % page_bytes == 0 &&
                 opts.first_iova + opts.iova_bytes <= io_page_table::address_limit);
  unmapped_.reserve(opts.lazy_unmaps);
}

// The first run of free pages whose number, modulo `align`, is `phase`.
std::size_t iommu_domain::find_free(std::size_t pages, std::size_t align,
                                    std::size_t phase) const noexcept {
  for (std::size_t first = phase; pages <= used_.size() && first <= used_.size() - pages;) {
    std::size_t n = 0;
    while (n < pages && !used_[first + n]) ++n;
    if (n == pages) return first;
    // The first number with the phase that is after the page in use.
    first += (n + align) / align * align;
  }
  return no_place;
}

void iommu_domain::mark(std::size_t first, std::size_t pages, bool used) noexcept {
  for (std::size_t i = 0; i < pages; ++i) used_[first + i] = used;
  stats_.iova_bytes += used ? pages * page_bytes : -(pages * page_bytes);
}

result<dma_segment> iommu_domain::do_map(std::span<std::byte> memory, dma_direction d) noexcept {
  const auto address = std::bit_cast<std::uintptr_t>(memory.data());
  const std::size_t offset = address % page_bytes;
  const std::size_t pages = (offset + memory.size() + page_bytes - 1) / page_bytes;
  constexpr std::size_t huge_pages = io_page_table::huge_bytes / page_bytes;
  const bool huge = opts_.huge_pages && pages >= huge_pages;

  const scoped_lock held(lock_);
  if (stats_.mappings == opts_.max_mappings) return fail(ENOSPC);
  const std::size_t first = huge ? find_free(pages, huge_pages, address / page_bytes % huge_pages)
                                 : find_free(pages, 1, 0);
  if (first == no_place) return fail(ENOSPC);
  const std::uint64_t iova = opts_.first_iova + first * page_bytes;
  const std::span<std::byte> whole(memory.data() - offset, pages * page_bytes);
  if (const auto r = table_.map(iova, whole, d, opts_.huge_pages); !r) return fail(r.error());
  mark(first, pages, true);
  pages_at_[first] = static_cast<std::uint32_t>(pages);
  ++stats_.mappings;
  return dma_segment{dma_address{iova + offset}, static_cast<std::uint32_t>(memory.size()),
                     dma_segment::no_region};
}

void iommu_domain::do_unmap(const dma_segment& s, dma_direction) noexcept {
  const std::uint64_t from_first = to_number(s.address) - opts_.first_iova;
  const std::size_t first = from_first / page_bytes;
  const std::size_t pages = (from_first % page_bytes + s.length + page_bytes - 1) / page_bytes;

  const scoped_lock held(lock_);
  if (first >= pages_at_.size() || pages_at_[first] != pages) {
    ++stats_.strange_unmaps;
    return;
  }
  table_.unmap(opts_.first_iova + first * page_bytes, pages * page_bytes);
  pages_at_[first] = 0;
  --stats_.mappings;
  if (opts_.lazy_unmaps != 0) {
    unmapped_.emplace_back(first, pages);
    if (unmapped_.size() == opts_.lazy_unmaps) flush_all();
    return;
  }
  mark(first, pages, false);
  ++stats_.invalidations;
  for (cached& c : iotlb_) {
    const std::uint64_t number = c.iova_page - opts_.first_iova / page_bytes;
    if (number >= first && number < first + pages) c = {};
  }
}

void iommu_domain::flush_all() noexcept {
  for (const auto& [first, pages] : unmapped_) mark(first, pages, false);
  unmapped_.clear();
  iotlb_.fill({});
  ++stats_.invalidations;
}

void iommu_domain::flush() noexcept {
  const scoped_lock held(lock_);
  flush_all();
}

std::expected<std::span<std::byte>, dma_fault_reason> iommu_domain::reach(
    dma_address address, dma_direction access) noexcept {
  const std::uint64_t iova = to_number(address);
  const std::uint64_t offset = iova % page_bytes;
  cached& c = slot_of(iova);
  if (c.iova_page == iova / page_bytes) {
    ++stats_.hits;
  } else {
    ++stats_.misses;
    const auto t = table_.find(iova - offset);
    if (!t) return std::unexpected(dma_fault_reason::not_mapped);
    c = {iova / page_bytes, t->memory.data(), t->reads, t->writes};
  }
  if ((device_reads(access) && !c.reads) || (device_writes(access) && !c.writes))
    return std::unexpected(dma_fault_reason::not_permitted);
  return std::span(c.memory + offset, page_bytes - offset);
}

iommu_domain::statistics iommu_domain::stats() const noexcept {
  const scoped_lock held(lock_);
  statistics s = stats_;
  s.pages = table_.pages();
  s.huge_pages = table_.huge_pages();
  return s;
}

}  // namespace forebay
