#include "forebay/dma/coherent_buffer.h"

#include <algorithm>
#include <bit>

namespace forebay {

result<coherent_buffer> coherent_buffer::create(arena& memory, dma_domain& domain,
                                                std::size_t bytes,
                                                std::source_location where) noexcept {
  if (bytes == 0) return fail(EINVAL);
  if (bytes > page_bytes << arena::max_order) return fail(errc::too_large);
  const auto order = static_cast<unsigned>(std::bit_width((bytes - 1) >> page_shift));
  page* const block = memory.allocate(order, placement::fixed);
  if (block == nullptr) return fail(ENOMEM);
  page_ref frames = page_ref::adopt(*block);
  const std::span<std::byte> all(frames->data(), bytes);
  std::ranges::fill(all, std::byte{0});
  const result<dma_segment> s = domain.map_coherent(all, where);
  if (!s) return fail(s.error());
  return coherent_buffer(std::move(frames), domain, *s);
}

}  // namespace forebay
