// One thread: not in the thread sanitizer's tree.

#include "forebay/cache/bio_pool.h"

#include <set>

#include "forebay/cache/test_space.h"

namespace forebay {
namespace {

// Takes every frame of an arena for as long as it lives.
class all_frames {
 public:
  explicit all_frames(arena& memory) {
    while (page* p = memory.allocate()) frames_.push_back(page_ref::adopt(*p));
  }
  std::size_t count() const { return frames_.size(); }

 private:
  std::vector<page_ref> frames_;
};

// Takes every bio of a pool for as long as it lives.
class all_bios {
 public:
  explicit all_bios(bio_pool& pool) : pool_(pool) {
    while (void* b = pool.allocate()) bios_.push_back(b);
  }
  ~all_bios() {
    for (void* b : bios_) pool_.free(b);
  }
  all_bios(const all_bios&) = delete;
  all_bios& operator=(const all_bios&) = delete;
  std::size_t count() const { return bios_.size(); }

 private:
  bio_pool& pool_;
  std::vector<void*> bios_;
};

std::unique_ptr<arena> small_arena() {
  auto a = arena::create({.bytes = arena::min_bytes, .huge_pages = false});
  FOREBAY_ASSERT(a.has_value());
  return std::move(*a);
}

TEST(BioPool, ItsReserveIsThereWhenTheArenaIsEmpty) {
  const auto memory = small_arena();
  const std::size_t before = memory->free_pages();
  {
    bio_pool pool(*memory, 700, 20);
    EXPECT_EQ(pool.reserved(), 20u);
    const all_frames none_left(*memory);
    std::set<void*> taken;
    while (void* b = pool.allocate()) EXPECT_TRUE(taken.insert(b).second);
    EXPECT_GE(taken.size(), 20u);
    EXPECT_EQ(pool.reserved(), 0u);
    EXPECT_EQ(pool.allocate(), nullptr);
    std::size_t freed = 0;
    for (void* b : taken) {
      pool.free(b);
      EXPECT_EQ(pool.reserved(), std::min<std::size_t>(++freed, 20)) << "it is filled first";
    }
    void* const again = pool.allocate();
    EXPECT_NE(again, nullptr);
    pool.free(again);
  }
  EXPECT_EQ(memory->free_pages(), before);
}

TEST(BioPool, AnArenaTooSmallForTheReserveMakesItSmaller) {
  const auto memory = small_arena();
  bio_pool pool(*memory, 2048, 100'000);
  EXPECT_GT(pool.reserved(), 0u);
  EXPECT_LT(pool.reserved(), 100'000u);
  const std::size_t most = pool.reserved();
  const all_bios taken(pool);
  EXPECT_EQ(taken.count(), most);
}

// Every second page is dirty, so each is a bio of its own.
void dirty_many(address_space& space, std::size_t pages, unsigned value) {
  const auto data = filled(page_bytes, value);
  for (std::size_t i = 0; i < pages; ++i) {
    ASSERT_TRUE(sync_wait(space.write(2 * i * page_bytes, data)).has_value()) << i;
  }
}

void expect_written(memory_device& dev, std::size_t pages, unsigned value) {
  for (std::size_t i = 0; i < pages; ++i) {
    ASSERT_EQ(dev.contents()[2 * i * page_bytes], static_cast<std::byte>(value)) << i;
  }
}

TEST(BioPool, WriteBackGoesOnWithoutAFrame) {
  memory_device dev(4u << 20);
  const auto cache = make_cache();
  address_space space(*cache, dev, {});
  dirty_many(space, 200, 5);
  const all_frames none_left(cache->memory());
  EXPECT_GT(none_left.count(), 0u);
  ASSERT_TRUE(sync_wait(space.flush()).has_value());
  expect_written(dev, 200, 5);
}

TEST(BioPool, WriteBackGoesOnWithoutABioOfThePool) {
  memory_device dev(4u << 20);
  const auto cache = make_cache();
  address_space space(*cache, dev, {});
  dirty_many(space, 200, 6);
  const all_frames none_left(cache->memory());
  const all_bios no_bios(cache->bios());
  EXPECT_GE(no_bios.count(), bio_batch::usual_depth);
  ASSERT_TRUE(sync_wait(space.flush()).has_value());
  expect_written(dev, 200, 6);
  EXPECT_EQ(cache->statistics().dirty_pages, 0u);
}

// Writers that meet the dirty limit need write-back to get on, and it needs nothing that they hold.
TEST(BioPool, WritersOverTheDirtyLimitGetOnWithoutABioOfThePool) {
  memory_device dev(16u << 20);
  const auto cache = make_cache();
  address_space space(*cache, dev, {});
  dirty_many(space, 2000, 1);  // pages everywhere, so that few frames are left for bios
  const all_bios no_bios(cache->bios());
  const std::uint64_t throttled = cache->statistics().throttled_writes;
  dirty_many(space, 2000, 7);
  EXPECT_GT(cache->statistics().throttled_writes, throttled);
  ASSERT_TRUE(sync_wait(space.flush()).has_value());
  expect_written(dev, 2000, 7);
}

}  // namespace
}  // namespace forebay
