// Free lists: where the numbers of free things wait until somebody wants one.
//
// Pools, slab caches and arenas number what they hand out (buffers, objects, frames) with 32-bit
// items, half as large as pointers. A free list keeps the free ones; it never looks at what an item
// stands for. One interface, several policies; a cpu_cache (cpu_cache.h) may stand before any of
// them and then moves items in batches.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace forebay {

class free_list {
 public:
  virtual ~free_list() = default;

  // Takes free items into `items`, as many as there are room and free ones; returns how many. Any
  // thread.
  virtual std::size_t take(std::span<std::uint32_t> items) noexcept = 0;

  // Gives items back that were taken from here. Any thread; never fails. Neither is called by a
  // cpu_cache with a lock of its own held; but a list that wants to call its cpu_cache from here
  // would wait for itself if it holds the lock that it takes here.
  virtual void give(std::span<const std::uint32_t> items) noexcept = 0;

 protected:
  free_list() = default;
  free_list(const free_list&) = default;
  free_list& operator=(const free_list&) = default;
};

}  // namespace forebay
