// Read-ahead by itself: accesses go through a cache of pages that never forgets, and what was asked
// for is compared with what was used. And at work in an address space.

#include "forebay/cache/readahead.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <random>
#include <set>

#include "forebay/block/fault_device.h"
#include "forebay/block/test_devices.h"
#include "forebay/cache/test_space.h"

namespace forebay {
namespace {

constexpr std::uint64_t object_pages = 1u << 20;
constexpr std::uint32_t window_max = 64;

class reader {
 public:
  explicit reader(std::uint64_t pages = object_pages, std::uint32_t windows = window_max)
      : policy(pages, windows), pages_(pages) {}

  // As an address space does: asks when a page is missing or marked.
  void access(std::uint64_t first, std::uint32_t pages = 1) {
    bool missed = false;
    bool marked = false;
    for (std::uint64_t i = first; i < first + pages; ++i) {
      missed = cached.insert(i).second || missed;
      marked = marked_.erase(i) != 0 || marked;
      ahead_.erase(i);
    }
    misses += missed ? 1 : 0;
    if (!missed && !marked) return;
    ++asked;
    window = policy.on_access(first, pages, missed);
    most = std::max(most, window.pages * window.count);
    for (std::uint32_t i = 0; i < window.count; ++i) {
      for (std::uint64_t p = window.piece(i); p < window.piece(i) + window.pages; ++p) {
        ASSERT_LT(p, pages_);
        if (!cached.insert(p).second) continue;
        ahead_.insert(p);
        ++read_ahead;
      }
    }
    if (window.count != 0) marked_.insert(window.marker);
  }
  std::uint64_t unused() const { return ahead_.size(); }
  void forget_unused() {
    for (const std::uint64_t p : ahead_) {
      cached.erase(p);
      marked_.erase(p);
      policy.wasted(1);
    }
    ahead_.clear();
  }

  readahead policy;
  std::set<std::uint64_t> cached;
  readahead_window window;  // the last answer
  unsigned misses = 0;
  unsigned asked = 0;
  std::uint64_t read_ahead = 0;
  std::uint32_t most = 0;

