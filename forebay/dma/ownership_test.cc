// One thread: not in the thread sanitizer's tree.

#include "forebay/dma/ownership.h"

#include <gtest/gtest.h>

#include <array>
#include <vector>

#include "forebay/dma/identity_domain.h"

namespace forebay {
namespace {

// A device that sees the memory it was given at offsets from a base, has room for so many mappings,
// and notes what it is told.
class offset_domain final : public dma_domain {
 public:
  offset_domain(std::span<std::byte> window, unsigned room, const dma_limits& limits = {})
      : dma_domain("offset", limits), window_(window), room_(room) {}

  std::vector<std::string> calls;
  unsigned mapped = 0;

 protected:
  result<dma_segment> do_map(std::span<std::byte> memory, dma_direction) noexcept override {
    if (memory.data() < window_.data() ||
        memory.data() + memory.size() > window_.data() + window_.size())
      return fail(EFAULT);
    if (mapped == room_) return fail(ENOSPC);
    ++mapped;
    return dma_segment{dma_address{static_cast<std::uint64_t>(memory.data() - window_.data())},
                       static_cast<std::uint32_t>(memory.size()), 7};
  }
  void do_unmap(const dma_segment&, dma_direction) noexcept override { --mapped; }
  void do_sync_for_cpu(const dma_segment& s, std::uint32_t offset, std::uint32_t length,
                       dma_direction) noexcept override {
    note("cpu", s, offset, length);
  }
  void do_sync_for_device(const dma_segment& s, std::uint32_t offset, std::uint32_t length,
                          dma_direction) noexcept override {
    note("device", s, offset, length);
  }

 private:
  void note(const char* who, const dma_segment& s, std::uint32_t offset, std::uint32_t length) {
    calls.push_back(std::string(who) + " " + std::to_string(to_number(s.address) + offset) + "+" +
                    std::to_string(length));
  }

  std::span<std::byte> window_;
  unsigned room_;
};

using borrowed = std::span<std::byte>;

TEST(Ownership, MapAndUnmapGiveTheMemoryThereAndBack) {
  std::array<std::byte, 256> memory{};
  offset_domain d(memory, 1);
  auto mine = own(borrowed(memory).subspan(64, 32));
  auto its = std::move(mine).map(d, dma_direction::from_device);
  ASSERT_TRUE(its);
  EXPECT_EQ(to_number(its->address()), 64u);
  EXPECT_EQ(its->length(), 32u);
  EXPECT_EQ(its->segment().region, 7u);
  EXPECT_EQ(d.mapped, 1u);
  auto again = std::move(*its).unmap();
  EXPECT_EQ(d.mapped, 0u);
  EXPECT_EQ(again.data(), memory.data() + 64);
  EXPECT_EQ(again.size(), 32u);
}

TEST(Ownership, AFailedMapLeavesTheMemoryWithItsOwner) {
  std::array<std::byte, 64> memory{};
  offset_domain d(memory, 0);
  auto mine = own(borrowed(memory));
  const auto its = std::move(mine).map(d, dma_direction::to_device);
  ASSERT_FALSE(its);
  EXPECT_EQ(its.error(), std::errc::no_space_on_device);
  EXPECT_EQ(mine.data(), memory.data());

  std::array<std::byte, 64> foreign{};
  auto other = own(borrowed(foreign));
  EXPECT_EQ(std::move(other).map(d, dma_direction::to_device).error(), std::errc::bad_address);
  auto nothing = own(borrowed());
  EXPECT_EQ(std::move(nothing).map(d, dma_direction::to_device).error(),
            std::errc::invalid_argument);
}

TEST(Ownership, WhatGoesOutOfScopeIsUnmapped) {
  std::array<std::byte, 64> memory{};
  offset_domain d(memory, 2);
  {
    auto a = own(borrowed(memory).first(32)).map(d, dma_direction::to_device);
    auto b = own(borrowed(memory).last(32)).map(d, dma_direction::to_device);
    ASSERT_TRUE(a && b);
    EXPECT_EQ(d.mapped, 2u);
    *a = std::move(*b);  // the first is given up
    EXPECT_EQ(d.mapped, 1u);
    EXPECT_EQ(to_number(a->address()), 32u);
    const auto moved = std::move(*a);
    EXPECT_EQ(d.mapped, 1u);
  }
  EXPECT_EQ(d.mapped, 0u);
}

TEST(Ownership, AViewLendsARangeAndGivesItBack) {
  std::array<std::byte, 64> memory{};
  offset_domain d(memory, 1);
  auto its = own(borrowed(memory).last(48)).map(d, dma_direction::bidirectional);
  ASSERT_TRUE(its);
  {
    auto view = its->sync_for_cpu(8, 16);
    ASSERT_TRUE(view);
    EXPECT_EQ(view->bytes().data(), memory.data() + 24);
    EXPECT_EQ(view->bytes().size(), 16u);
    EXPECT_EQ(d.calls, std::vector<std::string>{"cpu 24+16"});
    const auto elsewhere = std::move(*view);
    EXPECT_EQ(d.calls.size(), 1u);
  }
  EXPECT_EQ(d.calls, (std::vector<std::string>{"cpu 24+16", "device 24+16"}));
  EXPECT_FALSE(its->sync_for_cpu(40, 9));
  EXPECT_FALSE(its->sync_for_cpu(49, 1));
  EXPECT_FALSE(its->sync_for_cpu(UINT32_MAX, 2));
  EXPECT_FALSE(its->sync_for_cpu(8, 0));
  EXPECT_EQ(d.calls.size(), 2u);
}

TEST(Ownership, ABoundaryIsKept) {
  std::array<std::byte, 64> memory{};
  offset_domain d(memory, 1, {.max_segment_bytes = 24, .boundary_mask = 15});
  const auto map = [&](std::size_t offset, std::size_t bytes) {
    return own(borrowed(memory).subspan(offset, bytes)).map(d, dma_direction::to_device);
  };
  EXPECT_TRUE(map(16, 16));
  EXPECT_TRUE(map(24, 8));
  EXPECT_EQ(map(24, 9).error(), errc::too_large);
  EXPECT_EQ(map(0, 25).error(), errc::too_large);
  EXPECT_EQ(d.mapped, 0u);
}

TEST(Ownership, PinsAreOwners) {
  auto a = arena::create({.bytes = arena::min_bytes});
  ASSERT_TRUE(a);
  identity_domain d("test");
  page* p = (*a)->allocate(0);
  ASSERT_NE(p, nullptr);
  const std::size_t before = (*a)->free_pages();
  {
    auto its = own(page_ref::adopt(*p)).map(d, dma_direction::from_device);
    ASSERT_TRUE(its);
    EXPECT_EQ(to_number(its->address()), std::bit_cast<std::uintptr_t>(p->data()));
    EXPECT_EQ(its->length(), page_bytes);
    const page_ref back = std::move(*its).unmap().release();
    EXPECT_EQ(back.get(), p);
  }
  EXPECT_EQ((*a)->free_pages(), before + 1);
}

}  // namespace
}  // namespace forebay
