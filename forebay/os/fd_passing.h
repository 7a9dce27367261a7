// Bytes with open file descriptors beside them, over a unix socket (SCM_RIGHTS of unix(7)).
#pragma once

#include <cstddef>
#include <span>

#include "forebay/os/fd.h"

namespace forebay {

inline constexpr std::size_t fds_per_message_max = 16;

struct socket_pair {
  unique_fd first;
  unique_fd second;
};

// Two connected unix stream sockets.
result<socket_pair> make_socket_pair();

// Sends all of `data`, blocking; the descriptors go with its first byte and stay the caller's.
// Errors: EINVAL without data or with more than fds_per_message_max descriptors, errno.
result<> send_with_fds(int socket, std::span<const std::byte> data, std::span<const int> fds);

struct received_message {
  std::size_t bytes = 0;  // 1 up to the size of the buffer
  std::size_t fds = 0;    // how many descriptors came
};

// Receives what is there, blocking for the first byte. Descriptors, which are closed on exec, are
// put into the first elements of `fds`. Errors: errc::end_of_stream; errc::protocol if there came
// more descriptors than `fds` has room for (all of them are closed, none is put into `fds`); errno.
result<received_message> receive_with_fds(int socket, std::span<std::byte> data,
                                          std::span<unique_fd> fds);

}  // namespace forebay
