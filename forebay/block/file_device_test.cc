// file_device on real files: in an event loop and on a plain thread, direct and buffered.

#include "forebay/block/file_device.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <vector>

#include "forebay/block/test_devices.h"
#include "forebay/os/test_directory.h"

namespace forebay {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t image_bytes = 1u << 20;

// A directory of its own, in memory (tmpfs, which refuses O_DIRECT where it is old) or not.
struct scratch : test_directory {
  using test_directory::test_directory;

  std::string make(const char* name, std::uint64_t bytes) const {
    std::string made = file(name);
    std::ofstream(made).close();
    fs::resize_file(made, bytes);
    return made;
  }
};

// Memory that direct I/O accepts.
struct aligned_memory {
  explicit aligned_memory(std::size_t n) : bytes(n) {
    data = static_cast<std::byte*>(std::aligned_alloc(4096, n));
  }
  ~aligned_memory() { std::free(data); }
  aligned_memory(const aligned_memory&) = delete;
  aligned_memory& operator=(const aligned_memory&) = delete;
  std::span<std::byte> all() const { return {data, bytes}; }

  std::byte* data;
  std::size_t bytes;
};

std::vector<std::byte> contents_of(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::vector<char> text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  std::vector<std::byte> out(text.size());
  std::memcpy(out.data(), text.data(), text.size());
  return out;
}

// Runs `work` either in an event loop (the ring) or on a plain thread (system calls).
enum class where { ring, plain_thread, ring_registered };

const char* name_of(where w) {
  return w == where::ring ? "ring" : w == where::plain_thread ? "plain_thread" : "ring_registered";
}

result<> run(where w, task<> work, device* d = nullptr, arena* memory = nullptr) {
  if (w == where::plain_thread) return sync_wait(std::move(work));
  result<> outcome;
  struct keep {
    static task<> value(task<> inner, result<>& out) {
      out = co_await std::move(inner);
      co_return result<>{};
    }
  };
  run_on_loops(
      1,
      [&](unsigned) {
        task_list tasks;
        tasks.push_back(keep::value(std::move(work), outcome));
        return tasks;
      },
      [&](loop& here) {
        if (w != where::ring_registered) return;
        const std::array<int, 1> fds{d->registrable_fd()};
        EXPECT_TRUE(here.queue().register_files(fds));
        if (memory == nullptr) return;
        EXPECT_TRUE(here.registered().add(*memory));
      });
  return outcome;
}

task<> transfer(device& d, bio& b) {
  const std::int32_t status = co_await submit_and_wait(d, b);
  if (status != 0) co_return fail(-status);
  co_return result<>{};
}

int operate(where w, device& d, bio& b, arena* memory = nullptr) {
  const auto r = run(w, transfer(d, b), &d, memory);
  return r ? 0 : r.error().value();
}

std::unique_ptr<file_device> open_device(const std::string& path, block_file::options opts = {}) {
  auto d = file_device::open(path, opts);
  EXPECT_TRUE(d) << path << ": " << d.error().message();
  return d ? std::move(*d) : nullptr;
}

class file_device_test : public testing::TestWithParam<where> {
 protected:
  scratch dir_{fs::temp_directory_path()};
};

TEST_P(file_device_test, transfers_many_segments_both_ways) {
  const std::string path = dir_.make("image", image_bytes);
  const auto d = open_device(path);
  auto memory = arena::create({.bytes = 2u << 20, .huge_pages = false});
  ASSERT_TRUE(memory);
  // Every other frame, so that no two segments are adjacent.
  std::vector<page*> frames;
  for (int i = 0; i < 64; ++i) frames.push_back((*memory)->allocate());
  for (std::size_t i = 0; i < frames.size(); ++i) {
    std::memset(frames[i]->data(), static_cast<int>(i + 1), page_bytes);
  }
  bio w(bio_op::write, 8192, bio_fua);
  bio r(bio_op::read, 8192);
  for (std::size_t i = 0; i < 64; i += 2) {
    ASSERT_TRUE(w.add(frames[i]->data(), page_bytes));
    ASSERT_TRUE(r.add(frames[i + 1]->data(), page_bytes));
  }
  EXPECT_EQ(operate(GetParam(), *d, w, memory->get()), 0);
  EXPECT_EQ(operate(GetParam(), *d, r, memory->get()), 0);
  for (std::size_t i = 0; i < 64; i += 2) {
    EXPECT_EQ(0, std::memcmp(frames[i]->data(), frames[i + 1]->data(), page_bytes)) << i;
  }
  // One segment: the registered form, where there is one.
  bio one(bio_op::write, 0);
  std::memset(frames[0]->data(), 0xab, page_bytes);
  one.add(frames[0]->data(), page_bytes);
  EXPECT_EQ(operate(GetParam(), *d, one, memory->get()), 0);
  bio back(bio_op::read, 0);
  back.add(frames[1]->data(), page_bytes);
  EXPECT_EQ(operate(GetParam(), *d, back, memory->get()), 0);
  EXPECT_EQ(0, std::memcmp(frames[0]->data(), frames[1]->data(), page_bytes));
  bio flush(bio_op::flush, 0);
  EXPECT_EQ(operate(GetParam(), *d, flush), 0);
  const auto image = contents_of(path);
  ASSERT_EQ(image.size(), image_bytes);
  EXPECT_EQ(image[0], std::byte{0xab});
  EXPECT_EQ(image[8192], std::byte{1});
  EXPECT_EQ(image[12288], std::byte{3});
  for (page* p : frames) put_page(*p);
}

TEST_P(file_device_test, discards_and_zeroes_keep_the_size) {
  const std::string path = dir_.make("image", image_bytes);
  const auto d = open_device(path);
  aligned_memory memory(1u << 16);
  std::fill_n(memory.data, memory.bytes, std::byte{5});
  bio w(bio_op::write, 0);
  w.add(memory.data, memory.bytes);
  ASSERT_EQ(operate(GetParam(), *d, w), 0);
  auto e = d->extent_at(0);
  ASSERT_TRUE(e);
  EXPECT_FALSE(e->hole);
  EXPECT_EQ(e->end_bytes, 1u << 16);
  bio punch(bio_op::discard, 8192);
  punch.length_bytes = 16384;
  ASSERT_EQ(operate(GetParam(), *d, punch), 0);
  bio zero(bio_op::write_zeroes, 32768);
  zero.length_bytes = 4096;
  ASSERT_EQ(operate(GetParam(), *d, zero), 0);
  bio keep(bio_op::write_zeroes, 40960, bio_no_unmap);
  keep.length_bytes = 4096;
  const int kept = operate(GetParam(), *d, keep);
  EXPECT_TRUE(kept == 0 || kept == ENOTSUP) << kept;
  bio r(bio_op::read, 0);
  r.add(memory.data, memory.bytes);
  ASSERT_EQ(operate(GetParam(), *d, r), 0);
  for (std::size_t i = 0; i < memory.bytes; i += 512) {
    const bool zeroed = (i >= 8192 && i < 24576) || (i >= 32768 && i < 36864) ||
                        (kept == 0 && i >= 40960 && i < 45056);
    ASSERT_EQ(memory.data[i], zeroed ? std::byte{0} : std::byte{5}) << i;
  }
  e = d->extent_at(8192);
  ASSERT_TRUE(e);
  EXPECT_TRUE(e->hole);
  EXPECT_EQ(e->end_bytes, 24576u);
  EXPECT_EQ(fs::file_size(path), image_bytes);
  bio outside(bio_op::discard, image_bytes);
  outside.length_bytes = 4096;
  EXPECT_EQ(operate(GetParam(), *d, outside), EINVAL);
}

TEST_P(file_device_test, a_file_that_was_shrunk_gives_eio) {
  const std::string path = dir_.make("image", image_bytes);
  const auto d = open_device(path);
  fs::resize_file(path, 8192);
  aligned_memory memory(16384);
  bio past(bio_op::read, 16384);
  past.add(memory.data, 4096);
  EXPECT_EQ(operate(GetParam(), *d, past), EIO);
  bio across(bio_op::read, 4096);
  across.add(memory.data, 4096);
  across.add(memory.data + 8192, 4096);
  EXPECT_EQ(operate(GetParam(), *d, across), EIO);
  bio inside(bio_op::read, 4096);
  inside.add(memory.data, 4096);
  EXPECT_EQ(operate(GetParam(), *d, inside), 0);
}

TEST_P(file_device_test, a_read_only_device_refuses_changes) {
  const std::string path = dir_.make("image", image_bytes);
  const auto d = open_device(path, {.read_only = true});
  aligned_memory memory(4096);
  EXPECT_TRUE(d->limits().read_only);
  bio w(bio_op::write, 0);
  w.add(memory.data, 4096);
  EXPECT_EQ(operate(GetParam(), *d, w), EROFS);
  bio r(bio_op::read, 0);
  r.add(memory.data, 4096);
  EXPECT_EQ(operate(GetParam(), *d, r), 0);
  bio flush(bio_op::flush, 0);
  EXPECT_EQ(operate(GetParam(), *d, flush), 0);
}

// A write that the kernel cuts short is carried on; what cannot be written is an error.
TEST_P(file_device_test, a_short_write_is_carried_on_to_its_error) {
  const std::string path = dir_.make("image", image_bytes);
  const auto d = open_device(path);
  aligned_memory memory(1u << 17);
  std::fill_n(memory.data, memory.bytes, std::byte{7});
  rlimit old{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old), 0);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit small = old;
  small.rlim_cur = 20480;  // in the middle of the third segment
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  bio w(bio_op::write, 0);
  for (std::size_t i = 0; i < 4; ++i) w.add(memory.data + i * 16384, 8192);
  const int status = operate(GetParam(), *d, w);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &old), 0);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_EQ(status, EFBIG);
  ASSERT_EQ(w.used_segments().size(), 4u);
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(w.segments[i].iov_base, memory.data + i * 16384) << i;
    EXPECT_EQ(w.segments[i].iov_len, 8192u) << i;
  }
  const auto image = contents_of(path);
  EXPECT_EQ(image[0], std::byte{7});
  EXPECT_EQ(image[20479], std::byte{7}) << "the front was written";
  EXPECT_EQ(image[20480], std::byte{0});
  EXPECT_EQ(operate(GetParam(), *d, w), 0) << "the same bio again, without the limit";
  EXPECT_EQ(contents_of(path)[32767], std::byte{7});
}

