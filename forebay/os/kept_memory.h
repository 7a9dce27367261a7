// Memory that outlives the process: a file on tmpfs or hugetlbfs, mapped shared.
//
//   file   | head: allocated and mapped at once | data: mapped by kept_memory_source, in parts
//          0                                    data_offset
//
// A store into a shared mapping is in the file with the instruction that made it: it survives the
// end of the process, of whatever kind, and not that of the machine. Only tmpfs and hugetlbfs are
// taken: elsewhere the kernel would write every changed page to a disk, and io_uring registers no
// such memory.
//
// The file is locked (flock) for as long as anything has its descriptor open. An io_uring that has
// it among its registered files counts, and lasts until its last transfer has ended; so who has the
// lock knows that no transfer of the process before him is still under way in the memory.
//
// No touch of the memory can fail: parts are allocated (fallocate) before they are mapped from the
// file, and what is not allocated is ordinary memory that reads as zeros. The file must not be cut
// shorter by others while it is mapped (SIGBUS); it is made readable and writable for its owner
// alone.
//
// No locks of its own: kept_memory belongs to one thread; the source, as memory_source says, to
// any.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "forebay/os/fd.h"
#include "forebay/os/memory.h"

namespace forebay {

class kept_memory {
 public:
  static constexpr std::size_t alignment = std::size_t{2} << 20;  // of the data in the file

  // Opens the file, or makes an empty one, and locks it; waits up to `wait_ns` for the lock.
  // Errors: errno of open(2); errc::in_use; ENOTSUP if it is not a regular file on tmpfs or
  // hugetlbfs.
  static result<kept_memory> open(const std::string& path, std::uint64_t wait_ns);

  kept_memory(kept_memory&& other) noexcept
      : fd_(std::move(other.fd_)),
        backing_(other.backing_),
        head_(std::exchange(other.head_, {})) {}
  kept_memory& operator=(kept_memory&&) = delete;
  ~kept_memory();

  int fd() const noexcept { return fd_.get(); }
  page_backing backing() const noexcept { return backing_; }
  result<std::uint64_t> size_bytes() const;

  // Empties the file and gives it this size: all of it reads as zeros. Errors: errno.
  result<> make(std::uint64_t bytes);

  // Allocates and maps the file's first bytes; once. Errors: ENOSPC, errno.
  result<std::span<std::byte>> map_head(std::size_t bytes);

  // Copies out, without a mapping. EIO beyond the end of the file.
  result<> read(std::uint64_t offset, std::span<std::byte> out) const;

 private:
  kept_memory(unique_fd fd, page_backing backing) noexcept
      : fd_(std::move(fd)), backing_(backing) {}

  unique_fd fd_;
  page_backing backing_;
  std::span<std::byte> head_;
};

// What an arena gets its frames' memory from, so that it lies in the file; the rest of what it asks
// for is ordinary memory. One arena has one such source. The kept_memory must outlive it.
class kept_memory_source final : public memory_source {
 public:
  // `offset` is a multiple of kept_memory::alignment.
  kept_memory_source(const kept_memory& file, std::uint64_t offset) noexcept
      : file_(file), offset_(offset) {}

  // ENOSPC if the file system has no room; the rest as memory_source.
  result<memory_mapping> map(const memory_request& request) override;
  result<> commit(std::span<std::byte> part, page_backing backing) override;
  result<> discard(std::span<std::byte> part) override;
  const char* huge_page_advice() const noexcept override;

 private:
  std::uint64_t offset_of(std::span<std::byte> part) const noexcept {
    return offset_ + static_cast<std::uint64_t>(part.data() - start_);
  }

  const kept_memory& file_;
  const std::uint64_t offset_;
  std::byte* start_ = nullptr;  // of the mapping; set once, by map()
};

// What tells a file from all others, and whether it has been changed.
struct file_identity {
  std::uint64_t device = 0;       // of a block device: its own number
  std::uint64_t inode = 0;        // the same: how many disks were attached before (diskseq), or 0
  std::uint64_t size_bytes = 0;   // 0 of a block device
  std::uint64_t modified_ns = 0;  // 0 of a block device
  bool same_file(const file_identity& o) const noexcept {
    return device == o.device && inode == o.inode;
  }
};

// Errors: errno of stat(2); errc::not_a_device.
result<file_identity> identity_of(const std::string& path);

}  // namespace forebay
