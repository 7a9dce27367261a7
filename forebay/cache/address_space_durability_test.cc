// One thread: not in the thread sanitizer's tree.
// flush and sync_range (FUA) in the situations in which they could promise too much.

#include <gtest/gtest.h>

#include <thread>

#include "forebay/block/fault_device.h"
#include "forebay/block/recorder_device.h"
#include "forebay/cache/test_space.h"

namespace forebay {
namespace {

constexpr std::uint64_t device_bytes = 1u << 20;

// What is on the medium if it loses everything that it is not bound to keep.
std::vector<std::byte> durable_image(const recorder_device& recorder) {
  const auto log = recorder.log();
  std::uint64_t last = 0;
  for (const auto& r : log) last = std::max({last, r.submitted, r.completed});
  return image_after_crash(std::vector<std::byte>(device_bytes), log, last,
                           [](std::size_t) { return false; });
}

TEST(sync_range, does_not_take_a_page_for_written_of_which_other_blocks_were_written) {
  memory_device memory(device_bytes);
  fault_device failing(memory);
  recorder_device dev(failing);
  const auto cache = make_cache();
  {
    address_space space(*cache, dev, {});
    ASSERT_TRUE(sync_wait(space.write(0, filled(512, 1))));
    // Somebody writes the page back, and nothing makes it durable.
    failing.inject({.op = bio_op::flush, .count = 1});
    ASSERT_FALSE(sync_wait(space.flush()));
    ASSERT_TRUE(sync_wait(space.write(1024, filled(512, 2))));
    ASSERT_TRUE(sync_wait(space.sync_range(0, 512)));
    EXPECT_EQ(durable_image(dev)[0], std::byte{1});
  }
  expect_all_given_back(*cache);
}

TEST(sync_range, of_what_is_all_dirty_needs_no_flush) {
  memory_device memory(device_bytes);
  recorder_device dev(memory);
  const auto cache = make_cache();
  {
    address_space space(*cache, dev, {});
    const auto data = filled(3 * page_bytes, 1);
    ASSERT_TRUE(sync_wait(space.write(1536, data)));
    ASSERT_TRUE(sync_wait(space.sync_range(1536, data.size())));
    const auto image = durable_image(dev);
    EXPECT_TRUE(same_bytes(data, image.data() + 1536));
    for (const auto& r : dev.log()) EXPECT_NE(r.op, bio_op::flush);
    // Written back meanwhile, not durable: now it takes a flush.
    ASSERT_TRUE(sync_wait(space.write(65536, data)));
    ASSERT_TRUE(sync_wait(space.flush()));
    ASSERT_TRUE(sync_wait(space.sync_range(65536, data.size())));
    EXPECT_EQ(dev.log().back().op, bio_op::flush);
  }
  expect_all_given_back(*cache);
}

// Pages P (in the middle), Q, R (last). While somebody flushes, the write of P that is under way in
// other hands fails, and a third one has it under way again when the flush looks.
struct race {
  static constexpr std::uint64_t p = 4 * page_bytes;
  static constexpr std::uint64_t q = 6 * page_bytes;
  static constexpr std::uint64_t r = 8 * page_bytes;

  race() : dev(memory), cache(make_cache()) {
    space = std::make_unique<address_space>(*cache, dev, address_space::options{});
  }

  task<> write_pages() {
    for (const std::uint64_t at : {p, q, r}) {
      const auto done = co_await space->write(at, filled(page_bytes, 7));
      EXPECT_TRUE(done);
    }
    co_return result<>{};
  }

  bool start(task<> work, outcome& out) { return keep_outcome(std::move(work), out).spawn(group); }

  // Until `flushing` waits for R, P having failed and being written again.
  task<> into_the_gap(task<> flushing) {
    co_await write_pages();
    EXPECT_TRUE(start(space->sync_range(p, page_bytes), first_writer));
    EXPECT_TRUE(start(space->sync_range(r, page_bytes), other_writer));
    EXPECT_TRUE(start(std::move(flushing), flush));
    EXPECT_EQ(dev.held(), 3u);
    EXPECT_TRUE(dev.end(bio_op::write, p, EIO));
    co_await sleep_for(1);
    EXPECT_TRUE(first_writer.ended);
    EXPECT_TRUE(dev.end(bio_op::write, q));
    co_await sleep_for(1);
    EXPECT_FALSE(flush.ended);
    EXPECT_TRUE(start(space->sync_range(p, page_bytes), second_writer));
    EXPECT_EQ(dev.held(), 2u);
    EXPECT_TRUE(dev.end(bio_op::write, r));
    co_await sleep_for(1);
    dev.end(bio_op::flush, 0);
    co_await sleep_for(1);
    co_return result<>{};
  }

