// A free list that keeps runs of items together: a buddy system over item numbers (Knowlton 1965;
// Knuth, TAOCP 1, 2.5).
//
//    order 3 |               0…7             |
//    order 2 |      0…3      |      4…7      |      a block of order n: 2^n items from a multiple
//    order 1 |  0,1  |  2,3  |  4,5  |  6,7  |      of 2^n
//    order 0 | 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 |
//
// A block that is given back is merged with its other half as long as that is free too. Single
// items are taken from the smallest block there is, so that large ones stay whole. For things that
// lie beside each other in the order of their numbers, and are wanted several in a row at times.
//
// Unlike `buddy` (buddy.h), which does the same for page frames and keeps its links in their
// states, this one knows numbers only. Nine bytes for each item of the capacity; take and give of
// one item are O(log capacity), and O(1) on average when the neighbours are in use.
//
// lock_ guards everything and is a leaf.
#pragma once

#include <array>
#include <memory>
#include <optional>

#include "forebay/memory/free_lists.h"
#include "forebay/os/mutex.h"

namespace forebay {

class buddy_list final : public sized_free_list {
 public:
  static constexpr unsigned max_order = 30;

  // Without memory for the links, has_memory() is false and nothing else may be called.
  explicit buddy_list(std::uint32_t capacity) noexcept;
  bool has_memory() const noexcept { return links_ != nullptr && orders_ != nullptr; }

  std::size_t take(std::span<std::uint32_t> items) noexcept override;
  void give(std::span<const std::uint32_t> items) noexcept override;
  std::size_t free_count() const noexcept override;

  // Takes 2^order items in a row, the first of which is a multiple of 2^order; nothing if there is
  // no such run or no such order. Its items are given back together or one by one. Any thread.
  std::optional<std::uint32_t> take_run(unsigned order) noexcept;
  // Gives back what take_run(order) returned.
  void give_run(std::uint32_t first, unsigned order) noexcept;

  // Free blocks of each order, at one moment.
  using counts = std::array<std::uint32_t, max_order + 1>;
  counts free_blocks() const noexcept;

 private:
  static constexpr std::uint32_t none = UINT32_MAX;
  static constexpr std::uint8_t no_block = 0xff;

  struct link {
    std::uint32_t next;
    std::uint32_t prev;  // `none` for the first of its list
  };

  std::uint32_t take_block(unsigned order) noexcept FOREBAY_REQUIRES(lock_);
  void give_block(std::uint32_t first, unsigned order) noexcept FOREBAY_REQUIRES(lock_);
  void put_on(std::uint32_t first, unsigned order) noexcept FOREBAY_REQUIRES(lock_);
  void take_off(std::uint32_t first, unsigned order) noexcept FOREBAY_REQUIRES(lock_);

  const std::unique_ptr<link[]> links_;           // of the free blocks, by their first item
  const std::unique_ptr<std::uint8_t[]> orders_;  // of the free block that starts here, or no_block
  mutable mutex lock_;
  std::array<std::uint32_t, max_order + 1> first_ FOREBAY_GUARDED_BY(lock_);
  counts count_ FOREBAY_GUARDED_BY(lock_){};
  std::uint32_t nonempty_ FOREBAY_GUARDED_BY(lock_) = 0;  // bit n: there are blocks of order n
  std::size_t free_ FOREBAY_GUARDED_BY(lock_) = 0;        // items
};

}  // namespace forebay
