// One thread: not in the thread sanitizer's tree.
// sg_list, its chunks, and what mapping makes of it.

#include "forebay/dma/sg_list.h"

#include <gtest/gtest.h>

#include <array>
#include <vector>

#include "forebay/dma/identity_domain.h"

namespace forebay {
namespace {

constexpr std::size_t chunk_entries = sg_chain<iovec>::chunk_entries;

// Chunks that can run out and are counted.
class counted_memory final : public sg_memory {
 public:
  explicit counted_memory(std::size_t chunks = SIZE_MAX) : room(chunks) {}
  ~counted_memory() override { EXPECT_EQ(out, 0u); }

  void* take() noexcept override {
    if (out == room) return nullptr;
    ++out;
    return ::operator new(sg_chunk_bytes, std::align_val_t{64});
  }
  void give(void* chunk) noexcept override {
    --out;
    ::operator delete(chunk, std::align_val_t{64});
  }

  std::size_t room;
  std::size_t out = 0;
};

class SgList : public testing::Test {
 protected:
  SgList() {
    for (std::size_t i = 0; i < data.size(); ++i) data[i] = static_cast<std::byte>(i * 7 + i / 256);
  }

  std::span<std::byte> part(std::size_t offset, std::size_t length) {
    return std::span(data).subspan(offset, length);
  }
  // `n` pieces of three bytes with gaps, as each list's bytes() says 3 n.
  void fill(sg_list& list, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) ASSERT_TRUE(list.append(part(4 * i, 3)));
  }
  // The list's bytes as addresses.
  static std::vector<const std::byte*> bytes_of(const sg_list& list) {
    std::vector<const std::byte*> all;
    for (const std::span<std::byte> piece : list.pieces()) {
      EXPECT_FALSE(piece.empty());
      for (const std::byte& b : piece) all.push_back(&b);
    }
    EXPECT_EQ(all.size(), list.bytes());
    return all;
  }

