// Address spaces that may have only so much of their cache: the limit holds whatever is done, costs
// the others nothing, and nobody waits for ever.

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "forebay/block/fault_device.h"
#include "forebay/cache/test_space.h"
#include "forebay/os/test_await.h"

namespace forebay {
namespace {

constexpr std::uint64_t least = std::uint64_t{memory_share::pages_min} * page_bytes;
constexpr std::uint64_t image = 4 * least;

class MemoryShare : public testing::Test {
 protected:
  MemoryShare() {
    for (std::size_t i = 0; i < image; ++i) medium_.contents()[i] = at(i);
  }
  static std::byte at(std::uint64_t offset) { return std::byte(offset * 7 + offset / page_bytes); }

  // Reads a range and looks at it.
  static void read(address_space& space, std::uint64_t offset, std::size_t n) {
    std::vector<std::byte> out(n);
    ASSERT_TRUE(sync_wait(space.read(offset, out)));
    for (std::size_t i = 0; i < n; i += 512) ASSERT_EQ(out[i], at(offset + i)) << offset + i;
  }
  static void read_all(address_space& space, std::size_t step = 64 * page_bytes) {
    for (std::uint64_t o = 0; o < image; o += step) read(space, o, step);
  }

  memory_device medium_{image};
  memory_device other_medium_{image};
  // Not enough for both images, but for one and a share of the other.
  std::unique_ptr<page_cache> cache_ = make_cache(image + least + least / 2);
};

TEST_F(MemoryShare, PagesOfOthersStay) {
  address_space other(*cache_, other_medium_, {});
  ASSERT_TRUE(sync_wait(other.prefetch(0, image)));
  const std::uint32_t others = other.share().pages();
  EXPECT_EQ(others, image / page_bytes);
  address_space space(*cache_, medium_, {.readahead_bytes = 256 << 10});
  space.set_memory_limit(least);
  EXPECT_EQ(space.memory_limit_bytes(), least);
  EXPECT_EQ(other.memory_limit_bytes(), 0u);
  for (int round = 0; round < 3; ++round) {
    read_all(space);
    EXPECT_LE(space.share().pages(), memory_share::pages_min);
    EXPECT_GT(space.share().pages(), memory_share::pages_min * 9 / 10);
  }
  EXPECT_EQ(other.share().pages(), others);
  space.set_memory_limit(UINT64_MAX);
  EXPECT_EQ(space.memory_limit_bytes(), 0u);
  read_all(space);
  EXPECT_LT(other.share().pages(), others) << "it is the limit that keeps them";
}

// As many streams as are followed, in turns: what is read ahead for one is there still when it
// comes.
TEST_F(MemoryShare, ReadAheadStaysUntilItIsUsed) {
  address_space space(*cache_, medium_, {.readahead_bytes = 1 << 20});
  space.set_memory_limit(least);
  for (std::uint64_t o = 0; o < image / readahead::streams_max; o += page_bytes) {
    for (std::uint64_t s = 0; s < readahead::streams_max; ++s) {
      read(space, s * image / readahead::streams_max + o, page_bytes);
    }
  }
  const page_cache_statistics seen = cache_->statistics();
  EXPECT_GT(seen.readahead_used, image / page_bytes * 9 / 10);
  EXPECT_LT(seen.readahead_wasted, image / page_bytes / 20);
}

TEST_F(MemoryShare, LargePagesCountByTheirFrames) {
  address_space space(*cache_, medium_, {.max_page_order = 9});
  space.set_memory_limit(least);
  for (int round = 0; round < 2; ++round) {
    for (std::uint64_t o = 0; o < image; o += 2 << 20) {
      ASSERT_TRUE(sync_wait(space.prefetch(o, 2 << 20)));
      EXPECT_LE(space.share().pages(), memory_share::pages_min);
      read(space, o, 2 << 20);
    }
  }
  EXPECT_GT(space.share().pages(), memory_share::pages_min * 9 / 10);
}

TEST_F(MemoryShare, NoPageIsAsLargeAsAGoodPartOfIt) {
  address_space space(*cache_, medium_, {.max_page_order = 9});
  const auto pages_of_2mib = [&] {
    std::vector<page_ref> pins(512);
    const auto pinned = sync_wait(space.pin(0, 2 << 20, pins));
    EXPECT_TRUE(pinned);
    return pinned.value_or(0);
  };
  EXPECT_EQ(pages_of_2mib(), 1u);
  ASSERT_TRUE(sync_wait(space.discard(0, image)));
  space.set_memory_limit(least);
  EXPECT_EQ(pages_of_2mib(), 32u);
}

TEST_F(MemoryShare, WhatIsUsedStaysLonger) {
  address_space space(*cache_, medium_, {});
  space.set_memory_limit(least);
  constexpr std::uint64_t hot = least / 4;
  for (int i = 0; i < 4; ++i) read(space, 0, hot);
  // Half of the limit passes by.
  for (std::uint64_t o = hot; o < least + least / 2; o += page_bytes) read(space, o, page_bytes);
  const std::uint64_t misses = cache_->statistics().misses;
  read(space, 0, hot);
  EXPECT_EQ(cache_->statistics().misses, misses);
}

TEST_F(MemoryShare, WhatIsOverALoweredLimitGoesAsOthersCome) {
  address_space space(*cache_, medium_, {});
  std::vector<std::byte> all(medium_.contents().begin(), medium_.contents().end());
  ASSERT_TRUE(sync_wait(space.write(0, std::span(all).first(2 * least))));
  ASSERT_EQ(space.dirty_pages(), 2 * memory_share::pages_min);
  space.set_memory_limit(least);
  EXPECT_EQ(space.share().pages(), 2 * memory_share::pages_min);
  EXPECT_EQ(space.dirty_pages(), 2 * memory_share::pages_min);
  ASSERT_TRUE(sync_wait(space.flush()));
  // Two go for each that comes.
  read_all(space, page_bytes);
  EXPECT_LE(space.share().pages(), memory_share::pages_min);
}

// Nobody reads or writes, and it goes.
TEST_F(MemoryShare, TheFlusherGivesUpWhatIsOver) {
  address_space space(*cache_, medium_, {});
  read_all(space);
  ASSERT_TRUE(sync_wait(space.write(0, filled(least, 0x11))));
  std::thread flusher([&] { ASSERT_TRUE(sync_wait(space.run_flusher())); });
  space.set_memory_limit(least);
  EXPECT_TRUE(eventually([&] { return space.share().pages() <= memory_share::pages_min; }));
  // What is in use when the limit is lowered goes when it is not.
  space.set_memory_limit(UINT64_MAX);
  std::vector<page_ref> pins(2 * memory_share::pages_min);
  for (std::size_t i = 0; i < pins.size(); ++i) {
    ASSERT_EQ(sync_wait(space.pin(i * page_bytes, page_bytes, std::span(&pins[i], 1))), 1u);
  }
  space.set_memory_limit(least);
  EXPECT_TRUE(eventually([&] { return space.share().pages() == pins.size(); }));
  pins.clear();
  EXPECT_TRUE(eventually([&] { return space.share().pages() <= memory_share::pages_min; }));
  space.stop_flusher();
  flusher.join();
  ASSERT_TRUE(sync_wait(space.flush()));
}

TEST_F(MemoryShare, WritersWaitAtTwoFifthsOfIt) {
  address_space space(*cache_, medium_, {});
  space.set_memory_limit(least);
  std::vector<std::byte> data = filled(page_bytes, 0x5a);
  for (std::uint64_t o = 0; o < image; o += page_bytes) {
    ASSERT_TRUE(sync_wait(space.write(o, data)));
    ASSERT_LE(space.dirty_pages(), memory_share::pages_min * 2 / 5);
    ASSERT_LE(space.share().pages(), memory_share::pages_min);
  }
  EXPECT_GT(cache_->statistics().throttled_writes, 0u);
  ASSERT_TRUE(sync_wait(space.flush()));
  EXPECT_TRUE(
      std::ranges::all_of(medium_.contents(), [](std::byte b) { return b == std::byte{0x5a}; }));
}

// What is under write-back is not clean yet.
TEST_F(MemoryShare, WritersWaitForWhatIsBeingWritten) {
  gated_device gate(medium_);
  gate.open();
  address_space space(*cache_, gate, {});
  space.set_memory_limit(least);
  gate.close();
  const auto data = filled(least, 0x5a);
  const auto write_both = [&]() -> task<> {
    task_group group;
    outcome first, second;
    EXPECT_TRUE(keep_outcome(space.write(0, data), first).spawn(group));
    EXPECT_TRUE(keep_outcome(space.write(2 * least, data), second).spawn(group));
    // Each has tried again a few times.
    while (cache_->statistics().throttled_writes < 6) co_await sleep_for(1'000'000);
    EXPECT_GT(space.share().unwritten().writeback(), 0u);
    EXPECT_LE(space.share().unwritten().to_write(), dirty_limit_of(memory_share::pages_min));
    gate.open();
    co_await group.idle();
    EXPECT_TRUE(first.ended && !first.error);
    EXPECT_TRUE(second.ended && !second.error);
    co_return result<>{};
  };
  ASSERT_TRUE(sync_wait(write_both()));
  ASSERT_TRUE(sync_wait(space.flush()));
}

// All of it is dirty and more than it may be: the first few that are written make room.
TEST_F(MemoryShare, WhoNeedsAPageDoesNotWaitForAllThatIsDirty) {
  gated_device gate(medium_);
  address_space space(*cache_, gate, {});
  // Every second page, so that each is a request by itself, and they are more than go out at once.
  for (std::uint64_t o = 0; o < image; o += 2 * page_bytes)
    ASSERT_TRUE(sync_wait(space.write(o, filled(page_bytes, 0x5a))));
  space.set_memory_limit(least);
  constexpr std::uint64_t wanted = 3 * least + page_bytes;
  std::vector<std::byte> out(page_bytes);
  const auto end_first_write = [&gate] {
    for (std::uint64_t o = 0; o < image; o += 2 * page_bytes) {
      if (gate.end(bio_op::write, o)) return true;
    }
    return false;
  };
  const auto read_one = [&]() -> task<> {
    task_group group;
    outcome flusher, reader;
    EXPECT_TRUE(keep_outcome(space.run_flusher(), flusher).spawn(group));
    while (gate.held() < 2) co_await sleep_for(1'000'000);
    EXPECT_TRUE(keep_outcome(space.read(wanted, out), reader).spawn(group));
    co_await sleep_for(1'000'000);
    EXPECT_FALSE(reader.ended);
    // Over a limit two go for one that comes.
    for (int i = 0; i < 4; ++i) EXPECT_TRUE(end_first_write());
    for (int i = 0; i < 1000 && !reader.ended; ++i) {
      static_cast<void>(gate.end(bio_op::read, wanted));
      co_await sleep_for(1'000'000);
    }
    EXPECT_TRUE(reader.ended && !reader.error);
    gate.open();
    space.stop_flusher();
    co_await group.idle();
    co_return result<>{};
  };
  ASSERT_TRUE(sync_wait(read_one()));
  EXPECT_EQ(out[17], at(wanted + 17));
  ASSERT_TRUE(sync_wait(space.flush()));
}

// Neither writers nor readers wait for what does not come.
TEST_F(MemoryShare, WhatCannotBeWrittenIsToldAndStopsNobody) {
  fault_device failing(medium_);
  address_space space(*cache_, failing, {});
  address_space other(*cache_, other_medium_, {});
  space.set_memory_limit(least);
  failing.inject({.op = bio_op::write, .error = ENOSPC});
  const auto data = filled(page_bytes, 0x5a);
  std::uint64_t taken = 0;
  for (;; taken += page_bytes) {
    ASSERT_LE(taken, dirty_limit_of(memory_share::pages_min) * page_bytes);
    const result<> wrote = sync_wait(space.write(taken, data));
    if (wrote) continue;
    EXPECT_EQ(wrote.error().value(), ENOSPC);
    break;
  }
  EXPECT_EQ(space.share().unwritten().failed(), taken / page_bytes);
  for (std::uint64_t o = 0; o < image; o += page_bytes) {
    ASSERT_TRUE(sync_wait(other.write(o, data)));
    if (o >= taken) read(space, o, page_bytes);
  }
  EXPECT_LE(space.share().pages(), memory_share::pages_min + taken / page_bytes);
  failing.heal();
  ASSERT_TRUE(sync_wait(space.write(taken, data)));
  ASSERT_TRUE(sync_wait(space.flush()));
  ASSERT_TRUE(sync_wait(other.flush()));
  EXPECT_EQ(medium_.contents()[0], std::byte{0x5a});
}

TEST_F(MemoryShare, ALimitBelowWhatCannotBeWrittenLeavesRoomToRead) {
  fault_device failing(medium_);
  address_space space(*cache_, failing, {});
  failing.inject({.op = bio_op::write});
  ASSERT_TRUE(sync_wait(space.write(0, filled(2 * least, 0x5a))));
  space.set_memory_limit(least);
  for (std::uint64_t o = 2 * least; o < image; o += page_bytes) read(space, o, page_bytes);
  EXPECT_EQ(space.share().unwritten().failed(), 2 * memory_share::pages_min);
  EXPECT_LE(space.share().pages(), 3 * memory_share::pages_min);
  EXPECT_FALSE(sync_wait(space.write(2 * least, filled(page_bytes, 1))));
  failing.heal();
  ASSERT_TRUE(sync_wait(space.flush()));
}

TEST_F(MemoryShare, WhoNeedsAPageWhileAllArePinnedWaitsForOne) {
  address_space space(*cache_, medium_, {});
  space.set_memory_limit(least);
  std::vector<page_ref> pins(memory_share::pages_min);
  std::size_t n = 0;
  while (n < pins.size()) {
    const auto got = sync_wait(
        space.pin(n * page_bytes, (pins.size() - n) * page_bytes, std::span(pins).subspan(n)));
    ASSERT_TRUE(got);
    n += *got;
  }
  EXPECT_EQ(space.share().pages(), memory_share::pages_min);
  std::atomic<bool> done{false};
  std::thread reader([&] {
    read(space, 2 * least, page_bytes);
    done = true;
  });
  // It has been refused at least once, and then waits.
  while (cache_->statistics().frame_waits == 0) std::this_thread::yield();
  EXPECT_FALSE(done);
  EXPECT_LE(space.share().pages(), memory_share::pages_min + 1);  // who tries counts his page
  pins[17].reset();
  reader.join();
  EXPECT_TRUE(done);
  EXPECT_EQ(space.share().pages(), memory_share::pages_min);
}

// Each thread has pages of its own, and all of them the same few to give up.
TEST_F(MemoryShare, ManyThreadsKeepToIt) {
  address_space space(*cache_, medium_, {.readahead_bytes = 64 << 10, .max_page_order = 4});
  address_space other(*cache_, other_medium_, {});
  space.set_memory_limit(least);
  constexpr unsigned workers = 4;
  constexpr std::uint64_t own = image / workers;
  std::atomic<bool> over{false};
  std::vector<std::thread> all;
  for (unsigned w = 0; w < workers; ++w) {
    all.emplace_back([&, w] {
      std::mt19937_64 rng(w);
      std::vector<unsigned> value(own / page_bytes);  // what was written last; 0: nothing
      for (int i = 0; i < 1500; ++i) {
        const std::uint64_t page = rng() % value.size();
        const std::uint64_t offset = w * own + page * page_bytes;
        if (rng() % 3 == 0) {
          value[page] = 1 + rng() % 255;
          ASSERT_TRUE(sync_wait(space.write(offset, filled(page_bytes, value[page]))));
        } else if (rng() % 64 == 0) {
          space.set_memory_limit(least + rng() % 8 * page_bytes);
        } else {
          std::vector<std::byte> out(page_bytes);
          ASSERT_TRUE(sync_wait(space.read(offset, out)));
          const std::byte first = value[page] == 0 ? at(offset) : std::byte(value[page]);
          ASSERT_EQ(out.front(), first);
        }
        // Each may have counted a page and taken it back since, or the limit was the larger one.
        if (space.share().pages() > memory_share::pages_min + 8 + workers * 16) over = true;
        ASSERT_TRUE(sync_wait(other.prefetch(rng() % 64 * page_bytes, page_bytes)));
      }
    });
  }
  for (std::thread& t : all) t.join();
  EXPECT_FALSE(over);
  ASSERT_TRUE(sync_wait(space.flush()));
}

}  // namespace
}  // namespace forebay
