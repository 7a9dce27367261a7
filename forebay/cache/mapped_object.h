// A mapped object: bytes that lie in pieces on a device, such as a file's, behind the page cache.
//
//   mapped_object ── size, who may write
//     └ address_space ── its pages, and all that moves them
//         └ object_device ── which bytes lie where: asks the mapping, remembers
//             ├ extent_mapping or block_mapping, the user's
//             └ device
//
// What has no block reads as zeros, without I/O. A write to it reserves room first (ENOSPC says so
// to the writer), and gets its blocks when it is written back: as long a run at a time as waits to
// be written, so that what was written in small pieces lies in one. The object grows by writes
// beyond its end; the bytes between the old end and the new data are zeros, on the device too.
//
//   struct flat : extent_mapping { … };          // mapping.h
//   mapped_object file(*cache, *dev, mapping, {.size_bytes = inode.size});
//   co_await file.write(0, bytes);
//   co_await file.flush();                       // data, then commit(), then the device's cache
//
// The pages are those of space(): pins, views, extents and the flusher are had there, and nothing
// is written, discarded or emptied there. The space is as large as the object may ever be; pages,
// and the bytes of the last one, beyond its size read as zeros.
//
// Large pages want blocks of 4 KiB and the extent path.
//
// Errors: the device's, the mapping's, EUCLEAN for a mapping that lies (mapping.h), EFBIG beyond
// the largest size; of write-back they are kept with the data and told to every flush until they
// are mended, as of any space. ENOMEM if there is no memory for a task.
//
// Lock order: writers_ (shared by who writes inside the size; alone: who changes it, or takes
// blocks away), then what object_device.h says.
//
// Thread-safety: any thread that has an executor. Reads, writes and the rest may be under way
// together; of a read beside a write of the same bytes each 4 KiB is what it was or is.
#pragma once

#include "forebay/cache/address_space.h"
#include "forebay/cache/object_device.h"

namespace forebay {

struct mapped_object_statistics {
  std::uint64_t map_calls = 0;  // to the mapping, for an extent or a block
  std::uint64_t lies = 0;       // answers that could not be
  std::size_t extents_known = 0;
};

class mapped_object {
 public:
  struct options {
    std::uint64_t size_bytes = 0;                      // at most max_bytes
    std::uint64_t max_bytes = std::uint64_t{1} << 40;  // a multiple of 4 KiB
    std::uint32_t block_bytes = 4096;                  // of the object and its mapping
    std::uint64_t readahead_bytes = 0;                 // as address_space::options
    unsigned max_page_order = 0;                       // likewise
    std::size_t known_extents_max = 256;               // that are remembered, 48 bytes each
    // The device's own space, if there is one: what is dirty there of a block that has just become
    // the object's is forgotten. With blocks below 4 KiB it has no large pages, and what is written
    // there goes through the block API.
    address_space* device_space = nullptr;
  };

  mapped_object(page_cache& cache, device& dev, extent_mapping& mapping, const options& opts)
      : mapped_object(cache, dev, &mapping, nullptr, opts) {}
  mapped_object(page_cache& cache, device& dev, block_mapping& mapping, const options& opts)
      : mapped_object(cache, dev, nullptr, &mapping, opts) {}

  std::uint64_t size_bytes() const noexcept { return device_.size_bytes(); }
  std::uint64_t max_bytes() const noexcept { return device_.limits().size_bytes; }
  address_space& space() noexcept { return space_; }

  // Copies out what there is of the range, and returns how many bytes: fewer than asked for at the
  // object's end.
  task<std::size_t> read(std::uint64_t offset, std::span<std::byte> out);

  // Writes into the cache. Errors: ENOSPC and whatever else reserving said; as
  // address_space::write(). The bytes before the failure are written, and the size says so.
  task<> write(std::uint64_t offset, std::span<const std::byte> data);

  // Sets the size. Blocks behind a smaller one are unmapped; if that fails nothing has changed.
  // After another error the size is the new one.
  task<> truncate(std::uint64_t size_bytes);

  // Makes a range read as zeros, whole blocks of it as holes. A failure of unmapping changes
  // nothing.
  task<> punch(std::uint64_t offset, std::uint64_t length);

  // Makes durable all that was written, and the size, from before the call.
  task<> flush() { return space_.flush(); }
  // The same for a range, which may be empty: then for what was mapped and the size.
  task<> sync_range(std::uint64_t offset, std::uint64_t length);

  // Extents from `offset` on, as the mapping reports them (Linux: FIEMAP), neighbours that are one
  // joined; as many as `out` has room for, up to the end of the range or of the object.
  task<std::size_t> extents(std::uint64_t offset, std::uint64_t length,
                            std::span<mapped_extent> out);

  // For a mapping that has changed by itself: the range is asked for again. What is cached stays.
  task<> forget_mapping(std::uint64_t offset, std::uint64_t length) {
    return device_.forget(offset, length);
  }

  mapped_object_statistics statistics() const noexcept {
    return {device_.map_calls(), device_.lies(), device_.extents_known()};
  }

 private:
  mapped_object(page_cache& cache, device& dev, extent_mapping* extents, block_mapping* blocks,
                const options& opts);

  task<> write_alone(std::uint64_t offset, std::span<const std::byte> data, bool growing);
  task<std::size_t> write_piece(std::uint64_t offset, std::span<const std::byte> data);
  task<> before_growth(std::uint64_t offset, std::uint64_t end);
  task<> truncate_alone(std::uint64_t size_bytes);
  task<> punch_alone(std::uint64_t offset, std::uint64_t end);
  task<> zero(std::uint64_t from, std::uint64_t end);
  task<bool> pin_tail(std::uint64_t offset, page_ref& tail);
  void set_size(std::uint64_t bytes) noexcept;
  std::uint64_t block_end(std::uint64_t offset) const noexcept;

  const std::uint32_t block_bytes_;
  object_device device_;
  address_space space_;
  const std::uint64_t piece_bytes_;  // that are reserved and written at a time
  shared_gate writers_;
  bool tail_is_zero_ = false;  // from the size to the end of its block; by who is alone
};

}  // namespace forebay
