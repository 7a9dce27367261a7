// Slab allocator: caches of equal objects in page frames (Bonwick 1994).
//
//   slab of one block of frames:
//     | header | free stack: u16 × count | object 0 | object 1 | …
//
// The list of free objects lies in the header, not in the objects: a free object keeps its
// contents. That lets a cache be type-stable: its constructor has run on every object once, slabs
// are never given back while it lives, and a reader that comes late by a stale handle still reads
// an object of that type (which it must then check by other means).
//
// Objects are also known by a 31-bit handle, their distance from the arena's start in units of 64
// bytes, for indexes that want to be half as large as pointers.
//
// Locks: lock_ guards the lists and every header; the arena's lock is taken under it, nothing else.
#pragma once

#include <cstdint>
#include <new>
#include <string>
#include <utility>

#include "forebay/memory/arena.h"

namespace forebay {

struct slab_statistics {
  std::uint64_t objects_in_use = 0;
  std::uint64_t objects_total = 0;  // in all slabs
  std::uint64_t slabs = 0;
  std::uint64_t slab_bytes = 0;  // of one slab
  std::uint64_t failures = 0;    // allocations refused because the arena was empty
};

class slab_cache {
 public:
  struct options {
    std::string name;
    std::size_t object_bytes = 0;  // 1 to 2048
    std::size_t alignment = 64;    // power of two, at least 64, so that every object has a handle
    bool type_stable = false;
    void (*construct)(void*) = nullptr;  // run once on every object of a new slab
  };

  slab_cache(arena& memory, options opts);
  // Every object must have been given back.
  ~slab_cache();
  slab_cache(const slab_cache&) = delete;
  slab_cache& operator=(const slab_cache&) = delete;

  // One object, as its constructor or last user left it; null when the arena has no frame for
  // another slab. Any thread.
  void* allocate() noexcept;

  // Gives back an object of this cache.
  void free(void* object) noexcept;

  std::uint32_t handle_of(const void* object) const noexcept {
    return static_cast<std::uint32_t>((static_cast<const std::byte*>(object) - base_) >>
                                      handle_shift);
  }
  void* from_handle(std::uint32_t handle) const noexcept {
    return base_ + (std::size_t{handle} << handle_shift);
  }

  const std::string& name() const noexcept { return options_.name; }
  slab_statistics statistics() const noexcept;

 private:
  static constexpr unsigned handle_shift = 6;

  struct slab;
  using slab_list_node = list_node;

  slab* add_slab() noexcept FOREBAY_REQUIRES(lock_);
  void release_slab(slab& s) noexcept FOREBAY_REQUIRES(lock_);
  std::byte* object_at(slab& s, std::uint32_t index) const noexcept;

  arena& arena_;
  std::byte* const base_;
  options options_;
  std::size_t stride_;   // bytes from one object to the next
  unsigned order_;       // of a slab's block
  std::uint32_t count_;  // objects in a slab
  std::size_t first_;    // offset of object 0 in its slab

  mutable mutex lock_;
  list_node partial_ FOREBAY_GUARDED_BY(lock_);  // slabs with free objects, the fullest known first
  list_node full_ FOREBAY_GUARDED_BY(lock_);
  std::uint32_t empty_slabs_ FOREBAY_GUARDED_BY(lock_) = 0;
  slab_statistics statistics_ FOREBAY_GUARDED_BY(lock_);
};

// A cache of objects of one type, made and unmade by constructor and destructor.
template <typename T>
class object_cache {
 public:
  object_cache(arena& memory, std::string name)
      : slabs_(memory, {.name = std::move(name),
                        .object_bytes = sizeof(T),
                        .alignment = alignof(T) > 64 ? alignof(T) : 64}) {}

  // Null when there is no memory.
  template <typename... Args>
  T* create(Args&&... args) noexcept {
    void* memory = slabs_.allocate();
    return memory == nullptr ? nullptr : new (memory) T(std::forward<Args>(args)...);
  }

  void destroy(T* object) noexcept {
    object->~T();
    slabs_.free(object);
  }

  slab_cache& slabs() noexcept { return slabs_; }
  const slab_cache& slabs() const noexcept { return slabs_; }

 private:
  slab_cache slabs_;
};

}  // namespace forebay
