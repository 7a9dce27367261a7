// One thread: not in the thread sanitizer's tree.

#include "forebay/dma/coherent_buffer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <memory>

#include "forebay/dma/debug.h"
#include "forebay/dma/identity_domain.h"

namespace forebay {
namespace {

// Has room for so many mappings, which begin at multiples of 1 MiB.
class small_domain final : public dma_domain {
 public:
  explicit small_domain(unsigned room, const dma_limits& limits = {})
      : dma_domain("small", limits, dma_guardable::none, {.check = dma_check::report}),
        room_(room) {}

  unsigned mapped = 0;

 protected:
  result<dma_segment> do_map(std::span<std::byte> memory, dma_direction d) noexcept override {
    EXPECT_EQ(d, dma_direction::bidirectional);
    if (mapped == room_) return fail(ENOSPC);
    return dma_segment{dma_address{std::uint64_t{++mapped} << 20},
                       static_cast<std::uint32_t>(memory.size()), 0};
  }
  void do_unmap(const dma_segment&, dma_direction) noexcept override { --mapped; }

 private:
  unsigned room_;
};

std::unique_ptr<arena> make_arena() {
  auto made = arena::create({.bytes = 4u << 20, .huge_pages = false});
  return made ? std::move(*made) : nullptr;
}

TEST(CoherentBuffer, HasBothAddresses) {
  const auto memory = make_arena();
  small_domain domain(2);
  const auto before = memory->free_pages();
  {
    // What was in the frames before is not seen.
    if (page* const p = memory->allocate(2)) {
      const page_ref block = page_ref::adopt(*p);
      std::fill_n(block->data(), 4 * page_bytes, std::byte{0xff});
    }
    const auto b = coherent_buffer::create(*memory, domain, 3 * page_bytes + 1);
    ASSERT_TRUE(b);
    EXPECT_EQ(b->size(), 3 * page_bytes + 1);
    EXPECT_EQ(to_number(b->address()), 1u << 20);
    EXPECT_EQ(b->segment().length, b->size());
    EXPECT_EQ(std::bit_cast<std::uintptr_t>(b->data()) % page_bytes, 0u);
    EXPECT_TRUE(std::ranges::all_of(b->bytes(), [](std::byte x) { return x == std::byte{0}; }));
    EXPECT_EQ(&b->domain(), &domain);
    EXPECT_EQ(domain.debug()->active(), 1u);
    b->bytes().back() = std::byte{1};
    domain.check_access(b->segment(), 0, b->segment().length, dma_direction::bidirectional);
  }
  EXPECT_EQ(domain.mapped, 0u);
  EXPECT_EQ(domain.debug()->active(), 0u);
  EXPECT_EQ(domain.debug()->mistakes(), 0u);
  EXPECT_EQ(memory->free_pages(), before);
}

TEST(CoherentBuffer, Moves) {
  const auto memory = make_arena();
  small_domain domain(2);
  const auto before = memory->free_pages();
  {
    auto a = coherent_buffer::create(*memory, domain, 100);
    auto b = coherent_buffer::create(*memory, domain, 100);
    ASSERT_TRUE(a && b);
    std::byte* const second = b->data();
    *a = std::move(*b);
    EXPECT_EQ(a->data(), second);
    EXPECT_EQ(domain.mapped, 1u);
    const coherent_buffer c = std::move(*a);
    EXPECT_EQ(c.data(), second);
    EXPECT_EQ(domain.mapped, 1u);
  }
  EXPECT_EQ(domain.mapped, 0u);
  EXPECT_EQ(domain.debug()->mistakes(), 0u);
  EXPECT_EQ(memory->free_pages(), before);
}

TEST(CoherentBuffer, AFailureLeavesNothing) {
  const auto memory = make_arena();
  const auto before = memory->free_pages();
  small_domain full(0);
  EXPECT_EQ(coherent_buffer::create(*memory, full, 100).error(), std::errc::no_space_on_device);
  small_domain narrow(1, {.max_segment_bytes = 4096});
  EXPECT_EQ(coherent_buffer::create(*memory, narrow, 4097).error(), errc::too_large);
  small_domain domain(1);
  EXPECT_EQ(coherent_buffer::create(*memory, domain, 0).error(), std::errc::invalid_argument);
  EXPECT_EQ(coherent_buffer::create(*memory, domain, 3u << 20).error(),
            std::errc::not_enough_memory);
  EXPECT_EQ(coherent_buffer::create(*memory, domain, (page_bytes << arena::max_order) + 1).error(),
            errc::too_large);
  EXPECT_EQ(coherent_buffer::create(*memory, domain, SIZE_MAX).error(), errc::too_large);
  EXPECT_EQ(memory->free_pages(), before);
  EXPECT_EQ(full.mapped + narrow.mapped + domain.mapped, 0u);
  EXPECT_EQ(domain.debug()->active(), 0u);
}

TEST(CoherentBuffer, TwoDevicesMayShareOne) {
  const auto memory = make_arena();
  small_domain one(1);
  small_domain other(1);
  const auto b = coherent_buffer::create(*memory, one, page_bytes);
  ASSERT_TRUE(b);
  const auto s = other.map_coherent(b->bytes());
  ASSERT_TRUE(s);
  other.unmap_coherent(*s);
  EXPECT_EQ(other.debug()->mistakes(), 0u);
}

}  // namespace
}  // namespace forebay
