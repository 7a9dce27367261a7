// A part of a file of another process, mapped to be shared, which stays readable whatever that
// process does to the file.
//
// A page of a mapping that lies behind the file's end ends a process that touches it with SIGBUS.
// A file that is sealed against shrinking cannot get there (shared_memory.h takes no others); the
// memory of virtual machines is often in files that are not sealed. So the first mapping installs a
// handler of SIGBUS for the process: a touch of a missing page of one of these mappings puts a page
// of zeros there and goes on, and the mapping is damaged from then on. Other faults have the effect
// that they had without it.
//
// Any thread. No lock: the handler looks at a table of words that map() and the destructor set.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include "forebay/base/result.h"

namespace forebay {

class foreign_mapping {
 public:
  static constexpr std::size_t mappings_max = 1024;  // of the process, at a time
  static constexpr std::uint64_t bytes_max = std::uint64_t{1} << 40;

  // Maps `bytes` of the file from `offset_bytes` on, to read and write. The descriptor stays the
  // caller's. Errors: EINVAL for no bytes, or if the file is not as long now; errc::too_large above
  // bytes_max; ENOSPC above mappings_max; errno of fstat(2) and mmap(2).
  static result<foreign_mapping> map(int fd, std::uint64_t offset_bytes, std::uint64_t bytes);

  foreign_mapping() noexcept = default;
  foreign_mapping(foreign_mapping&& other) noexcept
      : whole_(std::exchange(other.whole_, {})),
        part_(std::exchange(other.part_, {})),
        slot_(std::exchange(other.slot_, 0)) {}
  foreign_mapping& operator=(foreign_mapping&& other) noexcept {
    std::swap(whole_, other.whole_);
    std::swap(part_, other.part_);
    std::swap(slot_, other.slot_);
    return *this;
  }
  // Nobody may be touching it.
  ~foreign_mapping();

  std::span<std::byte> memory() const noexcept { return part_; }

  // Whether some of it was found missing.
  bool damaged() const noexcept;

 private:
  std::span<std::byte> whole_;  // in whole pages of the file
  std::span<std::byte> part_;
  std::size_t slot_ = 0;  // in the handler's table
};

}  // namespace forebay
