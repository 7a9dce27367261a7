// What buffer_pool.cc and buffer_pool_use.cc share.
#pragma once

#include "forebay/memory/buffer_pool.h"

namespace forebay {

struct buffer_pool::layout {
  std::size_t stride = 0;
  std::size_t skew = 0;
  unsigned order_min = 0;
  std::uint32_t count = 0;
  std::uint32_t limit = 0;
  std::uint32_t grow_count = 0;
  std::uint32_t index_limit = 0;
  std::uint32_t batch_count = 0;
};

// Buffers [first, first + count), in blocks of the arena that are linked by page::link, which is
// the holder's while a block is allocated.
struct buffer_pool::batch {
  intrusive_list<page, &page::link> pieces;
  std::uint32_t first = 0;
  std::uint32_t count = 0;
  std::uint32_t constructed = 0;  // headers, from the first
};

class buffer_pool::surplus_shrinker final : public shrinker {
 public:
  explicit surplus_shrinker(buffer_pool& pool)
      : shrinker({.name = pool.name(), .seeks = 1}), pool_(pool) {}

 private:
  std::uint64_t count_bytes() noexcept override { return pool_.surplus_bytes(); }
  scan_result scan_bytes(std::uint64_t bytes, shrink_goal) noexcept override {
    const std::uint64_t freed = pool_.shrink(bytes);
    return {.freed_bytes = freed, .stop = freed == 0};
  }

  buffer_pool& pool_;
};

}  // namespace forebay
