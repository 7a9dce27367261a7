#include "forebay/os/poll.h"

#include <poll.h>

#include <array>

namespace forebay {

result<std::uint32_t> wait_readable(std::span<const int> fds, int timeout_ms) {
  std::array<pollfd, poll_fds_max> polled{};
  if (fds.size() > polled.size()) return fail(EINVAL);
  for (std::size_t i = 0; i < fds.size(); ++i)
    polled[i] = {.fd = fds[i], .events = POLLIN, .revents = 0};
  if (::poll(polled.data(), fds.size(), timeout_ms) < 0) {
    if (errno == EINTR) return 0u;
    return fail_errno();
  }
  std::uint32_t ready = 0;
  for (std::size_t i = 0; i < fds.size(); ++i) {
    if (polled[i].revents != 0) ready |= 1u << i;
  }
  return ready;
}

}  // namespace forebay
