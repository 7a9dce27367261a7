// Memory for bios: a slab cache in the page cache's arena, with a reserve (as Linux's mempool).
//
//     allocate ──> slab cache ──no frame──> reserve ──empty──> null
//     free ──────> reserve, until it is full again ──────────> slab cache
//
// A full cache has no frames left for slabs, and eviction frees single ones where a slab of bios
// needs neighbours: so the reserve is filled at the start and keeps write-back, which is what makes
// pages evictable, from shrinking to one bio at a time. It never evicts itself. Who gets null has
// something of his own to go on with (see bio_batch).
//
// Any thread. Locks: lock_ guards the reserve and is a leaf.
#pragma once

#include <atomic>
#include <cstddef>

#include "forebay/memory/slab.h"
#include "forebay/os/mutex.h"

namespace forebay {

class bio_pool {
 public:
  // The reserve is smaller if the arena has not enough for it.
  bio_pool(arena& memory, std::size_t object_bytes, std::size_t reserve);
  // Everything must have been given back.
  ~bio_pool();
  bio_pool(const bio_pool&) = delete;
  bio_pool& operator=(const bio_pool&) = delete;

  void* allocate() noexcept FOREBAY_EXCLUDES(lock_);
  void free(void* object) noexcept FOREBAY_EXCLUDES(lock_);

  // Objects that wait in the reserve.
  std::size_t reserved() const noexcept FOREBAY_EXCLUDES(lock_);
  slab_statistics statistics() const noexcept { return slabs_.statistics(); }

 private:
  // What lies in an object of the reserve.
  struct spare {
    spare* next;
  };

  bool to_reserve(void* object) noexcept FOREBAY_EXCLUDES(lock_);
  void* from_reserve() noexcept FOREBAY_EXCLUDES(lock_);

  slab_cache slabs_;
  std::size_t reserve_max_;  // constant after the constructor
  mutable mutex lock_;
  spare* reserve_ FOREBAY_GUARDED_BY(lock_) = nullptr;
  std::atomic<std::size_t> reserved_{0};  // written under lock_
};

}  // namespace forebay
