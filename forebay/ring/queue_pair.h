// What a queue pair is (as NVMe's, whose words these are): a submission queue and a completion
// queue that run independently. Submissions are handed over by the doorbell, many at a time;
// completions come in any order, and each is matched to its submission by an identifier, behind
// which is the caller's completion record.
//
//    submit() --> | . . . |  -- ring_doorbell() -->  the other side
//    reap()   <-- | . . . |  <--------------------   a kernel, a process, a device
//
// uring_queue_pair is one with the kernel, shared_queue_pair one with another process.
#pragma once

#include <concepts>
#include <cstdint>

#include "forebay/base/result.h"
#include "forebay/ring/completion.h"

namespace forebay {

template <typename Q>
concept QueuePair = requires(Q& q, const Q& seen, const typename Q::submission& s, completion& done,
                             std::uint64_t timeout_ns, unsigned completions) {
  // Queues it; nothing is queued on an error. `done` is reaped when it has ended, with its status.
  { q.submit(s, done) } -> std::same_as<result<>>;
  // Hands over what is queued, and waits for so many completions at most so long; 0 only looks.
  { q.ring_doorbell(timeout_ns) } -> std::same_as<result<>>;
  { q.ring_doorbell(timeout_ns, completions) } -> std::same_as<result<>>;
  // The next one that has ended; null if there is none for now.
  { q.reap() } -> std::same_as<completion*>;
  // Not handed over yet, and not reaped yet.
  { seen.queued() } -> std::convertible_to<std::uint32_t>;
  { seen.in_flight() } -> std::convertible_to<std::uint32_t>;
};

}  // namespace forebay
