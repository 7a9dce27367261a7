// What to do when something bounded is full (a ring, a queue) or has run out (a pool): five
// policies, one set of counters for what they did, and the signal that back-pressure is made of.
//
//    policy         the newcomer                         counted as
//    tail_drop      is not taken                         tail_drops
//    head_drop      is taken; the oldest one goes        head_drops
//    back_pressure  is taken while there is room; who    refusals, raised, lowered
//                   sends hears before that it is high
//    expand         is taken; room is made, to a limit   expansions; then tail_drops
//    block          waits for room                       waits, timeouts, cancellations
//
// Values, and counters for any thread.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "forebay/base/atomics.h"
#include "forebay/base/stats.h"

namespace forebay {

enum class exhaustion_policy : std::uint8_t { tail_drop, head_drop, back_pressure, expand, block };

constexpr std::string_view name_of(exhaustion_policy p) noexcept {
  switch (p) {
    case exhaustion_policy::tail_drop:
      return "tail_drop";
    case exhaustion_policy::head_drop:
      return "head_drop";
    case exhaustion_policy::back_pressure:
      return "back_pressure";
    case exhaustion_policy::expand:
      return "expand";
    case exhaustion_policy::block:
      return "block";
  }
  return "unknown";
}

// How often, in items where items are lost and in calls where somebody waits.
struct exhaustion_statistics {
  std::uint64_t tail_drops = 0;
  std::uint64_t head_drops = 0;
  std::uint64_t refusals = 0;       // items that found no room in spite of the signal
  std::uint64_t raised = 0;         // times the level reached the high mark
  std::uint64_t lowered = 0;        // and came back to the low one
  std::uint64_t expansions = 0;     // times that room was made
  std::uint64_t waits = 0;          // calls that found no room and waited
  std::uint64_t timeouts = 0;       // of them, those that gave up
  std::uint64_t cancellations = 0;  // and those that were stopped
  friend bool operator==(const exhaustion_statistics&, const exhaustion_statistics&) = default;
};

struct exhaustion_counters {
  std::atomic<std::uint64_t> tail_drops{0};
  std::atomic<std::uint64_t> head_drops{0};
  std::atomic<std::uint64_t> refusals{0};
  std::atomic<std::uint64_t> raised{0};
  std::atomic<std::uint64_t> lowered{0};
  std::atomic<std::uint64_t> expansions{0};
  std::atomic<std::uint64_t> waits{0};
  std::atomic<std::uint64_t> timeouts{0};
  std::atomic<std::uint64_t> cancellations{0};

  exhaustion_statistics read() const noexcept {
    return {.tail_drops = value_of(tail_drops),
            .head_drops = value_of(head_drops),
            .refusals = value_of(refusals),
            .raised = value_of(raised),
            .lowered = value_of(lowered),
            .expansions = value_of(expansions),
            .waits = value_of(waits),
            .timeouts = value_of(timeouts),
            .cancellations = value_of(cancellations)};
  }
};

// Levels in items: the signal goes up when a level is reached that is `high` or more, and down when
// one is left that is `low` or less. low < high, so that it does not flutter.
struct water_marks {
  std::size_t high = 0;
  std::size_t low = 0;
};

// Whether a level is high, with hysteresis, for any number of threads that add and take without a
// lock. Each call says whether it is the one that changed the state; there is one for each change.
//
// The level must rise with who adds before it calls added(), and fall before taken(). What may not
// happen is that the signal stays up with nobody left to take it down: who raises it looks at the
// level again after that, who takes looks at the signal after that, and with a fence between the
// two on both sides one of them sees what the other did (Dekker). That it stays down too long
// cannot matter: the next one who adds raises it.
template <AtomicsPolicy Atomics = real_atomics>
class basic_pressure_gate {
 public:
  enum class change : std::uint8_t { none, raised, lowered, both };

  explicit basic_pressure_gate(water_marks marks) noexcept : marks_(marks) {}

  const water_marks& marks() const noexcept { return marks_; }
  bool raised() const noexcept {
    return raised_.load(std::memory_order_acquire) != 0;  // acquire: pairs with set()
  }

  // `level` is called for the level now. both: it had fallen again already.
  template <typename Level>
  change added(const Level& level) noexcept {
    if (level() < marks_.high || !set(1)) return change::none;
    Atomics::fence(std::memory_order_seq_cst);  // the signal is up before the level is read
    return level() <= marks_.low && set(0) ? change::both : change::raised;
  }
  template <typename Level>
  change taken(const Level& level) noexcept {
    Atomics::fence(std::memory_order_seq_cst);  // the level is down before the signal is read
    // relaxed: the fence has ordered it.
    if (raised_.load(std::memory_order_relaxed) == 0 || level() > marks_.low) return change::none;
    return set(0) ? change::lowered : change::none;
  }

 private:
  // True if this call made the change.
  bool set(std::uint32_t to) noexcept {
    std::uint32_t from = 1 - to;
    // relaxed: a look that leaves the line alone when there is nothing to change.
    if (raised_.load(std::memory_order_relaxed) != from) return false;
    // release: who sees the signal sees what was done before it; relaxed: nothing was done.
    return raised_.compare_exchange_strong(from, to, std::memory_order_release,
                                           std::memory_order_relaxed);  // relaxed: see above
  }

  const water_marks marks_;
  typename Atomics::template atomic<std::uint32_t> raised_{0};
};

using pressure_gate = basic_pressure_gate<>;

}  // namespace forebay
