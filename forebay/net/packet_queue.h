// Packet queue: packets between any number of threads, with one of the five policies for when it is
// full (base/exhaustion.h): one for each direction of a port.
//
//    push() ──> | packet | packet | … |  ──> pop()         a policy_ring of their descriptors
//                        │
//                        └──> head_drop: the oldest is released
//
// The queue owns what is in it, and releases the rest when it goes. What it refuses stays the
// caller's, so that nothing is lost without somebody knowing; what was lost by policy is counted,
// in packets and in bytes.
//
// Any thread, all of it, but for the end. The counters are exact when no thread is inside.
#pragma once

#include <memory>
#include <span>

#include "forebay/net/packet_buffer.h"
#include "forebay/ring/policy_ring.h"

namespace forebay {

struct packet_queue_statistics {
  std::uint64_t packets_in = 0;  // taken by push()
  std::uint64_t bytes_in = 0;
  std::uint64_t packets_out = 0;
  std::uint64_t packets_dropped = 0;  // refused or given up; what waits is counted by policy only
  std::uint64_t bytes_dropped = 0;
  std::uint64_t length = 0;  // now
  std::uint64_t capacity = 0;
  exhaustion_statistics policy;
};

class packet_queue {
 public:
  struct options {
    std::size_t capacity = 0;  // packets; a power of two
    exhaustion_policy when_full = exhaustion_policy::tail_drop;
    std::size_t limit = 0;   // expand: packets; a power of two
    water_marks marks = {};  // back_pressure; {0, 0}: three quarters and one quarter
    // back_pressure: called when the signal changes, and must not push or pop.
    void (*on_pressure)(void* context, bool high) noexcept = nullptr;
    void* context = nullptr;
  };

  // Errors: those of policy_ring::create().
  static result<std::unique_ptr<packet_queue>> create(const options& opts) noexcept;
  ~packet_queue();
  packet_queue(const packet_queue&) = delete;
  packet_queue& operator=(const packet_queue&) = delete;

  // As the policy says; `p` is empty after success, and as it was after an error. Errors:
  // EINVAL for an empty handle; ENOBUFS, EAGAIN, ETIMEDOUT, ECANCELED as policy_ring::push().
  result<> push(packet&& p, const wait_limit& limit = {}) noexcept;
  // The packets from the front, until one is refused; how many were taken.
  std::size_t push_burst(std::span<packet> packets, const wait_limit& limit = {}) noexcept;

  // The oldest packet; an empty handle if there is none.
  packet pop() noexcept;
  // As many as there are, up to packets.size(), from its front; how many. What the handles held
  // before is released.
  std::size_t pop_burst(std::span<packet> packets) noexcept;

  std::size_t size() const noexcept { return ring_->size(); }
  std::size_t capacity() const noexcept { return ring_->capacity(); }
  exhaustion_policy policy() const noexcept { return ring_->policy(); }
  // back_pressure: whether who sends should stop.
  bool pressure() const noexcept { return ring_->pressure(); }
  packet_queue_statistics statistics() const noexcept;

 private:
  using ring = policy_ring<packet_buffer*>;

  class observer final : public policy_ring_observer<packet_buffer*> {
   public:
    observer(packet_queue& queue, const options& opts) noexcept
        : queue_(queue), on_pressure_(opts.on_pressure), context_(opts.context) {}
    void dropped(packet_buffer* const& p) noexcept override {
      queue_.count_drop(p->length());
      packet::adopt(*p).reset();
    }
    void pressure(bool high) noexcept override {
      if (on_pressure_ != nullptr) on_pressure_(context_, high);
    }

   private:
    packet_queue& queue_;
    void (*const on_pressure_)(void*, bool) noexcept;
    void* const context_;
  };

  explicit packet_queue(const options& opts) noexcept : observer_(*this, opts) {}
  void count_drop(std::size_t bytes) noexcept;

  observer observer_;
  std::unique_ptr<ring> ring_;  // set by create()
  std::atomic<std::uint64_t> packets_in_{0};
  std::atomic<std::uint64_t> bytes_in_{0};
  std::atomic<std::uint64_t> packets_out_{0};
  std::atomic<std::uint64_t> packets_dropped_{0};
  std::atomic<std::uint64_t> bytes_dropped_{0};
};

}  // namespace forebay
