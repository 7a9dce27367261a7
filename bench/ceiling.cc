// ceiling: how fast NBD can be served on this machine at all.
//
// Memory behind a socket and nothing else: one thread a connection, one recv for all requests that
// are there and one sendmsg for all their replies, no cache, no device, no flush, no check beyond
// the bounds. bench/run shows it beside the servers as the practical limit of the protocol; it is
// no server for anybody's data.
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <CLI/CLI.hpp>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "bench/nbd_wire.h"
#include "fmt/format.h"
#include "forebay/os/socket.h"

namespace forebay::bench {
namespace {

// Answers options until the client wants to transmit; false if it leaves or breaks the protocol.
bool shake_hands(int fd, std::uint64_t size_bytes) {
  using namespace nbd;
  const std::uint16_t flags = has_flags | send_flush | can_multi_conn;
  std::array<std::byte, 18> hello;
  store(store(store(hello.data(), init_magic), option_magic),
        static_cast<std::uint16_t>(flag_fixed_newstyle | flag_no_zeroes));
  std::array<std::byte, 4> client_flags;
  if (!send_all(fd, hello) || !receive_all(fd, client_flags)) return false;
  for (;;) {
    std::array<std::byte, 16> head;
    if (!receive_all(fd, head) || load<std::uint64_t>(head.data()) != option_magic) return false;
    const auto asked = load<std::uint32_t>(head.data() + 8);
    const auto length = load<std::uint32_t>(head.data() + 12);
    if (length > 65536) return false;
    std::vector<std::byte> data(length);
    if (!receive_all(fd, data)) return false;

    std::array<std::byte, 32 + 20> answer;  // an information and an acknowledgement
    std::byte* p = answer.data();
    const auto reply = [&](std::uint32_t type, std::uint32_t bytes) {
      p = store(store(store(store(p, option_reply_magic), asked), type), bytes);
    };
    const bool describe = asked == option_go || asked == option_info;
    if (describe) {
      reply(reply_info, 12);
      p = store(store(store(p, info_export), size_bytes), flags);
    }
    reply(describe || asked == option_abort ? reply_ack : reply_unsupported, 0);
    const std::span<const std::byte> text(answer.data(), p);
    if (!send_all(fd, text) || asked == option_abort) return false;
    if (asked == option_go) return true;
  }
}

// One connection's transmission phase.
class responder {
 public:
  responder(int fd, std::span<std::byte> image) : fd_(fd), image_(image), in_(buffer_bytes) {}

  void serve() {
    while (receive() && parse() && reply()) {
    }
  }

 private:
  // The rest of a write that is under way goes straight to its place; what follows it goes to in_.
  bool receive() {
    std::array<iovec, 2> iov{iovec{write_to_.data(), write_to_.size()},
                             iovec{in_.data() + filled_, in_.size() - filled_}};
    msghdr message{};
    message.msg_iov = write_to_.empty() ? &iov[1] : &iov[0];
    message.msg_iovlen = write_to_.empty() ? 1 : 2;
    ssize_t n = 0;
    do {
      n = ::recvmsg(fd_, &message, 0);
    } while (n < 0 && errno == EINTR);
    if (n <= 0) return false;
    const std::size_t direct = std::min(write_to_.size(), static_cast<std::size_t>(n));
    const bool finished = !write_to_.empty() && direct == write_to_.size();
    write_to_ = write_to_.subspan(direct);
    if (finished) add_reply(write_cookie_, 0);
    filled_ += static_cast<std::size_t>(n) - direct;
    return true;
  }

  // False ends the connection.
  bool parse() {
    std::size_t at = 0;
    while (write_to_.empty() && filled_ - at >= nbd::request_bytes) {
      const std::byte* request = in_.data() + at;
      at += nbd::request_bytes;
      if (nbd::load<std::uint32_t>(request) != nbd::request_magic) return false;
      const auto what = nbd::load<std::uint16_t>(request + 6);
      const auto cookie = nbd::load<std::uint64_t>(request + 8);
      const auto offset = nbd::load<std::uint64_t>(request + 16);
      const std::size_t length = nbd::load<std::uint32_t>(request + 24);
      if (what == nbd::command_disconnect) return false;
      if (offset > image_.size() || length > image_.size() - offset) return false;
      if (what == nbd::command_write) {
        const std::size_t here = std::min(length, filled_ - at);
        std::memcpy(image_.data() + offset, in_.data() + at, here);
        at += here;
        write_to_ = image_.subspan(offset + here, length - here);
        write_cookie_ = cookie;
        if (write_to_.empty()) add_reply(cookie, 0);
      } else {
        add_reply(cookie, what == nbd::command_read || what == nbd::command_flush ? 0 : EINVAL);
        if (what == nbd::command_read)
          data_.push_back({replies_.size(), image_.subspan(offset, length)});
      }
    }
    std::memmove(in_.data(), in_.data() + at, filled_ - at);
    filled_ -= at;
    return true;
  }

