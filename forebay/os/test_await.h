// Waiting in tests for what another thread, another process or the kernel does.
#pragma once

#include <chrono>
#include <thread>

namespace forebay {

// True as soon as `done()` is. False after a minute: a busy machine may keep a thread from its CPU
// for seconds, and a test that is well never waits for the whole of it.
template <typename Condition>
bool eventually(Condition done) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  while (!done()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

}  // namespace forebay