  std::vector<std::byte> data = std::vector<std::byte>(4096);
  counted_memory memory;
};

TEST_F(SgList, NeighboursBecomeOneEntry) {
  sg_list list(memory);
  EXPECT_TRUE(list.empty());
  ASSERT_TRUE(list.append(part(0, 10)));
  ASSERT_TRUE(list.append(part(10, 5)));
  ASSERT_TRUE(list.append(part(20, 0)));
  ASSERT_TRUE(list.append(part(16, 4)));
  ASSERT_TRUE(list.append(part(2, 3)));
  EXPECT_EQ(list.entries(), 3u);
  EXPECT_EQ(list.bytes(), 22u);
}

TEST_F(SgList, LongListsAreChained) {
  for (const std::size_t n : {std::size_t{1}, chunk_entries, chunk_entries + 1, std::size_t{200}}) {
    sg_list list(memory);
    fill(list, n);
    EXPECT_EQ(list.entries(), n);
    EXPECT_EQ(memory.out, (n + chunk_entries - 1) / chunk_entries);
    EXPECT_EQ(bytes_of(list).size(), 3 * n);
  }
  EXPECT_EQ(memory.out, 0u);
}

TEST_F(SgList, AFailedAppendLeavesTheListAsItWas) {
  memory.room = 2;
  sg_list list(memory);
  fill(list, 2 * chunk_entries - 1);
  const auto before = bytes_of(list);
  // Merged with the last one, one more entry, and then one that needs a chunk.
  const std::size_t end = 4 * (2 * chunk_entries - 1) - 1;
  const std::array<iovec, 3> more{{{&data[end], 1}, {&data[end + 8], 2}, {&data[end + 16], 2}}};
  const auto r = list.append(std::span<const iovec>(more));
  ASSERT_FALSE(r);
  EXPECT_EQ(r.error(), std::errc::not_enough_memory);
  EXPECT_EQ(bytes_of(list), before);
  EXPECT_EQ(list.entries(), 2 * chunk_entries - 1);
  memory.room = 3;
  EXPECT_TRUE(list.append(std::span<const iovec>(more)));
  EXPECT_EQ(memory.out, 3u);

  counted_memory little(0);
  sg_list none(little);
  EXPECT_EQ(none.append(part(0, 1)).error(), std::errc::not_enough_memory);
  EXPECT_TRUE(none.empty());
}

TEST_F(SgList, EntriesAreLimited) {
  sg_list list(memory, 2);
  const std::array<iovec, 3> three{{{&data[0], 1}, {&data[2], 1}, {&data[4], 1}}};
  EXPECT_EQ(list.append(std::span<const iovec>(three)).error(), std::errc::message_size);
  EXPECT_TRUE(list.empty());
  EXPECT_EQ(memory.out, 0u);
  ASSERT_TRUE(list.append(std::span(three).first(2)));
  sg_list other(memory);
  fill(other, 1);
  EXPECT_EQ(list.append(std::move(other)).error(), std::errc::message_size);
  EXPECT_EQ(other.entries(), 1u);
  EXPECT_EQ(list.append({static_cast<std::byte*>(three[1].iov_base) + 1, SIZE_MAX}).error(),
            std::errc::value_too_large);
}

TEST_F(SgList, SplitAnywhere) {
  const std::size_t n = 2 * chunk_entries + 3;
  for (std::size_t at = 0; at <= 3 * n; ++at) {
    sg_list list(memory);
    fill(list, n);
    const auto before = bytes_of(list);
    auto rest = list.split(at);
    ASSERT_TRUE(rest);
    EXPECT_EQ(list.bytes(), at);
    auto first = bytes_of(list);
    const auto second = bytes_of(*rest);
    // Both can be added to.
    ASSERT_TRUE(list.append(part(1000, 1)));
    ASSERT_TRUE(rest->append(part(2000, 1)));
    EXPECT_EQ(rest->bytes(), 3 * n - at + 1);
    first.insert(first.end(), second.begin(), second.end());
    EXPECT_EQ(first, before);
    // And chained again.
    ASSERT_TRUE(list.append(std::move(*rest)));
    EXPECT_TRUE(rest->empty());
    EXPECT_EQ(bytes_of(list).size(), 3 * n + 2);
  }
}

TEST_F(SgList, AFailedSplitLeavesTheListAsItWas) {
  const std::size_t n = 2 * chunk_entries;
  memory.room = 2;
  sg_list list(memory);
  fill(list, n);
  const auto before = bytes_of(list);
  EXPECT_EQ(list.split(3 * n + 1).error(), std::errc::invalid_argument);
  unsigned failures = 0;
  for (std::size_t at = 0; at <= 3 * n; ++at) {
    auto rest = list.split(at);
    if (rest) {
      // Needs no chunk: at the ends and between chunks.
      EXPECT_EQ(at % (3 * chunk_entries), 0u);
      ASSERT_TRUE(list.append(std::move(*rest)));
    } else {
      EXPECT_EQ(rest.error(), std::errc::not_enough_memory);
      ++failures;
    }
    ASSERT_EQ(bytes_of(list), before);
    ASSERT_EQ(list.entries(), n);
  }
  EXPECT_EQ(failures, 3 * n + 1 - 3);
}

TEST_F(SgList, SkipLetsGoOfTheFront) {
  const std::size_t n = 2 * chunk_entries;
  for (const std::size_t step : {1u, 2u, 3u, 7u, 100u}) {
    sg_list list(memory);
    fill(list, n);
    const auto all = bytes_of(list);
    while (list.bytes() >= step) {
      ASSERT_TRUE(list.skip(step));
      ASSERT_EQ(bytes_of(list),
                std::vector(all.end() - static_cast<long>(list.bytes()), all.end()));
    }
    EXPECT_EQ(list.skip(step).error(), std::errc::invalid_argument);
    ASSERT_TRUE(list.skip(list.bytes()));
    EXPECT_EQ(memory.out, 0u);
    ASSERT_TRUE(list.append(part(0, 4)));
    EXPECT_EQ(list.bytes(), 4u);
  }
}

TEST_F(SgList, FlatMemoryThereAndBack) {
  sg_list list(memory);
  fill(list, 40);
  std::vector<std::byte> flat;
  for (const std::byte* b : bytes_of(list)) flat.push_back(*b);
  for (const std::size_t offset : {0u, 1u, 3u, 50u, 119u, 120u, 121u}) {
    const std::size_t rest = offset < 120 ? 120 - offset : 0;
    for (const std::size_t length :
         {std::size_t{0}, std::size_t{1}, std::size_t{70}, std::size_t{200}}) {
      std::vector<std::byte> out(length, std::byte{0xee});
      const std::size_t n = std::min(rest, length);
      EXPECT_EQ(list.copy_to(out, offset), n);
      EXPECT_TRUE(std::equal(out.begin(), out.begin() + static_cast<long>(n),
                             flat.begin() + static_cast<long>(std::min<std::size_t>(offset, 120))));
    }
  }
  std::vector<std::byte> in(30, std::byte{0xab});
  EXPECT_EQ(list.copy_from(in, 100), 20u);
  EXPECT_EQ(list.copy_from(std::span(in).first(4), 10), 4u);
  std::fill(flat.begin() + 100, flat.end(), std::byte{0xab});
  std::fill(flat.begin() + 10, flat.begin() + 14, std::byte{0xab});
  std::vector<std::byte> out(120);
  EXPECT_EQ(list.copy_to(out), 120u);
  EXPECT_EQ(out, flat);
  EXPECT_EQ(data[3], static_cast<std::byte>(21));  // in a gap
}

TEST_F(SgList, ChunksOfACallersArrayAndOfASlab) {
  sg_array<2> array;
  {
    sg_list list(array);
    fill(list, 2 * chunk_entries);
    EXPECT_EQ(list.append(part(4000, 1)).error(), std::errc::not_enough_memory);
    sg_list elsewhere(memory);
    fill(elsewhere, 1);
    EXPECT_EQ(list.append(std::move(elsewhere)).error(), std::errc::invalid_argument);
    EXPECT_EQ(elsewhere.entries(), 1u);
  }
  sg_list again(array);
  fill(again, 2 * chunk_entries);

  auto a = arena::create({.bytes = arena::min_bytes});
  ASSERT_TRUE(a);
  sg_slab slab(**a);
  sg_list list(slab);
  fill(list, 500);
  EXPECT_EQ(list.bytes(), 1500u);
}

TEST_F(SgList, FramesAsPieces) {
  auto a = arena::create({.bytes = arena::min_bytes});
  ASSERT_TRUE(a);
  const page_ref block = page_ref::adopt(*(*a)->allocate(1));
  sg_list list(memory);
  ASSERT_TRUE(list.append(*block));
  ASSERT_TRUE(list.append(*block, page_bytes, 100));
  EXPECT_EQ(list.entries(), 1u);
  EXPECT_EQ(list.bytes(), page_bytes + 100);
  EXPECT_EQ(list.append(*block, page_bytes + 1, page_bytes).error(), std::errc::invalid_argument);
  EXPECT_EQ(list.append(*block, 2 * page_bytes + 1, 0).error(), std::errc::invalid_argument);
}

// Counts what is mapped, has room for so much, and notes the syncs.
class noting_domain final : public dma_domain {
 public:
  explicit noting_domain(const dma_limits& limits = {}, std::size_t mappings = SIZE_MAX)
      : dma_domain("noting", limits), room(mappings) {}

