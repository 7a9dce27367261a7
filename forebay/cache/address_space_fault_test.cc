// An address space over a device that fails, and without memory: no hang, no leaked pin, nothing
// lost, every error told.

#include <gtest/gtest.h>

#include <functional>
#include <new>
#include <string>
#include <thread>

#include "forebay/block/fault_device.h"
#include "forebay/cache/block_api.h"
#include "forebay/cache/test_allocations.h"
#include "forebay/cache/test_space.h"

namespace forebay {

thread_local std::int64_t allocations_left = INT64_MAX;
thread_local std::uint64_t allocations_failed = 0;

}  // namespace forebay

// The thread sanitizer does not let its operator new be replaced.
#if !FOREBAY_TSAN
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  if (forebay::allocations_left == 0) {
    ++forebay::allocations_failed;
    return nullptr;
  }
  if (forebay::allocations_left != INT64_MAX) --forebay::allocations_left;
  try {
    return ::operator new(bytes);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}
#endif

namespace forebay {
namespace {

constexpr std::uint64_t device_bytes = (1u << 20) + 512;

// What each byte may be: a write that failed may or may not have changed it. A set of values modulo
// 16, which random data tells apart well enough.
struct model {
  std::vector<std::uint16_t> possible = std::vector<std::uint16_t>(device_bytes, 1);

  static std::uint16_t bit(std::byte b) {
    return static_cast<std::uint16_t>(1u << (std::to_integer<unsigned>(b) % 16));
  }

  void wrote(std::uint64_t at, std::span<const std::byte> data, bool succeeded) {
    for (const std::byte b : data) {
      possible[at] = static_cast<std::uint16_t>((succeeded ? 0 : possible[at]) | bit(b));
      ++at;
    }
  }

  // Whatever is found becomes known.
  testing::AssertionResult found(std::uint64_t at, std::span<const std::byte> data) {
    for (const std::byte b : data) {
      if ((possible[at] & bit(b)) == 0) {
        return testing::AssertionFailure() << "byte " << at << " was never written so";
      }
      possible[at++] = bit(b);
    }
    return testing::AssertionSuccess();
  }
};

struct rig {
  rig() : cache(make_cache()) {
    space = std::make_unique<address_space>(*cache, dev, address_space::options{});
  }

  memory_device below{device_bytes};
  fault_device dev{below};
  std::unique_ptr<page_cache> cache;
  std::unique_ptr<address_space> space;
  model m;
  std::mt19937_64 rng{1};

  void operate() {
    const std::uint64_t at = rng() % device_bytes;
    const std::uint64_t n = 1 + rng() % std::min<std::uint64_t>(device_bytes - at, 1u << 17);
    switch (rng() % 8) {
      case 0:
      case 1:
      case 2: {
        const auto data = random_bytes(rng, n);
        m.wrote(at, data, sync_wait(space->write(at, data)).has_value());
        break;
      }
      case 3: {
        const std::vector<std::byte> zeros(n);
        m.wrote(at, zeros, sync_wait(space->write_zeroes(at, n, {})).has_value());
        break;
      }
      case 4:
        static_cast<void>(sync_wait(space->flush()));
        break;
      case 5:
        static_cast<void>(sync_wait(space->sync_range(at, n)));
        break;
      default: {
        std::vector<std::byte> out(n);
        if (!sync_wait(space->read(at, out))) break;
        ASSERT_TRUE(m.found(at, out));
      }
    }
  }

