#include "forebay/os/fd.h"

#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <cstdint>

namespace forebay {

void unique_fd::reset(int fd) noexcept {
  if (fd_ >= 0) ::close(fd_);
  fd_ = fd;
}

result<unique_fd> make_event_fd() {
  unique_fd fd(::eventfd(0, EFD_CLOEXEC));
  if (!fd) return fail_errno();
  return fd;
}

void signal_event_fd(int fd) noexcept {
  const std::uint64_t one = 1;
  // The only failure of a write to an eventfd in blocking mode is a signal: again.
  while (::write(fd, &one, sizeof one) < 0 && errno == EINTR) {
  }
}

result<unique_fd> make_signal_fd(std::initializer_list<int> signals) {
  sigset_t set;
  sigemptyset(&set);
  for (const int s : signals) sigaddset(&set, s);
  if (const int error = pthread_sigmask(SIG_BLOCK, &set, nullptr); error != 0) return fail(error);
  unique_fd fd(::signalfd(-1, &set, SFD_CLOEXEC));
  if (!fd) return fail_errno();
  return fd;
}

}  // namespace forebay
