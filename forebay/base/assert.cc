#include "forebay/base/assert.h"

#include <cstdio>
#include <cstdlib>

namespace forebay {

void assertion_failed(const char* expression, const char* file, int line) noexcept {
  std::fprintf(stderr, "forebay: assertion failed at %s:%d: %s\n", file, line, expression);
  std::abort();
}

}  // namespace forebay
