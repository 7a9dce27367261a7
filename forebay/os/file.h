// Files and block devices: the few calls that the block layer needs, each a result.
//
// `block_file` is the seam: the file device is written over anything that satisfies the BlockFile
// concept, so that a simulated file can stand in.
#pragma once

#include <sys/uio.h>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "forebay/base/growing_size.h"
#include "forebay/os/fd.h"

namespace forebay {

// What a file says of itself.
struct file_geometry {
  growing_size size_bytes;                     // see block_file::follow_size()
  std::uint32_t logical_block_bytes = 512;     // smallest aligned unit that direct I/O accepts
  std::uint32_t physical_block_bytes = 4096;   // unit that the medium writes without a read
  std::uint32_t memory_alignment_bytes = 512;  // alignment that direct I/O asks of buffers
  bool is_block_device = false;
  bool is_sparse = false;  // fewer blocks allocated than its size needs
  bool direct = false;     // opened with O_DIRECT
};

// A stretch of a file that is a hole, or is not.
struct file_extent {
  std::uint64_t end_bytes = 0;  // first byte past it
  bool hole = false;
};

enum class zero_mode {
  deallocate,      // give the blocks back; reads as zeros
  keep_allocated,  // zeros, blocks stay allocated
};

class block_file {
 public:
  struct options {
    bool read_only = false;
    bool direct = true;
    bool create = false;  // an empty regular file if there is none
    // A regular file that is shorter counts as so large, a multiple of 4096: writes make it longer,
    // and what is beyond its end is a hole. 0: it is as large as it is.
    std::uint64_t grow_to_bytes = 0;
  };

  // Opens a regular file or block device, takes an exclusive lock on it (shared if read-only;
  // errc::in_use if somebody else holds it) and reads its geometry. Where O_DIRECT is refused the
  // file is opened without; geometry().direct tells. Errors: errno of open(2), errc::not_a_device,
  // errc::empty_device, errc::in_use.
  static result<block_file> open(const std::string& path, options opts);

  block_file(block_file&&) noexcept = default;
  block_file& operator=(block_file&&) noexcept = default;
  // Gives up the lock and closes.
  ~block_file();

  int fd() const noexcept { return fd_.get(); }
  const file_geometry& geometry() const noexcept { return geometry_; }

  // Whole-length vectored transfer at a byte offset; short transfers are carried on. Errors: errno;
  // EIO at an unexpected end of file. `flags` are RWF_ flags of pwritev2(2).
  result<> read(std::span<iovec> segments, std::uint64_t offset_bytes) const;
  result<> write(std::span<iovec> segments, std::uint64_t offset_bytes, int flags) const;

  // fdatasync(2).
  result<> sync() const;

  // Makes the range read as zeros without writing it. ENOTSUP if the file system cannot.
  result<> zero(std::uint64_t offset_bytes, std::uint64_t length_bytes, zero_mode mode) const;

  // Gives a regular file this size; what was behind is gone. Errors: errno of ftruncate(2).
  result<> set_size(std::uint64_t bytes) const;

  // How large the file or device is now, in bytes. The geometry has that size from then on if it is
  // more than before: what somebody cut off is not there to be read, but stays in the geometry. One
  // call at a time; whatever else is done meanwhile. Errors: errno of lseek(2).
  result<std::uint64_t> follow_size() noexcept;

  // The extent that holds `offset_bytes` (SEEK_DATA, SEEK_HOLE); all data where the file system
  // cannot tell.
  result<file_extent> extent_at(std::uint64_t offset_bytes) const;

 private:
  block_file(unique_fd fd, const file_geometry& geometry) noexcept
      : fd_(std::move(fd)), geometry_(geometry) {}

  unique_fd fd_;
  file_geometry geometry_;
};

template <typename F>
concept BlockFile = requires(const F& f, std::span<iovec> segments) {
  { f.fd() } -> std::same_as<int>;
  { f.geometry() } -> std::convertible_to<const file_geometry&>;
  { f.read(segments, 0ull) } -> std::same_as<result<>>;
  { f.write(segments, 0ull, 0) } -> std::same_as<result<>>;
  { f.sync() } -> std::same_as<result<>>;
  { f.zero(0ull, 0ull, zero_mode::deallocate) } -> std::same_as<result<>>;
  { f.extent_at(0ull) } -> std::same_as<result<file_extent>>;
};

static_assert(BlockFile<block_file>);

// Drops `done_bytes` from the front of a segment list, as after a short transfer; returns what is
// left.
std::span<iovec> advance_segments(std::span<iovec> segments, std::size_t done_bytes) noexcept;

}  // namespace forebay
