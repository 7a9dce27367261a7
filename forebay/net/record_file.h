// One file of a recording, written from the front to the end through a page cache.
//
//    append() ──> whole pages ──> address space ──> write-back ──> [device] ──> file_device
//                 └ the rest is carried to the next append()                    (O_DIRECT)
//
// The device in brackets is for tests: a medium that is slow, hangs or fails (fault_device).
//
// Nothing is written twice and nothing is read: pages are written when they are full. Room for what
// comes is allocated ahead of it, so that a full disk shows before the data is taken, and the file
// can end behind whatever was taken. At the end the file gets the size that it has reached.
//
// A file system without allocation in advance, or a medium that fails, shows during write-back. The
// file then ends behind the last append() of which nothing is missing.
//
// Thread-safety: all of it belongs to the thread of the loop on which start() was called.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "forebay/block/file_device.h"
#include "forebay/cache/address_space.h"

namespace forebay {

class record_file {
 public:
  static constexpr std::uint64_t bytes_max = std::uint64_t{8} << 40;

  // Makes the device that write-back sees, over the one that it is given and that outlives it.
  using device_over = std::function<std::unique_ptr<device>(device&)>;

  // Makes the file, or empties it. Errors: as file_device::open; errc::not_a_device for what is
  // not a regular file.
  static result<std::unique_ptr<record_file>> create(const std::string& path, page_cache& cache,
                                                     const device_over& over = {});
  // finish() must have ended, or start() not been called.
  ~record_file();
  record_file(const record_file&) = delete;
  record_file& operator=(const record_file&) = delete;

  // Starts the write-back, on the calling thread's loop. ENOMEM.
  result<> start();

  // Writes whole blocks, with so many packets. Errors, after which nothing of it is in the file:
  // ENOSPC, EFBIG, those of the device.
  task<> append(std::span<const std::byte> blocks, std::uint64_t packets);

  // Writes a last block, for which there is always room, makes everything durable and gives the
  // file its size. Once. Error: the device's, if the file ends earlier than what was appended.
  task<> finish(std::span<const std::byte> last_block);

  const std::string& path() const noexcept { return path_; }
  // Appended, and after finish() what is in the file.
  std::uint64_t bytes() const noexcept { return bytes_; }
  std::uint64_t packets() const noexcept { return packets_; }
  bool direct() const noexcept { return device_->limits().direct; }

 private:
  static constexpr std::size_t unit_bytes = 64 << 10;  // what is written at a time, at least
  static constexpr std::uint64_t allocation_bytes = 64u << 20;
  static constexpr std::size_t last_block_bytes_max = 4096;

  // Where an append() ended, and how many packets there were until then.
  struct boundary {
    std::uint64_t bytes;
    std::uint64_t packets;
  };

  record_file(std::string path, std::unique_ptr<file_device> dev, std::unique_ptr<device> over,
              page_cache& cache);

  task<> allocate(std::uint64_t until);
  task<> put(std::span<const std::byte> data);
  task<> write_rest();
  void end_at_first_gap();

  const std::string path_;
  const std::unique_ptr<file_device> device_;
  const std::unique_ptr<device> over_;  // null: write-back sees device_
  std::optional<address_space> space_;  // gone after finish()
  task_group flusher_;
  std::vector<std::byte> carried_;  // less than unit_bytes, not written yet
  std::uint64_t written_ = 0;       // to the space, a multiple of unit_bytes before the end
  std::uint64_t bytes_ = 0;         // written_ + carried_.size()
  std::uint64_t packets_ = 0;
  std::uint64_t allocated_ = 0;
  bool allocates_ = true;  // the file system can
  std::vector<boundary> boundaries_;
};

}  // namespace forebay