 private:
  std::uint64_t pages_;
  std::set<std::uint64_t> marked_;
  std::set<std::uint64_t> ahead_;
};

TEST(readahead, a_sequential_stream_misses_twice_and_its_window_doubles) {
  reader r;
  std::vector<std::uint32_t> windows;
  for (std::uint64_t i = 0; i < 1000; ++i) {
    const unsigned before = r.asked;
    r.access(500 + i);
    if (r.asked != before && r.window.count != 0) windows.push_back(r.window.pages);
  }
  EXPECT_EQ(r.misses, 2u);
  ASSERT_GE(windows.size(), 6u);
  windows.resize(6);
  EXPECT_EQ(windows, (std::vector<std::uint32_t>{4, 8, 16, 32, 64, 64}));
  EXPECT_LE(r.asked, 1000u / window_max + 8) << "hits in between ask nothing";
  // The marked page is one of the window that has just been asked for: there is always one ahead.
  EXPECT_LE(r.unused(), 2u * window_max);
}

TEST(readahead, large_and_changing_accesses_are_a_stream_as_well) {
  reader r;
  std::uint64_t at = 7;
  for (unsigned i = 0; i < 100; ++i) {
    const std::uint32_t pages = 1 + i * 7 % 20;
    r.access(at, pages);
    at += pages;
  }
  EXPECT_LE(r.misses, 4u);
}

TEST(readahead, stops_at_both_ends_of_the_object) {
  reader r(100);
  for (std::uint64_t i = 0; i < 100; ++i) r.access(i);
  EXPECT_EQ(r.misses, 2u);
  EXPECT_EQ(r.unused(), 0u);
  reader back(100);
  for (std::uint64_t i = 100; i-- != 0;) back.access(i);
  EXPECT_LE(back.misses, 3u);
  EXPECT_EQ(back.unused(), 0u);
  for (const std::int64_t stride : {3, -3}) {
    reader strided(100);
    for (std::int64_t i = 0; i < 33; ++i) {
      strided.access(static_cast<std::uint64_t>(stride > 0 ? stride * i : 99 + stride * i));
    }
    EXPECT_LE(strided.misses, 4u) << stride;
    EXPECT_LE(strided.unused(), 1u) << stride;
  }
}

TEST(readahead, backward_and_strided_streams_are_found) {
  reader back;
  for (std::uint64_t i = 0; i < 500; ++i) back.access(100'000 - 2 * i, 2);
  EXPECT_LE(back.misses, 3u);
  EXPECT_LE(back.unused(), 2u * window_max);
  for (const std::int64_t stride : {5, 100, -17}) {
    reader r;
    for (std::int64_t i = 0; i < 500; ++i) {
      r.access(static_cast<std::uint64_t>(500'000 + stride * i), 2);
    }
    EXPECT_LE(r.misses, 4u) << stride;
    EXPECT_LE(r.unused(), 2u * window_max) << stride << ": only what is wanted";
  }
}

TEST(readahead, random_reads_ask_for_nothing) {
  reader r;
  std::mt19937_64 rng(1);
  for (unsigned i = 0; i < 20'000; ++i) r.access(rng() % object_pages);
  // By chance two of them are neighbours.
  EXPECT_LE(r.read_ahead, 200u);
}

// Streams of every kind at once, with random reads between them: none is lost.
TEST(readahead, streams_at_once_in_random_noise) {
  reader r;
  std::mt19937_64 rng(2);
  unsigned noise = 0;
  for (std::uint64_t i = 0; i < 3000; ++i) {
    r.access(100'000 + i);
    r.access(200'000 + i);
    r.access(400'000 - i);
    r.access(500'000 + 9 * i);
    for (unsigned n = 0; n < 3; ++n) {
      const unsigned before = r.misses;
      r.access(600'000 + rng() % 400'000);
      noise += r.misses - before;
    }
  }
  EXPECT_LE(r.misses - noise, 40u);
  EXPECT_LE(r.unused(), 4 * 2 * window_max + 200u);
}

// A page of the window that was evicted before it came to be used.
TEST(readahead, a_window_that_is_lost_makes_the_next_one_smaller) {
  reader r;
  std::uint64_t at = 0;
  for (; at < 1000; ++at) r.access(at);
  EXPECT_EQ(r.window.pages, window_max);
  r.forget_unused();
  r.access(at);
  EXPECT_EQ(r.window.pages, window_max / 2);
}

// Streams that end early over and over, as reads of many small files do.
TEST(readahead, waste_limits_the_window_until_it_ends) {
  reader r;
  for (std::uint64_t i = 0; i < 400; ++i) {
    for (std::uint64_t j = 0; j < 40; ++j) r.access(i * 2000 + j);
    r.forget_unused();
  }
  EXPECT_LE(r.policy.limit_pages(), window_max / 4);
  EXPECT_GE(r.policy.limit_pages(), readahead::window_min_pages);
  for (std::uint64_t j = 0; j < 5000; ++j) r.access(900'000 + j);
  EXPECT_EQ(r.policy.limit_pages(), window_max);
}

TEST(readahead, nothing_is_asked_for_when_it_is_off_or_one_page_large) {
  EXPECT_FALSE(readahead(100, 0).enabled());
  reader one(1000, 1);
  for (std::uint64_t i = 0; i < 500; ++i) one.access(i);
  EXPECT_EQ(one.most, 1u);
  EXPECT_LE(one.misses, 2u);
}

// ---- In an address space ----

constexpr std::size_t image_bytes = 2u << 20;

// Each word says where it lies.
void fill_with_pattern(memory_device& d) {
  const std::span<std::byte> all = d.contents();
  for (std::uint64_t at = 0; at < all.size(); at += sizeof(at)) {
    std::memcpy(all.data() + at, &at, sizeof(at));
  }
}

bool is_pattern(std::span<const std::byte> data, std::uint64_t offset) {
  for (std::size_t i = 0; i < data.size(); i += sizeof(offset)) {
    std::uint64_t word = 0;
    std::memcpy(&word, data.data() + i, sizeof(word));
    if (word != offset + i) return false;
  }
  return true;
}

// Reads [from, end) by pieces in order, or backwards.
task<> read_through(address_space& space, std::uint64_t from, std::uint64_t end, std::size_t piece,
                    bool back = false) {
  std::vector<std::byte> data(piece);
  for (std::uint64_t done = 0; done < end - from; done += piece) {
    const std::uint64_t at = back ? end - done - piece : from + done;
    if (const result<> r = co_await space.read(at, data); !r) co_return r;
    EXPECT_TRUE(is_pattern(data, at)) << at;
  }
  co_return result<>{};
}

// The same for image_bytes on a loop, which must outlive what is read ahead.
task<> read_alone(address_space& space, std::uint64_t from, std::size_t piece, bool back) {
  const result<> r = co_await read_through(space, from, from + image_bytes, piece, back);
  co_await space.read_ahead_over();
  co_return r;
}

// Counts reads.
class counting_device final : public device {
 public:
  explicit counting_device(device& below) : below_(below) {}
  const device_limits& limits() const noexcept override { return below_.limits(); }
  void submit(bio& b) noexcept override {
    if (b.op == bio_op::read) ++reads[static_cast<std::size_t>(b.urgency)];
    below_.submit(b);
  }
  std::array<unsigned, bio_class_count> reads{};

 private:
  device& below_;
};

TEST(readahead_of_a_space, a_plain_thread_reads_by_windows) {
  memory_device image(image_bytes);
  fill_with_pattern(image);
  counting_device dev(image);
  const auto cache = make_cache(8u << 20);
  {
    address_space space(*cache, dev, {.readahead_bytes = 128u << 10});
    ASSERT_TRUE(sync_wait(read_through(space, 0, image_bytes, page_bytes)));
    EXPECT_EQ(dev.reads[0], 2u) << "misses";
    EXPECT_LE(dev.reads[2], 4u + image_bytes / (128u << 10));
    const page_cache_statistics s = cache->statistics();
    EXPECT_EQ(s.readahead_pages, image_bytes / page_bytes - 2);
    EXPECT_EQ(s.readahead_used, s.readahead_pages);
    EXPECT_EQ(s.readahead_wasted, 0u);
    EXPECT_EQ(s.misses, 2u);
  }
  {
    address_space space(*cache, dev, {.block_bytes = 512});
    dev.reads = {};
    ASSERT_TRUE(sync_wait(read_through(space, 0, image_bytes, page_bytes)));
    EXPECT_EQ(dev.reads[0], image_bytes / page_bytes) << "switched off";
  }
  expect_all_given_back(*cache);
}

TEST(readahead_of_a_space, loops_read_ahead_of_streams_in_a_small_cache) {
  memory_device image(image_bytes * 4);
  fill_with_pattern(image);
  slow_device dev(image, 30'000);
  const auto cache = make_cache();
  {
    address_space space(*cache, dev, {.readahead_bytes = 64u << 10});
    run_on_loops(2, [&](unsigned thread) {
      const std::uint64_t from = thread * 2 * image_bytes;
      task_list tasks;
      tasks.push_back(read_alone(space, from, page_bytes, false));
      tasks.push_back(read_alone(space, from + image_bytes, 2 * page_bytes, true));
      return tasks;
    });
    EXPECT_EQ(dev.broken_rules(), 0u);
    const page_cache_statistics s = cache->statistics();
    EXPECT_GT(s.readahead_used, image_bytes / page_bytes);
    EXPECT_GT(s.readahead_used, 8 * s.readahead_wasted);
  }
  expect_all_given_back(*cache);
}

TEST(readahead_of_a_space, an_error_ahead_is_the_error_of_who_reads_there) {
  memory_device image(image_bytes);
  fill_with_pattern(image);
  fault_device dev(image);
  const auto cache = make_cache(8u << 20);
  {
    address_space space(*cache, dev, {.readahead_bytes = 64u << 10});
    constexpr std::uint64_t bad = 40 * page_bytes;
    dev.inject({.op = bio_op::read, .start_bytes = bad, .end_bytes = bad + page_bytes});
    EXPECT_TRUE(sync_wait(read_through(space, 0, bad, page_bytes)));
    EXPECT_GT(dev.injected(), 0u) << "it was read ahead";
    EXPECT_FALSE(sync_wait(read_through(space, bad, bad + page_bytes, page_bytes)));
    EXPECT_TRUE(sync_wait(read_through(space, bad + page_bytes, image_bytes, page_bytes)));
    dev.heal();
    EXPECT_TRUE(sync_wait(read_through(space, 0, image_bytes, page_bytes)));
  }
  expect_all_given_back(*cache);
}

TEST(readahead_of_a_space, what_is_evicted_unused_is_counted) {
  memory_device image(image_bytes * 4);
  fill_with_pattern(image);
  const auto cache = make_cache();
  {
    address_space space(*cache, image, {.readahead_bytes = 256u << 10});
    for (std::uint64_t at = 0; at < 4 * image_bytes; at += 512u << 10) {
      ASSERT_TRUE(sync_wait(read_through(space, at, at + 8 * page_bytes, page_bytes)));
    }
    EXPECT_TRUE(sync_wait(read_through(space, 0, 4 * image_bytes, 32 * page_bytes)));
    const page_cache_statistics s = cache->statistics();
    EXPECT_GT(s.readahead_wasted, 0u);
    EXPECT_LE(s.readahead_wasted + s.readahead_used, s.readahead_pages);
  }
  expect_all_given_back(*cache);
}

// Who has waited for its end may take the space away, whatever the thread that read ahead still
// does to tell him. (For the thread sanitizer.)
TEST(readahead_of_a_space, may_go_when_read_ahead_is_over) {
  memory_device image(image_bytes);
  fill_with_pattern(image);
  slow_device dev(image, 100'000);
  const auto cache = make_cache(8u << 20);
  for (int i = 0; i < 10; ++i) {
    auto space = std::make_unique<address_space>(
        *cache, dev, address_space::options{.readahead_bytes = 64u << 10});
    std::atomic<bool> all_read{false};
    std::atomic<bool> gone{false};
    struct tasks_of {
      static task<> read(address_space& s, std::atomic<bool>& read_all, std::atomic<bool>& end) {
        EXPECT_TRUE(co_await read_through(s, 0, 16 * page_bytes, page_bytes));
        read_all.store(true);
        read_all.notify_all();
        while (!end.load()) co_await sleep_for(50'000);
        co_return result<>{};
      }
      static task<> wait(address_space& s) {
        co_await s.read_ahead_over();
        co_return result<>{};
      }
    };
    std::jthread other([&] {
      all_read.wait(false);
      EXPECT_TRUE(sync_wait(tasks_of::wait(*space)));
      space.reset();
      gone.store(true);
    });
    run_on_loops(1, [&](unsigned) {
      task_list tasks;
      tasks.push_back(tasks_of::read(*space, all_read, gone));
      return tasks;
    });
  }
  expect_all_given_back(*cache);
}

TEST(readahead_of_a_space, is_bound_to_windows_of_a_size) {
  readahead policy(1u << 20, 64);
  const auto largest = [&policy](std::uint64_t from) {
    std::uint32_t pages = 0;
    for (int windows = 0; windows < 20;) {
      const readahead_window w = policy.on_access(from, 1, false);
      pages = std::max(pages, w.pages);
      windows += w.count != 0 ? 1 : 0;
      from = w.count != 0 ? w.marker : from + 1;
    }
    return pages;
  };
  EXPECT_EQ(largest(0), 64u);
  policy.set_window_bound(16);
  EXPECT_EQ(policy.limit_pages(), 16u);
  EXPECT_EQ(largest(10'000), 16u);
  policy.set_window_bound(0);
  EXPECT_EQ(largest(20'000), readahead::window_min_pages);
  policy.set_window_bound(UINT32_MAX);
  EXPECT_EQ(largest(30'000), 64u);
  // Each access is more than a window may be: read ahead in part, but not with gaps between.
  const auto ahead_of = [&policy](std::uint64_t from, std::uint64_t stride) {
    std::uint32_t pages = 0;
    for (std::uint64_t i = 0; i < 8; ++i) {
      const readahead_window w = policy.on_access(from + i * stride, 32, true);
      pages = std::max(pages, w.pages * w.count);
    }
    return pages;
  };
  EXPECT_GE(ahead_of(40'000, 48), 32u);
  policy.set_window_bound(16);
  EXPECT_EQ(ahead_of(50'000, 32), 16u);
  EXPECT_EQ(ahead_of(60'000, 48), 0u);
  // It stays one stream, and pushes no other out.
  constexpr std::uint64_t apart = 100'000;
  std::array<readahead_window, readahead::streams_max - 1> others;
  for (std::uint64_t i = 0; i < others.size(); ++i) {
    static_cast<void>(policy.on_access(i * apart, 1, true));
    others[i] = policy.on_access(i * apart + 1, 1, true);
    EXPECT_NE(others[i].pages, 0u);
  }
  for (std::uint64_t i = 0; i < 64; ++i)
    static_cast<void>(policy.on_access(900'000 + i * 48, 32, true));
  for (const readahead_window& w : others) {
    EXPECT_NE(policy.on_access(w.marker, 1, false).pages, 0u) << w.marker;
  }
}

TEST(readahead_of_a_space, waste_is_weighed_in_pages_of_4_kib) {
  readahead policy(1u << 20, 64);
  const auto asks_for = [&policy](std::uint64_t from) {
    std::uint32_t pages = 0;
    for (std::uint64_t at = from; pages < 64 * 4;) {
      const readahead_window w = policy.on_access(at, 1, false);
      pages += w.pages;
      at = w.count != 0 ? w.marker : at + 1;
    }
  };
  asks_for(0);
  policy.wasted(2 * 64);  // as a page of 2 MiB is, or two of 256 KiB
  asks_for(1000);
  EXPECT_EQ(policy.limit_pages(), 32u);
}

}  // namespace
}  // namespace forebay
