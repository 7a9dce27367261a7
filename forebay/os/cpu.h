// The processors of this machine.
#pragma once

namespace forebay {

// One more than the largest CPU number this machine may ever have, at least 1.
unsigned cpu_limit() noexcept;

// The CPU that the calling thread runs on: a hint, it may move at any time.
unsigned current_cpu() noexcept;

}  // namespace forebay
