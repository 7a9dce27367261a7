// io_uring as a queue pair: a submission queue and a completion queue that run independently,
// completions in any order and matched by identifier (the address of the completion record).
//
// Memory of one arena and a set of files can be registered, so that the kernel need not look them
// up and pin them for each transfer: submit() then uses them by itself wherever an address or
// descriptor is one of theirs. The arena's memory is registered by its chunks of 2 MiB, which can
// be taken off and put back while transfers run; a transfer that is not within one registered chunk
// goes the ordinary way.
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

  // Registers the chunks of an arena that have memory now, the first max_registered_chunks of them,
  // which keeps them in memory. Returns how many bytes it could register: fewer than there are when
  // the kernel refused one (RLIMIT_MEMLOCK, usually). Errors, nothing is registered then and
  // transfers work as before: EBUSY if an arena has been registered already; what the kernel
  // answered for the first chunk.
  result<std::size_t> register_arena(const arena& memory);
  // One chunk more, or again. Errors, it is not registered then: EAGAIN if the arena has no memory
  // for it, EINVAL if it is beyond what can be registered, what the kernel answered.
  result<> register_chunk(std::uint32_t chunk);
  // One chunk fewer. Transfers that are under way in it go on.
  void unregister_chunk(std::uint32_t chunk) noexcept;
  bool has_registered_chunk(std::uint32_t chunk) const noexcept {
    return chunk < registered_.size() && registered_[chunk];
  }

  static constexpr std::uint32_t max_registered_chunks = uring::memory_table_max;  // 32 GiB

  // Registers files; `fds` replaces what was registered before, which must be nothing.
  result<> register_files(std::span<const int> fds);

  bool has_registered_memory() const noexcept { return memory_ != nullptr; }

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
  const arena* memory_ = nullptr;  // whose chunks are in the ring's table, under their own numbers
  std::vector<bool> registered_;   // those that are
  std::vector<int> files_;         // registered under their index here
  std::uint32_t in_flight_ = 0;
  std::array<uring_completion, 32> reaped_{};
  std::size_t reaped_count_ = 0;
  std::size_t reaped_next_ = 0;
};

static_assert(QueuePair<uring_queue_pair>);

}  // namespace forebay
