// Waiting for descriptors on a plain thread (poll(2)).
#pragma once

#include <cstdint>
#include <span>

#include "forebay/base/result.h"

namespace forebay {

inline constexpr std::size_t poll_fds_max = 16;

// Waits until one of `fds`, at most poll_fds_max, can be read from, is at its end or has an error;
// -1 stands for none. Bit i of the value is fds[i]'s, so 0 is: `timeout_ms` have passed (-1:
// without end), or a signal came. Errors: EINVAL for too many; errno of poll(2).
result<std::uint32_t> wait_readable(std::span<const int> fds, int timeout_ms);

}  // namespace forebay
