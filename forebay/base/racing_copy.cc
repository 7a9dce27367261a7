#include "forebay/base/racing_copy.h"

#include <cstdint>
#include <cstring>

#include "forebay/base/sanitizer.h"

namespace forebay {

#if FOREBAY_ASAN || FOREBAY_TSAN

#if defined(__clang__)
#define FOREBAY_UNSEEN [[clang::disable_sanitizer_instrumentation]]
#else
#define FOREBAY_UNSEEN [[gnu::no_sanitize_address, gnu::no_sanitize_thread]]
#endif

FOREBAY_UNSEEN void racing_copy(void* to, const void* from, std::size_t bytes) noexcept {
  auto* out = static_cast<std::uint8_t*>(to);
  const auto* in = static_cast<const std::uint8_t*>(from);
  while (bytes != 0) {
    const bool word = bytes >= sizeof(std::uint64_t) &&
                      reinterpret_cast<std::uintptr_t>(in) % sizeof(std::uint64_t) == 0;
    if (word) {
      // relaxed: the caller's check orders it.
      const std::uint64_t value =
          __atomic_load_n(reinterpret_cast<const std::uint64_t*>(in), __ATOMIC_RELAXED);
      __builtin_memcpy(out, &value, sizeof value);
    } else {
      *out = __atomic_load_n(in, __ATOMIC_RELAXED);  // relaxed: as above
    }
    const std::size_t n = word ? sizeof(std::uint64_t) : 1;
    out += n;
    in += n;
    bytes -= n;
  }
}

#else

void racing_copy(void* to, const void* from, std::size_t bytes) noexcept {
  std::memcpy(to, from, bytes);
}

#endif

}  // namespace forebay
