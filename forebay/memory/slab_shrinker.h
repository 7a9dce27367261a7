// A slab cache's part when memory is short: what its CPU caches and empty slabs hold goes back to
// the arena, where it makes chunks free or is used for something else.
#pragma once

#include "forebay/memory/shrinker.h"
#include "forebay/memory/slab.h"

namespace forebay {

class slab_shrinker final : public shrinker {
 public:
  // An object is made again by its constructor at most: half of a seek.
  explicit slab_shrinker(slab_cache& slabs)
      : shrinker({.name = slabs.name(), .seeks = default_seeks / 2, .batch_bytes = page_bytes}),
        slabs_(slabs) {}

 private:
  std::uint64_t count_bytes() noexcept override {
    const slab_statistics s = slabs_.statistics();
    return slabs_.cached_bytes() + s.empty_slabs * s.slab_bytes;
  }
  // All of it at once: what the CPUs have is collected in any case.
  scan_result scan_bytes(std::uint64_t, shrink_goal) noexcept override {
    return {.freed_bytes = slabs_.shrink(), .stop = true};
  }

  slab_cache& slabs_;
};

}  // namespace forebay
