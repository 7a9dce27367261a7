// Address spaces in event loops, over a device that takes its time: real waiting, in random order.

#include <gtest/gtest.h>

#include <thread>

#include "forebay/block/recorder_device.h"
#include "forebay/block/test_devices.h"
#include "forebay/cache/test_space.h"

namespace forebay {
namespace {

// A stripe is the part of the device that one coroutine alone reads and writes. Its bytes lie
// scattered: block k of stripe s is block k * stripes + s of the device, so that pages are shared
// by many coroutines and bytes by none.
struct stripe {
  address_space* space = nullptr;
  std::uint64_t number = 0;
  std::uint64_t count = 0;
  std::uint64_t piece_bytes = 0;
  std::vector<std::byte> flat;
  std::mt19937_64 rng;

  std::uint64_t place(std::uint64_t piece) const { return (piece * count + number) * piece_bytes; }
  std::uint64_t pieces() const { return flat.size() / piece_bytes; }
};

task<> work_on_stripe(stripe& s, int operations) {
  std::vector<std::byte> out;
  for (int i = 0; i < operations; ++i) {
    const std::uint64_t piece = s.rng() % s.pieces();
    const std::uint64_t from = s.rng() % s.piece_bytes;
    const std::uint64_t n = 1 + s.rng() % (s.piece_bytes - from);
    const std::uint64_t at = s.place(piece) + from;
    const auto mine = std::span(s.flat).subspan(piece * s.piece_bytes + from, n);
    const std::uint64_t what = s.rng() % 16;
    if (what < 6) {
      const auto data = random_bytes(s.rng, n);
      const std::size_t quick = what < 3 ? s.space->try_write(at, data) : 0;
      const auto r = co_await s.space->write(at + quick, std::span(data).subspan(quick));
      EXPECT_TRUE(r) << r.error().message();
      std::copy(data.begin(), data.end(), mine.begin());
    } else if (what == 6) {
      EXPECT_TRUE(co_await s.space->write_zeroes(at, n, {}));
      std::fill(mine.begin(), mine.end(), std::byte{0});
    } else if (what == 7) {
      EXPECT_TRUE(co_await s.space->sync_range(at, n));
    } else if (what == 8 && s.rng() % 4 == 0) {
      EXPECT_TRUE(co_await s.space->flush());
    } else if (what == 9) {
      EXPECT_TRUE(co_await s.space->prefetch(at, n));
    } else {
      out.assign(n, std::byte{1});
      const auto r = co_await s.space->read(at, out);
      EXPECT_TRUE(r);
      if (!same_bytes(out, mine.data())) {
        ADD_FAILURE() << "stripe " << s.number << " operation " << i << " at " << at;
        co_return result<>{};
      }
    }
  }
  co_return result<>{};
}

struct shape {
  const char* name;
  unsigned threads;
  unsigned per_thread;
  std::uint64_t piece_bytes;
  std::uint64_t stripe_bytes;
  std::uint32_t block_bytes;
  int operations;
};

class loops : public testing::TestWithParam<shape> {};

TEST_P(loops, every_coroutine_finds_its_own_bytes) {
  const shape& p = GetParam();
  const unsigned count = p.threads * p.per_thread;
  // Three times the cache, with an end inside a page.
  const std::uint64_t tail = p.block_bytes < page_bytes ? p.block_bytes : 0;
  memory_device memory(p.stripe_bytes * count + tail, 512);
  slow_device dev(memory, 200'000);
  const auto cache = make_cache();
  {
    address_space space(*cache, dev, {.block_bytes = p.block_bytes});
    std::vector<std::unique_ptr<stripe>> stripes;
    for (unsigned i = 0; i < count; ++i) {
      stripes.push_back(std::make_unique<stripe>());
      *stripes.back() = {&space,
                         i,
                         count,
                         p.piece_bytes,
                         std::vector<std::byte>(p.stripe_bytes),
                         std::mt19937_64(i)};
    }
    std::atomic<unsigned> left{count};
    struct counted {
      static task<> go(stripe& s, int operations, std::atomic<unsigned>& open) {
        co_await work_on_stripe(s, operations);
        if (open.fetch_sub(1) == 1) s.space->stop_flusher();
        co_return result<>{};
      }
    };
    run_on_loops(p.threads, [&](unsigned t) {
      task_list tasks;
      if (t == 0) tasks.push_back(space.run_flusher());
      for (unsigned i = t; i < count; i += p.threads) {
        tasks.push_back(counted::go(*stripes[i], p.operations, left));
      }
      return tasks;
    });
    ASSERT_TRUE(sync_wait(space.flush()));
    EXPECT_EQ(cache->statistics().dirty_pages, 0u);
    const auto stored = memory.contents();
    for (const auto& s : stripes) {
      for (std::uint64_t piece = 0; piece < s->pieces(); ++piece) {
        const auto want = std::span(s->flat).subspan(piece * p.piece_bytes, p.piece_bytes);
        ASSERT_TRUE(same_bytes(want, stored.data() + s->place(piece)))
            << "stripe " << s->number << " piece " << piece;
      }
    }
    EXPECT_GT(dev.most_under_way(), 1u);
    EXPECT_EQ(dev.broken_rules(), 0u);
  }
  expect_all_given_back(*cache);
}

INSTANTIATE_TEST_SUITE_P(shapes, loops,
                         testing::Values(shape{"one_loop", 1, 8, 1024, 1u << 20, 512, 400},
                                         shape{"two_loops", 2, 6, 700, 700 * 1400, 512, 400},
                                         shape{"three_loops", 3, 4, 5000, 5000 * 200, 1024, 300},
                                         shape{"whole_pages", 2, 4, 1u << 17, 12u << 17, 4096, 80},
                                         shape{"large_pieces", 3, 3, 300'000, 5 * 300'000, 512,
                                               60}),
                         [](const auto& way) { return way.param.name; });

// Coroutines that hold pins, dirty everything and discard at once, in a cache that is far too small
// for them: everybody comes to his end.
task<> hold_pins(address_space& space, unsigned seed) {
  std::mt19937_64 rng(seed);
  std::vector<page_ref> pins(100);
  for (int i = 0; i < 10; ++i) {
    const std::uint64_t at = rng() % (space.size_bytes() - 100 * page_bytes);
    const auto n = co_await space.pin(at, 99 * page_bytes, pins);
    EXPECT_TRUE(n && *n >= 1);
    co_await sleep_for(rng() % 300'000);
    for (page_ref& p : pins) p.reset();
  }
  co_return result<>{};
}

task<> dirty_everything(address_space& space, unsigned seed) {
  std::mt19937_64 rng(seed);
  const auto data = random_bytes(rng, 150 * page_bytes + 77);
  for (int i = 0; i < 8; ++i) {
    EXPECT_TRUE(co_await space.write(rng() % (space.size_bytes() - data.size()), data));
  }
  co_return result<>{};
}

task<> discard_and_flush(address_space& space, unsigned seed) {
  std::mt19937_64 rng(seed);
  for (int i = 0; i < 12; ++i) {
    const std::uint64_t at = rng() % (space.size_bytes() - (4u << 20));
    const std::uint64_t n = rng() % (4u << 20);
    if (i % 3 == 0) {
      EXPECT_TRUE(co_await space.discard(at, n));
    } else if (i % 3 == 1) {
      EXPECT_TRUE(co_await space.write_zeroes(at, n, {}));
    } else {
      EXPECT_TRUE(co_await space.flush());
    }
  }
  co_return result<>{};
}

TEST(loops, everybody_gets_through_a_cache_that_is_too_small) {
  for (const bool flusher : {true, false}) {
    memory_device memory(16u << 20);
    slow_device dev(memory, 300'000);
    const auto cache = make_cache();
    {
      address_space space(*cache, dev, {});
      std::atomic<int> left{2 * 12};
      struct counted {
        static task<> go(task<> work, std::atomic<int>& open, address_space& s) {
          co_await std::move(work);
          if (open.fetch_sub(1) == 1) s.stop_flusher();
          co_return result<>{};
        }
      };
      run_on_loops(2, [&](unsigned t) {
        task_list tasks;
        if (t == 0 && flusher) tasks.push_back(space.run_flusher());
        for (unsigned i = 0; i < 4; ++i) {
          const unsigned seed = t * 100 + i;
          tasks.push_back(counted::go(hold_pins(space, seed), left, space));
          tasks.push_back(counted::go(dirty_everything(space, seed), left, space));
          tasks.push_back(counted::go(discard_and_flush(space, seed), left, space));
        }
        return tasks;
      });
      ASSERT_TRUE(sync_wait(space.flush()));
      const auto s = cache->statistics();
      EXPECT_EQ(s.dirty_pages, 0u);
      EXPECT_EQ(s.writeback_pages, 0u);
      // What is cached is what is stored.
      std::vector<std::byte> out(space.size_bytes());
      ASSERT_TRUE(sync_wait(space.read(0, out)));
      EXPECT_TRUE(same_bytes(out, memory.contents().data()));
      EXPECT_EQ(dev.broken_rules(), 0u);
    }
    expect_all_given_back(*cache);
  }
}

// The flusher alone brings dirty data to the device once there is much of it.
task<> dirty_much(address_space& space, std::uint64_t pages) {
  const auto data = filled(page_bytes, 5);
  for (std::uint64_t i = 0; i < pages; ++i) {
    EXPECT_TRUE(co_await space.write(i * page_bytes, data));
  }
  co_return result<>{};
}

task<> wait_until_clean(address_space& space, page_cache& cache, std::uint64_t pages) {
  co_await dirty_much(space, pages);
  for (int i = 0; i < 20000 && cache.over_background_limit(); ++i) co_await sleep_for(100'000);
  space.stop_flusher();
  co_return result<>{};
}

TEST(flusher, starts_at_the_background_limit) {
  memory_device memory(8u << 20);
  slow_device dev(memory, 100'000);
  const auto cache = make_cache();
  {
    address_space space(*cache, dev, {});
    const std::uint64_t pages = cache->statistics().background_limit_pages + 10;
    run_on_loops(1, [&](unsigned) {
      task_list tasks;
      tasks.push_back(space.run_flusher());
      tasks.push_back(wait_until_clean(space, *cache, pages));
      return tasks;
    });
    EXPECT_FALSE(cache->over_background_limit());
    EXPECT_GT(cache->statistics().pages_written, 0u);
    EXPECT_EQ(cache->statistics().throttled_writes, 0u);
  }
  expect_all_given_back(*cache);
}

// Writers that are faster than their device are slowed, and what they wrote is there.
TEST(loops, writers_are_slowed_on_the_way_to_the_limit) {
  constexpr std::uint64_t pages = 6000;
  constexpr unsigned writers = 4;
  memory_device memory(pages * page_bytes);
  slow_device dev(memory, 2'000'000);
  const auto cache = make_cache();
  address_space space(*cache, dev, {});
  std::atomic<unsigned> left{writers};
  const auto value_of = [](std::uint64_t page) { return static_cast<std::byte>(page % 251 + 1); };
  const auto writer = [&](unsigned number) -> task<> {
    std::vector<std::byte> data(page_bytes);
    // Not neighbours, which would go out as one.
    for (std::uint64_t i = number; i < pages; i += writers) {
      const std::uint64_t page = i * 7 % pages;
      std::fill(data.begin(), data.end(), value_of(page));
      EXPECT_TRUE(co_await space.write(page * page_bytes, data));
    }
    if (left.fetch_sub(1) == 1) space.stop_flusher();
    co_return result<>{};
  };
  run_on_loops(2, [&](unsigned t) {
    task_list tasks;
    if (t == 0) tasks.push_back(space.run_flusher());
    for (unsigned w = t; w < writers; w += 2) tasks.push_back(writer(w));
    return tasks;
  });
  EXPECT_EQ(dev.broken_rules(), 0u);
  EXPECT_GT(cache->statistics().paced_writes, 0u);
  ASSERT_TRUE(sync_wait(space.flush()));
  for (std::uint64_t page = 0; page < pages; ++page) {
    ASSERT_EQ(memory.contents()[page * page_bytes], value_of(page)) << page;
  }
}

}  // namespace
}  // namespace forebay
