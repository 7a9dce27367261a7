#include "forebay/os/fd_passing.h"

#include <sys/socket.h>

#include <array>
#include <cstring>

#include "forebay/os/socket.h"

namespace forebay {
namespace {

struct alignas(cmsghdr) control_buffer {
  std::byte bytes[CMSG_SPACE(fds_per_message_max * sizeof(int))];
};

// Takes over every descriptor that came with the message.
std::size_t collect_fds(msghdr& message, std::array<unique_fd, fds_per_message_max>& out) {
  std::size_t count = 0;
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t bytes = c->cmsg_len - CMSG_LEN(0);
    for (std::size_t at = 0; at + sizeof(int) <= bytes && count < out.size(); at += sizeof(int)) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(c) + at, sizeof fd);
      out[count++].reset(fd);
    }
  }
  return count;
}

}  // namespace

result<socket_pair> make_socket_pair() {
  int fds[2] = {-1, -1};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) return fail_errno();
  return socket_pair{unique_fd(fds[0]), unique_fd(fds[1])};
}

result<> send_with_fds(int socket, std::span<const std::byte> data, std::span<const int> fds) {
  if (data.empty() || fds.size() > fds_per_message_max) return fail(EINVAL);
  iovec segment{.iov_base = const_cast<std::byte*>(data.data()), .iov_len = data.size()};
  control_buffer control{};
  msghdr message{};
  message.msg_iov = &segment;
  message.msg_iovlen = 1;
  if (!fds.empty()) {
    message.msg_control = control.bytes;
    message.msg_controllen = CMSG_SPACE(fds.size_bytes());
    cmsghdr* c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(c), fds.data(), fds.size_bytes());
  }
  ssize_t n = 0;
  do {
    n = ::sendmsg(socket, &message, MSG_NOSIGNAL);
  } while (n < 0 && errno == EINTR);
  if (n < 0) return fail_errno();
  // The descriptors have gone with the first part.
  return send_all(socket, data.subspan(static_cast<std::size_t>(n)));
}

result<received_message> receive_with_fds(int socket, std::span<std::byte> data,
                                          std::span<unique_fd> fds) {
  if (data.empty()) return fail(EINVAL);
  iovec segment{.iov_base = data.data(), .iov_len = data.size()};
  control_buffer control{};
  msghdr message{};
  message.msg_iov = &segment;
  message.msg_iovlen = 1;
  message.msg_control = control.bytes;
  message.msg_controllen = sizeof control.bytes;
  ssize_t n = 0;
  do {
    n = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
  } while (n < 0 && errno == EINTR);
  if (n < 0) return fail_errno();
  std::array<unique_fd, fds_per_message_max> came;
  const std::size_t count = collect_fds(message, came);
  if (n == 0) return fail(errc::end_of_stream);
  if (count > fds.size() || (message.msg_flags & MSG_CTRUNC) != 0) return fail(errc::protocol);
  for (std::size_t i = 0; i < count; ++i) fds[i] = std::move(came[i]);
  return received_message{.bytes = static_cast<std::size_t>(n), .fds = count};
}

}  // namespace forebay
