// Files that are read or written from the front to the end, through the kernel's cache: regular
// ones, pipes, devices.
//
// Thread-safety: none of its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "forebay/os/fd.h"

namespace forebay {

class stream_file {
 public:
  // Opens for reading; "-" is the standard input. Errors: errno of open(2), EISDIR.
  static result<stream_file> open(const std::string& path);
  // Creates or empties a file for writing. Errors: errno of open(2), EISDIR.
  static result<stream_file> create(const std::string& path);

  int fd() const noexcept { return fd_.get(); }

  // As much as there is, at most as `to` has room for; 0 at the end. Errors: errno of read(2).
  result<std::size_t> read(std::span<std::byte> to) const noexcept;
  // All of it. Errors: errno of write(2), after which a part may have been written.
  result<> write(std::span<const std::byte> data) const noexcept;
  // Cuts the file behind so many bytes, and goes on from there.
  result<> cut(std::uint64_t bytes) const noexcept;

 private:
  explicit stream_file(unique_fd fd) noexcept : fd_(std::move(fd)) {}

  unique_fd fd_;
};

}  // namespace forebay
