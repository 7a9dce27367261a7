// How much memory an arena may have: the decision, without the doing.
//
//   limit
//     |‾‾‾‾‾‾‾‾‾\                          __/‾‾‾‾‾   capacity
//     |          \                      __/
//     |           \____  at once     __/  in steps, after a while of calm
//     |                \____________/
//     '----------------------------------------------> time
//                 pressure
//
// Down it goes at once, by what is known or else by a share. Known: the groups of os/cgroup.h say
// what is left; then the arena may have what it has and that, less a margin. Not known: an event
// (os/pressure.h) says that somebody is short; then it gives a sixteenth, or a quarter when it is
// critical, and again if the events go on after that has shown its effect. Up it goes in sixteenths
// of the capacity, as far as is known to be allowed, once there has been no pressure for `calm_ns`:
// memory that is short for a reason that cannot be seen is found out about by asking for a little
// more.
//
// A value without locks; its user guards it.
#pragma once

#include <cstdint>
#include <optional>

#include "forebay/os/cgroup.h"
#include "forebay/os/pressure.h"

namespace forebay {

class pressure_governor {
 public:
  struct options {
    std::uint64_t capacity_bytes = 0;       // what the arena has room for
    std::uint64_t floor_bytes = 0;          // it never has to make do with less
    std::uint64_t unit_bytes = 2u << 20;    // limits below the capacity are multiples of this
    std::uint64_t calm_ns = 2'000'000'000;  // without pressure, before it may grow
    std::uint64_t growth_ns = 200'000'000;  // from one step to the next
    // From one share to the next: what is given back is free a little later, and until then
    // whoever is short goes on to say so.
    std::uint64_t settle_ns = 50'000'000;
  };

  // What there is to be seen at one moment.
  struct look {
    std::uint64_t now_ns = 0;
    std::uint64_t committed_bytes = 0;  // that the arena has
    // That the arena takes of the memory in use. Less than committed as long as some of it has
    // never been touched; too much rather than too little.
    std::uint64_t resident_bytes = 0;
    std::optional<memory_room> room = std::nullopt;  // none: no limit is known
    memory_pressure event = memory_pressure::none;
  };

  explicit pressure_governor(const options& opts) noexcept;

  // The limit from now on; capacity_bytes means that there is none.
  std::uint64_t decide(const look& l) noexcept;

  // It is to be no more than this, whatever there is: below the capacity, somebody's wish. Down it
  // goes at once, and up as well unless memory was short, or is not known to be there.
  void set_ceiling(std::uint64_t bytes, const look& l) noexcept;
  std::uint64_t ceiling_bytes() const noexcept { return ceiling_; }

  std::uint64_t limit_bytes() const noexcept { return limit_; }
  bool is_limited() const noexcept { return limit_ < options_.capacity_bytes; }

  // Whether it was short of late, so that a second look soon is in place.
  bool is_tense(std::uint64_t now_ns) const noexcept {
    return pressed_ && now_ns - pressed_ns_ < options_.calm_ns;
  }

  // What is left free below a limit, so that what nobody plans for does not meet it: a sixteenth,
  // at least 4 MiB and at most 64 MiB.
  static std::uint64_t margin_bytes(std::uint64_t limit_bytes) noexcept;

  // What the arena may have with `l.room`, at most the ceiling.
  std::uint64_t allowed_bytes(const look& l) const noexcept;

 private:
  static constexpr std::uint64_t moderate_share = 16;
  static constexpr std::uint64_t critical_share = 4;
  static constexpr std::uint64_t growth_share = 16;

  std::uint64_t in_bounds(std::uint64_t bytes) const noexcept;
  bool is_settled(const look& l) const noexcept;

  options options_;
  std::uint64_t ceiling_;         // at least the floor
  std::uint64_t limit_;           // at most the ceiling
  bool pressed_ = false;          // ever
  std::uint64_t pressed_ns_ = 0;  // last time
  std::uint64_t shared_ns_ = 0;   // when an event last took a share
  std::uint64_t grown_ns_ = 0;
};

}  // namespace forebay
