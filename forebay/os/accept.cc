#include "forebay/os/accept.h"

#include <sys/socket.h>

namespace forebay {

result<unique_fd> accept_connection(int listener) {
  for (;;) {
    unique_fd fd(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
    if (fd) return fd;
    if (errno != EINTR) return fail_errno();
  }
}

}  // namespace forebay
