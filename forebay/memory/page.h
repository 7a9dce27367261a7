// The page frame: 52 bytes of state for each 4 KiB of an arena, as Linux's struct page.
//
//    multiple of 4 GiB
//    | frame_table | counts: 4 bytes a frame | frames: 48 bytes each |
//
// The references are counted apart from the rest of a frame: who finds a page in an index and pins
// it touches its count only. A GiB of pages has 1 MiB of counts, which stays in a CPU's cache, and
// 12 MiB of frames, which does not. Neighbouring frames count in different cache lines, so that
// CPUs which pin neighbouring pages do not take a line from each other.
//
// Frames are type-stable: an arena's array of them stays as long as the arena, so anybody may look
// at any frame at any time and try to take a reference; a frame that nobody owns has a count of
// zero and refuses.
//
// Life of a frame:
//
//    free (refs() 0, in the buddy allocator) -> allocated (refs() 1, owner null) -> in an index
//    (owner and number set, refs() 1 for the index) -> frozen (refs() 1 -> 0 in one step, taken off
//    the index) -> free
//
// Invariants: while somebody holds a reference, the frame's identity (owner, index) does not change
// from one non-null value to another. A reference taken on a guess is therefore good exactly if the
// identity, read after taking it, is the one that was looked for.
//
// A frame whose memory is with the operating system (offline, or not yet taken from it) has a count
// of zero as well, and so refuses too.
//
// A large page is a block of 2^order frames in an index: the head frame carries all of the state
// above for the whole block, and its number there is a multiple of 2^order. The frames behind the
// head have a count of zero and no owner; their private_data is the page's (cache/page_parts.h).
//
// Guards: refs(), flags, owner, index, private_data and uses are atomics; `link` belongs to the
// lock of the list it is on (arena when free, the page cache's list lock when cached), and so does
// `place` while cached; `order` is set by the arena while the block is free, and holds still while
// somebody has a reference: who has found the owner that he looked for may read it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "forebay/base/list.h"
#include "forebay/base/refcount.h"

namespace forebay {

class arena;

inline constexpr std::size_t page_bytes = 4096;
inline constexpr unsigned page_shift = 12;

// Bits of page::flags, with the kernel's meaning.
enum page_flag : std::uint32_t {
  page_locked = 1u << 0,      // its holder may change the data's state (fill, write, take it off)
  page_uptodate = 1u << 1,    // every byte of it is valid
  page_dirty = 1u << 2,       // some of it is newer than the device
  page_writeback = 1u << 3,   // being written to the device: its data must not change
  page_error = 1u << 4,       // the last write of it failed; it is still dirty
  page_waiters = 1u << 5,     // somebody waits for locked or writeback to clear
  page_viewed = 1u << 6,      // views of it are not counted any more; see address_space::try_view()
  page_private = 1u << 7,     // private_data leads to per-block state
  page_zero = 1u << 8,        // known to lie in a hole of the device: reads as zeros
  page_in_buddy = 1u << 9,    // head of a free block of `order`
  page_fixed = 1u << 10,      // head of a block that cannot be emptied at will (see buddy.h)
  page_isolated = 1u << 11,   // free, and kept off the buddy's lists with its chunk
  page_offline = 1u << 12,    // its memory has been given back to the operating system
  page_readahead = 1u << 13,  // its use asks for the next window of read-ahead
  page_unused = 1u << 14,     // read ahead, and nobody has used it yet
  page_young = 1u << 15,      // came since the clock of its full space last passed by
};

// log2 of a block's frames. Atomic, so that who only guesses may look; what orders it is the owner
// that is read before it, or the lock of the list that the block is on.
template <AtomicsPolicy Atomics>
class basic_page_order {
 public:
  // relaxed, both: see above. It reads as the number that it is.
  // NOLINTNEXTLINE(google-explicit-constructor)
  operator std::uint8_t() const noexcept { return value_.load(std::memory_order_relaxed); }
  basic_page_order& operator=(std::uint8_t order) noexcept {
    value_.store(order, std::memory_order_relaxed);  // relaxed: see above
    return *this;
  }

