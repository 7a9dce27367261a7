#include "forebay/os/peer_watch.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace forebay {

result<peer_watch> peer_watch::of_process(int pid) {
  unique_fd fd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!fd) return fail_errno();
  return peer_watch(std::move(fd), POLLIN);
}

result<peer_watch> peer_watch::of_socket(int fd) {
  unique_fd own(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (!own) return fail_errno();
  return peer_watch(std::move(own), POLLRDHUP);
}

bool peer_watch::gone() const noexcept {
  pollfd p{.fd = fd_.get(), .events = events_, .revents = 0};
  // POLLHUP and POLLERR come unasked.
  return ::poll(&p, 1, 0) == 1 && p.revents != 0;
}

}  // namespace forebay
