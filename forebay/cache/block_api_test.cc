// The block API: blocks of several sizes over the pages of a device, against a flat model.

#include "forebay/cache/block_api.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <optional>
#include <thread>

#include "forebay/base/sanitizer.h"
#include "forebay/block/fault_device.h"
#include "forebay/cache/test_allocations.h"
#include "forebay/cache/test_space.h"
#include "forebay/os/cpu.h"

namespace forebay {
namespace {

struct fixture {
  explicit fixture(std::uint32_t block_bytes = 512, std::uint64_t bytes = 1u << 20)
      : memory(bytes), gate(memory), dev(gate), cache(make_cache()) {
    gate.open();
    space.emplace(*cache, dev, address_space::options{.block_bytes = block_bytes});
  }
  ~fixture() {
    space.reset();
    expect_all_given_back(*cache);
  }

  bool device_has(std::uint64_t offset, std::size_t n, unsigned value) {
    const auto part = memory.contents().subspan(offset, n);
    return std::all_of(part.begin(), part.end(),
                       [value](std::byte b) { return b == static_cast<std::byte>(value); });
  }

  memory_device memory;
  gated_device gate;
  fault_device dev;
  std::unique_ptr<page_cache> cache;
  std::optional<address_space> space;
};

void fill_and_mark(buffer_head& b, unsigned value) {
  std::memset(b.data, static_cast<int>(value), b.size_bytes);
  set_buffer_uptodate(b);
  mark_buffer_dirty(b);
}

result<> change(buffer_head& b, unsigned value) {
  const result<> locked = lock_buffer(b);
  if (!locked) return locked;
  fill_and_mark(b, value);
  unlock_buffer(b);
  return {};
}

bool holds(const buffer_head& b, unsigned value) {
  const auto all = b.bytes();
  return std::all_of(all.begin(), all.end(),
                     [value](std::byte x) { return x == static_cast<std::byte>(value); });
}

int error_of(const auto& r) { return r ? 0 : r.error().value(); }

TEST(block_api, reads_one_block_and_shares_its_memory_with_the_page) {
  fixture f;
  std::memset(f.memory.contents().data() + 3072, 7, 1024);
  result<bh_ref> b = bread(*f.space, 3, 1024);
  ASSERT_TRUE(b);
  EXPECT_TRUE(holds(**b, 7));
  EXPECT_TRUE((*b)->test(bh_mapped) && (*b)->test(bh_req));
  EXPECT_EQ(f.cache->statistics().pages_read, 1u);
  EXPECT_FALSE((*b)->this_page->test(bh_uptodate)) << "this block and no more";
  // What is written through the page is in the buffer, and the other way round.
  ASSERT_TRUE(sync_wait(f.space->write(3072, filled(1024, 8))));
  EXPECT_TRUE(holds(**b, 8));
  ASSERT_TRUE(change(**b, 9));
  std::vector<std::byte> back(1024);
  ASSERT_TRUE(sync_wait(f.space->read(3072, back)));
  EXPECT_EQ(back, filled(1024, 9));
  EXPECT_TRUE(f.device_has(3072, 1024, 7));
  ASSERT_TRUE(sync_dirty_buffer(**b));
  EXPECT_TRUE(f.device_has(3072, 1024, 9));
  EXPECT_FALSE((*b)->test(bh_dirty | bh_lock));
  bh_ref second = b->share();
  brelse(*b);
  EXPECT_FALSE(*b);
  EXPECT_TRUE(holds(*second, 9));
}

TEST(block_api, says_no_and_changes_nothing) {
  fixture f(512, (64u << 10) + 512);
  for (const std::uint32_t size : {0u, 256u, 768u, 8192u}) {
    EXPECT_EQ(error_of(bread(*f.space, 0, size)), EINVAL) << size;
    EXPECT_EQ(error_of(breadahead(*f.space, 0, size)), EINVAL) << size;
  }
  EXPECT_EQ(error_of(getblk(*f.space, 64, 1024)), ENXIO) << "half of it is past the end";
  EXPECT_TRUE(getblk(*f.space, 128, 512)) << "and this one is not";
  EXPECT_EQ(error_of(bread(*f.space, UINT64_MAX, 512)), ENXIO);
  EXPECT_EQ(error_of(bread(*f.space, (1ull << 55) + 3, 512)), ENXIO) << "its offset overflows";
  EXPECT_EQ(error_of(breadahead(*f.space, 60, 1024, 5)), ENXIO);
  EXPECT_EQ(f.cache->statistics().resident_pages, 1u);

  memory_device coarse(1u << 16, 4096);
  address_space big(*f.cache, coarse, {.block_bytes = 4096});
  EXPECT_EQ(error_of(bread(big, 0, 1024)), EINVAL) << "below the logical block";
  EXPECT_TRUE(bread(big, 0, 4096));
  // Not on a thread that runs other tasks: but what is cached needs no wait.
  const auto inside = [](fixture& g) -> task<> {
    EXPECT_EQ(error_of(bread(*g.space, 9, 512)), EDEADLK);
    EXPECT_TRUE(co_await bread_async(*g.space, 9, 512));
    EXPECT_TRUE(bread(*g.space, 9, 512));
    co_return result<>{};
  };
  ASSERT_TRUE(sync_wait(inside(f)));
}

// A device that can be shorter than it was.
class shrinking_device final : public device {
 public:
  explicit shrinking_device(device& below) : below_(below), limits_(below.limits()) {}
  const device_limits& limits() const noexcept override { return limits_; }
  void submit(bio& b) noexcept override { below_.submit(b); }
  void shrink(std::uint64_t bytes) { limits_.size_bytes = bytes; }

