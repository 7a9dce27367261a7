// Buffer heads: the state of the blocks of a page, as Linux's struct buffer_head.
//
//   page.private_data ──> bh 0 ──> bh 1 ──> … ──> bh n-1 ──+      one for each block, in a circle,
//                          ^                               |      apart from the data
//                          +───────────────────────────────+
//
// A page needs them only while its blocks differ, or while somebody uses them as blocks
// (cache/block_api.h): a page without buffer heads has all its blocks in the state of its flags
// (uptodate, dirty). Once attached they hold the truth. They stay with the page until it leaves the
// cache, or until somebody wants blocks of another size of it (replace_buffers).
//
// Invariants, for the blocks that lie inside the device:
//  1. page_uptodate is set exactly if bh_uptodate is set on every one of them (set_uptodate,
//     set_buffer_uptodate). Neither is cleared while the page is in the cache.
//  2. page_dirty, or page_writeback, is set if bh_dirty is set on any of them.
//  3. page_writeback is set if bh_async_write is set on any of them.
//  4. bh_async_read and bh_async_write come and go together with bh_lock.
//  5. A buffer's data changes only under its bh_lock or under the page lock with bh_lock clear: so
//     who has either has the bytes alone, and what is being written is stable.
//
// Who uses a buffer holds a reference on its page, and that is the buffer's use count: the buffers
// of a page come and go together, with nobody but the index holding the page (its count frozen).
// get_bh(), put_bh() and bh_ref (cache/buffer_lru.h) count there.
//
// Guards: state is atomic. bh_lock is set under the page lock only, so who holds the page lock sees
// no buffer become locked; it may be cleared at any time by who set it. bh_uptodate is set under
// the page lock or bh_lock; bh_dirty under the page lock or bh_lock, together with the address
// space's lock_. assoc_buffers and assoc_map belong to the space's lock_. All other fields are set
// before the buffers are published through page.private_data, and change only with the page's frame
// (move_buffers), when nobody can see them; but end_io, which belongs to who has set bh_lock, and
// private_data and the bits from bh_private_start on, which belong to the user.
//
// Order: who holds bh_lock may take the page lock. Who holds the page lock never waits for bh_lock:
// it gives the page lock back first (see page_wait.h).
#pragma once

#include <atomic>
#include <cstdint>
#include <span>

#include "forebay/cache/page_wait.h"
#include "forebay/memory/page.h"
#include "forebay/memory/slab.h"

namespace forebay {

class associated_buffers;
class device;

// Bits of buffer_head::state, with the kernel's meaning, and what sets each here.
enum bh_state : std::uint32_t {
  bh_uptodate = 1u << 0,  // holds valid data: read, or written as a whole
  bh_dirty = 1u << 1,     // newer than the device: mark_buffer_dirty(), writes of the page
  bh_lock = 1u << 2,      // owned by an operation: lock_buffer(), or I/O on it
  bh_req = 1u << 3,       // has been submitted for I/O, ever: set with every I/O
  // block_number is a place on the device: create_empty_buffers(), or who maps blocks (a get_block
  // of the user, mapping.h).
  bh_mapped = 1u << 4,
  // The block was just allocated, nothing of it on the device is of use: set by who maps blocks;
  // its write-back clears it.
  bh_new = 1u << 5,
  bh_async_read = 1u << 6,      // under read, as part of a page: misses (fill.cc)
  bh_async_write = 1u << 7,     // under write-back, as part of a page (writeback.cc)
  bh_delay = 1u << 8,           // no block on the device yet: set by who maps blocks
  bh_boundary = 1u << 9,        // the next block is not adjacent to this one: the same
  bh_write_error = 1u << 10,    // the last write failed; it is dirty again
  bh_waiters = 1u << 11,        // somebody waits for bh_lock to clear
  bh_unwritten = 1u << 12,      // it has a block, which reads as zeros until it has been written
  bh_private_start = 1u << 16,  // this bit and all above belong to the user of the library
};

struct buffer_head {
  std::atomic<std::uint32_t> state{0};
  std::uint32_t size_bytes = 0;
  buffer_head* this_page = nullptr;  // next of the circle
  page* frame = nullptr;             // whose reference count is the use count
  std::uint64_t block_number = 0;    // in units of size_bytes
  std::byte* data = nullptr;
  device* dev = nullptr;
  // Ends the I/O that is under way: 0 or a negative errno. From the executor that submitted it.
  void (*end_io)(buffer_head&, std::int32_t status) noexcept = nullptr;
  void* private_data = nullptr;             // of the user
  list_node assoc_buffers;                  // of assoc_map
  associated_buffers* assoc_map = nullptr;  // what it is to be written with, null if nothing

