// The client's side of the NBD handshake: connect, negotiate, and the export's size and flags. What
// follows on the socket is the caller's affair.
#pragma once

#include <sys/socket.h>
#include <sys/time.h>

#include <array>
#include <cstdint>
#include <expected>
#include <string>
#include <utility>
#include <vector>

#include "bench/nbd_wire.h"
#include "fmt/format.h"
#include "forebay/os/socket.h"

namespace forebay::bench::nbd {

// A value, or one line that says what went wrong.
template <typename T = void>
using outcome = std::expected<T, std::string>;

struct session {
  unique_fd socket;
  std::uint64_t size_bytes = 0;
  std::uint16_t flags = 0;  // transmission flags
  bool structured = false;  // structured replies were agreed on
};

namespace detail {

inline std::unexpected<std::string> lost(const std::error_code& e) {
  const bool silent = e == std::errc::resource_unavailable_try_again;  // the receive timeout
  return std::unexpected(fmt::format("handshake: {}", silent ? "no answer" : e.message()));
}

struct option_reply {
  std::uint32_t type = 0;
  std::vector<std::byte> data;
};

inline outcome<> send_option(int fd, option which, std::span<const std::byte> data) {
  std::vector<std::byte> message(16 + data.size());
  std::byte* p = store(message.data(), option_magic);
  p = store(p, static_cast<std::uint32_t>(which));
  p = store(p, static_cast<std::uint32_t>(data.size()));
  std::copy(data.begin(), data.end(), p);
  if (auto sent = send_all(fd, message); !sent) return lost(sent.error());
  return {};
}

inline outcome<option_reply> receive_option_reply(int fd, option asked) {
  std::array<std::byte, 20> head;
  if (auto got = receive_all(fd, head); !got) return lost(got.error());
  if (load<std::uint64_t>(head.data()) != option_reply_magic) {
    return std::unexpected("handshake: wrong magic in an option reply");
  }
  if (load<std::uint32_t>(head.data() + 8) != asked) {
    return std::unexpected("handshake: a reply to another option than the one sent");
  }
  const auto length = load<std::uint32_t>(head.data() + 16);
  if (length > 65536) return std::unexpected("handshake: option reply longer than 64 KiB");
  option_reply reply{load<std::uint32_t>(head.data() + 12), std::vector<std::byte>(length)};
  if (auto got = receive_all(fd, reply.data); !got) return lost(got.error());
  return reply;
}

inline outcome<> greet(int fd) {
  std::array<std::byte, 18> hello;
  if (auto got = receive_all(fd, hello); !got) return lost(got.error());
  if (load<std::uint64_t>(hello.data()) != init_magic ||
      load<std::uint64_t>(hello.data() + 8) != option_magic) {
    return std::unexpected("handshake: the peer is not a newstyle NBD server");
  }
  const auto offered = load<std::uint16_t>(hello.data() + 16);
  if ((offered & flag_fixed_newstyle) == 0) {
    return std::unexpected("handshake: the server has no fixed newstyle");
  }
  std::array<std::byte, 4> answer;
  store(answer.data(), std::uint32_t{offered} & (flag_fixed_newstyle | flag_no_zeroes));
  if (auto sent = send_all(fd, answer); !sent) return lost(sent.error());
  return {};
}

// OPT_GO; leaves the connection in the transmission phase.
inline outcome<> go(session& s, const std::string& name) {
  std::vector<std::byte> data(4 + name.size() + 2);
  std::byte* p = store(data.data(), static_cast<std::uint32_t>(name.size()));
  std::memcpy(p, name.data(), name.size());
  store(p + name.size(), std::uint16_t{0});  // no further information wanted
  if (auto sent = send_option(s.socket.get(), option_go, data); !sent) return sent;
  bool described = false;
  for (;;) {
    auto reply = receive_option_reply(s.socket.get(), option_go);
    if (!reply) return std::unexpected(reply.error());
    if ((reply->type & reply_error_bit) != 0) {
      const std::string text(reinterpret_cast<const char*>(reply->data.data()), reply->data.size());
      return std::unexpected(fmt::format("handshake: the server refuses export \"{}\": {:#x} {}",
                                         name, reply->type, text));
    }
    if (reply->type == reply_ack) break;
    if (reply->data.size() == 12 && load<std::uint16_t>(reply->data.data()) == info_export) {
      s.size_bytes = load<std::uint64_t>(reply->data.data() + 2);
      s.flags = load<std::uint16_t>(reply->data.data() + 10);
      described = true;
    }
  }
  if (!described) return std::unexpected("handshake: the server did not describe the export");
  return {};
}

}  // namespace detail

// Connects, blocking, and goes through the handshake up to the transmission phase. Every later
// receive on the socket gives up after `timeout_seconds`.
inline outcome<session> open_session(const endpoint& where, const std::string& name,
                                     bool structured, unsigned timeout_seconds) {
  auto socket = connect_to(where);
  if (!socket) return std::unexpected(fmt::format("connect: {}", socket.error().message()));
  session s{std::move(*socket)};
  const int fd = s.socket.get();
  if (!where.is_unix()) set_no_delay(fd);
  const timeval timeout{.tv_sec = timeout_seconds, .tv_usec = 0};
  ::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
  if (auto greeted = detail::greet(fd); !greeted) return std::unexpected(greeted.error());
  if (structured) {
    if (auto sent = detail::send_option(fd, option_structured_reply, {}); !sent) {
      return std::unexpected(sent.error());
    }
    auto reply = detail::receive_option_reply(fd, option_structured_reply);
    if (!reply) return std::unexpected(reply.error());
    if (reply->type != reply_ack) {
      return std::unexpected("handshake: the server has no structured replies");
    }
    s.structured = true;
  }
  if (auto gone = detail::go(s, name); !gone) return std::unexpected(gone.error());
  return s;
}

}  // namespace forebay::bench::nbd
