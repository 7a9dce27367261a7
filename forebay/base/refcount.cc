#include "forebay/base/refcount.h"

#include <cstdio>

namespace forebay {
namespace {

std::atomic<std::uint64_t> misuses{0};

}  // namespace

// relaxed: a statistic, it orders nothing.
std::uint64_t refcount_misuses() noexcept { return misuses.load(std::memory_order_relaxed); }

namespace detail {

void refcount_misused(const char* what) noexcept {
  // relaxed: only the number matters. One report is enough to look for the fault; a loop of them
  // would drown it.
  if (misuses.fetch_add(1, std::memory_order_relaxed) == 0) {
    std::fprintf(stderr, "forebay: refcount %s: saturated, the object is leaked\n", what);
  }
}

}  // namespace detail
}  // namespace forebay
