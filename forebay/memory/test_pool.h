// What the pool's tests share: an arena and a pool in it.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <utility>

#include "forebay/memory/buffer_pool.h"

namespace forebay {

// Without the process's registry, so that tests that run at the same time need no names.
struct test_pool {
  explicit test_pool(buffer_pool::options opts, std::size_t arena_bytes = 8u << 20)
      : memory(std::move(*arena::create({.bytes = arena_bytes, .huge_pages = false}))),
        frames_at_first(memory->free_pages()) {
    if (opts.buffer_bytes == 0) opts.buffer_bytes = 2048;
    if (opts.registry == &memory_registry::process()) opts.registry = &registry;
    auto made = buffer_pool::create(*memory, opts);
    EXPECT_TRUE(made) << made.error().message();
    if (made) pool = std::move(*made);
  }

  buffer_pool* operator->() const noexcept { return pool.get(); }
  buffer_pool& operator*() const noexcept { return *pool; }
  std::size_t frames_taken() const noexcept { return frames_at_first - memory->free_pages(); }

  memory_registry registry;
  std::unique_ptr<arena> memory;
  std::size_t frames_at_first;
  std::unique_ptr<buffer_pool> pool;
};

inline std::error_code error_of(int number) { return {number, std::generic_category()}; }

}  // namespace forebay
