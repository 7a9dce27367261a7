// page_cache_shrinker: chunks are emptied and given back, and nothing of what they held is lost.

#include "forebay/cache/shrink.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <random>
#include <thread>
#include <vector>

#include "forebay/cache/test_space.h"

namespace forebay {
namespace {

constexpr std::size_t mebibyte = 1u << 20;

// A cache with a shrinker, and a space on a device that holds what the test last wrote.
class shrink : public ::testing::Test {
 protected:
  static constexpr std::size_t cache_bytes = 24 * mebibyte;
  static constexpr std::size_t device_bytes = 40 * mebibyte;

  shrink()
      : cache_(make_cache(cache_bytes)),
        dev_(device_bytes),
        expected_(device_bytes),
        reclaim_(*cache_) {
    registry_.add(reclaim_);
    space_.emplace(*cache_, dev_, address_space::options{});
  }
  ~shrink() override {
    registry_.remove(reclaim_);
    space_.reset();
    expect_nothing_left();
  }

  void expect_nothing_left() {
    const page_cache_statistics s = cache_->statistics();
    EXPECT_EQ(s.resident_pages, 0u);
    EXPECT_EQ(s.dirty_pages, 0u);
    EXPECT_EQ(cache_->nodes().statistics().objects_in_use, 0u);
    EXPECT_EQ(cache_->buffers().slabs().statistics().objects_in_use, 0u);
  }

  void write(std::uint64_t offset, std::size_t bytes) {
    const auto data = random_bytes(rng_, bytes);
    std::copy(data.begin(), data.end(), expected_.begin() + static_cast<std::ptrdiff_t>(offset));
    ASSERT_TRUE(sync_wait(space_->write(offset, data)));
  }
  void read_all() {
    std::vector<std::byte> out(mebibyte);
    for (std::size_t at = 0; at < device_bytes; at += out.size()) {
      ASSERT_TRUE(sync_wait(space_->read(at, out)));
      ASSERT_TRUE(same_bytes(out, expected_.data() + at)) << "wrong data in the MiB at " << at;
    }
  }
  // As the monitor does it.
  void limit_to(std::uint64_t bytes) {
    cache_->memory().set_limit_bytes(bytes);
    cache_->follow_limit(bytes);
    for (int round = 0; round < 20 && cache_->memory().excess_bytes() != 0; ++round) {
      registry_.shrink(cache_->memory().excess_bytes(), shrink_goal::give_back);
      cache_->memory().trim();
    }
  }
  std::uint64_t committed() const { return cache_->memory().committed_bytes(); }

