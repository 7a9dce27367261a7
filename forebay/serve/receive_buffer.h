// What a connection receives: one buffer between the socket and the parser.
//
// It is small as long as what comes is small, which is enough for any stream of requests; a large
// one is taken from extra memory when payload arrives in quantity or a message needs it, and goes
// back when nothing of the kind has come for a while. Without memory for it the small one goes on.
//
// One thread, the connection's.
#pragma once

#include <cstddef>
#include <span>

#include "forebay/base/stats.h"
#include "forebay/ring/loop.h"
#include "forebay/serve/request_memory.h"
#include "forebay/serve/tls.h"

namespace forebay {

class receive_buffer {
 public:
  static constexpr std::size_t small_bytes = 8u << 10;
  static constexpr std::size_t large_bytes = 256u << 10;

  receive_buffer(int fd, request_memory& memory) noexcept;
  ~receive_buffer();
  receive_buffer(const receive_buffer&) = delete;
  receive_buffer& operator=(const receive_buffer&) = delete;

  // False without memory for the small buffer: it is of no use then.
  bool usable() const noexcept { return small_ != nullptr; }

  // From now on what comes is encrypted for this channel, which stays as long. Nothing is
  // available.
  void use(tls_channel& channel) noexcept { tls_ = &channel; }

  // From now on the bytes that it moves, to make room behind them, are counted there.
  void count_moves(counter& moved) noexcept { moved_ = &moved; }

  // Received and not consumed.
  std::span<const std::byte> available() const noexcept { return {bytes_ + start_, end_ - start_}; }
  void consume(std::size_t bytes) noexcept { start_ += bytes; }

  // Whether so many bytes can be available together: always up to small_bytes; up to large_bytes if
  // there is memory for that. What is available may move.
  bool can_hold(std::size_t bytes) noexcept {
    return bytes <= capacity_ || (bytes <= large_bytes && enlarge());
  }

  // Receives until at least `bytes`, which it can hold, are available. Errors: errc::end_of_stream
  // when the peer has closed, errno.
  task<> fill(std::size_t bytes);

  // Consumes and drops so many bytes, received or yet to come.
  task<> skip(std::uint64_t bytes);

  std::uint64_t received_bytes() const noexcept { return received_bytes_; }
  std::uint64_t consumed_bytes() const noexcept { return received_bytes_ - available().size(); }
  std::size_t capacity() const noexcept { return capacity_; }

 private:
  // So many receives in a row that the small buffer would have served: the large one goes back.
  static constexpr unsigned small_receives_max = 64;

  bool enlarge() noexcept;
  void make_small() noexcept;
  void move_to(std::byte* to) noexcept;
  void add(std::size_t received, std::size_t room) noexcept;
  void adapt(std::size_t received, std::size_t room) noexcept;

  const int fd_;
  request_memory& memory_;
  tls_channel* tls_ = nullptr;
  counter* moved_ = nullptr;
  std::byte* const small_;
  std::byte* bytes_;  // small_, or the large one
  std::size_t capacity_ = small_bytes;
  std::size_t start_ = 0;
  std::size_t end_ = 0;
  unsigned small_receives_ = 0;
  std::uint64_t received_bytes_ = 0;
};

}  // namespace forebay
