// One thread: not in the thread sanitizer's tree.
// flip: pages change places, and a failure changes nothing.

#include "forebay/dma/flip.h"

#include <gtest/gtest.h>

#include <array>
#include <cstring>

#include "forebay/dma/identity_domain.h"

namespace forebay {
namespace {

// Has room for so many mappings.
class narrow_domain final : public dma_domain {
 public:
  explicit narrow_domain(unsigned room) : dma_domain("narrow", {}), room_(room) {}
  ~narrow_domain() override { EXPECT_EQ(mapped, 0u); }

  unsigned mapped = 0;

 protected:
  result<dma_segment> do_map(std::span<std::byte> memory, dma_direction) noexcept override {
    if (mapped == room_) return fail(ENOSPC);
    ++mapped;
    return dma_segment{dma_address{std::bit_cast<std::uintptr_t>(memory.data())},
                       static_cast<std::uint32_t>(memory.size()), dma_segment::no_region};
  }
  void do_unmap(const dma_segment&, dma_direction) noexcept override { --mapped; }

 private:
  unsigned room_;
};

class Flip : public testing::Test {
 protected:
  page_ref take() { return page_ref::adopt(*frames->allocate(0)); }
  static std::byte* device_view(const device_owned<page_ref>& slot) {
    return std::bit_cast<std::byte*>(static_cast<std::uintptr_t>(to_number(slot.address())));
  }

  std::unique_ptr<arena> frames = std::move(*arena::create({.bytes = arena::min_bytes}));
};

TEST_F(Flip, PagesChangePlaces) {
  narrow_domain d(2);
  page_ref filled = take();
  page_ref empty = take();
  const page* const first = filled.get();
  const page* const second = empty.get();
  auto slot = own(std::move(filled)).map(d, dma_direction::from_device);
  ASSERT_TRUE(slot);
  std::memset(device_view(*slot), 0x5a, page_bytes);  // the device
  const auto got = flip(*slot, std::move(empty));
  ASSERT_TRUE(got);
  EXPECT_EQ(got->data(), first->data());
  EXPECT_EQ(got->data()[page_bytes - 1], std::byte{0x5a});
  EXPECT_EQ(device_view(*slot), second->data());
  EXPECT_EQ(slot->direction(), dma_direction::from_device);
  EXPECT_EQ(d.mapped, 1u);
}

TEST_F(Flip, AFailureChangesNothing) {
  narrow_domain d(1);
  page_ref filled = take();
  page_ref empty = take();
  const page* const first = filled.get();
  const page* const second = empty.get();
  auto slot = own(std::move(filled)).map(d, dma_direction::from_device);
  ASSERT_TRUE(slot);
  const auto got = flip(*slot, std::move(empty));
  ASSERT_FALSE(got);
  EXPECT_EQ(got.error(), std::errc::no_space_on_device);
  ASSERT_TRUE(empty);
  EXPECT_EQ(empty.get(), second);
  EXPECT_EQ(device_view(*slot), first->data());
  EXPECT_EQ(d.mapped, 1u);
}

TEST_F(Flip, TheLengthIsTheSlots) {
  identity_domain d("test");
  std::array<std::byte, 64> a{};
  std::array<std::byte, 32> b{};
  auto slot = own(std::span<std::byte>(a)).map(d, dma_direction::from_device);
  ASSERT_TRUE(slot);
  std::span<std::byte> shorter(b);
  EXPECT_EQ(flip(*slot, std::move(shorter)).error(), std::errc::invalid_argument);
  EXPECT_EQ(shorter.data(), b.data());
  EXPECT_EQ(slot->length(), 64u);
}

// A ring of slots that is refilled from the pages that were taken: the device's bytes arrive, and
// every frame goes home.
TEST_F(Flip, ARingOfSlots) {
  const std::size_t free_before = frames->free_pages();
  {
    narrow_domain d(9);
    std::vector<device_owned<page_ref>> ring;
    for (int i = 0; i < 8; ++i)
      ring.push_back(std::move(*own(take()).map(d, dma_direction::from_device)));
    for (int round = 0; round < 100; ++round) {
      device_owned<page_ref>& slot = ring[static_cast<std::size_t>(round) % ring.size()];
      std::memset(device_view(slot), round, page_bytes);
      const auto got = flip(slot, take());
      ASSERT_TRUE(got);
      EXPECT_EQ(got->data()[17], static_cast<std::byte>(round));
    }
    EXPECT_EQ(d.mapped, 8u);
  }
  EXPECT_EQ(frames->free_pages(), free_before);
}

}  // namespace
}  // namespace forebay
