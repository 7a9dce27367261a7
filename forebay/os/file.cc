#include "forebay/os/file.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <cstring>
#include <thread>

#ifndef STATX_DIOALIGN
#define STATX_DIOALIGN 0x00002000U
#endif

namespace forebay {
namespace {

// statx as Linux 6.1 fills it: glibc 2.36 does not name the two direct-I/O fields, which lie in its
// first spare words.
struct dio_alignment {
  std::uint32_t memory = 0;
  std::uint32_t offset = 0;
};

dio_alignment query_dio_alignment(int fd) {
  struct statx buffer{};
  if (::statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &buffer) != 0) return {};
  if ((buffer.stx_mask & STATX_DIOALIGN) == 0) return {};
  // stx_dio_mem_align and stx_dio_offset_align follow stx_mnt_id at byte 0x98
  // (include/uapi/linux/stat.h).
  dio_alignment found;
  static_assert(sizeof found == 8 && sizeof buffer >= 0x98 + sizeof found);
  std::memcpy(&found, reinterpret_cast<const std::byte*>(&buffer) + 0x98, sizeof found);
  return found;
}

result<unique_fd> open_fd(const std::string& path, block_file::options opts, bool& direct) {
  const int access = (opts.read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | (opts.create ? O_CREAT : 0);
  direct = opts.direct;
  if (direct) {
    unique_fd fd(::open(path.c_str(), access | O_DIRECT, 0666));
    if (fd) return fd;
    if (errno != EINVAL && errno != EOPNOTSUPP) return fail_errno();
    direct = false;
  }
  unique_fd fd(::open(path.c_str(), access, 0666));
  if (!fd) return fail_errno();
  return fd;
}

result<> check_kind(const struct stat& st) {
  if (S_ISDIR(st.st_mode)) return fail(EISDIR);
  if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) return fail(errc::not_a_device);
  return {};
}

result<> read_block_device_geometry(int fd, bool read_only, file_geometry& g) {
  std::uint64_t size = 0;
  int logical = 0;
  unsigned physical = 0;
  int locked = 0;
  // A device that is set read-only can be opened for writing all the same.
  if (!read_only && ::ioctl(fd, BLKROGET, &locked) == 0 && locked != 0) return fail(EROFS);
  if (::ioctl(fd, BLKGETSIZE64, &size) != 0) return fail_errno();
  if (::ioctl(fd, BLKSSZGET, &logical) != 0) return fail_errno();
  if (::ioctl(fd, BLKPBSZGET, &physical) != 0) physical = static_cast<unsigned>(logical);
  g.size_bytes = size;
  g.is_block_device = true;
  g.logical_block_bytes = static_cast<std::uint32_t>(logical);
  g.physical_block_bytes = std::max(physical, g.logical_block_bytes);
  g.memory_alignment_bytes = g.logical_block_bytes;
  return {};
}

result<> transfer(int fd, std::span<iovec> segments, std::uint64_t offset, bool write, int flags) {
  // Empty segments at the front would end in a transfer of 0 bytes, as at the end of a file.
  segments = advance_segments(segments, 0);
  while (!segments.empty()) {
    const int count = static_cast<int>(std::min<std::size_t>(segments.size(), IOV_MAX));
    const auto at = static_cast<off_t>(offset);
    const ssize_t n = write ? ::pwritev2(fd, segments.data(), count, at, flags)
                            : ::preadv(fd, segments.data(), count, at);
    if (n < 0) {
      if (errno == EINTR) continue;
      return fail_errno();
    }
    if (n == 0) return fail(EIO);
    offset += static_cast<std::uint64_t>(n);
    segments = advance_segments(segments, static_cast<std::size_t>(n));
  }
  return {};
}

// A process that is killed keeps its locks for a moment: the kernel takes its io_uring down, which
// holds the file, after it has gone. So a lock that is held is tried again for a while.
result<> lock_image(int fd, bool shared) {
  constexpr int attempts = 50;
  constexpr std::chrono::milliseconds pause(20);
  for (int i = 1; ::flock(fd, (shared ? LOCK_SH : LOCK_EX) | LOCK_NB) != 0; ++i) {
    if (errno != EWOULDBLOCK && errno != EINTR) return fail_errno();
    if (i == attempts) return fail(errc::in_use);
    std::this_thread::sleep_for(pause);
  }
  return {};
}

}  // namespace

std::span<iovec> advance_segments(std::span<iovec> segments, std::size_t done_bytes) noexcept {
  while (!segments.empty() && done_bytes >= segments.front().iov_len) {
    done_bytes -= segments.front().iov_len;
    segments = segments.subspan(1);
  }
  if (!segments.empty()) {
    iovec& first = segments.front();
    first.iov_base = static_cast<std::byte*>(first.iov_base) + done_bytes;
    first.iov_len -= done_bytes;
  }
  return segments;
}

