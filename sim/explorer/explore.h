// Exploring a scenario: a small program of a few threads over model_atomics.
//
//   struct message_passing {
//     static constexpr unsigned threads = 2;
//     model_atomics::plain<int> data;
//     model_atomics::atomic<bool> ready{false};
//
//     void run(unsigned thread) {
//       if (thread == 0) {
//         data.set(42);
//         ready.store(true, std::memory_order_release);
//       } else if (ready.load(std::memory_order_acquire)) {
//         check(data.get() == 42);
//       }
//     }
//     void finish() {}  // after all threads have ended
//   };
//
//   const outcome out = explore<message_passing>();
//
// For each execution one object is made, run() called in each thread with 0 … threads - 1, then
// finish(), and the object destroyed. The constructor happens before all of run(), finish() after.
// What the threads share is in model types, or guarded by them; results for finish() may lie in
// ordinary members that one thread each writes. All must be the same each time but for the
// explorer's own choices: no clock, no random numbers, no addresses. An execution may be given up
// at any operation; then no destructor runs, and what was allocated goes by itself.
#pragma once

#include <new>
#include <typeinfo>

#include "sim/explorer/engine.h"
#include "sim/explorer/model_atomics.h"
#include "sim/explorer/options.h"

namespace forebay::explorer {

template <typename S>
concept Scenario = requires(S s) {
  requires S::threads >= 1 && S::threads < threads_max;
  s.run(0u);
  s.finish();
};

// A scenario that asks for other bounds has them in a static member `bounds` of type options.
template <Scenario S>
options bounds_of() {
  if constexpr (requires { S::bounds; }) {
    return S::bounds;
  } else {
    return {};
  }
}

// A type's name as it is written.
const char* name_of(const char* mangled);

template <Scenario S>
const program& program_of() {
  static const program p = {
      .name = name_of(typeid(S).name()),
      .threads = S::threads,
      .bytes = sizeof(S),
      .alignment = alignof(S),
      .construct = [](void* memory) { ::new (memory) S; },
      .run = [](void* scenario, unsigned thread) { static_cast<S*>(scenario)->run(thread); },
      .finish = [](void* scenario) { static_cast<S*>(scenario)->finish(); },
      .destroy = [](void* scenario) { static_cast<S*>(scenario)->~S(); },
  };
  return p;
}

// Explores with one engine for the process.
outcome explore(const program& p, const options& opts, site_table* sites = nullptr);

template <Scenario S>
outcome explore(const options& opts = bounds_of<S>()) {
  return explore(program_of<S>(), opts);
}

// --- in a scenario ---

// Ends the execution with a failure.
[[noreturn]] inline void fail(const char* message) { engine::current().fail(message); }

inline void check(bool condition, const char* message = "a check of the scenario failed",
                  std::source_location where = std::source_location::current()) {
  if (condition) [[likely]]
    return;
  engine::current().fail_with("%s:%u: %s", where.file_name(), where.line(), message);
}

// 0 to n - 1, each in some execution.
inline unsigned choose(unsigned n) { return engine::current().choose(n); }

// In a loop that waits for another thread: goes on when one has stored something.
inline void yield() { engine::current().yield(); }

}  // namespace forebay::explorer
