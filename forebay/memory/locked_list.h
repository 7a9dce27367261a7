// A free list that is a stack of items under a mutex: the plainest one, and the quickest for large
// batches, which it copies.
//
// take() and give() are O(1) and a copy of the batch; four bytes for each item of the capacity.
#pragma once

#include <algorithm>
#include <memory>
#include <new>

#include "forebay/base/assert.h"
#include "forebay/memory/free_lists.h"
#include "forebay/os/mutex.h"

namespace forebay {

class locked_list final : public sized_free_list {
 public:
  // Without memory for the items, has_memory() is false and nothing else may be called.
  explicit locked_list(std::uint32_t capacity) noexcept
      : sized_free_list(capacity), items_(new(std::nothrow) std::uint32_t[capacity]) {}
  bool has_memory() const noexcept { return items_ != nullptr; }

  // The last given first.
  std::size_t take(std::span<std::uint32_t> items) noexcept override {
    const scoped_lock hold(lock_);
    const std::size_t n = std::min<std::size_t>(items.size(), count_);
    const std::uint32_t* const end = items_.get() + count_;
    std::reverse_copy(end - n, end, items.data());
    count_ -= n;
    return n;
  }

  void give(std::span<const std::uint32_t> items) noexcept override {
    const scoped_lock hold(lock_);
    FOREBAY_ASSERT(items.size() <= capacity() - count_);
    std::copy(items.begin(), items.end(), items_.get() + count_);
    count_ += items.size();
  }

  std::size_t free_count() const noexcept override {
    const scoped_lock hold(lock_);
    return count_;
  }

 private:
  const std::unique_ptr<std::uint32_t[]> items_;  // the first count_ are free; guarded by lock_
  mutable mutex lock_;
  std::size_t count_ FOREBAY_GUARDED_BY(lock_) = 0;
};

}  // namespace forebay