  // acquire: who sees uptodate sees the data.
  bool test(std::uint32_t mask) const noexcept {
    return (state.load(std::memory_order_acquire) & mask) != 0;
  }
  // Return the state as it was.
  std::uint32_t set(std::uint32_t mask) noexcept {
    // acq_rel: release pairs with test; acquire, as who sets bh_lock sees its last holder's work.
    return state.fetch_or(mask, std::memory_order_acq_rel);
  }
  std::uint32_t clear(std::uint32_t mask) noexcept {
    return state.fetch_and(~mask, std::memory_order_acq_rel);  // acq_rel: as in set
  }

  std::uint64_t offset_bytes() const noexcept { return block_number * size_bytes; }
  std::span<std::byte> bytes() const noexcept { return {data, size_bytes}; }
};

// One more use of a buffer that the caller uses already, and the end of one.
inline void get_bh(buffer_head& b) noexcept { b.frame->refs().get(); }
inline void put_bh(buffer_head& b) noexcept { put_page(*b.frame); }

// End the I/O of a buffer that is locked for it, with 0 or a negative errno: values of end_io. The
// kernel's functions of these names, fs/buffer.c.
//   end_buffer_read_sync    one buffer by itself: uptodate if it was read, and unlocked
//   end_buffer_async_read   one of several of a page whose lock is held: the last unlocks the page
//   end_buffer_async_write  one of several of a page under write-back: dirty again if it was not
//                           written; the last ends the page's write-back
void end_buffer_read_sync(buffer_head& b, std::int32_t status) noexcept;
void end_buffer_async_read(buffer_head& b, std::int32_t status) noexcept;
void end_buffer_async_write(buffer_head& b, std::int32_t status) noexcept;

// Clears bh_lock and other bits of a buffer that the caller has locked, and wakes who waits.
inline void unlock_buffer(buffer_head& b, std::uint32_t and_bits = 0) noexcept {
  const page& p = *b.frame;  // the buffer may go with the lock
  if ((b.clear(bh_lock | and_bits) & bh_waiters) == 0) return;
  b.clear(bh_waiters);
  page_wait_queue(p).wake_all();
}

// co_await wait_until_unlocked(b): suspends while bh_lock is set; a hint, look again. The caller
// uses the buffer or holds its page.
inline auto wait_until_unlocked(buffer_head& b) noexcept {
  return page_wait_queue(*b.frame).wait_unless([&b]() noexcept {
    // As wait_until_clear(): the bit first, then the look.
    return ((b.set(bh_waiters) | bh_waiters) & bh_lock) == 0;
  });
}

using buffer_cache = object_cache<buffer_head>;

// The first buffer of a page, null if it has none. The caller holds a reference on the page.
buffer_head* page_buffers(const page& p) noexcept;

// A circle of buffers of `block_bytes` (512 to the page size, a power of two) for a page, all clean
// and without data, numbered as the page's blocks in its space; nobody sees them yet. Null without
// memory.
[[nodiscard]] buffer_head* alloc_page_buffers(page& p, buffer_cache& heads, device& dev,
                                              std::uint32_t block_bytes) noexcept;

// Gives a page buffers, in the state that the page's flags have: mapped, that is to the consecutive
// blocks of `dev`, or not yet, for who maps blocks. The caller holds the page lock. False, and
// nothing changes, without memory.
[[nodiscard]] bool create_empty_buffers(page& p, buffer_cache& heads, device& dev,
                                        std::uint32_t block_bytes, bool mapped = true) noexcept;

// Frees a page's buffers; the caller is the page's only user (its count is frozen) and none of them
// is associated with anything.
void drop_buffers(page& p, buffer_cache& heads) noexcept;

// Gives a page that has clean buffers of one size such of another, in the state that their bytes
// have: a block is uptodate if all of it was. What the user kept in the old ones is gone. The
// caller is the page's only user and holds its lock; none of its buffers is locked or associated.
// False, and nothing changes, without memory.
[[nodiscard]] bool replace_buffers(page& p, buffer_cache& heads, device& dev,
                                   std::uint32_t block_bytes) noexcept;

// Gives the buffers of a page to another frame that is to take its place and has its contents. The
// caller is the only user of both (the page's count is frozen). False, and nothing changes, if one
// of the buffers is locked.
[[nodiscard]] bool move_buffers(page& from, page& to) noexcept;

// A buffer that touches [from, to) of a page and has bh_lock, but none of the bits `without`; null
// if there is none. The caller holds a reference.
buffer_head* locked_buffer(const page& p, std::size_t from, std::size_t to,
                           std::uint32_t without = 0) noexcept;

// Whether bytes [from, to) of a page are valid. The caller holds a reference.
bool is_uptodate(const page& p, std::size_t from, std::size_t to) noexcept;

// Marks the blocks that lie wholly in [from, to) uptodate, and the page when with them all of its
// blocks before `valid_bytes` are. The caller holds the page lock.
void set_uptodate(page& p, std::size_t from, std::size_t to, std::size_t valid_bytes) noexcept;

// The same for one buffer, by who has locked it or its page.
void set_buffer_uptodate(buffer_head& b, std::size_t valid_bytes) noexcept;

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
