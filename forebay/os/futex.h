// Waiting on a 32-bit word (futex(2)).
#pragma once

#include <atomic>
#include <cstdint>

namespace forebay {

// Sleeps while `word` holds `expected`, at most `timeout_ns` nanoseconds (UINT64_MAX: no limit);
// returns on a wake, a signal, the timeout, or at once if the word differs, so the caller looks at
// the word again. Any thread; the word must stay alive until every waiter has returned.
void futex_wait(std::atomic<std::uint32_t>& word, std::uint32_t expected,
                std::uint64_t timeout_ns = UINT64_MAX) noexcept;

// Wakes at most `count` waiters of `word`.
void futex_wake(std::atomic<std::uint32_t>& word, int count = 1) noexcept;

}  // namespace forebay