  task<> finish() {
    dev.open();
    co_await group.idle();
    co_return result<>{};
  }

  memory_device memory{device_bytes};
  gated_device dev;
  std::unique_ptr<page_cache> cache;
  std::unique_ptr<address_space> space;
  task_group group;
  outcome first_writer, other_writer, second_writer, flush;
};

task<> flush_in_the_gap(race& t) {
  co_await t.into_the_gap(t.space->flush());
  EXPECT_TRUE(!t.flush.ended || t.flush.error) << "P is not on the device";
  co_await t.finish();
  EXPECT_TRUE(t.flush.ended);
  EXPECT_FALSE(t.second_writer.error);
  const auto again = co_await t.space->flush();
  EXPECT_TRUE(again) << "resolved";
  co_return result<>{};
}

task<> sync_range_in_the_gap(race& t) {
  co_await t.into_the_gap(t.space->sync_range(race::p, race::r + page_bytes - race::p));
  EXPECT_FALSE(t.flush.ended) << "P is not on the device";
  co_await t.finish();
  EXPECT_TRUE(t.flush.ended);
  EXPECT_FALSE(t.flush.error) << "the second attempt wrote it";
  co_return result<>{};
}

TEST(flush, reports_a_page_that_failed_in_other_hands_and_is_under_way_again) {
  race t;
  ASSERT_TRUE(sync_wait(flush_in_the_gap(t)));
  t.space.reset();
  expect_all_given_back(*t.cache);
}

TEST(sync_range, waits_for_a_page_that_failed_in_other_hands_and_is_under_way_again) {
  race t;
  ASSERT_TRUE(sync_wait(sync_range_in_the_gap(t)));
  t.space.reset();
  expect_all_given_back(*t.cache);
}

// Flushes that arrive while one runs share the next one, which covers what they came after.
task<> flushes_share(race& t) {
  std::array<outcome, 4> outcomes;
  const auto data = filled(page_bytes, 1);
  const auto write = [&](std::uint64_t at) { return t.space->write(at, data); };
  co_await write(0);
  EXPECT_TRUE(t.start(t.space->flush(), outcomes[0]));
  EXPECT_TRUE(t.dev.end(bio_op::write, 0));
  co_await sleep_for(1);
  EXPECT_EQ(t.dev.held(), 1u) << "the device's flush is under way";
  co_await write(race::p);
  for (int i = 1; i < 4; ++i) EXPECT_TRUE(t.start(t.space->flush(), outcomes[i]));
  co_await sleep_for(1);
  EXPECT_EQ(t.dev.held(), 1u) << "they wait";
  EXPECT_TRUE(t.dev.end(bio_op::flush, 0));
  co_await sleep_for(1);
  EXPECT_TRUE(outcomes[0].ended);
  EXPECT_FALSE(outcomes[1].ended || outcomes[2].ended || outcomes[3].ended);
  EXPECT_EQ(t.dev.held(), 1u) << "one of them writes for all";
  EXPECT_TRUE(t.dev.end(bio_op::write, race::p));
  co_await sleep_for(1);
  EXPECT_FALSE(outcomes[1].ended || outcomes[2].ended || outcomes[3].ended);
  EXPECT_TRUE(t.dev.end(bio_op::flush, 0));
  co_await sleep_for(1);
  for (const outcome& o : outcomes) EXPECT_TRUE(o.ended && !o.error);
  EXPECT_EQ(t.dev.held(), 0u);
  // A shared flush that fails fails for all.
  co_await write(race::q);
  EXPECT_TRUE(t.start(t.space->flush(), outcomes[0]));
  outcomes[1] = outcomes[2] = outcome{};
  EXPECT_TRUE(t.start(t.space->flush(), outcomes[1]));
  EXPECT_TRUE(t.start(t.space->flush(), outcomes[2]));
  EXPECT_TRUE(t.dev.end(bio_op::write, race::q));
  co_await sleep_for(1);
  EXPECT_TRUE(t.dev.end(bio_op::flush, 0));
  co_await sleep_for(1);
  EXPECT_TRUE(t.dev.end(bio_op::flush, 0, EIO));
  co_await sleep_for(1);
  EXPECT_EQ(outcomes[1].error.value(), EIO);
  EXPECT_EQ(outcomes[2].error.value(), EIO);
  co_await t.finish();
  co_return result<>{};
}

TEST(flush, those_that_wait_share_the_next) {
  race t;
  ASSERT_TRUE(sync_wait(flushes_share(t)));
  t.space.reset();
  expect_all_given_back(*t.cache);
}

// A page in two bios of which one fails: only its half is written again.
task<> half_of_a_page(race& t) {
  co_await t.space->write(0, filled(512, 1));
  co_await t.space->write(2048, filled(512, 2));
  outcome first;
  EXPECT_TRUE(t.start(t.space->flush(), first));
  EXPECT_EQ(t.dev.held(), 2u);
  EXPECT_TRUE(t.dev.end(bio_op::write, 2048, ENOSPC));
  co_await sleep_for(1);
  EXPECT_EQ(t.cache->statistics().writeback_pages, 1u);
  EXPECT_EQ(t.cache->statistics().error_pages, 0u) << "the other bio is still under way";
  EXPECT_TRUE(t.dev.end(bio_op::write, 0));
  co_await sleep_for(1);
  EXPECT_EQ(first.error.value(), ENOSPC);
  const auto s = t.cache->statistics();
  EXPECT_EQ(s.error_pages, 1u);
  EXPECT_EQ(s.dirty_pages, 1u);
  EXPECT_EQ(s.writeback_pages, 0u);
  EXPECT_EQ(s.write_errors, 1u);
  outcome second;
  EXPECT_TRUE(t.start(t.space->flush(), second));
  EXPECT_EQ(t.dev.held(), 1u);
  EXPECT_TRUE(t.dev.end(bio_op::write, 2048)) << "only what failed goes out again";
  co_await sleep_for(1);
  EXPECT_TRUE(t.dev.end(bio_op::flush, 0));
  co_await sleep_for(1);
  EXPECT_TRUE(second.ended && !second.error);
  EXPECT_EQ(t.memory.contents()[0], std::byte{1});
  EXPECT_EQ(t.memory.contents()[2048], std::byte{2});
  EXPECT_EQ(t.cache->statistics().error_pages, 0u);
  co_await t.finish();
  co_return result<>{};
}

TEST(flush, a_page_with_one_failed_bio_stays_dirty_in_that_part) {
  race t;
  ASSERT_TRUE(sync_wait(half_of_a_page(t)));
  t.space.reset();
  expect_all_given_back(*t.cache);
}

// Stable pages: a writer waits while the page is under write-back.
task<> write_under_writeback(race& t) {
  co_await t.space->write(0, filled(page_bytes, 1));
  outcome flush;
  EXPECT_TRUE(t.start(t.space->flush(), flush));
  EXPECT_EQ(t.dev.held(), 1u);
  const auto data = filled(page_bytes, 2);
  EXPECT_EQ(t.space->try_write(0, data), 0u);
  outcome write;
  EXPECT_TRUE(t.start(t.space->write(0, data), write));
  co_await sleep_for(1'000'000);
  EXPECT_FALSE(write.ended);
  std::vector<std::byte> out(page_bytes);
  EXPECT_TRUE(co_await t.space->read(0, out)) << "readers do not wait";
  EXPECT_EQ(out, filled(page_bytes, 1));
  EXPECT_TRUE(t.dev.end(bio_op::write, 0));
  co_await sleep_for(1);
  EXPECT_TRUE(write.ended && !write.error);
  EXPECT_EQ(t.memory.contents()[0], std::byte{1});
  co_await t.finish();
  EXPECT_TRUE(flush.ended && !flush.error);
  EXPECT_EQ(t.memory.contents()[0], std::byte{1}) << "the flush came before the second write";
  EXPECT_TRUE(co_await t.space->flush());
  EXPECT_EQ(t.memory.contents()[0], std::byte{2});
  co_return result<>{};
}

TEST(write, waits_for_the_page_to_be_written_back) {
  race t;
  ASSERT_TRUE(sync_wait(write_under_writeback(t)));
  t.space.reset();
  expect_all_given_back(*t.cache);
}

}  // namespace
}  // namespace forebay
