// What the rings between threads are made of: slots that say themselves whose turn it is.
//
//    | item | seq | item | seq | item | seq | …       a slot: the item, 4 bytes of sequence number
//
// A ring of N slots, N a power of two, holds the item of position p in slot p mod N. With s the
// slot's sequence number, modulo 2^32:
//
//    s == p        free: who pushes the item of position p owns the slot
//    s == p + 1    full: who pops it owns the slot
//    s == p + N    free again, for position p + N
//
// The number moves with the item it stands beside. A consumer that follows closely so takes one
// cache line for four pointers where a ring with indexes takes two, the items' and the index's, and
// the latter again for each item; the index is also the line that both sides write. (The idea is
// FastForward's, Giacomoni, Moseley and Vachharajani 2008, where null says "free"; the numbers are
// Vyukov's, 2010, which need no value to stand for "free" and serve many threads as well.)
//
// Items are trivially copyable: a pointer, a descriptor, an index. What owns something is handed
// over by its release() and adopt().
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <span>
#include <type_traits>
#include <utility>

#include "forebay/base/atomics.h"
#include "forebay/base/cache_line.h"
#include "forebay/base/result.h"

namespace forebay {

template <typename T>
concept RingItem = std::is_trivially_copyable_v<T> && std::is_nothrow_default_constructible_v<T>;

inline constexpr std::size_t ring_capacity_min = 2;  // with one slot, full and free are one number
inline constexpr std::size_t ring_capacity_max = std::size_t{1} << 30;

inline constexpr std::uint64_t first_position_end = std::uint64_t{1} << 62;

struct ring_options {
  std::size_t capacity = 0;  // items; a power of two
  // Where the positions start, below 2^62: a test lets the slots' 32-bit numbers overflow soon.
  std::uint64_t first_position = 0;
};

// Moments' approximations while threads are inside, exact at rest. `pushed` and `popped` are since
// the ring was made.
struct ring_statistics {
  std::uint64_t pushed = 0;
  std::uint64_t popped = 0;
  std::uint64_t found_full = 0;   // pushes that did not find the room they wanted
  std::uint64_t found_empty = 0;  // pops that did not find the items they wanted
};

// How many items lie between two positions of a ring, which were read while they moved.
constexpr std::size_t items_between(std::uint64_t popped, std::uint64_t pushed,
                                    std::size_t capacity) noexcept {
  const std::uint64_t n = pushed - popped;
  if (n > UINT64_MAX / 2) return 0;  // popped is newer
  return n < capacity ? static_cast<std::size_t>(n) : capacity;
}

// A slot; its owner gets at the item by plain's get(), set(), read() and write().
template <RingItem T, AtomicsPolicy Atomics>
class ring_slot : public Atomics::template plain<T> {
 public:
  ring_slot() = default;

 private:
  template <RingItem, AtomicsPolicy>
  friend class ring_slots;

  typename Atomics::template atomic<std::uint32_t> sequence_{0};
};

// Slots that lie one after the other in the ring and belong to the caller for a while: two spans,
// of which the second is empty unless the slots go past the end of the ring's memory.
template <typename Slot>
class ring_window {
 public:
  ring_window() = default;
  ring_window(std::span<Slot> first, std::span<Slot> second) noexcept
      : first_(first), second_(second) {}

  std::size_t size() const noexcept { return first_.size() + second_.size(); }
  bool empty() const noexcept { return first_.empty(); }
  Slot& operator[](std::size_t i) const noexcept {
    return i < first_.size() ? first_[i] : second_[i - first_.size()];
  }
  std::span<Slot> first() const noexcept { return first_; }
  std::span<Slot> second() const noexcept { return second_; }

 private:
  std::span<Slot> first_;
  std::span<Slot> second_;
};

// All slots of a ring, and the steps that the rings consist of. Which thread may do which step is
// the rings' affair. A value: pointer and mask; the slots are ring_memory's.
template <RingItem T, AtomicsPolicy Atomics>
class ring_slots {
 public:
  using slot = ring_slot<T, Atomics>;
  using window = ring_window<slot>;

  // `capacity` slots, a power of two.
  ring_slots(slot* slots, std::size_t capacity) noexcept
      : slots_(slots), mask_(static_cast<std::uint32_t>(capacity - 1)) {}

  std::size_t capacity() const noexcept { return std::size_t{mask_} + 1; }

