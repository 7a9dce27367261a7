// One thread: not in the thread sanitizer's tree.
// page_cache: limits, eviction, statistics.

#include "forebay/cache/page_cache.h"

#include <gtest/gtest.h>

#include <random>
#include <thread>
#include <vector>

#include "forebay/block/fault_device.h"
#include "forebay/cache/test_space.h"

namespace forebay {
namespace {

TEST(page_cache, size_has_limits) {
  EXPECT_EQ(page_cache::create({.bytes = page_cache::min_bytes - 1}).error(), errc::too_small);
  EXPECT_EQ(page_cache::create({.bytes = arena::max_bytes + 1}).error(), errc::too_large);
  const auto cache = make_cache();
  const auto s = cache->statistics();
  EXPECT_LE(s.capacity_bytes, page_cache::min_bytes);
  const std::uint64_t bio_pages = cache->bios().statistics().total_bytes / page_bytes;
  EXPECT_GT(bio_pages, 0u);
  EXPECT_EQ(s.free_pages + bio_pages, s.capacity_pages) << "all but the bios' reserve";
  EXPECT_GT(s.background_limit_pages, 0u);
  EXPECT_LT(s.background_limit_pages, s.dirty_limit_pages);
  EXPECT_LT(s.dirty_limit_pages, s.capacity_pages / 2);
}

TEST(page_cache, counts_are_exact_at_rest) {
  const auto cache = make_cache();
  memory_device dev(1u << 20);
  {
    address_space space(*cache, dev, {});
    std::vector<std::byte> out(64 * page_bytes);
    ASSERT_TRUE(sync_wait(space.read(0, out)));
    auto s = cache->statistics();
    EXPECT_EQ(s.misses, 64u);
    EXPECT_EQ(s.hits, 0u);
    EXPECT_EQ(s.pages_read, 64u);
    EXPECT_EQ(s.resident_pages, 64u);
    ASSERT_TRUE(sync_wait(space.read(0, out)));
    s = cache->statistics();
    EXPECT_EQ(s.misses, 64u);
    EXPECT_EQ(s.hits, 64u);
    EXPECT_EQ(s.pages_read, 64u);
    ASSERT_TRUE(sync_wait(space.write(0, filled(3 * page_bytes, 1))));
    s = cache->statistics();
    EXPECT_EQ(s.dirty_pages, 3u);
    EXPECT_EQ(s.hits, 67u);
    EXPECT_EQ(s.pages_written, 0u);
    ASSERT_TRUE(sync_wait(space.flush()));
    s = cache->statistics();
    EXPECT_EQ(s.dirty_pages, 0u);
    EXPECT_EQ(s.writeback_pages, 0u);
    EXPECT_EQ(s.pages_written, 3u);
    EXPECT_EQ(s.evictions, 0u);
    EXPECT_EQ(s.frame_waits, 0u);
  }
  expect_all_given_back(*cache);
}

TEST(page_cache, a_page_of_which_other_blocks_are_cached_is_a_miss) {
  const auto cache = make_cache();
  memory_device dev(1u << 20);
  {
    address_space space(*cache, dev, {});
    std::vector<std::byte> out(512);
    ASSERT_TRUE(sync_wait(space.read(0, out)));
    EXPECT_EQ(cache->statistics().misses, 1u);
    ASSERT_TRUE(sync_wait(space.read(2048, out)));
    EXPECT_EQ(cache->statistics().misses, 2u) << "it had to be read";
    EXPECT_EQ(cache->statistics().hits, 0u);
    ASSERT_TRUE(sync_wait(space.read(2048, out)));
    EXPECT_EQ(cache->statistics().hits, 1u);
  }
  expect_all_given_back(*cache);
}

TEST(page_cache, never_holds_more_than_its_capacity) {
  const auto cache = make_cache();
  memory_device dev(32u << 20);
  {
    address_space space(*cache, dev, {});
    std::vector<std::byte> out(1u << 17);
    for (std::uint64_t at = 0; at < dev.limits().size_bytes; at += out.size()) {
      ASSERT_TRUE(sync_wait(space.read(at, out)));
      const auto s = cache->statistics();
      ASSERT_LE(s.resident_pages + s.free_pages, s.capacity_pages);
    }
    const auto s = cache->statistics();
    EXPECT_GT(s.resident_pages, s.capacity_pages * 8 / 10) << "and uses what it has";
    EXPECT_EQ(s.evictions, s.misses - s.resident_pages);
    EXPECT_EQ(s.misses, (32u << 20) / page_bytes);
  }
  expect_all_given_back(*cache);
}

TEST(page_cache, pinned_and_dirty_pages_stay) {
  const auto cache = make_cache();
  memory_device dev(32u << 20);
  {
    address_space space(*cache, dev, {});
    std::vector<page_ref> pins(100);
    const auto n = sync_wait(space.pin(0, 100 * page_bytes, pins));
    ASSERT_TRUE(n);
    ASSERT_EQ(*n, 100u);
    const auto data = filled(50 * page_bytes, 9);
    ASSERT_TRUE(sync_wait(space.write(200 * page_bytes, data)));
    const std::uint64_t misses = cache->statistics().misses;
    std::vector<std::byte> out(1u << 17);
    for (std::uint64_t at = 1u << 20; at < 24u << 20; at += out.size()) {
      ASSERT_TRUE(sync_wait(space.read(at, out)));
    }
    const std::uint64_t misses_after = cache->statistics().misses;
    EXPECT_EQ(misses_after - misses, (23u << 20) / page_bytes);
    // All still there: nothing is read.
    std::vector<page_ref> again(100);
    EXPECT_TRUE(space.try_pin(0, 100 * page_bytes, again));
    for (std::size_t i = 0; i < 100; ++i) EXPECT_EQ(again[i].get(), pins[i].get());
    EXPECT_TRUE(space.try_pin(200 * page_bytes, 50 * page_bytes, again));
    EXPECT_EQ(cache->statistics().dirty_pages, 50u);
    again.clear();
    pins.clear();
    ASSERT_TRUE(sync_wait(space.flush()));
    for (std::uint64_t at = 1u << 20; at < 32u << 20; at += out.size()) {
      ASSERT_TRUE(sync_wait(space.read(at, out)));
    }
    std::vector<page_ref> gone(100);
    EXPECT_FALSE(space.try_pin(0, 100 * page_bytes, gone)) << "now they may go";
    EXPECT_FALSE(gone[0]) << "nothing stays pinned by an attempt that failed";
  }
  expect_all_given_back(*cache);
}

TEST(page_cache, a_page_in_use_survives_a_scan) {
  const auto cache = make_cache();
  memory_device dev(64u << 20);
  {
    address_space space(*cache, dev, {});
    std::vector<std::byte> out(page_bytes);
    ASSERT_TRUE(sync_wait(space.read(0, out)));
    const std::uint64_t misses = cache->statistics().misses;
    for (std::uint64_t at = page_bytes; at < 16u << 20; at += page_bytes) {
      ASSERT_TRUE(sync_wait(space.read(at, out)));
      if (at % (64 * page_bytes) == 0) {
        std::array<page_ref, 1> pin;
        ASSERT_TRUE(space.try_pin(0, 1, pin)) << at;
      }
    }
    EXPECT_EQ(cache->statistics().misses - misses, (16u << 20) / page_bytes - 1);
  }
  expect_all_given_back(*cache);
}

// The share of hits among random reads of a hot set, after a scan of the whole device in pieces of
// so many bytes; and the same before it.
std::pair<double, double> hot_hits_around_a_scan(eviction_policy policy, std::size_t piece) {
  constexpr std::uint64_t hot_pages = 500;  // of about 950
  auto cache = std::move(*page_cache::create(
      {.bytes = page_cache::min_bytes, .huge_pages = false, .eviction = policy}));
  EXPECT_EQ(cache->statistics().eviction, policy);
  memory_device dev(16u << 20);
  std::pair<double, double> hits;
  {
    address_space space(*cache, dev, {});
    std::mt19937 random(1);
    std::vector<std::byte> out(piece);
    std::vector<std::byte> page(page_bytes);
    const auto scan = [&] {
      for (std::uint64_t at = 0; at < dev.limits().size_bytes; at += piece) {
        if (!sync_wait(space.read(at, out))) ADD_FAILURE() << at;
      }
    };
    const auto hot_hits = [&](std::uint64_t reads) {
      const std::uint64_t before = cache->statistics().misses;
      for (std::uint64_t i = 0; i < reads; ++i) {
        if (!sync_wait(space.read(random() % hot_pages * 7 * page_bytes, page))) ADD_FAILURE();
      }
      return 1 -
             static_cast<double>(cache->statistics().misses - before) / static_cast<double>(reads);
    };
    scan();  // the cache is full of something else to begin with
    hot_hits(8 * hot_pages);
    hits.first = hot_hits(hot_pages);
    scan();
    hits.second = hot_hits(hot_pages);
  }
  expect_all_given_back(*cache);
  return hits;
}

TEST(page_cache, a_scan_of_the_whole_device_costs_a_hot_set_nothing) {
  for (const std::size_t piece : {std::size_t{512}, page_bytes, std::size_t{1} << 17}) {
    const auto [before, after] = hot_hits_around_a_scan(eviction_policy::adaptive, piece);
    EXPECT_GT(before, 0.99);
    EXPECT_GT(after, before - 0.02) << piece;
  }
  const auto [before, after] = hot_hits_around_a_scan(eviction_policy::s3_fifo, page_bytes);
  EXPECT_GT(after, before - 0.02);
  EXPECT_LT(hot_hits_around_a_scan(eviction_policy::clock, page_bytes).second, 0.5)
      << "is not resistant to scans";
}

// Whatever the policy: what is pinned or dirty stays, and everybody else gets a frame.
TEST(page_cache, every_policy_gets_on_around_pinned_and_dirty_pages) {
  for (const eviction_policy policy : all_eviction_policies) {
    SCOPED_TRACE(to_string(policy));
    auto cache = std::move(*page_cache::create(
        {.bytes = page_cache::min_bytes, .huge_pages = false, .eviction = policy}));
    memory_device dev(16u << 20);
    {
      address_space space(*cache, dev, {});
      std::vector<page_ref> pins(400);
      const auto pinned = sync_wait(space.pin(0, 400 * page_bytes, pins));
      ASSERT_TRUE(pinned);
      ASSERT_EQ(*pinned, 400u);
      const auto data = filled(200 * page_bytes, 9);
      ASSERT_TRUE(sync_wait(space.write(500 * page_bytes, data)));
      std::vector<std::byte> out(page_bytes);
      std::mt19937 random(2);
      for (int i = 0; i < 4'000; ++i) {
        ASSERT_TRUE(sync_wait(space.read(random() % 4096 * page_bytes, out)));
      }
      EXPECT_TRUE(space.try_pin(500 * page_bytes, 200 * page_bytes, pins));
      EXPECT_EQ(cache->statistics().dirty_pages, 200u);
      pins.clear();
      ASSERT_TRUE(sync_wait(space.flush()));
      while (cache->evict_pages(1u << 20) != 0) {
      }
      EXPECT_EQ(cache->statistics().resident_pages, 0u);
    }
    expect_all_given_back(*cache);
  }
}

// From every policy to every other, there and back: all pages stay, and so does what is known of
// their use: of a full cache the hot part survives the next scan.
TEST(page_cache, the_policy_changes_and_the_pages_stay) {
  const auto cache = make_cache();
  memory_device dev(16u << 20);
  {
    address_space space(*cache, dev, {});
    constexpr std::uint64_t pages = 900;
    std::vector<std::byte> out(page_bytes);
    const auto read = [&](std::uint64_t from, std::uint64_t to) {
      for (std::uint64_t i = from; i < to; ++i) {
        ASSERT_TRUE(sync_wait(space.read(i * page_bytes, out)));
      }
    };
    read(0, pages);
    ASSERT_TRUE(sync_wait(space.write(0, filled(3 * page_bytes, 7))));
    const std::uint64_t misses = cache->statistics().misses;
    for (const eviction_policy from : all_eviction_policies) {
      for (const eviction_policy to : all_eviction_policies) {
        ASSERT_TRUE(cache->set_eviction(from));
        ASSERT_TRUE(cache->set_eviction(to));
        const auto s = cache->statistics();
        ASSERT_EQ(s.eviction, to);
        ASSERT_EQ(s.resident_pages, pages);
      }
    }
    read(0, pages);
    EXPECT_EQ(cache->statistics().misses, misses) << "a page has been lost on the way";
    EXPECT_EQ(cache->statistics().evictions, 0u);
    // Of the 900 the last 100 are used three times more; new pages push out the others.
    for (int times = 0; times < 3; ++times) read(pages - 100, pages);
    ASSERT_TRUE(cache->set_eviction(eviction_policy::clock));
    ASSERT_TRUE(cache->set_eviction(eviction_policy::adaptive));
    ASSERT_TRUE(sync_wait(space.flush()));
    read(1000, 1600);
    const std::uint64_t after = cache->statistics().misses;
    read(pages - 100, pages);
    EXPECT_LE(cache->statistics().misses - after, 5u) << "their use was forgotten";
    while (cache->evict_pages(1u << 20) != 0) {
    }
    EXPECT_EQ(cache->statistics().resident_pages, 0u);
  }
  expect_all_given_back(*cache);
}

TEST(page_cache, the_dirty_limit_follows_a_wish_within_its_share) {
  const auto cache = make_cache();
  const auto share = cache->statistics();
  cache->set_dirty_limit(1u << 20);
  EXPECT_EQ(cache->statistics().dirty_limit_pages, 256u);
  EXPECT_LE(cache->statistics().background_limit_pages, 128u);
  cache->follow_limit(2u << 20);
  EXPECT_LT(cache->statistics().dirty_limit_pages, 256u) << "2/5 of less";
  cache->follow_limit(UINT64_MAX);
  EXPECT_EQ(cache->statistics().dirty_limit_pages, 256u);
  cache->set_dirty_limit(0);
  EXPECT_GT(cache->statistics().background_limit_pages, 0u) << "writers would not get on";
  cache->set_dirty_limit(UINT64_MAX);
  EXPECT_EQ(cache->statistics().dirty_limit_pages, share.dirty_limit_pages);
  EXPECT_EQ(cache->statistics().background_limit_pages, share.background_limit_pages);
}

TEST(page_cache, writers_are_throttled_at_the_limit) {
  const auto cache = make_cache();
  memory_device dev(32u << 20);
  {
    address_space space(*cache, dev, {});
    const std::uint64_t limit = cache->dirty_limit_pages();
    const auto data = filled(page_bytes, 1);
    std::uint64_t at = 0;
    // Without a wait exactly up to the limit.
    while (space.try_write(at, data) == data.size()) at += page_bytes;
    EXPECT_EQ(at / page_bytes, limit);
    EXPECT_EQ(cache->unwritten().dirty(), limit);
    EXPECT_EQ(space.try_write(0, data), data.size()) << "what is dirty already may be written";
    EXPECT_EQ(cache->unwritten().dirty(), limit);
    EXPECT_EQ(cache->statistics().throttled_writes, 0u);
    for (; at < 32u << 20; at += page_bytes) {
      ASSERT_TRUE(sync_wait(space.write(at, data)));
      ASSERT_LE(cache->unwritten().dirty(), limit);
    }
    EXPECT_GT(cache->statistics().throttled_writes, 0u);
    ASSERT_TRUE(sync_wait(space.flush()));
    EXPECT_EQ(cache->statistics().pages_written, (32u << 20) / page_bytes + 0u);
  }
  expect_all_given_back(*cache);
}

TEST(page_cache, a_device_that_fails_stops_its_writers_until_it_is_healed) {
  const auto cache = make_cache();
  memory_device dev(32u << 20);
  fault_device failing(dev);
  {
    address_space space(*cache, failing, {});
    failing.inject({.op = bio_op::write, .error = ENOSPC});
    const auto data = filled(page_bytes, 1);
    std::error_code e;
    std::uint64_t at = 0;
    for (; at < 32u << 20 && !e; at += page_bytes) {
      if (const auto r = sync_wait(space.write(at, data)); !r) e = r.error();
    }
    EXPECT_EQ(e.value(), ENOSPC);
    EXPECT_GE(cache->statistics().error_pages, cache->dirty_limit_pages() / 2);
    failing.heal();
    // There is no flusher: the writer itself finds out that the device is well again.
    EXPECT_TRUE(sync_wait(space.write(at, data)));
    EXPECT_TRUE(sync_wait(space.flush()));
    EXPECT_EQ(cache->statistics().error_pages, 0u);
  }
  expect_all_given_back(*cache);
}

TEST(page_cache, address_spaces_share_it) {
  const auto cache = make_cache();
  memory_device dev_a(16u << 20);
  memory_device dev_b(16u << 20);
  {
    address_space a(*cache, dev_a, {});
    address_space b(*cache, dev_b, {.block_bytes = 4096});
    std::vector<std::byte> out(1u << 16);
    for (std::uint64_t at = 0; at < 16u << 20; at += out.size()) {
      ASSERT_TRUE(sync_wait(a.write(at, filled(out.size(), 1))));
      ASSERT_TRUE(sync_wait(b.write(at, filled(out.size(), 2))));
      ASSERT_TRUE(sync_wait(a.flush()));
      ASSERT_TRUE(sync_wait(b.flush()));
    }
    for (std::uint64_t at = 0; at < 16u << 20; at += out.size()) {
      ASSERT_TRUE(sync_wait(a.read(at, out)));
      ASSERT_EQ(out, filled(out.size(), 1));
      ASSERT_TRUE(sync_wait(b.read(at, out)));
      ASSERT_EQ(out, filled(out.size(), 2));
    }
  }
  expect_all_given_back(*cache);
}

// A device that is all hole, of any size.
class hole_device final : public device {
 public:
  explicit hole_device(std::uint64_t bytes) {
    limits_.size_bytes = bytes;
    limits_.may_have_holes = true;
  }
  const device_limits& limits() const noexcept override { return limits_; }
  void submit(bio& b) noexcept override { complete(b, -EIO); }
  result<file_extent> extent_at(std::uint64_t) const override {
    return file_extent{limits_.size_bytes, true};
  }

