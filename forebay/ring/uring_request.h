// What a queue pair over io_uring can be asked to do. A request that moves data names mapped memory
// only: segments of the queue pair's domains (uring_queue_pair.h) or a mapped_message.
//
// A value. The segments that it points to are read when it is submitted; the memory they stand for
// stays mapped until it has ended.
#pragma once

#include <cstdint>
#include <span>

#include "forebay/dma/segment.h"
#include "forebay/os/uring.h"
#include "forebay/ring/mapped_message.h"

namespace forebay {

class uring_request {
 public:
  static uring_request nop() noexcept { return {uring_opcode::nop, -1}; }

  // Reads from `offset_bytes` of a file into the segments, in their order, less the first
  // `skip_bytes` of the first: a transfer that was cut short is carried on so. Ends with the count
  // of bytes.
  static uring_request read(int fd, std::span<const dma_segment> into, std::uint64_t offset_bytes,
                            std::uint32_t skip_bytes = 0) noexcept {
    uring_request r(uring_opcode::read, fd, offset_bytes);
    r.segments_ = into;
    r.skip_bytes_ = skip_bytes;
    return r;
  }
  // The same for writing; `flags` are RWF_ flags.
  static uring_request write(int fd, std::span<const dma_segment> from, std::uint64_t offset_bytes,
                             std::uint32_t flags = 0, std::uint32_t skip_bytes = 0) noexcept {
    uring_request r(uring_opcode::write, fd, offset_bytes);
    r.segments_ = from;
    r.skip_bytes_ = skip_bytes;
    r.flags_ = flags;
    return r;
  }

  static uring_request fdatasync(int fd) noexcept { return {uring_opcode::fdatasync, fd}; }
  // `mode` is FALLOC_FL_ flags.
  static uring_request fallocate(int fd, std::uint32_t mode, std::uint64_t offset_bytes,
                                 std::uint64_t extent_bytes) noexcept {
    uring_request r(uring_opcode::fallocate, fd, offset_bytes);
    r.extent_bytes_ = extent_bytes;
    r.flags_ = mode;
    return r;
  }

  // Ends once the descriptor can be read from, is at its end or has an error: with what of that,
  // as poll(2) says it.
  static uring_request poll_readable(int fd) noexcept { return {uring_opcode::poll, fd}; }

  // Ends with the descriptor of the connection.
  static uring_request accept(int fd) noexcept { return {uring_opcode::accept, fd}; }
  // Ends with the count of bytes, 0 at the end of the stream. One segment.
  static uring_request receive(int fd, std::span<const dma_segment, 1> into) noexcept {
    uring_request r(uring_opcode::recv, fd);
    r.segments_ = into;
    return r;
  }
  // The message must stay where it is, and mapped, until the request has ended.
  static uring_request send(int fd, const mapped_message& message) noexcept {
    uring_request r(uring_opcode::sendmsg, fd);
    r.message_ = &message;
    r.flags_ = msg_nosignal;
    return r;
  }

  // Whether it moves data of a file.
  bool is_transfer() const noexcept {
    return opcode_ == uring_opcode::read || opcode_ == uring_opcode::write;
  }

 private:
  friend class uring_queue_pair;

  uring_request(uring_opcode opcode, int fd, std::uint64_t offset_bytes = 0) noexcept
      : opcode_(opcode), fd_(fd), offset_bytes_(offset_bytes) {}

  uring_opcode opcode_;
  int fd_;
  std::uint64_t offset_bytes_;
  std::uint64_t extent_bytes_ = 0;
  std::span<const dma_segment> segments_;
  const mapped_message* message_ = nullptr;
  std::uint32_t skip_bytes_ = 0;
  std::uint32_t flags_ = 0;
};

}  // namespace forebay
