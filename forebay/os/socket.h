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

  // The URI of an NBD export at this endpoint (NetworkBlockDevice/nbd doc/uri.md), escaped.
  std::string nbd_uri(const std::string& export_name) const;
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

// Small writes leave at once (TCP_NODELAY); nothing on other sockets.
void set_no_delay(int fd) noexcept;

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