  std::size_t room;
  std::size_t mapped = 0;
  std::vector<std::pair<bool, std::size_t>> syncs;  // for the CPU or not, bytes

 protected:
  result<dma_segment> do_map(std::span<std::byte> memory, dma_direction) noexcept override {
    if (mapped == room) return fail(ENOSPC);
    ++mapped;
    return dma_segment{dma_address{std::bit_cast<std::uintptr_t>(memory.data())},
                       static_cast<std::uint32_t>(memory.size()), dma_segment::no_region};
  }
  void do_unmap(const dma_segment&, dma_direction) noexcept override { --mapped; }
  void do_sync_for_cpu(const dma_segment&, std::uint32_t, std::uint32_t length,
                       dma_direction) noexcept override {
    syncs.emplace_back(true, length);
  }
  void do_sync_for_device(const dma_segment&, std::uint32_t, std::uint32_t length,
                          dma_direction) noexcept override {
    syncs.emplace_back(false, length);
  }
};

// What is the device's has no way to the data, and there is one of it.
template <typename T>
concept HasData = requires(const T& t) { t.pieces(); } || requires(const T& t) { t.data(); } ||
                  requires(const T& t, std::span<std::byte> s) { t.copy_to(s); };
static_assert(HasData<sg_list> && HasData<sg_view> && !HasData<sg_mapping>);
static_assert(!std::is_copy_constructible_v<sg_mapping> && !std::is_copy_constructible_v<sg_list> &&
              !std::is_copy_constructible_v<sg_view>);

TEST_F(SgList, AMappingHasSegmentsAndGivesTheListBack) {
  noting_domain d({.max_segment_bytes = 2});
  sg_list list(memory);
  fill(list, 50);
  const auto before = bytes_of(list);
  auto m = std::move(list).map(d, dma_direction::from_device);
  ASSERT_TRUE(m);
  EXPECT_TRUE(list.empty());
  EXPECT_EQ(m->bytes(), 150u);
  EXPECT_EQ(m->segments().size(), 100u);
  EXPECT_EQ(d.mapped, 50u);
  std::size_t at = 0;
  for (const dma_segment& s : m->segments()) {
    for (std::uint32_t i = 0; i < s.length; ++i)
      ASSERT_EQ(to_number(s.address) + i, std::bit_cast<std::uintptr_t>(before[at++]));
  }
  sg_mapping moved = std::move(*m);
  list = std::move(moved).unmap();
  EXPECT_EQ(d.mapped, 0u);
  EXPECT_EQ(bytes_of(list), before);
  {
    auto forgotten = std::move(list).map(d, dma_direction::from_device);
    ASSERT_TRUE(forgotten);
    auto other = sg_list(memory);
    ASSERT_TRUE(other.append(part(2000, 8)));
    auto second = std::move(other).map(d, dma_direction::from_device);
    ASSERT_TRUE(second);
    EXPECT_EQ(d.mapped, 51u);
    *second = std::move(*forgotten);
    EXPECT_EQ(d.mapped, 50u);
  }
  EXPECT_EQ(d.mapped, 0u);
}

TEST_F(SgList, AFailedMapLeavesTheListAndNothingMapped) {
  sg_list list(memory);
  const auto expect = [&](dma_domain& d, std::errc error) {
    const auto before = bytes_of(list);
    const auto m = std::move(list).map(d, dma_direction::to_device);
    ASSERT_FALSE(m);
    EXPECT_EQ(m.error(), error);
    EXPECT_EQ(bytes_of(list), before);
  };
  noting_domain small({}, 30);
  expect(small, std::errc::invalid_argument);
  fill(list, 40);
  expect(small, std::errc::no_space_on_device);
  noting_domain few({.max_segments = 39});
  expect(few, std::errc::message_size);
  noting_domain splitting({.max_segment_bytes = 1});
  memory.room = memory.out + 3;  // for 93 segments of the 120
  expect(splitting, std::errc::not_enough_memory);
  EXPECT_EQ(small.mapped + few.mapped + splitting.mapped, 0u);
  memory.room = memory.out + 4;
  EXPECT_TRUE(std::move(list).map(splitting, dma_direction::to_device));
}

TEST_F(SgList, AViewLendsABytesRange) {
  noting_domain d({.max_segment_bytes = 2});
  sg_list list(memory);
  fill(list, 50);
  auto m = std::move(list).map(d, dma_direction::from_device);
  ASSERT_TRUE(m);
  {
    auto view = m->sync_for_cpu(4, 5);  // byte 1 of piece 1 to piece 2
    ASSERT_TRUE(view);
    EXPECT_EQ(view->bytes(), 5u);
    EXPECT_EQ((*view->pieces().begin()).data(), &data[5]);
    // Segments of 2 and 1 bytes: the last byte of one, and so on.
    const std::vector<std::pair<bool, std::size_t>> lent{
        {true, 1}, {true, 1}, {true, 2}, {true, 1}};
    EXPECT_EQ(d.syncs, lent);
    std::array<std::byte, 8> out{};
    EXPECT_EQ(view->pieces().copy_to(out), 5u);
    EXPECT_EQ(out[2], data[8]);
    const sg_view elsewhere = std::move(*view);
    EXPECT_EQ(d.syncs.size(), 4u);
  }
  EXPECT_EQ(d.syncs.size(), 8u);
  EXPECT_EQ(d.syncs.back(), std::pair(false, std::size_t{1}));
  EXPECT_FALSE(m->sync_for_cpu(0, 0));
  EXPECT_FALSE(m->sync_for_cpu(150, 1));
  EXPECT_FALSE(m->sync_for_cpu(149, 2));
  EXPECT_FALSE(m->sync_for_cpu(SIZE_MAX, 2));
  EXPECT_TRUE(m->sync_for_cpu(149, 1));
}

}  // namespace
}  // namespace forebay
