// io_uring as a queue pair (queue_pair.h): the kernel is the other side, the identifier is the
// address of the completion record.
//
// All memory that a transfer moves is mapped first, in one of the pair's two domains: registered()
// for transfers of files, which uses registered memory wherever there is some, and plain() for
// sockets. Where the domains are checked (dma/debug.h), so is each request: that what it names is
// mapped, in the direction it goes. Files can be registered too: submit() then uses them by itself.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "forebay/dma/identity_domain.h"
#include "forebay/os/uring.h"
#include "forebay/ring/queue_pair.h"
#include "forebay/ring/uring_domain.h"
#include "forebay/ring/uring_request.h"

namespace forebay {

class uring_queue_pair {
 public:
  using submission = uring_request;

  // Errors: as uring::create, ENOMEM.
  static result<std::unique_ptr<uring_queue_pair>> create(unsigned entries);

  // Over a ring that the calling thread has made.
  explicit uring_queue_pair(uring ring) noexcept : ring_(std::move(ring)) {}
  uring_queue_pair(const uring_queue_pair&) = delete;
  uring_queue_pair& operator=(const uring_queue_pair&) = delete;

  uring_domain& registered() noexcept { return registered_; }
  identity_domain& plain() noexcept { return plain_; }

  // Registers files; `fds` replaces what was registered before, which must be nothing.
  result<> register_files(std::span<const int> fds);

  // Queues `r`; `done` is reaped when it has ended, with done.status as the system call's. Errors,
  // nothing is queued then: EINVAL for a transfer without segments or with more than
  // max_segments, EAGAIN when the kernel takes nothing now, errno of io_uring_enter(2).
  result<> submit(const uring_request& r, completion& done) noexcept;

  // Asks the kernel to give up the operation that ends in `target`; `done` is reaped with 0, or
  // -ENOENT or -EALREADY if it is too late. Errors as submit().
  result<> cancel(const completion& target, completion& done) noexcept;

  static constexpr std::size_t max_segments = 256;  // of one transfer

  // Hands over what is queued (the doorbell) and waits until `completions`, which must be under
  // way, can be reaped, at most `timeout_ns`; 0 only looks. Waiting for several of many saves
  // wake-ups (NVMe's interrupt coalescing).
  result<> ring_doorbell(std::uint64_t timeout_ns, unsigned completions = 1) noexcept;

  // Submissions that are queued and not handed over yet.
  unsigned queued() const noexcept { return ring_.queued(); }

  // The next ended operation, null when there is none for now.
  completion* reap() noexcept;

  // Whether there is something to reap.
  bool ready() const noexcept { return reaped_next_ != reaped_count_ || ring_.ready(); }
  // The same, perhaps only after ring_doorbell(0). No system call.
  bool pending() const noexcept { return reaped_next_ != reaped_count_ || ring_.pending(); }

  // Submitted and not yet reaped.
  std::uint32_t in_flight() const noexcept { return in_flight_; }

 private:
  [[gnu::cold]] void check_memory(const uring_request& r) const noexcept;
  result<> set_memory(uring_submission& s, const uring_request& r) noexcept;
  result<> set_vector(uring_submission& s, const uring_request& r) noexcept;
  void use_registered_file(uring_submission& s) const noexcept;
  result<> push(uring_submission& s, const completion& done) noexcept;

  uring ring_;
  uring_domain registered_{ring_};
  identity_domain plain_{"uring-plain"};
  std::vector<int> files_;  // registered under their index here
  std::uint32_t in_flight_ = 0;
  std::size_t vectors_used_ = 0;
  // Of queued submissions; the kernel copies them when it takes those.
  std::array<iovec, max_segments> vectors_{};
  std::array<uring_completion, 32> reaped_{};
  std::size_t reaped_count_ = 0;
  std::size_t reaped_next_ = 0;
};

static_assert(QueuePair<uring_queue_pair>);

}  // namespace forebay
