#include "forebay/base/assert.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>

namespace forebay {
namespace {

std::atomic<assertion_hook> failed_hook{nullptr};

}  // namespace

void set_assertion_hook(assertion_hook hook) noexcept {
  failed_hook.store(hook, std::memory_order_relaxed);  // relaxed: a function, nothing else
}

void assertion_failed(const char* expression, const char* file, int line) noexcept {
  // relaxed: as above.
  if (const assertion_hook hook = failed_hook.load(std::memory_order_relaxed)) {
    hook(expression, file, line);
  }
  std::fprintf(stderr, "forebay: assertion failed at %s:%d: %s\n", file, line, expression);
  std::abort();
}

}  // namespace forebay
