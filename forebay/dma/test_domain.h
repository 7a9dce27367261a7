// For tests: some page frames, and a domain that sees them.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <bit>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "forebay/dma/debug.h"
#include "forebay/memory/arena.h"

namespace forebay {

// Contiguous page frames, 2^order of them.
class test_frames {
 public:
  explicit test_frames(unsigned order = 3)
      : memory_(std::move(*arena::create({.bytes = 4u << 20, .huge_pages = false}))),
        block_(page_ref::adopt(*memory_->allocate(order))),
        bytes_(page_bytes << order) {}

  std::span<std::byte> all() const noexcept { return {block_->data(), bytes_}; }
  std::span<std::byte> part(std::size_t offset, std::size_t bytes) const noexcept {
    return all().subspan(offset, bytes);
  }

 private:
  std::unique_ptr<arena> memory_;
  page_ref block_;
  std::size_t bytes_;
};

// A device that sees the frames, and nothing else, from address 1 MiB on in region 3; it reaches
// them whatever the process may do. Checked, unless `checks` says otherwise.
class test_domain final : public dma_domain {
 public:
  static constexpr std::uint64_t base = 1u << 20;

  explicit test_domain(const test_frames& frames,
                       const dma_check_options& checks = {.check = dma_check::report},
                       const dma_limits& limits = {}, std::string name = "test")
      : dma_domain(std::move(name), limits, dma_guardable::all, checks), frames_(frames) {}

  std::atomic<int> mapped{0};

  dma_segment segment_of(std::size_t offset, std::size_t bytes) const noexcept {
    return {dma_address{base + offset}, static_cast<std::uint32_t>(bytes), 3};
  }

 protected:
  result<dma_segment> do_map(std::span<std::byte> memory, dma_direction) noexcept override {
    ++mapped;
    const auto offset = std::bit_cast<std::uintptr_t>(memory.data()) -
                        std::bit_cast<std::uintptr_t>(frames_.all().data());
    return segment_of(offset, memory.size());
  }
  void do_unmap(const dma_segment&, dma_direction) noexcept override { --mapped; }
  bool reaches(std::span<const std::byte> memory) const noexcept override {
    const std::span<std::byte> all = frames_.all();
    const std::uintptr_t offset =
        std::bit_cast<std::uintptr_t>(memory.data()) - std::bit_cast<std::uintptr_t>(all.data());
    return offset <= all.size() && memory.size() <= all.size() - offset;
  }

 private:
  const test_frames& frames_;
};

}  // namespace forebay
