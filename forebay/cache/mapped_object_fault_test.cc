// What mapped objects make of a mapping that lies, and of failures.

#include <gtest/gtest.h>

#include "forebay/base/sanitizer.h"
#include "forebay/block/fault_device.h"
#include "forebay/cache/test_allocations.h"
#include "forebay/cache/test_mapping.h"

namespace forebay {
namespace {

// ---- A mapping that lies ----

struct named_lie {
  const char* name;
  std::function<void(mapped_extent&)> tell;
};

std::vector<named_lie> lies(std::uint64_t device_bytes) {
  return {
      {"past the end", [=](mapped_extent& e) { e.device_offset_bytes = device_bytes; }},
      {"over the end",
       [=](mapped_extent& e) {
         e.length_bytes = 2 * page_bytes;
         e.device_offset_bytes = device_bytes - page_bytes;
       }},
      {"far past it", [](mapped_extent& e) { e.device_offset_bytes = UINT64_MAX - 511; }},
      {"somewhere else in the object", [](mapped_extent& e) { e.offset_bytes += e.length_bytes; }},
      {"before what was asked",
       [](mapped_extent& e) {
         e.offset_bytes -= page_bytes;
         e.length_bytes = page_bytes;
       }},
      {"no length", [](mapped_extent& e) { e.length_bytes = 0; }},
      {"an overflow", [](mapped_extent& e) { e.length_bytes = UINT64_MAX; }},
      {"half a block", [](mapped_extent& e) { e.length_bytes = 2048; }},
      {"between the device's blocks", [](mapped_extent& e) { e.device_offset_bytes += 100; }},
      {"not at a block of the object",
       [](mapped_extent& e) {
         e.offset_bytes -= 512;
         e.length_bytes += 512;
       }},
      {"another place's blocks", [](mapped_extent& e) { e.device_offset_bytes = 3 * page_bytes; }},
  };
}

// Blocks 0 and 1 of the object lie at 3 and 4 of the device, which is known; 4 at 9.
void tell_truth(mapped_extent& e) {
  const std::uint64_t block = e.offset_bytes / page_bytes;
  e = {.offset_bytes = e.offset_bytes,
       .length_bytes = page_bytes,
       .device_offset_bytes = (block < 2 ? block + 3 : block + 5) * page_bytes,
       .state = extent_state::mapped};
}

TEST(mapped_object, an_extent_that_lies_is_an_error_and_touches_nothing) {
  for (const named_lie& lie : lies(1u << 20)) {
    SCOPED_TRACE(lie.name);
    object_rig r({});
    bool lying = false;
    r.extents.lie = [&](mapped_extent& e, map_purpose) {
      tell_truth(e);
      if (lying) lie.tell(e);
    };
    const auto stored = random_bytes(r.table.rng(), 16 * page_bytes);
    std::ranges::copy(stored, r.memory.contents().begin());
    ASSERT_TRUE(sync_wait(r.object->truncate(6 * page_bytes)));
    std::vector<std::byte> out(2 * page_bytes);
    ASSERT_TRUE(sync_wait(r.object->read(0, out)));
    const std::vector<std::byte> before(r.memory.contents().begin(), r.memory.contents().end());

    lying = true;
    const result<std::size_t> got = sync_wait(r.object->read(4 * page_bytes, out));
    ASSERT_FALSE(got);
    EXPECT_EQ(got.error().value(), EUCLEAN);
    const result<> reserved = sync_wait(r.object->write(4 * page_bytes, filled(page_bytes, 1)));
    ASSERT_FALSE(reserved);
    EXPECT_EQ(reserved.error().value(), EUCLEAN);
    EXPECT_EQ(r.cache->statistics().dirty_pages, 0u);
    EXPECT_GE(r.object->statistics().lies, 2u);

    // At write-back the data is kept, and the error with it.
    r.extents.lie = [&](mapped_extent& e, map_purpose why) {
      tell_truth(e);
      if (why != map_purpose::write_back) e.state = extent_state::delayed;
      if (why == map_purpose::write_back && lying) lie.tell(e);
    };
    ASSERT_TRUE(sync_wait(r.object->write(4 * page_bytes, filled(page_bytes, 1))));
    for (int i = 0; i < 2; ++i) {
      const result<> flushed = sync_wait(r.object->flush());
      ASSERT_FALSE(flushed);
      EXPECT_EQ(flushed.error().value(), EUCLEAN);
    }
    EXPECT_TRUE(std::ranges::equal(before, r.memory.contents())) << "something was written";
    lying = false;
    ASSERT_TRUE(sync_wait(r.object->flush()));
    auto after = before;
    std::fill_n(after.begin() + 9 * page_bytes, page_bytes, std::byte{1});
    EXPECT_TRUE(std::ranges::equal(after, r.memory.contents()));
  }
}

TEST(mapped_object, no_blocks_at_write_back_is_a_lie) {
  for (const bool by_blocks : {false, true}) {
    for (const extent_state state : {extent_state::hole, extent_state::delayed}) {
      object_rig r({.by_blocks = by_blocks});
      ASSERT_TRUE(sync_wait(r.object->write(0, filled(page_bytes, 1))));
      r.extents.lie = [&](mapped_extent& e, map_purpose) { e.state = state; };
      r.blocks.lie = [&](buffer_head& b, map_purpose) {
        b.clear(bh_mapped | bh_unwritten | bh_new | bh_delay);
        if (state == extent_state::delayed) b.set(bh_delay);
      };
      const result<> flushed = sync_wait(r.object->flush());
      ASSERT_FALSE(flushed);
      EXPECT_EQ(flushed.error().value(), EUCLEAN);
      r.extents.lie = {};
      r.blocks.lie = {};
      ASSERT_TRUE(sync_wait(r.object->flush()));
      EXPECT_EQ(r.table.stored(page_bytes), filled(page_bytes, 1));
    }
  }
}

TEST(mapped_object, a_block_that_lies_is_an_error_and_touches_nothing) {
  const std::uint64_t device_blocks = (1u << 20) / page_bytes;
  for (const std::uint64_t where : {device_blocks, UINT64_MAX, UINT64_MAX / page_bytes + 1,
                                    std::uint64_t{3}}) {  // 3 is block 0's
    SCOPED_TRACE(where);
    object_rig r({.by_blocks = true});
    bool lying = false;
    std::uint64_t truth = 3;
    r.blocks.lie = [&](buffer_head& b, map_purpose) {
      b.clear(bh_mapped | bh_unwritten | bh_new | bh_delay);
      map_bh(b, lying ? where : truth);
    };
    ASSERT_TRUE(sync_wait(r.object->truncate(6 * page_bytes)));
    std::vector<std::byte> out(page_bytes);
    ASSERT_TRUE(sync_wait(r.object->read(0, out)));
    const std::vector<std::byte> before(r.memory.contents().begin(), r.memory.contents().end());
    lying = true;
    const result<std::size_t> got = sync_wait(r.object->read(4 * page_bytes, out));
    ASSERT_FALSE(got);
    EXPECT_EQ(got.error().value(), EUCLEAN);
    const result<> reserved = sync_wait(r.object->write(4 * page_bytes, filled(page_bytes, 1)));
    ASSERT_FALSE(reserved);
    EXPECT_EQ(reserved.error().value(), EUCLEAN);
    r.blocks.lie = [&](buffer_head& b, map_purpose why) {
      b.clear(bh_mapped | bh_unwritten | bh_new | bh_delay);
      if (why == map_purpose::write_back) {
        map_bh(b, lying ? where : truth);
      } else {
        b.set(bh_delay);
      }
    };
    ASSERT_TRUE(sync_wait(r.object->write(4 * page_bytes, filled(page_bytes, 1))));
    const result<> flushed = sync_wait(r.object->flush());
    ASSERT_FALSE(flushed);
    EXPECT_EQ(flushed.error().value(), EUCLEAN);
    EXPECT_TRUE(std::ranges::equal(before, r.memory.contents())) << "something was written";
    lying = false;
    truth = 9;
    ASSERT_TRUE(sync_wait(r.object->flush()));
    EXPECT_EQ(r.memory.contents()[9 * page_bytes], std::byte{1});
  }
}

// ---- Failures ----

// Uses an object, again where it fails, and knows what is to come of it.
class failing_use {
 public:
  failing_use(object_rig& r, std::uint64_t seed, std::function<void()> heal)
      : r_(r), rng_(seed), heal_(std::move(heal)) {}

