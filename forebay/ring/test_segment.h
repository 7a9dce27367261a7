// Segments for tests of what lies above the domains: memory under the process's own address, as
// identity_domain maps it.
#pragma once

#include <array>
#include <bit>
#include <cstddef>

#include "forebay/dma/segment.h"

namespace forebay {

inline dma_segment segment_of(const void* data, std::size_t bytes) {
  return {dma_address{std::bit_cast<std::uintptr_t>(data)}, static_cast<std::uint32_t>(bytes),
          dma_segment::no_region};
}

// For a request, which wants a span of them.
inline std::array<dma_segment, 1> one_segment(const void* data, std::size_t bytes) {
  return {segment_of(data, bytes)};
}

}  // namespace forebay
