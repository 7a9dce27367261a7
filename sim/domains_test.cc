// One thread: not in the thread sanitizer's tree.
// The simulated domains: what the device reaches, what is a fault, and what each shows of the
// interface.

#include <gtest/gtest.h>

#include <array>
#include <memory>
#include <vector>

#include "forebay/dma/ownership.h"
#include "forebay/dma/sg_segments.h"
#include "forebay/os/memory.h"
#include "sim/bounce_domain.h"
#include "sim/guest_domain.h"
#include "sim/iommu_domain.h"
#include "sim/simulated_umem_domain.h"
#include "sim/vfio_domain.h"

namespace forebay {
namespace {

constexpr auto to = dma_direction::to_device;
constexpr auto from = dma_direction::from_device;
constexpr auto both = dma_direction::bidirectional;
constexpr std::size_t page_size = 4096;
constexpr std::size_t huge_size = std::size_t{2} << 20;

std::vector<std::byte> pattern(std::size_t bytes, unsigned seed) {
  std::vector<std::byte> p(bytes);
  for (std::size_t i = 0; i < bytes; ++i) p[i] = static_cast<std::byte>(i * 31 + i / 251 + seed);
  return p;
}

// Memory aligned to 2 MiB.
struct free_memory {
  void operator()(std::byte* p) const noexcept {
    ::operator delete(p, std::align_val_t{huge_size});
  }
};
struct aligned_memory {
  explicit aligned_memory(std::size_t n)
      : owner(static_cast<std::byte*>(::operator new(n, std::align_val_t{huge_size}))),
        bytes(owner.get(), n) {
    std::fill(bytes.begin(), bytes.end(), std::byte{0});
  }
  std::unique_ptr<std::byte, free_memory> owner;
  std::span<std::byte> bytes;
};

void expect_fault(const simulated_domain& d, std::uint64_t number, dma_address address,
                  dma_direction access, dma_fault_reason reason) {
  ASSERT_GT(d.faults(), number);
  EXPECT_EQ(d.fault(number), (dma_fault{address, access, reason}));
}

// ---- IOMMU ----

TEST(Iommu, TheDeviceReachesWhatIsMapped) {
  iommu_domain d({});
  const auto data = pattern(10000, 1);
  auto memory = data;
  const auto s = d.map(memory, to);
  ASSERT_TRUE(s);
  EXPECT_NE(to_number(s->address), std::bit_cast<std::uintptr_t>(memory.data()));
  EXPECT_EQ(to_number(s->address) % page_size,
            std::bit_cast<std::uintptr_t>(memory.data()) % page_size);
  std::vector<std::byte> seen(10000);
  ASSERT_TRUE(d.device_read(s->address, seen));
  EXPECT_EQ(seen, data);
  d.unmap(*s, to);
  EXPECT_EQ(d.faults(), 0u);
  EXPECT_EQ(d.stats().mappings, 0u);
  EXPECT_EQ(d.stats().pages, 0u);
  EXPECT_EQ(d.stats().iova_bytes, 0u);
}

TEST(Iommu, AccessThatIsNotAllowedIsAFault) {
  iommu_domain d({});
  aligned_memory memory(4 * page_size);
  std::array<std::byte, 16> some{};
  const auto s = d.map(memory.bytes.first(page_size), to);
  ASSERT_TRUE(s);
  EXPECT_EQ(d.device_write(s->address, some).error(), std::errc::bad_address);
  expect_fault(d, 0, s->address, from, dma_fault_reason::not_permitted);
  // Into what follows: the bytes before are transferred.
  EXPECT_FALSE(d.device_read(s->address + (page_size - 4), some));
  expect_fault(d, 1, s->address + page_size, to, dma_fault_reason::not_mapped);

  const auto in = d.map(memory.bytes.subspan(page_size, page_size), from);
  ASSERT_TRUE(in);
  EXPECT_FALSE(d.device_read(in->address, some));
  expect_fault(d, 2, in->address, to, dma_fault_reason::not_permitted);
  some.fill(std::byte{7});
  EXPECT_TRUE(d.device_write(in->address + 100, some));
  EXPECT_EQ(memory.bytes[page_size + 100], std::byte{7});

  d.unmap(*in, from);
  EXPECT_FALSE(d.device_write(in->address + 100, some));
  expect_fault(d, 3, in->address + 100, from, dma_fault_reason::not_mapped);
  EXPECT_FALSE(d.device_read(dma_address{0}, some));
  EXPECT_FALSE(d.device_read(dma_address{UINT64_MAX - 3}, some));
  EXPECT_EQ(d.faults(), 6u);
  d.unmap(*s, to);
}

TEST(Iommu, TheRestOfAPageIsReachedToo) {
  iommu_domain d({});
  aligned_memory memory(2 * page_size);
  const auto s = d.map(memory.bytes.subspan(100, 50), both);
  ASSERT_TRUE(s);
  std::array<std::byte, 1> one{std::byte{9}};
  EXPECT_TRUE(d.device_write(dma_address{to_number(s->address) - 100}, one));
  EXPECT_EQ(memory.bytes[0], std::byte{9});
  EXPECT_FALSE(d.device_write(dma_address{to_number(s->address) - 101}, one));
  d.unmap(*s, both);
}

TEST(Iommu, LongPiecesHaveHugePages) {
  aligned_memory memory(3 * huge_size);
  iommu_domain d({});
  // A page before the first boundary, two huge ones, and a part of a page.
  const std::size_t offset = huge_size - page_size;
  const auto piece = memory.bytes.subspan(offset, page_size + huge_size + 10);
  const auto s = d.map(piece, both);
  ASSERT_TRUE(s);
  EXPECT_EQ(d.stats().huge_pages, 1u);
  EXPECT_EQ(d.stats().pages, 2u);
  const auto data = pattern(piece.size(), 3);
  ASSERT_TRUE(d.device_write(s->address, data));
  EXPECT_TRUE(std::ranges::equal(piece, data));
  d.unmap(*s, both);
  EXPECT_EQ(d.stats().huge_pages, 0u);
  EXPECT_EQ(d.stats().pages, 0u);

  iommu_domain small({.huge_pages = false});
  const auto t = small.map(memory.bytes.first(huge_size), both);
  ASSERT_TRUE(t);
  EXPECT_EQ(small.stats().huge_pages, 0u);
  EXPECT_EQ(small.stats().pages, 512u);
  small.unmap(*t, both);
}

TEST(Iommu, MappingFailsWhenThereIsNoRoom) {
  aligned_memory memory(8 * page_size);
  iommu_domain few({.max_mappings = 2});
  const auto a = few.map(memory.bytes.first(8), to);
  const auto b = few.map(memory.bytes.first(8), to);
  EXPECT_EQ(few.map(memory.bytes.first(8), to).error(), std::errc::no_space_on_device);
  few.unmap(*a, to);
  const auto c = few.map(memory.bytes.first(8), to);
  EXPECT_TRUE(c);
  few.unmap(*b, to);
  few.unmap(*c, to);

  // Four pages: the holes between mappings are used again, the first that fits.
  iommu_domain narrow({.iova_bytes = 4 * page_size});
  std::array<dma_segment, 4> pages;
  for (dma_segment& p : pages) p = narrow.map(memory.bytes.first(page_size), to).value();
  EXPECT_FALSE(narrow.map(memory.bytes.first(1), to));
  narrow.unmap(pages[0], to);
  narrow.unmap(pages[2], to);
  EXPECT_EQ(narrow.map(memory.bytes.first(2 * page_size), to).error(),
            std::errc::no_space_on_device);
  narrow.unmap(pages[1], to);
  const auto long_one = narrow.map(memory.bytes.first(3 * page_size), to);
  ASSERT_TRUE(long_one);
  EXPECT_EQ(long_one->address, pages[0].address);
  narrow.unmap(*long_one, to);
  narrow.unmap(pages[3], to);
  EXPECT_EQ(narrow.stats().strange_unmaps, 0u);
  narrow.unmap(pages[3], to);
  EXPECT_EQ(narrow.stats().strange_unmaps, 1u);
  EXPECT_FALSE(narrow.map(memory.bytes.first(5 * page_size), to));
}

TEST(Iommu, PagesOfAListAreSideBySide) {
  iommu_domain d({});
  aligned_memory memory(16 * page_size);
  // Every second page, backwards: one segment of device addresses.
  std::array<iovec, 8> pieces;
  for (std::size_t i = 0; i < pieces.size(); ++i)
    pieces[i] = {&memory.bytes[(14 - 2 * i) * page_size], page_size};
  std::array<dma_segment, 8> segments;
  const auto n = map_segments(d, pieces, from, segments);
  ASSERT_TRUE(n);
  EXPECT_EQ(*n, 1u);
  EXPECT_EQ(segments[0].length, 8 * page_size);
  const auto data = pattern(8 * page_size, 5);
  ASSERT_TRUE(d.device_write(segments[0].address, data));
  EXPECT_EQ(memory.bytes[14 * page_size], data[0]);
  EXPECT_EQ(memory.bytes[1], data[7 * page_size + 1]);
  unmap_segments(d, pieces, from, std::span(segments).first(*n));
  EXPECT_EQ(d.stats().mappings, 0u);
  EXPECT_EQ(d.stats().strange_unmaps, 0u);
}

TEST(Iommu, LazyModeReachesUnmappedMemoryUntilTheFlush) {
  aligned_memory memory(page_size);
  std::array<std::byte, 4> some{};
  for (const std::size_t lazy : {std::size_t{0}, std::size_t{3}}) {
    iommu_domain d({.iova_bytes = 2 * page_size, .lazy_unmaps = lazy});
    const auto s = d.map(memory.bytes, both);
    ASSERT_TRUE(s);
    ASSERT_TRUE(d.device_write(s->address, some));
    ASSERT_TRUE(d.device_write(s->address, some));
    EXPECT_EQ(d.stats().hits, 1u);
    d.unmap(*s, both);
    EXPECT_EQ(d.device_write(s->address, some).has_value(), lazy != 0);
    // Its IOVA is not given out again before.
    const auto t = d.map(memory.bytes, both);
    ASSERT_TRUE(t);
    EXPECT_EQ(t->address == s->address, lazy == 0);
    d.unmap(*t, both);
    EXPECT_EQ(d.stats().iova_bytes, lazy == 0 ? 0 : 2 * page_size);
    d.flush();
    EXPECT_EQ(d.stats().iova_bytes, 0u);
    EXPECT_FALSE(d.device_write(s->address, some));
  }
}

// ---- Bounce buffers ----

TEST(Bounce, DataMovesOnlyWhenItIsSaid) {
  bounce_domain d({});
  std::vector<std::byte> memory = pattern(5000, 1);
  const auto s = d.map(memory, both);
  ASSERT_TRUE(s);
  std::vector<std::byte> seen(5000);
  ASSERT_TRUE(d.device_read(s->address, seen));
  EXPECT_EQ(seen, memory);

  // Forgotten: neither side sees the other's bytes.
  memory[10] = std::byte{0xaa};
  std::array<std::byte, 1> one{std::byte{0xbb}};
  ASSERT_TRUE(d.device_write(s->address + 4000, one));
  EXPECT_NE(memory[4000], std::byte{0xbb});
  ASSERT_TRUE(d.device_read(s->address + 10, one));
  EXPECT_NE(one[0], std::byte{0xaa});

  d.sync_for_cpu(*s, 3990, 20, both);
  EXPECT_EQ(memory[4000], std::byte{0xbb});
  EXPECT_EQ(memory[10], std::byte{0xaa});  // not in the range
  d.sync_for_device(*s, 3990, 20, both);
  d.unmap(*s, both);
  EXPECT_NE(memory[10], std::byte{0xaa});  // the copy came back
  EXPECT_EQ(d.mappings(), 0u);
  EXPECT_EQ(d.strange_calls(), 0u);
  EXPECT_FALSE(d.device_read(s->address, one));
}

TEST(Bounce, TheDirectionSaysWhichWay) {
  bounce_domain d({});
  auto memory = pattern(100, 1);
  const auto before = memory;
  std::array<std::byte, 4> some{};
  {
    const auto s = d.map(memory, to);
    ASSERT_TRUE(s);
    EXPECT_FALSE(d.device_write(s->address, some));
    expect_fault(d, 0, s->address, from, dma_fault_reason::not_permitted);
    EXPECT_FALSE(d.device_read(s->address + 98, some));
    expect_fault(d, 1, s->address + 100, to, dma_fault_reason::not_mapped);
    d.unmap(*s, to);
    EXPECT_EQ(memory, before);
  }
  const auto s = d.map(memory, from);
  ASSERT_TRUE(s);
  EXPECT_FALSE(d.device_read(s->address, some));
  some.fill(std::byte{0xcc});
  ASSERT_TRUE(d.device_write(s->address + 50, some));
  d.unmap(*s, from);
  EXPECT_EQ(memory[50], std::byte{0xcc});
  EXPECT_EQ(memory[49], before[49]);  // what it did not write is as it was
}

TEST(Bounce, TheTypesMoveTheData) {
  bounce_domain d({});
  auto memory = pattern(3000, 1);
  auto its = own(std::span<std::byte>(memory)).map(d, from);
  ASSERT_TRUE(its);
  const auto data = pattern(3000, 9);
  ASSERT_TRUE(d.device_write(its->address(), data));
  EXPECT_NE(memory, data);
  {
    const auto view = its->sync_for_cpu(1000, 100);
    ASSERT_TRUE(view);
    EXPECT_TRUE(std::ranges::equal(view->bytes(), std::span(data).subspan(1000, 100)));
    EXPECT_NE(memory[999], data[999]);
  }
  const auto mine = std::move(*its).unmap();
  EXPECT_TRUE(std::ranges::equal(mine.bytes(), data));
}

TEST(Bounce, MappingsAreNoLongerThanAPoolsRun) {
  bounce_domain d({.pool_bytes = std::size_t{1} << 20});
  std::vector<std::byte> memory(std::size_t{700} << 10);
  EXPECT_EQ(d.map(memory, to).error(), errc::too_large);
  // A list takes several, which lie side by side here.
  const iovec piece{memory.data(), memory.size()};
  std::array<dma_segment, 8> segments;
  const auto n = map_segments(d, {&piece, 1}, both, segments);
  ASSERT_TRUE(n);
  EXPECT_EQ(*n, 1u);
  EXPECT_EQ(d.mappings(), 3u);
  const auto data = pattern(memory.size(), 2);
  ASSERT_TRUE(d.device_write(segments[0].address, data));
  // A sync goes over the seams.
  d.sync_for_cpu(segments[0], 262000, 1000, both);
  EXPECT_TRUE(std::ranges::equal(std::span(memory).subspan(262000, 1000),
                                 std::span(data).subspan(262000, 1000)));
  EXPECT_NE(memory[261999], data[261999]);
  d.sync_for_device(segments[0], 262000, 1000, both);
  unmap_segments(d, {&piece, 1}, both, std::span(segments).first(*n));
  EXPECT_EQ(memory, data);
  EXPECT_EQ(d.mappings(), 0u);
  EXPECT_EQ(d.strange_calls(), 0u);

  // The pool is full, or in pieces.
  std::array<dma_segment, 4> all;
  for (dma_segment& s : all) s = d.map(std::span(memory).first(256u << 10), to).value();
  EXPECT_EQ(d.map(std::span(memory).first(1), to).error(), std::errc::no_space_on_device);
  for (const dma_segment& s : all) d.unmap(s, to);
  d.unmap(all[0], to);
  EXPECT_EQ(d.strange_calls(), 1u);
}

// ---- UMEM ----

TEST(Umem, AddressesAreOffsetsInChunks) {
  aligned_memory area(64 << 10);
  simulated_umem_domain d(area.bytes, 2048, true);
  const auto s = d.map(area.bytes.subspan(4096 + 256, 1500), from);
  ASSERT_TRUE(s);
  EXPECT_EQ(to_number(s->address), 4096u + 256);
  EXPECT_EQ(d.map(area.bytes.subspan(2000, 100), from).error(), errc::too_large);
  std::array<std::byte, 64> outside{};
  EXPECT_EQ(d.map(outside, from).error(), std::errc::bad_address);
  // A list is cut at the chunks.
  const iovec piece{&area.bytes[2000], 3000};
  std::array<dma_segment, 4> segments;
  const auto n = map_segments(d, {&piece, 1}, from, segments);
  ASSERT_TRUE(n);
  ASSERT_EQ(*n, 3u);
  EXPECT_EQ(segments[0].length, 48u);
  EXPECT_EQ(segments[1].length, 2048u);
  EXPECT_EQ(segments[2].length, 904u);
  const auto data = pattern(1500, 4);
  ASSERT_TRUE(d.device_write(s->address, data));
  EXPECT_EQ(area.bytes[4096 + 256 + 1499], data[1499]);
  std::array<std::byte, 2> two{};
  EXPECT_FALSE(d.device_read(dma_address{(64 << 10) - 1}, two));

  simulated_umem_domain unaligned(area.bytes, 2048, false);
  EXPECT_TRUE(unaligned.map(area.bytes.subspan(2000, 100), from));
  EXPECT_FALSE(unaligned.map(area.bytes.subspan(2000, 2049), from));
}

// ---- Guest memory ----

TEST(Guest, ABufferInTwoRegionsIsTwoSegments) {
  aligned_memory host(8 * page_size);
  guest_domain d({{0, host.bytes.first(4 * page_size)},
                  {0x1'0000'0000, host.bytes.subspan(4 * page_size, 2 * page_size)}});
  const iovec piece{&host.bytes[4 * page_size - 100], 300};
  std::array<dma_segment, 2> segments;
  const auto n = map_segments(d, {&piece, 1}, from, segments);
  ASSERT_TRUE(n);
  ASSERT_EQ(*n, 2u);
  EXPECT_EQ(segments[0], (dma_segment{dma_address{4 * page_size - 100}, 100, 0}));
  EXPECT_EQ(segments[1], (dma_segment{dma_address{0x1'0000'0000}, 200, 1}));
  const auto data = pattern(200, 8);
  ASSERT_TRUE(d.device_write(segments[1].address, data));
  EXPECT_EQ(host.bytes[4 * page_size + 199], data[199]);
  unmap_segments(d, {&piece, 1}, from, segments);

  EXPECT_EQ(d.map(host.bytes.subspan(4 * page_size - 100, 300), from).error(), errc::too_large);
  // No region's memory, in the middle of a piece.
  const iovec beyond{&host.bytes[6 * page_size - 1], 2};
  EXPECT_EQ(map_segments(d, {&beyond, 1}, from, segments).error(), std::errc::bad_address);
  std::array<std::byte, 2> two{};
  EXPECT_FALSE(d.device_read(dma_address{0x1'0000'0000 + 2 * page_size - 1}, two));
  expect_fault(d, 0, dma_address{0x1'0000'0000 + 2 * page_size}, to, dma_fault_reason::not_mapped);
}

// ---- VFIO ----

TEST(Vfio, ArenasAreTranslatedWholeAndChunksComeAndGo) {
  auto made = arena::create({.bytes = 4 * arena::chunk_bytes});
  ASSERT_TRUE(made);
  arena& a = **made;
  {
    vfio_domain d(a);
    EXPECT_EQ(d.huge_pages(), a.page_count() / arena::chunk_frames);
    page_ref p = page_ref::adopt(*a.allocate(0));
    const std::uint32_t chunk = a.chunk_of(*p);
    const auto s = d.map({p->data(), page_size}, from);
    ASSERT_TRUE(s);
    const auto data = pattern(page_size, 6);
    ASSERT_TRUE(d.device_write(s->address, data));
    EXPECT_TRUE(std::ranges::equal(std::span(p->data(), page_size), data));
    d.unmap(*s, from);
    std::array<std::byte, 16> outside{};
    EXPECT_EQ(d.map(outside, to).error(), std::errc::bad_address);

    p.reset();
    ASSERT_TRUE(a.isolate_chunk(chunk));
    ASSERT_TRUE(a.give_back(chunk));
    EXPECT_EQ(a.info(chunk).state, chunk_state::offline);
    EXPECT_FALSE(d.has_chunk(chunk));
    EXPECT_FALSE(d.device_write(s->address, data));
    EXPECT_EQ(d.faults(), 1u);

    ASSERT_TRUE(a.bring_back());
    ASSERT_EQ(a.info(chunk).state, chunk_state::online);
    const std::span<std::byte> again = a.memory_of(chunk).first(page_size);
    const auto t = d.map(again, from);
    ASSERT_TRUE(t);
    EXPECT_EQ(t->address,
              dma_address{(std::uint64_t{1} << 30) + std::uint64_t{chunk} * arena::chunk_bytes});
    EXPECT_TRUE(d.has_chunk(chunk));
    ASSERT_TRUE(d.device_write(t->address, data));
    EXPECT_TRUE(std::ranges::equal(again, data));
    d.unmap(*t, from);
  }
}

}  // namespace
}  // namespace forebay
