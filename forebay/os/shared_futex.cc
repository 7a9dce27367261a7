#include "forebay/os/shared_futex.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>

#include "forebay/os/clock.h"

namespace forebay {

static_assert(std::atomic<std::uint32_t>::is_always_lock_free &&
              sizeof(std::atomic<std::uint32_t>) == sizeof(std::uint32_t));

void shared_futex::wait(std::atomic<std::uint32_t>& word, std::uint32_t expected,
                        std::uint64_t timeout_ns) noexcept {
  if (peer_ != nullptr) timeout_ns = std::min(timeout_ns, look_ns);
  timespec ts{};
  ts.tv_sec = static_cast<time_t>(timeout_ns / 1'000'000'000);
  ts.tv_nsec = static_cast<long>(timeout_ns % 1'000'000'000);
  ::syscall(SYS_futex, &word, FUTEX_WAIT, expected, timeout_ns == UINT64_MAX ? nullptr : &ts,
            nullptr, 0);
}

void shared_futex::wake(std::atomic<std::uint32_t>& word) noexcept {
  ::syscall(SYS_futex, &word, FUTEX_WAKE, 1, nullptr, nullptr, 0);
}

std::uint64_t shared_futex::now_ns() const noexcept { return monotonic_clock::now_ns(); }

void shared_futex::relax() const noexcept {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace forebay
