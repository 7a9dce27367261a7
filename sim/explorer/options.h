// What is explored, how far, and what came out.
#pragma once

#include <climits>
#include <cstddef>
#include <cstdint>
#include <string>

namespace forebay::explorer {

// A scenario without its type: what explore.h makes of one.
struct program {
  const char* name = nullptr;
  unsigned threads = 0;  // 1 to threads_max - 1
  std::size_t bytes = 0;
  std::size_t alignment = 0;
  void (*construct)(void* memory) = nullptr;
  void (*run)(void* scenario, unsigned thread) = nullptr;
  void (*finish)(void* scenario) = nullptr;
  void (*destroy)(void* scenario) = nullptr;
};

inline constexpr unsigned unlimited = UINT_MAX;

struct options {
  // Switches away from a thread that could have gone on, in one execution; at most 14, or
  // unlimited.
  unsigned preemptions = unlimited;
  // Operations of all threads in one execution; more are a failure.
  unsigned steps = 2000;
  // After reading the same store so often without having stored anything, a thread waits until
  // another stores something.
  unsigned spin_reads = 3;
  // How often each thread's timed waits may end by their timeout though others could go on.
  unsigned timeouts = 1;
  // How often a weak compare-exchange may fail without a reason in one execution.
  unsigned spurious_failures = 0;
  // Whether stores may be put before others that are there already.
  bool store_reordering = true;
  // Depth-first exploration gives up after so many executions; 0: no depth-first exploration.
  std::uint64_t executions_max = 3'000'000;
  // Random executions after the depth-first ones.
  std::uint64_t random_executions = 0;
  std::uint64_t seed = 1;
  // Whether a failed execution is run again to tell what happened in it.
  bool explain = true;
  // Only this execution, as a failure has printed it, under the other options of that time. With
  // "-": the one without any choice.
  const char* replay = nullptr;
};

struct outcome {
  bool failed = false;
  bool exhausted = false;  // depth-first exploration came to its end
  std::string message;     // of the failure, with its choices and what happened
  std::string choices;     // options::replay for the failed execution
  std::uint64_t executions = 0;
  std::uint64_t complete = 0;  // of these, how many ran to their end
  std::uint64_t states = 0;    // states told apart
  std::uint64_t random = 0;    // random executions
  unsigned steps_max = 0;      // operations of the longest
};

}  // namespace forebay::explorer
