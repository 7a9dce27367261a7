// Copying bytes that somebody may be changing, for readers that find out afterwards whether anybody
// was, and then throw the copy away (sequence locks).
#pragma once

#include <cstddef>
#include <cstring>
#include <type_traits>

#include "forebay/base/sanitizer.h"

namespace forebay {

// Copies, byte by byte in no particular order; a byte that is being changed comes out as anything.
// `to` is the caller's alone, and the ranges do not overlap.
//
// By the letter of C++20 every such byte would have to be an atomic, on the writer's side too; the
// standard has no copy for that yet (P1478). This is memcpy, which the compiler does not look into
// here and the processor has no objection to. The sanitizers have: the thread sanitizer takes it
// for a race, and the address sanitizer for a use of what may have been freed meanwhile. In their
// builds it is a loop of relaxed atomic loads that they do not look at.
void racing_copy(void* to, const void* from, std::size_t bytes) noexcept;

// The same for one object that is trivially copyable. `from` need not be aligned.
template <typename T>
T racing_load(const void* from) noexcept {
  static_assert(std::is_trivially_copyable_v<T> && std::is_trivially_default_constructible_v<T>);
  T value;
#if FOREBAY_ASAN || FOREBAY_TSAN
  racing_copy(&value, from, sizeof value);
#else
  std::memcpy(&value, from, sizeof value);
#endif
  return value;
}

}  // namespace forebay
