#include "forebay/os/cpu.h"

#include <sched.h>
#include <sys/sysinfo.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <string>

namespace forebay {

unsigned cpu_limit() noexcept {
  static const unsigned limit = [] {
    // The kernel's list of ranges, such as "0-3,8-11", ends in the largest number.
    std::ifstream possible("/sys/devices/system/cpu/possible");
    std::string list;
    unsigned count = 0;
    if (std::getline(possible, list)) {
      const std::size_t last = list.find_last_of(",-");
      const char* number = list.c_str() + (last == std::string::npos ? 0 : last + 1);
      count = static_cast<unsigned>(std::strtoul(number, nullptr, 10)) + 1;
    }
    return std::max({1u, count, static_cast<unsigned>(std::max(0, ::get_nprocs_conf()))});
  }();
  return limit;
}

unsigned current_cpu() noexcept {
  const int cpu = ::sched_getcpu();
  return cpu < 0 ? 0u : static_cast<unsigned>(cpu);
}

}  // namespace forebay
