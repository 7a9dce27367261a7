// A virtqueue from the device's side, of either kind (virtqueue_rings.h), over guest memory: chains
// of descriptors come out of it as pieces of this process's memory, and go back with a length.
//
//   take() ─► element { id, slots, pieces to read, pieces to write } ─► put() … publish(), call?
//
// Everything that the guest wrote is hostile. A descriptor is copied once and the copy is checked
// (ring/descriptor_chain.h): no number outside the table, no loop, no more descriptors and bytes
// than the limits, known flags, and every byte inside guest memory at every segment. A chain that
// is wrong comes out with an error and without pieces, and is to be put back with length 0. A ring
// that is wrong is an error of take(), and the queue is not to be used any more.
//
// Of one thread at a time. The guest's memory must stay mapped for as long as there is the queue.
#pragma once

#include <array>

#include "forebay/ring/descriptor_chain.h"
#include "forebay/serve/guest_memory.h"
#include "forebay/serve/virtqueue_rings.h"

namespace forebay {

// How a virtqueue is set up, in the front-end's addresses.
struct virtqueue_setup {
  std::uint16_t size = 0;  // descriptors: a power of two, packed any, at most virtqueue_size_max
  bool packed = false;
  bool event_index = false;
  bool indirect = false;
  std::uint64_t descriptors = 0;  // user addresses; of a packed one: of the ring,
  std::uint64_t driver = 0;       // the available ring; the driver's event suppression,
  std::uint64_t device = 0;       // the used ring; the device's
  std::uint32_t base = 0;         // as VHOST_USER_SET_VRING_BASE has it
};

class virtqueue {
 public:
  static constexpr std::uint32_t chain_descriptors_max = 256;
  // Firmware asks for as much as 1 GiB in a request, whatever it has been told (EDK2's driver).
  static constexpr std::uint64_t chain_bytes_max = (std::uint64_t{1} << 30) + 4096;

  // Room for what a chain consists of, used anew for each.
  using piece_storage = std::array<std::span<std::byte>, chain_descriptors_max>;

  struct element {
    std::uint16_t id = 0;
    std::uint16_t slots = 1;  // of a packed ring
    std::error_code error;    // of the chain; there are no pieces then
    // Of a chain with an error: the last byte of its last descriptor, if that is known and the
    // device's to write.
    std::byte* last_writable = nullptr;
    // In the storage: the first `readable` are the driver's to write, the others the device's.
    std::span<std::span<std::byte>> pieces;
    std::size_t readable = 0;
    std::uint64_t readable_bytes = 0;
    std::uint64_t writable_bytes = 0;
    // Of a packed ring: what is in the ring's own slots, until the next take().
    std::span<const descriptor> descriptors;
  };

  virtqueue() noexcept = default;

  // `memory` must outlive it. Errors: EINVAL for a size, an alignment or a base that cannot be,
  // ring_errc::unmapped_address for a part that does not lie in one region.
  static result<virtqueue> create(const virtqueue_setup& s, const guest_memory& memory) noexcept;

  bool is_packed() const noexcept { return packed_; }
  std::uint16_t size() const noexcept { return size_; }

  // Where to go on, for VHOST_USER_GET_VRING_BASE.
  std::uint32_t base() const noexcept;

  // Whether there is one. Errors: of the ring.
  result<bool> available() noexcept {
    if (packed_) return packed_ring_.available();
    return split_ring_.available();
  }

  // The next chain that is available; false if there is none. Errors: of the ring.
  result<bool> take(element& e, piece_storage& storage) noexcept;

  // A chain that has been taken before, by a device that has ended since (see inflight_log.h). A
  // packed one's by its descriptors, which must be as many as its slots.
  void take_again(std::uint16_t head, element& e, piece_storage& storage) const noexcept;
  void take_again(std::span<const descriptor> chain, element& e,
                  piece_storage& storage) const noexcept;

  // Has ended a chain. The driver may see a packed ring's at once, a split one's with publish().
  void put(std::uint16_t id, std::uint16_t slots, std::uint32_t written_bytes) noexcept {
    if (packed_) return packed_ring_.put(id, slots, written_bytes);
    split_ring_.put(id, written_bytes);
  }
  void publish() noexcept {
    if (!packed_) split_ring_.publish();
  }
  // Whether the driver wants to be notified of what was published since the last call.
  bool wants_call() noexcept {
    return packed_ ? packed_ring_.wants_call() : split_ring_.wants_call();
  }

  // Kicks are not wanted; they are, and is something available by now?
  void disable_kicks() noexcept {
    packed_ ? packed_ring_.disable_kicks() : split_ring_.disable_kicks();
  }
  result<bool> enable_kicks() noexcept {
    if (packed_) return packed_ring_.enable_kicks();
    return split_ring_.enable_kicks();
  }

  // For inflight_log.
  const split_ring<real_atomics>& split() const noexcept { return split_ring_; }
  const packed_ring<real_atomics>& packed() const noexcept { return packed_ring_; }
  // Begins anew at other positions, before anything is taken.
  void restart_split(std::uint16_t base, std::uint16_t used) noexcept;
  void restart_packed(packed_position taken, packed_position used) noexcept;
  // What the split ring's used index says in the guest's memory.
  std::uint16_t published_used() const noexcept;

 private:
  result<> place_split(const virtqueue_setup& s) noexcept;
  result<> place_packed(const virtqueue_setup& s) noexcept;
  void collect(std::span<descriptor> chain, element& e, piece_storage& storage) const noexcept;

  const guest_memory* memory_ = nullptr;
  std::uint16_t size_ = 1;
  bool packed_ = false;
  bool event_index_ = false;
  bool indirect_ = false;
  std::span<std::byte> table_;  // of the split ring
  split_words<real_atomics> split_words_;
  packed_words<real_atomics> packed_words_;
  split_ring<real_atomics> split_ring_;
  packed_ring<real_atomics> packed_ring_;
  // The packed ring's descriptors of the chain that was taken last.
  std::array<descriptor, chain_descriptors_max> taken_{};
};

}  // namespace forebay
