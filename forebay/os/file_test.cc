#include "forebay/os/file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "forebay/os/test_directory.h"

namespace forebay {
namespace {

constexpr std::size_t block = 4096;

struct aligned_free {
  void operator()(std::byte* p) const noexcept { std::free(p); }
};
using aligned_buffer = std::unique_ptr<std::byte, aligned_free>;

aligned_buffer make_buffer(std::size_t bytes, int fill) {
  auto* const p = static_cast<std::byte*>(std::aligned_alloc(block, bytes));
  std::memset(p, fill, bytes);
  return aligned_buffer(p);
}

class File : public testing::Test {
 protected:
  std::string path(const std::string& name) const { return directory.file(name); }

  // A sparse file of this size.
  std::string make_file(const std::string& name, std::uint64_t bytes) const {
    const unique_fd fd(::open(path(name).c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    EXPECT_EQ(::ftruncate(fd.get(), static_cast<off_t>(bytes)), 0);
    return path(name);
  }

  test_directory directory;
};

TEST_F(File, OpenErrorsAreTold) {
  EXPECT_EQ(block_file::open(path("missing"), {}).error().value(), ENOENT);
  EXPECT_EQ(block_file::open(directory.path(), {}).error().value(), EISDIR);
  EXPECT_EQ(block_file::open(make_file("empty", 0), {}).error(), errc::empty_device);
  EXPECT_EQ(block_file::open("/dev/null", {}).error(), errc::not_a_device);
  EXPECT_EQ(block_file::open(path(std::string(300, 'x')), {}).error().value(), ENAMETOOLONG);
  EXPECT_EQ(block_file::open(make_file("file", 1) + "/below", {}).error().value(), ENOTDIR);
}

// Also to a process that the permission bits do not bind.
TEST_F(File, AFileThatNobodyMayWriteToIsNotOpenedForWriting) {
  const std::string name = make_file("precious", block);
  ASSERT_EQ(::chmod(name.c_str(), 0444), 0);
  EXPECT_EQ(block_file::open(name, {}).error().value(), EACCES);
  EXPECT_TRUE(block_file::open(name, {.read_only = true}));
}

TEST_F(File, AFifoIsRefusedWithoutWaitingForItsOtherEnd) {
  ASSERT_EQ(::mkfifo(path("fifo").c_str(), 0600), 0);
  for (const bool read_only : {false, true}) {
    EXPECT_EQ(block_file::open(path("fifo"), {.read_only = read_only}).error(), errc::not_a_device);
  }
}

TEST_F(File, AWriterExcludesEverybodyAndReadersShare) {
  const std::string name = make_file("image", block);
  {
    const auto writer = block_file::open(name, {});
    ASSERT_TRUE(writer);
    EXPECT_EQ(block_file::open(name, {}).error(), errc::in_use);
    EXPECT_EQ(block_file::open(name, {.read_only = true}).error(), errc::in_use);
  }
  const auto reader = block_file::open(name, {.read_only = true});
  ASSERT_TRUE(reader) << "the lock went with the file";
  EXPECT_TRUE(block_file::open(name, {.read_only = true}));
  EXPECT_EQ(block_file::open(name, {}).error(), errc::in_use);
}

TEST_F(File, GeometryTellsSizeAndHoles) {
  const auto sparse = block_file::open(make_file("sparse", 1'000'000), {});
  ASSERT_TRUE(sparse);
  const file_geometry& g = sparse->geometry();
  EXPECT_EQ(g.size_bytes, 1'000'000u);
  EXPECT_TRUE(g.is_sparse);
  EXPECT_FALSE(g.is_block_device);
  EXPECT_GE(g.logical_block_bytes, 512u);
  EXPECT_EQ(g.logical_block_bytes & (g.logical_block_bytes - 1), 0u);
  EXPECT_GE(g.physical_block_bytes, 512u);
  EXPECT_GE(g.memory_alignment_bytes, 1u);
  EXPECT_LE(g.memory_alignment_bytes, 4096u);

  const std::string name = make_file("full", 0);
  {
    const unique_fd fd(::open(name.c_str(), O_WRONLY | O_CLOEXEC));
    const std::vector<char> data(64 * 1024, 'x');
    ASSERT_EQ(::write(fd.get(), data.data(), data.size()), 64 * 1024);
    ASSERT_EQ(::fsync(fd.get()), 0);
  }
  const auto full = block_file::open(name, {});
  ASSERT_TRUE(full);
  EXPECT_FALSE(full->geometry().is_sparse);
}

TEST_F(File, DirectIsTakenWhereTheFileSystemHasIt) {
  const std::string name = make_file("image", 16 * block);
  const bool supported = unique_fd(::open(name.c_str(), O_RDWR | O_DIRECT | O_CLOEXEC)).get() >= 0;
  const auto direct = block_file::open(name, {});
  ASSERT_TRUE(direct);
  EXPECT_EQ(direct->geometry().direct, supported);
  EXPECT_EQ((::fcntl(direct->fd(), F_GETFL) & O_DIRECT) != 0, supported);
  EXPECT_EQ(::fcntl(direct->fd(), F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
}

// Whether direct or not: what is written in pieces is read back in other pieces.
TEST_F(File, VectoredTransfersKeepEveryByte) {
  for (const bool direct : {true, false}) {
    const auto f = block_file::open(make_file(direct ? "d" : "b", 64 * block), {.direct = direct});
    ASSERT_TRUE(f);
    const aligned_buffer out = make_buffer(8 * block, 0);
    for (std::size_t i = 0; i < 8 * block; ++i) out.get()[i] = static_cast<std::byte>(i * 7 >> 3);
    std::array<iovec, 3> write = {iovec{out.get(), block}, iovec{out.get() + block, 5 * block},
                                  iovec{out.get() + 6 * block, 2 * block}};
    ASSERT_TRUE(f->write(write, 3 * block, 0));
    const aligned_buffer in = make_buffer(8 * block, 0xff);
    std::array<iovec, 2> read = {iovec{in.get(), 2 * block},
                                 iovec{in.get() + 2 * block, 6 * block}};
    ASSERT_TRUE(f->read(read, 3 * block));
    EXPECT_EQ(std::memcmp(in.get(), out.get(), 8 * block), 0);
    std::array<iovec, 1> hole = {iovec{in.get(), block}};
    ASSERT_TRUE(f->read(hole, 40 * block));
    EXPECT_EQ(in.get()[block - 1], std::byte{0});
    EXPECT_TRUE(f->sync());
  }
}

TEST_F(File, MoreSegmentsThanOneCallTakes) {
  const auto f = block_file::open(make_file("image", 2 * 1024 * 1024), {.direct = false});
  ASSERT_TRUE(f);
  std::vector<std::uint32_t> out(3'000);
  for (std::uint32_t i = 0; i < out.size(); ++i) out[i] = i * 2654435761u;
  std::vector<iovec> segments;
  for (auto& word : out) segments.push_back({&word, sizeof word});
  ASSERT_TRUE(f->write(segments, 12, 0));
  std::vector<std::uint32_t> in(out.size());
  segments.clear();
  for (auto& word : in) segments.push_back({&word, sizeof word});
  ASSERT_TRUE(f->read(segments, 12));
  EXPECT_EQ(in, out);
}

TEST_F(File, EmptySegmentsAreNoEndOfFile) {
  const auto f = block_file::open(make_file("image", block), {.direct = false});
  ASSERT_TRUE(f);
  std::array<char, 4> data = {'a', 'b', 'c', 'd'};
  std::array<iovec, 5> segments = {iovec{nullptr, 0}, iovec{data.data(), 2}, iovec{nullptr, 0},
                                   iovec{data.data() + 2, 2}, iovec{nullptr, 0}};
  auto copy = segments;
  EXPECT_TRUE(f->write(copy, 0, 0));
  data.fill(0);
  copy = segments;
  EXPECT_TRUE(f->read(copy, 0));
  EXPECT_EQ(std::string(data.data(), 4), "abcd");
  std::array<iovec, 2> nothing = {iovec{nullptr, 0}, iovec{nullptr, 0}};
  EXPECT_TRUE(f->read(nothing, 0));
  EXPECT_TRUE(f->write({}, 0, 0));
}

TEST_F(File, TransferErrorsAreTold) {
  const auto f = block_file::open(make_file("image", 2 * block), {.direct = false});
  ASSERT_TRUE(f);
  const aligned_buffer data = make_buffer(2 * block, 0);
  std::array<iovec, 1> past = {iovec{data.get(), 2 * block}};
  EXPECT_EQ(f->read(past, block).error().value(), EIO) << "an unexpected end of file";

  const auto reader = block_file::open(make_file("other", block), {.read_only = true});
  ASSERT_TRUE(reader);
  std::array<iovec, 1> one = {iovec{data.get(), block}};
  EXPECT_EQ(reader->write(one, 0, 0).error().value(), EBADF);
  EXPECT_TRUE(reader->read(one, 0));
  EXPECT_EQ(reader->zero(0, block, zero_mode::deallocate).error().value(), EBADF);
}

TEST_F(File, ZeroModesReadAsZerosAndKeepTheSize) {
  for (const zero_mode mode : {zero_mode::deallocate, zero_mode::keep_allocated}) {
    const auto f = block_file::open(make_file("z", 64 * block), {});
    ASSERT_TRUE(f);
    const aligned_buffer data = make_buffer(64 * block, 0x33);
    std::array<iovec, 1> all = {iovec{data.get(), 64 * block}};
    ASSERT_TRUE(f->write(all, 0, 0));
    ASSERT_TRUE(f->sync());
    struct stat before{};
    ASSERT_EQ(::fstat(f->fd(), &before), 0);
    if (const auto r = f->zero(16 * block, 32 * block, mode); !r) {
      EXPECT_EQ(r.error().value(), ENOTSUP);
      continue;
    }
    // Past the end: the size stays.
    EXPECT_TRUE(f->zero(60 * block, 32 * block, mode));
    struct stat after{};
    ASSERT_EQ(::fstat(f->fd(), &after), 0);
    EXPECT_EQ(after.st_size, 64 * static_cast<off_t>(block));
    if (mode == zero_mode::deallocate) {
      EXPECT_LT(after.st_blocks, before.st_blocks);
    } else {
      EXPECT_GE(after.st_blocks, before.st_blocks);
    }
    all = {iovec{data.get(), 64 * block}};
    ASSERT_TRUE(f->read(all, 0));
    for (std::size_t b = 0; b < 64; ++b) {
      const bool zeroed = (b >= 16 && b < 48) || b >= 60;
      EXPECT_EQ(data.get()[b * block], zeroed ? std::byte{0} : std::byte{0x33}) << b;
      EXPECT_EQ(data.get()[b * block + block - 1], zeroed ? std::byte{0} : std::byte{0x33}) << b;
    }
  }
}

// Random blocks are written; the extents must tile the file, and a block in a hole reads as zeros.
RC_GTEST_FIXTURE_PROP(File, ExtentsTileASparseFile, ()) {
  constexpr std::size_t blocks = 32;
  std::filesystem::remove(path("sparse"));
  const auto f = block_file::open(make_file("sparse", blocks * block), {.direct = false});
  RC_ASSERT(f.has_value());
  const auto written = *rc::gen::container<std::vector<bool>>(blocks, rc::gen::arbitrary<bool>());
  const aligned_buffer data = make_buffer(block, 0x44);
  for (std::size_t b = 0; b < blocks; ++b) {
    std::array<iovec, 1> one = {iovec{data.get(), block}};
    if (written[b]) RC_ASSERT(f->write(one, b * block, 0).has_value());
  }
  bool any_hole = false;
  for (std::uint64_t at = 0; at < blocks * block;) {
    const auto e = f->extent_at(at);
    RC_ASSERT(e.has_value());
    RC_ASSERT(e->end_bytes > at);
    RC_ASSERT(e->end_bytes <= blocks * block);
    for (std::uint64_t b = at / block; b * block < e->end_bytes; ++b) {
      if (e->hole) RC_ASSERT(!written[b]);
      const auto inside = f->extent_at(b * block + 100);  // any offset of the block
      RC_ASSERT(inside.has_value());
      RC_ASSERT(inside->hole == e->hole);
      RC_ASSERT(inside->end_bytes == e->end_bytes);
    }
    any_hole = any_hole || e->hole;
    at = e->end_bytes;
  }
  const bool all_written = std::find(written.begin(), written.end(), false) == written.end();
  if (all_written) RC_ASSERT(!any_hole);
}

// A hole that is punched between the two questions to the kernel must not make an empty extent: a
// caller that walks the file would stay where it is for ever.
TEST_F(File, AnExtentIsNeverEmptyWhileHolesArePunched) {
  const auto f = block_file::open(make_file("image", 16 * block), {});
  ASSERT_TRUE(f);
  std::atomic<bool> stop{false};
  std::thread puncher([&] {
    const aligned_buffer data = make_buffer(block, 0x44);
    while (!stop.load()) {
      std::array<iovec, 1> one = {iovec{data.get(), block}};
      EXPECT_TRUE(f->write(one, 4 * block, 0));
      EXPECT_TRUE(f->zero(4 * block, block, zero_mode::deallocate));
    }
  });
  int empty = 0;
  for (int i = 0; i < 5'000; ++i) {
    const auto e = f->extent_at(4 * block);
    if (!e || e->end_bytes <= 4 * block) ++empty;
  }
  stop = true;
  puncher.join();
  EXPECT_EQ(empty, 0);
}

RC_GTEST_PROP(AdvanceSegments, DropsExactlyTheFirstBytes, ()) {
  const auto lengths =
      *rc::gen::container<std::vector<std::size_t>>(rc::gen::inRange<std::size_t>(0, 9));
  std::size_t total = 0;
  for (const std::size_t n : lengths) total += n;
  std::vector<char> bytes(total + 1);
  std::vector<iovec> segments;
  std::vector<char*> order;  // every byte's address, in the order of transfer
  char* at = bytes.data();
  for (const std::size_t n : lengths) {
    segments.push_back({at, n});
    for (std::size_t i = 0; i < n; ++i) order.push_back(at + i);
    at += n;
  }
  std::span<iovec> left = segments;
  std::size_t done = 0;
  while (done < total) {
    const std::size_t step = *rc::gen::inRange<std::size_t>(0, total - done + 1);
    left = advance_segments(left, step);
    done += step;
    std::vector<char*> rest;
    for (const iovec& s : left) {
      for (std::size_t i = 0; i < s.iov_len; ++i) {
        rest.push_back(static_cast<char*>(s.iov_base) + i);
      }
    }
    RC_ASSERT(rest.size() == total - done);
    for (std::size_t i = 0; i < rest.size(); ++i) RC_ASSERT(rest[i] == order[done + i]);
    if (!left.empty()) RC_ASSERT(left.front().iov_len > 0u);
    if (step == 0 && *rc::gen::arbitrary<bool>()) break;
  }
}

}  // namespace
}  // namespace forebay
