// Arena: one stretch of memory, its page frames, and the buddy allocator that hands them out.
//
//    data   | frame 0 | frame 1 | frame 2 | …   page_count() × 4 KiB, 2 MiB aligned, one mapping
//    pages  | page 0  | page 1  | page 2  | …   64 bytes each, a mapping of its own, never moves
//
// The buddy allocator (Knowlton 1965; Knuth, TAOCP 1, 2.5) keeps free blocks of 2^order frames,
// each aligned to its size relative to the arena's start, merges a freed block with its free buddy,
// and takes O(max_order) for either operation.
//
// Locks: `lock_` guards the free lists, and of each frame the fields `link`, `order` and the flag
// page_in_buddy while it is free. It is a leaf: nothing is taken under it.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>

#include "forebay/memory/page.h"
#include "forebay/os/memory.h"
#include "forebay/os/mutex.h"

namespace forebay {

class arena {
 public:
  static constexpr unsigned max_order = 10;  // 4 MiB

  struct options {
    std::size_t bytes = 0;   // for data and page state together; at least min_bytes
    bool huge_pages = true;  // try 2 MiB pages; backing() tells what came of it
  };

  static constexpr std::size_t min_bytes = 1u << 20;
  // What 31-bit object handles reach.
  static constexpr std::size_t max_bytes = std::size_t{128} << 30;

  // Errors: errc::too_small and errc::too_large outside [min_bytes, max_bytes]; those of `source`.
  static result<std::unique_ptr<arena>> create(const options& opts,
                                               memory_source& source = memory_source::system());

  // Every frame must have been given back.
  ~arena();
  arena(const arena&) = delete;
  arena& operator=(const arena&) = delete;

  // A block of 2^order contiguous frames with one reference, held through its first frame; flags,
  // owner and private_data are clear. Null when there is none. Any thread.
  page* allocate(unsigned order = 0) noexcept;

  // Turns an allocated block into single frames with one reference each. The block must have no
  // other holders.
  void split(page& block) noexcept;

  // Returns a block whose last reference has gone. put_page() calls it.
  void release(page& block) noexcept;

  std::byte* address_of(const page& p) const noexcept {
    return data_.data() + (static_cast<std::size_t>(&p - pages()) << page_shift);
  }
  std::uint32_t frame_of(const page& p) const noexcept {
    return static_cast<std::uint32_t>(&p - pages());
  }
  page& frame(std::uint32_t number) const noexcept { return pages()[number]; }
  // The frame that holds an address inside the arena.
  page& frame_at(const void* address) const noexcept {
    return pages()[(static_cast<const std::byte*>(address) - data_.data()) >> page_shift];
  }

  std::uint32_t page_count() const noexcept { return page_count_; }
  std::span<std::byte> memory() const noexcept {
    return {data_.data(), std::size_t{page_count_} << page_shift};
  }
  page_backing backing() const noexcept { return data_.backing(); }

  // Free frames, all orders together; exact at rest. Any thread, takes no lock.
  std::uint32_t free_pages() const noexcept {
    return free_pages_.load(std::memory_order_relaxed);  // relaxed: a hint and a statistic
  }
  // Free blocks of each order, at one moment.
  std::array<std::uint32_t, max_order + 1> free_blocks() const noexcept;

 private:
  using free_list = intrusive_list<page, &page::link>;

  arena(memory_mapping data, memory_mapping pages, std::uint32_t page_count) noexcept;

  page* pages() const noexcept { return reinterpret_cast<page*>(page_states_.data()); }
  void add_free(page& block, unsigned order) noexcept FOREBAY_REQUIRES(lock_);
  void remove_free(page& block) noexcept FOREBAY_REQUIRES(lock_);

  memory_mapping data_;
  memory_mapping page_states_;
  std::uint32_t page_count_;
  std::atomic<std::uint32_t> free_pages_{0};  // written under lock_, read anywhere

  mutable mutex lock_;
  std::array<free_list, max_order + 1> free_ FOREBAY_GUARDED_BY(lock_);
  std::array<std::uint32_t, max_order + 1> free_count_ FOREBAY_GUARDED_BY(lock_){};
};

}  // namespace forebay
