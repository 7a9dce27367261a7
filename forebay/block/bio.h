// bio: one block I/O request over segments of memory, as Linux's struct bio.
//
//   offset_bytes .. offset_bytes + length_bytes of the device  <->  segments[0], segments[1], …
//
// A bio is a completion: submit it to a device, and it is run from the submitting thread's executor
// when it has ended, with `status` 0 or a negative errno. Segments are memory (usually page frames
// of an arena) that must stay valid and, for a write, unchanged until then. Neighbouring segments
// that are adjacent in memory become one.
//
// A bio can be cut without copying a byte: bio_cursor walks along its segments and makes other bios
// of the pieces, and bio_chain remembers how those ended (bio_split, bio_advance and bio_chain of
// Linux).
//
// Ownership: the submitter owns the bio; the device owns it and the memory from submit() until it
// is run.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "forebay/base/list.h"
#include "forebay/dma/segment.h"
#include "forebay/os/file.h"
#include "forebay/ring/completion.h"

namespace forebay {

class device;
class executor;
class request_queue;
struct device_limits;

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

// How urgent it is, the most urgent first; see request_queue.
enum class bio_class : std::uint8_t {
  demand,      // somebody waits for it
  write_back,  // somebody may come to wait
  read_ahead,  // nobody misses it
};
inline constexpr std::size_t bio_class_count = 3;

struct bio : completion {
  static constexpr std::size_t max_segments = 32;

  bio() noexcept = default;
  bio(bio_op operation, std::uint64_t offset, std::uint8_t with_flags = 0) noexcept
      : op(operation), flags(with_flags), offset_bytes(offset) {}

  bio_op op = bio_op::read;
  std::uint8_t flags = 0;
  bio_class urgency = bio_class::demand;
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

  // Drops all but the first `bytes`, at most length_bytes; of segments as well.
  void truncate(std::uint64_t bytes) noexcept;

  // Whether it moves data through its segments.
  bool is_transfer() const noexcept { return op == bio_op::read || op == bio_op::write; }

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

  // For the request queue that it is in (request_queue.h says what stands here).
  struct queue_entry {
    request_queue* queue = nullptr;      // null while it is in none
    completion::function run = nullptr;  // the submitter's
    executor* home = nullptr;            // where it is to be run
    bio* merged = nullptr;               // the next bio of the same request
    bio* last = nullptr;                 // of the request that it stands for
    std::uint64_t own_bytes = 0;         // length without those that were merged behind it
    std::uint64_t since_ns = 0;          // when it began to wait
    bool alone = false;                  // it was in a request that failed: it is not merged again
  };
  queue_entry queued;
  list_node queue_link;

  // For the submitter.
  void* private_data = nullptr;
};

// A place in the range of a transfer. The bio must stay as it is meanwhile.
class bio_cursor {
 public:
  explicit bio_cursor(const bio& of) noexcept : bio_(&of) {}

  std::uint64_t bytes_left() const noexcept { return bio_->length_bytes - done_bytes_; }

  // Goes on by `bytes`, at most bytes_left().
  void advance(std::uint64_t bytes) noexcept;

  // Makes `part`, which has no segments, the next piece: of the same kind, over the same memory, as
  // long as the limits let it be. Its length; 0, and nothing changes, if nothing is left or the
  // segments are too many for a single logical block.
  std::uint64_t take(bio& part, const device_limits& limits) noexcept;

 private:
  const bio* bio_;
  std::uint64_t done_bytes_ = 0;
  std::size_t segment_ = 0;     // the one that the place is in
  std::size_t in_segment_ = 0;  // bytes of it that are done
};

// How the pieces of a bio end: counts those under way and keeps the first error. One thread.
class bio_chain {
 public:
  void started() noexcept { ++under_way_; }
  void ended(std::int32_t status) noexcept {
    --under_way_;
    fail(status);
  }
  // Without a piece that could tell it.
  void fail(std::int32_t status) noexcept {
    if (status_ == 0) status_ = status;
  }
  unsigned under_way() const noexcept { return under_way_; }
  std::int32_t status() const noexcept { return status_; }

 private:
  unsigned under_way_ = 0;
  std::int32_t status_ = 0;
};

// Whether `back` may go in one transfer with `front`, which it continues.
bool can_merge(const bio& front, const bio& back, const device_limits& limits) noexcept;

}  // namespace forebay