 private:
  device_limits limits_;
};

// Bytes that the cache needs beside the pages: frames, index nodes, buffer heads, history.
std::uint64_t metadata_bytes(page_cache& cache) {
  const page_cache_statistics s = cache.statistics();
  return s.capacity_pages * page_state_bytes + cache.nodes().statistics().total_bytes +
         cache.buffers().slabs().statistics().total_bytes + s.eviction_history_bytes;
}

TEST(page_cache, metadata_is_at_most_18_thousandths_of_what_is_cached) {
  const auto cache = make_cache(64u << 20);
  hole_device dev(1u << 30);
  address_space space(*cache, dev, {.block_bytes = 4096});
  // Full: it evicts.
  ASSERT_TRUE(sync_wait(space.prefetch(0, 128u << 20)));
  const page_cache_statistics s = cache->statistics();
  ASSERT_GT(s.evictions, 0u);
  EXPECT_LE(static_cast<double>(metadata_bytes(*cache)),
            0.018 * static_cast<double>(s.resident_pages * page_bytes));
}

TEST(page_cache, a_huge_object_costs_what_its_cached_pages_explain) {
  const auto cache = make_cache(16u << 20);
  hole_device dev(std::uint64_t{1} << 40);
  address_space space(*cache, dev, {.block_bytes = 4096});
  constexpr std::uint64_t reads = 500;
  std::vector<std::byte> out(page_bytes);
  for (std::uint64_t i = 0; i < reads; ++i) {
    ASSERT_TRUE(sync_wait(space.read((i << 40) / reads & ~std::uint64_t{4095}, out)));
  }
  EXPECT_EQ(cache->statistics().resident_pages, reads);
  // A path of its own from the root for each, at most: 28 bits of page number are 5 levels.
  EXPECT_LE(cache->nodes().statistics().objects_in_use, 4 * reads + 1);
}

}  // namespace
}  // namespace forebay
