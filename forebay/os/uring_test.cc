// One thread: not in the thread sanitizer's tree.

#include "forebay/os/uring.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "forebay/os/clock.h"
#include "forebay/os/fd.h"

namespace forebay {
namespace {

unique_fd temporary_file() {
  std::string name = testing::TempDir() + "forebay-uring-XXXXXX";
  unique_fd fd(::mkstemp(name.data()));
  ::unlink(name.c_str());
  return fd;
}

class Uring : public testing::Test {
 protected:
  void SetUp() override {
    auto made = uring::create(16);
    ASSERT_TRUE(made) << made.error().message();
    ring = std::make_unique<uring>(std::move(*made));
  }

  // Waits until `count` completions have come; results by user_data.
  std::map<std::uint64_t, std::int32_t> collect(std::size_t count) {
    std::map<std::uint64_t, std::int32_t> results;
    std::size_t seen = 0;
    const std::uint64_t give_up = monotonic_clock::now_ns() + 60'000'000'000;
    while (seen < count && monotonic_clock::now_ns() < give_up) {
      EXPECT_TRUE(ring->submit_and_wait(1, 1'000'000'000));
      std::array<uring_completion, 7> batch{};
      const std::size_t n = ring->pop(batch);
      for (std::size_t i = 0; i < n; ++i) results[batch[i].user_data] = batch[i].result;
      seen += n;
    }
    EXPECT_EQ(seen, count);
    return results;
  }

  // One operation from beginning to end.
  std::int32_t perform(uring_submission s) {
    s.user_data = 42;
    EXPECT_TRUE(ring->push(s));
    const auto results = collect(1);
    return results.contains(42) ? results.at(42) : INT32_MIN;
  }

  std::unique_ptr<uring> ring;
};

TEST_F(Uring, NopsComeBackWithTheirUserData) {
  for (std::uint64_t i = 0; i < 10; ++i) ASSERT_TRUE(ring->push({.user_data = i | (1ull << 63)}));
  EXPECT_EQ(ring->queued(), 10u);
  const auto results = collect(10);
  EXPECT_EQ(ring->queued(), 0u);
  for (std::uint64_t i = 0; i < 10; ++i) EXPECT_EQ(results.at(i | (1ull << 63)), 0);
}

// The descriptor of the only ring of this process.
int descriptor_of_ring() {
  for (int fd = 0; fd < 1024; ++fd) {
    std::array<char, 64> target{};
    const std::string link = "/proc/self/fd/" + std::to_string(fd);
    if (::readlink(link.c_str(), target.data(), target.size() - 1) > 0 &&
        std::string(target.data()) == "anon_inode:[io_uring]") {
      return fd;
    }
  }
  return -1;
}

TEST_F(Uring, RefusesOperationsThatNobodyMakesHere) {
  const int fd = descriptor_of_ring();
  ASSERT_GE(fd, 0);
  ASSERT_TRUE(ring->push({.user_data = 1}));
  // Its first entry, as who has taken the process over would write it.
  void* const entries = ::mmap(nullptr, 16 * sizeof(io_uring_sqe), PROT_READ | PROT_WRITE,
                               MAP_SHARED, fd, IORING_OFF_SQES);
  ASSERT_NE(entries, MAP_FAILED);
  auto& entry = *static_cast<io_uring_sqe*>(entries);
  ASSERT_EQ(entry.opcode, IORING_OP_NOP);
  entry.opcode = IORING_OP_OPENAT;
  entry.fd = AT_FDCWD;
  entry.addr = reinterpret_cast<std::uint64_t>("/etc/passwd");
  EXPECT_EQ(collect(1).at(1), -EACCES);
  ::munmap(entries, 16 * sizeof(io_uring_sqe));
  const unique_fd event = *make_event_fd();
  const int value = event.get();
  EXPECT_EQ(::syscall(SYS_io_uring_register, fd, IORING_REGISTER_EVENTFD, &value, 1), -1);
  EXPECT_EQ(errno, EACCES);
  EXPECT_EQ(perform({}), 0);
}

TEST_F(Uring, NothingToWaitForEndsWithTheTimeout) {
  std::array<uring_completion, 4> out{};
  EXPECT_TRUE(ring->submit_and_wait(0));
  EXPECT_EQ(ring->pop(out), 0u);
  const std::uint64_t start = monotonic_clock::now_ns();
  EXPECT_TRUE(ring->submit_and_wait(1, 3'000'000));
  EXPECT_GE(monotonic_clock::now_ns() - start, 2'500'000u);
  EXPECT_EQ(ring->pop(out), 0u);
  EXPECT_EQ(ring->pop({}), 0u);
}

TEST_F(Uring, ReadsAndWritesAFile) {
  const unique_fd file = temporary_file();
  const std::string text = "the pool in front of the turbine";
  const auto length = static_cast<std::uint32_t>(text.size());
  std::array<char, 64> back{};
  EXPECT_EQ(perform({.opcode = uring_opcode::write,
                     .fd = file.get(),
                     .address = text.data(),
                     .length = length,
                     .offset_bytes = 1000}),
            static_cast<int>(length));
  EXPECT_EQ(perform({.opcode = uring_opcode::read,
                     .fd = file.get(),
                     .address = back.data(),
                     .length = back.size(),
                     .offset_bytes = 1000}),
            static_cast<int>(length));
  EXPECT_EQ(text, back.data());
  EXPECT_EQ(perform({.opcode = uring_opcode::write,
                     .fd = file.get(),
                     .address = text.data(),
                     .length = length,
                     .offset_bytes = 0,
                     .flags = rwf_dsync}),
            static_cast<int>(length));
  EXPECT_EQ(perform({.opcode = uring_opcode::fdatasync, .fd = file.get()}), 0);
}

TEST_F(Uring, VectorsGatherAndScatter) {
  const unique_fd file = temporary_file();
  std::string a = "fore";
  std::string b = "bay";
  std::array<iovec, 2> out = {iovec{a.data(), 4}, iovec{b.data(), 3}};
  EXPECT_EQ(perform({.opcode = uring_opcode::writev,
                     .fd = file.get(),
                     .address = out.data(),
                     .length = 2,
                     .offset_bytes = 5}),
            7);
  std::array<char, 2> first{};
  std::array<char, 5> second{};
  std::array<iovec, 2> in = {iovec{first.data(), 2}, iovec{second.data(), 5}};
  EXPECT_EQ(perform({.opcode = uring_opcode::readv,
                     .fd = file.get(),
                     .address = in.data(),
                     .length = 2,
                     .offset_bytes = 5}),
            7);
  EXPECT_EQ(std::string(first.data(), 2) + std::string(second.data(), 5), "forebay");
}

TEST_F(Uring, OffsetsBeyondFourGibibytesArriveWhole) {
  const unique_fd file = temporary_file();
  constexpr std::uint64_t far = (std::uint64_t{5} << 30) + 123;
  ASSERT_EQ(::ftruncate(file.get(), static_cast<off_t>(far + 4096)), 0);
  const char mark = 'x';
  EXPECT_EQ(perform({.opcode = uring_opcode::write,
                     .fd = file.get(),
                     .address = &mark,
                     .length = 1,
                     .offset_bytes = far}),
            1);
  char back = 0;
  EXPECT_EQ(::pread(file.get(), &back, 1, static_cast<off_t>(far)), 1);
  EXPECT_EQ(back, 'x');
}

TEST_F(Uring, FallocateMakesARangeReadAsZeros) {
  const unique_fd file = temporary_file();
  const std::vector<char> data(64 * 1024, 'x');
  ASSERT_EQ(::pwrite(file.get(), data.data(), data.size(), 0), 64 * 1024);
  for (const std::uint32_t how : {fallocate_punch_hole, fallocate_zero_range}) {
    const std::uint64_t at = how == fallocate_punch_hole ? 8192 : 32768;
    const std::int32_t r = perform({.opcode = uring_opcode::fallocate,
                                    .fd = file.get(),
                                    .offset_bytes = at,
                                    .extent_bytes = 8192,
                                    .flags = how});
    if (r == -EOPNOTSUPP) continue;  // not on every file system
    EXPECT_EQ(r, 0);
    std::array<char, 3> back{};
    EXPECT_EQ(::pread(file.get(), back.data(), 1, static_cast<off_t>(at - 1)), 1);
    EXPECT_EQ(::pread(file.get(), back.data() + 1, 1, static_cast<off_t>(at)), 1);
    EXPECT_EQ(::pread(file.get(), back.data() + 2, 1, static_cast<off_t>(at + 8192)), 1);
    EXPECT_EQ(back, (std::array<char, 3>{'x', '\0', 'x'}));
  }
  EXPECT_EQ(::lseek(file.get(), 0, SEEK_END), 64 * 1024);
}

TEST_F(Uring, FailuresAreNegativeErrnoValues) {
  char byte = 0;
  for (const uring_opcode op : {uring_opcode::read, uring_opcode::write, uring_opcode::fdatasync,
                                uring_opcode::accept, uring_opcode::recv}) {
    EXPECT_EQ(perform({.opcode = op, .fd = 99'999, .address = &byte, .length = 1}), -EBADF);
  }
  const unique_fd file = temporary_file();
  EXPECT_EQ(
      perform({.opcode = uring_opcode::recv, .fd = file.get(), .address = &byte, .length = 1}),
      -ENOTSOCK);
  EXPECT_EQ(perform({.opcode = uring_opcode::cancel, .address = &byte}), -ENOENT);
  EXPECT_EQ(perform({.opcode = uring_opcode::read, .fd = file.get(), .length = 8}), 0)
      << "the end of the file comes before the bad address";
  ASSERT_EQ(::write(file.get(), "12345678", 8), 8);
  EXPECT_EQ(perform({.opcode = uring_opcode::read, .fd = file.get(), .length = 8}), -EFAULT);
}

TEST_F(Uring, MoreSubmissionsThanSlots) {
  constexpr std::uint64_t count = 300;  // 16 submission and 64 completion slots
  for (std::uint64_t i = 0; i < count; ++i) ASSERT_TRUE(ring->push({.user_data = i})) << i;
  const auto results = collect(count);
  EXPECT_EQ(results.size(), count);
}

TEST_F(Uring, CancelEndsAReceive) {
  std::array<int, 2> fds{};
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds.data()), 0);
  const unique_fd a(fds[0]);
  const unique_fd b(fds[1]);
  std::array<char, 8> buffer{};
  ASSERT_TRUE(ring->push({.opcode = uring_opcode::recv,
                          .fd = a.get(),
                          .address = buffer.data(),
                          .length = buffer.size(),
                          .user_data = 7}));
  ASSERT_TRUE(ring->push({.opcode = uring_opcode::cancel,
                          .address = reinterpret_cast<const void*>(std::uintptr_t{7}),
                          .user_data = 8}));
  const auto results = collect(2);
  EXPECT_EQ(results.at(7), -ECANCELED);
  EXPECT_EQ(results.at(8), 0);
}

TEST_F(Uring, RegisteredFilesAreKnownByTheirIndex) {
  const unique_fd a = temporary_file();
  unique_fd b = temporary_file();
  const std::array fds = {a.get(), b.get()};
  ASSERT_TRUE(ring->register_files(fds));
  EXPECT_EQ(ring->register_files(fds).error().value(), EBUSY);
  b.reset();  // the ring keeps it open
  EXPECT_EQ(perform({.opcode = uring_opcode::write,
                     .registered_file = true,
                     .fd = 1,
                     .address = "xyz",
                     .length = 3}),
            3);
  std::array<char, 3> back{};
  EXPECT_EQ(perform({.opcode = uring_opcode::read,
                     .registered_file = true,
                     .fd = 1,
                     .address = back.data(),
                     .length = 3}),
            3);
  EXPECT_EQ(std::string(back.data(), 3), "xyz");
  EXPECT_EQ(::lseek(a.get(), 0, SEEK_END), 0);
  EXPECT_EQ(perform({.opcode = uring_opcode::fdatasync, .registered_file = true, .fd = 2}), -EBADF);
}

TEST_F(Uring, RegisteredMemoryIsUsedByIndexAndRange) {
  const unique_fd file = temporary_file();
  constexpr std::size_t bytes = 8192;
  std::vector<std::byte> first(bytes, std::byte{1});
  std::vector<std::byte> second(bytes, std::byte{2});
  const std::array<iovec, 2> pieces = {iovec{first.data(), bytes}, iovec{second.data(), bytes}};
  if (const auto r = ring->register_memory(pieces); !r) GTEST_SKIP() << r.error().message();
  EXPECT_EQ(ring->register_memory(pieces).error().value(), EBUSY);
  EXPECT_EQ(perform({.opcode = uring_opcode::write_fixed,
                     .buffer_index = 1,
                     .fd = file.get(),
                     .address = second.data() + 100,
                     .length = 1000}),
            1000);
  EXPECT_EQ(perform({.opcode = uring_opcode::read_fixed,
                     .buffer_index = 0,
                     .fd = file.get(),
                     .address = first.data() + 10,
                     .length = 1000}),
            1000);
  EXPECT_EQ(first[9], std::byte{1});
  EXPECT_EQ(first[10], std::byte{2});
  EXPECT_EQ(first[1009], std::byte{2});
  EXPECT_EQ(first[1010], std::byte{1});
  EXPECT_EQ(perform({.opcode = uring_opcode::read_fixed,
                     .buffer_index = 0,
                     .fd = file.get(),
                     .address = second.data(),
                     .length = 10}),
            -EFAULT)
      << "an address of another piece";
}

TEST(UringCreate, RoundsUpAndRefusesTheAbsurd) {
  for (const unsigned entries : {0u, 1u, 9u, 100u}) {
    auto ring = uring::create(entries);
    ASSERT_TRUE(ring) << entries;
    ASSERT_TRUE(ring->push({}));
    EXPECT_TRUE(ring->submit_and_wait(1));
  }
  const auto absurd = uring::create(1u << 30);
  ASSERT_FALSE(absurd);
  EXPECT_EQ(absurd.error().value(), EINVAL);
}

TEST(UringCreate, MovesItsRing) {
  auto a = uring::create(8);
  auto b = uring::create(8);
  ASSERT_TRUE(a && b);
  ASSERT_TRUE(a->push({.user_data = 5}));
  uring moved = std::move(*a);
  EXPECT_EQ(moved.queued(), 1u);
  *b = std::move(moved);
  EXPECT_TRUE(b->submit_and_wait(1));
  std::array<uring_completion, 2> out{};
  EXPECT_EQ(b->pop(out), 1u);
  EXPECT_EQ(out[0].user_data, 5u);
}

}  // namespace
}  // namespace forebay