INSTANTIATE_TEST_SUITE_P(ways, file_device_test,
                         testing::Values(where::ring, where::plain_thread, where::ring_registered),
                         [](const auto& way) { return name_of(way.param); });

TEST(file_device, more_bios_at_once_than_the_ring_has_room_for) {
  const scratch dir(fs::temp_directory_path());
  const std::string path = dir.make("image", image_bytes);
  const auto d = open_device(path);
  aligned_memory memory(4096);
  struct reader {
    static task<> go(device& dev, std::byte* data, int& ended) {
      bio b(bio_op::read, 0);
      b.add(data, 4096);
      if (co_await submit_and_wait(dev, b) == 0) ++ended;
      co_return result<>{};
    }
  };
  int ended = 0;
  run_on_loops(1, [&](unsigned) {
    task_list tasks;
    for (int i = 0; i < 2000; ++i) tasks.push_back(reader::go(*d, memory.data, ended));
    return tasks;
  });
  EXPECT_EQ(ended, 2000);
}

TEST(file_device, opens_only_what_can_be_a_device) {
  const scratch dir(fs::temp_directory_path());
  EXPECT_EQ(file_device::open((dir.path() / "none").string(), {}).error().value(), ENOENT);
  EXPECT_EQ(file_device::open(dir.path().string(), {}).error().value(), EISDIR);
  EXPECT_EQ(file_device::open(dir.make("empty", 0), {}).error(), errc::empty_device);
  const std::string path = dir.make("image", image_bytes);
  const auto first = open_device(path);
  EXPECT_EQ(file_device::open(path, {}).error(), errc::in_use);
  EXPECT_EQ(first->limits().size_bytes, image_bytes);
  EXPECT_TRUE(first->limits().may_have_holes);
  EXPECT_EQ(first->registrable_fd() >= 0, true);
}

