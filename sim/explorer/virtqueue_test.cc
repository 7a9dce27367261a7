// One thread: not in the thread sanitizer's tree.
// The rings of virtio (forebay/serve/virtqueue_rings.h) in the explorer: a driver and a device,
// each of which sleeps when there is nothing to do and is woken only if it has asked for that. The
// driver's side is as the specification has it (virtio 1.2, 2.7.13 and 2.8.21).
#include <array>

#include "forebay/serve/virtqueue_rings.h"
#include "sim/explorer/test_explore.h"

namespace forebay::explorer {
namespace {

using number = model_atomics::plain<int>;
using word16 = model_atomics::atomic<std::uint16_t>;
using word32 = model_atomics::atomic<std::uint32_t>;
using word64 = model_atomics::atomic<std::uint64_t>;

// An eventfd.
struct event {
  word32 count{0};

  void signal() {
    // release, acquire: as a write to an eventfd orders its writer before who reads it.
    count.store(1, std::memory_order_release);
    model_futex::wake(count);
  }
  void wait() {
    while (count.load(std::memory_order_acquire) == 0) model_futex::wait(count, 0);  // acquire
    count.store(0, std::memory_order_relaxed);  // relaxed: what it told has been seen
  }
};

constexpr std::uint16_t size = 2;
constexpr std::uint16_t rounds = 2;  // requests, one slot each

// Both rings; the data of each request is the driver's, then the device's.
template <bool Packed, bool EventIndex>
struct ring_words {
  // Split.
  word16 avail_flags{0}, avail_idx{0}, used_event{0}, used_flags{0}, used_idx{0}, avail_event{0};
  std::array<word16, size> avail_ring;
  std::array<word32, 2 * size> used_ring;
  // Packed.
  std::array<word64, 2 * size> descriptors;
  word32 driver_event{0}, device_event{0};

  std::array<number, rounds> asked;
  std::array<number, rounds> answered;
  event kick, call;
};

template <bool EventIndex>
struct split_way {
  static constexpr unsigned threads = 2;
  static constexpr options bounds{.preemptions = 2};
  ring_words<false, EventIndex> w;

  split_words<model_atomics> words() {
    return {.avail_flags = &w.avail_flags,
            .avail_idx = &w.avail_idx,
            .avail_ring = w.avail_ring.data(),
            .used_event = &w.used_event,
            .used_flags = &w.used_flags,
            .used_idx = &w.used_idx,
            .used_ring = w.used_ring.data(),
            .avail_event = &w.avail_event};
  }

  void device() {
    split_ring<model_atomics> ring(words(), size, EventIndex, 0, 0);
    for (std::uint16_t done = 0; done != rounds;) {
      const auto there = ring.available();
      check(there.has_value());
      if (!*there) {
        const auto now = ring.enable_kicks();
        check(now.has_value());
        if (!*now) w.kick.wait();
        ring.disable_kicks();
        continue;
      }
      const auto head = ring.take();
      check(head.has_value() && *head == done % size);
      check(w.asked[done].get() == done + 1);
      w.answered[done].set(done + 10);
      ring.put(*head, done + 1u);
      ring.publish();
      if (ring.wants_call()) w.call.signal();
      ++done;
    }
  }

  void driver() {
    for (std::uint16_t i = 0; i != rounds; ++i) {
      w.asked[i].set(i + 1);
      w.avail_ring[i % size].store(i % size, std::memory_order_relaxed);  // relaxed: the index's
      // release: for the entry and the data.
      w.avail_idx.store(static_cast<std::uint16_t>(i + 1), std::memory_order_release);
      model_atomics::fence(std::memory_order_seq_cst);  // seq_cst: pairs with enable_kicks()
      // relaxed, both: the fence orders them.
      const bool wanted = EventIndex
                              ? event_passed_16(w.avail_event.load(std::memory_order_relaxed), i,
                                                static_cast<std::uint16_t>(i + 1))
                              : (w.used_flags.load(std::memory_order_relaxed) & 1) == 0;  // relaxed
      if (wanted) w.kick.signal();
    }
    for (std::uint16_t i = 0; i != rounds; ++i) {
      // acquire: for the entry and the data.
      while (w.used_idx.load(std::memory_order_acquire) == i) {
        w.used_event.store(i, std::memory_order_relaxed);  // relaxed: the fence orders it
        model_atomics::fence(std::memory_order_seq_cst);   // seq_cst: pairs with wants_call()
        if (w.used_idx.load(std::memory_order_acquire) == i) w.call.wait();  // acquire: as above
      }
      check(w.used_ring[2 * (i % size) + 1].load(std::memory_order_relaxed) == i + 1u);  // relaxed
      check(w.answered[i].get() == i + 10);
    }
  }

