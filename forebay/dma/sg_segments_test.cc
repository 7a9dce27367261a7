// One thread: not in the thread sanitizer's tree.
// map_segments and unmap_segments: coalescing, splitting, limits, and what the domain is told.

#include "forebay/dma/sg_segments.h"

#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <map>
#include <vector>

#include "forebay/dma/identity_domain.h"

namespace forebay {
namespace {

// Translates by a table of regions, and knows its mappings exactly: an unmap of anything else than
// what map gave is noted.
class table_domain final : public dma_domain {
 public:
  struct region {
    const std::byte* memory;
    std::size_t bytes;
    std::uint64_t address;
  };

  table_domain(std::vector<region> regions, const dma_limits& limits = {}, std::size_t room = 1000)
      : dma_domain("table", limits), regions_(std::move(regions)), room_(room) {}

  std::vector<dma_segment> mapped;  // now, in the order of the calls
  unsigned strange_unmaps = 0;

 protected:
  result<dma_segment> do_map(std::span<std::byte> memory, dma_direction) noexcept override {
    for (std::uint32_t i = 0; i < regions_.size(); ++i) {
      const region& r = regions_[i];
      if (memory.data() < r.memory || memory.data() >= r.memory + r.bytes) continue;
      if (mapped.size() == room_) return fail(ENOSPC);
      const auto offset = static_cast<std::size_t>(memory.data() - r.memory);
      const std::size_t bytes = std::min(memory.size(), r.bytes - offset);
      mapped.push_back({dma_address{r.address + offset}, static_cast<std::uint32_t>(bytes), i});
      return mapped.back();
    }
    return fail(EFAULT);
  }
  void do_unmap(const dma_segment& s, dma_direction) noexcept override {
    const auto found = std::find(mapped.begin(), mapped.end(), s);
    if (found == mapped.end()) {
      ++strange_unmaps;
    } else {
      mapped.erase(found);
    }
  }

 private:
  std::vector<region> regions_;
  std::size_t room_;
};

class Segments : public testing::Test {
 protected:
  std::vector<std::byte> memory = std::vector<std::byte>(1024);
  std::array<dma_segment, 16> out{};

