// bio: one block I/O request over segments of memory, as Linux's struct bio.
//
//   offset_bytes .. offset_bytes + length_bytes of the device  <->  segments[0], segments[1], …
//
// A bio is a completion: submit it to a device, and it is run from the submitting thread's executor
// when it has ended, with `status` 0 or a negative errno. Segments are memory (usually page frames
// of an arena) that must stay valid and, for a write, unchanged until then. Neighbouring segments
// that are adjacent in memory become one.
//
// Ownership: the submitter owns the bio; the device owns it and the memory from submit() until it
// is run.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "forebay/dma/segment.h"
#include "forebay/os/file.h"
#include "forebay/ring/completion.h"

namespace forebay {

class device;

enum class bio_op : std::uint8_t {
  read,
  write,
  flush,         // everything that completed before is durable
  discard,       // contents no longer needed; reads as zeros afterwards where the device can
  write_zeroes,  // reads as zeros afterwards, whatever it takes
};

enum bio_flag : std::uint8_t {
  bio_fua = 1u << 0,       // the write is durable when it completes
  bio_no_unmap = 1u << 1,  // write_zeroes keeps the blocks allocated
};

struct bio : completion {
  static constexpr std::size_t max_segments = 32;

  bio() noexcept = default;
  bio(bio_op operation, std::uint64_t offset, std::uint8_t with_flags = 0) noexcept
      : op(operation), flags(with_flags), offset_bytes(offset) {}

  bio_op op = bio_op::read;
  std::uint8_t flags = 0;
  std::uint16_t segment_count = 0;
  std::uint64_t offset_bytes = 0;
  std::uint64_t length_bytes =
      0;  // sum of the segments; of the range, for discard and write_zeroes
  std::array<iovec, max_segments> segments;

  // Appends memory, if it has bytes; false, and nothing changes, if it would need one segment too
  // many.
  bool add(std::byte* data, std::size_t bytes) noexcept {
    if (bytes == 0) return true;
    if (segment_count != 0) {
      iovec& last = segments[segment_count - 1u];
      if (static_cast<std::byte*>(last.iov_base) + last.iov_len == data) {
        last.iov_len += bytes;
        length_bytes += bytes;
        return true;
      }
    }
    if (segment_count == max_segments) return false;
    segments[segment_count++] = {data, bytes};
    length_bytes += bytes;
    return true;
  }

  std::span<const iovec> used_segments() const noexcept { return {segments.data(), segment_count}; }
  std::uint64_t end_bytes() const noexcept { return offset_bytes + length_bytes; }

  // For the device that works on the bio: its own lower operation, and where it sees the segments.
  struct lower_operation : completion {
    bio* upper = nullptr;
    device* worker = nullptr;
    std::uint64_t done_bytes = 0;
    bool syncing = false;  // the transfer is over, what makes it durable is under way
    std::uint16_t mapped_count = 0;
    std::array<dma_segment, max_segments> mapped;  // the first mapped_count
  };
  lower_operation lower;

  // For the submitter.
  void* private_data = nullptr;
};

}  // namespace forebay
