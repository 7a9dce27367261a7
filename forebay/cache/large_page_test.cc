// One thread: not in the thread sanitizer's tree.
// Large pages: when they are made, what of them is written, what is lost with one that cannot be
// read, and a model test in which all sizes meet everything that happens to pages.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "forebay/base/sanitizer.h"
#include "forebay/block/fault_device.h"
#include "forebay/block/recorder_device.h"
#include "forebay/cache/block_api.h"
#include "forebay/cache/page_parts.h"
#include "forebay/cache/shrink.h"
#include "forebay/cache/test_space.h"

namespace forebay {
namespace {

constexpr std::size_t kib = 1u << 10;
constexpr std::size_t mib = 1u << 20;

class large_pages : public testing::Test {
 protected:
  static constexpr std::size_t device_bytes = 8 * mib;

  large_pages() : cache_(make_cache(24 * mib)), memory_(device_bytes) {
    std::mt19937_64 rng(1);
    for (std::size_t at = 0; at < device_bytes; at += sizeof(std::uint64_t)) {
      const std::uint64_t word = rng();
      std::memcpy(&memory_.contents()[at], &word, sizeof word);
    }
    expected_.assign(memory_.contents().begin(), memory_.contents().end());
  }
  ~large_pages() override {
    space_.reset();
    expect_all_given_back(*cache_);
  }

  void open(device& dev, unsigned order = 9) {
    space_.emplace(*cache_, dev, address_space::options{.max_page_order = order});
  }
  // The sizes of the pages that a range is made of now.
  std::vector<std::size_t> sizes(std::uint64_t offset, std::size_t length) {
    std::vector<page_ref> pins(length / page_bytes + 2);
    const auto n = space_->try_pin(offset, length, pins);
    if (!n) return {};
    std::vector<std::size_t> all;
    for (const page_ref& p : std::span(pins).first(*n)) all.push_back(p->bytes());
    return all;
  }
  void write(std::uint64_t offset, std::size_t bytes, unsigned value) {
    ASSERT_TRUE(sync_wait(space_->write(offset, filled(bytes, value))));
    std::fill_n(expected_.begin() + static_cast<std::ptrdiff_t>(offset), bytes, std::byte(value));
  }
  void expect_contents() {
    std::vector<std::byte> out(device_bytes);
    ASSERT_TRUE(sync_wait(space_->read(0, out)));
    EXPECT_TRUE(same_bytes(out, expected_));
  }
  bool on_device(std::uint64_t offset, std::size_t bytes) {
    return same_bytes(std::span(expected_).subspan(offset, bytes),
                      memory_.contents().subspan(offset, bytes));
  }

