#include "sim/vfio_domain.h"

#include "forebay/base/assert.h"

namespace forebay {

vfio_domain::vfio_domain(arena& memory, std::uint64_t base)
    : simulated_domain("vfio", {}), memory_(memory), base_(base) {
  FOREBAY_ASSERT(base % io_page_table::huge_bytes == 0);
  // First the device, then the look at the chunks: one that leaves in between is asked for.
  memory_.add_device(*this);
  for (std::uint32_t c = 0; c < memory_.chunk_count(); ++c) {
    const chunk_state s = memory_.info(c).state;
    const scoped_lock held(lock_);
    // One that cannot be had now comes with its first mapping.
    if (s == chunk_state::online || s == chunk_state::isolated) static_cast<void>(translate(c));
  }
}

vfio_domain::~vfio_domain() { memory_.remove_device(*this); }

bool vfio_domain::has_chunk(std::uint32_t chunk) const noexcept {
  const scoped_lock held(lock_);
  return table_.find(iova_of(chunk)).has_value();
}

std::size_t vfio_domain::huge_pages() const noexcept {
  const scoped_lock held(lock_);
  return table_.huge_pages();
}

result<> vfio_domain::translate(std::uint32_t chunk) noexcept {
  if (table_.find(iova_of(chunk))) return {};
  return table_.map(iova_of(chunk), memory_.memory_of(chunk), dma_direction::bidirectional);
}

void vfio_domain::forget(std::uint32_t chunk) noexcept {
  {
    const scoped_lock held(lock_);
    table_.unmap(iova_of(chunk), arena::chunk_bytes);
  }
  memory_.device_forgot(*this, chunk);
}

result<dma_segment> vfio_domain::do_map(std::span<std::byte> memory, dma_direction) noexcept {
  const std::span<std::byte> all = memory_.memory();
  if (memory.data() < all.data() || memory.data() >= all.data() + all.size()) return fail(EFAULT);
  const auto offset = static_cast<std::size_t>(memory.data() - all.data());
  if (memory.size() > all.size() - offset) return fail(EFAULT);
  const scoped_lock held(lock_);
  const auto last = static_cast<std::uint32_t>((offset + memory.size() - 1) / arena::chunk_bytes);
  for (auto c = static_cast<std::uint32_t>(offset / arena::chunk_bytes); c <= last; ++c) {
    if (const auto r = translate(c); !r) return fail(r.error());
  }
  return dma_segment{dma_address{base_ + offset}, static_cast<std::uint32_t>(memory.size()),
                     dma_segment::no_region};
}

std::expected<std::span<std::byte>, dma_fault_reason> vfio_domain::reach(dma_address address,
                                                                         dma_direction) noexcept {
  const auto t = table_.find(to_number(address));
  if (!t) return std::unexpected(dma_fault_reason::not_mapped);
  return t->memory;
}

}  // namespace forebay
