#include "forebay/os/futex.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <ctime>

namespace forebay {

static_assert(sizeof(std::atomic<std::uint32_t>) == sizeof(std::uint32_t));

namespace {

int operation(int plain, futex_scope scope) noexcept {
  return scope == futex_scope::shared ? plain : plain | FUTEX_PRIVATE_FLAG;
}

}  // namespace

void futex_wait(std::atomic<std::uint32_t>& word, std::uint32_t expected, std::uint64_t timeout_ns,
                futex_scope scope) noexcept {
  timespec ts{};
  ts.tv_sec = static_cast<time_t>(timeout_ns / 1'000'000'000);
  ts.tv_nsec = static_cast<long>(timeout_ns % 1'000'000'000);
  syscall(SYS_futex, &word, operation(FUTEX_WAIT, scope), expected,
          timeout_ns == UINT64_MAX ? nullptr : &ts, nullptr, 0);
}

void futex_wake(std::atomic<std::uint32_t>& word, int count, futex_scope scope) noexcept {
  syscall(SYS_futex, &word, operation(FUTEX_WAKE, scope), count, nullptr, nullptr, 0);
}

}  // namespace forebay
