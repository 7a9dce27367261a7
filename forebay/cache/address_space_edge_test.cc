// One thread: not in the thread sanitizer's tree.
// Devices of one block, devices that end inside a page, devices larger than any, ranges of no
// bytes.

#include <gtest/gtest.h>

#include <map>

#include "forebay/cache/test_space.h"

namespace forebay {
namespace {

struct edge {
  std::uint64_t device_bytes;
  std::uint32_t block_bytes;
};

class edges : public testing::TestWithParam<edge> {};

TEST_P(edges, everything_works_up_to_the_last_byte) {
  const edge& p = GetParam();
  const std::uint64_t size = p.device_bytes;
  memory_device dev(size);
  const auto cache = make_cache();
  {
    address_space space(*cache, dev, {.block_bytes = p.block_bytes});
    std::mt19937_64 rng(size);
    std::vector<std::byte> flat(size);
    std::vector<std::byte> out(size);
    const auto expect_same = [&] {
      ASSERT_TRUE(sync_wait(space.read(0, out)));
      ASSERT_EQ(out, flat);
    };
    const auto write = [&](std::uint64_t at, std::uint64_t n) {
      const auto data = random_bytes(rng, n);
      ASSERT_TRUE(sync_wait(space.write(at, data)));
      std::copy(data.begin(), data.end(), flat.begin() + static_cast<std::ptrdiff_t>(at));
      expect_same();
    };
    // The last byte first, before anything is cached: its block has to be read.
    write(size - 1, 1);
    write(0, 1);
    ASSERT_TRUE(sync_wait(space.sync_range(size - 1, 1)));
    EXPECT_EQ(dev.contents().back(), flat.back());
    write(0, size);
    write(size - 512, 512);
    ASSERT_TRUE(sync_wait(space.flush()));
    EXPECT_TRUE(same_bytes(flat, dev.contents().data()));
    EXPECT_EQ(cache->statistics().dirty_pages, 0u);
    EXPECT_EQ(cache->statistics().writeback_pages, 0u);

    std::vector<page_ref> pins(64);
    const auto n = sync_wait(space.pin(size - 1, 1, pins));
    ASSERT_TRUE(n);
    EXPECT_EQ(*n, 1u);
    EXPECT_TRUE(space.try_pin(size - 1, 1, pins));
    EXPECT_EQ(pins[0]->data()[(size - 1) % page_bytes], flat.back());
    for (page_ref& pin : pins) pin.reset();
    ASSERT_TRUE(sync_wait(space.prefetch(0, size)));

    const auto all = extents_of(space, 0, size, 4);
    ASSERT_TRUE(all);
    ASSERT_EQ(all->size(), 1u);
    EXPECT_EQ(all->front().length_bytes, size);
    EXPECT_FALSE(all->front().hole);

    write(size - 1, 1);
    ASSERT_TRUE(sync_wait(space.write_zeroes(size - 100, 100, {})));
    std::fill(flat.end() - 100, flat.end(), std::byte{0});
    expect_same();
    write(0, size);
    ASSERT_TRUE(sync_wait(space.discard(0, size)));
    std::fill(flat.begin(), flat.end(), std::byte{0});
    expect_same();
    ASSERT_TRUE(sync_wait(space.flush()));
    EXPECT_TRUE(same_bytes(flat, dev.contents().data()));
    write(size - 1, 1);
    ASSERT_TRUE(sync_wait(space.write_zeroes(0, size, {})));
    std::fill(flat.begin(), flat.end(), std::byte{0});
    expect_same();
    ASSERT_TRUE(sync_wait(space.flush()));
  }
  expect_all_given_back(*cache);
}

INSTANTIATE_TEST_SUITE_P(sizes, edges,
                         testing::Values(edge{512, 512}, edge{512, 4096}, edge{1024, 512},
                                         edge{1536, 1024}, edge{4096, 4096}, edge{4608, 512},
                                         edge{4608, 4096}, edge{8192, 2048},
                                         edge{17 * 4096 + 512, 4096}, edge{20 * 4096 + 3584, 2048},
                                         edge{65536, 512}));

// A device of any size that stores only what is written.
class hollow_device final : public device {
 public:
  explicit hollow_device(std::uint64_t size) {
    limits_.size_bytes = size;
    limits_.may_have_holes = true;
  }
  const device_limits& limits() const noexcept override { return limits_; }
  void submit(bio& b) noexcept override {
    if (const auto bad = check_bio(b, limits_); bad != 0) return complete(b, bad);
    std::uint64_t at = b.offset_bytes;
    if (b.op == bio_op::discard || b.op == bio_op::write_zeroes) {
      blocks_.erase(blocks_.lower_bound(at), blocks_.lower_bound(b.end_bytes()));
    } else {
      for (const iovec& s : b.used_segments()) {
        for (std::size_t done = 0; done < s.iov_len; done += 512, at += 512) {
          std::byte* data = static_cast<std::byte*>(s.iov_base) + done;
          if (b.op == bio_op::write) {
            std::copy_n(data, 512, blocks_[at].begin());
          } else if (const auto known = blocks_.find(at); known != blocks_.end()) {
            std::copy_n(known->second.begin(), 512, data);
          } else {
            std::fill_n(data, 512, std::byte{0});
          }
        }
      }
    }
    complete(b, 0);
  }
  result<file_extent> extent_at(std::uint64_t offset) const override {
    const auto next = blocks_.lower_bound(offset / 512 * 512);
    if (next == blocks_.end()) return file_extent{limits_.size_bytes, true};
    if (next->first > offset) return file_extent{next->first, true};
    return file_extent{next->first + 512, false};
  }