  void begin() {
    write(3000, 20'000);
    until_it_works([&] { return r_.object->flush(); });
    r_.evict_all();
  }
  // From here on something fails.
  void go_on() {
    write(1000, 10'000);
    write(40'000, 9'000);
    until_it_works([&] { return r_.object->flush(); });
    r_.evict_all();
    until_it_works([&] { return r_.object->truncate(45'000); });
    model_.resize(45'000);
    until_it_works([&] { return r_.object->punch(5'000, 9'000); });
    std::fill_n(model_.begin() + 5'000, 9'000, std::byte{0});
    write(50'000, 100);
    until_it_works([&] { return r_.object->sync_range(49'000, 2'000); });
    std::vector<std::byte> out(model_.size());
    until_it_works([&]() -> task<> { return read(out); });
    EXPECT_EQ(out, model_);
    until_it_works([&] { return r_.object->flush(); });
    EXPECT_EQ(r_.table.stored(model_.size()), model_);
  }

 private:
  void until_it_works(const std::function<task<>()>& work) {
    for (int i = 0; i < 3; ++i) {
      const std::uint64_t size = r_.object->size_bytes();
      if (sync_wait(work())) return;
      // A truncation that fails late has set the size.
      ASSERT_GE(r_.object->size_bytes(), std::min<std::uint64_t>(size, 45'000));
      if (i != 0) heal_();
    }
    FAIL() << "still fails";
  }
  void write(std::uint64_t at, std::size_t n) {
    const auto data = random_bytes(rng_, n);
    until_it_works([&] { return r_.object->write(at, data); });
    if (model_.size() < at + n) model_.resize(at + n);
    std::ranges::copy(data, model_.begin() + static_cast<std::ptrdiff_t>(at));
  }
  task<> read(std::span<std::byte> out) {
    const result<std::size_t> n = co_await r_.object->read(0, out);
    if (!n) co_return fail(n.error());
    co_return result<>{};
  }

  object_rig& r_;
  std::mt19937_64 rng_;
  std::function<void()> heal_;
  std::vector<std::byte> model_;
};

class mapped_faults : public testing::TestWithParam<object_shape> {};

// Every call of the mapping fails, once or for good, and so does every transfer: each error is
// told, nothing is lost, and in the end all is as if there had been none.
TEST_P(mapped_faults, are_told_and_mended) {
  const unsigned step = FOREBAY_TSAN != 0 ? 13 : FOREBAY_ASAN != 0 ? 5 : 1;
  for (const bool device_fails : {false, true}) {
    for (const unsigned count : {1u, 1000u}) {
      for (unsigned after = 0; after < (device_fails ? 12u : 40u); after += step) {
        SCOPED_TRACE(testing::Message() << "after " << after << ", " << count);
        std::optional<fault_device> faulty;
        object_rig r(GetParam(), after + 1, 1u << 20, [&](memory_device& m) -> device& {
          faulty.emplace(m);
          return *faulty;
        });
        failing_use use(r, after, [&] {
          faulty->heal();
          r.table.fail_calls(0, 0);
        });
        use.begin();
        if (device_fails) {
          for (const bio_op op : {bio_op::read, bio_op::write, bio_op::flush}) {
            faulty->inject({.op = op, .skip = after, .count = count});
          }
        } else {
          r.table.fail_calls(after, count);
        }
        use.go_on();
        if (HasFatalFailure()) return;
      }
    }
  }
}

// The same for every allocation that may fail, those of the mapping's own tasks among them.
TEST_P(mapped_faults, any_allocation_may_fail) {
  if (!can_refuse_memory) GTEST_SKIP() << "operator new cannot be replaced here";
  const std::uint64_t failed = allocations_failed;
  for (const bool for_good : {false, true}) {
    for (std::int64_t n = 0; n < 300; n += 1 + n / (FOREBAY_ASAN != 0 ? 3 : 8)) {
      SCOPED_TRACE(testing::Message() << "allocation " << n << (for_good ? " and on" : ""));
      object_rig r(GetParam(), static_cast<std::uint64_t>(n) + 1);
      failing_use use(r, 1, [] { allocations_left = INT64_MAX; });
      use.begin();
      allocations_left = n;
      use.go_on();
      allocations_left = INT64_MAX;
      if (HasFatalFailure()) return;
    }
  }
  EXPECT_GT(allocations_failed, failed + 10);
}

INSTANTIATE_TEST_SUITE_P(shapes, mapped_faults,
                         testing::Values(object_shape{}, object_shape{.max_page_order = 4},
                                         object_shape{.block_bytes = 1024, .delays = false},
                                         object_shape{.by_blocks = true, .block_bytes = 1024},
                                         object_shape{.by_blocks = true, .delays = false}));

TEST(mapped_object, a_truncate_that_fails_changes_nothing) {
  for (const bool by_blocks : {false, true}) {
    object_rig r({.by_blocks = by_blocks, .block_bytes = 1024});
    const auto data = random_bytes(r.table.rng(), 50'000);
    ASSERT_TRUE(sync_wait(r.object->write(0, data)));
    ASSERT_TRUE(sync_wait(r.object->flush()));
    ASSERT_TRUE(sync_wait(r.object->write(0, data)));
    r.table.fail_calls(0, 100);
    EXPECT_FALSE(sync_wait(r.object->truncate(20'000)));
    EXPECT_FALSE(sync_wait(r.object->punch(10'000, 20'000)));
    r.table.fail_calls(0, 0);
    EXPECT_EQ(r.object->size_bytes(), data.size());
    EXPECT_EQ(read_all(*r.object), data);
    ASSERT_TRUE(sync_wait(r.object->flush()));
    EXPECT_EQ(r.table.stored(data.size()), data);
  }
}

}  // namespace
}  // namespace forebay
