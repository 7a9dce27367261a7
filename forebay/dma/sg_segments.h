// Scatter-gather without memory of its own: pieces of memory mapped into an array of segments.
//
//    pieces (CPU):        | A: 8 KiB | B: 4 KiB | C: 300 KiB               |
//    segments (device):   |       12 KiB        |     256 KiB     | 44 KiB |
//
// Pieces that the device sees side by side become one segment; what is longer than a segment may
// be, crosses the domain's boundary, or lies in two of the device's regions becomes several. The
// bytes stay in order, so that pieces and segments are two divisions of the same sequence. These
// are the raw functions (Linux's dma_map_sg over an array); sg_list.h has a list and a type for the
// mapping.
#pragma once

#include <cstddef>
#include <source_location>
#include <span>

#include "forebay/base/result.h"
#include "forebay/dma/domain.h"
#include "forebay/os/file.h"

namespace forebay {

// Gives all pieces to the device. Returns how many of `out` it has filled in; each keeps to the
// domain's limits. Errors, nothing is mapped then and `out` has no meaning: EINVAL for no pieces or
// one without bytes; EMSGSIZE if it takes more segments than `out` has room for or the domain's
// max_segments; as dma_domain::map(), but nothing is too large for one segment.
[[nodiscard]] result<std::size_t> map_segments(
    dma_domain& domain, std::span<const iovec> pieces, dma_direction d, std::span<dma_segment> out,
    std::source_location where = std::source_location::current()) noexcept;

// Takes them back: the same pieces, and the segments that map_segments() gave for them. The domain
// is told of each piece as it was mapped, whatever had become of it among the segments.
void unmap_segments(dma_domain& domain, std::span<const iovec> pieces, dma_direction d,
                    std::span<const dma_segment> segments,
                    std::source_location where = std::source_location::current()) noexcept;

}  // namespace forebay