TEST(file_device, a_file_may_be_made_and_grow_by_writes) {
  constexpr std::uint64_t limit = std::uint64_t{8} << 40;
  const scratch dir("/var/tmp");
  const std::string path = (dir.path() / "new").string();
  EXPECT_EQ(file_device::open(path, {.grow_to_bytes = limit}).error().value(), ENOENT);
  const auto d = file_device::open(path, {.create = true, .grow_to_bytes = limit});
  ASSERT_TRUE(d) << d.error().message();
  EXPECT_EQ((*d)->limits().size_bytes, limit);
  const auto before = (*d)->extent_at(4096);
  ASSERT_TRUE(before);
  EXPECT_TRUE(before->hole);
  EXPECT_EQ(before->end_bytes, limit);
  EXPECT_EQ(fs::file_size(path), 0u);
  aligned_memory memory(4096);
  bio b(bio_op::write, 8192);
  b.add(memory.data, 4096);
  struct writer {
    static task<> go(device& dev, bio& what) {
      const std::int32_t status = co_await submit_and_wait(dev, what);
      co_return status == 0 ? result<>{} : fail(-status);
    }
  };
  ASSERT_TRUE(sync_wait(writer::go(**d, b)));
  EXPECT_EQ(fs::file_size(path), 12288u);
  EXPECT_EQ((*d)->extent_at(8192)->hole, false);
  ASSERT_TRUE((*d)->set_size(9000));
  EXPECT_EQ(fs::file_size(path), 9000u);
}