 private:
  device_limits limits_;
  std::map<std::uint64_t, std::array<std::byte, 512>> blocks_;
};

TEST(edges, offsets_may_be_as_large_as_a_file_can_be) {
  const std::uint64_t size = (std::uint64_t{1} << 63) - 512;
  hollow_device dev(size);
  const auto cache = make_cache();
  {
    address_space space(*cache, dev, {});
    std::mt19937_64 rng(1);
    std::map<std::uint64_t, std::vector<std::byte>> written;
    for (unsigned shift = 12; shift < 63; ++shift) {
      const std::uint64_t at = (std::uint64_t{1} << shift) - 100;
      written[at] = random_bytes(rng, 300);
      ASSERT_TRUE(sync_wait(space.write(at, written[at])));
    }
    written[size - 300] = random_bytes(rng, 300);
    ASSERT_TRUE(sync_wait(space.write(size - 300, written[size - 300])));
    ASSERT_TRUE(sync_wait(space.flush()));
    EXPECT_EQ(cache->statistics().dirty_pages, 0u);
    // The cache forgets, the device does not.
    std::vector<std::byte> out(1u << 20);
    for (int i = 0; i < 16; ++i) {
      ASSERT_TRUE(sync_wait(space.read((std::uint64_t{1} << 40) + i * out.size(), out)));
    }
    for (const auto& [at, data] : written) {
      out.assign(data.size(), std::byte{1});
      ASSERT_TRUE(sync_wait(space.read(at, out)));
      ASSERT_EQ(out, data) << at;
    }
    const auto e = extents_of(space, size - (1u << 20), 1u << 20, 8);
    ASSERT_TRUE(e);
    ASSERT_EQ(e->size(), 2u);
    EXPECT_TRUE(e->front().hole);
    EXPECT_EQ(e->back().length_bytes, 512u);
    ASSERT_TRUE(sync_wait(space.discard(0, size)));
    for (const auto& [at, data] : written) {
      out.assign(data.size(), std::byte{1});
      ASSERT_TRUE(sync_wait(space.read(at, out)));
      ASSERT_EQ(out, std::vector<std::byte>(data.size())) << at;
    }
    EXPECT_EQ(extents_of(space, 0, size, 4)->size(), 1u);
  }
  expect_all_given_back(*cache);
}

TEST(edges, a_range_of_no_bytes_is_nothing_to_do) {
  memory_device dev(1u << 20);
  const auto cache = make_cache();
  {
    address_space space(*cache, dev, {});
    std::vector<page_ref> pins(1);
    for (const std::uint64_t at : {std::uint64_t{0}, std::uint64_t{4096}, std::uint64_t{1} << 20}) {
      EXPECT_TRUE(space.try_pin(at, 0, pins));
      const auto n = sync_wait(space.pin(at, 0, pins));
      ASSERT_TRUE(n);
      EXPECT_EQ(*n, 0u);
      EXPECT_TRUE(sync_wait(space.read(at, {})));
      EXPECT_EQ(space.try_write(at, {}), 0u);
      EXPECT_TRUE(sync_wait(space.write(at, {})));
      EXPECT_TRUE(sync_wait(space.prefetch(at, 0)));
      EXPECT_TRUE(sync_wait(space.write_zeroes(at, 0, {})));
      EXPECT_TRUE(sync_wait(space.discard(at, 0)));
      EXPECT_TRUE(sync_wait(space.sync_range(at, 0)));
      EXPECT_TRUE(extents_of(space, at, 0, 4)->empty());
    }
    EXPECT_EQ(cache->statistics().resident_pages, 0u);
    EXPECT_FALSE(pins[0]);
  }
  expect_all_given_back(*cache);
}

// Too many pins for the dirty limit to be reached: who writes without a flusher writes back himself
// when there is no other memory left.
TEST(address_space, a_writer_beside_many_pins_makes_his_own_room) {
  memory_device dev(16u << 20);
  const auto cache = make_cache();
  {
    address_space space(*cache, dev, {});
    const std::size_t pinned = cache->statistics().capacity_pages * 65 / 100;
    std::vector<page_ref> pins(pinned);
    for (std::size_t n = 0; n < pinned;) {
      const auto more = sync_wait(
          space.pin(n * page_bytes, (pinned - n) * page_bytes, std::span(pins).subspan(n)));
      ASSERT_TRUE(more);
      n += *more;
    }
    for (std::size_t i = 0; i < pinned; ++i) {
      ASSERT_TRUE(sync_wait(space.write((pinned + i) * page_bytes, filled(page_bytes, 1))));
    }
    ASSERT_TRUE(sync_wait(space.flush()));
  }
  expect_all_given_back(*cache);
}

}  // namespace
}  // namespace forebay
