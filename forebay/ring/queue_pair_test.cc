#include "forebay/ring/queue_pair.h"

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

#include "forebay/os/fd.h"

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
  auto q = uring_queue_pair::create(16);
  ASSERT_TRUE(q) << q.error().message();
  std::array<completion, 10> records;
  for (completion& c : records) {
    c.status = 77;
    ASSERT_TRUE(q->submit({.opcode = uring_opcode::nop}, c));
  }
  EXPECT_EQ(q->in_flight(), 10u);
  const auto done = reap(*q, 10);
  EXPECT_EQ(q->in_flight(), 0u);
  for (completion& c : records) {
    EXPECT_EQ(std::count(done.begin(), done.end(), &c), 1);
    EXPECT_EQ(c.status, 0);
  }
  EXPECT_EQ(q->reap(), nullptr);
}

TEST(QueuePair, ADoorbellOfZeroOnlyLooksAndATimeoutEnds) {
  auto q = uring_queue_pair::create(16);
  ASSERT_TRUE(q);
  EXPECT_TRUE(q->ring_doorbell(0));
  EXPECT_EQ(q->reap(), nullptr);
  EXPECT_TRUE(q->ring_doorbell(1'000'000));
  EXPECT_EQ(q->reap(), nullptr);
}

TEST(QueuePair, MoreThanTheRingHoldsGoThrough) {
  auto q = uring_queue_pair::create(8);
  ASSERT_TRUE(q);
  constexpr std::size_t count = 500;  // more than submission and completion slots together
  std::deque<completion> records(count);
  for (completion& c : records) ASSERT_TRUE(q->submit({.opcode = uring_opcode::nop}, c));
  EXPECT_EQ(q->in_flight(), count);
  auto done = reap(*q, count);
  std::sort(done.begin(), done.end());
  EXPECT_EQ(std::unique(done.begin(), done.end()), done.end());
  EXPECT_EQ(done.size(), count);
  EXPECT_EQ(q->in_flight(), 0u);
}

