// The address space of one io_uring: the process's own addresses, and beside them the number of the
// registered buffer (region) that a piece of memory lies in.
//
//    arena A:  | chunk 0 | chunk 1 | chunk 2 | …        arena B:  | chunk 0 | …
//    regions:  |    0    |    1    |  empty  | …                  |    n    | …      at most 16384
//
//    any thread   forget(chunk) --> bit set --> asked --> waker    the arena wants the chunk back
//    the ring     bit taken --> table entry emptied --> arena::device_forgot()
//
// Registered memory is looked up and pinned once and not for each transfer. It is registered by its
// arena's chunks of 2 MiB, which can be taken off and put back while transfers run: what is under
// way keeps what it uses. map() finds the region by itself. Memory that is in none, or not within a
// single one, has no_region, and its transfers go the ordinary way.
//
// A registration keeps memory in use whatever else is done to it, and only the ring's own thread
// may change it; so what an arena asks is noted, and done by answer(), which the queue pair calls
// with each doorbell. Who sleeps elsewhere than in the doorbell has himself woken (set_waker). When
// a chunk has come back it is registered again.
//
// All members belong to the ring's thread, but what the arenas call. Bits are set and taken
// atomically; there is no lock.
#pragma once

#include <array>
#include <atomic>
#include <memory>

#include "forebay/dma/domain.h"
#include "forebay/memory/arena.h"
#include "forebay/os/uring.h"

namespace forebay {

class uring_domain final : public dma_domain {
 public:
  static constexpr std::size_t max_arenas = 4;
  static constexpr std::uint32_t max_regions = uring::memory_table_max;  // 32 GiB together

  // When an arena's memory is registered: all of it by add(), before anything else is done; or its
  // first chunk by add() and one more by each answer(), which is called as long as there are some,
  // so that a service need not wait for it (4 GiB in pages of 4 KiB take half a second).
  enum class pace { at_once, gradual };

  explicit uring_domain(uring& ring) noexcept;
  // Leaves all arenas, with an answer to everything they asked. Nothing may be under way.
  ~uring_domain() override;

  // Registers what the arena has memory for, which keeps it in memory, and from now on what it
  // gets. Returns the bytes that have been registered. The arena must outlive the domain, or be
  // removed before. Errors, nothing is registered then and transfers go the ordinary way: EEXIST
  // if it is known already, ENOSPC if there are too many arenas or regions, ENOMEM, and what the
  // kernel answered for the first chunk (RLIMIT_MEMLOCK, usually).
  result<std::size_t> add(arena& memory, pace how = pace::at_once) noexcept;
  // Lets go of it. Transfers that are under way go on, those that are queued are handed over first,
  // and what is mapped stays so: its transfers go the ordinary way from now on. Without effect if
  // it is not known.
  void remove(arena& memory) noexcept;

  // Why less than all of the arena's memory was registered by add(): errc::too_large if it is more
  // than there are regions, ENOMEM if the kernel refused, no error if all is. Of a gradual one it
  // says what has turned out until now.
  std::error_code shortfall(const arena& memory) const noexcept;

  // Whether a chunk of it is registered now.
  bool has_region(const arena& memory, std::uint32_t chunk) const noexcept;

  // Whether a segment that was mapped, or a part of one, is in a region and the ring still has that
  // under the same number: its arena may have been removed since.
  bool is_registered(const dma_segment& s) const noexcept;

  // Calls `wake` (from any thread, must not block) when there is something to answer.
  void set_waker(void (*wake)(void*) noexcept, void* context) noexcept {
    wake_ = wake;
    wake_context_ = context;
  }

  // Does what the arenas have asked. Cheap when they have not.
  void answer() noexcept {
    // relaxed: a look that saves the exchange; what it misses was announced by the waker, after
    // which somebody looks again.
    if (asked_.load(std::memory_order_relaxed)) [[unlikely]]
      do_what_was_asked();
  }

 protected:
  result<dma_segment> do_map(std::span<std::byte> memory, dma_direction) noexcept override;
  void do_unmap(const dma_segment&, dma_direction) noexcept override {}

 private:
  class attachment;

  std::uint32_t region_of(const std::byte* data, std::size_t bytes) const noexcept;
  attachment* find(const arena& memory) const noexcept;
  result<std::uint32_t> free_regions(std::uint32_t& count) const noexcept;
  void detach(attachment& a) noexcept;
  void do_what_was_asked() noexcept;
  void ask() noexcept;

  uring& ring_;
  bool has_table_ = false;  // the ring has one, of max_regions entries
  std::size_t count_ = 0;
  std::array<std::unique_ptr<attachment>, max_arenas>
      attached_;  // the first count_, by first region
  void (*wake_)(void*) noexcept = nullptr;
  void* wake_context_ = nullptr;
  std::atomic<bool> asked_{false};  // some bit of an attachment is set
};

}  // namespace forebay
