// An address space whose device grows: the page at the old end, the index, and readers and writers
// there at the same moment.

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "forebay/cache/test_space.h"

namespace forebay {
namespace {

// A device that begins as a part of the one below.
class growing_device final : public device {
 public:
  growing_device(device& below, std::uint64_t size) : below_(below), limits_(below.limits()) {
    limits_.size_bytes = size;
  }
  const device_limits& limits() const noexcept override { return limits_; }
  void submit(bio& b) noexcept override {
    if (const std::int32_t bad = check_bio(b, limits_); bad != 0) return complete(b, bad);
    below_.submit(b);
  }
  void grow(std::uint64_t size) { limits_.size_bytes = size; }

 private:
  device& below_;
  device_limits limits_;
};

constexpr std::uint64_t most = std::uint64_t{1} << 48;

std::byte at_offset(std::uint64_t offset) { return std::byte(offset * 31 + offset / 512); }

std::vector<std::byte> medium_bytes(std::uint64_t from, std::uint64_t n) {
  std::vector<std::byte> all(n);
  for (std::uint64_t i = 0; i < n; ++i) all[i] = at_offset(from + i);
  return all;
}

// What the page at the old end is like when the device grows.
enum class last_page { absent, clean, dirty, partly_valid, partly_dirty, discarded };

class growth : public testing::TestWithParam<last_page> {};

TEST_P(growth, what_comes_behind_the_old_end_is_the_device_s) {
  constexpr std::uint64_t whole = 16 * page_bytes;
  for (const std::uint64_t before : {512ul, 3 * page_bytes + 512, 5 * page_bytes + 3584}) {
    for (const std::uint64_t after : {before + 512, round_up(before, std::uint64_t{page_bytes}),
                                      before + 6 * page_bytes, whole}) {
      memory_device medium(whole);
      std::ranges::copy(medium_bytes(0, whole), medium.contents().begin());
      growing_device dev(medium, before);
      const auto cache = make_cache();
      {
        address_space space(*cache, dev, {.block_bytes = 512, .max_bytes = most});
        auto flat = medium_bytes(0, whole);
        std::vector<std::byte> out(whole);
        const auto write = [&](std::uint64_t at, std::uint64_t n) {
          ASSERT_TRUE(sync_wait(space.write(at, filled(n, 0xaa))));
          std::fill_n(flat.begin() + static_cast<std::ptrdiff_t>(at), n, std::byte{0xaa});
        };
        const std::uint64_t start = round_down(before, std::uint64_t{page_bytes});
        switch (GetParam()) {
          case last_page::absent:
            break;
          case last_page::clean:
            ASSERT_TRUE(sync_wait(space.prefetch(start, before - start)));
            break;
          case last_page::dirty:
            write(start, before - start);
            break;
          case last_page::partly_valid:
            ASSERT_TRUE(sync_wait(space.prefetch(before - 512, 512)));
            break;
          case last_page::partly_dirty:
            write(before - 100, 100);
            break;
          case last_page::discarded:
            ASSERT_TRUE(sync_wait(space.prefetch(start, before - start)));
            ASSERT_TRUE(sync_wait(space.discard(start, before - start)));
            std::fill(flat.begin() + static_cast<std::ptrdiff_t>(start),
                      flat.begin() + static_cast<std::ptrdiff_t>(before), std::byte{0});
            break;
        }
        dev.grow(after);
        ASSERT_TRUE(sync_wait(space.grow(after)));
        EXPECT_EQ(space.size_bytes(), after);
        if (GetParam() == last_page::partly_dirty) {
          // Nothing of what lies behind the old end is written with what waits before it.
          ASSERT_TRUE(sync_wait(space.flush()));
          EXPECT_TRUE(same_bytes(flat, medium.contents().data()));
        }
        ASSERT_TRUE(sync_wait(space.read(0, std::span(out).first(after))));
        EXPECT_TRUE(
            std::equal(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(after), flat.begin()))
            << before << " to " << after;
        // Across the old end, and up to the new one.
        write(before - 10, 20);
        write(after - 1, 1);
        ASSERT_TRUE(sync_wait(space.read(0, std::span(out).first(after))));
        EXPECT_TRUE(std::equal(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(after),
                               flat.begin()));
        ASSERT_TRUE(sync_wait(space.flush()));
        EXPECT_TRUE(same_bytes(flat, medium.contents().data()));
      }
      expect_all_given_back(*cache);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(states, growth,
                         testing::Values(last_page::absent, last_page::clean, last_page::dirty,
                                         last_page::partly_valid, last_page::partly_dirty,
                                         last_page::discarded));

// The index gets new roots; what was cached and dirty is found beneath them, and what comes behind
// is somewhere else.
TEST(growth, the_index_grows_by_levels) {
  const std::uint64_t steps[] = {4096, 64 * 4096, 65 * 4096, std::uint64_t{1} << 26,
                                 std::uint64_t{1} << 33};
  memory_device medium(steps[4]);
  growing_device dev(medium, steps[0]);
  const auto cache = make_cache();
  {
    address_space space(*cache, dev, {.block_bytes = 512, .max_bytes = most});
    unsigned value = 1;
    for (const std::uint64_t size : steps) {
      dev.grow(size);
      ASSERT_TRUE(sync_wait(space.grow(size)));
      ASSERT_TRUE(sync_wait(space.write(size - 4096, filled(4096, value++))));
    }
    EXPECT_EQ(space.dirty_pages(), 5u);
    std::vector<std::byte> out(4096);
    for (const bool flushed : {false, true}) {
      if (flushed) {
        ASSERT_TRUE(sync_wait(space.flush()));
      }
      value = 1;
      for (const std::uint64_t size : steps) {
        EXPECT_EQ(space.try_read(size - 4096, out), 4096u);
        EXPECT_EQ(out, filled(4096, value));
        std::ranges::copy(medium.contents().subspan(size - 4096, 4096), out.begin());
        EXPECT_EQ(out, filled(4096, flushed ? value : 0));
        ++value;
      }
    }
    EXPECT_EQ(space.dirty_pages(), 0u);
  }
  expect_all_given_back(*cache);
}

TEST(growth, more_than_was_said_is_refused) {
  memory_device medium(1u << 20);
  growing_device dev(medium, 4096);
  const auto cache = make_cache();
  address_space space(*cache, dev, {.block_bytes = 512, .max_bytes = 65536});
  dev.grow(1u << 20);
  const result<> r = sync_wait(space.grow(65536 + 512));
  ASSERT_FALSE(r);
  EXPECT_EQ(r.error(), std::errc::file_too_large);
  EXPECT_EQ(space.size_bytes(), 4096u);
  EXPECT_TRUE(sync_wait(space.grow(65536)));
}

// Who has seen the size may use all of it at once, while others read, write and flush the page that
// has just become longer.
TEST(growth, readers_and_writers_at_the_edge) {
  constexpr std::uint64_t whole = 16 * page_bytes;
  memory_device medium(whole);
  std::ranges::copy(medium_bytes(0, whole), medium.contents().begin());
  growing_device dev(medium, 512);
  const auto cache = make_cache();
  {
    address_space space(*cache, dev, {.block_bytes = 512, .max_bytes = most});
    std::atomic<bool> over{false};
    std::atomic<int> wrong{0};
    std::atomic<unsigned> passes{0};
    const auto check = [&](bool ok) {
      if (!ok) wrong.fetch_add(1);
    };
    std::thread reader([&] {
      std::vector<std::byte> out(3000);
      while (!over) {
        const std::uint64_t end = space.size_bytes();
        const std::uint64_t n = std::min<std::uint64_t>(end, out.size());
        check(sync_wait(space.read(end - n, std::span(out).first(n))).has_value());
        check(std::equal(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(n),
                         medium_bytes(end - n, n).begin()));
        passes.fetch_add(1);
      }
    });
    std::thread writer([&] {
      for (std::uint64_t i = 0; !over; ++i) {
        const std::uint64_t end = space.size_bytes();
        const std::uint64_t n = std::min<std::uint64_t>(end, 1 + i * 97 % 1500);
        check(sync_wait(space.write(end - n, medium_bytes(end - n, n))).has_value());
        if (i % 4 == 0) check(sync_wait(space.flush()).has_value());
        passes.fetch_add(1);
      }
    });
    for (std::uint64_t size = 1024; size <= whole; size += 512) {
      dev.grow(size);
      EXPECT_TRUE(sync_wait(space.grow(size)));
      // The two have been there a few times, at no particular moment.
      for (const unsigned seen = passes; passes - seen < size / 512 % 5;) std::this_thread::yield();
    }
    over = true;
    reader.join();
    writer.join();
    EXPECT_EQ(wrong, 0);
    EXPECT_TRUE(sync_wait(space.flush()));
    EXPECT_TRUE(same_bytes(medium_bytes(0, whole), medium.contents().data()));
  }
  expect_all_given_back(*cache);
}

}  // namespace
}  // namespace forebay
