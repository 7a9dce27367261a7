// Keeps an arena within the memory there is: one thread that listens, decides and has it done.
//
//   PSI ────────────┐                                         ┌─> arena: limit
//   cgroup events ──┼─> wait ──> look ──> pressure_governor ──┤
//   cgroup limits ──┤                                         └─> shrinkers, while the arena has
//   watermarks ─────┘                                             more than its limit
//
// It looks when a source is ready, and at limits and watermarks four times a second anyway: limits
// are changed without an event, and reading them costs some microseconds. When memory was short of
// late, or the arena could not be brought under its limit yet (pages are pinned, or dirty and
// nowhere to go), it looks twenty times a second.
//
// Watermarks are those of free frames, as the kernel's kswapd has them: below the low one, the
// shrinkers are asked for frames up to the high one, so that those who cannot wait or evict find
// some.
//
// The thread takes nothing from the heap: there may be nothing to be had.
//
// Locks: lock_ guards what statistics() shows and is a leaf. The thread holds none of it while it
// shrinks. Any thread may call any member.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "forebay/memory/arena.h"
#include "forebay/memory/pressure_governor.h"
#include "forebay/memory/shrinker.h"
#include "forebay/os/pressure.h"

namespace forebay {

struct pressure_statistics {
  std::uint64_t capacity_bytes = 0;
  std::uint64_t ceiling_bytes = 0;     // that the limit is to be at most; the capacity for no wish
  std::uint64_t limit_bytes = 0;       // of the arena; the capacity when there is none
  std::uint64_t committed_bytes = 0;   // that the arena has
  std::uint64_t given_back_bytes = 0;  // to the operating system, since the start
  std::uint64_t psi_events = 0;
  std::uint64_t cgroup_events = 0;
  std::uint64_t watermark_events = 0;
  std::uint64_t limit_lowered = 0;   // times
  std::uint64_t limit_raised = 0;    // times
  std::uint64_t failed_shrinks = 0;  // that could not bring the arena under its limit at once
  bool has_group_limit = false;
  std::uint64_t group_limit_bytes = 0;  // of the group that has the least left
  std::uint64_t group_usage_bytes = 0;
};

class pressure_monitor {
 public:
  struct options {
    std::string root = {};  // below which /proc and /sys are looked for; for tests
    std::uint64_t floor_bytes = 4u << 20;
    std::uint64_t ceiling_bytes = UINT64_MAX;  // see set_ceiling()
    std::uint64_t calm_ns = 2'000'000'000;     // see pressure_governor
    psi_trigger some = {.full = false, .stall_us = 150'000, .window_us = 1'000'000};
    psi_trigger full = {.full = true, .stall_us = 100'000, .window_us = 1'000'000};
    // Called when the arena's limit has changed, with the new one: its capacity if there is none.
    // By create() for the first, and by the monitor's thread.
    std::function<void(std::uint64_t limit_bytes)> limit_changed = {};
  };

  // Opens the sources and limits the arena to what there is now; a source that is not to be had is
  // a remark. Both must outlive the monitor. Errors: of eventfd(2).
  static result<std::unique_ptr<pressure_monitor>> create(arena& memory,
                                                          shrinker_registry& shrinkers,
                                                          options opts);
  ~pressure_monitor();

  // Starts the thread.
  void start();
  // Ends it, at the latest when the batch that a shrinker works on is done; nothing happens if it
  // does not run. The limit stays as it is.
  void stop();

  // What is listened to, and what is not to be had and why: a sentence each, without a full stop.
  const std::vector<std::string>& sources() const noexcept { return source_names_; }
  const std::vector<std::string>& remarks() const noexcept { return remarks_; }

  pressure_statistics statistics() const;

  // The arena is to have at most so much from now on, even if there is more; at least the floor.
  // The thread sets the limit within a moment, and has what is over it given back.
  void set_ceiling(std::uint64_t bytes) noexcept;

  // One round of what the thread does, for who has no thread running: waits at most `timeout_ns`.
  void run_once(std::uint64_t timeout_ns, const std::stop_token& stop = {});

 private:
  static constexpr std::uint64_t idle_ns = 250'000'000;
  static constexpr std::uint64_t tense_ns = 50'000'000;
  static constexpr unsigned shrink_rounds_max = 8;

  pressure_monitor(arena& memory, shrinker_registry& shrinkers, options opts,
                   pressure_sources sources);

  void open_sources();
  void add(result<pressure_source> source, const std::string& what);
  pressure_governor::look look(memory_pressure event) const;
  void apply(const pressure_governor::look& l);
  bool bring_under_limit(const std::stop_token& stop);
  void keep_watermarks(const std::stop_token& stop);
  std::uint64_t next_wait_ns() const noexcept;

  arena& memory_;
  shrinker_registry& shrinkers_;
  const options options_;
  std::atomic<std::uint64_t> ceiling_;  // the wish; the governor hears of it in the next round
  const std::string statm_;
  const bool charged_;  // the arena's memory counts for the process's group
  std::optional<memory_cgroup> group_;
  std::vector<std::string> source_names_;
  std::vector<std::string> remarks_;
  // Below: the thread's, or run_once()'s caller's.
  pressure_sources sources_;
  pressure_governor governor_;
  bool over_limit_ = false;

  mutable mutex lock_;
  pressure_statistics statistics_ FOREBAY_GUARDED_BY(lock_);

  std::jthread thread_;
};

}  // namespace forebay
