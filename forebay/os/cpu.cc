#include "forebay/os/cpu.h"

#include <sched.h>
#include <sys/sysinfo.h>

namespace forebay {

unsigned cpu_limit() noexcept {
  static const unsigned limit = [] {
    const int configured = ::get_nprocs_conf();
    return configured < 1 ? 1u : static_cast<unsigned>(configured);
  }();
  return limit;
}

unsigned current_cpu() noexcept {
  const int cpu = ::sched_getcpu();
  return cpu < 0 ? 0u : static_cast<unsigned>(cpu);
}

}  // namespace forebay
