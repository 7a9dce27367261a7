// The processors of this machine.
#pragma once

#include <cstdint>
#include <vector>

#include "forebay/base/result.h"

namespace forebay {

// One more than the largest CPU number this machine may ever have, at least 1.
unsigned cpu_limit() noexcept;

// The CPU that the calling thread runs on: a hint, it may move at any time.
unsigned current_cpu() noexcept;

// The CPUs that the calling thread may run on, ascending; none if the kernel does not say.
std::vector<unsigned> allowed_cpus();

// Keeps the calling thread on one CPU. Errors: EINVAL if there is none with this number, or this
// process may not run on it.
result<> pin_to_cpu(unsigned cpu) noexcept;

// How often the calling thread has lost its CPU to another one without having gone to sleep.
std::uint64_t preemptions_of_thread() noexcept;

}  // namespace forebay
