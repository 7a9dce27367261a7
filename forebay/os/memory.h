// Anonymous memory from the operating system, and how much there is.
//
//    map()      address space: nothing is used yet
//    commit()   pages behind it, for certain       discard()  none any more, it reads as zeros
//    pin()      that never leave                   unpin()
//
// `memory_source` is the seam for tests: an arena asks it for everything it does with memory, so a
// source that fails or refuses huge pages can stand in. All its members may be called from any
// thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include "forebay/base/result.h"
#include "forebay/os/numa.h"

namespace forebay {

// From the largest to the smallest.
enum class page_backing : std::uint8_t {
  gigantic_reserved,  // MAP_HUGETLB: 1 GiB pages from the reserved pool
  huge_reserved,      // MAP_HUGETLB: 2 MiB pages from the reserved pool
  huge_transparent,   // 2 MiB pages where the kernel finds them (MADV_HUGEPAGE)
  ordinary,           // 4 KiB pages
};

const char* to_string(page_backing b) noexcept;

// The size of a backing's pages; transparent ones count as what they are meant to be.
std::size_t page_bytes_of(page_backing b) noexcept;

struct memory_request {
  std::size_t bytes = 0;
  // With which pages to begin; when they are not to be had the next smaller ones are tried.
  page_backing largest = page_backing::ordinary;
  int node = any_numa_node;
  // So many bytes from the start are certain to be there when map() returns, where the backing has
  // a pool that could run dry; the rest must be committed before it is touched.
  std::size_t commit_bytes = SIZE_MAX;
  // Of ordinary pages: where they begin is a multiple of this power of two.
  std::size_t alignment = 4096;
  // The memory of frames, which a source may keep somewhere else than what is known of them.
  bool holds_data = false;
};

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
  // Says of the same memory that it is in other pages.
  memory_mapping with_backing(page_backing b) && noexcept {
    return {std::exchange(data_, nullptr), bytes_, b};
  }
  std::span<std::byte> part(std::size_t start, std::size_t bytes) const noexcept {
    return {data_ + start, bytes};
  }

 private:
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
  page_backing backing_ = page_backing::ordinary;
};

class memory_source {
 public:
  virtual ~memory_source() = default;

  // Zeroed, readable and writable memory, aligned to the size of the pages asked for; bytes is
  // rounded up to that. The mapping's backing() tells which pages it got. Errors: ENOMEM, EINVAL
  // for 0 bytes, ENODEV for a NUMA node that does not exist, errno.
  virtual result<memory_mapping> map(const memory_request& request);

  // Makes sure that a part of a mapping has memory, where the backing's pool could run dry:
  // ENOMEM if it has. Nothing to do for other backings.
  virtual result<> commit(std::span<std::byte> part, page_backing backing);

  // Gives the memory of a part back to the operating system. Its contents are lost, the addresses
  // stay and read as zeros. The part must be aligned to the backing's pages (EINVAL) and not be
  // pinned.
  virtual result<> discard(std::span<std::byte> part);

  // Keeps a part in memory (mlock). Errors: ENOMEM, EPERM, EAGAIN when RLIMIT_MEMLOCK is too small;
  // nothing is pinned then.
  virtual result<> pin(std::span<std::byte> part);
  virtual void unpin(std::span<std::byte> part) noexcept;

  // What to do, so that map() finds huge pages where it had ordinary ones only.
  virtual const char* huge_page_advice() const noexcept;

  // The source that asks the kernel.
  static memory_source& system();
};

// A pool of reserved huge pages, in pages; zeros where the machine has no such size.
struct huge_page_pool {
  std::uint64_t total = 0;
  std::uint64_t free = 0;
};
huge_page_pool reserved_huge_pages(page_backing b);

// How much of a range of anonymous memory, in whole pages of 4 KiB, is in memory (mincore(2)); 0 if
// it is not mapped.
std::size_t resident_bytes(std::span<const std::byte> range) noexcept;

// Maps what of a range is in memory already, as a file's pages are: 64 KiB at a time, where each
// touch would map 4 KiB. A refusal costs time only.
void map_what_is_there(std::span<std::byte> range) noexcept;

// RLIMIT_MEMLOCK of this process; UINT64_MAX for unlimited.
std::uint64_t pin_limit_bytes() noexcept;

// Bytes of memory that the machine has.
std::uint64_t machine_memory_bytes() noexcept;

// Bytes of memory that the machine, or the cgroup (v1 or v2) that this process is in, allows it:
// the smaller one.
std::uint64_t memory_limit_bytes();

}  // namespace forebay
