// The address space of an AF_XDP socket: an arena's memory, as the UMEM that is registered, in
// which a device address is a distance from its start.
//
//    arena:    | chunk 0 (2 MiB)          | chunk 1           | …
//    UMEM:     | frame | frame | frame | … | frame | frame | …        frame_bytes each
//    address:    0       2048    4096
//
// A mapping is made of bytes in one frame, as the rings' entries are. Nothing is kept for it: the
// kernel has had all of the memory, pinned, since it was registered, and can access it at any time.
// So whose a frame is is told by the rings alone, and checked by the domain's checks (dma/debug.h)
// where they are on.
//
// A UMEM cannot let go of a part of itself. When the arena gives a chunk to the operating system
// the kernel keeps the pages that it has pinned, and what the arena gets at these addresses later
// is other memory. From then on the chunk is lost: nothing in it can be mapped (EFAULT). A pool
// whose buffers are all made at its start never loses one.
//
// Any thread.
#pragma once

#include <atomic>
#include <memory>

#include "forebay/dma/domain.h"
#include "forebay/memory/arena.h"

namespace forebay {

class umem_domain final : public dma_domain {
 public:
  // `frame_bytes` is a power of two, 2048 or a page. The arena must outlive the domain. Errors:
  // EINVAL, ENOMEM.
  static result<std::unique_ptr<umem_domain>> create(arena& memory, std::uint32_t frame_bytes,
                                                     const dma_check_options& checks = {});
  ~umem_domain() override;

  // What is to be registered: all that the arena had memory for when the domain was made.
  std::span<std::byte> area() const noexcept { return area_; }
  std::uint32_t frame_bytes() const noexcept { return limits().max_segment_bytes; }
  std::uint32_t frames() const noexcept {
    return static_cast<std::uint32_t>(area_.size() / frame_bytes());
  }
  // Whether a chunk of the arena can be mapped no more, or never could.
  bool is_lost(std::uint32_t chunk) const noexcept {
    // relaxed: it is set while nothing in the chunk is in use; who has memory in it afterwards got
    // it from the arena, whose lock orders that.
    return (lost_[chunk / word_bits].load(std::memory_order_relaxed) >> (chunk % word_bits) & 1) !=
           0;
  }

 protected:
  result<dma_segment> do_map(std::span<std::byte> memory, dma_direction) noexcept override {
    if (!reaches(memory)) [[unlikely]]
      return fail(EFAULT);
    return dma_segment{dma_address{static_cast<std::uint64_t>(memory.data() - area_.data())},
                       static_cast<std::uint32_t>(memory.size()), dma_segment::no_region};
  }
  void do_unmap(const dma_segment&, dma_direction) noexcept override {}
  bool reaches(std::span<const std::byte> memory) const noexcept override {
    // Before the area it is a large number.
    const auto start = reinterpret_cast<std::uintptr_t>(memory.data()) -
                       reinterpret_cast<std::uintptr_t>(area_.data());
    return start < area_.size() && memory.size() <= area_.size() - start &&
           !is_lost(static_cast<std::uint32_t>(start / arena::chunk_bytes));
  }

 private:
  static constexpr std::uint32_t word_bits = 64;
  using words = std::unique_ptr<std::atomic<std::uint64_t>[]>;

  // What the arena asks.
  class watcher final : public arena_device {
   public:
    explicit watcher(umem_domain& domain) noexcept : domain_(domain) {}
    void forget(std::uint32_t chunk) noexcept override {
      domain_.lose(chunk);
      domain_.arena_.device_forgot(*this, chunk);
    }
    void remember(std::uint32_t) noexcept override {}

   private:
    umem_domain& domain_;
  };

  umem_domain(arena& memory, std::uint32_t frame_bytes, words lost,
              const dma_check_options& checks) noexcept;
  void lose(std::uint32_t chunk) noexcept {
    // relaxed: see is_lost().
    lost_[chunk / word_bits].fetch_or(std::uint64_t{1} << (chunk % word_bits),
                                      std::memory_order_relaxed);
  }

  arena& arena_;
  const words lost_;  // a bit for each chunk of the arena
  watcher watcher_;
  std::span<std::byte> area_;  // set at the start
};

}  // namespace forebay
