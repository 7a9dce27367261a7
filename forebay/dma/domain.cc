// What a domain with checks does around each call; without them nothing here is called but the
// constructor and the destructor.

#include "forebay/dma/domain.h"

#include "forebay/dma/debug.h"

namespace forebay {

dma_domain::dma_domain(std::string name, const dma_limits& limits, dma_guardable guardable,
                       const dma_check_options& checks) noexcept
    : name_(std::move(name)),
      limits_(limits),
      debug_(dma_debug::create(name_, limits_, guardable, checks)),
      plain_bytes_(checked() ? 0 : std::min(limits.max_segment_bytes, limits.max_mapping_bytes)) {}

dma_domain::~dma_domain() = default;

result<dma_segment> dma_domain::map_specially(std::span<std::byte> memory, dma_direction d,
                                              bool coherent, std::source_location where) noexcept {
  const bool possible = !checked() || debug_->to_be_mapped(memory, d, reaches(memory), where);
  if (memory.empty()) return fail(EINVAL);
  if (!possible) return fail(EFAULT);
  if (memory.size() > std::min(limits_.max_segment_bytes, limits_.max_mapping_bytes))
    return fail(errc::too_large);
  const result<dma_segment> s = map_plainly(memory, d);
  if (s && checked()) {
    debug_->mapped(coherent ? dma_kind::coherent : dma_kind::single, {&*s, 1}, {&memory, 1}, d,
                   where);
  }
  return s;
}

void dma_domain::unmap_checked(const dma_segment& s, dma_direction d, bool coherent,
                               std::source_location where) noexcept {
  const auto was =
      debug_->to_be_unmapped(coherent ? dma_kind::coherent : dma_kind::single, {&s, 1}, d, where);
  if (was) do_unmap(was->segment, was->direction);
}

void dma_domain::lend_checked(const dma_segment& s, std::uint32_t offset, std::uint32_t length,
                              dma_direction d, std::source_location where) noexcept {
  if (debug_->to_be_lent(s, offset, length, d, where)) do_sync_for_cpu(s, offset, length, d);
}

void dma_domain::return_checked(const dma_segment& s, std::uint32_t offset, std::uint32_t length,
                                dma_direction d, std::source_location where) noexcept {
  if (!debug_->to_be_returned(s, offset, length, d, where)) return;
  do_sync_for_device(s, offset, length, d);
  debug_->returned(s, offset, length);
}

void dma_domain::access_checked(const dma_segment& s, std::uint32_t offset, std::uint32_t length,
                                dma_direction access, std::source_location where) const noexcept {
  debug_->access(s, offset, length, access, where);
}

void dma_domain::list_mapped(std::span<const std::span<std::byte>> pieces, bool complete,
                             std::span<const dma_segment> segments, dma_direction d,
                             std::source_location where) noexcept {
  if (!complete) return debug_->no_memory_for_record();
  bool possible = true;
  for (const std::span<std::byte> p : pieces)
    possible = debug_->to_be_mapped(p, d, reaches(p), where) && possible;
  if (possible) debug_->mapped(dma_kind::list, segments, pieces, d, where);
}

bool dma_domain::list_unmapped(std::span<const dma_segment> segments, bool complete,
                               dma_direction d, std::source_location where) noexcept {
  if (!complete) debug_->no_memory_for_record();
  return debug_->to_be_unmapped(dma_kind::list, segments, d, where).has_value();
}

}  // namespace forebay
