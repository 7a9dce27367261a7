// What the tests of the library's types ask of the explorer.
//
// Release builds exhaust every scenario and weaken every order. Under a sanitizer an execution
// takes some fifty times as long and tells nothing new about orders, which the model has and the
// sanitizer has not; there a scenario is cut short, and nothing is weakened. With FOREBAY_STRESS in
// the environment each scenario has random executions as well, so that all together are 10^7.
#pragma once

#include <chrono>
#include <cstdio>
#include <cstdlib>

#include <gtest/gtest.h>

#include "sim/explorer/explore.h"
#include "sim/explorer/weaken.h"

namespace forebay::explorer {

inline constexpr bool sanitized = FOREBAY_ASAN != 0 || FOREBAY_TSAN != 0;
inline constexpr std::uint64_t sanitized_executions = 500;
inline constexpr std::uint64_t random_executions = 1000;
inline constexpr std::uint64_t stress_executions = 200'000;

inline bool stress() { return std::getenv("FOREBAY_STRESS") != nullptr; }

// With FOREBAY_EXPLORER_FIGURES in the environment: a line for docs/explorer.md.
inline void print_figures(const char* name, const outcome& out, std::chrono::nanoseconds took) {
  if (std::getenv("FOREBAY_EXPLORER_FIGURES") == nullptr) return;
  std::printf("| %s | %llu | %llu | %u | %.2f s |\n", name,
              static_cast<unsigned long long>(out.executions),
              static_cast<unsigned long long>(out.states), out.steps_max,
              std::chrono::duration<double>(took).count());
}

template <Scenario S>
void expect_explored() {
  options o = bounds_of<S>();
  if (sanitized) o.executions_max = sanitized_executions;
  o.random_executions = stress() && !sanitized ? stress_executions
                        : sanitized            ? random_executions / 10
                                               : random_executions;
  const auto start = std::chrono::steady_clock::now();
  const outcome out = explore<S>(o);
  print_figures(program_of<S>().name, out, std::chrono::steady_clock::now() - start);
  EXPECT_FALSE(out.failed) << out.message;
  if (!sanitized && !out.failed) {
    EXPECT_TRUE(out.exhausted) << program_of<S>().name << ": " << out.executions << " executions";
  }
}

// Each scenario passes to its bounds, and each order that the files state is needed by one of them.
template <Scenario... S>
void expect_explored_and_needed(std::initializer_list<std::string_view> files) {
  (expect_explored<S>(), ...);
  if (sanitized || testing::Test::HasFailure()) return;
  const weakening w = weaken<S...>(files);
  EXPECT_EQ(w.problems, "");
  EXPECT_NE(w.sites, 0u);
  if (std::getenv("FOREBAY_EXPLORER_FIGURES") == nullptr) return;
  std::printf("| orders: %u, weaker: %u, caught %u, told %u, %llu executions |\n", w.sites,
              w.weaker, w.caught, w.told, static_cast<unsigned long long>(w.executions));
}

// A wrong program is found out, with these words in the report.
template <Scenario S>
void expect_caught(const char* words) {
  const outcome out = explore<S>();
  EXPECT_TRUE(out.failed) << out.executions << " executions";
  EXPECT_NE(out.message.find(words), std::string::npos) << out.message;
}

}  // namespace forebay::explorer