// A tmpfs of its own, a few pages large.
struct small_tmpfs {
  explicit small_tmpfs(const fs::path& at) : path(at) {
    fs::create_directory(path);
    mounted = ::mount("none", path.c_str(), "tmpfs", 0, "size=128k") == 0;
  }
  ~small_tmpfs() {
    if (mounted) ::umount2(path.c_str(), MNT_DETACH);
  }
  small_tmpfs(const small_tmpfs&) = delete;
  small_tmpfs& operator=(const small_tmpfs&) = delete;

  fs::path path;
  bool mounted = false;
};

class full_device_test : public testing::TestWithParam<where> {};

TEST_P(full_device_test, enospc_is_an_error_that_room_cures) {
  const scratch dir(fs::temp_directory_path());
  const small_tmpfs small(dir.path() / "small");
  if (!small.mounted) GTEST_SKIP() << "mounting a tmpfs needs root";
  const std::string path = (small.path / "image").string();
  std::ofstream(path).close();
  fs::resize_file(path, image_bytes);
  const auto d = open_device(path, {.direct = false});
  EXPECT_FALSE(d->limits().direct);
  aligned_memory memory(1u << 18);
  std::fill_n(memory.data, memory.bytes, std::byte{7});
  bio w(bio_op::write, 0, bio_fua);
  w.add(memory.data, memory.bytes);
  EXPECT_EQ(operate(GetParam(), *d, w), ENOSPC);
  bio punch(bio_op::discard, 0);
  punch.length_bytes = image_bytes;
  ASSERT_EQ(operate(GetParam(), *d, punch), 0);
  bio fits(bio_op::write, 65536, bio_fua);
  fits.add(memory.data, 65536);
  EXPECT_EQ(operate(GetParam(), *d, fits), 0);
  // The write failed, not a sync: nothing that was acknowledged has been lost.
  bio flush(bio_op::flush, 0);
  EXPECT_EQ(operate(GetParam(), *d, flush), 0);
  bio keep(bio_op::write_zeroes, 0, bio_no_unmap);
  keep.length_bytes = 4096;
  const int kept = operate(GetParam(), *d, keep);
  EXPECT_TRUE(kept == ENOTSUP || kept == 0) << kept;
}

INSTANTIATE_TEST_SUITE_P(ways, full_device_test, testing::Values(where::ring, where::plain_thread),
                         [](const auto& way) { return name_of(way.param); });

