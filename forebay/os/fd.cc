#include "forebay/os/fd.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <string_view>

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
  // The only failure of a write to an eventfd in blocking mode is a signal: again. In the other
  // mode, it may be at its maximum: it is readable then.
  while (::write(fd, &one, sizeof one) < 0 && errno == EINTR) {
  }
}

result<> adopt_event_fd(int fd) {
  std::array<char, 32> path{};
  std::array<char, 32> target{};
  std::snprintf(path.data(), path.size(), "/proc/self/fd/%d", fd);
  const ssize_t n = ::readlink(path.data(), target.data(), target.size());
  if (n < 0) return fail_errno();
  if (std::string_view(target.data(), static_cast<std::size_t>(n)) != "anon_inode:[eventfd]") {
    return fail(EINVAL);
  }
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0 || ::fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0) return fail_errno();
  return {};
}

void drain_event_fd(int fd) noexcept {
  std::uint64_t count = 0;
  const iovec into{.iov_base = &count, .iov_len = sizeof count};
  // Who shares the descriptor may have taken what was there, and switched the mode: not a plain
  // read, which would wait then.
  while (::preadv2(fd, &into, 1, -1, RWF_NOWAIT) < 0 && errno == EINTR) {
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
