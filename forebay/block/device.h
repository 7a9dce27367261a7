// The block device interface.
#pragma once

#include <cstdint>
#include <string>

#include "forebay/base/growing_size.h"
#include "forebay/block/bio.h"
#include "forebay/os/file.h"
#include "forebay/ring/task.h"

namespace forebay {

struct device_limits {
  growing_size size_bytes;  // grows by follow_size() only
  std::uint32_t logical_block_bytes =
      512;  // offsets and lengths of reads and writes are multiples of it
  std::uint32_t physical_block_bytes = 4096;  // what the medium writes without reading
  std::uint32_t max_transfer_bytes = 1u << 20;
  std::uint32_t max_segments = bio::max_segments;  // of a read or write
  std::uint32_t boundary_bytes = 0;  // no read or write crosses a multiple of it; 0: none
  bool read_only = false;
  bool direct = true;           // not through the kernel's page cache
  bool may_have_holes = false;  // extent_at() is worth asking
};

// From an offset to the next place that a transfer may not cross.
inline std::uint64_t bytes_to_boundary(std::uint64_t offset, const device_limits& limits) noexcept {
  return limits.boundary_bytes == 0 ? UINT64_MAX
                                    : limits.boundary_bytes - offset % limits.boundary_bytes;
}

class device {
 public:
  device() noexcept = default;
  device(const device&) = delete;
  device& operator=(const device&) = delete;
  virtual ~device() = default;

  virtual const device_limits& limits() const noexcept = 0;

  // Starts `b` and never blocks on a thread with a loop; on a plain thread (under sync_wait) it
  // does the transfer on the spot. Ends with b queued on the calling thread's executor, b.status 0
  // or negative errno; ENOTSUP for a discard or write_zeroes that the device has no quick way for.
  // A failed write may have been done in part. Any thread that has an executor; bios in flight are
  // not ordered among each other.
  virtual void submit(bio& b) noexcept = 0;

  // How large the medium is now, in bytes. limits() say so from then on if it is more than before,
  // in whole logical blocks. One call at a time; whatever else is done meanwhile. Errors: errno.
  virtual result<std::uint64_t> follow_size() noexcept { return limits().size_bytes.get(); }

  // The extent at a byte offset below the size; all data where the device cannot tell.
  virtual result<file_extent> extent_at(std::uint64_t offset_bytes) const {
    static_cast<void>(offset_bytes);
    return file_extent{limits().size_bytes, false};
  }

  // A descriptor that a ring may register to save look-ups, -1 if there is none.
  virtual int registrable_fd() const noexcept { return -1; }

 protected:
  // Ends `b` with 0 or a negative errno.
  static void complete(bio& b, std::int32_t status) noexcept;
};

// co_await submit_and_wait(d, b): submits and resumes when it has ended; the value is b.status.
// Replaces b.run.
inline auto submit_and_wait(device& d, bio& b) noexcept {
  class awaiter {
   public:
    awaiter(device& dev, bio& request) noexcept : device_(dev), bio_(request) {}
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> h) noexcept {
      bio_.private_data = h.address();
      bio_.run = [](completion& c) noexcept {
        std::coroutine_handle<>::from_address(static_cast<bio&>(c).private_data).resume();
      };
      device_.submit(bio_);
    }
    std::int32_t await_resume() const noexcept { return bio_.status; }

   private:
    device& device_;
    bio& bio_;
  };
  return awaiter(d, b);
}

// -EINVAL for a bio outside of the device or misaligned; -EROFS for a change to a read-only device;
// 0 otherwise.
std::int32_t check_range(const bio& b, const device_limits& limits) noexcept;

// Whether it is within what a device does in one transfer.
inline bool fits_transfer(const bio& b, const device_limits& limits) noexcept {
  return b.length_bytes <= limits.max_transfer_bytes && b.segment_count <= limits.max_segments &&
         b.length_bytes <= bytes_to_boundary(b.offset_bytes, limits);
}

// As check_range; -EINVAL as well for a read or write that does not fit a transfer.
std::int32_t check_bio(const bio& b, const device_limits& limits) noexcept;

}  // namespace forebay
