// The two rings of virtio, from the device's side: split (virtio 1.2, 2.7) and packed (2.8).
//
//   split    available: idx ─► [head][head][head]…      driver writes, device reads
//            used:      idx ─► [id,len][id,len]…        device writes, driver reads
//   packed   one ring of descriptors, in place: the driver makes one available and the device makes
//            it used by the two bits AVAIL and USED, whose meaning turns round with every lap
//
// A ring knows numbers only; what chains of descriptors mean is virtqueue.h's.
//
// The driver is a guest: it can write anything at any time. What a ring relies on (how far each
// side is, which lap it is) is kept here; a shared word is read once, and what does not fit is
// ring_errc::position_jump or chain_index, after which the ring is not to be used any more.
//
// Order: entries before what publishes them (release), what publishes before the entries (acquire).
// Notifications: announce what is waited for, full fence, look again; publish, full fence, look
// whether the other side waits. The two fences are in one order, so no wake is lost; see
// ring/event_index.h, which has the same protocol. 16-bit positions come round sooner: should one
// come round to an announcement of long ago, there is one notification for nothing.
//
// `Atomics` is the atomics policy: sim/explorer/virtqueue_test.cc has a driver and a device in the
// explorer. Plain objects, of one thread at a time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>

#include "forebay/base/atomics.h"
#include "forebay/base/result.h"
#include "forebay/ring/descriptor.h"
#include "forebay/ring/ring_error.h"

namespace forebay {

// vring_need_event for 16-bit positions: whether `wanted` is one of old … now - 1.
constexpr bool event_passed_16(std::uint16_t wanted, std::uint16_t old,
                               std::uint16_t now) noexcept {
  return static_cast<std::uint16_t>(now - wanted - 1) < static_cast<std::uint16_t>(now - old);
}

inline constexpr unsigned virtqueue_size_max = 1024;

// ---- Split ----

// Where a split ring's words are. The descriptor table is none of the ring's.
template <AtomicsPolicy Atomics>
struct split_words {
  using word16 = typename Atomics::template atomic<std::uint16_t>;
  using word32 = typename Atomics::template atomic<std::uint32_t>;

  word16* avail_flags = nullptr;
  word16* avail_idx = nullptr;
  word16* avail_ring = nullptr;  // `size` of them
  word16* used_event = nullptr;  // the driver's announcement, behind the available ring
  word16* used_flags = nullptr;
  word16* used_idx = nullptr;
  word32* used_ring = nullptr;    // 2 * `size`: an id and a length each
  word16* avail_event = nullptr;  // the device's announcement, behind the used ring
};

template <AtomicsPolicy Atomics>
class split_ring {
 public:
  static constexpr std::uint16_t no_interrupt = 1;  // avail_flags: the driver wants no notification
  static constexpr std::uint16_t no_notify = 1;     // used_flags: the device wants none

  split_ring() noexcept = default;
  // `size` is a power of two; `base` and `used` are how many have been taken and used before.
  split_ring(const split_words<Atomics>& words, std::uint16_t size, bool event_index,
             std::uint16_t base, std::uint16_t used) noexcept
      : words_(words),
        size_(size),
        event_index_(event_index),
        taken_(base),
        seen_(base),
        used_(used),
        published_(used),
        notified_(used) {}

  std::uint16_t base() const noexcept { return taken_; }
  std::uint16_t used() const noexcept { return used_; }

  // Whether something is available. Error: ring_errc::position_jump.
  result<bool> available() noexcept {
    if (taken_ != seen_) return true;
    // acquire: the entries and their descriptors are seen after it; pairs with the driver's.
    const std::uint16_t now = words_.avail_idx->load(std::memory_order_acquire);
    // What has been taken and not been used counts as well: no driver has more chains than slots.
    const bool fits = static_cast<std::uint16_t>(now - taken_) <= size_ &&
                      static_cast<std::uint16_t>(now - used_) <= size_;
    if (!fits) return fail(ring_errc::position_jump);
    seen_ = now;
    return taken_ != seen_;
  }

  // After available(): the number of the next chain's first descriptor. Error:
  // ring_errc::chain_index for one that is outside the table.
  result<std::uint16_t> take() noexcept {
    // relaxed: published by the index, see available().
    const std::uint16_t head = words_.avail_ring[taken_ % size_].load(std::memory_order_relaxed);
    if (head >= size_) return fail(ring_errc::chain_index);
    ++taken_;
    return head;
  }

  // The chain `id` has ended, and `length` bytes of it have been written. The driver learns it with
  // publish().
  void put(std::uint16_t id, std::uint32_t length) noexcept {
    const std::size_t at = std::size_t{used_} % size_ * 2;
    words_.used_ring[at].store(id, std::memory_order_relaxed);  // relaxed: publish() orders them
    words_.used_ring[at + 1].store(length, std::memory_order_relaxed);  // relaxed: as above
    ++used_;
  }

