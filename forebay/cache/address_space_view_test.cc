// Views and optimistic reads: what they see, what ends them, and that they are never torn.

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>

#include "forebay/cache/test_space.h"

namespace forebay {
namespace {

class views : public testing::Test {
 protected:
  static constexpr std::uint64_t device_bytes = 64 * page_bytes;

  void write(std::uint64_t at, const std::vector<std::byte>& data) {
    ASSERT_TRUE(sync_wait(space.write(at, data)));
  }
  page_ref pin(std::uint64_t index) {
    std::array<page_ref, 1> out;
    EXPECT_TRUE(sync_wait(space.pin(index * page_bytes, page_bytes, out)));
    return std::move(out[0]);
  }

  memory_device dev{device_bytes};
  std::unique_ptr<page_cache> cache = make_cache();
  address_space space{*cache, dev, {.block_bytes = 512}};
};

TEST_F(views, see_pages_that_are_wholly_valid) {
  EXPECT_FALSE(space.try_view(3)) << "not in the cache";
  write(3 * page_bytes + 512, filled(512, 7));
  EXPECT_FALSE(space.try_view(3)) << "one block of it is";
  std::vector<std::byte> out(2 * page_bytes);
  EXPECT_EQ(space.try_read(3 * page_bytes, out), 0u);
  ASSERT_TRUE(sync_wait(space.read(3 * page_bytes, {out.data(), page_bytes})));
  const auto view = space.try_view(3);
  ASSERT_TRUE(view);
  EXPECT_EQ(view.load<std::uint32_t>(512), 0x07070707u);
  EXPECT_EQ(view.load<std::uint16_t>(511), 0x0700u);
  EXPECT_TRUE(view.still_valid());
  // As far as the cache has it, from inside a page on.
  EXPECT_EQ(space.try_read(3 * page_bytes + 1000, out), page_bytes - 1000);
  EXPECT_EQ(std::count(out.begin(), out.begin() + page_bytes - 1000, std::byte{7}), 24);
  EXPECT_FALSE(space.try_view(device_bytes / page_bytes)) << "behind the end";
  EXPECT_FALSE(space.try_view(UINT64_MAX));
}

TEST_F(views, what_is_expected_changes_and_counts_nothing) {
  write(0, filled(2 * page_bytes, 7));
  const auto before = cache->statistics();
  // There, not there, behind the end, and no offset at all.
  const std::array<std::uint64_t, 6> offsets{
      0, page_bytes + 100, 5 * page_bytes, device_bytes, device_bytes * 1000, UINT64_MAX};
  space.expect_reads(offsets);
  space.expect_reads({});
  space.expect_writes(offsets);
  space.expect_writes({});
  const auto after = cache->statistics();
  EXPECT_EQ(after.hits, before.hits);
  EXPECT_EQ(after.misses, before.misses);
  EXPECT_EQ(after.resident_pages, before.resident_pages);
  EXPECT_EQ(cache->evict_pages(64), 0u) << "dirty, both";
  ASSERT_TRUE(sync_wait(space.flush()));
  std::size_t gone = 0;
  while (const std::size_t n = cache->evict_pages(64)) gone += n;
  EXPECT_EQ(gone, 2u) << "nothing was pinned";
}

TEST_F(views, end_when_the_page_changes_or_goes) {
  const auto view_of = [&](std::uint64_t index) {
    static_cast<void>(pin(index));
    const auto v = space.try_view(index);
    EXPECT_TRUE(v && v.still_valid()) << index;
    return v;
  };
  const auto written = view_of(1);
  write(page_bytes + 9, filled(1, 1));
  EXPECT_FALSE(written.still_valid());

  const auto of_dirty = view_of(1);
  ASSERT_TRUE(sync_wait(space.flush()));
  EXPECT_TRUE(of_dirty.still_valid()) << "write-back changes nothing";

  const auto evicted = view_of(2);
  while (cache->evict_pages(64) != 0) {
  }
  EXPECT_FALSE(evicted.still_valid());
  EXPECT_FALSE(space.try_view(2));

  const auto discarded = view_of(5);
  ASSERT_TRUE(sync_wait(space.discard(0, device_bytes)));
  EXPECT_FALSE(discarded.still_valid());

  // The same contents, in another frame.
  write(6 * page_bytes, filled(page_bytes, 6));
  const auto moved = view_of(6);
  page* fresh = cache->try_allocate_frame();
  page* old = pin(6).get();
  ASSERT_EQ(cache->vacate(*old, fresh), page_cache::vacated::moved);
  EXPECT_FALSE(moved.still_valid());
  const auto again = space.try_view(6);
  ASSERT_TRUE(again);
  EXPECT_EQ(again.load<std::uint8_t>(4095), 6u);
  EXPECT_TRUE(again.still_valid());
  EXPECT_FALSE(moved.still_valid());
}

// A page whose buffers keep it in the cache is emptied where it is.
TEST_F(views, end_when_the_page_is_zeroed_in_place) {
  write(16 * page_bytes + 512, filled(512, 7));
  static_cast<void>(pin(16));
  const auto view = space.try_view(16);
  ASSERT_TRUE(view);
  ASSERT_TRUE(sync_wait(space.discard(0, device_bytes)));
  EXPECT_FALSE(view.still_valid());
  const auto zeros = space.try_view(16);
  ASSERT_TRUE(zeros);
  EXPECT_EQ(zeros.load<std::uint64_t>(512), 0u);
  EXPECT_TRUE(zeros.still_valid());
}

TEST_F(views, count_as_hits_and_as_uses) {
  const page_ref p = pin(4);
  const std::uint64_t hits = cache->statistics().hits;
  for (int round = 0; round < 3; ++round) {
    p->uses.store(0);
    space.count_views_again(*p);
    EXPECT_FALSE(p->test(page_viewed));
    for (unsigned i = 1; i < 6; ++i) {
      EXPECT_TRUE(space.try_view(4));
      EXPECT_EQ(p->uses.load(), std::min<unsigned>(i, page::uses_max));
    }
    EXPECT_TRUE(p->test(page_viewed));
  }
  EXPECT_EQ(cache->statistics().hits, hits + 15);
  // A pin of a readable page counts as a view does.
  p->uses.store(0);
  space.count_views_again(*p);
  const page_ref q = space.try_pin_page(4);
  EXPECT_EQ(q.get(), p.get());
  EXPECT_EQ(p->uses.load(), 1u);
  EXPECT_FALSE(space.try_pin_page(5));
}

// A page that is read by views only is not the one to go.
TEST_F(views, keep_a_page_in_the_cache) {
  memory_device large(16u << 20);
  address_space other(*cache, large, {.block_bytes = 4096});
  static_cast<void>(pin(7));
  unsigned there = 0;
  for (std::uint64_t at = 0; at < (16u << 20); at += 16 * page_bytes) {
    for (int i = 0; i < 4; ++i) there += space.try_view(7) ? 1 : 0;
    ASSERT_TRUE(sync_wait(other.prefetch(at, 16 * page_bytes)));
  }
  EXPECT_EQ(there, 4 * 256u);
}

// Each page is always full of one number, which says which page it is. Two threads read by views
// while one writes other numbers, evicts, empties and moves pages.
TEST(views_under_change, are_never_torn_nor_another_page) {
  constexpr std::uint64_t pages = 96;
  memory_device dev(pages * page_bytes);
  const auto cache = make_cache();
  address_space space(*cache, dev, {.block_bytes = 4096});
  std::vector<std::uint64_t> data(page_bytes / 8);
  const auto write = [&](std::uint64_t index, std::uint64_t version) {
    std::fill(data.begin(), data.end(), version * pages + index);
    ASSERT_TRUE(sync_wait(space.write(index * page_bytes, std::as_bytes(std::span(data)))));
  };
  for (std::uint64_t i = 0; i < pages; ++i) write(i, 1);
  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> whole{0};
  std::atomic<std::uint64_t> wrong{0};
  std::vector<std::thread> readers;
  for (unsigned t = 0; t < 2; ++t) {
    readers.emplace_back([&, t] {
      std::mt19937_64 rng(t);
      std::array<std::uint64_t, page_bytes / 8> out;
      while (!stop.load()) {
        const std::uint64_t index = rng() % pages;
        if (space.try_read(index * page_bytes, std::as_writable_bytes(std::span(out))) == 0) {
          continue;
        }
        whole.fetch_add(1);
        // 0: discarded.
        const bool same = std::all_of(out.begin(), out.end(), [&](auto w) { return w == out[0]; });
        if (!same || (out[0] != 0 && out[0] % pages != index)) wrong.fetch_add(1);
      }
    });
  }
  const int rounds = std::getenv("FOREBAY_STRESS") != nullptr ? 200'000 : 20'000;
  std::mt19937_64 rng(99);
  for (int i = 0; i < rounds || whole.load() < 1000; ++i) {
    const std::uint64_t index = rng() % pages;
    switch (rng() % 8) {
      case 0:
        ASSERT_TRUE(sync_wait(space.flush()));
        cache->evict_pages(8);
        break;
      case 1:
        ASSERT_TRUE(sync_wait(space.discard(index / 32 * 32 * page_bytes, 32 * page_bytes)));
        break;
      case 2:
        if (page_ref p = space.try_pin_page(index); p) {
          page* old = p.get();
          p.reset();
          page* fresh = cache->try_allocate_frame();
          if (cache->vacate(*old, fresh) != page_cache::vacated::moved) put_page(*fresh);
        }
        break;
      default:
        write(index, 2 + rng() % 1000);
    }
  }
  stop.store(true);
  for (auto& t : readers) t.join();
  EXPECT_EQ(wrong.load(), 0u) << "of " << whole.load();
}

}  // namespace
}  // namespace forebay
