// What must hold of a virtqueue whatever the guest has written: for the tests, and for
// fuzz/virtqueue.cc.
#pragma once

#include <cstring>
#include <memory>
#include <new>

#include "forebay/base/assert.h"
#include "forebay/os/shared_memory.h"
#include "forebay/serve/inflight_log.h"
#include "forebay/serve/virtqueue.h"

namespace forebay {

// A guest of some pages: the ring's words lie at the front, and anything may lie in them.
class hostile_guest {
 public:
  static constexpr std::size_t bytes = 16384;
  static constexpr std::uint64_t physical = 0x10000;
  static constexpr std::uint64_t gap = 0x1000;  // between the halves, on the guest's side

  hostile_guest() {
    auto made = shared_memory::create("hostile", bytes);
    FOREBAY_ASSERT(made.has_value());
    memory_ = std::make_unique<shared_memory>(std::move(*made));
    const int fd = memory_->fd();
    FOREBAY_ASSERT(regions_.add({physical, bytes / 2, 0, 0}, fd).has_value());
    FOREBAY_ASSERT(regions_.add({physical + bytes / 2 + gap, bytes / 2, bytes / 2, bytes / 2}, fd)
                       .has_value());
  }

  std::span<std::byte> memory() { return memory_->memory(); }
  const guest_memory& regions() const { return regions_; }

  // Serves a queue over these bytes as memory, and puts everything back that comes out of it. The
  // first bytes say of what kind it is. What must hold is asserted.
  void serve(std::span<const std::uint8_t> input) {
    std::uint8_t how[4] = {};
    std::memcpy(how, input.data(), std::min(input.size(), sizeof how));
    input = input.subspan(std::min(input.size(), sizeof how));
    std::memset(memory().data(), 0, bytes);
    std::memcpy(memory().data(), input.data(), std::min(input.size(), bytes));
    const bool packed = (how[0] & 1) != 0;
    const auto size = static_cast<std::uint16_t>(packed ? how[1] % 64 + 1 : 1 << how[1] % 7);
    virtqueue_setup s{.size = size,
                      .packed = packed,
                      .event_index = (how[0] & 2) != 0,
                      .indirect = (how[0] & 4) != 0,
                      .driver = 1024,
                      .device = 1280,
                      .base = packed ? how[2] % size | 0x8000u : how[2]};
    auto q = virtqueue::create(s, regions_);
    FOREBAY_ASSERT(q.has_value());
    inflight_log log;
    if ((how[0] & 8) != 0) {
      alignas(8) static std::byte log_memory[64 * 32 + 64];
      // Often an empty one, sometimes what the guest says.
      std::memset(log_memory, 0, sizeof log_memory);
      if ((how[0] & 16) != 0) std::memcpy(log_memory, memory().data() + 8192, sizeof log_memory);
      auto opened = inflight_log::open(log_memory, *q);
      if (opened) log = std::move(*opened);
    }
    drive(*q, log, how[3]);
  }

 private:
  void drive(virtqueue& q, inflight_log& log, std::uint8_t pattern) {
    struct outstanding {
      std::uint16_t id, slots, number;
    };
    std::unique_ptr<outstanding[]> held(new outstanding[virtqueue_size_max + 1]);
    std::size_t count = 0;
    for (unsigned step = 0; step < 300; ++step) {
      auto e = std::make_unique<virtqueue::element>();
      auto storage = std::make_unique<virtqueue::piece_storage>();
      std::uint16_t number = 0;
      bool there = log && log.next_again(q, *e, *storage, number);
      if (!there) {
        const auto taken = q.take(*e, *storage);
        if (!taken) return;  // the ring is wrong, and is not used any more
        there = *taken;
        if (there && log) number = log.taken(*e);
      }
      if (!there) {
        if (count == 0) break;
      } else {
        check(*e, q.size());
        FOREBAY_ASSERT(count < q.size());  // never more than the ring can hold
        held[count++] = {e->id, e->slots, number};
      }
      // Some are put back at once, some later, in another order.
      if (!there || (pattern >> step % 8 & 1) != 0) {
        const std::size_t which = step * 7u % count;
        const outstanding o = held[which];
        held[which] = held[--count];
        if (log) log.before_put(q, o.number, o.slots);
        q.put(o.id, o.slots, 1);
        q.publish();
        if (log) log.after_publish(q.is_packed() ? 0 : q.split().used());
        static_cast<void>(q.wants_call());
        if (step % 3 == 0) static_cast<void>(q.enable_kicks());
      }
    }
  }

  void check(const virtqueue::element& e, std::uint16_t size) const {
    FOREBAY_ASSERT(e.slots >= 1 && e.slots <= size);
    FOREBAY_ASSERT(e.readable <= e.pieces.size());
    if (e.error) FOREBAY_ASSERT(e.pieces.empty());
    std::uint64_t total = 0;
    const auto memory = memory_->memory();
    static_cast<void>(memory);
    for (const std::span<std::byte>& p : e.pieces) {
      FOREBAY_ASSERT(!p.empty());
      total += p.size();
      FOREBAY_ASSERT(is_guests(p));
    }
    FOREBAY_ASSERT(total == e.readable_bytes + e.writable_bytes);
    FOREBAY_ASSERT(total <= virtqueue::chain_bytes_max);
  }
  // Whether it lies in one of the regions.
  bool is_guests(std::span<std::byte> p) const {
    for (const std::uint64_t at : {std::uint64_t{0}, std::uint64_t{bytes / 2}}) {
      const auto r = regions_.at_user_address(at, bytes / 2);
      if (p.data() >= r->data() && p.data() + p.size() <= r->data() + r->size()) return true;
    }
    return false;
  }

  std::unique_ptr<shared_memory> memory_;
  guest_memory regions_;
};

}  // namespace forebay
