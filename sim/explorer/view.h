// What a thread, or a message from one thread to another, knows of the others.
//
//   at:  | clock of thread 0 … 7 | time in location 0 | time in location 1 | …
//
// A clock says up to which of a thread's steps everything happens before; a time, which place in
// the location's modification order the next access may not go behind (coherence). Both only grow,
// and to learn what another knows is the larger of each: so one vector holds both, and a join is
// one loop.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

namespace forebay::explorer {

inline constexpr unsigned threads_max = 8;      // the main one included
inline constexpr unsigned locations_max = 248;  // atomics that an execution touches

struct view {
  static constexpr unsigned clocks = threads_max;
  static constexpr unsigned lanes_max = clocks + locations_max;

  // Lanes in use, a multiple of 8; those behind are as if 0.
  std::uint16_t lanes = clocks;
  alignas(16) std::array<std::int16_t, lanes_max> at;

  void clear() noexcept {
    lanes = clocks;
    at.fill(0);
  }

  std::int16_t clock_of(unsigned thread) const noexcept { return at[thread]; }
  std::int16_t time_in(unsigned location) const noexcept {
    return clocks + location < lanes ? at[clocks + location] : std::int16_t{0};
  }
  void raise(unsigned location, std::int16_t time) noexcept {
    grow(clocks + location + 1);
    std::int16_t& mine = at[clocks + location];
    mine = std::max(mine, time);
  }

  void grow(unsigned wanted) noexcept {
    while (lanes < wanted) {
      std::fill_n(at.begin() + lanes, 8, std::int16_t{0});
      lanes = static_cast<std::uint16_t>(lanes + 8);
    }
  }

  void join(const view& other) noexcept { join_from(other, 0); }
  // Without the clocks: what must be seen, but not what happens before.
  void join_times(const view& other) noexcept { join_from(other, clocks); }

  void copy(const view& other) noexcept {
    lanes = other.lanes;
    std::copy_n(other.at.begin(), other.lanes, at.begin());
  }

 private:
  void join_from(const view& other, unsigned first) noexcept {
    grow(other.lanes);
    std::int16_t* mine = at.data();
    const std::int16_t* theirs = other.at.data();
    for (unsigned i = first; i < other.lanes; i += 8) {
      for (unsigned j = 0; j < 8; ++j) mine[i + j] = std::max(mine[i + j], theirs[i + j]);
    }
  }
};

}  // namespace forebay::explorer
