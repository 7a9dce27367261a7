// The buffer between a port and a file: packets go in one by one, already as the blocks they will
// be in the file, and come out in chunks.
//
//    append() ──> chunk being filled ──publish──> queue of full chunks ──> take()
//                        ^                        (policy_ring)               │
//                        └──────────── empty chunks <──────────── give_back() ┘
//
// One of the five policies says what happens when the queue is full (base/exhaustion.h), counted in
// packets:
//
//    tail_drop      the chunk stays where it is until there is room, packets that come are dropped
//    head_drop      the oldest chunk is given up with all its packets
//    back_pressure  under_pressure() is true from three quarters to one quarter: the packets are
//    left
//                   where they come from; what comes all the same is dropped as a refusal
//    expand         the queue doubles, up to a limit; then as tail_drop
//    block          append() waits for room
//
// The queue is full when it has as many chunks as there are, or, if it has an age limit, when its
// oldest chunk was published longer ago than that.
//
// A chunk holds whole blocks, so the file is one whatever chunks are left out. It never changes
// hands with none to take its place: there are two more than the queue has room for.
//
// Thread-safety: append(), tick(), under_pressure(), finish() and close() belong to the thread that
// puts in; try_take(), give_back() and arrival to the one that takes out; statistics() to any.
#pragma once

#include <atomic>
#include <memory>
#include <span>
#include <vector>

#include "forebay/base/exhaustion.h"
#include "forebay/net/pcapng.h"
#include "forebay/os/memory.h"
#include "forebay/ring/policy_ring.h"
#include "forebay/ring/spsc_ring.h"
#include "forebay/ring/wait_queue.h"

namespace forebay {

struct record_chunk {
  std::byte* data = nullptr;
  std::size_t used = 0;  // bytes
  std::uint64_t packets = 0;
  std::uint64_t period = 0;      // as append() was told; the same for the whole chunk
  std::uint64_t started_ns = 0;  // monotonic, when the first packet came
  std::span<const std::byte> bytes() const noexcept { return {data, used}; }
};

struct record_buffer_statistics {
  exhaustion_statistics policy;      // drops and refusals in packets, the others in times
  std::uint64_t appended = 0;        // packets that were taken in, with those given up later
  std::uint64_t appended_bytes = 0;  // of blocks
  std::size_t waiting_chunks = 0;    // full, not taken yet
  std::size_t capacity_chunks = 0;
  std::size_t chunk_bytes = 0;
};

class record_buffer : private policy_ring_observer<record_chunk*> {
 public:
  static constexpr std::size_t queue_chunks_min = 8;

  struct options {
    std::size_t bytes = 0;        // of the queue at first
    std::size_t limit_bytes = 0;  // expand: of the queue at last
    std::size_t chunk_bytes_max = std::size_t{1} << 20;
    std::size_t packet_bytes_max = 0;  // no packet's block may be larger than a chunk
    exhaustion_policy when_full = exhaustion_policy::tail_drop;
    std::uint64_t age_limit_ns = UINT64_MAX;
    std::uint64_t patience_ns = 200'000'000;  // how long a packet may wait for a chunk to be full
  };

  // The least that `bytes` may be for packets of that size.
  static constexpr std::size_t bytes_min(std::size_t packet_bytes_max) noexcept {
    return queue_chunks_min * pcapng::packet_block_bytes(packet_bytes_max);
  }

  // Errors: errc::too_small below bytes_min(), or for a limit below that; ENOMEM.
  static result<std::unique_ptr<record_buffer>> create(const options& opts);
  record_buffer(const record_buffer&) = delete;
  record_buffer& operator=(const record_buffer&) = delete;

  // ---- Putting in ----

