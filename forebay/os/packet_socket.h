// A packet socket (packet(7)) with a receive ring that the kernel fills in blocks (TPACKET_V3).
//
//    kernel ──> block 0 │ block 1 │ block 2 │ block 3 ──> (round again)
//               ^^^^^^^   ^^^^^^^   ^^^^^^^
//               taken     filled    being filled
//
// A block is the kernel's until it is full, or has held a packet for retire_ms. Then it can be
// taken, and is the taker's until it is given back: frames are read, and changed, where they lie.
// Blocks are taken in order; they may be given back in any order, but the kernel stops at the first
// that it does not have, and drops what comes until it is there.
//
// `packet_socket` is the seam: the port is written over anything that satisfies PacketSocket.
//
// Thread-safety: take_block(), walks, statistics() and transmit() belong to one thread;
// give_back() is any thread's.
#pragma once

#include <sys/uio.h>

#include <atomic>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "forebay/os/fd.h"
#include "forebay/os/net_interface.h"

namespace forebay {

// One instruction of a classic BPF program, as libpcap makes them and the kernel runs them (struct
// sock_filter). Its return value is how much of the packet is kept; 0: none, it is passed over.
struct filter_instruction {
  std::uint16_t code = 0;
  std::uint8_t jump_true = 0;
  std::uint8_t jump_false = 0;
  std::uint32_t k = 0;
};

// A received frame in a block.
struct received_frame {
  std::span<std::byte> data;     // what was kept of it, with its VLAN tag where it was on the wire
  std::uint32_t wire_bytes = 0;  // its whole length
  std::uint64_t stamp_ns = 0;    // when it was received, since 1970 (UTC)
  bool outgoing = false;         // sent by this machine
};

class packet_socket {
 public:
  struct options {
    std::uint32_t block_bytes = 1u << 20;  // a power of two, at least 4096
    std::uint32_t blocks = 8;
    std::uint32_t retire_ms = 20;
    bool promiscuous = true;
    bool outgoing = true;                             // receive what this machine sends, too
    std::span<const filter_instruction> filter = {};  // none: every packet, whole
  };

  // What has come to the socket through its filter.
  struct counters {
    std::uint64_t received = 0;  // with those that were dropped
    std::uint64_t dropped = 0;   // by the kernel, because no block was free
    std::uint64_t stalls = 0;    // times it found none
  };

  // Receives from one interface, from now on. Errors: EPERM without CAP_NET_RAW; ENODEV; EINVAL for
  // a ring that makes no sense or a filter the kernel refuses; ENOMEM if the ring cannot be had.
  static result<packet_socket> open(const net_interface& from, const options& opts);

  packet_socket(packet_socket&& other) noexcept;
  packet_socket& operator=(packet_socket&&) = delete;
  // Every block must have been given back.
  ~packet_socket();

  int fd() const noexcept { return fd_.get(); }
  std::uint32_t blocks() const noexcept { return blocks_; }
  std::span<std::byte> ring() const noexcept {
    return {ring_, std::size_t{block_bytes_} * blocks_};
  }

  // The number of the oldest block that is filled and not taken; none if there is none.
  std::optional<std::uint32_t> take_block() noexcept;
  void give_back(std::uint32_t block) noexcept;

  // The frames of a taken block, in order.
  class walk {
   public:
    std::uint32_t left() const noexcept { return left_; }
    // False after the last one.
    bool next(received_frame& out) noexcept;

   private:
    friend class packet_socket;
    std::byte* at_ = nullptr;
    std::uint32_t left_ = 0;
  };
  walk frames_of(std::uint32_t block) const noexcept;

  // Waits for a block that can be taken, something that happens to the interface, `also` (a
  // descriptor that becomes readable, or -1) or the end of the time; whichever it was. Blocks that
  // are taken and not given back do not end it, though the kernel calls the socket readable as long
  // as there are any: what is waited for is its next sign (epoll(7), edge-triggered). Errors: of
  // poll(2) and epoll_wait(2).
  result<> wait(int timeout_ms, int also = -1) const;

  // What has happened to the interface since the last call: ENETDOWN if it went down or away.
  std::error_code take_error() noexcept;

  // Since the socket was opened.
  counters statistics() noexcept;

  // Nothing more is received; what has been is in blocks that are full, or will be retired.
  void stop_receiving() noexcept;

  // Sends frames, each a list of segments, from its link header on; returns how many the interface
  // has taken, which may be fewer, or none, when its queue is full. Errors: ENETDOWN, ENXIO,
  // EMSGSIZE of the first frame.
  result<std::size_t> transmit(std::span<const std::span<iovec>> frames) noexcept;

 private:
  packet_socket(unique_fd fd, unique_fd signs, std::byte* ring, const options& opts)
      : fd_(std::move(fd)),
        signs_(std::move(signs)),
        ring_(ring),
        block_bytes_(opts.block_bytes),
        blocks_(opts.blocks),
        taken_(std::make_unique<std::atomic<bool>[]>(opts.blocks)) {}

  std::atomic_ref<std::uint32_t> status_of(std::uint32_t block) const noexcept;
  bool can_take() const noexcept;

  unique_fd fd_;
  unique_fd signs_;  // epoll: readable when the kernel has given a sign since the last look
  std::byte* ring_;
  std::uint32_t block_bytes_;
  std::uint32_t blocks_;
  // Blocks that have not been given back: the kernel's mark for a filled one stays on them.
  std::unique_ptr<std::atomic<bool>[]> taken_;
  std::uint32_t next_ = 0;  // the next block to be taken
  counters counted_;        // the kernel's start again at each look
};

template <typename S>
concept PacketSocket = requires(S& s, const S& c, std::span<const std::span<iovec>> frames) {
  { c.fd() } -> std::same_as<int>;
  { s.take_block() } -> std::same_as<std::optional<std::uint32_t>>;
  { s.give_back(0u) };
  { c.frames_of(0u) } -> std::same_as<typename S::walk>;
  { c.wait(0, -1) } -> std::same_as<result<>>;
  { s.take_error() } -> std::same_as<std::error_code>;
  { s.statistics() } -> std::same_as<typename S::counters>;
  { s.transmit(frames) } -> std::same_as<result<std::size_t>>;
};

static_assert(PacketSocket<packet_socket>);

}  // namespace forebay