  std::unique_ptr<page_cache> cache_;
  memory_device memory_;
  std::vector<std::byte> expected_;
  std::optional<address_space> space_;
};

TEST_F(large_pages, are_made_where_a_miss_covers_an_aligned_stretch) {
  open(memory_);
  ASSERT_TRUE(sync_wait(space_->prefetch(2 * mib - 64 * kib - 100, 2 * mib + 128 * kib + 200)));
  // The rest of a page, 64 KiB, 2 MiB, 64 KiB, and the beginning of a page.
  EXPECT_EQ(sizes(2 * mib - 64 * kib - 100, 2 * mib + 128 * kib + 200),
            (std::vector<std::size_t>{4 * kib, 64 * kib, 2 * mib, 64 * kib, 4 * kib}));
  EXPECT_EQ(sizes(3 * mib + 5, 9000), std::vector{2 * mib});
  const page_cache_statistics s = cache_->statistics();
  EXPECT_EQ(s.resident_pages, 2 + 2 * 16 + 512u);
  EXPECT_EQ(s.misses, s.resident_pages);
  EXPECT_EQ(s.pages_read, s.resident_pages);
  EXPECT_EQ(s.hits, s.misses + 3) << "by the numbers that were asked for";
  // Not where something is already, nor for a part.
  ASSERT_TRUE(sync_wait(space_->prefetch(8 * kib, 4 * kib)));
  ASSERT_TRUE(sync_wait(space_->prefetch(0, 128 * kib)));
  EXPECT_EQ(sizes(64 * kib, 64 * kib), std::vector{64 * kib});
  EXPECT_EQ(sizes(0, 64 * kib), std::vector<std::size_t>(16, 4 * kib));
  expect_contents();
}

TEST_F(large_pages, no_larger_than_allowed) {
  open(memory_, 4);
  ASSERT_TRUE(sync_wait(space_->prefetch(0, 2 * mib)));
  EXPECT_EQ(sizes(0, 2 * mib), std::vector<std::size_t>(32, 64 * kib));
  open(memory_, 0);
  ASSERT_TRUE(sync_wait(space_->prefetch(0, 2 * mib)));
  EXPECT_EQ(sizes(0, 2 * mib), std::vector<std::size_t>(512, 4 * kib));
}

TEST_F(large_pages, only_what_is_dirty_is_written) {
  recorder_device dev(memory_);
  open(dev);
  ASSERT_TRUE(sync_wait(space_->prefetch(0, 2 * mib)));
  write(20 * kib + 100, 50, 1);
  write(mib - 100, 200, 2);
  write(mib - 200, 200, 3);
  EXPECT_EQ(cache_->statistics().dirty_pages, 3u);
  ASSERT_TRUE(sync_wait(space_->sync_range(20 * kib, 1)));
  EXPECT_EQ(cache_->statistics().dirty_pages, 0u);
  std::vector<std::pair<std::uint64_t, std::uint64_t>> wrote;
  for (const recorded_operation& o : dev.log()) {
    EXPECT_TRUE(o.op == bio_op::write && o.fua);
    wrote.emplace_back(o.offset_bytes, o.length_bytes);
  }
  EXPECT_EQ(wrote, (std::vector<std::pair<std::uint64_t, std::uint64_t>>{
                       {20 * kib, 4 * kib}, {mib - 4 * kib, 8 * kib}}));
  EXPECT_EQ(cache_->statistics().pages_written, 3u);
  EXPECT_TRUE(on_device(0, device_bytes));
  // An overwrite of a whole stretch makes the page without reading.
  const std::uint64_t read = cache_->statistics().pages_read;
  write(4 * mib, 2 * mib + 64 * kib, 4);
  EXPECT_EQ(sizes(4 * mib, 2 * mib + 64 * kib), (std::vector<std::size_t>{2 * mib, 64 * kib}));
  EXPECT_EQ(cache_->statistics().dirty_pages, 528u);
  EXPECT_EQ(cache_->statistics().pages_read, read);
  ASSERT_TRUE(sync_wait(space_->flush()));
  EXPECT_TRUE(on_device(0, device_bytes));
}

TEST_F(large_pages, a_part_that_cannot_be_read_costs_itself_only) {
  fault_device dev(memory_);
  dev.inject({.op = bio_op::read, .start_bytes = 100 * kib, .end_bytes = 100 * kib + 1});
  open(dev);
  std::vector<page_ref> pins(512);
  const auto all = sync_wait(space_->pin(0, 2 * mib, pins));
  ASSERT_FALSE(all);
  EXPECT_EQ(all.error().value(), EIO);
  for (const page_ref& p : pins) EXPECT_FALSE(p);
  std::vector<std::byte> out(100 * kib);
  EXPECT_TRUE(sync_wait(space_->read(0, out)));
  EXPECT_TRUE(same_bytes(out, expected_.data()));
  EXPECT_TRUE(sync_wait(space_->read(104 * kib, out)));
  EXPECT_FALSE(sync_wait(space_->read(100 * kib, std::span(out).first(1))));
  dev.heal();
  expect_contents();
}

TEST_F(large_pages, a_failed_write_is_told_to_whom_it_concerns) {
  fault_device dev(memory_);
  open(dev);
  ASSERT_TRUE(sync_wait(space_->prefetch(0, 2 * mib)));
  dev.inject({.op = bio_op::write, .start_bytes = mib, .end_bytes = mib + 1, .error = ENOSPC});
  write(mib, 4 * kib, 1);
  write(0, 4 * kib, 2);
  const auto flushed = sync_wait(space_->flush());
  ASSERT_FALSE(flushed);
  EXPECT_EQ(flushed.error().value(), ENOSPC);
  const page_cache_statistics s = cache_->statistics();
  EXPECT_EQ(s.dirty_pages, 1u);
  EXPECT_EQ(s.error_pages, 1u);
  EXPECT_EQ(s.write_errors, 1u);
  EXPECT_EQ(s.pages_written, 1u);
  EXPECT_TRUE(on_device(0, mib));
  EXPECT_FALSE(sync_wait(space_->sync_range(mib, 1)));
  EXPECT_TRUE(sync_wait(space_->sync_range(mib + 4 * kib, 4 * kib))) << "has no share in it";
  dev.heal();
  EXPECT_TRUE(sync_wait(space_->sync_range(mib, 1)));
  EXPECT_EQ(cache_->statistics().error_pages, 0u);
  EXPECT_TRUE(on_device(0, device_bytes));
}

TEST_F(large_pages, a_discard_takes_its_part) {
  open(memory_);
  ASSERT_TRUE(sync_wait(space_->prefetch(0, 4 * mib)));
  write(mib - 4 * kib, 128 * kib, 1);
  write(3 * mib, 4 * kib, 1);
  ASSERT_TRUE(sync_wait(space_->write_zeroes(mib, 3 * mib, {})));
  std::fill_n(expected_.begin() + mib, 3 * mib, std::byte{0});
  EXPECT_EQ(cache_->statistics().dirty_pages, 1u);
  EXPECT_EQ(cache_->statistics().resident_pages, 512u) << "the second one has gone as a whole";
  expect_contents();
  ASSERT_TRUE(sync_wait(space_->flush()));
  EXPECT_TRUE(on_device(0, device_bytes));
}

TEST_F(large_pages, splits_into_pages_of_the_same_contents) {
  open(memory_);
  ASSERT_TRUE(sync_wait(space_->prefetch(0, 2 * mib + 64 * kib)));
  for (const std::uint64_t at : {std::uint64_t{0}, std::uint64_t{2 * mib}}) {
    write(at + 8 * kib, 4 * kib, 5);
    write(at + 60 * kib, 1, 6);
    std::vector<page_ref> pins(2);
    ASSERT_TRUE(space_->try_pin(at, 1, pins));
    {
      const page_ref second = pins[0].share();
      EXPECT_FALSE(cache_->split(*pins[0])) << "somebody else has it";
    }
    const std::size_t bytes = pins[0]->bytes();
    EXPECT_TRUE(cache_->split(*pins[0]));
    EXPECT_EQ(sizes(at, bytes), std::vector<std::size_t>(bytes / page_bytes, page_bytes));
    std::vector<page_ref> parts(bytes / page_bytes);
    ASSERT_TRUE(space_->try_pin(at, bytes, parts));
    for (std::size_t i = 0; i < parts.size(); ++i) {
      EXPECT_EQ(parts[i]->test(page_dirty), i == 2 || i == 15) << i;
    }
  }
  EXPECT_EQ(cache_->statistics().dirty_pages, 4u);
  EXPECT_EQ(cache_->statistics().resident_pages, 528u);
  expect_contents();
  ASSERT_TRUE(sync_wait(space_->flush()));
  EXPECT_TRUE(on_device(0, device_bytes));
}

TEST_F(large_pages, gives_way_to_buffers) {
  open(memory_);
  ASSERT_TRUE(sync_wait(space_->prefetch(0, 2 * mib)));
  write(20 * kib, 100, 9);
  {
    const auto b = bread(*space_, 20, 1024);
    ASSERT_TRUE(b);
    EXPECT_TRUE(same_bytes({(*b)->data, 1024}, expected_.data() + 20 * kib));
  }
  EXPECT_EQ(sizes(0, 2 * mib), std::vector<std::size_t>(512, 4 * kib));
  EXPECT_EQ(cache_->statistics().dirty_pages, 1u);
  ASSERT_TRUE(sync_wait(space_->flush()));
  EXPECT_TRUE(on_device(0, device_bytes));
}

TEST_F(large_pages, go_when_a_device_is_invalidated) {
  for (const unsigned order : {4u, 9u}) {
    open(memory_, order);
    ASSERT_TRUE(sync_wait(space_->prefetch(0, 2 * mib)));
    expect_contents();  // and so it has been used
    std::fill_n(memory_.contents().begin(), 2 * mib, std::byte(order));
    std::fill_n(expected_.begin(), 2 * mib, std::byte(order));
    ASSERT_TRUE(invalidate_bdev(*space_));
    EXPECT_EQ(cache_->statistics().resident_pages, 0u);
    expect_contents();
  }
}

TEST(large_pages_of_a_full_cache, give_way_to_buffers) {
  memory_device memory(32 * mib);
  const auto cache = make_cache(8 * mib);
  {
    address_space space(*cache, memory, {.max_page_order = 9});
    ASSERT_TRUE(sync_wait(space.prefetch(0, 2 * mib)));
    std::vector<std::byte> out(page_bytes);
    for (std::uint64_t at = 2 * mib; cache->statistics().free_pages != 0; at += page_bytes) {
      ASSERT_TRUE(sync_wait(space.read(at, out)));
    }
    EXPECT_EQ(cache->statistics().evictions, 0u);
    const auto b = bread(space, 20, 1024);
    ASSERT_TRUE(b) << b.error().message();
  }
  expect_all_given_back(*cache);
}

TEST(page_parts, agree_with_sets) {
  auto memory = arena::create({.bytes = 6 * mib, .huge_pages = false});
  ASSERT_TRUE(memory);
  std::mt19937_64 rng(3);
  for (const unsigned order : {3u, 4u, 9u}) {
    page& p = *(*memory)->allocate(order);
    page_parts parts(p);
    parts.make_empty();
    std::array<std::vector<bool>, page_parts::set_count> model;
    for (auto& m : model) m.resize(p.frames());
    for (int i = 0; i < 400; ++i) {
      const auto s = static_cast<unsigned>(rng() % model.size());
      auto& m = model[s];
      const auto set = static_cast<part_set>(s);
      const auto first = static_cast<unsigned>(rng() % p.frames());
      const auto end = first + static_cast<unsigned>(rng() % (p.frames() - first + 1));
      const bool in = rng() % 2 == 0;
      const auto from = m.begin() + first;
      const auto to = m.begin() + end;
      const auto changed = std::count(from, to, !in);
      EXPECT_EQ(in ? parts.add(set, first, end) : parts.remove(set, first, end), changed);
      std::fill(from, to, in);
      EXPECT_EQ(parts.count(set), std::count(m.begin(), m.end(), true));
      const auto other = static_cast<unsigned>(rng() % p.frames());
      const auto after = m.begin() + other;
      EXPECT_EQ(parts.has(set, other), m[other]);
      EXPECT_EQ(parts.next(set, other), std::find(after, m.end(), true) - m.begin());
      EXPECT_EQ(parts.next_without(set, other), std::find(after, m.end(), false) - m.begin());
      EXPECT_EQ(parts.count(set, other, p.frames()), std::count(after, m.end(), true));
      for (unsigned k = 0; k < model.size(); ++k) {
        EXPECT_EQ(parts.count(static_cast<part_set>(k)),
                  std::count(model[k].begin(), model[k].end(), true));
      }
    }
    put_page(p);
  }
}

// Against a flat byte array, in a cache that is a third of the device: reads, writes, zeros,
// flushes, devices that fail for a while, a limit that goes down and up, pages split.
class large_pages_model : public testing::TestWithParam<unsigned> {};

TEST_P(large_pages_model, agrees_with_a_flat_array) {
  constexpr std::size_t device_bytes = 24 * mib + 20 * kib + 512;
  constexpr std::size_t cache_bytes = 12 * mib;
  const int usual = FOREBAY_TSAN ? 40 : FOREBAY_ASAN ? 150 : 400;
  const int steps = std::getenv("FOREBAY_STRESS") != nullptr ? 100'000 : usual;
  std::mt19937_64 rng(GetParam() + 7);
  const auto cache = make_cache(cache_bytes);
  memory_device memory(device_bytes);
  fault_device dev(memory);
  std::vector<std::byte> flat(device_bytes);
  shrinker_registry registry;
  page_cache_shrinker reclaim(*cache);
  registry.add(reclaim);
  {
    address_space space(*cache, dev, {.max_page_order = GetParam()});
    std::vector<std::byte> out;
    bool failing = false;
    const auto any_range = [&](std::size_t most) {
      static constexpr std::size_t units[] = {1, 512, page_bytes, 64 * kib, mib, 2 * mib};
      const std::size_t unit = units[rng() % 6];
      const std::size_t at = rng() % device_bytes / unit * unit;
      const std::size_t length = std::min(unit * (1 + rng() % 3), most);
      return std::pair{at, std::min(length, device_bytes - at)};
    };
    for (int i = 0; i < steps && !testing::Test::HasFailure(); ++i) {
      switch (rng() % 16) {
        case 0:
        case 1:
        case 2:
        case 3:
        case 4: {
          const auto [at, n] = any_range(3 * mib);
          out.resize(n);
          const auto r = sync_wait(space.read(at, out));
          ASSERT_TRUE(r || failing) << r.error().message();
          if (!r) break;
          ASSERT_TRUE(same_bytes(out, flat.data() + at))
              << "step " << i << ": " << n << " bytes at " << at;
          break;
        }
        case 5:
        case 6:
        case 7:
        case 8:
        case 9: {
          if (failing) break;  // how much of it was written is not known then
          const auto [at, n] = any_range(2 * mib);
          const std::vector<std::byte> data = filled(n, static_cast<unsigned>(rng()) & 255);
          ASSERT_TRUE(sync_wait(space.write(at, data)));
          std::copy(data.begin(), data.end(), flat.begin() + std::ptrdiff_t(at));
          break;
        }
        case 10: {
          if (failing) break;
          const auto [at, n] = any_range(3 * mib);
          ASSERT_TRUE(sync_wait(space.write_zeroes(at, n, {})));
          std::fill_n(flat.begin() + std::ptrdiff_t(at), n, std::byte{0});
          break;
        }
        case 11: {
          const auto r = sync_wait(space.flush());
          ASSERT_TRUE(r || failing);
          if (failing) break;
          ASSERT_TRUE(same_bytes(flat, memory.contents().data())) << i;
          ASSERT_EQ(cache->statistics().dirty_pages, 0u);
          break;
        }
        case 12: {
          const auto [at, n] = any_range(mib);
          const auto r = sync_wait(space.sync_range(at, n));
          ASSERT_TRUE(r || failing);
          break;
        }
        case 13: {
          const std::uint64_t limit = rng() % 2 == 0 ? UINT64_MAX : 6 * mib + rng() % (5 * mib);
          cache->memory().set_limit_bytes(limit);
          cache->follow_limit(limit);
          if (cache->memory().excess_bytes() == 0) break;
          registry.shrink(cache->memory().excess_bytes(), shrink_goal::give_back);
          cache->memory().trim();
          break;
        }
        case 14: {
          page_ref p;
          if (space.try_pin(rng() % device_bytes, 1, {&p, 1})) cache->split(*p);
          break;
        }
        default: {
          failing = !failing;
          dev.heal();
          if (!failing) break;
          const std::uint64_t at = rng() % device_bytes;
          dev.inject({.op = rng() % 2 == 0 ? bio_op::read : bio_op::write,
                      .start_bytes = at,
                      .end_bytes = at + 1 + rng() % (64 * kib),
                      .error = EIO});
        }
      }
    }
    dev.heal();
    cache->memory().set_limit_bytes(UINT64_MAX);
    EXPECT_TRUE(sync_wait(space.flush()));
    EXPECT_TRUE(same_bytes(flat, memory.contents().data()));
  }
  registry.remove(reclaim);
  const page_cache_statistics s = cache->statistics();
  EXPECT_EQ(s.resident_pages + s.dirty_pages + s.writeback_pages + s.error_pages, 0u);
  EXPECT_EQ(cache->nodes().statistics().objects_in_use, 0u);
  EXPECT_EQ(cache->buffers().slabs().statistics().objects_in_use, 0u);
}

INSTANTIATE_TEST_SUITE_P(orders, large_pages_model, testing::Values(0u, 4u, 9u));

}  // namespace
}  // namespace forebay
