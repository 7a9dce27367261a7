// The words of a queue pair in shared memory: two queues that run independently, as NVMe's do
// (NVM Express base specification 2.0, 3.3 and 4.2). shared_queue_pair.h is the host's side,
// shared_queue_controller.h the other.
//
//      host                       shared memory                       controller
//
//      submit ──► ┌ submission queue: commands of 32 bytes, entries ┐ ──► take
//      ring_doorbell: position ─────────────────────────────────────────► (wakes it, if it sleeps)
//      reap ◄──── ┌ completion queue: 16 bytes: id, result, submission head, status, phase ┐ ◄──
//      consumed ────────────────────────────────────────────────────────► room for completions
//
// Commands are taken in order and completed in any order, by identifier. An entry of the completion
// queue is there when its phase bit is that of the round: the bit changes its meaning each time
// round, so the host needs no tail from the controller. Every completion says how far the
// controller has read the submission queue, which is where the host learns that it has room.
//
// An identifier is a number below the completion queue's size, which the host uses for one command
// at a time, and 16 bits that count its uses: a completion that comes twice or late is not taken
// for another command's. Not more commands are under way than the completion queue has entries, so
// that it never overflows.
#pragma once

#include <cstdint>

#include "forebay/ring/shared_region.h"

namespace forebay {

// What the host asks for. `address` and `length` are a buffer in the host's address space; with
// command_indirect, `address` is that of a table of `argument` descriptors whose chain begins with
// number 0 (descriptor_chain.h), and `length` the bytes of the chain. 0 bytes: no buffer.
struct shared_command {
  std::uint16_t opcode = 0;    // the protocol's above
  std::uint16_t flags = 0;     // command_
  std::uint32_t argument = 0;  // the protocol's, or the table's size
  std::uint64_t address = 0;
  std::uint32_t length = 0;  // bytes, at most shared_command_bytes_max
  std::uint64_t offset = 0;  // the protocol's

  bool operator==(const shared_command&) const = default;
};

inline constexpr std::uint16_t command_write = 1;           // the controller writes the buffer
inline constexpr std::uint16_t command_indirect = 2;        // see above
inline constexpr std::uint16_t command_user_bits = 0xff00;  // the protocol's
inline constexpr std::uint32_t shared_command_bytes_max = INT32_MAX;  // a count is a status as well

// An entry of the submission queue, read and written by words.
template <AtomicsPolicy Atomics>
struct submission_slot {
  using word = typename Atomics::template atomic<std::uint64_t>;
  word id_length{0};  // id | length << 32
  word address{0};
  word offset{0};
  word rest{0};  // opcode | flags << 16 | argument << 32

  void write(const shared_command& c, std::uint32_t id) noexcept {
    // relaxed, all: the host's position orders them.
    constexpr auto relaxed = std::memory_order_relaxed;
    id_length.store(id | std::uint64_t{c.length} << 32, relaxed);
    address.store(c.address, relaxed);
    offset.store(c.offset, relaxed);
    rest.store(c.opcode | std::uint64_t{c.flags} << 16 | std::uint64_t{c.argument} << 32, relaxed);
  }
  shared_command read(std::uint32_t& id) const noexcept {
    // relaxed, all: as in write.
    constexpr auto relaxed = std::memory_order_relaxed;
    const std::uint64_t first = id_length.load(relaxed);
    const std::uint64_t last = rest.load(relaxed);
    id = static_cast<std::uint32_t>(first);
    return {.opcode = static_cast<std::uint16_t>(last),
            .flags = static_cast<std::uint16_t>(last >> 16),
            .argument = static_cast<std::uint32_t>(last >> 32),
            .address = address.load(relaxed),
            .length = static_cast<std::uint32_t>(first >> 32),
            .offset = offset.load(relaxed)};
  }
};

// An entry of the completion queue: `what`, then `state` with the phase bit.
template <AtomicsPolicy Atomics>
struct completion_slot {
  using word = typename Atomics::template atomic<std::uint64_t>;
  word what{0};   // id | result << 32
  word state{0};  // submission head:16 | status << 16 | 0:31 | phase << 63
};

struct completion_state {
  static constexpr std::uint64_t unused = std::uint64_t{0x7fffffff} << 32;
  static constexpr std::uint16_t error_max = 4095;  // as the kernel's MAX_ERRNO

  static constexpr std::uint64_t pack(std::uint32_t head, std::uint16_t error,
                                      bool phase) noexcept {
    return (head & 0xffff) | std::uint64_t{error} << 16 | std::uint64_t{phase} << 63;
  }
  static constexpr std::uint16_t head(std::uint64_t s) noexcept {
    return static_cast<std::uint16_t>(s);
  }
  static constexpr std::uint16_t error(std::uint64_t s) noexcept {
    return static_cast<std::uint16_t>(s >> 16);
  }
  static constexpr bool phase(std::uint64_t s) noexcept { return (s >> 63) != 0; }
};

// The phase of an entry at a position: it changes with each time round.
constexpr bool phase_of(std::uint32_t position, std::uint32_t entries) noexcept {
  return (position & entries) == 0;
}

template <AtomicsPolicy Atomics>
struct shared_queue_layout {
  using header = shared_ring_header<Atomics>;
  using side = shared_side_words<Atomics>;
  using submission = submission_slot<Atomics>;
  using completion = completion_slot<Atomics>;
  static constexpr std::size_t host_at = sizeof(header);
  static constexpr std::size_t controller_at = host_at + sizeof(side);
  static constexpr std::size_t submissions_at = controller_at + sizeof(side);
  static constexpr std::size_t completions_at(std::uint32_t entries) noexcept {
    return round_up(submissions_at + entries * sizeof(submission), no_sharing_bytes);
  }
  static constexpr std::size_t bytes(std::uint32_t entries, std::uint32_t completions) noexcept {
    return completions_at(entries) + completions * sizeof(completion);
  }
};

static_assert(sizeof(submission_slot<real_atomics>) == 32);
static_assert(sizeof(completion_slot<real_atomics>) == 16);

}  // namespace forebay
