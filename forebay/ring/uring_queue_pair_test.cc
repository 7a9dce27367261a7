// One thread: not in the thread sanitizer's tree.

#include "forebay/ring/uring_queue_pair.h"

#include <gtest/gtest.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

#include "forebay/os/clock.h"
#include "forebay/os/fd.h"
#include "forebay/ring/test_segment.h"

namespace forebay {
namespace {

unique_fd temporary_file() {
  std::string name = testing::TempDir() + "forebay-queue-pair-XXXXXX";
  unique_fd fd(::mkstemp(name.data()));
  ::unlink(name.c_str());
  return fd;
}

// Runs what is queued until `count` completions have been reaped.
std::vector<completion*> reap(uring_queue_pair& q, std::size_t count) {
  std::vector<completion*> done;
  while (done.size() < count) {
    if (!q.ring_doorbell(1'000'000'000)) return done;
    while (completion* c = q.reap()) done.push_back(c);
  }
  return done;
}

std::unique_ptr<arena> make_arena(std::size_t bytes) {
  auto a = arena::create({.bytes = bytes, .huge_pages = false});
  return a ? std::move(*a) : nullptr;
}

TEST(QueuePair, CompletionsAreMatchedByTheirRecord) {
  auto made = uring_queue_pair::create(16);
  ASSERT_TRUE(made) << made.error().message();
  uring_queue_pair& q = **made;
  std::array<completion, 10> records;
  for (completion& c : records) {
    c.status = 77;
    ASSERT_TRUE(q.submit(uring_request::nop(), c));
  }
  EXPECT_EQ(q.in_flight(), 10u);
  const auto done = reap(q, 10);
  EXPECT_EQ(q.in_flight(), 0u);
  for (completion& c : records) {
    EXPECT_EQ(std::count(done.begin(), done.end(), &c), 1);
    EXPECT_EQ(c.status, 0);
  }
  EXPECT_EQ(q.reap(), nullptr);
}

TEST(QueuePair, ADoorbellOfZeroOnlyLooksAndATimeoutEnds) {
  auto made = uring_queue_pair::create(16);
  ASSERT_TRUE(made);
  uring_queue_pair& q = **made;
  EXPECT_TRUE(q.ring_doorbell(0));
  EXPECT_EQ(q.reap(), nullptr);
  EXPECT_TRUE(q.ring_doorbell(1'000'000));
  EXPECT_EQ(q.reap(), nullptr);
}

TEST(QueuePair, MoreThanTheRingHoldsGoThrough) {
  auto made = uring_queue_pair::create(8);
  ASSERT_TRUE(made);
  uring_queue_pair& q = **made;
  constexpr std::size_t count = 500;  // more than submission and completion slots together
  std::deque<completion> records(count);
  for (completion& c : records) ASSERT_TRUE(q.submit(uring_request::nop(), c));
  EXPECT_EQ(q.in_flight(), count);
  auto done = reap(q, count);
  std::sort(done.begin(), done.end());
  EXPECT_EQ(std::unique(done.begin(), done.end()), done.end());
  EXPECT_EQ(done.size(), count);
  EXPECT_EQ(q.in_flight(), 0u);
}

// Completions come from the kernel several at a time; those that are not reaped yet have come.
TEST(QueuePair, ADoorbellDoesNotWaitForWhatCanBeReaped) {
  auto made = uring_queue_pair::create(8);
  ASSERT_TRUE(made);
  uring_queue_pair& q = **made;
  std::array<completion, 3> records;
  for (completion& c : records) ASSERT_TRUE(q.submit(uring_request::nop(), c));
  ASSERT_TRUE(q.ring_doorbell(60'000'000'000, 3));
  ASSERT_NE(q.reap(), nullptr);
  const std::uint64_t start = monotonic_clock::now_ns();
  ASSERT_TRUE(q.ring_doorbell(60'000'000'000, 2));
  EXPECT_LT(monotonic_clock::now_ns() - start, 30'000'000'000u);
  // One more than that has to be waited for, and is.
  completion more;
  ASSERT_TRUE(q.submit(uring_request::nop(), more));
  ASSERT_TRUE(q.ring_doorbell(60'000'000'000, 3));
  EXPECT_LT(monotonic_clock::now_ns() - start, 30'000'000'000u);
  for (int i = 0; i < 3; ++i) EXPECT_NE(q.reap(), nullptr);
  EXPECT_EQ(q.in_flight(), 0u);
}

TEST(QueuePair, ABadDescriptorEndsWithItsErrno) {
  auto made = uring_queue_pair::create(8);
  ASSERT_TRUE(made);
  uring_queue_pair& q = **made;
  char byte = 0;
  completion c;
  ASSERT_TRUE(q.submit(uring_request::read(99'999, one_segment(&byte, 1), 0), c));
  reap(q, 1);
  EXPECT_EQ(c.status, -EBADF);
}

// The same transfers, with nothing, the file, the memory or both registered.
class QueuePairTransfers : public testing::TestWithParam<std::pair<bool, bool>> {};

TEST_P(QueuePairTransfers, WriteAndReadBack) {
  const auto [use_files, use_memory] = GetParam();
  const auto memory = make_arena(arena::min_bytes);
  ASSERT_NE(memory, nullptr);
  const unique_fd file = temporary_file();
  const unique_fd other = temporary_file();
  ASSERT_TRUE(file && other);
  auto made = uring_queue_pair::create(16);
  ASSERT_TRUE(made);
  uring_queue_pair& q = **made;
  if (use_files) {
    const std::array fds = {other.get(), file.get()};
    ASSERT_TRUE(q.register_files(fds));
  }
  if (use_memory) {
    if (const auto r = q.registered().add(*memory); !r) GTEST_SKIP() << r.error().message();
  }
  EXPECT_EQ(q.registered().has_region(*memory, 0), use_memory);

  page* const in = memory->allocate();
  page* const out = memory->allocate();
  std::memset(in->data(), 0x5a, page_bytes);
  std::memset(out->data(), 0, page_bytes);
  const auto wait = [&](const uring_request& r) {
    completion c;
    EXPECT_TRUE(q.submit(r, c));
    reap(q, 1);
    return c.status;
  };
  const auto map = [&](void* data, std::size_t bytes, dma_direction d) {
    const auto s = q.registered().map({static_cast<std::byte*>(data), bytes}, d);
    EXPECT_TRUE(s);
    return std::array{s.value_or(dma_segment{})};
  };
  const auto from = map(in->data(), page_bytes, dma_direction::to_device);
  const auto to = map(out->data(), page_bytes, dma_direction::from_device);
  EXPECT_EQ(from[0].region != dma_segment::no_region, use_memory);
  EXPECT_EQ(wait(uring_request::write(file.get(), from, 8192)), 4096);
  EXPECT_EQ(wait(uring_request::read(file.get(), to, 8192)), 4096);
  EXPECT_EQ(std::memcmp(in->data(), out->data(), page_bytes), 0);

  // A transfer that is carried on leaves what it has done alone.
  std::memset(out->data(), 0, page_bytes);
  EXPECT_EQ(wait(uring_request::read(file.get(), to, 8192, 4000)), 96);
  EXPECT_EQ(out->data()[3999], std::byte{0});
  EXPECT_EQ(out->data()[4000], std::byte{0x5a});

  // Memory that is not the arena's works beside it.
  std::array<char, 100> own{};
  const auto foreign = map(own.data(), own.size(), dma_direction::from_device);
  EXPECT_EQ(foreign[0].region, dma_segment::no_region);
  EXPECT_EQ(wait(uring_request::read(file.get(), foreign, 8192)), 100);
  EXPECT_EQ(own[99], 0x5a);

  const std::array pieces = {part_of(from[0], 0, 10), part_of(to[0], 0, 20)};
  EXPECT_EQ(wait(uring_request::write(file.get(), pieces, 0)), 30);
  EXPECT_EQ(wait(uring_request::read(file.get(), pieces, 0)), 30);
  EXPECT_EQ(wait(uring_request::read(file.get(), pieces, 0, 9)), 21);
  EXPECT_EQ(wait(uring_request::fdatasync(file.get())), 0);
  EXPECT_EQ(::lseek(other.get(), 0, SEEK_END), 0) << "the other file stays untouched";
  q.registered().unmap(from[0], dma_direction::to_device);
  q.registered().unmap(to[0], dma_direction::from_device);
  q.registered().unmap(foreign[0], dma_direction::from_device);
  put_page(*in);
  put_page(*out);
}

INSTANTIATE_TEST_SUITE_P(Registration, QueuePairTransfers,
                         testing::Values(std::pair(false, false), std::pair(true, false),
                                         std::pair(false, true), std::pair(true, true)));

TEST(QueuePair, OperationsWithoutADescriptorAreNotTakenForARegisteredFile) {
  auto made = uring_queue_pair::create(8);
  ASSERT_TRUE(made);
  uring_queue_pair& q = **made;
  const unique_fd file = temporary_file();
  const std::array fds = {-1, file.get()};  // an empty place in the table
  ASSERT_TRUE(q.register_files(fds));
  completion c;
  c.status = 77;
  ASSERT_TRUE(q.submit(uring_request::nop(), c));
  reap(q, 1);
  EXPECT_EQ(c.status, 0);
  completion missing;
  ASSERT_TRUE(q.cancel(c, missing));
  reap(q, 1);
  EXPECT_EQ(missing.status, -ENOENT);
}

TEST(QueuePair, AFailedRegistrationOfFilesLeavesTransfersAsTheyWere) {
  const auto memory = make_arena(arena::min_bytes);
  const auto second = make_arena(arena::min_bytes);
  ASSERT_TRUE(memory && second);
  const unique_fd file = temporary_file();
  auto made = uring_queue_pair::create(8);
  ASSERT_TRUE(made);
  uring_queue_pair& q = **made;
  const std::array bad = {99'999};
  EXPECT_EQ(q.register_files(bad).error().value(), EBADF);
  for (arena* a : {memory.get(), second.get()}) {
    page* const p = a->allocate();
    completion c;
    ASSERT_TRUE(
        q.submit(uring_request::write(file.get(), one_segment(p->data(), page_bytes), 0), c));
    reap(q, 1);
    EXPECT_EQ(c.status, 4096);
    put_page(*p);
  }
}

TEST(QueuePair, TransfersWithoutMemoryAreRefused) {
  auto made = uring_queue_pair::create(8);
  ASSERT_TRUE(made);
  uring_queue_pair& q = **made;
  const unique_fd file = temporary_file();
  std::array<std::byte, 16> bytes{};
  const auto some = one_segment(bytes.data(), bytes.size());
  const std::vector<dma_segment> many(uring_queue_pair::max_segments + 1, some[0]);
  completion c;
  const auto refused = [&](const uring_request& r) {
    const auto s = q.submit(r, c);
    return !s && s.error().value() == EINVAL;
  };
  EXPECT_TRUE(refused(uring_request::read(file.get(), {}, 0)));
  EXPECT_TRUE(refused(uring_request::write(file.get(), one_segment(bytes.data(), 0), 0)));
  EXPECT_TRUE(refused(uring_request::read(file.get(), some, 0, 16)));
  EXPECT_TRUE(refused(uring_request::read(file.get(), many, 0)));
  EXPECT_EQ(q.in_flight(), 0u);
  EXPECT_EQ(q.queued(), 0u);
}

// Vectors of more segments together than there is room for are handed over in between.
TEST(QueuePair, ManyVectoredTransfersAtOnce) {
  auto made = uring_queue_pair::create(64);
  ASSERT_TRUE(made);
  uring_queue_pair& q = **made;
  const unique_fd file = temporary_file();
  constexpr std::size_t transfers = 40;
  constexpr std::size_t pieces = 100;
  std::vector<std::byte> out(transfers * pieces);
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<std::byte>(i * 7 + i / 256);
  std::vector<std::byte> in(out.size());
  const auto go = [&](std::vector<std::byte>& memory, bool write) {
    std::deque<completion> records(transfers);
    for (std::size_t t = 0; t < transfers; ++t) {
      std::vector<dma_segment> segments;
      for (std::size_t i = 0; i < pieces; ++i) {
        // Every byte by itself, backwards.
        segments.push_back(segment_of(&memory[t * pieces + pieces - 1 - i], 1));
      }
      const std::uint64_t offset = t * pieces;
      EXPECT_TRUE(q.submit(write ? uring_request::write(file.get(), segments, offset)
                                 : uring_request::read(file.get(), segments, offset),
                           records[t]));
    }
    reap(q, transfers);
    for (const completion& c : records) EXPECT_EQ(c.status, static_cast<int>(pieces));
  };
  go(out, true);
  go(in, false);
  EXPECT_EQ(in, out);
}

}  // namespace
}  // namespace forebay
