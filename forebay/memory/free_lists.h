// The policies of a free list, by name. docs/free-lists.md says what each costs and when to choose
// which.
//
//   locked           a stack of items under a mutex
//   lock_free_stack  a linked stack, changed by one compare-and-swap
//   bitmap           a bit for each item, changed by one atomic operation on its word
//   buddy            under a mutex, neighbours merged, so that runs of items can be had
//   cached           per-CPU caches before a locked list
//
// All keep items in [0, capacity), each at most once, and start without any: the owner gives what
// there is (give_range). Handing an item from one thread to another through any of them orders the
// memory behind it: what the giver wrote before give() is seen by the taker after take().
#pragma once

#include <array>
#include <memory>

#include "forebay/base/result.h"
#include "forebay/memory/free_list.h"

namespace forebay {

enum class free_list_kind : std::uint8_t { locked, lock_free_stack, bitmap, buddy, cached };

inline constexpr std::array free_list_kinds = {
    free_list_kind::locked, free_list_kind::lock_free_stack, free_list_kind::bitmap,
    free_list_kind::buddy, free_list_kind::cached};

const char* to_string(free_list_kind kind) noexcept;

// A free list that knows how many items it has.
class sized_free_list : public free_list {
 public:
  static constexpr std::uint32_t capacity_max = 1u << 30;

  sized_free_list(const sized_free_list&) = delete;
  sized_free_list& operator=(const sized_free_list&) = delete;

  // Free items: exact while nobody takes or gives, a moment's approximation otherwise. May take
  // time linear in the capacity. Any thread.
  virtual std::size_t free_count() const noexcept = 0;

  std::uint32_t capacity() const noexcept { return capacity_; }

 protected:
  explicit sized_free_list(std::uint32_t capacity) noexcept : capacity_(capacity) {}

 private:
  const std::uint32_t capacity_;
};

// An empty list for items below `capacity`. Errors: EINVAL for a capacity of 0, errc::too_large
// above sized_free_list::capacity_max, ENOMEM.
result<std::unique_ptr<sized_free_list>> make_free_list(free_list_kind kind,
                                                        std::uint32_t capacity) noexcept;

// Gives the items first, first + 1, … first + count - 1. The smallest are the first to be taken
// from lists that work as stacks.
void give_range(free_list& list, std::uint32_t first, std::uint32_t count) noexcept;

}  // namespace forebay