// A loop block device over a file.
struct loop_block_device {
  explicit loop_block_device(const std::string& file) {
    const unique_fd control(::open("/dev/loop-control", O_RDWR | O_CLOEXEC));
    const unique_fd backing(::open(file.c_str(), O_RDWR | O_CLOEXEC));
    const int number = control ? ::ioctl(control.get(), LOOP_CTL_GET_FREE) : -1;
    if (number < 0) return;
    path = "/dev/loop" + std::to_string(number);
    fd = unique_fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
    usable = fd && ::ioctl(fd.get(), LOOP_SET_FD, backing.get()) == 0;
  }
  ~loop_block_device() {
    if (usable) ::ioctl(fd.get(), LOOP_CLR_FD, 0);
  }
  loop_block_device(const loop_block_device&) = delete;
  loop_block_device& operator=(const loop_block_device&) = delete;

  std::string path;
  unique_fd fd;
  bool usable = false;
};

// The kernel reports a page that it lost to the next sync only, whichever write that belongs to.
TEST_P(full_device_test, a_buffered_fua_write_does_not_swallow_the_loss_of_another) {
  const scratch dir(fs::temp_directory_path());
  const small_tmpfs small(dir.path() / "small");
  if (!small.mounted) GTEST_SKIP() << "mounting a tmpfs needs root";
  const fs::path backing = small.path / "backing";
  std::ofstream(backing).close();
  fs::resize_file(backing, image_bytes);
  const loop_block_device block(backing.string());
  if (!block.usable) GTEST_SKIP() << "no loop device to be had";
  {
    const auto d = open_device(block.path, {.direct = false});
    ASSERT_FALSE(d->limits().direct);
    aligned_memory memory(4096);
    std::fill_n(memory.data, memory.bytes, std::byte{7});
    bio first(bio_op::write, 65536, bio_fua);
    first.add(memory.data, memory.bytes);
    ASSERT_EQ(operate(GetParam(), *d, first), 0);

    const fs::path filler = small.path / "filler";
    std::ofstream(filler) << std::string(1u << 18, 'x');
    bio lost(bio_op::write, 0);
    lost.add(memory.data, memory.bytes);
    ASSERT_EQ(operate(GetParam(), *d, lost), 0) << "into the kernel's page cache";
    EXPECT_NE(::fdatasync(block.fd.get()), 0) << "the kernel writes it back, and cannot";
    fs::remove(filler);

    EXPECT_NE(operate(GetParam(), *d, first), 0) << "its sync reports the loss";
    EXPECT_EQ(operate(GetParam(), *d, first), 0) << "tried again, it is durable itself";
    for (int i = 0; i < 2; ++i) {
      bio flush(bio_op::flush, 0);
      EXPECT_NE(operate(GetParam(), *d, flush), 0) << "what was acknowledged is lost for good";
    }
  }
}

TEST(file_device, works_on_tmpfs_whether_it_is_direct_or_not) {
  if (!fs::exists("/dev/shm")) GTEST_SKIP() << "no /dev/shm";
  const scratch dir("/dev/shm");
  const std::string path = dir.make("image", image_bytes + 512);
  const auto d = open_device(path);
  EXPECT_EQ(d->limits().direct, d->geometry().direct);
  EXPECT_EQ(d->limits().size_bytes, image_bytes + 512);
  aligned_memory memory(4096);
  std::fill_n(memory.data, memory.bytes, std::byte{3});
  if (d->limits().logical_block_bytes > 512) GTEST_SKIP() << "no 512-byte blocks";
  for (const where w : {where::ring, where::plain_thread}) {
    bio tail(bio_op::write, image_bytes);
    tail.add(memory.data, 512);
    EXPECT_EQ(operate(w, *d, tail), 0);
    bio flush(bio_op::flush, 0);
    EXPECT_EQ(operate(w, *d, flush), 0);
  }
  EXPECT_EQ(contents_of(path).back(), std::byte{3});
  EXPECT_EQ(fs::file_size(path), image_bytes + 512);
}

}  // namespace
}  // namespace forebay
