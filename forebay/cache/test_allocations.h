// Allocations that may fail, made to fail: for tests of what happens without memory.
//
// In the thread sanitizer's builds operator new cannot be replaced, and nothing fails.
#pragma once

#include <cstdint>

#include "forebay/base/sanitizer.h"

namespace forebay {

inline constexpr bool can_refuse_memory = !FOREBAY_TSAN;

// Those of this thread that may fail (coroutine frames, bios) fail when this has counted down to 0;
// INT64_MAX: none does.
extern thread_local std::int64_t allocations_left;
extern thread_local std::uint64_t allocations_failed;

}  // namespace forebay
