// The cache against a flat byte array: random operations, small memory, one thread and several.

#include "forebay/cache/address_space.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "forebay/base/test_bytes.h"
#include "forebay/block/memory_device.h"

namespace forebay {
namespace {

std::vector<std::byte> random_bytes(std::mt19937_64& rng, std::size_t n) {
  std::vector<std::byte> v(n);
  for (auto& b : v) b = static_cast<std::byte>(rng());
  return v;
}

struct rig {
  explicit rig(std::uint64_t size, std::uint32_t block = 512, std::size_t cache_bytes = 4u << 20)
      : dev(size),
        cache(std::move(*page_cache::create({.bytes = cache_bytes, .huge_pages = false}))),
        space(std::make_unique<address_space>(*cache, dev,
                                              address_space::options{.block_bytes = block})) {}

  memory_device dev;
  std::unique_ptr<page_cache> cache;
  std::unique_ptr<address_space> space;
};

class model_test : public testing::TestWithParam<std::uint32_t> {};

TEST_P(model_test, random_operations_agree_with_a_flat_array) {
  const std::uint32_t block = GetParam();
  const std::uint64_t size = (16u << 20) + 2048 + (block > 2048 ? 2048 : 0);
  rig r(size, block);
  std::mt19937_64 rng(block);
  std::vector<std::byte> flat(size);
  std::vector<std::byte> out;
  for (int i = 0; i < 8000; ++i) {
    const std::uint64_t offset = rng() % size;
    const std::uint64_t length =
        1 + rng() % std::min<std::uint64_t>(size - offset, 1u << (rng() % 18));
    switch (rng() % 16) {
      case 0:
        ASSERT_TRUE(sync_wait(r.space->flush()));
        break;
      case 1: {
        ASSERT_TRUE(sync_wait(r.space->write_zeroes(offset, length, {})));
        std::fill_n(flat.begin() + static_cast<std::ptrdiff_t>(offset), length, std::byte{0});
        break;
      }
      case 2:
        ASSERT_TRUE(sync_wait(r.space->sync_range(offset, length)));
        break;
      case 3:
      case 4:
      case 5:
      case 6:
      case 7:
      case 8: {
        const auto data = random_bytes(rng, length);
        const std::size_t n = r.space->try_write(offset, data);
        ASSERT_LE(n, length);
        ASSERT_TRUE(sync_wait(r.space->write(offset + n, std::span(data).subspan(n))));
        std::copy(data.begin(), data.end(), flat.begin() + static_cast<std::ptrdiff_t>(offset));
        break;
      }
      default: {
        out.assign(length, std::byte{1});
        ASSERT_TRUE(sync_wait(r.space->read(offset, out)));
        ASSERT_EQ(0, std::memcmp(out.data(), flat.data() + offset, length)) << i;
      }
    }
  }
  ASSERT_TRUE(sync_wait(r.space->flush()));
  EXPECT_EQ(r.cache->statistics().dirty_pages, 0u);
  EXPECT_TRUE(same_bytes(flat, r.dev.contents().data()));
  r.space.reset();
  EXPECT_EQ(r.cache->statistics().resident_pages, 0u);
}

INSTANTIATE_TEST_SUITE_P(block_sizes, model_test, testing::Values(512, 1024, 2048, 4096));

TEST(address_space, threads_on_their_own_stripes_keep_their_data) {
  rig r(32u << 20);
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&r, t] {
      std::mt19937_64 rng(t);
      // Every fourth block of 512 bytes is this thread's: pages are shared, bytes are not.
      std::vector<std::uint64_t> written(2048, 0);
      for (int i = 0; i < 4000; ++i) {
        const std::size_t slot = rng() % written.size();
        const std::uint64_t offset = (slot * 4 + t) * 512 * 7;
        std::array<std::uint64_t, 64> block{};
        if (rng() % 2 == 0) {
          written[slot] = rng() | 1;
          block.fill(written[slot]);
          ASSERT_TRUE(sync_wait(r.space->write(offset, std::as_bytes(std::span(block)))));
          if (rng() % 64 == 0) {
            ASSERT_TRUE(sync_wait(r.space->flush()));
          }
        } else {
          ASSERT_TRUE(sync_wait(r.space->read(offset, std::as_writable_bytes(std::span(block)))));
          for (const auto word : block) ASSERT_EQ(word, written[slot]);
        }
      }
    });
  }
  for (auto& t : threads) t.join();
  ASSERT_TRUE(sync_wait(r.space->flush()));
}

}  // namespace
}  // namespace forebay
