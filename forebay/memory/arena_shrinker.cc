#include "forebay/memory/arena_shrinker.h"

#include "forebay/os/memory.h"

namespace forebay {

bool arena_shrinker::is_free(std::uint32_t chunk) const noexcept {
  const arena::chunk_info i = memory_.info(chunk);
  return i.state == chunk_state::online && i.free == i.frames;
}

// Memory that has never been used is the operating system's anyhow.
std::uint64_t arena_shrinker::count_bytes() noexcept {
  std::uint64_t bytes = 0;
  for (unsigned i = 0; i < pieces_.classes(); ++i) {
    const slab_statistics s = pieces_.slabs(i).statistics();
    bytes += pieces_.slabs(i).cached_bytes() + s.empty_slabs * s.slab_bytes;
  }
  for (std::uint32_t c = 0; c < memory_.chunk_count(); ++c) {
    if (is_free(c)) bytes += resident_bytes(memory_.memory_of(c));
  }
  return bytes;
}

shrinker::scan_result arena_shrinker::scan_bytes(std::uint64_t bytes, shrink_goal) noexcept {
  pieces_.shrink();
  std::uint64_t freed = 0;
  // The highest first: what is in use gathers in the low ones.
  for (std::uint32_t c = memory_.chunk_count(); c-- != 0 && freed < bytes;) {
    if (!is_free(c)) continue;
    const std::size_t resident = resident_bytes(memory_.memory_of(c));
    if (resident == 0 || !memory_.isolate_chunk(c)) continue;
    if (memory_.give_back(c)) {
      freed += resident;
    } else {
      memory_.undo_isolate(c);  // a frame of it has just been taken
    }
  }
  return {.freed_bytes = freed, .stop = freed < bytes};
}

}  // namespace forebay
