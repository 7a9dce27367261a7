// Assertions. FOREBAY_ASSERT is always on: it guards what would corrupt data if it went on.
// FOREBAY_DCHECK is for checks on hot paths and is compiled in only where FOREBAY_DEBUG is defined
// (the debug, asan and tsan presets).
#pragma once

namespace forebay {

// Is told of a failed assertion before anything is printed. If it returns, the process ends as
// without it; a test that runs code on stacks of its own may leave the failed one for good.
using assertion_hook = void (*)(const char* expression, const char* file, int line) noexcept;

// Null: nobody is told, as at first. Any thread; one hook for the process.
void set_assertion_hook(assertion_hook hook) noexcept;

// Prints one line (file, line, expression) to standard error and aborts. Safe to call from any
// thread.
[[noreturn]] void assertion_failed(const char* expression, const char* file, int line) noexcept;

}  // namespace forebay

#define FOREBAY_ASSERT(condition)                      \
  (static_cast<bool>(condition) ? static_cast<void>(0) \
                                : ::forebay::assertion_failed(#condition, __FILE__, __LINE__))

#ifdef FOREBAY_DEBUG
#define FOREBAY_DCHECK(condition) FOREBAY_ASSERT(condition)
#else
#define FOREBAY_DCHECK(condition) static_cast<void>(0)
#endif
