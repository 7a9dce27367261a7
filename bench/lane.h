// One NBD connection in its transmission phase, kept at a constant depth with as few system calls
// as there can be: one sendmsg for all requests that became free together, one recv for all replies
// that are there.
//
//      refill(): free slots -> requests_ + iov_ --sendmsg--> server --recv--> buffer_ -> parse() ->
//      slots free again
//
// Payload of reads is checked or skipped where it lies in the receive buffer, never copied. Replies
// may come in any order and in any pieces. Owned and used by one thread; no locks.
#pragma once

#include <poll.h>
#include <sys/uio.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "bench/nbd_client.h"
#include "bench/pattern.h"
#include "forebay/base/stats.h"
#include "forebay/os/clock.h"

namespace forebay::bench {

using nbd::outcome;

// What is done to the server from one beginning to one end.
struct phase {
  nbd::command what = nbd::command_read;
  std::uint32_t block_bytes = 4096;
  unsigned depth = 1;
  bool sequential = false;
  bool pattern = false;  // write the pattern; require it in what is read
  std::uint64_t range_bytes = 0;
  std::optional<std::uint64_t> operations = std::nullopt;  // how many at most
  std::optional<double> seconds = std::nullopt;            // how long at most, after the ramp
  double ramp_seconds = 0;                                 // what happens before is not counted
};

// The offsets of a phase, shared by its connections.
class work_source {
 public:
  struct piece {
    std::uint64_t offset = 0;
    std::uint32_t length = 0;
  };

  work_source(const phase& p, std::uint64_t seed)
      : phase_(p), left_(p.operations.value_or(UINT64_MAX)), random_(seed) {}

  std::optional<piece> next() {
    if (left_ == 0) return std::nullopt;
    --left_;
    if (phase_.what == nbd::command_flush) return piece{};
    if (!phase_.sequential) {
      const std::uint64_t blocks = phase_.range_bytes / phase_.block_bytes;
      return piece{random_() % blocks * phase_.block_bytes, phase_.block_bytes};
    }
    if (at_ >= phase_.range_bytes) at_ = 0;
    const std::uint64_t rest = phase_.range_bytes - at_;
    const auto length =
        static_cast<std::uint32_t>(std::min<std::uint64_t>(phase_.block_bytes, rest));
    return piece{std::exchange(at_, at_ + length), length};
  }

  void stop() noexcept { left_ = 0; }

 private:
  phase phase_;
  std::uint64_t left_;
  std::uint64_t at_ = 0;
  std::mt19937_64 random_;
};

// What completed while it was counted.
struct tally {
  std::uint64_t operations = 0;
  std::uint64_t bytes = 0;
  histogram latency_ns;
};

class lane {
 public:
  lane(nbd::session session, unsigned timeout_seconds)
      : session_(std::move(session)), timeout_seconds_(timeout_seconds), buffer_(buffer_bytes) {}

  // Begins a phase; nothing may be in flight.
  void begin(const phase& p) {
    phase_ = p;
    slots_.assign(p.depth, slot{});
    free_.clear();
    for (unsigned i = p.depth; i > 0; --i) free_.push_back(i - 1);
    requests_.resize(p.depth * nbd::request_bytes);
    if (p.what != nbd::command_write) return;
    if (p.pattern) {
      payload_.resize(std::size_t{p.depth} * p.block_bytes);
    } else {
      payload_.resize(p.block_bytes + payload_spread);
      pattern_fill(0, std::span(payload_).first(payload_.size() & ~std::size_t{7}));
    }
  }

  int fd() const noexcept { return session_.socket.get(); }
  const nbd::session& session() const noexcept { return session_; }
  bool idle() const noexcept { return free_.size() == slots_.size(); }
  bool sending() const noexcept { return iov_head_ < iov_.size(); }
  short events() const noexcept {
    return static_cast<short>((idle() ? 0 : POLLIN) | (sending() ? POLLOUT : 0));
  }
  // When the last receive returned.
  std::uint64_t last_ns() const noexcept { return last_ns_; }

