// The miss-ratio curve against an exact LRU stack, its sampler under threads, and both in a cache.

#include "forebay/cache/miss_ratio_curve.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <thread>

#include "forebay/block/memory_device.h"
#include "forebay/cache/access_sampler.h"
#include "forebay/cache/address_space.h"

namespace forebay {
namespace {

// The reuse distance of each access, by a list in the order of last use; none for a first one.
std::vector<std::uint32_t> distances(std::span<const std::uint32_t> trace) {
  std::vector<std::uint32_t> stack;
  std::vector<std::uint32_t> out;
  for (const std::uint32_t page : trace) {
    const auto at = std::ranges::find(stack.rbegin(), stack.rend(), page);
    if (at == stack.rend()) {
      out.push_back(UINT32_MAX);
    } else {
      out.push_back(static_cast<std::uint32_t>(at - stack.rbegin()));
      stack.erase(std::next(at).base());
    }
    stack.push_back(page);
  }
  return out;
}

double exact(std::span<const std::uint32_t> distances, std::uint64_t pages) {
  const auto misses = std::ranges::count_if(distances, [=](std::uint32_t d) { return d >= pages; });
  return static_cast<double>(misses) / static_cast<double>(distances.size());
}

// Some pages much more often than others, with a scan in between.
std::vector<std::uint32_t> some_trace(std::uint32_t pages, std::size_t accesses, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<std::uint32_t> trace;
  while (trace.size() < accesses) {
    const double u = static_cast<double>(random()) / 0x1p32;
    trace.push_back(static_cast<std::uint32_t>(std::pow(u, 3) * pages) * 7919);
    if (trace.size() % (accesses / 4) == 0) {
      for (std::uint32_t p = 0; p < pages / 4; ++p) trace.push_back(p * 7919);
    }
  }
  return trace;
}

TEST(miss_ratio_curve, is_exact_where_all_pages_are_in_the_sample) {
  const auto trace = some_trace(400, 20'000, 1);
  const auto known = distances(trace);
  // 512 pages have 2,048 places, so they are numbered anew every 1,600 accesses.
  const auto curve = miss_ratio_curve::create({.pages_max = 512});
  EXPECT_EQ(curve->miss_ratio(1, 0), 1);
  EXPECT_TRUE(curve->points(0).empty());
  for (const std::uint32_t p : trace) curve->access(miss_ratio_curve::hash(p));
  EXPECT_NEAR(curve->rate(), 1, 1e-9);
  EXPECT_EQ(curve->accesses(), trace.size());
  // Up to 32 each distance has a bucket.
  for (std::uint64_t pages = 1; pages <= 32; ++pages) {
    EXPECT_NEAR(curve->miss_ratio(pages, trace.size()), exact(known, pages), 1e-6) << pages;
  }
  double last = 1;
  for (const auto& [pages, ratio] : curve->points(trace.size())) {
    EXPECT_NEAR(ratio, exact(known, pages), 1e-6) << pages;
    EXPECT_LE(ratio, last);
    last = ratio;
  }
  EXPECT_NEAR(last, exact(known, 400), 1e-6);
}

TEST(miss_ratio_curve, is_near_where_a_sample_has_to_do) {
  const auto trace = some_trace(5000, 30'000, 2);
  const auto known = distances(trace);
  const auto curve = miss_ratio_curve::create({.pages_max = 1024});
  for (const std::uint32_t p : trace) curve->access(miss_ratio_curve::hash(p));
  EXPECT_LT(curve->rate(), 0.3);
  EXPECT_GE(curve->pages(), 1024u * 3 / 4);
  EXPECT_LT(curve->pages(), 1024u);
  double sum = 0;
  for (int i = 1; i <= 20; ++i) {
    const auto pages = static_cast<std::uint64_t>(i) * 250;
    const double error = std::abs(curve->miss_ratio(pages, trace.size()) - exact(known, pages));
    EXPECT_LT(error, 0.05) << pages;
    sum += error;
  }
  EXPECT_LT(sum / 20, 0.025);
}

TEST(miss_ratio_curve, thinning_leaves_the_curve_where_it_was) {
  const auto trace = some_trace(3000, 40'000, 3);
  const auto curve = miss_ratio_curve::create({.pages_max = 4096});
  for (const std::uint32_t p : trace) curve->access(miss_ratio_curve::hash(p));
  const double before = curve->miss_ratio(700, trace.size());
  const std::uint32_t pages = curve->pages();
  curve->thin();
  EXPECT_NEAR(curve->pages(), pages / 2, pages / 10);
  EXPECT_NEAR(curve->miss_ratio(700, trace.size()), before, 1e-6);
  // The pages that are left are known still: what comes now is no first access.
  const auto again = some_trace(3000, 40'000, 4);
  for (const std::uint32_t p : again) curve->access(miss_ratio_curve::hash(p));
  EXPECT_LE(curve->pages(), pages / 2 + pages / 10);
  EXPECT_NEAR(curve->miss_ratio(700, trace.size() + again.size()), before, 0.03);
  curve->start_anew(0.5, trace.size() + again.size());
  EXPECT_EQ(curve->pages(), 0u);
  EXPECT_TRUE(curve->points(trace.size() + again.size()).empty());
}

TEST(miss_ratio_curve, what_was_long_ago_counts_less) {
  const auto curve = miss_ratio_curve::create({.pages_max = 512});
  std::uint64_t all = 0;
  const auto loop = [&](std::uint32_t pages) {
    for (int i = 0; i < 10'000; ++i, ++all) {
      curve->access(miss_ratio_curve::hash(all % pages));
    }
  };
  loop(300);
  EXPECT_GT(curve->miss_ratio(200, all), 0.99);
  for (int i = 0; i < 30; ++i) curve->age(0.9, all);
  loop(100);
  EXPECT_LT(curve->miss_ratio(200, all), 0.05);
}

// An estimate leaves out the accesses that are on their way to the curve, of which there may be
// more than there were since the curve last aged.
TEST(miss_ratio_curve, an_estimate_may_know_of_fewer_accesses_than_its_last_aging) {
  const auto curve = miss_ratio_curve::create({.pages_max = 512});
  ASSERT_NE(curve, nullptr);
  for (std::uint64_t i = 0; i < 1000; ++i) curve->access(miss_ratio_curve::hash(i % 100));
  EXPECT_NEAR(curve->miss_ratio(100, 1000), 0.1, 0.001);
  curve->age(0.5, 1000);
  EXPECT_NEAR(curve->miss_ratio(100, 990), 0.1, 0.05);
  EXPECT_EQ(curve->miss_ratio(1, 990), 1);
  curve->age(0.5, 990);
  EXPECT_NEAR(curve->miss_ratio(100, 1000), 0.1, 0.05);
  EXPECT_GT(curve->miss_ratio(1, 1000), 0.95);
}

TEST(access_sampler, keeps_within_its_budget_and_near_the_curve) {
  constexpr std::uint32_t pages = 10'000;
  constexpr std::size_t rounds = 100'000;
  counter hits;
  counter misses;
  // The curve has room for less than half of the pages. A twentieth of the accesses fills the
  // budget of a tenth of a second, so a fast machine halves the sample four times; not once more,
  // or it would be so small that it is begun anew where both threads are held up for a while.
  const auto sampler = access_sampler::create(
      {.curve = {.pages_max = 4096}, .accesses_per_second = 100'000}, hits, misses);
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 2; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(t);
      for (std::size_t i = 0; i < rounds; ++i) {
        hits.add();
        sampler->touch(random() % pages);
      }
    });
  }
  for (std::thread& t : threads) t.join();
  const miss_ratio_estimate e = sampler->estimate();
  EXPECT_LT(e.rate, 0.3);
  EXPECT_LT(e.sampled_accesses, rounds);
  EXPECT_LT(e.bytes, 128u << 10);
  ASSERT_FALSE(e.points.empty());
  // All pages are used alike: half of them hit half of the accesses that are not first ones.
  const auto half = std::ranges::find_if(e.points, [](const auto& p) { return p.pages >= 5000; });
  ASSERT_NE(half, e.points.end());
  const double first = pages / (2.0 * rounds);
  const double missed = 1 - static_cast<double>(half->pages) / pages;
  EXPECT_NEAR(half->miss_ratio, first + (1 - first) * missed, 0.15);
}

TEST(access_sampler, sees_what_a_cache_counts) {
  constexpr std::uint64_t pages = 3000;
  auto cache = *page_cache::create({.bytes = 8u << 20, .miss_ratios = true});
  auto without = *page_cache::create({.bytes = page_cache::min_bytes});
  EXPECT_TRUE(without->miss_ratios().points.empty());
  memory_device dev(pages * page_bytes);
  address_space space(*cache, dev, {.block_bytes = 4096});
  const auto touch_all = [&](bool write) {
    std::array<std::byte, page_bytes> data{};
    for (std::uint64_t p = 0; p < pages; ++p) {
      ASSERT_TRUE(write ? sync_wait(space.write(p * page_bytes, data))
                        : sync_wait(space.read(p * page_bytes, data)));
    }
    ASSERT_TRUE(sync_wait(space.flush()));
  };
  // A loop over more than fits: nothing would hit in less than all of it. Half of it is of writes.
  for (const bool write : {false, true, false, true}) touch_all(write);
  const miss_ratio_estimate e = cache->miss_ratios();
  ASSERT_FALSE(e.points.empty());
  double below = 1;
  for (const auto& [size, ratio] : e.points) {
    if (size < pages * 9 / 10) below = ratio;
  }
  EXPECT_GT(below, 0.9);
  EXPECT_NEAR(e.points.back().miss_ratio, 0.25, 0.05);
  EXPECT_NEAR(static_cast<double>(e.points.back().pages), pages, pages * 0.15);
  // Pages in the cache, by views and pins.
  const std::uint64_t before = e.sampled_accesses;
  std::uint64_t seen = 0;
  for (int i = 0; i < 2000; ++i) {
    for (std::uint64_t p = pages - 40; p < pages; ++p) {
      if (i % 2 == 0 ? static_cast<bool>(space.try_view(p))
                     : static_cast<bool>(space.try_pin_page(p))) {
        ++seen;
      }
    }
  }
  EXPECT_EQ(seen, 80'000u);
  EXPECT_GT(cache->miss_ratios().sampled_accesses, before + 31);
  const miss_ratio_estimate after = cache->miss_ratios();
  const auto fits = std::ranges::find_if(after.points, [](const auto& p) { return p.pages >= 64; });
  ASSERT_NE(fits, after.points.end());
  EXPECT_NEAR(fits->miss_ratio, 12'000.0 / 92'000, 0.03);
}

}  // namespace
}  // namespace forebay
