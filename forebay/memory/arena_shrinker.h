// Shrinker of an arena that has a general_cache in it and nobody else who would shrink it: lets go
// of what the cache keeps for later, and gives the chunks of the arena that are free then to the
// operating system. They come back by themselves, when an allocation needs them.
//
// Frames of this arena are of no use to another one that is short of them, so it has nothing to
// give to who wants frames.
#pragma once

#include "forebay/memory/arena.h"
#include "forebay/memory/general_cache.h"
#include "forebay/memory/shrinker.h"

namespace forebay {

class arena_shrinker final : public shrinker {
 public:
  // Both must outlive it.
  arena_shrinker(std::string name, arena& memory, general_cache& pieces)
      : shrinker({.name = std::move(name),
                  .seeks = default_seeks / 2,
                  .batch_bytes = arena::chunk_bytes,
                  .only_gives_back = true}),
        memory_(memory),
        pieces_(pieces) {}

 private:
  std::uint64_t count_bytes() noexcept override;
  scan_result scan_bytes(std::uint64_t bytes, shrink_goal goal) noexcept override;

  bool is_free(std::uint32_t chunk) const noexcept;

  arena& memory_;
  general_cache& pieces_;
};

}  // namespace forebay
