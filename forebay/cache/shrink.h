// The page cache's part when memory is short: empties chunks of its arena and gives them back.
//
//   candidates ──> the cheapest ──> isolate ──> vacate each frame ──> give back
//                                                  │   evict: clean and not used of late
//                                                  │   move:  dirty or in use of late, to a frame
//                                                  v          elsewhere that a colder page had
//                                               undo, if a page is in somebody's hands
//
// Pages are chosen by where they lie, not by their age: 2 MiB go back only as a whole. So that a
// hot page or a dirty one does not have to go for its neighbours, it is moved, which needs no I/O
// (Linux's memory compaction and contiguous allocation do the same, mm/compaction.c). The frame
// that it moves to comes from the ordinary eviction.
//
// Cheapest is the chunk with the fewest pages to move or to evict, among a few candidates.
//
// Locks: none of its own. One call at a time, which the registry sees to.
#pragma once

#include <array>
#include <span>

#include "forebay/cache/page_cache.h"
#include "forebay/memory/shrinker.h"

namespace forebay {

class page_cache_shrinker final : public shrinker {
 public:
  explicit page_cache_shrinker(page_cache& cache)
      : shrinker({.name = "page cache", .seeks = default_seeks, .batch_bytes = arena::chunk_bytes}),
        cache_(cache) {}

 private:
  // Half of them are those that the arena proposes, the others come from the hand, so that chunks
  // that cannot be emptied do not hold up the rest.
  static constexpr std::size_t candidates_max = 16;
  // A page in somebody's hands is mostly out of them a moment later: so often it is looked for.
  static constexpr unsigned attempts = 3;

  std::uint64_t count_bytes() noexcept override;
  scan_result scan_bytes(std::uint64_t bytes, shrink_goal goal) noexcept override;

  std::size_t find_candidates(std::span<std::uint32_t> out) noexcept;
  bool give_a_chunk_back() noexcept;
  void empty(std::uint32_t chunk) noexcept;
  bool vacate_frames(std::uint32_t chunk, bool only_busy, page*& spare) noexcept;
  unsigned cost_of(std::uint32_t chunk) const noexcept;

  page_cache& cache_;
  std::uint32_t hand_ = 0;  // a chunk
};

}  // namespace forebay
