// A regular file or block device as a device: O_DIRECT where the file system grants it.
//
// On a thread that runs a loop, transfers go through its io_uring, with the arena's memory and the
// file registered where the loop has registered them. On a plain thread each is a direct
// synchronous system call.
//
// After a failed fdatasync of a file that is not direct, the kernel has dropped the dirty pages it
// could not write: no later success can be believed, so every later flush fails too. As the kernel
// reports such a loss only once, to whichever sync comes next, an FUA write is there a write and
// then a sync of its own, never RWF_DSYNC, which would leave open which of the two failed. A direct
// file has no such pages, its next flush is tried afresh.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "forebay/block/device.h"

namespace forebay {

class file_device final : public device {
 public:
  // Errors: as block_file::open.
  static result<std::unique_ptr<file_device>> open(const std::string& path,
                                                   block_file::options opts);

  const device_limits& limits() const noexcept override { return limits_; }
  void submit(bio& b) noexcept override;
  result<std::uint64_t> follow_size() noexcept override;
  result<file_extent> extent_at(std::uint64_t offset_bytes) const override;
  int registrable_fd() const noexcept override { return file_.fd(); }

  const file_geometry& geometry() const noexcept { return file_.geometry(); }

  // Gives the file, if it is a regular one, this size. For one that was opened to grow, when
  // nothing is under way. Errors: errno of ftruncate(2).
  result<> set_size(std::uint64_t bytes) { return file_.set_size(bytes); }

 private:
  explicit file_device(block_file file, bool read_only);

  void start(loop& on, bio& b) noexcept;
  void ended(bio& b, std::int32_t status) noexcept;
  void finish(bio& b, std::int32_t status) noexcept;
  result<> do_now(bio& b) noexcept;

  block_file file_;
  device_limits limits_;
  std::atomic<std::int32_t> lost_sync_{
      0};  // negative errno of the flush that lost data, 0 if none did
};

static_assert(BlockFile<block_file>);

}  // namespace forebay