TEST(QueuePair, ABadDescriptorEndsWithItsErrno) {
  auto q = uring_queue_pair::create(8);
  ASSERT_TRUE(q);
  char byte = 0;
  completion c;
  ASSERT_TRUE(
      q->submit({.opcode = uring_opcode::read, .fd = 99'999, .address = &byte, .length = 1}, c));
  reap(*q, 1);
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
  auto q = uring_queue_pair::create(16);
  ASSERT_TRUE(q);
  if (use_files) {
    const std::array fds = {other.get(), file.get()};
    ASSERT_TRUE(q->register_files(fds));
  }
  if (use_memory) {
    if (const auto r = q->register_arena(*memory); !r) GTEST_SKIP() << r.error().message();
  }
  EXPECT_EQ(q->has_registered_memory(), use_memory);

  page* const in = memory->allocate();
  page* const out = memory->allocate();
  std::memset(in->data(), 0x5a, page_bytes);
  std::memset(out->data(), 0, page_bytes);
  const auto transfer = [&](uring_opcode opcode, const void* address, std::uint32_t length,
                            std::uint64_t offset) {
    completion c;
    EXPECT_TRUE(q->submit({.opcode = opcode,
                           .fd = file.get(),
                           .address = address,
                           .length = length,
                           .offset_bytes = offset},
                          c));
    reap(*q, 1);
    return c.status;
  };
  EXPECT_EQ(transfer(uring_opcode::write, in->data(), page_bytes, 8192), 4096);
  EXPECT_EQ(transfer(uring_opcode::read, out->data(), page_bytes, 8192), 4096);
  EXPECT_EQ(std::memcmp(in->data(), out->data(), page_bytes), 0);

  // Memory that is not the arena's works beside it, and so does a range that leaves the arena.
  std::array<char, 100> own{};
  EXPECT_EQ(transfer(uring_opcode::read, own.data(), own.size(), 8192), 100);
  EXPECT_EQ(own[99], 0x5a);
  EXPECT_EQ(transfer(uring_opcode::read, out->data(), 0, 8192), 0);

  std::array<iovec, 2> pieces = {iovec{in->data(), 10}, iovec{out->data(), 20}};
  EXPECT_EQ(transfer(uring_opcode::writev, pieces.data(), 2, 0), 30);
  EXPECT_EQ(transfer(uring_opcode::readv, pieces.data(), 2, 0), 30);
  completion c;
  ASSERT_TRUE(q->submit({.opcode = uring_opcode::fdatasync, .fd = file.get()}, c));
  reap(*q, 1);
  EXPECT_EQ(c.status, 0);
  EXPECT_EQ(::lseek(other.get(), 0, SEEK_END), 0) << "the other file stays untouched";
  put_page(*in);
  put_page(*out);
}

INSTANTIATE_TEST_SUITE_P(Registration, QueuePairTransfers,
                         testing::Values(std::pair(false, false), std::pair(true, false),
                                         std::pair(false, true), std::pair(true, true)));

TEST(QueuePair, OperationsWithoutADescriptorAreNotTakenForARegisteredFile) {
  auto q = uring_queue_pair::create(8);
  ASSERT_TRUE(q);
  const unique_fd file = temporary_file();
  const std::array fds = {-1, file.get()};  // an empty place in the table
  ASSERT_TRUE(q->register_files(fds));
  completion c;
  c.status = 77;
  ASSERT_TRUE(q->submit({.opcode = uring_opcode::nop}, c));
  reap(*q, 1);
  EXPECT_EQ(c.status, 0);
  completion missing;
  ASSERT_TRUE(q->submit({.opcode = uring_opcode::cancel, .address = &c}, missing));
  reap(*q, 1);
  EXPECT_EQ(missing.status, -ENOENT);
}

TEST(QueuePair, AFailedRegistrationLeavesTransfersAsTheyWere) {
  const auto memory = make_arena(arena::min_bytes);
  const auto second = make_arena(arena::min_bytes);
  ASSERT_TRUE(memory && second);
  const unique_fd file = temporary_file();
  auto q = uring_queue_pair::create(8);
  ASSERT_TRUE(q);
  const std::array bad = {99'999};
  EXPECT_EQ(q->register_files(bad).error().value(), EBADF);
  if (const auto r = q->register_arena(*memory); !r) GTEST_SKIP() << r.error().message();
  EXPECT_EQ(q->register_arena(*second).error().value(), EBUSY);
  for (arena* a : {memory.get(), second.get()}) {
    page* const p = a->allocate();
    completion c;
    ASSERT_TRUE(q->submit({.opcode = uring_opcode::write,
                           .fd = file.get(),
                           .address = p->data(),
                           .length = page_bytes},
                          c));
    reap(*q, 1);
    EXPECT_EQ(c.status, 4096);
    put_page(*p);
  }
}

// Memory is registered by chunks of 2 MiB; a transfer across two of them goes unregistered, and so
// does one in a chunk that has been taken off.
TEST(QueuePair, TransfersInAcrossAndBesideRegisteredChunksWork) {
  constexpr std::size_t chunk = arena::chunk_bytes;
  const auto memory = make_arena(2 * chunk + (std::size_t{1} << 20));
  ASSERT_NE(memory, nullptr);
  const unique_fd file = temporary_file();
  auto q = uring_queue_pair::create(8);
  ASSERT_TRUE(q);
  EXPECT_EQ(q->register_chunk(0).error().value(), EINVAL) << "no arena yet";
  const auto registered = q->register_arena(*memory);
  if (!registered) GTEST_SKIP() << registered.error().message();
  EXPECT_EQ(*registered, memory->memory().size());
  std::byte* const base = memory->memory().data();
  const auto check = [&] {
    for (const std::size_t at :
         {std::size_t{0}, chunk - 8192, chunk - 4096, chunk, memory->memory().size() - 8192}) {
      std::memset(base + at, static_cast<int>(at >> 12) | 1, 8192);
      completion c;
      ASSERT_TRUE(q->submit(
          {.opcode = uring_opcode::write, .fd = file.get(), .address = base + at, .length = 8192},
          c));
      reap(*q, 1);
      ASSERT_EQ(c.status, 8192) << at;
      std::vector<std::byte> back(8192);
      ASSERT_EQ(::pread(file.get(), back.data(), back.size(), 0), 8192);
      EXPECT_EQ(std::memcmp(back.data(), base + at, 8192), 0) << at;
    }
  };
  check();
  q->unregister_chunk(0);
  q->unregister_chunk(77);
  EXPECT_FALSE(q->has_registered_chunk(0));
  EXPECT_TRUE(q->has_registered_chunk(1));
  EXPECT_FALSE(q->has_registered_chunk(77));
  check();
  EXPECT_TRUE(q->register_chunk(0));
  EXPECT_TRUE(q->register_chunk(0));
  EXPECT_TRUE(q->has_registered_chunk(0));
  EXPECT_EQ(q->register_chunk(77).error().value(), EINVAL);
  check();
}

TEST(QueuePair, OnlyChunksWithMemoryAreRegistered) {
  const auto memory = make_arena(3 * arena::chunk_bytes + (std::size_t{1} << 20));
  ASSERT_NE(memory, nullptr);
  ASSERT_TRUE(memory->isolate_chunk(1));
  ASSERT_TRUE(memory->give_back(1));
  auto q = uring_queue_pair::create(8);
  ASSERT_TRUE(q);
  const auto registered = q->register_arena(*memory);
  if (!registered) GTEST_SKIP() << registered.error().message();
  EXPECT_EQ(*registered, memory->committed_bytes());
  EXPECT_FALSE(q->has_registered_chunk(1));
  EXPECT_TRUE(q->has_registered_chunk(2));
  EXPECT_EQ(q->register_chunk(1).error().value(), EAGAIN);
  ASSERT_TRUE(memory->bring_back());
  EXPECT_TRUE(q->register_chunk(1));
}

}  // namespace
}  // namespace forebay
