// Memory that two processes share: a memfd, sealed, and its mapping.
//
//    create()  memfd ── seal: never shorter, never longer ── map      send fd() to the other
//    process open()    fd from the other process ── check seals ── map        (see fd_passing.h)
//
// What is mapped can be changed by the other process at any time, so whoever reads it must copy a
// word once and check the copy. What the other process cannot do is take the memory away: a file
// that could be truncated would end this process with SIGBUS at the next touch, so open() accepts
// only files that are sealed against it (F_SEAL_SHRINK). Holes that it punches read as zeros.
// Files of huge pages are refused, because there a hole may find the pool empty when it is filled
// again, which is SIGBUS once more.
//
// An object is plain data, moved but not copied; it needs no lock.
#pragma once

#include <cstddef>
#include <span>

#include "forebay/os/fd.h"

namespace forebay {

class shared_memory {
 public:
  static constexpr std::size_t bytes_max = std::size_t{1} << 40;

  // Zeroed memory of `bytes`, rounded up to whole pages, all of it allocated and its size sealed.
  // `name` is seen in /proc/PID/maps. Errors: errc::too_small for 0 bytes, errc::too_large above
  // bytes_max, ENOMEM, ENOSPC, errno of memfd_create(2).
  static result<shared_memory> create(const char* name, std::size_t bytes);

  // Maps all of a file that another process made; takes the descriptor over. Errors, the descriptor
  // is closed then: EINVAL if it is no file with seals, EPERM if it is not sealed against
  // shrinking, ENOTSUP if it is of huge pages, errc::too_small below `least_bytes`, errc::too_large
  // above `most_bytes`, EACCES if it cannot be written, errno of mmap(2).
  static result<shared_memory> open(unique_fd fd, std::size_t least_bytes,
                                    std::size_t most_bytes = bytes_max);

  shared_memory(shared_memory&& other) noexcept
      : fd_(std::move(other.fd_)), memory_(std::exchange(other.memory_, {})) {}
  shared_memory& operator=(shared_memory&& other) noexcept {
    std::swap(fd_, other.fd_);
    std::swap(memory_, other.memory_);
    return *this;
  }
  ~shared_memory();

  // Aligned to pages.
  std::span<std::byte> memory() const noexcept { return memory_; }
  int fd() const noexcept { return fd_.get(); }

 private:
  shared_memory(unique_fd fd, std::span<std::byte> memory) noexcept
      : fd_(std::move(fd)), memory_(memory) {}
  static result<shared_memory> map(unique_fd fd, std::size_t bytes);

  unique_fd fd_;
  std::span<std::byte> memory_;
};

}  // namespace forebay