  std::mt19937_64 rng_{42};
  std::unique_ptr<page_cache> cache_;
  memory_device dev_;
  std::vector<std::byte> expected_;
  std::optional<address_space> space_;
  shrinker_registry registry_;
  page_cache_shrinker reclaim_;
};

TEST_F(shrink, an_empty_cache_gives_its_free_chunks) {
  limit_to(8 * mebibyte);
  EXPECT_LE(committed(), 8 * mebibyte);
  EXPECT_EQ(cache_->allowed_pages(), 8 * mebibyte / page_bytes);
}

TEST_F(shrink, a_full_cache_of_clean_pages_gets_under_its_limit) {
  read_all();
  EXPECT_LT(cache_->statistics().free_pages, 200u);
  limit_to(10 * mebibyte);
  EXPECT_LE(committed(), 10 * mebibyte);
  EXPECT_LE(cache_->statistics().resident_pages, 10 * mebibyte / page_bytes);
  read_all();
  EXPECT_LE(committed(), 10 * mebibyte) << "and stays there under load";
  // It grows again when it may.
  cache_->memory().set_limit_bytes(UINT64_MAX);
  cache_->follow_limit(UINT64_MAX);
  EXPECT_EQ(cache_->allowed_pages(), cache_->memory().page_count());
  read_all();
  EXPECT_GT(committed(), 23 * mebibyte);
}

TEST_F(shrink, dirty_pages_are_moved_and_stay_dirty) {
  read_all();
  // One dirty page in ten, everywhere: no chunk is without.
  for (std::uint64_t page = 0; page < device_bytes / page_bytes; page += 20) {
    write(page * page_bytes, page_bytes);
  }
  const std::uint64_t dirty = cache_->statistics().dirty_pages;
  const std::uint64_t written = cache_->statistics().pages_written;
  ASSERT_GT(dirty, 200u);
  limit_to(12 * mebibyte);
  EXPECT_LE(committed(), 12 * mebibyte);
  EXPECT_EQ(cache_->statistics().dirty_pages, dirty) << "nothing was written for it";
  EXPECT_EQ(cache_->statistics().pages_written, written);
  read_all();
  ASSERT_TRUE(sync_wait(space_->flush()));
  EXPECT_EQ(cache_->statistics().dirty_pages, 0u);
  // The device has what was written: a space that begins anew reads it.
  space_.reset();
  space_.emplace(*cache_, dev_, address_space::options{});
  read_all();
}

TEST_F(shrink, blocks_of_a_page_are_moved_with_it) {
  // Parts of pages: each has buffer heads, some blocks of them valid and dirty, others not read.
  for (std::uint64_t page = 0; page < device_bytes / page_bytes; page += 3) {
    write(page * page_bytes + 512 * (page % 7), 512);
    if (cache_->may_dirty(1)) continue;
    ASSERT_TRUE(sync_wait(space_->flush()));
  }
  limit_to(8 * mebibyte);
  read_all();
  ASSERT_TRUE(sync_wait(space_->flush()));
  limit_to(6 * mebibyte);
  EXPECT_LE(committed(), 6 * mebibyte);
  read_all();
}

TEST_F(shrink, pages_used_of_late_survive_the_ones_that_were_not) {
  read_all();
  const std::size_t hot = 4 * mebibyte;
  std::vector<std::byte> out(page_bytes);
  for (std::size_t at = 0; at < hot; at += page_bytes) {
    ASSERT_TRUE(sync_wait(space_->read(at, out)));
    ASSERT_TRUE(sync_wait(space_->read(at, out)));
  }
  limit_to(14 * mebibyte);
  EXPECT_LE(committed(), 14 * mebibyte);
  const std::uint64_t misses = cache_->statistics().misses;
  for (std::size_t at = 0; at < hot; at += page_bytes) {
    ASSERT_TRUE(sync_wait(space_->read(at, out)));
  }
  EXPECT_LT(cache_->statistics().misses - misses, hot / page_bytes / 4);
}

TEST_F(shrink, a_page_in_use_keeps_its_chunk_and_no_other) {
  read_all();
  std::vector<page_ref> pins(1);
  ASSERT_TRUE(sync_wait([&]() -> task<> {
    const result<std::size_t> n = co_await space_->pin(0, page_bytes, pins);
    if (!n) co_return fail(n.error());
    co_return result<>{};
  }()));
  arena& memory = cache_->memory();
  const std::uint32_t chunk = memory.chunk_of(*pins[0]);
  const std::vector<std::byte> before(pins[0]->data(), pins[0]->data() + page_bytes);
  limit_to(6 * mebibyte);
  EXPECT_LE(committed(), 6 * mebibyte);
  EXPECT_EQ(memory.info(chunk).state, chunk_state::online);
  EXPECT_TRUE(same_bytes(before, pins[0]->data()));
  EXPECT_EQ(memory.statistics().isolated_chunks, 0u) << "what could not be emptied is as it was";
  pins.clear();
  read_all();
}

TEST_F(shrink, with_everything_in_use_nothing_is_given_and_nothing_lost) {
  const std::size_t pages = cache_->memory().page_count() * 9 / 10;
  std::vector<page_ref> pins(pages);
  std::size_t have = 0;
  ASSERT_TRUE(sync_wait([&]() -> task<> {
    while (have < pages) {
      const result<std::size_t> n = co_await space_->pin(
          have * page_bytes, std::min<std::size_t>(64, pages - have) * page_bytes,
          std::span(pins).subspan(have));
      if (!n) co_return fail(n.error());
      have += *n;
    }
    co_return result<>{};
  }()));
  const std::uint64_t before = committed();
  limit_to(8 * mebibyte);
  EXPECT_GE(committed() + 6 * mebibyte, before) << "at most what was free";
  EXPECT_EQ(cache_->memory().statistics().isolated_chunks, 0u);
  pins.clear();
  limit_to(8 * mebibyte);
  EXPECT_LE(committed(), 8 * mebibyte);
  read_all();
}

TEST_F(shrink, frames_only_are_made_free_without_giving_back) {
  read_all();
  const std::uint64_t before = committed();
  const std::uint64_t freed = registry_.shrink(4 * mebibyte, shrink_goal::frames);
  EXPECT_GE(freed, 4 * mebibyte);
  EXPECT_GE(cache_->statistics().free_pages * page_bytes, 4 * mebibyte);
  EXPECT_EQ(committed(), before);
}

TEST_F(shrink, a_page_in_use_in_every_chunk_does_not_cost_the_others_their_place) {
  read_all();
  arena& memory = cache_->memory();
  std::vector<page_ref> pins(memory.chunk_count());
  for (std::size_t at = device_bytes; at != 0; at -= page_bytes) {
    page_ref p;
    if (!space_->try_pin(at - page_bytes, page_bytes, {&p, 1})) continue;
    page_ref& of_chunk = pins[memory.chunk_of(*p)];
    if (!of_chunk) of_chunk = std::move(p);
  }
  const page_cache_statistics before = cache_->statistics();
  ASSERT_GT(before.resident_pages, 20 * mebibyte / page_bytes);
  memory.set_limit_bytes(8 * mebibyte);
  for (int look = 0; look < 5; ++look) {
    registry_.shrink(memory.excess_bytes(), shrink_goal::give_back);
  }
  EXPECT_LT(cache_->statistics().evictions - before.evictions, arena::chunk_frames)
      << "pages went for chunks that could not be had";
  EXPECT_EQ(memory.statistics().isolated_chunks, 0u);
  pins.clear();
  limit_to(8 * mebibyte);
  EXPECT_LE(committed(), 8 * mebibyte);
  read_all();
}

TEST(shrink_refused, a_chunk_that_the_system_does_not_take_costs_its_own_pages_only) {
  class refusing_source final : public memory_source {
   public:
    result<> discard(std::span<std::byte>) override { return fail(EINVAL); }
  } source;
  auto cache = page_cache::create({.bytes = 24 * mebibyte, .huge_pages = false}, source);
  ASSERT_TRUE(cache);
  memory_device dev(40 * mebibyte);
  address_space space(**cache, dev, {});
  shrinker_registry registry;
  page_cache_shrinker reclaim(**cache);
  registry.add(reclaim);
  ASSERT_TRUE(sync_wait(space.prefetch(0, 40 * mebibyte)));
  const std::uint64_t before = (*cache)->statistics().evictions;
  (*cache)->memory().set_limit_bytes(8 * mebibyte);
  for (int look = 0; look < 5; ++look) {
    EXPECT_EQ(registry.shrink(2 * mebibyte, shrink_goal::give_back), 0u);
  }
  EXPECT_LE((*cache)->statistics().evictions - before, 2 * arena::chunk_frames);
  EXPECT_EQ((*cache)->memory().statistics().isolated_chunks, 0u);
  EXPECT_GE((*cache)->memory().statistics().give_back_failures, 5u);
  registry.remove(reclaim);
}

// Readers and writers at work while the limit goes up and down: everybody reads what he wrote.
TEST_F(shrink, under_load_everybody_reads_what_he_wrote) {
  constexpr unsigned threads = 3;
  constexpr std::size_t region = device_bytes / threads / page_bytes * page_bytes;
  std::atomic<bool> stop{false};
  std::atomic<unsigned> wrong{0};
  std::atomic<std::uint64_t> steps{0};
  std::vector<std::jthread> workers;
  for (unsigned t = 0; t < threads; ++t) {
    workers.emplace_back([&, t] {
      std::mt19937_64 rng(t);
      std::vector<std::byte> mine(region);
      std::vector<std::byte> out;
      while (!stop) {
        const std::size_t bytes = page_bytes << (rng() % 5);
        const std::size_t at = rng() % (region - bytes) / page_bytes * page_bytes;
        ++steps;
        if (rng() % 3 == 0) {
          const auto data = random_bytes(rng, bytes);
          std::copy(data.begin(), data.end(), mine.begin() + static_cast<std::ptrdiff_t>(at));
          if (!sync_wait(space_->write(t * region + at, data))) ++wrong;
          if (cache_->over_background_limit() && !sync_wait(space_->flush())) ++wrong;
        } else {
          out.resize(bytes);
          if (!sync_wait(space_->read(t * region + at, out))) ++wrong;
          if (!same_bytes(out, mine.data() + at)) {
            ++wrong;
          }
        }
      }
    });
  }
  unsigned kept = 0;
  for (int round = 0; round < 12; ++round) {
    limit_to(12 * mebibyte);
    if (committed() <= 12 * mebibyte) ++kept;
    cache_->memory().set_limit_bytes(UINT64_MAX);
    cache_->follow_limit(UINT64_MAX);
    const std::uint64_t until = steps + 200;
    while (steps < until) std::this_thread::yield();
  }
  stop = true;
  workers.clear();
  EXPECT_EQ(wrong, 0u);
  EXPECT_GE(kept, 8u) << "of 12 times";
}

}  // namespace
}  // namespace forebay