  void publish() noexcept {
    if (published_ == used_) return;
    published_ = used_;
    // release: the entries, the data and the status come before it.
    words_.used_idx->store(used_, std::memory_order_release);
  }

  // Whether the driver is to be notified of what was published since the last call.
  bool wants_call() noexcept {
    const std::uint16_t old = notified_;
    if (old == published_) return false;
    notified_ = published_;
    // seq_cst: pairs with the driver's, between its announcement and its second look.
    Atomics::fence(std::memory_order_seq_cst);
    if (!event_index_) {
      // relaxed: the fence orders it; so below.
      return (words_.avail_flags->load(std::memory_order_relaxed) & no_interrupt) == 0;
    }
    const std::uint16_t wanted = words_.used_event->load(std::memory_order_relaxed);  // relaxed
    return event_passed_16(wanted, old, published_);
  }

  // Asks for no notifications; some may come still.
  void disable_kicks() noexcept {
    // With an event index the announcement that has been passed does it.
    if (!event_index_) {
      words_.used_flags->store(no_notify, std::memory_order_relaxed);  // relaxed: a hint
    }
  }

  // Asks for one when something becomes available; whether something is, by now. Errors: as
  // available().
  result<bool> enable_kicks() noexcept {
    if (event_index_) {
      words_.avail_event->store(taken_, std::memory_order_relaxed);  // relaxed: the fence orders it
    } else {
      words_.used_flags->store(0, std::memory_order_relaxed);  // relaxed: as above
    }
    // seq_cst: pairs with the driver's, between its publication and its look at the announcement.
    Atomics::fence(std::memory_order_seq_cst);
    return available();
  }

 private:
  split_words<Atomics> words_;
  std::uint16_t size_ = 1;
  bool event_index_ = false;
  std::uint16_t taken_ = 0;      // positions in the available ring: next to take
  std::uint16_t seen_ = 0;       // and published, when last looked at
  std::uint16_t used_ = 0;       // positions in the used ring: next to put
  std::uint16_t published_ = 0;  // published to the driver
  std::uint16_t notified_ = 0;   // and it was considered whether to notify of them
};

// ---- Packed ----

// Where a packed ring's words are.
template <AtomicsPolicy Atomics>
struct packed_words {
  using word32 = typename Atomics::template atomic<std::uint32_t>;
  using word64 = typename Atomics::template atomic<std::uint64_t>;

  word64* descriptors = nullptr;   // 2 * `size`: an address, then length, id and flags
  word32* driver_event = nullptr;  // what the driver announces: offset and lap, flags
  word32* device_event = nullptr;  // what the device announces
};

// The position of a side in a packed ring.
struct packed_position {
  std::uint16_t slot = 0;
  bool wrap = true;  // changes from lap to lap; true in the first

  void advance(std::uint16_t slots, std::uint16_t size) noexcept {
    slot = static_cast<std::uint16_t>(slot + slots);
    if (slot < size) return;
    slot = static_cast<std::uint16_t>(slot - size);
    wrap = !wrap;
  }
  // 15 bits of slot and one of lap, as messages and announcements have it.
  std::uint16_t pack() const noexcept {
    return static_cast<std::uint16_t>(slot | (wrap ? 0x8000 : 0));
  }
  static packed_position unpack(std::uint16_t v) noexcept {
    return {static_cast<std::uint16_t>(v & 0x7fff), (v & 0x8000) != 0};
  }
  bool operator==(const packed_position&) const = default;
};

template <AtomicsPolicy Atomics>
class packed_ring {
 public:
  static constexpr std::uint16_t avail_bit = 1u << 7;
  static constexpr std::uint16_t used_bit = 1u << 15;
  // Announcements.
  static constexpr std::uint32_t event_enable = 0;
  static constexpr std::uint32_t event_disable = 1;
  static constexpr std::uint32_t event_at = 2;  // at the position that stands beside it

  packed_ring() noexcept = default;
  packed_ring(const packed_words<Atomics>& words, std::uint16_t size, bool event_index,
              packed_position taken, packed_position used) noexcept
      : words_(words), size_(size), event_index_(event_index), taken_(taken), used_(used) {
    const int behind = taken.slot - used.slot + (taken.wrap == used.wrap ? 0 : size);
    outstanding_ = static_cast<std::uint32_t>(std::max(behind, 0));
  }

  packed_position taken() const noexcept { return taken_; }
  packed_position used() const noexcept { return used_; }
  std::uint16_t size() const noexcept { return size_; }

  bool available() const noexcept {
    // acquire: the chain's other descriptors, and its data, are seen after it.
    return is_available(shape_of(taken_.slot).load(std::memory_order_acquire), taken_.wrap);
  }

