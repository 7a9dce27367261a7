// What the checks of a domain (debug.h) keep of an active mapping.
//
//    pieces     | p0: 4096      | p1: 512 |  p2: 4096      |     memory, as the CPU sees it
//    bytes      0               4096      4608          8704     one count through all of them
//    segments   | s0: 4608                |  s1: 4096      |     the same, as the device does
//                    | lent   |                                  to the CPU, until returned
//
// Guarded by debug.cc's lock.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <source_location>
#include <span>

#include "forebay/base/list.h"
#include "forebay/dma/range_index.h"
#include "forebay/dma/segment.h"

namespace forebay {

class dma_debug;

enum class dma_kind : std::uint8_t {
  single,
  list,      // of several pieces, as scatter-gather does
  coherent,  // used by both sides at once
};

struct dma_mapping {
  struct piece {
    std::uintptr_t first = 0;
    std::uint64_t bytes = 0;
    std::uint64_t start = 0;  // in the mapping's bytes

    std::uintptr_t last() const noexcept { return first + (bytes - 1); }
  };
  struct lent {
    std::uint64_t start = 0;
    std::uint64_t bytes = 0;
    std::source_location where{};

    bool overlaps(std::uint64_t other_start, std::uint64_t other_bytes) const noexcept {
      return start < other_start + other_bytes && other_start < start + bytes;
    }
  };

  // With copies of `segments` and `pieces`, those that are neighbours in memory made one. Null
  // without memory.
  static std::unique_ptr<dma_mapping> create(std::span<const dma_segment> segments,
                                             std::span<const std::span<std::byte>> pieces) noexcept;

  std::span<const dma_segment> all_segments() const noexcept {
    return {segments.get(), segment_count};
  }
  std::span<const piece> all_pieces() const noexcept { return {pieces.get(), piece_count}; }
  std::span<const lent> all_lent() const noexcept { return {lents.get(), lent_count}; }

  // The bytes before a segment.
  std::uint64_t start_of(std::uint32_t segment) const noexcept;
  bool is_lent(std::uint64_t start, std::uint64_t length) const noexcept;
  // Null, or the one that is exactly this.
  const lent* find_lent(std::uint64_t start, std::uint64_t length) const noexcept;
  // False without memory.
  bool lend(const lent& l) noexcept;
  void take_back(std::uint64_t start, std::uint64_t length) noexcept;

  using range = range_index<dma_mapping>::range;
  range device_range(std::uint32_t number) noexcept;
  range cpu_range(std::uint32_t number) noexcept;

  dma_debug* owner = nullptr;
  dma_kind kind = dma_kind::single;
  dma_direction direction = dma_direction::bidirectional;
  bool guarded = false;  // stray accesses fault
  std::source_location where{};
  std::uint64_t bytes = 0;
  std::uint32_t segment_count = 0;
  std::uint32_t piece_count = 0;
  std::uint32_t lent_count = 0;
  std::uint32_t lent_room = 0;
  std::unique_ptr<dma_segment[]> segments{};
  std::unique_ptr<piece[]> pieces{};
  std::unique_ptr<lent[]> lents{};
  list_node link{};  // in the domain's list
};

}  // namespace forebay
