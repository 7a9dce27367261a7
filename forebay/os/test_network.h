// A network of its own for a test: a namespace with nothing in it but the loopback interface.
#pragma once

#include <sched.h>

#include <functional>
#include <string>
#include <thread>

#include "forebay/os/net_interface.h"

namespace forebay {

// Runs `body` on a thread in a new network namespace, in which `lo` is up; the namespace goes with
// the last descriptor of it. Returns why that cannot be, empty if it could.
inline std::string run_in_own_network(const std::function<void()>& body) {
  std::string problem;
  std::thread([&] {
    if (::unshare(CLONE_NEWNET) != 0) {
      problem =
          "no network namespace: " + std::error_code(errno, std::generic_category()).message();
      return;
    }
    if (const auto r = set_interface_up("lo", true); !r) {
      problem = "lo does not come up: " + r.error().message();
      return;
    }
    body();
  }).join();
  return problem;
}

}  // namespace forebay
