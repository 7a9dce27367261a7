// Stream sockets: listening, connecting, and the addresses of both.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "forebay/os/fd.h"

namespace forebay {

// Where a server listens: a unix socket's path, or a host and port.
struct endpoint {
  std::string path;  // unix socket if not empty
  std::string host;  // name or address, without brackets
  std::uint16_t port = 0;

  bool is_unix() const noexcept { return !path.empty(); }

  // "HOST:PORT", "[V6ADDRESS]:PORT" or ":PORT" (every address). Error: EINVAL.
  static result<endpoint> parse_tcp(const std::string& text);

  // The URI of an NBD export at this endpoint (NetworkBlockDevice/nbd doc/uri.md), escaped;
  // of one that demands TLS, if so.
  std::string nbd_uri(const std::string& export_name, bool tls = false) const;
};

// Listens on a unix socket. A socket file that nobody listens on any more is replaced. Errors:
// EINVAL if the path is empty; ENAMETOOLONG; EADDRINUSE if a process listens there; EEXIST if the
// path is something else than a socket; errno of socket(2), connect(2) and bind(2), with the file
// untouched.
result<unique_fd> listen_unix(const std::string& path);

// Listens on every address that the host stands for and this machine has (where IPv6 is off, a
// name may still stand for one). Errors: EADDRNOTAVAIL if that leaves none or the host is unknown;
// errno of bind(2).
result<std::vector<unique_fd>> listen_tcp(const std::string& host, std::uint16_t port);

// Connects, blocking. Errors: ENAMETOOLONG, EADDRNOTAVAIL, errno of connect(2).
result<unique_fd> connect_to(const endpoint& where);

// Blocking whole-length transfers. Errors: errno; errc::end_of_stream when the peer closes.
result<> send_all(int fd, std::span<const std::byte> data);
result<> receive_all(int fd, std::span<std::byte> data);

// A receive that waits longer than so many milliseconds fails with EAGAIN.
void set_receive_timeout(int fd, unsigned milliseconds) noexcept;

// Transfers that would wait fail with EAGAIN (O_NONBLOCK).
void set_nonblocking(int fd) noexcept;

// Whether the other end of a unix socket was connected, or made to listen, by a process of this
// one's user or of root; false of every other socket.
bool peer_is_own_user(int fd) noexcept;

// Small writes leave at once (TCP_NODELAY); nothing on other sockets.
void set_no_delay(int fd) noexcept;

// A peer that is gone without a word is noticed within two minutes (SO_KEEPALIVE with times for
// TCP); nothing on other sockets.
void set_keep_alive(int fd) noexcept;

// Whether somebody on another machine may reach a listening socket: one of IP that is not bound to
// a loopback address. (A virtual machine's vsock does not leave the machine.)
bool reachable_from_outside(int fd) noexcept;

// The other end in words: "127.0.0.1:4711", "[::1]:4711", or the kind of socket.
std::string peer_name(int fd);

// Who is at the other end, as text with a zero behind it: of IP the address and port as above, of a
// unix socket "pid 17, uid 0" of who connected it (0 for a process that is not seen from here), of
// others as peer_name(). Without memory from the heap; what does not fit is left out.
void peer_identity(int fd, std::span<char> out) noexcept;

// The error that waits at a socket of any kind (SO_ERROR), which is taken off it; none if there is
// none.
std::error_code take_socket_error(int fd) noexcept;

// Whether the other end can neither send nor receive any more: closed, for a unix socket; reset,
// for TCP, which cannot tell a close from the end of what is sent.
bool has_hung_up(int fd) noexcept;

// Both directions end; a reader wakes up with end of stream.
void shutdown_socket(int fd) noexcept;

// Nothing more is received: a reader sees the end of the stream. Sending goes on.
void shutdown_receiving(int fd) noexcept;

// The header of a gathered send (struct msghdr), which must stay where it is until the send has
// ended.
class message_header {
 public:
  message_header() noexcept;
  void set(std::span<iovec> segments) noexcept;
  const void* get() const noexcept { return &storage_; }

 private:
  struct alignas(8) storage {
    std::byte bytes[56];
  } storage_;
};

// Sends what goes without waiting: a count of bytes, or a negative errno (-EAGAIN when nothing
// goes).
std::int32_t send_now(int fd, const message_header& message) noexcept;

// Removes a unix socket's file; an error is of no consequence.
void remove_socket_file(const std::string& path) noexcept;

}  // namespace forebay
