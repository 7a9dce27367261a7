// Owning file descriptor, and the two descriptors that carry events: eventfd and signalfd.
#pragma once

#include <csignal>
#include <initializer_list>
#include <utility>

#include "forebay/base/result.h"

namespace forebay {

// Closes on destruction. -1 is "none".
class unique_fd {
 public:
  unique_fd() noexcept = default;
  explicit unique_fd(int fd) noexcept : fd_(fd) {}
  unique_fd(unique_fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  unique_fd& operator=(unique_fd&& other) noexcept {
    if (this != &other) reset(std::exchange(other.fd_, -1));
    return *this;
  }
  ~unique_fd() { reset(); }

  int get() const noexcept { return fd_; }
  explicit operator bool() const noexcept { return fd_ >= 0; }
  int release() noexcept { return std::exchange(fd_, -1); }
  void reset(int fd = -1) noexcept;

 private:
  int fd_ = -1;
};

// Whether a terminal is behind the descriptor.
bool is_terminal(int fd) noexcept;
inline constexpr int standard_output = 1;

// An eventfd: signal() from any thread makes it readable (8 bytes).
result<unique_fd> make_event_fd();
void signal_event_fd(int fd) noexcept;

// For an eventfd that another process has made and may use as well: makes it one that
// signal_event_fd() does not wait for. That process can undo it at any time, so where it is not
// trusted the signal is better given by an io_uring. Errors: EINVAL if it is something else than an
// eventfd; errno of fcntl(2).
result<> adopt_event_fd(int fd);
// Makes it unreadable, if it is readable. Never waits, whatever mode somebody else has given it.
void drain_event_fd(int fd) noexcept;

// Blocks `signals` for the calling thread (and those it starts) and returns a descriptor that reads
// them as signalfd_siginfo records (128 bytes each).
result<unique_fd> make_signal_fd(std::initializer_list<int> signals);

// Waits for one of its signals and returns its number.
result<int> wait_for_signal(int signal_fd);

// Lets `signals` act on the calling thread again as they do by default.
void unblock_signals(std::initializer_list<int> signals) noexcept;

}  // namespace forebay
