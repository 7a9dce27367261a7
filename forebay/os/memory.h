// Anonymous memory from the operating system, and how much there is.
//
// `memory_source` is the seam for tests: an arena asks it for its mapping, so a source that fails
// or refuses huge pages can stand in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "forebay/base/result.h"

namespace forebay {

enum class page_backing {
  huge_reserved,     // MAP_HUGETLB: 2 MiB pages from the reserved pool
  huge_transparent,  // 2 MiB pages where the kernel finds them (MADV_HUGEPAGE)
  ordinary,          // 4 KiB pages
};

const char* to_string(page_backing b) noexcept;

// Owns one mapping; unmaps on destruction.
class memory_mapping {
 public:
  memory_mapping() noexcept = default;
  memory_mapping(std::byte* data, std::size_t bytes, page_backing backing) noexcept
      : data_(data), bytes_(bytes), backing_(backing) {}
  memory_mapping(memory_mapping&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        bytes_(std::exchange(other.bytes_, 0)),
        backing_(other.backing_) {}
  memory_mapping& operator=(memory_mapping&& other) noexcept;
  ~memory_mapping();

  std::byte* data() const noexcept { return data_; }
  std::size_t size_bytes() const noexcept { return bytes_; }
  page_backing backing() const noexcept { return backing_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
  page_backing backing_ = page_backing::ordinary;
};

class memory_source {
 public:
  virtual ~memory_source() = default;

  // Zeroed, readable and writable memory, aligned to 2 MiB when `huge` is asked for and to 4 KiB
  // otherwise. `bytes` is rounded up to that alignment. With `huge`, tries reserved huge pages,
  // then transparent ones, then takes ordinary ones: the mapping's backing() tells which. Errors:
  // ENOMEM, EINVAL for 0 bytes.
  virtual result<memory_mapping> map(std::size_t bytes, bool huge);

  // The source that asks the kernel.
  static memory_source& system();
};

// Bytes of memory that the machine has.
std::uint64_t machine_memory_bytes() noexcept;

// Bytes of memory that the machine, or the cgroup (v1 or v2) that this process is in, allows it:
// the smaller one (see os/cgroup.h).
std::uint64_t memory_limit_bytes();

}  // namespace forebay
