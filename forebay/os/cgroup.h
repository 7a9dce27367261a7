// The memory control group of this process, cgroups v1 and v2: how much memory it and the groups
// above it may use, and how much they do.
//
//   /sys/fs/cgroup            limit none
//     └─ machine.slice        limit 8 GiB    every group on the way up binds those below it:
//          └─ vm-17           limit 1 GiB    the tightest one is what counts
//               └─ (this process)
//
// All paths are taken below a root directory, so that a test can bring a tree of its own.
//
// Values; constant after find(), which reads the process's place once (a process that is moved to
// another group later is not followed). Any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "forebay/base/result.h"

namespace forebay {

enum class cgroup_version { v1, v2 };

// How one group stands, in bytes.
struct memory_room {
  std::uint64_t limit_bytes = UINT64_MAX;  // the smallest of its limits; UINT64_MAX: none
  std::uint64_t usage_bytes = 0;
  // Of the usage: pages of files, which the kernel takes back by itself before it runs short.
  std::uint64_t file_bytes = 0;

  // What can still be used before the limit; negative above it.
  std::int64_t headroom_bytes() const noexcept;
};

class memory_cgroup {
 public:
  // The group that this process is in, found by /proc/self/cgroup and /proc/self/mountinfo below
  // `root`. Where both versions are mounted it is the one whose memory controller is in use.
  // Errors: ENOENT when there is none.
  static result<memory_cgroup> find(const std::string& root = "");

  cgroup_version version() const noexcept { return version_; }

  // Its directory and those of the groups above it that have the memory controller, its own first.
  // At most max_depth.
  const std::vector<std::string>& directories() const noexcept { return directories_; }

  // The group on the way up that has the least left, limits being memory.max and memory.high, or
  // memory.limit_in_bytes and memory.soft_limit_in_bytes. None if no group has a limit.
  // Takes no memory from the heap.
  std::optional<memory_room> tightest() const noexcept;

  // The smallest limit on the way up; UINT64_MAX if there is none.
  std::uint64_t limit_bytes() const noexcept;

  static constexpr std::size_t max_depth = 16;

 private:
  // The files of one group.
  struct files {
    std::string usage;
    std::string hard_limit;
    std::string soft_limit;
    std::string stat;
  };

  memory_cgroup(cgroup_version version, std::vector<std::string> directories);

  static std::uint64_t limit_of(const files& f) noexcept;
  memory_room room_of(const files& f) const noexcept;

  cgroup_version version_;
  std::vector<std::string> directories_;
  std::vector<files> files_;  // of each
};

// Bytes of anonymous memory that this process has in memory, reserved huge pages not among them;
// UINT64_MAX if that cannot be read. A few pages too many or too few: the kernel counts by CPU.
// Takes no memory from the heap.
std::uint64_t anonymous_bytes(const char* statm = "/proc/self/statm") noexcept;

}  // namespace forebay
