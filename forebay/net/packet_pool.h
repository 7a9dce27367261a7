// Packet pool: where packets come from.
//
//    descriptors: | 0 | 1 | 2 | …        128 bytes each, one mapping
//                   |   |   |
//    buffers:     | 0 | 1 | 2 | …        of a buffer_pool: counted, per-CPU caches, debug mode
//
//    bare descriptors, arrays of fragments: slab caches in the same arena
//
// One allocation takes a buffer, and with it the descriptor of its number. It costs one restartable
// sequence (os/rseq.h) and the reset of one cache line; the release is the reverse. The pool's
// sizes, what happens when it has run out, waiting for a buffer and statistics are the
// buffer_pool's.
//
// Buffers are memory of the arena, so what a device knows of the arena (a UMEM, registered memory)
// it knows of the packets.
#pragma once

#include <chrono>
#include <memory>
#include <stop_token>

#include "forebay/memory/slab.h"
#include "forebay/net/packet_buffer.h"
#include "forebay/os/memory.h"

namespace forebay {

struct packet_pool_statistics {
  buffer_pool_statistics buffers;  // packets that were allocated, and their data
  slab_statistics bare;            // clones, halves, external data
  slab_statistics fragment_arrays;
};

class packet_pool {
 public:
  static constexpr std::size_t buffer_bytes_max = std::size_t{1} << 20;

  struct options {
    std::string name = {};
    std::size_t buffer_bytes = 2048;  // headroom included
    std::size_t headroom = 128;       // of a new packet
    std::size_t count = 0;            // as in buffer_pool
    std::size_t limit = 0;
    std::size_t alignment = 64;
    bool debug = false;
    memory_registry* registry = &memory_registry::process();  // not null
  };

  // The arena must outlive the pool. Errors: EINVAL if the headroom does not leave a byte or there
  // is no registry; errc::too_large for buffers above buffer_bytes_max; those of buffer_pool and
  // slab_cache.
  static result<std::unique_ptr<packet_pool>> create(arena& memory, const options& opts);
  // No packet may be there any more: asserted, after a report.
  ~packet_pool();
  packet_pool(const packet_pool&) = delete;
  packet_pool& operator=(const packet_pool&) = delete;

  // An empty packet with the pool's headroom; an empty handle if there is no buffer. Any thread, as
  // all that follow.
  [[nodiscard, gnu::always_inline]] packet try_allocate() noexcept {
    const std::uint32_t number = buffers_->try_allocate_resting();
    if (number == buffer_pool::no_index) [[unlikely]]
      return {};
    return start(buffers_->at(number), number);
  }
  // The same, waiting for a buffer. Errors: ETIMEDOUT, ECANCELED, ENOMEM, as buffer_pool's.
  result<packet> allocate(std::chrono::nanoseconds timeout,
                          const std::stop_token& stop = {}) noexcept;
  // Fills `packets` from the front, as far as there are buffers; how many. What the handles held
  // before is released.
  std::size_t allocate_burst(std::span<packet> packets) noexcept;
  // Releases them all, whatever pools they are from; empty handles may be among them.
  static void release_burst(std::span<packet> packets) noexcept;

  // A packet on memory that is not the pool's: bytes[headroom ..] is its linear part, of `length`
  // bytes, and what is left on both sides its head- and tailroom. Nobody else may use any of
  // `bytes` while the packet is there. The reference on the block is taken over, but on an error.
  // Errors: EINVAL if it does not fit, errc::too_large above 4 GiB, ENOMEM.
  result<packet> attach(external_block& block, std::span<std::byte> bytes, std::size_t headroom,
                        std::size_t length) noexcept;

  std::size_t headroom() const noexcept { return headroom_; }
  std::size_t buffer_bytes() const noexcept { return buffer_bytes_; }
  const std::string& name() const noexcept { return buffers_->name(); }
  // The buffers of the packets.
  buffer_pool& buffers() noexcept { return *buffers_; }
  packet_pool_statistics statistics() const noexcept;

 private:
  friend class packet_buffer;
  friend class packet;

  packet_pool(const options& opts, std::unique_ptr<buffer_pool> buffers, memory_mapping descriptors,
              std::unique_ptr<slab_cache> bare,
              std::unique_ptr<slab_cache> fragment_arrays) noexcept;

  [[gnu::always_inline]] packet start(buffer& b, std::uint32_t number) noexcept {
    packet_buffer& p = descriptors_[number];
    // Not so at the buffer's first use, and when it was given up and has been made anew.
    if (p.head_ != b.data()) [[unlikely]]
      describe(p, b);
    p.begin(headroom_, buffer_bytes_);
    return packet::adopt(p);
  }
  void describe(packet_buffer& p, buffer& b) noexcept;
  // Memory for a bare descriptor; null if there is none.
  void* new_bare() noexcept { return bare_->allocate(); }

  packet_buffer* const descriptors_;
  const std::uint32_t headroom_;
  const std::uint32_t buffer_bytes_;
  const std::unique_ptr<buffer_pool> buffers_;
  const memory_mapping descriptor_memory_;
  const std::unique_ptr<slab_cache> bare_;
  const std::unique_ptr<slab_cache> fragment_arrays_;
};

}  // namespace forebay