result<block_file> block_file::open(const std::string& path, options opts) {
  // Looked at before it is opened, since opening a FIFO would wait; and after, for it may be
  // another file by then.
  struct stat st{};
  const bool there = ::stat(path.c_str(), &st) == 0;
  if (!there && (errno != ENOENT || !opts.create)) return fail_errno();
  if (there) {
    if (auto r = check_kind(st); !r) return fail(r.error());
    // Nobody may write to it, which a privileged process would only find out by having done so.
    if (!opts.read_only && S_ISREG(st.st_mode) && (st.st_mode & 0222) == 0) return fail(EACCES);
  }

  file_geometry g;
  auto fd = open_fd(path, opts, g.direct);
  if (!fd) return fail(fd.error());
  if (auto r = lock_image(fd->get(), opts.read_only); !r) return fail(r.error());
  if (::fstat(fd->get(), &st) != 0) return fail_errno();
  if (auto r = check_kind(st); !r) return fail(r.error());

  if (S_ISBLK(st.st_mode)) {
    if (auto r = read_block_device_geometry(fd->get(), opts.read_only, g); !r)
      return fail(r.error());
  } else {
    g.size_bytes = static_cast<std::uint64_t>(st.st_size);
    g.is_sparse = static_cast<std::uint64_t>(st.st_blocks) * 512 < g.size_bytes;
    g.physical_block_bytes =
        static_cast<std::uint32_t>(std::clamp<blksize_t>(st.st_blksize, 512, 65536));
    if (opts.grow_to_bytes > g.size_bytes) {
      g.size_bytes = opts.grow_to_bytes;
      g.is_sparse = true;
    }
  }
  if (g.direct) {
    const dio_alignment a = query_dio_alignment(fd->get());
    if (a.offset != 0) g.logical_block_bytes = std::max(a.offset, 512u);
    if (a.memory != 0) g.memory_alignment_bytes = a.memory;
  }
  if (g.size_bytes == 0) return fail(errc::empty_device);
  return block_file(std::move(*fd), g);
}

block_file::~block_file() {
  // The lock belongs to the open file, which a ring may hold for longer than this object.
  if (fd_) ::flock(fd_.get(), LOCK_UN);
}

result<> block_file::read(std::span<iovec> segments, std::uint64_t offset_bytes) const {
  return transfer(fd(), segments, offset_bytes, false, 0);
}

result<> block_file::write(std::span<iovec> segments, std::uint64_t offset_bytes, int flags) const {
  return transfer(fd(), segments, offset_bytes, true, flags);
}

result<> block_file::sync() const {
  if (::fdatasync(fd()) != 0) return fail_errno();
  return {};
}

result<> block_file::zero(std::uint64_t offset_bytes, std::uint64_t length_bytes,
                          zero_mode mode) const {
  const int how = mode == zero_mode::deallocate ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE;
  while (::fallocate(fd(), how | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset_bytes),
                     static_cast<off_t>(length_bytes)) != 0) {
    if (errno == EINTR) continue;
    return fail(errno == EOPNOTSUPP || errno == ENOSYS || errno == ENODEV ? ENOTSUP : errno);
  }
  return {};
}

result<> block_file::set_size(std::uint64_t bytes) const {
  if (::ftruncate(fd(), static_cast<off_t>(bytes)) != 0) return fail_errno();
  return {};
}

// The position that it leaves behind is nobody's: all transfers say where they go.
result<std::uint64_t> block_file::follow_size() noexcept {
  const off_t end = ::lseek(fd(), 0, SEEK_END);
  if (end < 0) return fail_errno();
  const auto bytes = static_cast<std::uint64_t>(end);
  if (bytes > geometry_.size_bytes) geometry_.size_bytes = bytes;
  return bytes;
}

result<file_extent> block_file::extent_at(std::uint64_t offset_bytes) const {
  const file_extent all_data{geometry_.size_bytes, false};
  if (geometry_.is_block_device) return all_data;
  const auto at = static_cast<off_t>(offset_bytes);
  const file_extent hole_to_end{geometry_.size_bytes, true};
  for (;;) {
    const off_t data = ::lseek(fd(), at, SEEK_DATA);
    if (data < 0) {
      if (errno == ENXIO) return hole_to_end;
      if (errno == EINVAL || errno == EOPNOTSUPP) return all_data;
      return fail_errno();
    }
    if (data > at) return file_extent{static_cast<std::uint64_t>(data), true};
    const off_t hole = ::lseek(fd(), at, SEEK_HOLE);
    if (hole < 0) return errno == ENXIO ? result<file_extent>(hole_to_end) : fail_errno();
    if (hole > at) return file_extent{static_cast<std::uint64_t>(hole), false};
    // The data became a hole between the two questions.
  }
}

}  // namespace forebay