  struct chain {
    std::uint16_t id = 0;
    std::uint16_t slots = 0;
  };
  // After available(): copies the next chain's descriptors to the front of `out`, with AVAIL and
  // USED taken off, and says how many there are. Errors: ring_errc::position_jump if the chain goes
  // on into slots that have been taken and not been used, chain_too_long if there are more than
  // `out` has room for.
  result<chain> take(std::span<descriptor> out) noexcept {
    packed_position at = taken_;
    for (std::uint16_t n = 0;; ++n) {
      if (outstanding_ + n == size_) return fail(ring_errc::position_jump);
      if (n == out.size()) return fail(ring_errc::chain_too_long);
      // relaxed, both: the first descriptor's flags, which have been seen, publish the chain; the
      // copy is checked by who uses it.
      const std::uint64_t address =
          words_.descriptors[2 * std::size_t{at.slot}].load(std::memory_order_relaxed);
      const std::uint64_t shape = shape_of(at.slot).load(std::memory_order_relaxed);  // relaxed
      // In this ring the number behind the length is the chain's, and comes before the flags.
      out[n] = {.address = address,
                .length = static_cast<std::uint32_t>(shape),
                .flags = static_cast<std::uint16_t>(flags_of(shape) & ~(avail_bit | used_bit)),
                .next = static_cast<std::uint16_t>(shape >> 32)};
      at.advance(1, size_);
      if ((out[n].flags & descriptor_next) != 0) continue;
      taken_ = at;
      outstanding_ += n + 1u;
      return chain{.id = out[n].next, .slots = static_cast<std::uint16_t>(n + 1)};
    }
  }

  // Where the used position will be after a chain of so many slots.
  packed_position used_after(std::uint16_t slots) const noexcept {
    packed_position at = used_;
    at.advance(slots, size_);
    return at;
  }

  // The chain `id`, which took up so many slots, has ended. The driver can see it at once.
  void put(std::uint16_t id, std::uint16_t slots, std::uint32_t length) noexcept {
    const std::uint64_t flags = used_.wrap ? avail_bit | used_bit : 0;
    // release: the data and the status come before it.
    shape_of(used_.slot)
        .store(length | std::uint64_t{id} << 32 | flags << 48, std::memory_order_release);
    used_.advance(slots, size_);
    outstanding_ -= slots;
    unnotified_ = std::min<std::uint32_t>(unnotified_ + slots, size_);
  }

  // As split_ring's.
  bool wants_call() noexcept {
    const std::uint32_t passed = std::exchange(unnotified_, 0);
    if (passed == 0) return false;
    // seq_cst: as in split_ring.
    Atomics::fence(std::memory_order_seq_cst);
    const std::uint32_t event = words_.driver_event->load(std::memory_order_relaxed);  // relaxed
    const std::uint32_t kind = event >> 16 & 3;
    if (kind != event_at || !event_index_) return kind != event_disable;
    const packed_position wanted = packed_position::unpack(static_cast<std::uint16_t>(event));
    // Positions in slots, of which the lap before this one is below 0.
    const int offset = wanted.wrap == used_.wrap ? 0 : size_;
    return event_passed_16(static_cast<std::uint16_t>(wanted.slot - offset),
                           static_cast<std::uint16_t>(used_.slot - passed), used_.slot);
  }

  void disable_kicks() noexcept {
    words_.device_event->store(event_disable << 16, std::memory_order_relaxed);  // relaxed: a hint
  }

  bool enable_kicks() noexcept {
    const std::uint32_t announced =
        event_index_ ? taken_.pack() | event_at << 16 : event_enable << 16;
    words_.device_event->store(announced,
                               std::memory_order_relaxed);  // relaxed: the fence orders it
    // seq_cst: as in split_ring.
    Atomics::fence(std::memory_order_seq_cst);
    return available();
  }

  // Whether the slot at a used position has been made used: for who finds out after a crash.
  bool is_used(packed_position at) const noexcept {
    // acquire: nothing before is looked at again, and this runs once.
    const std::uint16_t flags = flags_of(shape_of(at.slot).load(std::memory_order_acquire));
    return ((flags & avail_bit) != 0) == at.wrap && ((flags & used_bit) != 0) == at.wrap;
  }

 private:
  static std::uint16_t flags_of(std::uint64_t shape) noexcept {
    return static_cast<std::uint16_t>(shape >> 48);
  }
  static bool is_available(std::uint64_t shape, bool wrap) noexcept {
    const std::uint16_t flags = flags_of(shape);
    return ((flags & avail_bit) != 0) == wrap && ((flags & used_bit) != 0) != wrap;
  }
  typename packed_words<Atomics>::word64& shape_of(std::uint16_t slot) const noexcept {
    return words_.descriptors[2 * std::size_t{slot} + 1];
  }

  packed_words<Atomics> words_;
  std::uint16_t size_ = 1;
  bool event_index_ = false;
  packed_position taken_;
  packed_position used_;
  std::uint32_t outstanding_ = 0;  // slots that are taken and not used; at most size_
  std::uint32_t unnotified_ = 0;   // slots that were used since it was considered whether to notify
};

}  // namespace forebay
