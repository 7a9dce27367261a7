#include "forebay/os/memory_checker.h"

#if defined(__SANITIZE_ADDRESS__)
#define FOREBAY_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FOREBAY_ASAN 1
#endif
#endif

#if defined(FOREBAY_ASAN)
#include <sanitizer/asan_interface.h>
#elif __has_include(<valgrind/memcheck.h>)
#include <valgrind/memcheck.h>
#define FOREBAY_VALGRIND 1
#endif

namespace forebay {

bool memory_checker_active() noexcept {
#if defined(FOREBAY_ASAN)
  return true;
#elif defined(FOREBAY_VALGRIND)
  static const bool running = RUNNING_ON_VALGRIND != 0;
  return running;
#else
  return false;
#endif
}

void forbid_access([[maybe_unused]] const void* at, [[maybe_unused]] std::size_t bytes) noexcept {
#if defined(FOREBAY_ASAN)
  __asan_poison_memory_region(at, bytes);
#elif defined(FOREBAY_VALGRIND)
  VALGRIND_MAKE_MEM_NOACCESS(at, bytes);
#endif
}

void permit_access([[maybe_unused]] const void* at, [[maybe_unused]] std::size_t bytes,
                   [[maybe_unused]] bool defined) noexcept {
#if defined(FOREBAY_ASAN)
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
