// What a connection receives: one buffer between the socket and the parser.
//
// One thread, the connection's.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "forebay/ring/loop.h"

namespace forebay {

class receive_buffer {
 public:
  // Pages of it that have never been used cost nothing.
  static constexpr std::size_t capacity = 256u << 10;

  explicit receive_buffer(int fd) : fd_(fd), bytes_(new std::byte[capacity]) {}

  // Received and not consumed.
  std::span<const std::byte> available() const noexcept {
    return {bytes_.get() + start_, end_ - start_};
  }
  void consume(std::size_t bytes) noexcept { start_ += bytes; }

  // Receives until at least `bytes` (at most capacity) are available. Errors: errc::end_of_stream
  // when the peer has closed, errno.
  task<> fill(std::size_t bytes);

  // Consumes and drops so many bytes, received or yet to come.
  task<> skip(std::uint64_t bytes);

  std::uint64_t received_bytes() const noexcept { return received_bytes_; }

 private:
  const int fd_;
  std::unique_ptr<std::byte[]> bytes_;
  std::size_t start_ = 0;
  std::size_t end_ = 0;
  std::uint64_t received_bytes_ = 0;
};

}  // namespace forebay