  // A packet, of which `segments` have all the bytes that are to be kept. Packets of another
  // `period` than the last one begin a new chunk. `now_ns`: of monotonic_clock, may lag.
  template <typename ForEachSegment>
  void append(std::uint64_t stamp_ns, std::size_t captured, std::uint32_t wire_bytes,
              std::uint64_t period, std::uint64_t now_ns, const ForEachSegment& copy_to) noexcept {
    const std::size_t need = pcapng::packet_block_bytes(captured);
    if (need > chunk_bytes_ - filling_->used || period != filling_->period) [[unlikely]] {
      if (!begin_chunk(need, period, now_ns)) return;
    }
    if (filling_->packets == 0) filling_->started_ns = now_ns;
    std::byte* at = filling_->data + filling_->used;
    copy_to(pcapng::begin_packet(at, stamp_ns, captured, wire_bytes));
    pcapng::end_packet(at + pcapng::packet_head_bytes + captured, captured);
    filling_->used += need;
    ++filling_->packets;
    note(appended_, 1);
    note(appended_bytes_, need);
  }

  // To be called now and then: publishes a chunk whose first packet has waited for long.
  void tick(std::uint64_t now_ns) noexcept;

  // back_pressure: whether packets had better be left where they are.
  bool under_pressure(std::uint64_t now_ns) const noexcept;

  // From now on append() waits for room, whatever the policy: for the last packets of all.
  void be_patient() noexcept { patient_ = true; }

  // Publishes what there is. Nothing may be appended afterwards.
  void close() noexcept;

  // ---- Taking out ----

  // The oldest chunk, null if there is none now.
  record_chunk* try_take() noexcept;
  void give_back(record_chunk& c) noexcept;
  // Whether there is one to take, or will never be one again.
  bool worth_a_look() const noexcept;
  // Nothing is left, and nothing will come.
  bool drained() const noexcept;
  // Woken when one of these may have become so.
  wait_queue& arrivals() noexcept { return arrivals_; }

  record_buffer_statistics statistics() const noexcept;

 private:
  record_buffer(const options& opts, std::size_t chunk_bytes, memory_mapping memory,
                std::vector<record_chunk> chunks) noexcept;

  // policy_ring_observer
  void dropped(record_chunk* const& oldest) noexcept override;

  bool begin_chunk(std::size_t need, std::uint64_t period, std::uint64_t now_ns) noexcept;
  bool publish(std::uint64_t now_ns) noexcept;
  bool publish_patiently() noexcept;
  bool too_old(std::uint64_t now_ns) const noexcept;
  void drop_newcomer() noexcept;
  record_chunk* empty_chunk() noexcept;

  // One writer; others may read a value that is a little old.
  static void note(std::atomic<std::uint64_t>& counted, std::uint64_t more) noexcept {
    // relaxed, both: the only writer adds to what it wrote itself.
    counted.store(counted.load(std::memory_order_relaxed) + more,
                  std::memory_order_relaxed);  // relaxed: see above
  }

  const options options_;
  const std::size_t chunk_bytes_;
  const memory_mapping memory_;
  std::vector<record_chunk> chunks_;  // one after the other in memory_
  std::unique_ptr<policy_ring<record_chunk*>> queue_;
  std::unique_ptr<spsc_ring<record_chunk*>> empty_;  // back from who took them

  // Of who puts in.
  record_chunk* filling_;
  std::vector<record_chunk*> spare_;  // chunks that were given up
  std::size_t fresh_;                 // chunks from here on have never been used
  bool patient_ = false;
  // When each chunk in the queue was published, by its number modulo the size; published_ counts
  // those that were, gone_ those that have left again.
  std::vector<std::uint64_t> published_ns_;
  std::uint64_t published_ = 0;
  std::atomic<std::uint64_t> gone_{0};

  std::atomic<bool> closed_{false};
  wait_queue arrivals_;

  std::atomic<std::uint64_t> appended_{0};
  std::atomic<std::uint64_t> appended_bytes_{0};
  std::atomic<std::uint64_t> tail_drops_{0};  // packets, as the next two
  std::atomic<std::uint64_t> head_drops_{0};
  std::atomic<std::uint64_t> refusals_{0};
};

}  // namespace forebay
