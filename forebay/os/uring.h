// io_uring: set-up, submission and completion entries, registration. Nothing here waits but
// submit_and_wait().
//
// A ring can do only what is said here: the kernel refuses any other operation with EACCES, whoever
// writes it into the ring (since Linux 5.10). A new opcode has to be let through in uring.cc.
//
// One thread owns a ring: it creates it and makes every call on it (IORING_SETUP_SINGLE_ISSUER
// where the kernel has it).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "forebay/base/result.h"

struct iovec;
struct msghdr;
struct io_uring;

namespace forebay {

enum class uring_opcode : std::uint8_t {
  nop,
  read,
  write,
  read_fixed,   // into registered memory
  write_fixed,  // from registered memory
  readv,
  writev,
  fdatasync,
  fallocate,
  accept,
  recv,
  sendmsg,
  poll,  // until it can be read from, is at its end or has an error
  cancel,
};

// One submission, as it goes into the ring. Addresses must stay valid until its completion arrives.
struct uring_submission {
  uring_opcode opcode = uring_opcode::nop;
  bool registered_file = false;    // fd is an index into the registered files
  std::uint16_t buffer_index = 0;  // of registered memory
  int fd = -1;
  const void* address = nullptr;  // data, iovec array, msghdr; for cancel: the user_data to cancel
  std::uint32_t length = 0;       // bytes or iovec count; fallocate: unused
  std::uint64_t offset_bytes = 0;
  std::uint64_t extent_bytes = 0;  // fallocate: length of the range
  std::uint32_t flags = 0;         // RWF_, MSG_, FALLOC_ or SOCK_ flags
  std::uint64_t user_data = 0;     // comes back with the completion
};

struct uring_completion {
  std::uint64_t user_data;
  std::int32_t result;  // as the system call would return it: negative errno on failure
};

class uring {
 public:
  // A ring with at least `entries` submission slots and four times as many completion slots.
  // Errors: ENOSYS, EPERM (io_uring is switched off), ENOMEM.
  static result<uring> create(unsigned entries);

  uring(uring&&) noexcept;
  uring& operator=(uring&&) noexcept;
  ~uring();

  // Queues one submission; when the submission queue is full, submits what it holds first. Error:
  // errno of io_uring_enter(2), nothing is queued then.
  result<> push(const uring_submission& s);

  static constexpr std::uint64_t no_timeout = UINT64_MAX;

  // Hands what is queued to the kernel and waits for `wait_count` completions (0: does not wait),
  // at most `timeout_ns` nanoseconds. A signal, a timeout and a busy kernel are not errors: the
  // caller looks at the completions and comes again.
  result<> submit_and_wait(unsigned wait_count, std::uint64_t timeout_ns = no_timeout);

  // Up to out.size() completions that are there; returns how many.
  std::size_t pop(std::span<uring_completion> out) noexcept;

  // Whether pop() has something. No system call.
  bool ready() const noexcept;
  // The same, or would have after submit_and_wait(0).
  bool pending() const noexcept;

  // Submissions that are queued and not handed over yet.
  unsigned queued() const noexcept;

  // Registers memory in pieces (each at most 1 GiB) under indexes 0, 1, …; pins it. Errors: ENOMEM
  // when RLIMIT_MEMLOCK is too small, errno.
  result<> register_memory(std::span<const iovec> pieces);

  // The largest table of registered memory.
  static constexpr unsigned memory_table_max = 1u << 14;

  // Makes a table of `entries` indexes without memory. Errors: EBUSY if there is registered memory,
  // EINVAL where the kernel has no such tables (before 5.19), errno.
  result<> register_memory_table(unsigned entries);
  // Registers pieces under indexes `first`, first + 1, … of the table in place of what is there;
  // one without bytes leaves its index empty. What was there before is let go of as soon as no
  // operation uses it. Returns how many of the pieces could be registered; the error if none could.
  result<std::size_t> update_memory_table(unsigned first, std::span<const iovec> pieces);

  // Registers files under indexes 0, 1, …
  result<> register_files(std::span<const int> fds);

 private:
  struct closer {
    void operator()(io_uring* ring) const noexcept;
  };
  explicit uring(std::unique_ptr<io_uring, closer> ring) noexcept;

  std::unique_ptr<io_uring, closer> ring_;
};

// RWF_DSYNC for writes: durable when it completes (FUA).
extern const std::uint32_t rwf_dsync;
// FALLOC_FL_ flags for a range that is to read as zeros.
extern const std::uint32_t fallocate_punch_hole;
extern const std::uint32_t fallocate_zero_range;
// MSG_NOSIGNAL.
extern const std::uint32_t msg_nosignal;

}  // namespace forebay
