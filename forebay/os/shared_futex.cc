#include "forebay/os/shared_futex.h"

#include <algorithm>

#include "forebay/base/spin.h"
#include "forebay/os/clock.h"
#include "forebay/os/futex.h"

namespace forebay {

static_assert(std::atomic<std::uint32_t>::is_always_lock_free &&
              sizeof(std::atomic<std::uint32_t>) == sizeof(std::uint32_t));

void shared_futex::wait(std::atomic<std::uint32_t>& word, std::uint32_t expected,
                        std::uint64_t timeout_ns) noexcept {
  if (peer_ != nullptr) timeout_ns = std::min(timeout_ns, look_ns);
  futex_wait(word, expected, timeout_ns, futex_scope::shared);
}

void shared_futex::wake(std::atomic<std::uint32_t>& word) noexcept {
  futex_wake(word, 1, futex_scope::shared);
}

std::uint64_t shared_futex::now_ns() const noexcept { return monotonic_clock::now_ns(); }

void shared_futex::relax() const noexcept { cpu_relax(); }

}  // namespace forebay
