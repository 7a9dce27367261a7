#include "forebay/os/kept_memory.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <fstream>
#include <string>

#include "forebay/base/cache_line.h"
#include "forebay/os/clock.h"

namespace forebay {
namespace {

constexpr std::uint64_t lock_pause_ns = 5'000'000;

// Whether a file system is mounted with an option `huge=` that gives huge pages to who asks.
bool mounted_huge(dev_t device) {
  const std::string number = std::to_string(major(device)) + ":" + std::to_string(minor(device));
  std::ifstream in("/proc/self/mountinfo");
  for (std::string line; std::getline(in, line);) {
    if (line.find(" " + number + " ") == std::string::npos) continue;
    return line.find("huge=always") != std::string::npos ||
           line.find("huge=within_size") != std::string::npos ||
           line.find("huge=advise") != std::string::npos;
  }
  return false;
}

// A number that no other disk gets until the machine is started again, also where it takes the
// place of this one (/dev/loop0); 0 if the kernel (before 5.15) has none.
std::uint64_t disk_of(dev_t device) {
  const std::string directory =
      "/sys/dev/block/" + std::to_string(major(device)) + ":" + std::to_string(minor(device)) + "/";
  std::uint64_t number = 0;
  if (std::ifstream(directory + "diskseq") >> number) return number;
  if (std::ifstream(directory + "../diskseq") >> number) return number;  // a partition's
  return 0;
}

// Whether there is no hole in a file.
bool is_whole(int fd) {
  struct stat st{};
  return ::fstat(fd, &st) == 0 && st.st_blocks * 512 >= st.st_size;
}

result<> allocate(int fd, std::uint64_t offset, std::size_t bytes) {
  // The kernel would go through its pages one by one to say the same.
  if (is_whole(fd)) return {};
  if (::fallocate(fd, 0, static_cast<off_t>(offset), static_cast<off_t>(bytes)) != 0) {
    return fail_errno();
  }
  return {};
}

result<> lock(int fd, std::uint64_t wait_ns) {
  const std::uint64_t deadline = monotonic_clock::now_ns() + wait_ns;
  while (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK && errno != EINTR) return fail_errno();
    if (monotonic_clock::now_ns() >= deadline) return fail(errc::in_use);
    const timespec pause{0, static_cast<long>(lock_pause_ns)};
    ::nanosleep(&pause, nullptr);
  }
  return {};
}

}  // namespace

result<kept_memory> kept_memory::open(const std::string& path, std::uint64_t wait_ns) {
  unique_fd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd) return fail_errno();
  struct stat st{};
  struct statfs file_system{};
  if (::fstat(fd.get(), &st) != 0 || ::fstatfs(fd.get(), &file_system) != 0) return fail_errno();
  page_backing backing = page_backing::ordinary;
  if (file_system.f_type == HUGETLBFS_MAGIC) {
    // Larger pages than these would be another layout of the file.
    if (static_cast<std::size_t>(file_system.f_bsize) != alignment) return fail(ENOTSUP);
    backing = page_backing::huge_reserved;
  } else if (file_system.f_type != TMPFS_MAGIC) {
    return fail(ENOTSUP);
  } else if (mounted_huge(st.st_dev)) {
    backing = page_backing::huge_transparent;
  }
  if (!S_ISREG(st.st_mode)) return fail(ENOTSUP);
  if (auto r = lock(fd.get(), wait_ns); !r) return fail(r.error());
  return kept_memory(std::move(fd), backing);
}

kept_memory::~kept_memory() {
  if (!head_.empty()) ::munmap(head_.data(), head_.size());
}

result<std::uint64_t> kept_memory::size_bytes() const {
  struct stat st{};
  if (::fstat(fd_.get(), &st) != 0) return fail_errno();
  return static_cast<std::uint64_t>(st.st_size);
}

result<> kept_memory::make(std::uint64_t bytes) {
  if (::ftruncate(fd_.get(), 0) != 0) return fail_errno();
  if (::ftruncate(fd_.get(), static_cast<off_t>(round_up(bytes, std::uint64_t{alignment}))) != 0) {
    return fail_errno();
  }
  return {};
}

