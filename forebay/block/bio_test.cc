// One thread: not in the thread sanitizer's tree.
// bio: gathering and merging of segments; check_bio; waiting for the end of one.

#include "forebay/block/bio.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <vector>

#include "forebay/block/device.h"
#include "forebay/block/memory_device.h"

namespace forebay {
namespace {

TEST(bio, add_merges_what_is_adjacent_in_memory) {
  std::array<std::byte, 4096> memory{};
  bio b(bio_op::write, 8192, bio_fua);
  EXPECT_EQ(b.end_bytes(), 8192u);
  ASSERT_TRUE(b.add(memory.data(), 512));
  ASSERT_TRUE(b.add(memory.data() + 512, 1024));
  ASSERT_EQ(b.segment_count, 1);
  EXPECT_EQ(b.segments[0].iov_len, 1536u);
  // A gap, and going backwards, make new segments.
  ASSERT_TRUE(b.add(memory.data() + 2048, 512));
  ASSERT_TRUE(b.add(memory.data() + 1536, 512));
  EXPECT_EQ(b.segment_count, 3);
  EXPECT_EQ(b.length_bytes, 2560u);
  EXPECT_EQ(b.end_bytes(), 8192u + 2560u);
}

// A segment without bytes would be an error of the transfer.
TEST(bio, add_of_no_bytes_is_without_effect) {
  std::array<std::byte, 1024> memory{};
  bio b(bio_op::write, 0);
  EXPECT_TRUE(b.add(memory.data(), 0));
  EXPECT_EQ(b.segment_count, 0);
  ASSERT_TRUE(b.add(memory.data(), 512));
  EXPECT_TRUE(b.add(memory.data() + 700, 0));
  EXPECT_TRUE(b.add(memory.data() + 512, 0));
  EXPECT_EQ(b.segment_count, 1);
  EXPECT_EQ(b.length_bytes, 512u);
}

TEST(bio, add_refuses_one_segment_too_many_and_changes_nothing) {
  std::vector<std::byte> memory(std::size_t{512} * 3 * (bio::max_segments + 1));
  bio b(bio_op::read, 0);
  std::byte* at = memory.data();
  for (std::size_t i = 0; i < bio::max_segments; ++i, at += 1024) ASSERT_TRUE(b.add(at, 512));
  EXPECT_FALSE(b.add(at, 512));
  EXPECT_EQ(b.segment_count, bio::max_segments);
  EXPECT_EQ(b.length_bytes, 512u * bio::max_segments);
  // What merges with the last one still fits.
  EXPECT_TRUE(b.add(at - 512, 512));
  EXPECT_EQ(b.segment_count, bio::max_segments);
}

RC_GTEST_PROP(bio, segments_hold_the_added_bytes_in_order, ()) {
  const auto pieces = *rc::gen::container<std::vector<std::pair<std::size_t, std::size_t>>>(
      rc::gen::pair(rc::gen::inRange<std::size_t>(0, 16), rc::gen::inRange<std::size_t>(1, 4)));
  std::array<std::byte, 32> memory{};
  bio b(bio_op::write, 0);
  std::vector<const std::byte*> added;
  for (const auto& [from, length] : pieces) {
    const std::uint64_t before = b.length_bytes;
    const std::uint16_t count = b.segment_count;
    if (!b.add(memory.data() + from, length)) {
      RC_ASSERT(b.length_bytes == before);
      RC_ASSERT(b.segment_count == count && count == bio::max_segments);
      continue;
    }
    for (std::size_t i = 0; i < length; ++i) added.push_back(memory.data() + from + i);
  }
  std::vector<const std::byte*> held;
  for (const iovec& s : b.used_segments()) {
    for (std::size_t i = 0; i < s.iov_len; ++i) {
      held.push_back(static_cast<const std::byte*>(s.iov_base) + i);
    }
  }
  RC_ASSERT(held == added);
  RC_ASSERT(b.length_bytes == added.size());
}

TEST(check_bio, lets_through_exactly_what_lies_inside_and_is_aligned) {
  device_limits limits;
  limits.size_bytes = 1u << 21;
  limits.logical_block_bytes = 512;
  const auto check = [&](bio_op op, std::uint64_t offset, std::uint64_t length) {
    bio b(op, offset);
    b.length_bytes = length;
    return check_bio(b, limits);
  };
  for (const bio_op op : {bio_op::read, bio_op::write, bio_op::discard, bio_op::write_zeroes}) {
    EXPECT_EQ(check(op, 0, 512), 0);
    EXPECT_EQ(check(op, (1u << 21) - 512, 512), 0);
    EXPECT_EQ(check(op, 0, 0), -EINVAL);
    EXPECT_EQ(check(op, 0, 511), -EINVAL);
    EXPECT_EQ(check(op, 256, 512), -EINVAL);
    EXPECT_EQ(check(op, 1u << 21, 512), -EINVAL);
    EXPECT_EQ(check(op, (1u << 21) - 512, 1024), -EINVAL);
    EXPECT_EQ(check(op, UINT64_MAX - 511, 512), -EINVAL) << "the end must not wrap round";
    EXPECT_EQ(check(op, 512, UINT64_MAX - 511), -EINVAL);
  }
  EXPECT_EQ(check(bio_op::read, 0, (1u << 20) + 512), -EINVAL) << "longer than a transfer may be";
  EXPECT_EQ(check(bio_op::discard, 0, 1u << 21), 0);
  EXPECT_EQ(check(bio_op::flush, 12345, 7), 0);
  limits.read_only = true;
  EXPECT_EQ(check(bio_op::read, 0, 512), 0);
  EXPECT_EQ(check(bio_op::flush, 0, 0), 0);
  EXPECT_EQ(check(bio_op::write, 0, 512), -EROFS);
  EXPECT_EQ(check(bio_op::discard, 0, 512), -EROFS);
  EXPECT_EQ(check(bio_op::write_zeroes, 0, 512), -EROFS);
}

TEST(check_bio, holds_transfers_to_segments_and_boundary) {
  device_limits limits;
  limits.size_bytes = 1u << 20;
  limits.max_segments = 2;
  limits.boundary_bytes = 4096;
  std::array<std::byte, 8192> memory{};
  bio b(bio_op::read, 3584);
  b.add(memory.data(), 512);
  EXPECT_EQ(check_bio(b, limits), 0);
  b.add(memory.data() + 1024, 512);
  EXPECT_EQ(check_bio(b, limits), -EINVAL) << "crosses a boundary";
  b.offset_bytes = 0;
  EXPECT_EQ(check_bio(b, limits), 0);
  b.add(memory.data() + 2048, 512);
  EXPECT_EQ(check_bio(b, limits), -EINVAL) << "a segment too many";
  EXPECT_EQ(check_range(b, limits), 0);
}

// The pieces together are the bio, each as long as the limits let it be.
RC_GTEST_PROP(bio_cursor, cuts_a_bio_into_pieces_within_the_limits, ()) {
  static std::array<std::byte, 64 * 1024> memory{};
  device_limits limits;
  limits.size_bytes = 1u << 20;
  limits.max_transfer_bytes = 512 * *rc::gen::inRange<std::uint32_t>(1, 20);
  limits.max_segments = *rc::gen::inRange<std::uint32_t>(1, 8);
  limits.boundary_bytes = *rc::gen::element(0u, 2048u, 8192u);
  bio whole(bio_op::write, 512 * *rc::gen::inRange<std::uint64_t>(0, 32), bio_fua);
  whole.urgency = bio_class::write_back;
  std::size_t at = 0;
  for (const std::size_t blocks : *rc::gen::container<std::vector<std::size_t>>(
           *rc::gen::inRange<std::size_t>(1, 8), rc::gen::inRange<std::size_t>(1, 5))) {
    RC_ASSERT(whole.add(memory.data() + at, 512 * blocks));
    at += 512 * blocks + (blocks % 2) * 512;
  }
  bio_cursor rest(whole);
  bio again(bio_op::write, whole.offset_bytes);
  const std::uint64_t skip = 512 * *rc::gen::inRange<std::uint64_t>(0, 3);
  if (skip < whole.length_bytes) {
    bio front(bio_op::write, whole.offset_bytes);
    for (const iovec& s : whole.used_segments()) {
      front.add(static_cast<std::byte*>(s.iov_base), s.iov_len);
    }
    front.truncate(skip);
    RC_ASSERT(front.length_bytes == skip);
    for (const iovec& s : front.used_segments()) {
      again.add(static_cast<std::byte*>(s.iov_base), s.iov_len);
    }
    rest.advance(skip);
  }
  while (rest.bytes_left() != 0) {
    bio part;
    const std::uint64_t taken = rest.take(part, limits);
    RC_ASSERT(taken != 0 && taken == part.length_bytes);
    RC_ASSERT(part.op == whole.op && part.flags == whole.flags && part.urgency == whole.urgency);
    RC_ASSERT(part.offset_bytes == again.end_bytes());
    RC_ASSERT(check_bio(part, limits) == 0);
    for (const iovec& s : part.used_segments()) {
      RC_ASSERT(again.add(static_cast<std::byte*>(s.iov_base), s.iov_len));
    }
  }
  RC_ASSERT(again.length_bytes == whole.length_bytes);
  RC_ASSERT(again.segment_count == whole.segment_count);
  for (std::size_t i = 0; i < again.segment_count; ++i) {
    const bool same = again.segments[i].iov_base == whole.segments[i].iov_base;
    RC_ASSERT(same);
    RC_ASSERT(again.segments[i].iov_len == whole.segments[i].iov_len);
  }
}

// A device with blocks of 4 KiB cannot have a piece that ends within one.
TEST(bio_cursor, takes_nothing_when_one_block_has_too_many_segments) {
  device_limits limits;
  limits.size_bytes = 1u << 20;
  limits.logical_block_bytes = 4096;
  limits.max_segments = 2;
  std::array<std::byte, 16384> memory{};
  bio b(bio_op::read, 0);
  for (std::size_t i = 0; i < 8; ++i) b.add(memory.data() + i * 1024, 512);
  bio_cursor rest(b);
  bio part;
  EXPECT_EQ(rest.take(part, limits), 0u);
  EXPECT_EQ(rest.bytes_left(), 4096u);
}

TEST(bio_chain, keeps_the_first_error) {
  bio_chain chain;
  for (int i = 0; i < 4; ++i) chain.started();
  for (const std::int32_t status : {0, -EIO, -ENOSPC}) chain.ended(status);
  EXPECT_EQ(chain.under_way(), 1u);
  chain.ended(0);
  EXPECT_EQ(chain.under_way(), 0u);
  EXPECT_EQ(chain.status(), -EIO);
}

task<> write_then_read(device& d, std::span<std::byte> out) {
  std::array<std::byte, 1024> data;
  data.fill(std::byte{7});
  bio w(bio_op::write, 512);
  w.add(data.data(), data.size());
  if (const std::int32_t s = co_await submit_and_wait(d, w); s != 0) co_return fail(-s);
  bio r(bio_op::read, 0);
  r.add(out.data(), out.size());
  if (const std::int32_t s = co_await submit_and_wait(d, r); s != 0) co_return fail(-s);
  bio outside(bio_op::read, d.limits().size_bytes);
  outside.add(out.data(), 512);
  if (const std::int32_t s = co_await submit_and_wait(d, outside); s != -EINVAL) {
    co_return fail(EPROTO);
  }
  co_return result<>{};
}

TEST(submit_and_wait, gives_the_status_of_each_bio) {
  memory_device d(8192);
  std::array<std::byte, 2048> out;
  out.fill(std::byte{1});
  ASSERT_TRUE(sync_wait(write_then_read(d, out)));
  for (std::size_t i = 0; i < out.size(); ++i) {
    ASSERT_EQ(out[i], i >= 512 && i < 1536 ? std::byte{7} : std::byte{0}) << i;
  }
}

}  // namespace
}  // namespace forebay
