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

bool is_terminal(int fd) noexcept { return ::isatty(fd) == 1; }

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

result<int> wait_for_signal(int signal_fd) {
  signalfd_siginfo info{};
  for (;;) {
    const ssize_t n = ::read(signal_fd, &info, sizeof info);
    if (n == static_cast<ssize_t>(sizeof info)) return static_cast<int>(info.ssi_signo);
    if (n >= 0) return fail(EIO);
    if (errno != EINTR) return fail_errno();
  }
}

void unblock_signals(std::initializer_list<int> signals) noexcept {
  sigset_t set;
  sigemptyset(&set);
  for (const int s : signals) sigaddset(&set, s);
  pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
}

}  // namespace forebay