 private:
  device& below_;
  device_limits limits_;
};

TEST(block_api, a_device_that_shrinks_has_no_blocks_past_its_new_end) {
  memory_device memory(1u << 16);
  shrinking_device dev(memory);
  const auto cache = make_cache();
  address_space space(*cache, dev, {});
  dev.shrink(1u << 15);
  EXPECT_EQ(error_of(bread(space, 32, 1024)), ENXIO);
  EXPECT_TRUE(bread(space, 31, 1024));
}

TEST(block_api, blocks_of_several_sizes_one_after_the_other) {
  fixture f;
  for (int i = 0; i < 8; ++i) {
    std::memset(f.memory.contents().data() + 512 * i, i + 1, 512);
  }
  // 512 bytes first, one of them changed: kept for those who come with 4 KiB, then with 1 KiB.
  ASSERT_TRUE(change(**bread(*f.space, 2, 512), 33));
  {
    const result<bh_ref> whole = bread(*f.space, 0, 4096);
    ASSERT_TRUE(whole) << whole.error().message();
    EXPECT_EQ((*whole)->data[1024], std::byte{33});
    EXPECT_EQ((*whole)->data[4095], std::byte{8});
    EXPECT_TRUE(f.device_has(1024, 512, 33)) << "it was dirty, so it was written first";
    EXPECT_EQ(error_of(bread(*f.space, 1, 1024)), EBUSY) << "the page is in use";
    EXPECT_TRUE(holds(**bread(*f.space, 1, 4096), 0));
  }
  const std::uint64_t read_before = f.cache->statistics().pages_read;
  const result<bh_ref> half = bread(*f.space, 1, 1024);
  ASSERT_TRUE(half);
  EXPECT_EQ((*half)->data[0], std::byte{33});
  EXPECT_EQ((*half)->data[512], std::byte{4});
  EXPECT_EQ(f.cache->statistics().pages_read, read_before) << "all of it was there";
  // A page whose buffers are larger than what is written through it keeps them right.
  ASSERT_TRUE(getblk(*f.space, 20, 1024));
  ASSERT_TRUE(sync_wait(f.space->write(20 * 1024 + 512, filled(512, 5))));
  EXPECT_EQ((*bread(*f.space, 20, 1024))->data[0], std::byte{0});
  EXPECT_EQ((*bread(*f.space, 20, 1024))->data[1023], std::byte{5});
}

TEST(block_api, dirty_blocks_that_cannot_be_written_keep_their_size) {
  fixture f;
  ASSERT_TRUE(change(**bread(*f.space, 2, 512), 33));
  f.dev.inject({.op = bio_op::write, .error = EIO});
  EXPECT_EQ(error_of(bread(*f.space, 0, 4096)), EIO);
  f.dev.heal();
  EXPECT_TRUE(holds(**bread(*f.space, 2, 512), 33));
  EXPECT_TRUE((*bread(*f.space, 2, 512))->test(bh_write_error));
  ASSERT_TRUE(sync_blockdev(*f.space));
  EXPECT_TRUE(f.device_has(1024, 512, 33));
  EXPECT_FALSE((*bread(*f.space, 2, 512))->test(bh_write_error | bh_dirty));
}

TEST(block_api, a_read_that_fails_leaves_the_buffer_as_it_was) {
  fixture f;
  f.dev.inject({.op = bio_op::read, .error = EIO});
  EXPECT_EQ(error_of(bread(*f.space, 5, 2048)), EIO);
  const result<bh_ref> b = getblk(*f.space, 5, 2048);
  ASSERT_TRUE(b);
  EXPECT_FALSE((*b)->test(bh_uptodate | bh_lock | bh_dirty));
  f.dev.heal();
  EXPECT_TRUE(bread(*f.space, 5, 2048));
  EXPECT_TRUE((*b)->test(bh_uptodate));
}

TEST(block_api, breadahead_reads_whole_pages_at_once) {
  fixture f;
  ASSERT_TRUE(breadahead(*f.space, 1, 1024, 30));
  const std::uint64_t read = f.cache->statistics().pages_read;
  EXPECT_EQ(read, 8u);
  for (std::uint64_t i = 0; i < 32; ++i) ASSERT_TRUE(bread(*f.space, i, 1024));
  EXPECT_EQ(f.cache->statistics().pages_read, read);
}

// Round 0: block 0 is written, block 1 dirtied meanwhile. Round 1: both are, with an error, and
// block 2 is dirtied.
task<> change_under_write_back(fixture& f) {
  const bh_ref first = std::move(*co_await bread_async(*f.space, 0, 1024));
  EXPECT_TRUE(co_await lock_buffer_async(*first));
  fill_and_mark(*first, 1);
  unlock_buffer(*first);
  f.gate.close();
  for (const int error : {0, EIO}) {
    const bh_ref neighbour = std::move(*co_await bread_async(*f.space, error == 0 ? 1 : 2, 1024));
    task_group group;
    outcome flushed;
    EXPECT_TRUE(keep_outcome(f.space->flush(), flushed).spawn(group));
    EXPECT_TRUE(first->test(bh_async_write) && first->test(bh_lock) && !first->test(bh_dirty));
    EXPECT_FALSE(trylock_buffer(*first));
    EXPECT_TRUE(trylock_buffer(*neighbour));
    fill_and_mark(*neighbour, 2);
    unlock_buffer(*neighbour);
    EXPECT_TRUE(neighbour->frame->test(page_dirty) && neighbour->frame->test(page_writeback));
    EXPECT_TRUE(f.gate.end(bio_op::write, 0, error));
    EXPECT_TRUE(co_await wait_on_buffer_async(*first));
    // If it went well, the device is flushed.
    while (f.gate.held() == 0 && !flushed.ended) co_await sleep_for(0);
    f.gate.end(bio_op::flush, 0);
    co_await group.idle();
    EXPECT_EQ(flushed.error.value(), error);
    EXPECT_EQ(first->test(bh_dirty), error != 0);
    EXPECT_EQ(first->test(bh_write_error), error != 0);
    EXPECT_FALSE(first->test(bh_lock | bh_async_write));
    EXPECT_TRUE(neighbour->test(bh_dirty)) << "dirtied behind the write-back";
    EXPECT_FALSE(neighbour->test(bh_write_error));
    EXPECT_EQ(f.cache->statistics().dirty_pages, 1u);
    EXPECT_EQ(f.cache->statistics().error_pages, error != 0 ? 1u : 0u);
    EXPECT_TRUE(trylock_buffer(*first));
    fill_and_mark(*first, 1);
    unlock_buffer(*first);
  }
  f.gate.open();
  co_return result<>{};
}

TEST(block_api, a_block_under_write_back_stands_still_and_its_neighbours_change) {
  fixture f(1024);
  // The gate is not for bread(): what is needed is there.
  ASSERT_TRUE(breadahead(*f.space, 0, 1024, 4));
  ASSERT_TRUE(sync_wait(change_under_write_back(f)));
  ASSERT_TRUE(sync_blockdev(*f.space));
  EXPECT_TRUE(f.device_has(0, 1024, 1) && f.device_has(1024, 2048, 2));
  EXPECT_EQ(f.cache->statistics().error_pages, 0u);
}

TEST(block_api, no_write_back_of_a_block_begins_while_it_is_locked) {
  fixture f;
  const result<bh_ref> b = bread(*f.space, 4, 1024);
  ASSERT_TRUE(change(**b, 1));
  ASSERT_TRUE(lock_buffer(**b));
  std::memset((*b)->data, 2, 512);
  std::atomic<bool> synced{false};
  std::thread other([&] {
    EXPECT_TRUE(sync_blockdev(*f.space));
    synced = true;
  });
  EXPECT_FALSE(f.space->try_view(1)) << "nor is it read without a pin while it changes";
  std::thread writer([&] { EXPECT_TRUE(sync_wait(f.space->write(4096, filled(512, 3)))); });
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_FALSE(synced);
  EXPECT_EQ((*b)->data[0], std::byte{2}) << "nor does anybody write to it";
  std::memset((*b)->data, 2, 1024);
  mark_buffer_dirty(**b);
  unlock_buffer(**b);
  other.join();
  writer.join();
  EXPECT_TRUE(f.device_has(4096 + 512, 512, 2));
}

TEST(block_api, views_see_no_block_that_is_being_changed) {
  fixture f(1024);
  ASSERT_TRUE(breadahead(*f.space, 0, 1024, 4));
  const auto view = f.space->try_view(0);
  ASSERT_TRUE(view && view.still_valid());
  const result<bh_ref> first = bread(*f.space, 0, 1024);
  const result<bh_ref> second = bread(*f.space, 1, 1024);
  ASSERT_TRUE(lock_buffer(**first) && lock_buffer(**second));
  EXPECT_FALSE(view.still_valid());
  unlock_buffer(**first);
  // Neither a read by a pin nor a write beside it makes the page readable before its time.
  std::vector<std::byte> out(1024);
  ASSERT_TRUE(sync_wait(f.space->read(0, out)));
  ASSERT_TRUE(sync_wait(f.space->write(2048, out)));
  EXPECT_FALSE(f.space->try_view(0));
  fill_and_mark(**second, 7);
  unlock_buffer(**second);
  ASSERT_TRUE(sync_wait(f.space->read(0, out)));
  const auto after = f.space->try_view(0);
  ASSERT_TRUE(after);
  EXPECT_EQ(after.load<std::byte>(1024), std::byte{7});
  EXPECT_TRUE(after.still_valid());
}

TEST(block_api, associated_buffers_are_written_together) {
  fixture f(1024);
  associated_buffers inode(*f.space);
  for (const unsigned i : {40u, 3u, 41u, 7u}) {
    const result<bh_ref> b = bread(*f.space, i, 1024);
    ASSERT_TRUE(lock_buffer(**b));
    std::memset((*b)->data, static_cast<int>(i), 1024);
    mark_buffer_dirty_inode(**b, inode);
    unlock_buffer(**b);
  }
  ASSERT_TRUE(change(**bread(*f.space, 90, 1024), 90));
  f.dev.inject({.op = bio_op::write, .start_bytes = 3072, .end_bytes = 4096, .error = EIO});
  EXPECT_EQ(error_of(sync_mapping_buffers(inode)), EIO);
  EXPECT_FALSE(inode.empty()) << "what has failed stays";
  EXPECT_TRUE(f.device_has(40 << 10, 1024, 40) && f.device_has(41 << 10, 1024, 41));
  f.dev.heal();
  ASSERT_TRUE(sync_mapping_buffers(inode));
  EXPECT_TRUE(inode.empty());
  EXPECT_TRUE(f.device_has(3 << 10, 1024, 3) && f.device_has(7 << 10, 1024, 7));
  EXPECT_TRUE(f.device_has(90 << 10, 1024, 0)) << "nobody's associate";
  // One that was written back otherwise, and evicted, is no associate any more.
  {
    const result<bh_ref> b = bread(*f.space, 3, 1024);
    ASSERT_TRUE(lock_buffer(**b));
    mark_buffer_dirty_inode(**b, inode);
    unlock_buffer(**b);
  }
  ASSERT_TRUE(sync_blockdev(*f.space));
  ASSERT_TRUE(invalidate_bdev(*f.space));
  EXPECT_TRUE(inode.empty());
}

TEST(block_api, what_is_forgotten_is_not_written) {
  fixture f(1024);
  ASSERT_TRUE(change(**bread(*f.space, 1, 1024), 1));
  ASSERT_TRUE(change(**bread(*f.space, 2, 1024), 2));
  ASSERT_TRUE(bforget(std::move(*bread(*f.space, 1, 1024))));
  EXPECT_EQ(f.cache->statistics().dirty_pages, 1u) << "its neighbour is";
  ASSERT_TRUE(sync_blockdev(*f.space));
  EXPECT_TRUE(f.device_has(1024, 1024, 0) && f.device_has(2048, 1024, 2));
  ASSERT_TRUE(change(**bread(*f.space, 1, 1024), 1));
  ASSERT_TRUE(bforget(std::move(*bread(*f.space, 1, 1024))));
  EXPECT_EQ(f.cache->statistics().dirty_pages, 0u);
}

TEST(block_api, pages_in_use_stay_and_others_go) {
  fixture f(1024);
  const result<bh_ref> used = bread(*f.space, 0, 1024);
  for (std::uint64_t i = 1; i < 200; ++i) ASSERT_TRUE(bread(*f.space, 4 * i, 1024));
  f.cache->evict_pages(1000);
  EXPECT_EQ(f.cache->statistics().resident_pages, 1u)
      << "those in the CPUs' arrays go when there is nothing else";
  EXPECT_TRUE((*used)->test(bh_uptodate));
  ASSERT_TRUE(bread(*f.space, 8, 1024));
  ASSERT_TRUE(change(**bread(*f.space, 16, 1024), 1));
  ASSERT_TRUE(invalidate_bdev(*f.space));
  EXPECT_EQ(f.cache->statistics().resident_pages, 2u) << "the one in use, and the dirty one";
}

TEST(block_api, writers_are_held_at_the_dirty_limit) {
  fixture f(4096, 16u << 20);
  for (std::uint64_t i = 0; i < 4096; ++i) {
    const result<bh_ref> b = getblk(*f.space, i, 4096);
    ASSERT_TRUE(b && change(**b, static_cast<unsigned>(i)));
    ASSERT_LE(f.cache->unwritten().dirty(), f.cache->dirty_limit_pages());
  }
  EXPECT_GT(f.cache->statistics().throttled_writes, 0u);
  ASSERT_TRUE(sync_blockdev(*f.space));
  for (std::uint64_t i = 0; i < 4096; i += 13) {
    EXPECT_TRUE(f.device_has(i * 4096, 4096, static_cast<std::uint8_t>(i)));
  }
}

TEST(buffer_lru, the_most_recent_come_first_and_the_last_drops_off) {
  fixture f(512);
  std::thread([&f] {
    // On one CPU, as another has an array of its own.
    ASSERT_TRUE(pin_to_cpu(current_cpu()));
    std::vector<bh_ref> got;
    for (std::uint64_t i = 0; i < 20; ++i) got.push_back(std::move(*getblk(*f.space, i, 512)));
    f.cache->lru().invalidate();
    const auto before = f.cache->lru().statistics();
    EXPECT_EQ(f.cache->lru().recent()[0], nullptr);
    for (const bh_ref& b : got) ASSERT_TRUE(getblk(*f.space, b->block_number, 512));
    for (const std::uint64_t i : {15u, 7u, 15u, 4u}) ASSERT_TRUE(getblk(*f.space, i, 512));
    std::vector<std::uint64_t> order;
    for (const buffer_head* b : f.cache->lru().recent()) order.push_back(b->block_number);
    EXPECT_EQ(order, (std::vector<std::uint64_t>{4, 15, 7, 19, 18, 17, 16, 14, 13, 12, 11, 10, 9, 8,
                                                 6, 5}));
    const auto after = f.cache->lru().statistics();
    EXPECT_EQ(after.hits - before.hits, 4u);
    EXPECT_EQ(after.misses - before.misses, 20u);
    // All uses end, whether their buffer has its place still or not.
    got.clear();
    EXPECT_EQ(f.cache->lru().invalidate(f.space.operator->()), 16u);
    EXPECT_EQ(f.cache->lru().invalidate(), 0u);
  }).join();
}

// ---- Against a model ----

// Of a page without buffers or with: what buffer_head.h says is always true.
void check_invariants(const page& p, std::size_t valid) {
  if (page_buffers(p) == nullptr) return;
  bool uptodate = true;
  bool dirty = false;
  for_each_buffer(p, 0, valid, [&](const buffer_head& b) {
    uptodate = uptodate && b.test(bh_uptodate);
    dirty = dirty || b.test(bh_dirty);
    ASSERT_FALSE(b.test(bh_dirty) && !b.test(bh_uptodate));
    ASSERT_EQ(b.frame, &p);
  });
  ASSERT_EQ(uptodate, p.test(page_uptodate));
  ASSERT_TRUE(!dirty || p.test(page_dirty));
}

TEST(block_api, agrees_with_a_flat_model_whatever_view_is_used) {
  const unsigned operations = std::getenv("FOREBAY_STRESS") != nullptr ? 400'000
                              : FOREBAY_TSAN                           ? 1'000
                                                                       : 6'000;
  std::mt19937_64 rng(20261122);
  constexpr std::uint64_t bytes = (6u << 20) + 1536;  // more than the cache, and an odd end
  fixture f(512, bytes);
  std::vector<std::byte> model(bytes);
  for (unsigned i = 0; i < operations; ++i) {
    const std::uint32_t size = 512u << rng() % 4;
    const std::uint64_t hot = rng() % 4 != 0 ? 64u << 10 : bytes;  // most go to the same few pages
    const std::uint64_t block = rng() % (hot / size);
    const std::uint64_t at = block * size;
    switch (rng() % 12) {
      case 0:
      case 1: {
        const std::uint64_t from = rng() % (hot - 1);
        const auto data = random_bytes(rng, 1 + rng() % std::min<std::uint64_t>(9000, hot - from));
        ASSERT_TRUE(sync_wait(f.space->write(from, data)));
        std::copy(data.begin(), data.end(), model.begin() + static_cast<std::ptrdiff_t>(from));
        break;
      }
      case 2:
      case 3: {
        std::vector<std::byte> out(1 + rng() % std::min<std::uint64_t>(9000, bytes - at));
        ASSERT_TRUE(sync_wait(f.space->read(at, out)));
        ASSERT_TRUE(same_bytes(out, model.data() + at));
        break;
      }
      case 4: {
        const result<bh_ref> b = getblk(*f.space, block, size);
        ASSERT_TRUE(b);
        const auto value = static_cast<unsigned>(rng() % 256);
        ASSERT_TRUE(change(**b, value));
        std::memset(model.data() + at, static_cast<int>(value), size);
        break;
      }
      case 5: {
        const result<bh_ref> b = bread(*f.space, block, size);
        ASSERT_TRUE(b && lock_buffer(**b));
        (*b)->data[at % size] ^= std::byte{0x55};
        model[at + at % size] ^= std::byte{0x55};
        mark_buffer_dirty(**b);
        unlock_buffer(**b);
        if (rng() % 4 == 0) {
          ASSERT_TRUE(sync_dirty_buffer(**b));
        }
        break;
      }
      case 6:
        if (rng() % 8 == 0) {
          ASSERT_TRUE(sync_blockdev(*f.space));
        }
        break;
      case 7:
        if (rng() % 8 == 0) {
          ASSERT_TRUE(invalidate_bdev(*f.space));
        }
        f.cache->evict_pages(static_cast<unsigned>(rng() % 8));
        break;
      case 8:
        ASSERT_TRUE(breadahead(*f.space, block, size, 1 + rng() % (hot / size - block)));
        break;
      case 9:
        if (rng() % 8 == 0) {
          const std::uint64_t n = rng() % (bytes - at);
          ASSERT_TRUE(sync_wait(f.space->write_zeroes(at, n, {})));
          std::memset(model.data() + at, 0, n);
        }
        break;
      default: {
        const result<bh_ref> b = bread(*f.space, block, size);
        ASSERT_TRUE(b) << b.error().message();
        ASSERT_EQ(std::memcmp((*b)->data, model.data() + at, size), 0) << i;
        check_invariants(*(*b)->frame,
                         std::min<std::uint64_t>(page_bytes, bytes - at / 4096 * 4096));
      }
    }
  }
  ASSERT_TRUE(sync_blockdev(*f.space));
  EXPECT_EQ(std::memcmp(f.memory.contents().data(), model.data(), bytes), 0);
}

// Threads that share every page and no byte: block k is thread k % threads' own.
TEST(block_api, threads_change_the_blocks_of_the_same_pages) {
  const unsigned operations = std::getenv("FOREBAY_STRESS") != nullptr ? 100'000 : 1'500;
  constexpr unsigned threads = 4;
  constexpr std::uint32_t size = 1024;
  constexpr std::uint64_t blocks = 6u << 10;  // more than the cache
  memory_device dev(blocks * size);
  const auto cache = make_cache();
  {
    address_space space(*cache, dev, {.block_bytes = size});
    const auto work = [&](unsigned number) {
      std::mt19937_64 rng(number);
      std::vector<std::byte> model(blocks / threads * size);
      std::vector<std::byte> out(size);
      for (unsigned i = 0; i < operations; ++i) {
        const std::uint64_t mine = rng() % (rng() % 4 != 0 ? 16 : blocks / threads);
        const std::uint64_t block = mine * threads + number;
        const auto expected = std::span(model).subspan(mine * size, size);
        const std::uint64_t what = rng() % 8;
        if (what < 2) {
          const result<bh_ref> b = getblk(space, block, size);
          ASSERT_TRUE(b && lock_buffer(**b));
          fill_and_mark(**b, i % 256);
          unlock_buffer(**b);
          std::fill(expected.begin(), expected.end(), static_cast<std::byte>(i));
        } else if (what == 2) {
          const auto data = random_bytes(rng, 1 + rng() % size);
          ASSERT_TRUE(sync_wait(space.write(block * size, data)));
          std::copy(data.begin(), data.end(), expected.begin());
        } else if (what == 3) {
          ASSERT_TRUE(sync_wait(space.read(block * size, out)));
          ASSERT_TRUE(same_bytes(out, expected.data()));
        } else if (what == 4 && rng() % 16 == 0) {
          ASSERT_TRUE(rng() % 2 == 0 ? sync_blockdev(space) : invalidate_bdev(space));
        } else if (what == 5) {
          cache->evict_pages(2);
        } else {
          const result<bh_ref> b = bread(space, block, size);
          ASSERT_TRUE(b);
          const bh_ref second = b->share();
          ASSERT_EQ(std::memcmp(second->data, expected.data(), size), 0);
          if (what == 6) {
            ASSERT_TRUE(sync_dirty_buffer(**b));
          }
        }
      }
    };
    std::vector<std::thread> all;
    for (unsigned t = 0; t < threads; ++t) all.emplace_back(work, t);
    for (std::thread& t : all) t.join();
  }
  expect_all_given_back(*cache);
}

// Whichever allocation fails, and all after it.
TEST(block_api, ends_without_memory) {
  if (!can_refuse_memory) GTEST_SKIP() << "operator new cannot be replaced here";
  fixture f;
  std::uint64_t refused = 0;
  for (std::int64_t n = 0; n < 6; ++n) {
    allocations_left = n;
    const auto b = bread(*f.space, static_cast<std::uint64_t>(n) * 4, 1024);
    allocations_left = INT64_MAX;
    if (b) continue;
    ++refused;
    EXPECT_EQ(b.error().value(), ENOMEM);
  }
  EXPECT_GT(refused, 1u);
}

TEST(block_api, what_could_not_be_written_for_want_of_memory_stays_associated) {
  if (!can_refuse_memory) GTEST_SKIP() << "operator new cannot be replaced here";
  unsigned refused = 0;
  for (std::int64_t n = 0; n < 6; ++n) {
    fixture f;
    associated_buffers all(*f.space);
    for (std::uint64_t i = 0; i < 3; ++i) {
      result<bh_ref> b = getblk(*f.space, i * 4, 1024);
      ASSERT_TRUE(b && lock_buffer(**b));
      fill_and_mark(**b, 5);
      mark_buffer_dirty_inode(**b, all);
      unlock_buffer(**b);
    }
    allocations_left = n;
    const result<> first = sync_mapping_buffers(all);
    allocations_left = INT64_MAX;
    if (!first) ++refused;
    ASSERT_TRUE(sync_mapping_buffers(all));
    EXPECT_TRUE(all.empty());
    for (std::uint64_t i = 0; i < 3; ++i) EXPECT_TRUE(f.device_has(i * 4096, 1024, 5)) << n;
  }
  EXPECT_GT(refused, 3u);
}

}  // namespace
}  // namespace forebay
