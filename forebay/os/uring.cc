#include "forebay/os/uring.h"

#include <fcntl.h>
#include <liburing.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>

namespace forebay {
namespace {

void fill(io_uring_sqe& sqe, const uring_submission& s) noexcept {
  const auto offset = s.offset_bytes;
  switch (s.opcode) {
    case uring_opcode::nop:
      io_uring_prep_nop(&sqe);
      break;
    case uring_opcode::read:
      io_uring_prep_read(&sqe, s.fd, const_cast<void*>(s.address), s.length, offset);
      break;
    case uring_opcode::write:
      io_uring_prep_write(&sqe, s.fd, s.address, s.length, offset);
      sqe.rw_flags = static_cast<int>(s.flags);
      break;
    case uring_opcode::read_fixed:
      io_uring_prep_read_fixed(&sqe, s.fd, const_cast<void*>(s.address), s.length, offset,
                               s.buffer_index);
      break;
    case uring_opcode::write_fixed:
      io_uring_prep_write_fixed(&sqe, s.fd, s.address, s.length, offset, s.buffer_index);
      sqe.rw_flags = static_cast<int>(s.flags);
      break;
    case uring_opcode::readv:
      io_uring_prep_readv(&sqe, s.fd, static_cast<const iovec*>(s.address), s.length, offset);
      break;
    case uring_opcode::writev:
      io_uring_prep_writev2(&sqe, s.fd, static_cast<const iovec*>(s.address), s.length, offset,
                            static_cast<int>(s.flags));
      break;
    case uring_opcode::fdatasync:
      io_uring_prep_fsync(&sqe, s.fd, IORING_FSYNC_DATASYNC);
      break;
    case uring_opcode::fallocate:
      io_uring_prep_fallocate(&sqe, s.fd, static_cast<int>(s.flags), static_cast<off_t>(offset),
                              static_cast<off_t>(s.extent_bytes));
      break;
    case uring_opcode::accept:
      io_uring_prep_accept(&sqe, s.fd, nullptr, nullptr, SOCK_CLOEXEC);
      break;
    case uring_opcode::recv:
      io_uring_prep_recv(&sqe, s.fd, const_cast<void*>(s.address), s.length,
                         static_cast<int>(s.flags));
      break;
    case uring_opcode::sendmsg:
      io_uring_prep_sendmsg(&sqe, s.fd, static_cast<const msghdr*>(s.address), s.flags);
      break;
    case uring_opcode::poll:
      io_uring_prep_poll_add(&sqe, s.fd, POLLIN);
      break;
    case uring_opcode::cancel:
      io_uring_prep_cancel64(&sqe, reinterpret_cast<std::uint64_t>(s.address), 0);
      break;
  }
  if (s.registered_file) sqe.flags |= IOSQE_FIXED_FILE;
  sqe.user_data = s.user_data;
}

// What fill() makes.
constexpr std::array used_operations = {
    IORING_OP_NOP,         IORING_OP_READ,        IORING_OP_WRITE,  IORING_OP_READ_FIXED,
    IORING_OP_WRITE_FIXED, IORING_OP_READV,       IORING_OP_WRITEV, IORING_OP_FSYNC,
    IORING_OP_FALLOCATE,   IORING_OP_ACCEPT,      IORING_OP_RECV,   IORING_OP_SENDMSG,
    IORING_OP_POLL_ADD,    IORING_OP_ASYNC_CANCEL};
// What the register_…() and update_…() call.
constexpr std::array used_registrations = {IORING_REGISTER_BUFFERS, IORING_REGISTER_BUFFERS2,
                                           IORING_REGISTER_BUFFERS_UPDATE, IORING_REGISTER_FILES,
                                           IORING_REGISTER_ENABLE_RINGS};

// Lets a ring that has been made disabled do what is used of it, and nothing else, for ever; then
// enables it. Returns 0 or a negative errno.
int restrict_and_enable(io_uring& ring) noexcept {
  std::array<io_uring_restriction, used_operations.size() + used_registrations.size() + 1> rules{};
  std::size_t n = 0;
  for (const auto op : used_operations) {
    rules[n].opcode = IORING_RESTRICTION_SQE_OP;
    rules[n++].sqe_op = static_cast<__u8>(op);
  }
  for (const auto registration : used_registrations) {
    rules[n].opcode = IORING_RESTRICTION_REGISTER_OP;
    rules[n++].register_op = static_cast<__u8>(registration);
  }
  rules[n].opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED;
  rules[n].sqe_flags = IOSQE_FIXED_FILE;
  // liburing 2.3 declares functions for both and does not export them.
  const auto fd = static_cast<unsigned>(ring.ring_fd);
  const int e = io_uring_register(fd, IORING_REGISTER_RESTRICTIONS, rules.data(), rules.size());
  return e != 0 ? e : io_uring_register(fd, IORING_REGISTER_ENABLE_RINGS, nullptr, 0);
}

}  // namespace

const std::uint32_t rwf_dsync = RWF_DSYNC;
const std::uint32_t fallocate_punch_hole = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
const std::uint32_t fallocate_zero_range = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;
const std::uint32_t msg_nosignal = MSG_NOSIGNAL;

void uring::closer::operator()(io_uring* ring) const noexcept {
  io_uring_queue_exit(ring);
  delete ring;
}

uring::uring(std::unique_ptr<io_uring, closer> ring) noexcept : ring_(std::move(ring)) {}
uring::uring(uring&&) noexcept = default;
uring& uring::operator=(uring&&) noexcept = default;
uring::~uring() = default;

result<uring> uring::create(unsigned entries) {
  // Newest set of flags first: what an older kernel does not know it answers with EINVAL. Before
  // 5.10 there are no restrictions either.
  constexpr std::array<unsigned, 4> attempts = {
      IORING_SETUP_R_DISABLED | IORING_SETUP_SUBMIT_ALL | IORING_SETUP_SINGLE_ISSUER |
          IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
      IORING_SETUP_R_DISABLED | IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN |
          IORING_SETUP_TASKRUN_FLAG,
      IORING_SETUP_R_DISABLED,
      0,
  };
  entries = std::bit_ceil(std::max(entries, 8u));
  int error = EINVAL;
  for (const unsigned flags : attempts) {
    auto raw = std::make_unique<io_uring>();
    io_uring_params params{};
    params.flags = flags | IORING_SETUP_CQSIZE;
    params.cq_entries = entries * 4;
    error = -io_uring_queue_init_params(entries, raw.get(), &params);
    if (error == 0) {
      uring made{std::unique_ptr<io_uring, closer>(raw.release())};
      const bool disabled = (flags & IORING_SETUP_R_DISABLED) != 0;
      if (const int e = disabled ? restrict_and_enable(*made.ring_) : 0; e != 0) return fail(-e);
      return made;
    }
    if (error != EINVAL) break;
  }
  return fail(error);
}

result<> uring::push(const uring_submission& s) {
  io_uring_sqe* sqe = io_uring_get_sqe(ring_.get());
  if (sqe == nullptr) {
    if (auto r = submit_and_wait(0); !r) return r;
    sqe = io_uring_get_sqe(ring_.get());
    if (sqe == nullptr) return fail(EAGAIN);
  }
  fill(*sqe, s);
  return {};
}

result<> uring::submit_and_wait(unsigned wait_count, std::uint64_t timeout_ns) {
  int n = 0;
  if (wait_count == 0) {
    n = io_uring_submit_and_get_events(ring_.get());
  } else if (timeout_ns == no_timeout) {
    n = io_uring_submit_and_wait(ring_.get(), wait_count);
  } else {
    __kernel_timespec ts{};
    ts.tv_sec = static_cast<long long>(timeout_ns / 1'000'000'000);
    ts.tv_nsec = static_cast<long long>(timeout_ns % 1'000'000'000);
    io_uring_cqe* first = nullptr;
    n = io_uring_submit_and_wait_timeout(ring_.get(), &first, wait_count, &ts, nullptr);
  }
  // EBUSY: completions must be taken first; the caller does so and comes again.
  if (n < 0 && n != -EINTR && n != -EAGAIN && n != -EBUSY && n != -ETIME) return fail(-n);
  return {};
}

std::size_t uring::pop(std::span<uring_completion> out) noexcept {
  std::array<io_uring_cqe*, 64> entries{};
  const auto wanted = static_cast<unsigned>(std::min(out.size(), entries.size()));
  const unsigned n = io_uring_peek_batch_cqe(ring_.get(), entries.data(), wanted);
  for (unsigned i = 0; i < n; ++i) out[i] = {entries[i]->user_data, entries[i]->res};
  io_uring_cq_advance(ring_.get(), n);
  return n;
}

bool uring::ready() const noexcept { return io_uring_cq_ready(ring_.get()) != 0; }

bool uring::pending() const noexcept {
  const std::atomic_ref<unsigned> flags(*ring_->sq.kflags);
  // relaxed: a hint; what it is about is read after a system call, or an acquire of liburing's.
  return (flags.load(std::memory_order_relaxed) & IORING_SQ_TASKRUN) != 0 || ready();
}

unsigned uring::queued() const noexcept { return io_uring_sq_ready(ring_.get()); }

result<> uring::register_memory(std::span<const iovec> pieces) {
  const int r =
      io_uring_register_buffers(ring_.get(), pieces.data(), static_cast<unsigned>(pieces.size()));
  if (r < 0) return fail(-r);
  return {};
}

result<> uring::register_memory_table(unsigned entries) {
  const int r = io_uring_register_buffers_sparse(ring_.get(), entries);
  if (r < 0) return fail(-r);
  return {};
}

result<std::size_t> uring::update_memory_table(unsigned first, std::span<const iovec> pieces) {
  const int r = io_uring_register_buffers_update_tag(ring_.get(), first, pieces.data(), nullptr,
                                                     static_cast<unsigned>(pieces.size()));
  if (r < 0) return fail(-r);
  return static_cast<std::size_t>(r);
}

result<> uring::register_files(std::span<const int> fds) {
  const int r = io_uring_register_files(ring_.get(), fds.data(), static_cast<unsigned>(fds.size()));
  if (r < 0) return fail(-r);
  return {};
}

}  // namespace forebay