result<std::span<std::byte>> kept_memory::map_head(std::size_t bytes) {
  bytes = round_up(bytes, alignment);
  if (auto r = allocate(fd_.get(), 0, bytes); !r) return fail(r.error());
  void* const p = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(), 0);
  if (p == MAP_FAILED) return fail_errno();
  head_ = {static_cast<std::byte*>(p), bytes};
  return head_;
}

result<> kept_memory::read(std::uint64_t offset, std::span<std::byte> out) const {
  while (!out.empty()) {
    const ssize_t n = ::pread(fd_.get(), out.data(), out.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_errno();
    if (n == 0) return fail(EIO);
    out = out.subspan(static_cast<std::size_t>(n));
    offset += static_cast<std::uint64_t>(n);
  }
  return {};
}

result<memory_mapping> kept_memory_source::map(const memory_request& request) {
  if (!request.holds_data) return memory_source::map(request);
  const std::size_t bytes = round_up(request.bytes, kept_memory::alignment);
  // The addresses, aligned; the file comes in by parts.
  auto made = memory_source::map({.bytes = bytes, .alignment = kept_memory::alignment});
  if (!made) return made;
  if (request.node != any_numa_node && !numa_node_exists(request.node)) return fail(ENODEV);
  memory_mapping mapping = std::move(*made).with_backing(file_.backing());
  start_ = mapping.data();
  const std::size_t certain =
      std::min(bytes, round_up(std::min(request.commit_bytes, bytes), kept_memory::alignment));
  if (certain == 0) return mapping;
  if (auto r = commit(mapping.part(0, certain), file_.backing()); !r) return fail(r.error());
  // Where a page lies is settled when it is allocated, so this is for those that come later.
  if (request.node != any_numa_node) {
    if (auto r = bind_to_numa_node(mapping.part(0, certain), request.node); !r) {
      return fail(r.error());
    }
  }
  return mapping;
}

result<> kept_memory_source::commit(std::span<std::byte> part, page_backing backing) {
  const std::uint64_t offset = offset_of(part);
  if (auto r = allocate(file_.fd(), offset, part.size()); !r) return r;
  void* const p = ::mmap(part.data(), part.size(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                         file_.fd(), static_cast<off_t>(offset));
  if (p == MAP_FAILED) return fail_errno();
  if (backing == page_backing::huge_transparent) {
    // A refusal costs speed only.
    static_cast<void>(::madvise(part.data(), part.size(), MADV_HUGEPAGE));
  }
  return {};
}

result<> kept_memory_source::discard(std::span<std::byte> part) {
  // Ordinary memory takes its place: a look at it reads zeros, and takes none of the file system.
  void* const p = ::mmap(part.data(), part.size(), PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  if (p == MAP_FAILED) return fail_errno();
  if (::fallocate(file_.fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                  static_cast<off_t>(offset_of(part)), static_cast<off_t>(part.size())) != 0) {
    const std::error_code error(errno, std::generic_category());
    static_cast<void>(commit(part, file_.backing()));
    return fail(error);
  }
  return {};
}

const char* kept_memory_source::huge_page_advice() const noexcept {
  return "mount its file system with huge=advise, or put it on hugetlbfs";
}

result<file_identity> identity_of(const std::string& path) {
  struct stat st{};
  if (::stat(path.c_str(), &st) != 0) return fail_errno();
  if (S_ISBLK(st.st_mode)) return file_identity{.device = st.st_rdev, .inode = disk_of(st.st_rdev)};
  if (!S_ISREG(st.st_mode)) return fail(errc::not_a_device);
  return file_identity{
      .device = st.st_dev,
      .inode = st.st_ino,
      .size_bytes = static_cast<std::uint64_t>(st.st_size),
      .modified_ns = static_cast<std::uint64_t>(st.st_mtim.tv_sec) * 1'000'000'000 +
                     static_cast<std::uint64_t>(st.st_mtim.tv_nsec)};
}

}  // namespace forebay
