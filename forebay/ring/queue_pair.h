// io_uring as a queue pair: a submission queue and a completion queue that run independently,
// completions in any order and matched by identifier (the address of the completion record).
//
// Memory of one arena and a set of files can be registered, so that the kernel need not look them
// up and pin them for each transfer: submit() then uses them by itself wherever an address or
// descriptor is one of theirs.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "forebay/memory/arena.h"
#include "forebay/os/uring.h"
#include "forebay/ring/completion.h"

namespace forebay {

// What the layers above need of a queue pair.
template <typename Q>
concept QueuePair = requires(Q& q, const uring_submission& s, completion& c) {
  { q.submit(s, c) } -> std::same_as<result<>>;
  { q.reap() } -> std::same_as<completion*>;
};

class uring_queue_pair {
 public:
  // Errors: as uring::create.
  static result<uring_queue_pair> create(unsigned entries);

  // Registers an arena's memory. On failure (RLIMIT_MEMLOCK, usually) transfers work as before,
  // unregistered.
  result<> register_arena(const arena& memory);
  // Registers files; `fds` replaces what was registered before, which must be nothing.
  result<> register_files(std::span<const int> fds);

  bool has_registered_memory() const noexcept { return memory_bytes_ != 0; }

  // Queues `s`; `done` is reaped when it has ended, with done.status as the system call's. Error:
  // nothing is queued.
  result<> submit(uring_submission s, completion& done);

  // Hands over what is queued (the doorbell) and waits for at least one completion, at most
  // `timeout_ns`; 0 only looks.
  result<> ring_doorbell(std::uint64_t timeout_ns);

  // Submissions that are queued and not handed over yet.
  unsigned queued() const noexcept { return ring_.queued(); }

  // The next ended operation, null when there is none for now.
  completion* reap() noexcept;

  // Submitted and not yet reaped.
  std::uint32_t in_flight() const noexcept { return in_flight_; }

 private:
  explicit uring_queue_pair(uring ring) noexcept : ring_(std::move(ring)) {}

  void use_registered(uring_submission& s) const noexcept;

  uring ring_;
  std::uintptr_t memory_start_ = 0;
  std::size_t memory_bytes_ = 0;  // 0: none registered
  std::vector<int> files_;        // registered under their index here
  std::uint32_t in_flight_ = 0;
  std::array<uring_completion, 32> reaped_{};
  std::size_t reaped_count_ = 0;
  std::size_t reaped_next_ = 0;
};

static_assert(QueuePair<uring_queue_pair>);

}  // namespace forebay
