// The rings that an AF_XDP socket shares with the kernel, each from one side to the other:
//
//    fill         program ──> kernel     addresses of empty frames, to be received into
//    rx           kernel  ──> program    descriptors of received frames
//    tx           program ──> kernel     descriptors of frames to be sent
//    completion   kernel  ──> program    addresses of frames that have been sent
//
//    producer word:  | entries put, modulo 2^32  |      written by who puts, read by the other
//    consumer word:  | entries taken             |      written by who takes, read by the other
//    entries:        | 0 | 1 | 2 | …             |      a power of two of them
//
// The layout is the kernel's (net/xdp/xsk_queue.h), so this is not one of the rings between
// threads: an entry is full when the producer word has gone past it, and free when the consumer
// word has. With an entry goes the memory that it names: what was written before the producer word
// is seen by who reads the word, and so is the entry.
//
// Both sides keep a copy of the other's word and look at the word itself only when the copy does
// not promise enough: a burst costs one look and one store.
//
// Each object is one side and belongs to one thread. The memory is somebody else's.
#pragma once

#include <cstdint>

#include "forebay/base/assert.h"
#include "forebay/base/atomics.h"

namespace forebay {

template <typename T, AtomicsPolicy Atomics = real_atomics>
struct xdp_ring_words {
  using word = typename Atomics::template atomic<std::uint32_t>;
  using entry = typename Atomics::template plain<T>;

  word* producer = nullptr;
  word* consumer = nullptr;
  entry* entries = nullptr;
  std::uint32_t capacity = 0;  // entries; a power of two
};

// Who puts entries in.
template <typename T, AtomicsPolicy Atomics = real_atomics>
class basic_xdp_producer {
 public:
  basic_xdp_producer() noexcept = default;
  explicit basic_xdp_producer(const xdp_ring_words<T, Atomics>& ring) noexcept
      : ring_(ring),
        // relaxed, both: whoever set the ring up ordered that.
        next_(ring.producer->load(std::memory_order_relaxed)),
        taken_(ring.consumer->load(std::memory_order_relaxed)) {}

  std::uint32_t capacity() const noexcept { return ring_.capacity; }

  // How many entries are free: exact if there are fewer than `wanted`, otherwise at least that.
  std::uint32_t free(std::uint32_t wanted) noexcept {
    if (ring_.capacity - (next_ - taken_) < wanted) {
      // acquire: what the other side read of an entry, it has read before the entry is written
      // anew.
      taken_ = ring_.consumer->load(std::memory_order_acquire);
    }
    return ring_.capacity - (next_ - taken_);
  }
  // Whether the other side has taken all that was put.
  bool all_taken() noexcept { return free(ring_.capacity) == ring_.capacity; }

  // Writes the i-th free entry.
  void put(std::uint32_t i, const T& value) noexcept {
    FOREBAY_DCHECK(next_ - taken_ + i < ring_.capacity);
    ring_.entries[(next_ + i) & (ring_.capacity - 1)].set(value);
  }
  // Hands the first n entries that were free over, with all that was done to what they name.
  void commit(std::uint32_t n) noexcept {
    next_ += n;
    // release: pairs with the other side's look at the word.
    ring_.producer->store(next_, std::memory_order_release);
  }

 private:
  xdp_ring_words<T, Atomics> ring_;
  std::uint32_t next_ = 0;   // as the producer word
  std::uint32_t taken_ = 0;  // the consumer word, some time ago
};

// Who takes entries out.
template <typename T, AtomicsPolicy Atomics = real_atomics>
class basic_xdp_consumer {
 public:
  basic_xdp_consumer() noexcept = default;
  explicit basic_xdp_consumer(const xdp_ring_words<T, Atomics>& ring) noexcept
      : ring_(ring),
        // relaxed, both: whoever set the ring up ordered that.
        next_(ring.consumer->load(std::memory_order_relaxed)),
        put_(next_) {}

  std::uint32_t capacity() const noexcept { return ring_.capacity; }

  // How many entries are there: exact if there are fewer than `wanted`, otherwise at least that.
  std::uint32_t ready(std::uint32_t wanted) noexcept {
    if (put_ - next_ < wanted) {
      // acquire: pairs with the other side's commit(), for the entries and what they name.
      put_ = ring_.producer->load(std::memory_order_acquire);
    }
    return put_ - next_;
  }

  // Reads the i-th entry that is there.
  T get(std::uint32_t i) const noexcept {
    FOREBAY_DCHECK(i < put_ - next_);
    return ring_.entries[(next_ + i) & (ring_.capacity - 1)].get();
  }
  // Gives the first n entries back; what they name stays the caller's.
  void release(std::uint32_t n) noexcept {
    next_ += n;
    // release: the entries have been read before the other side writes them anew.
    ring_.consumer->store(next_, std::memory_order_release);
  }

 private:
  xdp_ring_words<T, Atomics> ring_;
  std::uint32_t next_ = 0;  // as the consumer word
  std::uint32_t put_ = 0;   // the producer word, some time ago
};

}  // namespace forebay
