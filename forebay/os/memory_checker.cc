#include "forebay/os/memory_checker.h"

#include "forebay/base/sanitizer.h"

#if FOREBAY_ASAN
#include <sanitizer/asan_interface.h>
#elif __has_include(<valgrind/memcheck.h>)
#include <valgrind/memcheck.h>
#define FOREBAY_VALGRIND 1
#endif

namespace forebay {

bool memory_checker_active() noexcept {
#if FOREBAY_ASAN
  return true;
#elif defined(FOREBAY_VALGRIND)
  static const bool running = RUNNING_ON_VALGRIND != 0;
  return running;
#else
  return false;
#endif
}

void forbid_access([[maybe_unused]] const void* at, [[maybe_unused]] std::size_t bytes) noexcept {
#if FOREBAY_ASAN
  __asan_poison_memory_region(at, bytes);
#elif defined(FOREBAY_VALGRIND)
  VALGRIND_MAKE_MEM_NOACCESS(at, bytes);
#endif
}

void permit_access([[maybe_unused]] const void* at, [[maybe_unused]] std::size_t bytes,
                   [[maybe_unused]] bool defined) noexcept {
#if FOREBAY_ASAN
  __asan_unpoison_memory_region(at, bytes);
#elif defined(FOREBAY_VALGRIND)
  if (defined) {
    VALGRIND_MAKE_MEM_DEFINED(at, bytes);
  } else {
    VALGRIND_MAKE_MEM_UNDEFINED(at, bytes);
  }
#endif
}

}  // namespace forebay
