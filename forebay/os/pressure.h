// Who tells that memory is short: descriptors that become ready under pressure.
//
//   source      file                                       ready when
//   psi         /proc/pressure/memory, memory.pressure     tasks waited for memory for `stall_us`
//                                                          out of `window_us` (Linux's
//                                                          Documentation/accounting/psi.rst)
//   cgroup v1   memory.pressure_level with an eventfd      the group's pages were scanned and few
//                                                          could be taken back
//   cgroup v2   memory.events                              a limit of the group was met
//
// `pressure_sources` waits for all of them at once. They are hints: how much memory there is, is
// asked of os/cgroup.h.
//
// Thread-safety: one thread uses an object; wake() may be called from any.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "forebay/os/fd.h"

namespace forebay {

// How bad it is, in the order of badness.
enum class memory_pressure {
  none,
  moderate,  // work is held up by it now and then
  critical,  // next the kernel ends a process
};

const char* to_string(memory_pressure p) noexcept;

enum class pressure_kind { psi, cgroup_v1, cgroup_v2 };

const char* to_string(pressure_kind k) noexcept;

// When a PSI source becomes ready: once in a window at most, if tasks were stalled for that long
// within it: some task ("some"), or all that had something to do ("full").
struct psi_trigger {
  bool full = false;
  std::uint32_t stall_us = 150'000;
  std::uint32_t window_us = 1'000'000;  // 500'000 to 10'000'000
};

class pressure_source {
 public:
  // A trigger on a file of pressure-stall information; `meaning` is what it stands for. A process
  // without CAP_SYS_RESOURCE gets windows of whole 2 s only: the window is then rounded up to such,
  // and the stall with it, and widened() says so. Errors: of open(2) and write(2), as ENOENT and
  // EOPNOTSUPP where the kernel has no PSI, EINVAL for a trigger that it does not take.
  static result<pressure_source> psi(const std::string& path, psi_trigger trigger,
                                     memory_pressure meaning);

  // Pressure of level `meaning` (moderate is the kernel's "medium") on the v1 group in `directory`
  // itself, not on groups below it. Errors: of open(2) and write(2); EINVAL for none.
  static result<pressure_source> cgroup_v1(const std::string& directory, memory_pressure meaning);

  // The v2 group in `directory`: moderate when it met memory.high, critical when it met memory.max.
  // Errors: of open(2).
  static result<pressure_source> cgroup_v2(const std::string& directory);

  pressure_kind kind() const noexcept { return kind_; }
  const std::string& path() const noexcept { return path_; }
  bool widened() const noexcept { return widened_; }

  // ---- For pressure_sources ----

  // -1 once the source has ended, as it does with its group.
  int fd() const noexcept { return fd_.get(); }
  // What has come since the last call, given the events that poll(2) told of; also finds what a
  // cgroup v2 counts without being polled.
  memory_pressure take(short polled) noexcept;
  // The events to poll(2) for.
  short interest() const noexcept;

 private:
  // Of memory.events.
  struct event_counts {
    std::uint64_t high = 0;
    std::uint64_t max = 0;  // with those of oom and oom_kill
  };

  pressure_source(pressure_kind kind, std::string path, unique_fd fd,
                  memory_pressure meaning) noexcept
      : kind_(kind), path_(std::move(path)), fd_(std::move(fd)), meaning_(meaning) {}

  memory_pressure take_counts() noexcept;
  bool read_counts(event_counts& counts) noexcept;

  pressure_kind kind_;
  std::string path_;
  unique_fd fd_;
  memory_pressure meaning_;
  bool widened_ = false;
  event_counts seen_;  // cgroup_v2
};

class pressure_sources {
 public:
  // Errors: of eventfd(2).
  static result<pressure_sources> create();

  void add(pressure_source source) { sources_.push_back(std::move(source)); }

  const std::vector<pressure_source>& all() const noexcept { return sources_; }

  // What wait() found, for each kind of source the worst.
  struct findings {
    memory_pressure psi = memory_pressure::none;
    memory_pressure cgroup = memory_pressure::none;
    memory_pressure worst() const noexcept { return psi > cgroup ? psi : cgroup; }
  };

  // Sleeps until a source is ready, wake(), or for at most `timeout_ns`.
  findings wait(std::uint64_t timeout_ns) noexcept;

  // Ends the wait that is under way, or else the next. Any thread.
  void wake() const noexcept { signal_event_fd(wakeup_.get()); }

 private:
  explicit pressure_sources(unique_fd wakeup) noexcept : wakeup_(std::move(wakeup)) {}

  unique_fd wakeup_;
  std::vector<pressure_source> sources_;
};

}  // namespace forebay
