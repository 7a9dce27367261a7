// What the tests of address spaces share.
#pragma once

#include <gtest/gtest.h>

#include <list>
#include <random>
#include <vector>

#include "forebay/base/test_bytes.h"
#include "forebay/block/memory_device.h"
#include "forebay/cache/address_space.h"

namespace forebay {

inline std::vector<std::byte> filled(std::size_t n, unsigned value) {
  return std::vector<std::byte>(n, static_cast<std::byte>(value));
}

inline std::unique_ptr<page_cache> make_cache(std::size_t bytes = page_cache::min_bytes) {
  auto c = page_cache::create({.bytes = bytes, .huge_pages = false});
  FOREBAY_ASSERT(c.has_value());
  return std::move(*c);
}

// No page is left in the cache, and every frame is free again but those of slabs, a few of which
// stay allocated (without objects): nobody leaked a pin.
inline void expect_all_given_back(page_cache& cache) {
  const page_cache_statistics s = cache.statistics();
  EXPECT_EQ(s.resident_pages, 0u);
  EXPECT_EQ(s.dirty_pages, 0u);
  EXPECT_EQ(s.writeback_pages, 0u);
  EXPECT_EQ(s.error_pages, 0u);
  const slab_statistics nodes = cache.nodes().statistics();
  const slab_statistics heads = cache.buffers().slabs().statistics();
  const slab_statistics bios = cache.bios().statistics();
  EXPECT_EQ(nodes.objects_in_use, 0u);
  EXPECT_EQ(heads.objects_in_use, 0u);
  EXPECT_EQ(bios.objects_in_use, cache.bios().reserved());
  EXPECT_EQ(s.free_pages + (nodes.total_bytes + heads.total_bytes + bios.total_bytes) / page_bytes,
            s.capacity_pages)
      << "a leaked pin";
}

// A device that keeps every bio until the test lets it go on or fails it. One thread.
class gated_device final : public device {
 public:
  explicit gated_device(device& below) noexcept : below_(below) {}

  const device_limits& limits() const noexcept override { return below_.limits(); }
  void submit(bio& b) noexcept override {
    if (open_) return below_.submit(b);
    held_.push_back(&b);
  }

  std::size_t held() const { return held_.size(); }
  void close() { open_ = false; }
  void open() {
    open_ = true;
    while (!held_.empty()) finish(held_.front(), 0);
  }
  // Ends the held bio of this kind at this place: does it, or fails it. False if there is none.
  bool end(bio_op op, std::uint64_t offset, std::int32_t error = 0) {
    for (bio* b : held_) {
      if (b->op == op && b->offset_bytes == offset) {
        finish(b, error);
        return true;
      }
    }
    return false;
  }

 private:
  void finish(bio* b, std::int32_t error) {
    held_.remove(b);
    if (error == 0) {
      below_.submit(*b);
    } else {
      complete(*b, -error);
    }
  }

  device& below_;
  bool open_ = false;
  std::list<bio*> held_;
};

// At most `most` extents of a range.
inline result<std::vector<address_space::extent>> extents_of(address_space& space,
                                                             std::uint64_t offset,
                                                             std::uint64_t length,
                                                             std::size_t most) {
  std::vector<address_space::extent> all(most);
  const result<std::size_t> n = space.extents(offset, length, all);
  if (!n) return fail(n.error());
  all.resize(*n);
  return all;
}

// Runs a task and keeps its result.
struct outcome {
  bool ended = false;
  std::error_code error;
};

inline task<> keep_outcome(task<> work, outcome& out) {
  const result<> r = co_await std::move(work);
  out.ended = true;
  if (!r) out.error = r.error();
  co_return result<>{};
}

}  // namespace forebay
