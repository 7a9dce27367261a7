#include "forebay/os/cpu.h"

#include <sched.h>
#include <sys/resource.h>
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

std::vector<unsigned> allowed_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<unsigned> cpus;
  if (::sched_getaffinity(0, sizeof(set), &set) != 0) return cpus;
  for (unsigned cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  }
  return cpus;
}

result<> pin_to_cpu(unsigned cpu) noexcept {
  if (cpu >= CPU_SETSIZE) return fail(EINVAL);
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  if (::sched_setaffinity(0, sizeof(set), &set) != 0) return fail_errno();
  return {};
}

std::uint64_t preemptions_of_thread() noexcept {
  rusage usage{};
  ::getrusage(RUSAGE_THREAD, &usage);
  return static_cast<std::uint64_t>(usage.ru_nivcsw);
}

}  // namespace forebay
