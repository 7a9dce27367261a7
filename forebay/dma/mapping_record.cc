#include "forebay/dma/mapping_record.h"

#include <algorithm>
#include <bit>
#include <new>

namespace forebay {

std::unique_ptr<dma_mapping> dma_mapping::create(
    std::span<const dma_segment> segments, std::span<const std::span<std::byte>> pieces) noexcept {
  std::unique_ptr<dma_mapping> m(new (std::nothrow) dma_mapping);
  if (m == nullptr) return nullptr;
  m->segments.reset(new (std::nothrow) dma_segment[segments.size()]);
  m->pieces.reset(new (std::nothrow) piece[pieces.size()]);
  if (m->segments == nullptr || m->pieces == nullptr) return nullptr;
  std::ranges::copy(segments, m->segments.get());
  m->segment_count = static_cast<std::uint32_t>(segments.size());
  for (const std::span<std::byte> p : pieces) {
    if (p.empty()) continue;
    const auto first = std::bit_cast<std::uintptr_t>(p.data());
    piece* const before = m->piece_count == 0 ? nullptr : &m->pieces[m->piece_count - 1];
    if (before != nullptr && before->first + before->bytes == first) {
      before->bytes += p.size();
    } else {
      m->pieces[m->piece_count++] = {.first = first, .bytes = p.size(), .start = m->bytes};
    }
    m->bytes += p.size();
  }
  return m;
}

std::uint64_t dma_mapping::start_of(std::uint32_t segment) const noexcept {
  std::uint64_t start = 0;
  for (std::uint32_t i = 0; i < segment; ++i) start += segments[i].length;
  return start;
}

bool dma_mapping::is_lent(std::uint64_t start, std::uint64_t length) const noexcept {
  return std::ranges::any_of(all_lent(), [&](const lent& l) { return l.overlaps(start, length); });
}

const dma_mapping::lent* dma_mapping::find_lent(std::uint64_t start,
                                                std::uint64_t length) const noexcept {
  for (const lent& l : all_lent()) {
    if (l.start == start && l.bytes == length) return &l;
  }
  return nullptr;
}

bool dma_mapping::lend(const lent& l) noexcept {
  if (lent_count == lent_room) {
    const std::uint32_t room = lent_room == 0 ? 4 : lent_room * 2;
    std::unique_ptr<lent[]> bigger(new (std::nothrow) lent[room]);
    if (bigger == nullptr) return false;
    std::ranges::copy(all_lent(), bigger.get());
    lents = std::move(bigger);
    lent_room = room;
  }
  lents[lent_count++] = l;
  return true;
}

void dma_mapping::take_back(std::uint64_t start, std::uint64_t length) noexcept {
  if (const lent* const l = find_lent(start, length)) lents[l - lents.get()] = lents[--lent_count];
}

dma_mapping::range dma_mapping::device_range(std::uint32_t number) noexcept {
  const dma_segment& s = segments[number];
  const std::uint64_t first = to_number(s.address);
  return {.first = first,
          .last = first + (std::max(s.length, 1u) - 1),
          .of = this,
          .space = s.region,
          .part = number};
}

dma_mapping::range dma_mapping::cpu_range(std::uint32_t number) noexcept {
  return {.first = pieces[number].first,
          .last = pieces[number].last(),
          .of = this,
          .space = 0,
          .part = number};
}

}  // namespace forebay