  // All is well again: everything arrives.
  void settle() {
    dev.heal();
    ASSERT_TRUE(sync_wait(space->flush()));
    std::vector<std::byte> out(device_bytes);
    ASSERT_TRUE(sync_wait(space->read(0, out)));
    ASSERT_TRUE(m.found(0, out));
    ASSERT_TRUE(same_bytes(out, below.contents().data()));
    ASSERT_EQ(cache->statistics().error_pages, 0u);
    space.reset();
    expect_all_given_back(*cache);
  }
};

struct fault_case {
  const char* name;
  std::uint64_t count;
  std::int32_t error;
  std::optional<std::uint64_t> partial_bytes;
};

// One thread only: the thread sanitizer has little to see here, and takes its time.
constexpr std::uint64_t skip_max = can_refuse_memory ? 40 : 3;
constexpr std::uint64_t skip_divisor = can_refuse_memory ? 4 : 1;

class device_faults : public testing::TestWithParam<fault_case> {};

TEST_P(device_faults, every_operation_of_the_device_may_fail) {
  const fault_case& f = GetParam();
  const bio_op ops[] = {bio_op::read, bio_op::write, bio_op::flush, bio_op::write_zeroes};
  for (const bio_op op : ops) {
    for (std::uint64_t skip = 0; skip < skip_max; skip += 1 + skip / skip_divisor) {
      SCOPED_TRACE(testing::Message() << "op " << static_cast<int>(op) << " skip " << skip);
      rig r;
      fault bad;
      bad.op = op;
      bad.skip = skip;
      bad.count = f.count;
      bad.error = f.error;
      bad.partial_bytes = f.partial_bytes;
      r.dev.inject(bad);
      for (int i = 0; i < 60; ++i) {
        r.operate();
        if (testing::Test::HasFatalFailure()) return;
      }
      r.settle();
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(ways, device_faults,
                         testing::Values(fault_case{"once_eio", 1, EIO, {}},
                                         fault_case{"once_enospc", 1, ENOSPC, {}},
                                         fault_case{"once_eagain", 1, EAGAIN, {}},
                                         fault_case{"once_partial", 1, EIO, 5000},
                                         fault_case{"for_good_eio", UINT64_MAX, EIO, {}},
                                         fault_case{"for_good_partial", UINT64_MAX, ENOSPC, 512}),
                         [](const auto& way) { return way.param.name; });

TEST(address_space, a_flush_reports_what_could_not_be_written_until_it_is) {
  rig r;
  ASSERT_TRUE(sync_wait(r.space->write(0, filled(page_bytes, 1))));
  ASSERT_TRUE(sync_wait(r.space->write(8 * page_bytes, filled(page_bytes, 2))));
  r.dev.inject({.op = bio_op::write, .start_bytes = 0, .end_bytes = page_bytes, .error = ENOSPC});
  for (int i = 0; i < 3; ++i) {
    const auto flushed = sync_wait(r.space->flush());
    ASSERT_FALSE(flushed);
    EXPECT_EQ(flushed.error().value(), ENOSPC);
    const auto s = r.cache->statistics();
    EXPECT_EQ(s.dirty_pages, 1u) << "the other page was written";
    EXPECT_EQ(s.error_pages, 1u);
    EXPECT_EQ(s.pages_written, 1u);
    EXPECT_EQ(s.write_errors, static_cast<std::uint64_t>(i) + 1);
  }
  EXPECT_TRUE(sync_wait(r.space->sync_range(8 * page_bytes, page_bytes)))
      << "a range without the page";
  EXPECT_FALSE(sync_wait(r.space->sync_range(0, page_bytes)));
  std::vector<std::byte> out(page_bytes);
  EXPECT_TRUE(sync_wait(r.space->read(0, out)));
  EXPECT_EQ(out, filled(page_bytes, 1)) << "the data is kept";
  // Writing it anew does not resolve it, writing it back does.
  EXPECT_TRUE(sync_wait(r.space->write(0, filled(page_bytes, 3))));
  EXPECT_EQ(r.cache->statistics().error_pages, 1u);
  r.dev.heal();
  EXPECT_TRUE(sync_wait(r.space->flush()));
  EXPECT_EQ(r.cache->statistics().error_pages, 0u);
  EXPECT_EQ(r.below.contents()[0], std::byte{3});
  EXPECT_TRUE(sync_wait(r.space->flush()));
  r.space.reset();
  expect_all_given_back(*r.cache);
}

TEST(address_space, a_discard_resolves_a_page_that_cannot_be_written) {
  rig r;
  ASSERT_TRUE(sync_wait(r.space->write(0, filled(page_bytes, 1))));
  ASSERT_TRUE(sync_wait(r.space->write(page_bytes, filled(512, 1))));  // with buffer heads
  r.dev.inject({.op = bio_op::write});
  ASSERT_FALSE(sync_wait(r.space->flush()));
  EXPECT_EQ(r.cache->statistics().error_pages, 2u);
  ASSERT_TRUE(sync_wait(r.space->discard(0, 2 * page_bytes)));
  EXPECT_EQ(r.cache->statistics().error_pages, 0u);
  EXPECT_EQ(r.cache->statistics().dirty_pages, 0u);
  EXPECT_TRUE(sync_wait(r.space->flush()));
  std::vector<std::byte> out(2 * page_bytes, std::byte{1});
  ASSERT_TRUE(sync_wait(r.space->read(0, out)));
  EXPECT_EQ(out, filled(2 * page_bytes, 0));
  r.space.reset();
  expect_all_given_back(*r.cache);
}

TEST(address_space, a_read_error_is_told_each_time_whatever_its_number) {
  for (const int error : {EIO, EAGAIN, ENOMEM, ESTALE}) {
    rig r;
    r.dev.inject({.op = bio_op::read, .count = 4, .error = error});
    std::vector<std::byte> out(page_bytes);
    for (int i = 0; i < 3; ++i) {
      const auto got = sync_wait(r.space->read(0, out));
      ASSERT_FALSE(got) << i;
      EXPECT_EQ(got.error().value(), error);
    }
    const auto written = sync_wait(r.space->write(100, filled(100, 1)));
    ASSERT_FALSE(written) << "its block has to be read first";
    EXPECT_EQ(written.error().value(), error);
    EXPECT_EQ(r.cache->statistics().dirty_pages, 0u);
    EXPECT_TRUE(sync_wait(r.space->write(100, filled(100, 1))));
    EXPECT_TRUE(sync_wait(r.space->read(0, out)));
    EXPECT_EQ(out[99], std::byte{0});
    EXPECT_EQ(out[100], std::byte{1});
    ASSERT_TRUE(sync_wait(r.space->flush()));
    r.space.reset();
    expect_all_given_back(*r.cache);
  }
}

TEST(address_space, a_discard_that_fails_changes_nothing) {
  for (const int error : {EIO, ENOTSUP}) {
    rig r;
    std::mt19937_64 rng(7);
    const auto data = random_bytes(rng, 64 * page_bytes);
    ASSERT_TRUE(sync_wait(r.space->write(0, data)));
    ASSERT_TRUE(sync_wait(r.space->flush()));
    ASSERT_TRUE(sync_wait(r.space->write(512, filled(512, 9))));
    r.dev.inject({.op = bio_op::discard, .error = error});
    r.dev.inject({.op = bio_op::write_zeroes, .error = error});
    const auto before = r.cache->statistics();
    EXPECT_EQ(sync_wait(r.space->discard(0, 32 * page_bytes)).has_value(), error == ENOTSUP)
        << "advice that the device cannot take is no failure";
    const auto zeroed = sync_wait(r.space->write_zeroes(0, 32 * page_bytes, {.only_fast = true}));
    ASSERT_FALSE(zeroed);
    EXPECT_EQ(zeroed.error().value(), error);
    const auto after = r.cache->statistics();
    EXPECT_EQ(after.dirty_pages, before.dirty_pages);
    EXPECT_EQ(after.resident_pages, before.resident_pages);
    auto want = data;
    std::fill_n(want.begin() + 512, 512, std::byte{9});
    std::vector<std::byte> out(data.size());
    ASSERT_TRUE(sync_wait(r.space->read(0, out)));
    EXPECT_EQ(out, want);
    if (error == ENOTSUP) {
      // Slowly it can be done.
      ASSERT_TRUE(sync_wait(r.space->write_zeroes(0, 32 * page_bytes, {})));
      std::fill_n(want.begin(), 32 * page_bytes, std::byte{0});
      ASSERT_TRUE(sync_wait(r.space->read(0, out)));
      EXPECT_EQ(out, want);
    }
    ASSERT_TRUE(sync_wait(r.space->flush()));
    EXPECT_TRUE(same_bytes(want, r.below.contents().data()));
    r.space.reset();
    expect_all_given_back(*r.cache);
  }
}

// Every allocation that may fail fails, once or from then on.
TEST(address_space, any_allocation_may_fail) {
  if (!can_refuse_memory) GTEST_SKIP() << "operator new cannot be replaced here";
  for (const bool for_good : {false, true}) {
    for (std::int64_t n = 0; n < 400; n += 1 + n / 8) {
      SCOPED_TRACE(testing::Message() << "allocation " << n << (for_good ? " and on" : ""));
      rig r;
      r.rng.seed(static_cast<std::uint64_t>(n));
      for (int i = 0; i < 10; ++i) r.operate();
      allocations_left = n;
      for (int i = 0; i < 40; ++i) {
        const std::uint64_t failed = allocations_failed;
        r.operate();
        if (!for_good && allocations_failed != failed) allocations_left = INT64_MAX;
        if (testing::Test::HasFatalFailure()) break;
      }
      allocations_left = INT64_MAX;
      if (testing::Test::HasFatalFailure()) return;
      r.settle();
      if (testing::Test::HasFatalFailure()) return;
    }
  }
  EXPECT_GT(allocations_failed, 100u);
}

// What fails for want of memory after the device has done its part is the dangerous kind.
TEST(address_space, write_zeroes_without_memory_does_all_or_nothing) {
  if (!can_refuse_memory) GTEST_SKIP() << "operator new cannot be replaced here";
  std::uint64_t refused = 0;
  for (std::int64_t n = 0; n < 20; ++n) {
    rig r;
    std::mt19937_64 rng(7);
    const auto data = random_bytes(rng, 64 * page_bytes);
    ASSERT_TRUE(sync_wait(r.space->write(0, data)));
    ASSERT_TRUE(sync_wait(r.space->flush()));
    ASSERT_TRUE(sync_wait(r.space->write(0, filled(8 * page_bytes, 9))));
    allocations_left = n;
    const auto zeroed = sync_wait(r.space->write_zeroes(0, 32 * page_bytes, {}));
    allocations_left = INT64_MAX;
    auto want = data;
    if (zeroed) {
      std::fill_n(want.begin(), 32 * page_bytes, std::byte{0});
    } else {
      ++refused;
      std::fill_n(want.begin(), 8 * page_bytes, std::byte{9});
    }
    ASSERT_TRUE(sync_wait(r.space->flush()));
    EXPECT_TRUE(same_bytes(want, r.below.contents().data())) << n;
    std::vector<std::byte> out(data.size());
    ASSERT_TRUE(sync_wait(r.space->read(0, out)));
    EXPECT_EQ(out, want) << n;
    r.space.reset();
    expect_all_given_back(*r.cache);
  }
  EXPECT_GT(refused, 2u);
}

// A device with a map of what has been written, which can be held up in the middle of an answer.
class sparse_device final : public device {
 public:
  explicit sparse_device(device& below) : below_(below), limits_(below.limits()) {
    limits_.may_have_holes = true;
    written_.resize(limits_.size_bytes / page_bytes);
  }
  const device_limits& limits() const noexcept override { return limits_; }
  void submit(bio& b) noexcept override {
    if (b.op == bio_op::write || b.op == bio_op::discard || b.op == bio_op::write_zeroes) {
      for (std::uint64_t at = b.offset_bytes; at < b.end_bytes(); at += 512) {
        written_[at / page_bytes] = b.op == bio_op::write;
      }
    }
    below_.submit(b);
  }
  result<file_extent> extent_at(std::uint64_t offset) const override {
    std::uint64_t at = offset / page_bytes;
    const bool hole = !written_[at];
    while (at < written_.size() && written_[at] != hole) ++at;
    if (before_answer) before_answer();
    return file_extent{std::min(at * page_bytes, limits_.size_bytes.get()), hole};
  }

  std::function<void()> before_answer;

 private:
  device& below_;
  device_limits limits_;
  std::vector<char> written_;
};

std::string text_of(const std::vector<address_space::extent>& extents) {
  std::string s;
  for (const auto& e : extents) {
    s += std::to_string(e.length_bytes) + (e.hole ? "h " : "d ");
  }
  return s;
}

TEST(extents, unwritten_cached_data_is_data) {
  memory_device memory(64 * page_bytes);
  sparse_device dev(memory);
  const auto cache = make_cache();
  {
    address_space space(*cache, dev, {});
    const std::uint64_t all = 64 * page_bytes;
    EXPECT_EQ(text_of(*extents_of(space, 0, all, 10)), "262144h ");
    ASSERT_TRUE(sync_wait(space.write(2 * page_bytes + 100, filled(10, 1))));
    ASSERT_TRUE(sync_wait(space.write(3 * page_bytes, filled(page_bytes, 1))));
    EXPECT_EQ(text_of(*extents_of(space, 0, all, 10)), "8192h 8192d 245760h ");
    EXPECT_EQ(text_of(*extents_of(space, 0, all, 2)), "8192h 8192d ");
    EXPECT_EQ(text_of(*extents_of(space, 0, all, 1)), "8192h ");
    EXPECT_EQ(text_of(*extents_of(space, 512, page_bytes, 10)), "4096h ");
    EXPECT_EQ(text_of(*extents_of(space, 3 * page_bytes + 512, page_bytes, 10)), "3584d 512h ");
    ASSERT_TRUE(sync_wait(space.flush()));
    EXPECT_EQ(text_of(*extents_of(space, 0, all, 10)), "8192h 8192d 245760h ");
    // Holes are not read, and read as zeros.
    std::vector<std::byte> out(all, std::byte{1});
    ASSERT_TRUE(sync_wait(space.read(0, out)));
    EXPECT_TRUE(same_bytes(out, memory.contents().data()));
    EXPECT_EQ(cache->statistics().pages_read, 1u) << "the rest of the page written in part";
    EXPECT_EQ(text_of(*extents_of(space, 0, all, 10)), "8192h 8192d 245760h ") << "clean zeros";
    ASSERT_TRUE(sync_wait(space.discard(2 * page_bytes, page_bytes)));
    EXPECT_EQ(text_of(*extents_of(space, 0, all, 10)), "12288h 4096d 245760h ");
  }
  expect_all_given_back(*cache);
}

TEST(extents, what_is_written_back_during_the_question_is_data) {
  memory_device memory(64 * page_bytes);
  sparse_device dev(memory);
  const auto cache = make_cache();
  {
    address_space space(*cache, dev, {});
    ASSERT_TRUE(sync_wait(space.write(0, filled(page_bytes, 1))));
    dev.before_answer = [&] {
      dev.before_answer = nullptr;
      std::jthread([&] { ASSERT_TRUE(sync_wait(space.flush())); }).join();
    };
    EXPECT_EQ(text_of(*extents_of(space, 0, 64 * page_bytes, 10)), "4096d 258048h ");
  }
  expect_all_given_back(*cache);
}

// Between the question what the device has and the page that is put there.
TEST(large_pages_of_holes, do_not_hide_what_has_been_written_meanwhile) {
  memory_device memory(1u << 20);
  sparse_device dev(memory);
  const auto cache = make_cache();
  {
    address_space space(*cache, dev, {.max_page_order = 4});
    dev.before_answer = [&] {
      dev.before_answer = nullptr;
      std::jthread([&] {
        ASSERT_TRUE(sync_wait(space.write(2 * page_bytes, filled(page_bytes, 1))));
        ASSERT_TRUE(sync_wait(space.flush()));
        ASSERT_TRUE(invalidate_bdev(space));
      }).join();
    };
    std::vector<std::byte> out(16 * page_bytes);
    ASSERT_TRUE(sync_wait(space.read(0, out)));
    EXPECT_EQ(cache->statistics().evictions, 1u);
    EXPECT_TRUE(same_bytes(out, memory.contents().data()));
  }
  expect_all_given_back(*cache);
}

}  // namespace
}  // namespace forebay
