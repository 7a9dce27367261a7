// Waiting on a 32-bit word (futex(2)).
#pragma once

#include <atomic>
#include <cstdint>

namespace forebay {

// Who waits and wakes: threads of this process, or also of others that have the word's memory
// mapped.
enum class futex_scope : bool { process, shared };

// Sleeps while `word` holds `expected`, at most `timeout_ns` nanoseconds (UINT64_MAX: no limit);
// returns on a wake, a signal, the timeout, or at once if the word differs, so the caller looks at
// the word again. Any thread; the word must stay alive until every waiter has returned.
void futex_wait(std::atomic<std::uint32_t>& word, std::uint32_t expected,
                std::uint64_t timeout_ns = UINT64_MAX,
                futex_scope scope = futex_scope::process) noexcept;

// Wakes at most `count` waiters of `word`.
void futex_wake(std::atomic<std::uint32_t>& word, int count = 1,
                futex_scope scope = futex_scope::process) noexcept;

}  // namespace forebay
