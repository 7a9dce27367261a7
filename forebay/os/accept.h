// Taking connections on a plain thread; loops have uring_request::accept.
#pragma once

#include "forebay/os/fd.h"

namespace forebay {

// The next connection of a listening socket, blocking until there is one. Errors: errno of
// accept4(2).
result<unique_fd> accept_connection(int listener);

}  // namespace forebay
