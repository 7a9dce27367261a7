// What the tests of packets share: an arena with a pool in it, and external memory.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "forebay/net/packet_pool.h"

namespace forebay {

// Without the process's registry, so that tests that run at the same time need no names.
struct test_packets {
  explicit test_packets(packet_pool::options opts = {}, std::size_t arena_bytes = 4u << 20)
      : memory(std::move(*arena::create({.bytes = arena_bytes, .huge_pages = false}))) {
    if (opts.name.empty()) opts.name = "packets";
    if (opts.count == 0) opts.count = 64;
    opts.registry = &registry;
    auto made = packet_pool::create(*memory, opts);
    EXPECT_TRUE(made) << made.error().message();
    if (made) pool = std::move(*made);
  }

  packet_pool* operator->() const noexcept { return pool.get(); }
  packet_pool& operator*() const noexcept { return *pool; }

  memory_registry registry;
  std::unique_ptr<arena> memory;
  std::unique_ptr<packet_pool> pool;
};

// Bytes 0, 1, 2, …, and how often they came back.
struct test_external : external_block {
  explicit test_external(std::size_t bytes)
      : external_block(
            [](external_block& b) noexcept { ++static_cast<test_external&>(b).returned; }),
        memory(bytes) {
    for (std::size_t i = 0; i < bytes; ++i) memory[i] = static_cast<std::byte>(i);
  }
  std::span<std::byte> part(std::size_t offset, std::size_t bytes) {
    return std::span(memory).subspan(offset, bytes);
  }

  std::vector<std::byte> memory;
  int returned = 0;
};

}  // namespace forebay