  void add_reply(std::uint64_t cookie, std::uint32_t error) {
    const std::size_t at = replies_.size();
    replies_.resize(at + nbd::simple_reply_bytes);
    nbd::store(nbd::store(nbd::store(replies_.data() + at, nbd::simple_reply_magic), error),
               cookie);
  }

  bool reply() {
    iov_.clear();
    std::size_t at = 0;
    for (const payload& d : data_) {
      iov_.push_back({replies_.data() + at, d.after - at});
      iov_.push_back({d.bytes.data(), d.bytes.size()});
      at = d.after;
    }
    if (at < replies_.size()) iov_.push_back({replies_.data() + at, replies_.size() - at});
    const bool sent = send_iov();
    data_.clear();
    replies_.clear();
    return sent;
  }

  bool send_iov() {
    std::span<iovec> rest(iov_);
    while (!rest.empty()) {
      msghdr message{};
      message.msg_iov = rest.data();
      message.msg_iovlen = std::min<std::size_t>(rest.size(), UIO_MAXIOV);
      const ssize_t n = ::sendmsg(fd_, &message, MSG_NOSIGNAL);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return false;
      auto left = static_cast<std::size_t>(n);
      while (!rest.empty() && left >= rest.front().iov_len) {
        left -= rest.front().iov_len;
        rest = rest.subspan(1);
      }
      if (left == 0) continue;
      rest.front().iov_base = static_cast<std::byte*>(rest.front().iov_base) + left;
      rest.front().iov_len -= left;
    }
    return true;
  }

  static constexpr std::size_t buffer_bytes = std::size_t{64} << 10;

  struct payload {
    std::size_t after;  // follows this many bytes of replies_
    std::span<std::byte> bytes;
  };

  int fd_;
  std::span<std::byte> image_;
  std::vector<std::byte> in_;
  std::size_t filled_ = 0;
  std::span<std::byte>
      write_to_;  // where the rest of the current write goes; empty if there is none
  std::uint64_t write_cookie_ = 0;
  std::vector<std::byte> replies_;
  std::vector<payload> data_;
  std::vector<iovec> iov_;
};

void serve_connection(const unique_fd& connection, std::span<std::byte> image) {
  set_no_delay(connection.get());
  if (!shake_hands(connection.get(), image.size())) return;
  responder(connection.get(), image).serve();
}

int serve(const std::string& path, std::uint64_t size_bytes) {
  void* memory =
      ::mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    fmt::print(stderr, "ceiling: {} bytes of memory: {}\n", size_bytes, std::strerror(errno));
    return 1;
  }
  ::madvise(memory, size_bytes, MADV_HUGEPAGE);  // without huge pages it works as well
  const std::span<std::byte> image(static_cast<std::byte*>(memory), size_bytes);
  const auto listener = listen_unix(path);
  if (!listener) {
    fmt::print(stderr, "ceiling: {}: {}\n", path, listener.error().message());
    return 1;
  }
  for (;;) {
    unique_fd connection(::accept4(listener->get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!connection) {
      if (errno == EINTR || errno == ECONNABORTED) continue;
      fmt::print(stderr, "ceiling: accept: {}\n", std::strerror(errno));
      return 1;
    }
    std::thread([image, c = std::move(connection)] { serve_connection(c, image); }).detach();
  }
}

}  // namespace
}  // namespace forebay::bench

int main(int argc, char** argv) {
  CLI::App app{"Serves memory over NBD with one recv and one sendmsg a batch"};
  std::string socket;
  std::uint64_t size_bytes = 1 << 30;
  app.add_option("--socket", socket, "Unix socket to listen on")->required();
  app.add_option("--size", size_bytes, "Bytes of the export")->transform(CLI::AsSizeValue(false));
  CLI11_PARSE(app, argc, argv);
  return forebay::bench::serve(socket, size_bytes);
}
