// Buffer heads: the state of the blocks of a page, as Linux's struct buffer_head.
//
//   page.private_data ──> bh 0 ──> bh 1 ──> … ──> bh n-1 ──+      one for each block, in a circle,
//                          ^                               |      apart from the data
//                          +───────────────────────────────+
//
// A page needs them only while its blocks differ: a page without buffer heads has all its blocks in
// the state of its flags (uptodate, dirty). Once attached they hold the truth, and the page's flags
// say: uptodate exactly if every block is, dirty if any block is. They stay with the page until it
// leaves the cache.
//
// Guards: state is atomic; its bits change under the page lock, or in the completion of the I/O
// that async_read or async_write announces. All other fields are set before the buffers are
// published through page.private_data, and change only with the page's frame (move_buffers), when
// nobody can see them.
#pragma once

#include <atomic>
#include <cstdint>

#include "forebay/base/refcount.h"
#include "forebay/memory/page.h"
#include "forebay/memory/slab.h"

namespace forebay {

class device;

// Bits of buffer_head::state (D2).
enum bh_state : std::uint32_t {
  bh_uptodate = 1u << 0,     // holds valid data
  bh_dirty = 1u << 1,        // newer than the device
  bh_lock = 1u << 2,         // owned by an operation
  bh_req = 1u << 3,          // has been submitted for I/O
  bh_mapped = 1u << 4,       // block_number is a place on the device
  bh_new = 1u << 5,          // the block was just allocated: nothing of it on the device is of use
  bh_async_read = 1u << 6,   // under read, as part of a page
  bh_async_write = 1u << 7,  // under write-back, as part of a page
  bh_delay = 1u << 8,        // no block on the device yet
  bh_boundary = 1u << 9,     // the next block is not adjacent to this one
  bh_private_start = 1u << 10,  // this bit and all above belong to the user of the library
};

struct buffer_head {
  std::atomic<std::uint32_t> state{0};
  std::uint32_t size_bytes = 0;
  refcount count{1};                 // the page's own; more for who uses the buffer
  buffer_head* this_page = nullptr;  // next of the circle
  page* frame = nullptr;
  std::uint64_t block_number = 0;  // in units of size_bytes
  std::byte* data = nullptr;
  device* dev = nullptr;
  void (*end_io)(buffer_head&, std::int32_t status) noexcept = nullptr;
  void* private_data = nullptr;
  list_node assoc_buffers;  // of the mapping that it is associated with

  // acquire: who sees uptodate sees the data.
  bool test(std::uint32_t mask) const noexcept {
    return (state.load(std::memory_order_acquire) & mask) != 0;
  }
  void set(std::uint32_t mask) noexcept {
    state.fetch_or(mask, std::memory_order_release);  // release: pairs with test
  }
  void clear(std::uint32_t mask) noexcept {
    state.fetch_and(~mask, std::memory_order_release);  // release: pairs with test
  }
};

using buffer_cache = object_cache<buffer_head>;

// The first buffer of a page, null if it has none. The caller holds a reference on the page.
buffer_head* page_buffers(const page& p) noexcept;

// Gives a page buffers of `block_bytes` (512 to the page size, a power of two), mapped to
// consecutive blocks of `dev`, in the state that the page's flags have. The caller holds the page
// lock. False, and nothing changes, without memory.
[[nodiscard]] bool create_empty_buffers(page& p, buffer_cache& heads, device& dev,
                                        std::uint32_t block_bytes) noexcept;

// Frees a page's buffers; the caller is the page's only user (its count is frozen) and none of them
// is in use.
void drop_buffers(page& p, buffer_cache& heads) noexcept;

// Gives the buffers of a page to another frame that is to take its place and has its contents. The
// caller is the only user of both (the page's count is frozen). False, and nothing changes, if one
// of the buffers is in use.
[[nodiscard]] bool move_buffers(page& from, page& to) noexcept;

// Whether bytes [from, to) of a page are valid. The caller holds a reference.
bool is_uptodate(const page& p, std::size_t from, std::size_t to) noexcept;

// Marks the blocks that lie wholly in [from, to) uptodate, and the page when with them all of its
// blocks before `valid_bytes` are. The caller holds the page lock.
void set_uptodate(page& p, std::size_t from, std::size_t to, std::size_t valid_bytes) noexcept;

// Calls f(from, to) for each stretch of neighbouring blocks inside [from, to) for which
// pred(buffer) holds; block-aligned.
template <typename Predicate, typename F>
void for_each_run(const page& p, std::size_t from, std::size_t to, Predicate pred, F f) {
  buffer_head* const first = page_buffers(p);
  std::size_t run = SIZE_MAX;
  std::size_t at = 0;
  buffer_head* b = first;
  do {
    const bool in = at + b->size_bytes > from && at < to && pred(*b);
    if (in && run == SIZE_MAX) run = at;
    if (!in && run != SIZE_MAX) {
      f(run, at);
      run = SIZE_MAX;
    }
    at += b->size_bytes;
    b = b->this_page;
  } while (b != first);
  if (run != SIZE_MAX) f(run, at);
}

// Calls f(buffer) for each buffer that touches [from, to).
template <typename F>
void for_each_buffer(const page& p, std::size_t from, std::size_t to, F f) {
  buffer_head* const first = page_buffers(p);
  std::size_t at = 0;
  buffer_head* b = first;
  do {
    buffer_head* const next = b->this_page;
    if (at + b->size_bytes > from && at < to) f(*b);
    at += b->size_bytes;
    b = next;
  } while (b != first);
}

}  // namespace forebay
