// What the memory benchmark measures: anything that hands out items and takes them back.
//
// An adapter is a few lines around an allocator's fastest public calls. An item is a pointer, a
// number or a handle that only moves; the patterns (patterns.h) see nothing else of it.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstring>
#include <span>
#include <type_traits>
#include <utility>

namespace forebay::bench {

// clang-format off
template <typename S>
concept Subject = std::default_initializable<typename S::item> && std::movable<typename S::item> &&
    requires(S& s, typename S::item item, const typename S::item& seen,
             std::span<typename S::item> items) {
  { s.allocate() } noexcept -> std::same_as<typename S::item>;
  { S::is_none(seen) } noexcept -> std::same_as<bool>;  // what allocate() gives when it has none
  { s.free(std::move(item)) } noexcept;
  { s.allocate_bulk(items) } noexcept -> std::same_as<bool>;  // all of them, or false and none
  { s.free_bulk(items) } noexcept;
};
// clang-format on

// Makes the compiler believe that the item is used, at no cost; without it a malloc and its free
// could vanish together.
template <typename Item>
inline void keep(Item& item) noexcept {
  if constexpr (requires { item.get(); }) {
    asm volatile("" : : "r"(item.get()));  // the handle itself may stay in registers
  } else {
    static_assert(sizeof(Item) <= sizeof(void*));
    asm volatile("" : "+r"(item));
  }
}

// Writes the first 8 bytes of an object, as its user would: where S::memory(item) says, or where a
// pointer points to. Nothing if the item stands for no memory.
template <typename S>
inline void touch(typename S::item& item) noexcept {
  if constexpr (requires { S::memory(item); }) {
    std::memcpy(S::memory(item), &item, sizeof(void*));
  } else if constexpr (std::is_pointer_v<typename S::item>) {
    std::memcpy(static_cast<void*>(item), &item, sizeof(void*));
  }
}

// For allocators that have no call for many.
template <typename S>
class bulk_by_singles {
 public:
  template <typename Item>
  bool allocate_bulk(std::span<Item> items) noexcept {
    S& self = static_cast<S&>(*this);
    for (std::size_t i = 0; i < items.size(); ++i) {
      items[i] = self.allocate();
      if (S::is_none(items[i])) [[unlikely]] {
        free_bulk(items.first(i));
        return false;
      }
    }
    return true;
  }
  template <typename Item>
  void free_bulk(std::span<Item> items) noexcept {
    for (Item& item : items) static_cast<S&>(*this).free(std::move(item));
  }
};

}  // namespace forebay::bench