  void run(unsigned thread) { thread == 0 ? driver() : device(); }
  void finish() {}
};

template <bool EventIndex>
struct packed_way {
  static constexpr unsigned threads = 2;
  static constexpr options bounds{.preemptions = 2};
  using ring_type = packed_ring<model_atomics>;
  ring_words<true, EventIndex> w;

  void device() {
    ring_type ring({.descriptors = w.descriptors.data(),
                    .driver_event = &w.driver_event,
                    .device_event = &w.device_event},
                   size, EventIndex, {}, {});
    for (std::uint16_t done = 0; done != rounds;) {
      if (!ring.available()) {
        if (!ring.enable_kicks()) w.kick.wait();
        ring.disable_kicks();
        continue;
      }
      std::array<descriptor, size> chain;
      const auto taken = ring.take(chain);
      check(taken.has_value() && taken->id == done && taken->slots == 1);
      check(w.asked[done].get() == done + 1);
      w.answered[done].set(done + 10);
      ring.put(taken->id, 1, done + 1u);
      if (ring.wants_call()) w.call.signal();
      ++done;
    }
  }

  void driver() {
    packed_position next;
    for (std::uint16_t i = 0; i != rounds; ++i) {
      w.asked[i].set(i + 1);
      const std::uint64_t flags = next.wrap ? ring_type::avail_bit : ring_type::used_bit;
      w.descriptors[2 * next.slot].store(i,
                                         std::memory_order_relaxed);  // relaxed: the flags' order
      // release: for the address and the data.
      w.descriptors[2 * next.slot + 1].store(std::uint64_t{i} << 32 | flags << 48,
                                             std::memory_order_release);
      const packed_position old = next;
      next.advance(1, size);
      model_atomics::fence(std::memory_order_seq_cst);  // seq_cst: pairs with enable_kicks()
      const std::uint32_t e = w.device_event.load(std::memory_order_relaxed);  // relaxed: the fence
      const bool wanted = e >> 16 == ring_type::event_at
                              ? packed_position::unpack(static_cast<std::uint16_t>(e)) == old
                              : e >> 16 != ring_type::event_disable;
      if (wanted) w.kick.signal();
    }
    packed_position at;
    const auto used = [&] {
      // acquire: for the data.
      const std::uint64_t s = w.descriptors[2 * at.slot + 1].load(std::memory_order_acquire);
      return ((s >> 55 & 1) != 0) == at.wrap && (s >> 63 != 0) == at.wrap;
    };
    for (std::uint16_t i = 0; i != rounds; ++i) {
      while (!used()) {
        const std::uint32_t e = EventIndex ? at.pack() | ring_type::event_at << 16 : 0;
        w.driver_event.store(e, std::memory_order_relaxed);  // relaxed: the fence orders it
        model_atomics::fence(std::memory_order_seq_cst);     // seq_cst: pairs with wants_call()
        if (!used()) w.call.wait();
      }
      check(w.answered[i].get() == i + 10);
      at.advance(1, size);
    }
  }

  void run(unsigned thread) { thread == 0 ? driver() : device(); }
  void finish() {}
};

TEST(explored_virtqueue, wakes_whoever_asks_and_loses_nothing) {
  expect_explored_and_needed<split_way<false>, split_way<true>, packed_way<false>,
                             packed_way<true>>({"serve/virtqueue_rings.h"});
}

}  // namespace
}  // namespace forebay::explorer
