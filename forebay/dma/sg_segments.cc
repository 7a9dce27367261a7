#include "forebay/dma/sg_segments.h"

#include <ranges>

#include "forebay/dma/sg_walk.h"

namespace forebay {
namespace {

// Fills an array.
class array_sink {
 public:
  array_sink(std::span<dma_segment> out, std::uint32_t max_segments) noexcept
      : first_(out.data()),
        next_(first_),
        end_(first_ + std::min<std::size_t>(out.size(), max_segments)) {}

  dma_segment* next() noexcept { return next_ == end_ ? nullptr : next_++; }
  static int no_room() noexcept { return EMSGSIZE; }

  const dma_segment* begin() const noexcept { return first_; }
  const dma_segment* end() const noexcept { return next_; }

 private:
  dma_segment* const first_;
  dma_segment* next_;
  dma_segment* const end_;
};

}  // namespace

result<std::size_t> map_segments(dma_domain& domain, std::span<const iovec> pieces, dma_direction d,
                                 std::span<dma_segment> out, std::source_location where) noexcept {
  if (pieces.empty()) return fail(EINVAL);
  array_sink sink(out, domain.limits().max_segments);
  if (const auto r = segment_mapper::map(domain, pieces, d, sink); !r) return fail(r.error());
  const auto n = static_cast<std::size_t>(sink.end() - sink.begin());
  if (domain.checked()) [[unlikely]]
    domain.note_mapped(std::views::transform(pieces, memory_of), out.first(n), d, where);
  return n;
}

void unmap_segments(dma_domain& domain, std::span<const iovec> pieces, dma_direction d,
                    std::span<const dma_segment> segments, std::source_location where) noexcept {
  if (domain.checked() && !domain.note_unmap(segments, d, where)) [[unlikely]]
    return;
  segment_mapper::unmap(domain, pieces, d,
                        segment_reader(segments.data(), segments.data() + segments.size()),
                        SIZE_MAX);
}

}  // namespace forebay
