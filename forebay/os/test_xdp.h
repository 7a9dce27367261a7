// Whether AF_XDP can be tested here.
#pragma once

#include <sys/socket.h>

#include <string>

#include "forebay/os/xdp_program.h"

namespace forebay {

// In the calling thread's network namespace, which must be the test's own: why it cannot be, empty
// if it can.
inline std::string why_no_xdp() {
  const unique_fd socket(::socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0));
  if (!socket) return "no AF_XDP: " + std::error_code(errno, std::generic_category()).message();
  const auto program = xdp_program::attach(*net_interface::find("lo"), xdp_hook::generic, 0);
  return program ? "" : "no XDP: " + program.error().message();
}

}  // namespace forebay
