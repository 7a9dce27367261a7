// Buddy allocator: free blocks of 2^order page frames (Knowlton 1965; Knuth, TAOCP 1, 2.5).
//
//    order 18 |                               1 GiB                               |
//    order  9 | 2 MiB: a chunk | chunk        | chunk        | …                  |
//    order  0 |0|1|2|…
//
// A block is aligned to its size, counted from frame 0. A freed block is merged with its buddy, the
// other half of the next larger block, as long as that is free too: O(max_order) for either
// operation.
//
// Frames come and go in whole chunks of 2 MiB (the last one may be smaller):
//
//    absent --add()--> online --isolate()--> isolated --remove()--> absent
//                        ^---undo_isolate()-----'       (all its frames free)
//
// The free frames of an isolated chunk are on no list, and those freed later in it stay off: once
// its users have gone it is wholly free.
//
// Mobility (after Gorman's and Whitcroft's grouping of pages, Linux Symposium 2006, with two
// groups): frames that can be emptied at will are `movable`, the others `fixed`. Each chunk that is
// not wholly free belongs to one group, and a block below 2 MiB lies on the list of its chunk's
// group. Fixed blocks come from the chunks of their group, then from the highest free chunk, then
// from the movable chunk with the largest free block, which changes groups with all its free
// blocks. Movable blocks come from their own chunks, then from the lowest free one, then from what
// is free in fixed chunks. So fixed blocks stay together, and emptying movable frames empties
// chunks.
//
// Of each frame this class has: `link`, `order` and the flags page_in_buddy and page_isolated while
// it is free, and the flag page_fixed from take() to give(). Not thread-safe: the owner's lock
// guards it all, but for free_frames().
#pragma once

#include <array>
#include <atomic>
#include <bitset>
#include <cstdint>
#include <span>

#include "forebay/memory/page.h"

namespace forebay {

enum class placement : std::uint8_t {
  movable,  // can be emptied: data of the page cache
  fixed,    // stays until its user gives it back: slabs, pools
};

class buddy {
 public:
  static constexpr unsigned max_order = 18;   // 1 GiB
  static constexpr unsigned chunk_order = 9;  // 2 MiB
  static constexpr std::uint32_t chunk_frames = 1u << chunk_order;

  using counts = std::array<std::uint32_t, max_order + 1>;  // free blocks of each order
  using frame_set = std::bitset<chunk_frames>;

  // absent before add(): its frames' state need not have been constructed then, only zeroed.
  enum class presence : std::uint8_t { absent, online, isolated };

  struct chunk_record {
    std::uint16_t free = 0;   // frames, also those that isolation keeps off the lists
    std::uint16_t fixed = 0;  // frames in blocks that were taken as fixed
    presence state = presence::absent;
    placement group = placement::movable;  // of the lists that its free blocks below 2 MiB lie on
  };

  static constexpr std::uint32_t chunks_of(std::uint32_t frames) noexcept {
    return (frames + chunk_frames - 1) >> chunk_order;
  }

  // An allocator over frames[0, frame_count) without any frames in it. Both arrays must outlive it;
  // `chunks` has chunks_of(frame_count) elements.
  buddy(page* frames, std::uint32_t frame_count, std::span<chunk_record> chunks) noexcept
      : frames_(frames), frame_count_(frame_count), chunks_(chunks) {}
  buddy(const buddy&) = delete;
  buddy& operator=(const buddy&) = delete;

  // Takes a block of 2^order frames, by its first frame; null when there is none. Its page_fixed
  // tells where it was placed; its other flags are as its last user left them.
  page* take(unsigned order, placement where) noexcept;

  // Gives back a block with block.order and page_fixed as take() set them.
  void give(page& block) noexcept;

  // absent -> online. Every frame's state must be constructed, with no flags.
  void add(std::uint32_t chunk) noexcept;
  // online -> isolated; false if it is not online.
  bool isolate(std::uint32_t chunk) noexcept;
  // isolated -> online.
  void undo_isolate(std::uint32_t chunk) noexcept;
  // isolated -> absent; every frame must be free.
  void remove(std::uint32_t chunk) noexcept;

  // The frames of an online or isolated chunk that somebody has: bit i stands for its frame i.
  frame_set used(std::uint32_t chunk) const noexcept;

  const chunk_record& state_of(std::uint32_t chunk) const noexcept { return chunks_[chunk]; }
  std::uint32_t frames_in(std::uint32_t chunk) const noexcept {
    const std::uint32_t first = chunk << chunk_order;
    return frame_count_ - first < chunk_frames ? frame_count_ - first : chunk_frames;
  }
  bool wholly_free(std::uint32_t chunk) const noexcept {
    return chunks_[chunk].free == frames_in(chunk) && chunks_[chunk].state != presence::absent;
  }

  // Free frames on the lists. Any thread.
  std::uint32_t free_frames() const noexcept {
    return free_frames_.load(std::memory_order_relaxed);  // relaxed: a hint and a statistic
  }
  const counts& free_blocks() const noexcept { return count_; }

 private:
  using block_list = intrusive_list<page, &page::link>;
  using list_array = std::array<block_list, max_order + 1>;

  std::uint32_t number(const page& p) const noexcept {
    return static_cast<std::uint32_t>(&p - frames_);
  }
  chunk_record& chunk_at(std::uint32_t frame) noexcept { return chunks_[frame >> chunk_order]; }
  list_array& lists(placement group) noexcept { return group == placement::fixed ? fixed_ : free_; }

  void link(std::uint32_t at, unsigned order) noexcept;
  void unlink(page& block) noexcept;
  void merge_and_link(std::uint32_t at, unsigned order) noexcept;
  page& cut(page& block, unsigned order, bool upper) noexcept;
  page* first_of(list_array& from, unsigned low, unsigned high) noexcept;
  page* take_movable(unsigned order) noexcept;
  page* take_fixed(unsigned order) noexcept;
  bool claim_free_chunk(unsigned order, placement group) noexcept;
  void note_free_chunk(std::uint32_t chunk) noexcept;
  page* containing_block(std::uint32_t chunk) const noexcept;
  void regroup(std::uint32_t chunk, placement group) noexcept;
  void count_taken(std::uint32_t at, unsigned order, placement where) noexcept;
  void give_in_chunk(std::uint32_t at, unsigned order, bool fixed) noexcept;

  page* const frames_;
  const std::uint32_t frame_count_;
  const std::span<chunk_record> chunks_;
  list_array free_;   // movable groups below chunk_order, all blocks from there on
  list_array fixed_;  // fixed groups below chunk_order
  counts count_{};
  std::uint32_t lowest_free_ = 0;              // no chunk below it is online and wholly free
  std::uint32_t highest_free_ = 0;             // nor one above it
  std::uint32_t free_chunks_ = 0;              // online and wholly free
  std::atomic<std::uint32_t> free_frames_{0};  // written under the owner's lock, read anywhere
};

// External fragmentation as Linux reports it (mm/vmstat.c, after Gorman's and Whitcroft's "The
// what, the why and the where to of anti-fragmentation", Linux Symposium 2006).

// Why a block of `order` cannot be had, in thousandths: towards 0 for want of memory, towards 1000
// because what is free lies scattered; -1000 if it can be had.
int fragmentation_index(const buddy::counts& free_blocks, unsigned order) noexcept;

// The share of the free frames that lie in blocks too small for `order`, in thousandths; 1000 when
// nothing is free.
int unusable_free_index(const buddy::counts& free_blocks, unsigned order) noexcept;

}  // namespace forebay
