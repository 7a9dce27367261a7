// Whether each memory order of a type is needed.
//
// Every order that the type's source states is set one step weaker, one at a time:
//
//   seq_cst -> acq_rel (a load: acquire, a store: release)
//   acq_rel -> acquire, and -> release
//   acquire -> relaxed        release -> relaxed
//
// and the type's scenarios are explored again. One of them has to fail: the explorer has seen what
// the order is for. Where none does, the source has to say why it is there all the same, in the
// statement or in the comment right above it, after the words
//
//   beyond the explorer:
//
// Where these words stand though every weaker order was caught, they are not true any more, which
// is a problem too.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "sim/explorer/explore.h"

namespace forebay::explorer {

inline constexpr std::string_view remark_words = "beyond the explorer:";

struct weakening {
  unsigned sites = 0;   // orders other than relaxed that the scenarios came to
  unsigned weaker = 0;  // orders that were tried instead
  unsigned caught = 0;  // of these, how many made a scenario fail
  unsigned told = 0;    // of these, how many the source accounts for
  std::uint64_t executions = 0;
  std::string problems;  // a line for each order that is not accounted for; empty is good
};

struct bounded_program {
  const program* code;
  options bounds;
};

// `files` are the ends of the names of the type's source files; orders elsewhere stay.
weakening weaken(std::span<const bounded_program> scenarios,
                 std::initializer_list<std::string_view> files);

template <Scenario... S>
weakening weaken(std::initializer_list<std::string_view> files) {
  const bounded_program scenarios[] = {{&program_of<S>(), bounds_of<S>()}...};
  return weaken(scenarios, files);
}

// Whether the lines of a source file say, at the statement around line `number` (from 1), why its
// order is there.
bool has_remark(std::span<const std::string> lines, std::size_t number);

}  // namespace forebay::explorer
