// Whether the process at the other end is still there.
#pragma once

#include "forebay/os/fd.h"

namespace forebay {

class peer_watch {
 public:
  // A process by its number, until it exits (also while nobody has waited for it). The number must
  // be of a process that cannot have gone and been replaced: a child, or one that this process has
  // just heard from. Errors: ESRCH if there is none, errno of pidfd_open(2).
  static result<peer_watch> of_process(int pid);

  // The other end of a stream socket, until it is closed or shut down by all who hold it. The
  // socket is not taken over. Errors: errno of fcntl(2).
  static result<peer_watch> of_socket(int fd);

  // True from the moment it has gone. Any thread.
  bool gone() const noexcept;

 private:
  peer_watch(unique_fd fd, short events) noexcept : fd_(std::move(fd)), events_(events) {}

  unique_fd fd_;
  short events_;  // of poll(2), any of which says that it is gone
};

}  // namespace forebay
