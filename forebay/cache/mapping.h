// What a user says of where the bytes of an object lie on a device: two ways of saying it.
//
//   extent_mapping   map(offset, length, why) -> one extent. What iomap is in Linux; any size of
//                    page, no buffer heads. The usual choice.
//   block_mapping    get_block(block, buffer, why), block by block, kept in the buffer heads of the
//                    object's pages. What get_block_t is; for who thinks in blocks, as ext2 does.
//
// A place of an object is in one of four states:
//
//            reserve           write_back             written()
//   hole ─────────────> delayed ─────────> mapped <──────────── unwritten
//     └───────────────────────────────────────────────────────────^   reserve may answer this
//
//   hole        no block; reads as zeros, without I/O
//   delayed     no block yet, but room for one is reserved: write-back asks which. Reads as zeros.
//   unwritten   has blocks, of which nothing is of use: reads as zeros until write-back has written
//               them and said so (written())
//   mapped      has blocks, and they hold its data
//
// Calls for one object come one at a time. They are made on whichever thread reads, writes or
// flushes it, often by write-back, which is to make memory free: so they must not wait for a dirty
// limit. A call may do I/O of its own, say bread() of its metadata, and locks buffers to change
// them by lock_buffer_unlimited(). It must not use the object itself, nor hold a buffer's lock when
// it ends.
//
// What is answered is checked; EUCLEAN, and nothing is done, for an answer that cannot be: of no
// length, not containing the place that was asked for, not in whole blocks of the object or of the
// device, past the device's end, over blocks that are known to belong to another place of the
// object, without blocks where there must be some, or against what was said before of the same
// place.
#pragma once

#include <cstdint>

#include "forebay/cache/buffer_head.h"
#include "forebay/ring/task.h"

namespace forebay {

enum class map_purpose : std::uint8_t {
  read,        // any state is an answer
  reserve,     // about to be written: anything but a hole. ENOSPC is told to the writer.
  write_back,  // the data is about to be written to the device: mapped or unwritten
  report,      // somebody wants to know; changes nothing
};

enum class extent_state : std::uint8_t { hole, delayed, mapped, unwritten };

struct mapped_extent {
  std::uint64_t offset_bytes = 0;  // in the object
  std::uint64_t length_bytes = 0;
  std::uint64_t device_offset_bytes = 0;  // of mapped and unwritten ones
  extent_state state = extent_state::hole;
  // The blocks were something else's a moment ago, say metadata's: what is dirty of them in the
  // device's own space is forgotten before they are written (Linux: IOMAP_F_NEW). With `reserve` an
  // extent that is new must be unwritten.
  bool is_new = false;
  // The answer for what comes behind it needs I/O: what is gathered is submitted first.
  bool boundary = false;

  std::uint64_t end_bytes() const noexcept { return offset_bytes + length_bytes; }
  bool has_blocks() const noexcept {
    return state == extent_state::mapped || state == extent_state::unwritten;
  }
};

// What both have. Offsets and lengths are bytes in the object, whole blocks of it.
class object_mapping {
 public:
  object_mapping() noexcept = default;
  object_mapping(const object_mapping&) = delete;
  object_mapping& operator=(const object_mapping&) = delete;
  virtual ~object_mapping() = default;

  // The data of an unwritten range is on the device: it is mapped from now on. On an error it is
  // written again some time.
  virtual task<> written(std::uint64_t offset, std::uint64_t length) {
    static_cast<void>(offset);
    static_cast<void>(length);
    co_return result<>{};
  }

  // The range is to be a hole; what was reserved for it is free. Nothing of it is being read or
  // written. May reach up to the largest size. On an error all is as before.
  virtual task<> unmap(std::uint64_t offset, std::uint64_t length) = 0;

  // Part of every flush, after the data has been written and before the device is flushed: makes
  // what has been answered durable, and the size. Blocks that were unmapped are free for others
  // when that is durable, not before.
  virtual task<> commit(std::uint64_t size_bytes) {
    static_cast<void>(size_bytes);
    co_return result<>{};
  }
};

class extent_mapping : public object_mapping {
 public:
  // The extent that `offset` lies in, which may begin before it and end behind, or before, the
  // length asked for. For write-back the length is all that is known to be reserved, or is dirty,
  // from there on without a gap, however little of it is about to be written (at most 64 MiB): who
  // gives all of it blocks that lie together has long extents.
  virtual task<mapped_extent> map(std::uint64_t offset, std::uint64_t length, map_purpose why) = 0;
};

class block_mapping : public object_mapping {
 public:
  // Maps one block of the object, in units of the object's blocks, which are those of the device
  // too: map_bh(b, number), if it has a block; with bh_unwritten or bh_new where that is so (a new
  // one reads as zeros until it has been written); bh_boundary, if the next block's answer needs
  // I/O or lies elsewhere. bh_delay, if room is reserved. Nothing of these: a hole. `b` is not
  // locked, and need not be of a page.
  virtual task<> get_block(std::uint64_t block, buffer_head& b, map_purpose why) = 0;
};

inline void map_bh(buffer_head& b, std::uint64_t block_number) noexcept {
  b.block_number = block_number;
  b.set(bh_mapped);
}

}  // namespace forebay
