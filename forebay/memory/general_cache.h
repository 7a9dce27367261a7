// Memory of any size from an arena: slab caches of fixed sizes, as Linux's kmalloc.
//
//    allocate(bytes) -> size class -> slab_cache "general-64" | "general-96k" | …
//    free(pointer)   -> frame_at(pointer).private_data -> slab_cache
//
// Classes are 64, 128, 192, 256, 384, 512 bytes and so on, two to each doubling, up to 64 KiB: at
// most a third of an object is left unused. Objects are aligned to 64 bytes. free() needs no size:
// the state of the frame that an object lies in names its cache. Objects are as fast as those of a
// slab_cache, plus a look into a table or at that state.
//
// Before an allocation fails, what the caches of the other classes hold free is given back to the
// arena. Fixed memory of the right size is better served by an object_cache of its own.
//
// Thread-safety: any thread, except for construction and destruction.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "forebay/memory/slab.h"

namespace forebay {

class general_cache {
 public:
  static constexpr std::size_t min_class_bytes = 64;
  static constexpr std::size_t max_bytes = std::size_t{64} << 10;
  static constexpr unsigned class_count = 20;

  struct options {
    std::string name = "general";           // of the slab caches, before "-" and their size
    bool debug = false;                     // as slab_cache::options
    memory_registry* registry = nullptr;    // null: the process's
    bool number_if_name_is_taken = false;   // instead of EEXIST; see registry.h
    std::size_t cpu_cache_bytes = 0;        // at most so much waits free in CPU caches, all classes
                                            // together; 0: 1/8 of the arena
    std::size_t largest_bytes = max_bytes;  // larger objects are refused; rounded up to a class
  };

  // Errors: EINVAL for a largest size of 0 or above max_bytes; those of slab_cache::create(). The
  // arena must outlive the cache.
  static result<std::unique_ptr<general_cache>> create(arena& memory, const options& opts);

  // Every object must have been given back; see slab_cache.
  ~general_cache();
  general_cache(const general_cache&) = delete;
  general_cache& operator=(const general_cache&) = delete;

  // At least `bytes`, uninitialized. Null for 0 and for more than largest_bytes(), and when the
  // arena has no frames for it.
  void* allocate(std::size_t bytes) noexcept {
    if (bytes - 1 >= largest_bytes_) [[unlikely]]
      return nullptr;
    slab_cache& cache = cache_at(class_of(bytes));
    void* const object = cache.allocate();
    return object != nullptr ? object : allocate_after_shrink(cache);
  }

  // Gives back what allocate() returned; null is nothing. What is no object of this cache ends the
  // process with a report, some of it only when it leaves the CPU's cache.
  void free(void* object) noexcept {
    if (object == nullptr) return;
    slab_cache* const cache = cache_of(object);
    if (cache == nullptr) [[unlikely]]
      misused(object);
    cache->free(object);
  }

  // The same for who knows the size that it asked for.
  void free(void* object, std::size_t bytes) noexcept {
    FOREBAY_DCHECK(cache_of(object) == &cache_at(class_of(bytes)));
    cache_at(class_of(bytes)).free(object);
  }

  // What an object may be used for: at least what was asked for.
  std::size_t usable_bytes(const void* object) const noexcept {
    const slab_cache* const cache = cache_of(object);
    if (cache == nullptr) misused(object);
    return cache->object_bytes();
  }

  // Whether the address lies in a slab of this cache.
  bool owns(const void* address) const noexcept { return cache_of(address) != nullptr; }

  std::size_t largest_bytes() const noexcept { return largest_bytes_; }

  // Gives all that is free back to the arena: how many bytes.
  std::size_t shrink() noexcept;

  // The slab caches, from the smallest class up.
  unsigned classes() const noexcept { return made_; }
  const slab_cache& slabs(unsigned number) const noexcept { return cache_at(number); }

  // Size of a class, and the class of a size (1 to max_bytes).
  static constexpr std::size_t class_bytes(unsigned number) noexcept {
    // 64, 128, 192; then 2^k and 3/2 × 2^k from 256 on.
    if (number < 3) return min_class_bytes * (number + 1);
    const unsigned doubling = (number - 3) / 2;
    return ((number - 3) % 2 == 0 ? std::size_t{256} : std::size_t{384}) << doubling;
  }
  static constexpr unsigned class_of(std::size_t bytes) noexcept {
    return bytes <= table_bytes ? table[(bytes + 63) / 64] : computed_class_of(bytes);
  }

 private:
  static constexpr std::size_t table_bytes = 4096;

  static constexpr unsigned computed_class_of(std::size_t bytes) noexcept {
    if (bytes <= 192) return static_cast<unsigned>((bytes - 1) / 64);
    // 2^power < bytes <= 2^(power + 1), or just 256.
    const auto power = static_cast<unsigned>(std::bit_width(bytes - 1)) - 1;
    const unsigned number = 2 * power - 11;  // 256 < bytes <= 384 is number 4
    if (bytes <= 256) return 3;
    return bytes <= (std::size_t{3} << (power - 1)) ? number - 1 : number;
  }

  static constexpr std::array<std::uint8_t, table_bytes / 64 + 1> make_table() noexcept {
    std::array<std::uint8_t, table_bytes / 64 + 1> t{};
    for (std::size_t i = 1; i < t.size(); ++i) {
      t[i] = static_cast<std::uint8_t>(computed_class_of(i * 64));
    }
    return t;
  }
  static const std::array<std::uint8_t, table_bytes / 64 + 1> table;

  general_cache(arena& memory, std::size_t largest_bytes, std::byte* storage) noexcept;

  // The caches lie side by side, so that a pointer out of a frame's state is known to be one of
  // them before it is followed.
  slab_cache& cache_at(unsigned number) const noexcept {
    return *reinterpret_cast<slab_cache*>(storage_ + number * sizeof(slab_cache));
  }
  slab_cache* cache_of(const void* object) const noexcept {
    const auto distance = static_cast<std::size_t>(static_cast<const std::byte*>(object) - base_);
    if (distance >= arena_bytes_) return nullptr;
    // relaxed: it does not change while an object of the slab is out.
    void* const owner = arena_.frame_at(object).private_data.load(std::memory_order_relaxed);
    const std::uintptr_t offset =
        reinterpret_cast<std::uintptr_t>(owner) - reinterpret_cast<std::uintptr_t>(storage_);
    return offset < made_ * sizeof(slab_cache) ? static_cast<slab_cache*>(owner) : nullptr;
  }

  void* allocate_after_shrink(slab_cache& cache) noexcept;
  [[noreturn]] void misused(const void* object) const noexcept;

  arena& arena_;
  std::byte* const base_;  // of the arena
  const std::size_t arena_bytes_;
  std::size_t largest_bytes_;
  unsigned made_ = 0;
  std::byte* storage_;
};

inline constexpr std::array<std::uint8_t, general_cache::table_bytes / 64 + 1>
    general_cache::table = general_cache::make_table();

}  // namespace forebay
