// Debug mode of slab caches, as the kernel's slub_debug: what surrounds an object, and what is in
// it while it is free.
//
//    | red zone | object | red zone | record |        one slot; the object is aligned as it would
//    be
//      bb / cc    6b … 6b a5  bb / cc    last allocation, last free
//
// Red zones are bb while the object is free and cc while it is in use. A free object is filled with
// 6b and ends in a5, a new one is filled with 5a; not in caches with a constructor and type-stable
// ones, whose free objects keep their contents. At every allocation and free, and when its slab
// goes, an object is looked at. The record holds who allocated it last and who freed it last.
//
// What is caught: writes before and behind an object, writes to a free one, a double free, a free
// of what is no object (foreign pointers, those of other caches, those into an object). Each ends
// the process after a report that names the cache, the object and its last owners.
//
// Switched on by slab_cache::options::debug, or when the cache is made by the environment variable
// FOREBAY_SLAB_DEBUG: "*" for all, or names with commas between them ("bio,buffer_head"), each as
// its maker gave it, without a number. Costs a lock, a copy of the object's size and a stack trace
// for each call.
//
// Plain functions on memory that the caller has to itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace forebay {

class slab_debug {
 public:
  static constexpr std::byte free_red{0xbb};
  static constexpr std::byte used_red{0xcc};
  static constexpr std::byte free_fill{0x6b};
  static constexpr std::byte new_fill{0x5a};
  static constexpr std::byte end_fill{0xa5};

  // Whether FOREBAY_SLAB_DEBUG names this cache.
  static bool asked_for(std::string_view name) noexcept;

  // `alignment` is a power of two, at least 64.
  slab_debug(std::size_t object_bytes, std::size_t alignment, bool fill) noexcept;

  std::size_t left_bytes() const noexcept { return left_; }      // before the object
  std::size_t stride_bytes() const noexcept { return stride_; }  // of the whole slot

  // Makes a slot out of raw memory, for a free object; what is in the object stays unless it is
  // filled.
  void make(std::byte* object) const noexcept;

  // Their caller's caller is the owner.
  void note_allocation(std::byte* object) const noexcept;
  void note_free(std::byte* object) const noexcept;

  struct damage {
    const char* what;
    const std::byte* at;
    std::byte expected;
  };
  // The first byte that is not what it should be.
  std::optional<damage> find_damage(const std::byte* object, bool in_use) const noexcept;

  // Lines that tell who had it last.
  std::string describe_owners(const std::byte* object) const;
  static std::string describe(const damage& d);

 private:
  struct record;

  record& record_of(const std::byte* object) const noexcept;
  void set_red_zones(std::byte* object, std::byte value) const noexcept;

  std::size_t object_bytes_;
  std::size_t left_;
  std::size_t record_offset_;  // from the object
  std::size_t stride_;
  bool fill_;
};

}  // namespace forebay