  iovec piece(std::size_t offset, std::size_t bytes) { return {memory.data() + offset, bytes}; }
  table_domain::region all_at(std::uint64_t address) {
    return {memory.data(), memory.size(), address};
  }
  std::span<const dma_segment> first(std::size_t n) { return std::span(out).first(n); }
};

constexpr auto to = dma_direction::to_device;

TEST_F(Segments, NeighboursBecomeOneAndTheDomainGetsBackWhatItGave) {
  table_domain d({all_at(0x10000)});
  const std::array pieces{piece(0, 100), piece(100, 28), piece(128, 1), piece(256, 10),
                          piece(200, 56)};
  const auto n = map_segments(d, pieces, to, out);
  ASSERT_TRUE(n);
  ASSERT_EQ(*n, 3u);
  EXPECT_EQ(out[0], (dma_segment{dma_address{0x10000}, 129, 0}));
  EXPECT_EQ(out[1], (dma_segment{dma_address{0x10100}, 10, 0}));
  EXPECT_EQ(out[2], (dma_segment{dma_address{0x100c8}, 56, 0}));
  EXPECT_EQ(d.mapped.size(), 5u);
  unmap_segments(d, pieces, to, first(*n));
  EXPECT_TRUE(d.mapped.empty());
  EXPECT_EQ(d.strange_unmaps, 0u);
}

TEST_F(Segments, TheLimitsAreKept) {
  table_domain d({all_at(0x1000 - 40)}, {.max_segment_bytes = 100, .boundary_mask = 0xfff});
  // 40 bytes to the boundary, then 100, then 260 in three, the first of which is filled up.
  const std::array pieces{piece(0, 140), piece(140, 260)};
  const auto n = map_segments(d, pieces, to, out);
  ASSERT_TRUE(n);
  std::vector<std::uint32_t> lengths;
  for (const dma_segment& s : first(*n)) {
    lengths.push_back(s.length);
    EXPECT_TRUE(keeps_to(s, d.limits()));
  }
  EXPECT_EQ(lengths, (std::vector<std::uint32_t>{40, 100, 100, 100, 60}));
  unmap_segments(d, pieces, to, first(*n));
  EXPECT_TRUE(d.mapped.empty());
  EXPECT_EQ(d.strange_unmaps, 0u);
}

TEST_F(Segments, APieceInTwoRegionsIsMappedInParts) {
  table_domain d({{memory.data(), 300, 0x5000}, {memory.data() + 300, 700, 0x5000 + 300}});
  const std::array pieces{piece(290, 20), piece(310, 10)};
  const auto n = map_segments(d, pieces, to, out);
  ASSERT_TRUE(n);
  ASSERT_EQ(*n, 2u);  // side by side, but in two regions
  EXPECT_EQ(out[0], (dma_segment{dma_address{0x5000 + 290}, 10, 0}));
  EXPECT_EQ(out[1], (dma_segment{dma_address{0x5000 + 300}, 20, 1}));
  unmap_segments(d, pieces, to, first(*n));
  EXPECT_TRUE(d.mapped.empty());
  EXPECT_EQ(d.strange_unmaps, 0u);

  // A mapping that has to be one segment is not had from two regions.
  const auto s = d.map(std::span(memory).subspan(290, 20), to);
  ASSERT_FALSE(s);
  EXPECT_EQ(s.error(), errc::too_large);
  EXPECT_TRUE(d.mapped.empty());
}

TEST_F(Segments, AFailureInTheMiddleUnmapsWhatWasMapped) {
  const std::array pieces{piece(0, 10), piece(10, 400), piece(500, 100), piece(700, 5)};
  const auto expect = [&](table_domain& d, std::span<const iovec> of, std::size_t room,
                          std::error_code error) {
    const auto n = map_segments(d, of, to, std::span(out).first(room));
    ASSERT_FALSE(n);
    EXPECT_EQ(n.error(), error);
    EXPECT_TRUE(d.mapped.empty());
    EXPECT_EQ(d.strange_unmaps, 0u);
  };
  const auto errno_code = [](int e) { return std::error_code(e, std::generic_category()); };
  {
    SCOPED_TRACE("no room for another translation");
    table_domain d({all_at(0)}, {.max_segment_bytes = 64}, 2);
    expect(d, pieces, out.size(), errno_code(ENOSPC));
  }
  {
    SCOPED_TRACE("memory that the device cannot reach");
    table_domain d({{memory.data(), 550, 0}}, {.max_segment_bytes = 64});
    expect(d, pieces, out.size(), errno_code(EFAULT));
  }
  {
    SCOPED_TRACE("an array that is too small");
    table_domain d({all_at(64)}, {.max_segment_bytes = 64});
    for (std::size_t room = 0; room < 10; ++room) expect(d, pieces, room, errno_code(EMSGSIZE));
    ASSERT_TRUE(map_segments(d, pieces, to, std::span(out).first(10)));
    unmap_segments(d, pieces, to, first(10));
    EXPECT_TRUE(d.mapped.empty());
  }
  {
    SCOPED_TRACE("more than the device can have");
    table_domain d({all_at(0)}, {.max_segments = 2});
    expect(d, pieces, out.size(), errno_code(EMSGSIZE));
  }
  {
    SCOPED_TRACE("a piece without bytes");
    table_domain d({all_at(0)});
    expect(d, std::array{piece(0, 10), piece(20, 0)}, out.size(), errno_code(EINVAL));
    expect(d, {}, out.size(), errno_code(EINVAL));
  }
}

TEST_F(Segments, PiecesLongerThanOneMappingCanBe) {
  identity_domain d("test", {.max_segment_bytes = 1u << 31});
  // Nobody looks at the bytes.
  const std::size_t bytes = (std::size_t{5} << 30) + 5;
  const iovec piece{memory.data(), bytes};
  const auto n = map_segments(d, {&piece, 1}, to, out);
  ASSERT_TRUE(n);
  ASSERT_EQ(*n, 3u);
  EXPECT_EQ(to_number(out[2].address), std::bit_cast<std::uintptr_t>(memory.data()) + (4ull << 30));
  EXPECT_EQ(out[2].length, (1u << 30) + 5);
  unmap_segments(d, {&piece, 1}, to, first(*n));
}

}  // namespace
}  // namespace forebay