 private:
  typename Atomics::template atomic<std::uint8_t> value_{0};
};

// What the frames of an arena have in common.
struct frame_table {
  // Where it lies, so that it is found from any of its frames.
  static constexpr std::size_t alignment = std::size_t{1} << 32;
  // Frames whose counts lie among each other: those of a page of counts.
  static constexpr std::uint32_t count_group = 1024;

  arena* home;
  std::byte* data;   // the frames' memory
  refcount* counts;  // count_group of them for each count_group frames that there are, or fewer
  std::byte* frames;

  static const frame_table& of(const void* frame) noexcept {
    return *reinterpret_cast<const frame_table*>(reinterpret_cast<std::uintptr_t>(frame) &
                                                 ~(alignment - 1));
  }
  // Frame i of each 64 in a row counts in the i-th line of its group.
  refcount& count_of(std::uint32_t frame) const noexcept {
    const std::uint32_t i = frame % count_group;
    return counts[frame - i + i % 64 * 16 + i / 64];
  }
  static constexpr std::size_t count_bytes(std::uint32_t frames) noexcept {
    return (std::size_t{frames} + count_group - 1) / count_group * count_group * sizeof(refcount);
  }
};

// Where a frame's references are counted: beside it for the explorer.
template <AtomicsPolicy Atomics>
class counted_frame {
 public:
  basic_refcount<Atomics>& refs() noexcept { return refs_; }
  const basic_refcount<Atomics>& refs() const noexcept { return refs_; }

 private:
  basic_refcount<Atomics> refs_{0};
};

template <>
class counted_frame<real_atomics> {
 public:
  refcount& refs() const noexcept {
    const frame_table& table = frame_table::of(this);
    return table.count_of(number_in(table));
  }

 protected:
  static constexpr std::size_t frame_bytes = 48;
  // In its arena.
  std::uint32_t number_in(const frame_table& table) const noexcept {
    const auto distance =
        static_cast<std::size_t>(reinterpret_cast<const std::byte*>(this) - table.frames);
    return static_cast<std::uint32_t>(distance / frame_bytes);
  }
};

template <AtomicsPolicy Atomics = real_atomics>
struct basic_page : counted_frame<Atomics> {
  template <typename T>
  using atomic = typename Atomics::template atomic<T>;

  atomic<std::uint32_t> flags{0};
  basic_page_order<Atomics> order;      // of the block that this frame heads
  std::uint8_t place = 0;               // which of the eviction policy's queues it is in
  atomic<std::uint8_t> uses{0};         // hits since eviction last looked, up to uses_max
  atomic<void*> owner{nullptr};         // the index it is in, null if none
  atomic<std::uint64_t> index{0};       // its number there, in pages
  atomic<void*> private_data{nullptr};  // of the owner
  list_node link;

  static constexpr std::uint8_t uses_max = 3;

  // Counts a hit. Written only when it changes something: a hot page's line stays shared.
  void touch() noexcept {
    // relaxed: a hint for eviction. Of two hits at once one may be lost.
    const std::uint8_t n = uses.load(std::memory_order_relaxed);
    // relaxed: as above
    if (n < uses_max) uses.store(static_cast<std::uint8_t>(n + 1), std::memory_order_relaxed);
  }
  bool was_used() const noexcept {
    return uses.load(std::memory_order_relaxed) != 0;  // relaxed: a hint
  }

  // The page's bytes() of memory; of a frame behind a head, its own 4 KiB.
  std::byte* data() const noexcept;

  // Of the block that this frame heads: 1 and 4096 but for large pages.
  std::uint32_t frames() const noexcept { return 1u << order; }
  std::size_t bytes() const noexcept { return page_bytes << order; }
  bool is_large() const noexcept { return order != 0; }

  // Where a page begins and ends in the object that it is a page of, in bytes. The caller has a
  // reference.
  std::uint64_t offset_bytes() const noexcept {
    return index.load(std::memory_order_relaxed) << page_shift;  // relaxed: held by the reference
  }
  std::uint64_t end_bytes() const noexcept { return offset_bytes() + bytes(); }

