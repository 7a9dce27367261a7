// Waiting for another CPU inside a loop.
#pragma once

#include <algorithm>

namespace forebay {

// Tells the processor that this is a loop that waits: some tens of cycles.
inline void cpu_relax() noexcept {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits twice as long each time, from two turns of cpu_relax() to 256, which is some microseconds:
// after a lost compare-and-swap, so that who has the line keeps it for a few operations. One for
// each call of a lock-free operation.
class back_off {
 public:
  void wait() noexcept {
    failures_ = std::min(failures_ + 1, 8u);
    for (unsigned i = 0; i < (1u << failures_); ++i) cpu_relax();
  }

 private:
  unsigned failures_ = 0;
};

}  // namespace forebay
