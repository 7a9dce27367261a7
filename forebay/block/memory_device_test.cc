// One thread: not in the thread sanitizer's tree.
// memory_device, fault_device, recorder_device: what they store, fail and log.

#include "forebay/block/memory_device.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "forebay/block/fault_device.h"
#include "forebay/block/recorder_device.h"

namespace forebay {
namespace {

task<> run(device& d, bio& b) {
  const std::int32_t status = co_await submit_and_wait(d, b);
  if (status != 0) co_return fail(-status);
  co_return result<>{};
}

// One operation on the calling thread; the errno, 0 for success.
int operate(device& d, bio_op op, std::uint64_t offset = 0, std::uint64_t length = 0,
            std::uint8_t flags = 0) {
  bio b(op, offset, flags);
  b.length_bytes = length;
  const auto r = sync_wait(run(d, b));
  return r ? 0 : r.error().value();
}

int write(device& d, std::uint64_t offset, std::vector<std::byte>& data, std::uint8_t flags = 0) {
  bio b(bio_op::write, offset, flags);
  b.add(data.data(), data.size());
  const auto r = sync_wait(run(d, b));
  return r ? 0 : r.error().value();
}

std::vector<std::byte> filled(std::size_t n, unsigned value) {
  return std::vector<std::byte>(n, static_cast<std::byte>(value));
}

bool all(std::span<const std::byte> bytes, unsigned value) {
  return std::all_of(bytes.begin(), bytes.end(),
                     [value](std::byte b) { return b == static_cast<std::byte>(value); });
}

TEST(memory_device, transfers_several_segments_and_zeroes) {
  memory_device d(16384);
  std::vector<std::byte> a = filled(1024, 1);
  std::vector<std::byte> b = filled(512, 2);
  bio w(bio_op::write, 4096);
  w.add(a.data(), a.size());
  w.add(b.data(), b.size());
  ASSERT_TRUE(sync_wait(run(d, w)));
  EXPECT_TRUE(all(d.contents().subspan(4096, 1024), 1));
  EXPECT_TRUE(all(d.contents().subspan(5120, 512), 2));
  std::vector<std::byte> out1(512);
  std::vector<std::byte> out2(1024);
  bio r(bio_op::read, 4096);
  r.add(out1.data(), out1.size());
  r.add(out2.data(), out2.size());
  ASSERT_TRUE(sync_wait(run(d, r)));
  EXPECT_TRUE(all(out1, 1));
  EXPECT_TRUE(all(std::span(out2).first(512), 1));
  EXPECT_TRUE(all(std::span(out2).subspan(512), 2));
  EXPECT_EQ(operate(d, bio_op::write_zeroes, 4096, 512), 0);
  EXPECT_EQ(operate(d, bio_op::discard, 5120, 512), 0);
  EXPECT_EQ(operate(d, bio_op::flush), 0);
  EXPECT_TRUE(all(d.contents().subspan(4096, 512), 0));
  EXPECT_TRUE(all(d.contents().subspan(4608, 512), 1));
  EXPECT_TRUE(all(d.contents().subspan(5120, 512), 0));
}

TEST(memory_device, refuses_what_its_limits_forbid) {
  memory_device d(16384, 4096);
  std::vector<std::byte> data = filled(512, 1);
  EXPECT_EQ(write(d, 0, data), EINVAL);
  EXPECT_EQ(operate(d, bio_op::discard, 16384, 4096), EINVAL);
  EXPECT_TRUE(all(d.contents(), 0));
  const auto e = d.extent_at(0);
  ASSERT_TRUE(e);
  EXPECT_EQ(e->end_bytes, 16384u);
  EXPECT_FALSE(e->hole);
  EXPECT_EQ(d.registrable_fd(), -1);
}

TEST(fault_device, skips_counts_and_heals) {
  memory_device below(16384);
  fault_device d(below);
  std::vector<std::byte> data = filled(512, 3);
  d.inject({.op = bio_op::write, .skip = 1, .count = 2, .error = ENOSPC});
  EXPECT_EQ(write(d, 0, data), 0);
  EXPECT_EQ(write(d, 512, data), ENOSPC);
  EXPECT_EQ(operate(d, bio_op::flush), 0);
  EXPECT_EQ(write(d, 1024, data), ENOSPC);
  EXPECT_EQ(write(d, 1536, data), 0);
  EXPECT_EQ(d.injected(), 2u);
  EXPECT_TRUE(all(below.contents().subspan(0, 512), 3));
  EXPECT_TRUE(all(below.contents().subspan(512, 1024), 0)) << "what failed stored nothing";
  d.inject({.op = bio_op::flush});
  EXPECT_EQ(operate(d, bio_op::flush), EIO);
  EXPECT_EQ(operate(d, bio_op::flush), EIO);
  d.heal();
  EXPECT_EQ(operate(d, bio_op::flush), 0);
  EXPECT_EQ(d.injected(), 4u);
}

TEST(fault_device, strikes_only_its_range) {
  memory_device below(16384);
  fault_device d(below);
  std::vector<std::byte> data = filled(1024, 3);
  d.inject({.op = bio_op::write, .start_bytes = 4096, .end_bytes = 4608});
  EXPECT_EQ(write(d, 3072, data), 0) << "ends where the range starts";
  EXPECT_EQ(write(d, 4608, data), 0) << "starts where the range ends";
  EXPECT_EQ(write(d, 3584, data), EIO);
  EXPECT_EQ(write(d, 4096, data), EIO);
}

TEST(fault_device, stores_the_front_of_a_partial_write) {
  memory_device below(16384);
  fault_device d(below);
  std::vector<std::byte> a = filled(1024, 1);
  std::vector<std::byte> b = filled(1024, 2);
  d.inject({.op = bio_op::write, .count = 1, .error = EIO, .partial_bytes = 1536});
  bio w(bio_op::write, 512);
  w.add(a.data(), a.size());
  w.add(b.data(), b.size());
  EXPECT_FALSE(sync_wait(run(d, w)));
  EXPECT_TRUE(all(below.contents().subspan(512, 1024), 1));
  EXPECT_TRUE(all(below.contents().subspan(1536, 512), 2));
  EXPECT_TRUE(all(below.contents().subspan(2048, 512), 0));
  // More than there is: all of it. No whole block: nothing. A device stores whole blocks.
  d.inject({.op = bio_op::write, .count = 1, .error = EIO, .partial_bytes = 1u << 20});
  EXPECT_EQ(write(d, 4096, a), EIO);
  EXPECT_TRUE(all(below.contents().subspan(4096, 1024), 1));
  d.inject({.op = bio_op::write, .count = 1, .error = EIO, .partial_bytes = 511});
  EXPECT_EQ(write(d, 8192, a), EIO);
  EXPECT_TRUE(all(below.contents().subspan(8192, 1024), 0));
  d.inject({.op = bio_op::write, .count = 1, .error = EIO, .partial_bytes = 1000});
  EXPECT_EQ(write(d, 8192, a), EIO);
  EXPECT_TRUE(all(below.contents().subspan(8192, 512), 1)) << "one whole block of the two";
  EXPECT_TRUE(all(below.contents().subspan(8704, 512), 0));
}

TEST(fault_device, failure_can_come_late) {
  memory_device below(16384);
  fault_device d(below);
  std::vector<std::byte> data = filled(512, 3);
  d.inject({.op = bio_op::write, .count = 1, .delay_ns = 3'000'000});
  const std::uint64_t start = monotonic_clock::now_ns();
  EXPECT_EQ(write(d, 0, data), EIO);
  EXPECT_GE(monotonic_clock::now_ns() - start, 3'000'000u);
}

TEST(fault_device, keeps_a_pace) {
  memory_device below(1u << 20);
  fault_device d(below);
  std::vector<std::byte> data = filled(32 << 10, 3);
  d.set_pace({.bytes_per_second = 16u << 20, .latency_ns = 1'000'000});
  const std::uint64_t start = monotonic_clock::now_ns();
  for (unsigned i = 0; i < 3; ++i) EXPECT_EQ(write(d, i * data.size(), data), 0);
  EXPECT_EQ(operate(d, bio_op::flush), 0);
  // A write is 1.95 ms and a millisecond, a flush that alone.
  EXPECT_GE(monotonic_clock::now_ns() - start, 9'800'000u);
  EXPECT_TRUE(all(below.contents().first(3 * data.size()), 3));
}

// Writes to a device that hangs, and heals it after a while.
task<> write_until_healed(fault_device& d, std::vector<std::byte>& data) {
  struct healer : completion {
    fault_device* device = nullptr;
  } heals;
  heals.device = &d;
  heals.run = [](completion& c) noexcept { static_cast<healer&>(c).device->heal(); };
  timer when;
  when.deadline_ns = monotonic_clock::in_ns(2'000'000);
  when.done = &heals;
  executor::current()->start(when);
  bio b(bio_op::write, 0);
  b.add(data.data(), data.size());
  const std::int32_t status = co_await submit_and_wait(d, b);
  if (status != 0) co_return fail(-status);
  co_return result<>{};
}

TEST(fault_device, hangs_until_it_is_healed) {
  memory_device below(16384);
  fault_device d(below);
  std::vector<std::byte> data = filled(512, 3);
  d.hang();
  const std::uint64_t start = monotonic_clock::now_ns();
  EXPECT_TRUE(sync_wait(write_until_healed(d, data)));
  EXPECT_GE(monotonic_clock::now_ns() - start, 2'000'000u);
  EXPECT_TRUE(all(below.contents().first(512), 3));
  EXPECT_EQ(write(d, 512, data), 0);
  EXPECT_EQ(d.injected(), 0u);
}

TEST(recorder_device, logs_everything_but_reads_in_one_order) {
  memory_device below(16384);
  fault_device failing(below);
  recorder_device d(failing);
  std::vector<std::byte> data = filled(1024, 9);
  EXPECT_EQ(write(d, 512, data, bio_fua), 0);
  EXPECT_EQ(operate(d, bio_op::flush), 0);
  EXPECT_EQ(operate(d, bio_op::discard, 512, 512), 0);
  failing.inject({.op = bio_op::write_zeroes, .error = ENOTSUP});
  EXPECT_EQ(operate(d, bio_op::write_zeroes, 1024, 512), ENOTSUP);
  std::vector<std::byte> out(512);
  bio r(bio_op::read, 1024);
  r.add(out.data(), out.size());
  EXPECT_TRUE(sync_wait(run(d, r)));
  EXPECT_TRUE(all(out, 9));
  const auto log = d.log();
  ASSERT_EQ(log.size(), 4u);
  EXPECT_EQ(log[0].op, bio_op::write);
  EXPECT_TRUE(log[0].fua);
  EXPECT_EQ(log[0].offset_bytes, 512u);
  EXPECT_EQ(log[0].data, data);
  EXPECT_EQ(log[1].op, bio_op::flush);
  EXPECT_FALSE(log[1].fua);
  EXPECT_EQ(log[2].op, bio_op::discard);
  EXPECT_EQ(log[2].length_bytes, 512u);
  EXPECT_EQ(log[3].status, -ENOTSUP);
  std::uint64_t clock = 0;
  for (const auto& e : log) {
    EXPECT_EQ(e.submitted, ++clock);
    EXPECT_EQ(e.completed, ++clock);
  }
}

recorded_operation logged(std::uint64_t offset, unsigned value, std::uint64_t submitted,
                          std::uint64_t completed, bool fua = false, std::int32_t status = 0) {
  recorded_operation r;
  r.fua = fua;
  r.offset_bytes = offset;
  r.data = filled(512, value);
  r.length_bytes = r.data.size();
  r.submitted = submitted;
  r.completed = completed;
  r.status = status;
  return r;
}

recorded_operation flushed(std::uint64_t submitted, std::uint64_t completed,
                           std::int32_t status = 0) {
  recorded_operation r;
  r.op = bio_op::flush;
  r.submitted = submitted;
  r.completed = completed;
  r.status = status;
  return r;
}

TEST(image_after_crash, keeps_exactly_what_a_flush_or_fua_made_durable) {
  // Block 0: completed before the flush was submitted. Block 1: completed while it ran. Block 2:
  // FUA. Block 3: after the flush. Block 4: FUA that failed.
  const std::vector<recorded_operation> log = {
      logged(0, 1, 1, 2),          logged(512, 2, 3, 5),   flushed(4, 6),
      logged(1024, 3, 7, 8, true), logged(1536, 4, 9, 10), logged(2048, 5, 11, 12, true, -EIO)};
  const std::vector<std::byte> before = filled(4096, 0);
  const auto none = [](std::size_t) { return false; };
  const auto every = [](std::size_t) { return true; };
  const auto at = [](const std::vector<std::byte>& image, std::size_t block) {
    return std::to_integer<int>(image[block * 512]);
  };

  auto image = image_after_crash(before, log, 5, none);
  EXPECT_TRUE(all(image, 0)) << "the flush has not completed";
  image = image_after_crash(before, log, 6, none);
  EXPECT_EQ(at(image, 0), 1);
  EXPECT_EQ(at(image, 1), 0) << "completed after the flush was submitted: not covered by it";
  image = image_after_crash(before, log, 12, none);
  EXPECT_EQ(at(image, 0), 1);
  EXPECT_EQ(at(image, 2), 3);
  EXPECT_EQ(at(image, 3), 0);
  EXPECT_EQ(at(image, 4), 0);
  image = image_after_crash(before, log, 12, every);
  EXPECT_EQ(at(image, 1), 2);
  EXPECT_EQ(at(image, 3), 4);
  EXPECT_EQ(at(image, 4), 5) << "a failed write may have been done";
  image = image_after_crash(before, log, 8, every);
  EXPECT_EQ(at(image, 3), 0) << "not submitted yet";
  // A flush that failed makes nothing durable.
  auto failed = log;
  failed[2].status = -EIO;
  image = image_after_crash(before, failed, 12, none);
  EXPECT_EQ(at(image, 0), 0);
}

}  // namespace
}  // namespace forebay