  // acquire: who sees a flag sees what was written before it was set (the data, for uptodate).
  bool test(std::uint32_t mask) const noexcept {
    return (flags.load(std::memory_order_acquire) & mask) != 0;
  }
  // release: pairs with test. Return the flags as they were.
  std::uint32_t set(std::uint32_t mask) noexcept {
    // acq_rel: also orders what follows a lock bit.
    return flags.fetch_or(mask, std::memory_order_acq_rel);
  }
  std::uint32_t clear(std::uint32_t mask) noexcept {
    // acq_rel: an unlock publishes. The acquire is beyond the explorer: callers look at the bits
    // that they have cleared (dirty, error), and at what was written before these were set.
    return flags.fetch_and(~mask, std::memory_order_acq_rel);
  }

  // Makes it the page `number` of `new_owner`, and the numbers behind it if it is a large one: by
  // who may, having the only reference or all frozen.
  void set_identity(void* new_owner, std::uint64_t number) noexcept {
    index.store(number, std::memory_order_relaxed);     // relaxed: published with the owner
    owner.store(new_owner, std::memory_order_release);  // release: pairs with is_owned_by
  }
  bool is_owned_by(const void* who) const noexcept {
    return owner.load(std::memory_order_acquire) == who;  // acquire: pairs with set_identity
  }
  // Whether it is the page `number` of `who`, or one of more numbers of which that is one: for
  // good, as long as the caller's reference lasts.
  bool is_page_of(const void* who, std::uint64_t number) const noexcept {
    // relaxed: is_owned_by() has acquired.
    return is_owned_by(who) && (index.load(std::memory_order_relaxed) ^ number) >> order == 0;
  }
};

using page = basic_page<>;

template <>
inline std::byte* page::data() const noexcept {
  const frame_table& table = frame_table::of(this);
  return table.data + (std::size_t{number_in(table)} << page_shift);
}

// What a frame of 4 KiB takes beside its memory.
inline constexpr std::size_t page_state_bytes = sizeof(page) + sizeof(refcount);

// Takes a reference to the frame `p`, found on a guess, and keeps it if the frame is the page
// `number` of `owner`. Reference is page_ref, or stands for it; none: it was another page, or
// nobody's.
template <typename Reference, typename Page>
Reference pin_if_page_of(Page& p, const void* owner, std::uint64_t number) noexcept {
  if (!p.refs().get_unless_zero()) return {};
  Reference ref = Reference::adopt(p);
  // The reference holds the identity still: is it the page that was looked for?
  if (!p.is_page_of(owner, number)) return {};
  return ref;
}

// Returns a block whose last reference has gone to its arena.
void release_page(page& p) noexcept;

// Gives back one reference; the last one returns the block to its arena. The frame must be on no
// index and no list then.
inline void put_page(page& p) noexcept {
  if (p.refs().put()) release_page(p);
}

// A pin: holds one reference and gives it back. Move-only; share() makes a second one.
class page_ref {
 public:
  page_ref() noexcept = default;
  // Takes over a reference that the caller holds.
  static page_ref adopt(page& p) noexcept { return page_ref(&p); }

  page_ref(page_ref&& other) noexcept : page_(std::exchange(other.page_, nullptr)) {}
  page_ref& operator=(page_ref&& other) noexcept {
    if (this != &other) {
      reset();
      page_ = std::exchange(other.page_, nullptr);
    }
    return *this;
  }
  ~page_ref() { reset(); }

  page_ref share() const noexcept {
    page_->refs().get();
    return page_ref(page_);
  }

  void reset() noexcept {
    if (page_ != nullptr) put_page(*std::exchange(page_, nullptr));
  }

  // Gives the reference to the caller.
  page* release() noexcept { return std::exchange(page_, nullptr); }

  page* get() const noexcept { return page_; }
  page& operator*() const noexcept { return *page_; }
  page* operator->() const noexcept { return page_; }
  explicit operator bool() const noexcept { return page_ != nullptr; }

 private:
  explicit page_ref(page* p) noexcept : page_(p) {}
  page* page_ = nullptr;
};

}  // namespace forebay