  // Sends what is left of the last batch, or else a new batch for every free slot. Does not block.
  outcome<> refill(work_source& source) {
    if (!sending()) {
      iov_.clear();
      iov_head_ = 0;
      requests_used_ = 0;
      const std::uint64_t now = monotonic_clock::now_ns();
      while (!free_.empty()) {
        const auto piece = source.next();
        if (!piece) break;
        add_request(*piece, now);
      }
    }
    while (sending()) {
      msghdr message{};
      message.msg_iov = iov_.data() + iov_head_;
      message.msg_iovlen = std::min<std::size_t>(iov_.size() - iov_head_, UIO_MAXIOV);
      const ssize_t n = ::sendmsg(fd(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0 && errno == EAGAIN) return {};
      if (n < 0) return std::unexpected(fmt::format("send: {}", std::strerror(errno)));
      sent(static_cast<std::size_t>(n));
    }
    return {};
  }

  // One recv, which blocks if `wait` is set, and everything it brought. Completions are added to
  // `count` unless it is null.
  outcome<> receive(bool wait, tally* count) {
    const ssize_t n =
        ::recv(fd(), buffer_.data() + filled_, buffer_.size() - filled_, wait ? 0 : MSG_DONTWAIT);
    last_ns_ = monotonic_clock::now_ns();
    if (n < 0 && errno == EINTR) return {};
    if (n < 0 && errno == EAGAIN && !wait) return {};
    if (n < 0 && errno == EAGAIN) return std::unexpected(silence());
    if (n < 0) return std::unexpected(fmt::format("receive: {}", std::strerror(errno)));
    if (n == 0) return std::unexpected("the server closed the connection");
    filled_ += static_cast<std::size_t>(n);
    return parse(count);
  }

  std::string silence() const { return fmt::format("no reply for {} s", timeout_seconds_); }

  // Ends the connection as the protocol wants it.
  void disconnect() {
    std::array<std::byte, nbd::request_bytes> request;
    put_request(request.data(), nbd::command_disconnect, 0, {});
    [[maybe_unused]] auto ignored = send_all(fd(), request);  // the peer may be gone already
  }

 private:
  static constexpr std::size_t buffer_bytes = std::size_t{256} << 10;
  static constexpr std::size_t payload_spread = std::size_t{64} << 10;
  static constexpr unsigned slot_bits = 16;

  struct slot {
    std::uint64_t cookie = 0;  // 0: free
    std::uint64_t start_ns = 0;
    work_source::piece piece;
    std::uint32_t covered = 0;  // bytes of a read that chunks have brought
  };

  static void put_request(std::byte* to, nbd::command what, std::uint64_t cookie,
                          work_source::piece piece) {
    to = nbd::store(to, nbd::request_magic);
    to = nbd::store(to, std::uint16_t{0});  // no command flags
    to = nbd::store(to, static_cast<std::uint16_t>(what));
    to = nbd::store(to, cookie);
    to = nbd::store(to, piece.offset);
    nbd::store(to, piece.length);
  }

  void add_request(work_source::piece piece, std::uint64_t now) {
    const unsigned index = free_.back();
    free_.pop_back();
    slots_[index] = slot{++serial_ << slot_bits | index, now, piece, 0};
    std::byte* request = requests_.data() + requests_used_;
    requests_used_ += nbd::request_bytes;
    put_request(request, phase_.what, slots_[index].cookie, piece);
    add_iov(request, nbd::request_bytes);
    if (phase_.what != nbd::command_write) return;
    std::byte* data = payload_.data();
    if (phase_.pattern) {
      data += std::size_t{index} * phase_.block_bytes;
      pattern_fill(piece.offset, {data, piece.length});
    } else {
      data += serial_ * 64 % payload_spread;
    }
    add_iov(data, piece.length);
  }

  void add_iov(std::byte* data, std::size_t size) {
    if (!iov_.empty() &&
        static_cast<std::byte*>(iov_.back().iov_base) + iov_.back().iov_len == data) {
      iov_.back().iov_len += size;
    } else {
      iov_.push_back({data, size});
    }
  }

  void sent(std::size_t n) {
    while (n > 0) {
      iovec& first = iov_[iov_head_];
      const std::size_t part = std::min(n, first.iov_len);
      first.iov_base = static_cast<std::byte*>(first.iov_base) + part;
      first.iov_len -= part;
      n -= part;
      if (first.iov_len == 0) ++iov_head_;
    }
  }

  outcome<> parse(tally* count) {
    std::size_t at = 0;
    while (at < filled_) {
      const std::span<const std::byte> rest(buffer_.data() + at, filled_ - at);
      const auto used = data_left_ > 0 ? take_data(rest, count) : take_header(rest, count);
      if (!used) return std::unexpected(used.error());
      if (*used == 0) break;
      at += *used;
    }
    std::memmove(buffer_.data(), buffer_.data() + at, filled_ - at);
    filled_ -= at;
    return {};
  }

  outcome<std::size_t> take_data(std::span<const std::byte> rest, tally* count) {
    const std::size_t n = std::min<std::size_t>(data_left_, rest.size());
    if (phase_.pattern) {
      if (const auto bad = pattern_mismatch(data_offset_, rest.first(n))) {
        return std::unexpected(fmt::format("wrong data at offset {}", *bad));
      }
    }
    data_offset_ += n;
    data_left_ -= static_cast<std::uint32_t>(n);
    if (data_left_ == 0 && done_after_data_) {
      if (auto ended = complete(*current_, count); !ended) return std::unexpected(ended.error());
    }
    return n;
  }

  // 0 if more bytes are needed first.
  outcome<std::size_t> take_header(std::span<const std::byte> rest, tally* count) {
    if (rest.size() < nbd::simple_reply_bytes) return 0;
    const auto magic = nbd::load<std::uint32_t>(rest.data());
    if (magic == nbd::structured_reply_magic && session_.structured) return take_chunk(rest, count);
    if (magic != nbd::simple_reply_magic) {
      return std::unexpected(fmt::format("wrong reply magic {:#010x}", magic));
    }
    slot* s = find(nbd::load<std::uint64_t>(rest.data() + 8));
    if (s == nullptr) return std::unexpected("a reply with a cookie that was not sent");
    if (const auto error = nbd::load<std::uint32_t>(rest.data() + 4); error != 0) {
      return std::unexpected(refused(*s, error));
    }
    if (phase_.what == nbd::command_read) {
      if (session_.structured) return std::unexpected("a simple reply where chunks were agreed on");
      s->covered = s->piece.length;
      expect_data(*s, s->piece.offset, s->piece.length, true);
    } else if (auto ended = complete(*s, count); !ended) {
      return std::unexpected(ended.error());
    }
    return nbd::simple_reply_bytes;
  }

  outcome<std::size_t> take_chunk(std::span<const std::byte> rest, tally* count) {
    if (rest.size() < nbd::chunk_header_bytes) return 0;
    const bool done = (nbd::load<std::uint16_t>(rest.data() + 4) & nbd::chunk_done) != 0;
    const auto type = nbd::load<std::uint16_t>(rest.data() + 6);
    slot* s = find(nbd::load<std::uint64_t>(rest.data() + 8));
    const auto length = nbd::load<std::uint32_t>(rest.data() + 16);
    if (s == nullptr) return std::unexpected("a chunk with a cookie that was not sent");
    const std::byte* body = rest.data() + nbd::chunk_header_bytes;
    // What must be there before the chunk is judged: all of it, but of data only the offset.
    const std::size_t head = type == nbd::chunk_offset_data ? 8 : std::min<std::size_t>(length, 12);
    if (rest.size() < nbd::chunk_header_bytes + head) return 0;
    if ((type & nbd::chunk_error_bit) != 0) {
      return std::unexpected(refused(*s, length >= 4 ? nbd::load<std::uint32_t>(body) : 0));
    }
    std::uint32_t data = 0;
    if (type == nbd::chunk_offset_data && length > 8) {
      data = length - 8;
      s->covered += data;
      expect_data(*s, nbd::load<std::uint64_t>(body), data, done);
    } else if (type == nbd::chunk_offset_hole && length == 12) {
      if (phase_.pattern)
        return std::unexpected(fmt::format("a hole at offset {}", s->piece.offset));
      s->covered += nbd::load<std::uint32_t>(body + 8);
    } else if (type != nbd::chunk_none || length != 0) {
      return std::unexpected(fmt::format("a chunk of type {} with {} bytes", type, length));
    }
    if (done && data == 0) {
      if (auto ended = complete(*s, count); !ended) return std::unexpected(ended.error());
    }
    return nbd::chunk_header_bytes + head;
  }

  slot* find(std::uint64_t cookie) noexcept {
    const std::uint64_t index = cookie & ((1u << slot_bits) - 1);
    if (cookie == 0 || index >= slots_.size() || slots_[index].cookie != cookie) return nullptr;
    return &slots_[index];
  }

  std::string refused(const slot& s, std::uint32_t error) const {
    return fmt::format("the server answers command {} at offset {}, {} bytes, with error {}",
                       static_cast<unsigned>(phase_.what), s.piece.offset, s.piece.length, error);
  }

  void expect_data(slot& s, std::uint64_t offset, std::uint32_t length, bool done) noexcept {
    current_ = &s;
    data_offset_ = offset;
    data_left_ = length;
    done_after_data_ = done;
  }

  outcome<> complete(slot& s, tally* count) {
    if (phase_.what == nbd::command_read && s.covered != s.piece.length) {
      return std::unexpected(
          fmt::format("{} bytes where {} were asked for", s.covered, s.piece.length));
    }
    if (count != nullptr) {
      ++count->operations;
      count->bytes += s.piece.length;
      count->latency_ns.record(last_ns_ - s.start_ns);
    }
    s.cookie = 0;
    free_.push_back(static_cast<unsigned>(&s - slots_.data()));
    return {};
  }

  nbd::session session_;
  unsigned timeout_seconds_;
  phase phase_;
  std::uint64_t serial_ = 0;
  std::uint64_t last_ns_ = 0;

  std::vector<slot> slots_;
  std::vector<unsigned> free_;  // exactly the slots whose cookie is 0

  // The batch on its way out: requests_ and payload_ hold its bytes, iov_ from iov_head_ on what is
  // not yet sent. A new batch is made only when that is nothing, so that requests_ never holds more
  // than one request a slot.
  std::vector<std::byte> requests_;
  std::size_t requests_used_ = 0;
  std::vector<std::byte> payload_;
  std::vector<iovec> iov_;
  std::size_t iov_head_ = 0;

  // What came in and is not yet parsed: the first filled_ bytes; between two calls no more than one
  // incomplete header.
  std::vector<std::byte> buffer_;
  std::size_t filled_ = 0;
  // The rest of the payload that comes next; data_left_ is 0 when a header comes next.
  slot* current_ = nullptr;
  std::uint64_t data_offset_ = 0;
  std::uint32_t data_left_ = 0;
  bool done_after_data_ = false;
};

}  // namespace forebay::bench
