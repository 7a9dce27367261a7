// A front-end that says whatever its bytes make it say, to a vhost-user server: for the tests, and
// for fuzz/vhost_user.cc.
#pragma once

#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <string>

#include "forebay/base/assert.h"
#include "forebay/os/fd_passing.h"
#include "forebay/os/socket.h"
#include "forebay/serve/vhost_user.h"

namespace forebay {

// Connects, sends messages made of `input`, and waits until the server has ended the connection,
// which is all that is asked of it. Each message takes a type, flags, what descriptors to send and
// a length, a byte each, and then its payload; types and lengths are mostly such as there are.
inline void play_front_end(const std::string& path, std::span<const std::uint8_t> input) {
  endpoint at;
  at.path = path;
  auto socket = connect_to(at);
  FOREBAY_ASSERT(socket.has_value());
  static const int file = [] {
    const int fd = ::memfd_create("front-end", MFD_CLOEXEC);
    FOREBAY_ASSERT(::ftruncate(fd, 1 << 16) == 0);
    return fd;
  }();
  static const unique_fd event = std::move(*make_event_fd());
  // Nothing is read of what it answers: it must not wait for that.
  std::array<std::byte, sizeof(vhost::header) + 256> out;
  while (input.size() >= 4) {
    const std::uint8_t* const how = input.data();
    input = input.subspan(4);
    vhost::header h{.request = how[0] % 44u,
                    .flags = how[1] < 250 ? vhost::version | (how[1] % 2u) * vhost::flag_need_reply
                                          : how[1] % 16u,
                    .size = how[3] < 250 ? how[3] : 0x7fff'ffffu};
    const std::size_t payload = std::min<std::size_t>({h.size, input.size(), 250});
    std::memcpy(out.data(), &h, sizeof h);
    std::memcpy(out.data() + sizeof h, input.data(), payload);
    input = input.subspan(payload);
    const int fds[] = {file, event.get(), file, event.get()};
    const std::span<const int> with = std::span(fds).subspan(how[2] & 1, how[2] >> 1 & 3);
    if (!send_with_fds(socket->get(), std::span(out).first(sizeof h + payload), with)) break;
  }
  ::shutdown(socket->get(), SHUT_WR);
  while (::recv(socket->get(), out.data(), out.size(), 0) > 0) {
  }
}

}  // namespace forebay