  // Before the ring is shared: all slots from the position `first` on wait for their items.
  void start_at(std::uint64_t first) const noexcept {
    for (std::uint64_t p = first; p < first + capacity(); ++p) {
      // relaxed: whoever shares the ring orders this.
      sequence(p).store(static_cast<std::uint32_t>(p), std::memory_order_relaxed);
    }
  }

  // Whether the slot of position p waits for its item. True: the caller may write the item, if
  // nobody else pushes the item of this position.
  bool is_free(std::uint64_t p) const noexcept {
    // acquire: pairs with set_free; the item has been read, so it may be overwritten.
    return sequence(p).load(std::memory_order_acquire) == static_cast<std::uint32_t>(p);
  }
  // Whether it holds it. True: the caller may read the item, if nobody else pops it.
  bool is_full(std::uint64_t p) const noexcept {
    // acquire: pairs with set_full; the item has been written, so it may be read.
    return sequence(p).load(std::memory_order_acquire) == static_cast<std::uint32_t>(p + 1);
  }
  void set_full(std::uint64_t p) const noexcept {
    // release: pairs with is_full.
    sequence(p).store(static_cast<std::uint32_t>(p + 1), std::memory_order_release);
  }
  void set_free(std::uint64_t p) const noexcept {
    // release: pairs with is_free.
    sequence(p).store(static_cast<std::uint32_t>(p + capacity()), std::memory_order_release);
  }

  // An item, in or out, when the caller owns its slot.
  void put(std::uint64_t p, const T& item) const noexcept {
    at(p).set(item);
    set_full(p);
  }
  void take(std::uint64_t p, T& item) const noexcept {
    item = at(p).get();
    set_free(p);
  }
  // The same for those of positions from p on.
  void put(std::uint64_t p, std::span<const T> items) const noexcept {
    const ring_slots here = *this;  // in registers: what is written below cannot change it
    for (const T& item : items) here.put(p++, item);
  }
  void take(std::uint64_t p, std::span<T> items) const noexcept {
    const ring_slots here = *this;  // as above
    for (T& item : items) here.take(p++, item);
  }

  window window_at(std::uint64_t p, std::size_t n) const noexcept {
    const auto start = static_cast<std::size_t>(p & mask_);
    const std::size_t first = n < capacity() - start ? n : capacity() - start;
    return {{slots_ + start, first}, {slots_, n - first}};
  }

 private:
  slot& at(std::uint64_t p) const noexcept { return slots_[p & mask_]; }
  auto& sequence(std::uint64_t p) const noexcept { return at(p).sequence_; }

  slot* slots_;
  std::uint32_t mask_;
};

// The memory of a ring's slots. Move-only.
template <RingItem T, AtomicsPolicy Atomics>
class ring_memory {
 public:
  using slot = ring_slot<T, Atomics>;

  // EINVAL if the capacity is no power of two or below ring_capacity_min, or for a first position
  // out of range; errc::too_large above ring_capacity_max; ENOMEM.
  static result<ring_memory> create(const ring_options& opts) noexcept {
    if (!std::has_single_bit(opts.capacity) || opts.capacity < ring_capacity_min ||
        opts.first_position >= first_position_end) {
      return fail(EINVAL);
    }
    if (opts.capacity > ring_capacity_max) return fail(errc::too_large);
    void* const memory =
        ::operator new(opts.capacity * sizeof(slot), std::align_val_t{alignment}, std::nothrow);
    if (memory == nullptr) return fail(ENOMEM);
    ring_memory made(static_cast<slot*>(memory), opts.capacity);
    std::uninitialized_default_construct_n(made.first_, made.capacity_);
    made.slots().start_at(opts.first_position);
    return made;
  }

  ring_memory(ring_memory&& other) noexcept
      : first_(std::exchange(other.first_, nullptr)), capacity_(other.capacity_) {}
  ring_memory& operator=(ring_memory&&) = delete;
  ~ring_memory() {
    if (first_ == nullptr) return;
    std::destroy_n(first_, capacity_);
    ::operator delete(first_, std::align_val_t{alignment});
  }

  ring_slots<T, Atomics> slots() const noexcept { return {first_, capacity_}; }

 private:
  static constexpr std::size_t alignment = alignof(slot) > no_sharing_bytes ? alignof(slot)
                                                                            : no_sharing_bytes;

  ring_memory(slot* first, std::size_t capacity) noexcept : first_(first), capacity_(capacity) {}

  slot* first_;
  const std::size_t capacity_;
};

}  // namespace forebay
