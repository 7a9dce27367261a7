// One thread: not in the thread sanitizer's tree.

#include "forebay/ring/descriptor_chain.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cstring>
#include <vector>

namespace forebay {
namespace {

constexpr std::uint16_t next = descriptor_next;
constexpr std::uint16_t write = descriptor_write;
constexpr std::uint16_t indirect = descriptor_indirect;

class Chain : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(regions.add(0x1000, std::span(memory).first(4096)));
    ASSERT_TRUE(regions.add(0x2000, std::span(memory).subspan(4096, 4096)));  // goes on
    ASSERT_TRUE(regions.add(0x9000, std::span(read_only), device_access::read));
  }

  std::error_code error_of(std::vector<descriptor> table, std::uint32_t head = 0) {
    storage.assign(storage.size(), {});
    const auto r = collect_chain(descriptor_list(table), head, limits, regions, storage);
    return r ? std::error_code() : r.error();
  }
  chain_pieces pieces_of(std::vector<descriptor> table, std::uint32_t head = 0) {
    const auto r = collect_chain(descriptor_list(table), head, limits, regions, storage);
    EXPECT_TRUE(r) << r.error().message();
    return r.value_or(chain_pieces{});
  }

  std::vector<std::byte> memory = std::vector<std::byte>(8192);
  std::vector<std::byte> read_only = std::vector<std::byte>(4096);
  memory_region_table regions;
  std::vector<std::span<std::byte>> storage = std::vector<std::span<std::byte>>(8);
  chain_limits limits{.descriptors_max = 8, .bytes_max = 8192, .indirect = true};
};

TEST_F(Chain, ReadableAndWritablePiecesInOrder) {
  const chain_pieces p = pieces_of({{0x1800, 100, next | write, 2},
                                    {0x9010, 16, next, 3},
                                    {0x1000, 8, write, 7},
                                    {0x1100, 50, next, 0}},
                                   1);
  EXPECT_EQ(p.descriptors, 4u);
  EXPECT_EQ(p.readable_bytes, 66u);
  EXPECT_EQ(p.writable_bytes, 108u);
  ASSERT_EQ(p.readable.size(), 2u);
  ASSERT_EQ(p.writable.size(), 2u);
  EXPECT_EQ(p.readable[0].data(), read_only.data() + 0x10);
  EXPECT_EQ(p.readable[1].data(), memory.data() + 0x100);
  EXPECT_EQ(p.writable[0].data(), memory.data() + 0x800);
  EXPECT_EQ(p.writable[0].size(), 100u);
  EXPECT_EQ(p.writable[1].size(), 8u);
}

TEST_F(Chain, NeighboursAreOnePiece) {
  // Across two regions that lie behind each other here, and two descriptors likewise.
  const chain_pieces p = pieces_of({{0x1ff0, 32, next, 1},
                                    {0x2010, 16, next, 2},
                                    {0x2020, 16, next | write, 3},
                                    {0x2030, 16, write, 0}});
  ASSERT_EQ(p.readable.size(), 1u);
  EXPECT_EQ(p.readable[0].data(), memory.data() + 0xff0);
  EXPECT_EQ(p.readable[0].size(), 48u);
  // But what is read and what is written stay apart.
  ASSERT_EQ(p.writable.size(), 1u);
  EXPECT_EQ(p.writable[0].size(), 32u);
}

TEST_F(Chain, NumbersOutsideTheTable) {
  EXPECT_EQ(error_of({{0x1000, 1, 0, 0}}, 1), ring_errc::chain_index);
  EXPECT_EQ(error_of({{0x1000, 1, 0, 0}}, UINT32_MAX), ring_errc::chain_index);
  EXPECT_EQ(error_of({{0x1000, 1, next, 1}}), ring_errc::chain_index);
  EXPECT_EQ(error_of({{0x1000, 1, next, 0xffff}}), ring_errc::chain_index);
  EXPECT_EQ(error_of({}), ring_errc::chain_index);
}

TEST_F(Chain, Loops) {
  EXPECT_EQ(error_of({{0x1000, 1, next, 0}}), ring_errc::chain_loop);
  EXPECT_EQ(error_of({{0x1000, 1, next, 1}, {0x1000, 1, next, 0}}), ring_errc::chain_loop);
  EXPECT_EQ(error_of({{0x1000, 1, next, 1}, {0x1000, 1, next, 2}, {0x1000, 1, next, 1}}),
            ring_errc::chain_loop);
  limits.descriptors_max = 1'000;
  storage.resize(1'000);
  // A loop of any length behind a way of any length: it ends, and it has its name.
  for (std::uint16_t length = 1; length < 40; ++length) {
    for (std::uint16_t way = 0; way < 40; ++way) {
      std::vector<descriptor> table;
      for (std::uint16_t i = 0; i < length + way; ++i) {
        table.push_back({0x1000, 1, next, static_cast<std::uint16_t>(i + 1)});
      }
      table.back().next = way;
      ASSERT_EQ(error_of(table), ring_errc::chain_loop) << length << " behind " << way;
    }
  }
}

TEST_F(Chain, LongerThanTheLimit) {
  std::vector<descriptor> table;
  for (std::uint16_t i = 0; i < 9; ++i) {
    table.push_back({0x1000, 1, next, static_cast<std::uint16_t>(i + 1)});
  }
  table.back().flags = 0;
  EXPECT_EQ(error_of(table), ring_errc::chain_too_long);
  EXPECT_FALSE(error_of(table, 1));
  limits.descriptors_max = 0;
  EXPECT_EQ(error_of(table), ring_errc::chain_too_long);
}

TEST_F(Chain, Lengths) {
  EXPECT_EQ(error_of({{0x1000, 0, 0, 0}}), ring_errc::bad_length);
  EXPECT_EQ(error_of({{0x1000, 8193, 0, 0}}), ring_errc::bad_length);
  EXPECT_EQ(error_of({{0x1000, UINT32_MAX, 0, 0}}), ring_errc::bad_length);
  EXPECT_EQ(error_of({{0x1000, 4096, next, 1}, {0x1000, 4097, 0, 0}}), ring_errc::bad_length);
  EXPECT_FALSE(error_of({{0x1000, 4096, next, 1}, {0x1000, 4096, 0, 0}}));
  // Past the end of its region, into nothing.
  EXPECT_EQ(error_of({{0x2fff, 2, 0, 0}}), ring_errc::unmapped_address);
  EXPECT_EQ(error_of({{0x3000, 1, 0, 0}}), ring_errc::unmapped_address);
  EXPECT_EQ(error_of({{UINT64_MAX, 2, 0, 0}}), ring_errc::unmapped_address);
  ASSERT_TRUE(regions.add(UINT64_MAX, std::span(memory).first(1)));
  EXPECT_EQ(error_of({{UINT64_MAX, 2, 0, 0}}), ring_errc::unmapped_address);
  ASSERT_TRUE(regions.add(0, std::span(memory).first(1)));  // addresses do not wrap around
  EXPECT_EQ(error_of({{UINT64_MAX, 2, 0, 0}}), ring_errc::unmapped_address);
  EXPECT_FALSE(error_of({{UINT64_MAX, 1, 0, 0}}));
}

TEST_F(Chain, DirectionAndFlags) {
  EXPECT_EQ(error_of({{0x9000, 1, write, 0}}), ring_errc::forbidden_access);
  EXPECT_FALSE(error_of({{0x9000, 1, 0, 0}}));
  EXPECT_EQ(error_of({{0x1000, 1, write | next, 1}, {0x1000, 1, 0, 0}}), ring_errc::bad_order);
  EXPECT_EQ(error_of({{0x1000, 1, 8, 0}}), ring_errc::bad_flags);
  EXPECT_EQ(error_of({{0x1000, 1, 0x8001, 0}}), ring_errc::bad_flags);
}

TEST_F(Chain, MorePiecesThanRoom) {
  storage.resize(2);
  const std::vector<descriptor> table = {
      {0x1000, 1, next, 1}, {0x1100, 1, next, 2}, {0x1200, 1, write, 0}};
  EXPECT_EQ(error_of(table), ring_errc::chain_pieces);
  EXPECT_FALSE(error_of(table, 1));
  storage.clear();
  EXPECT_EQ(error_of(table), ring_errc::chain_pieces);
}

TEST_F(Chain, AnIndirectTable) {
  const auto inner = shared_descriptor_table::at(std::span(memory).first(48));
  ASSERT_TRUE(inner);
  inner->write(0, {0x1100, 10, next, 2});
  inner->write(1, {0, 0, 0, 0});
  inner->write(2, {0x1200, 20, write, 0});
  const std::vector<descriptor> outer = {{0x1000, 48, indirect, 0}};
  limits.descriptors_max = 2;
  const chain_pieces p = pieces_of(outer);
  EXPECT_EQ(p.descriptors, 2u);
  EXPECT_EQ(p.readable_bytes, 10u);
  EXPECT_EQ(p.writable_bytes, 20u);

  inner->write(2, {0x1000, 48, indirect, 0});
  EXPECT_EQ(error_of(outer), ring_errc::bad_flags) << "nested";
  inner->write(0, {0x1000, 48, indirect, 0});
  EXPECT_EQ(error_of(outer), ring_errc::bad_flags) << "nested at once";
  inner->write(0, {0x1100, 10, next, 3});
  EXPECT_EQ(error_of(outer), ring_errc::chain_index);
  inner->write(0, {0x1100, 10, next, 0});
  EXPECT_EQ(error_of(outer), ring_errc::chain_loop);

  inner->write(0, {0x1100, 10, 0, 0});
  EXPECT_FALSE(error_of(outer));
  EXPECT_EQ(error_of({{0x1000, 47, indirect, 0}}), ring_errc::misaligned_table);
  EXPECT_EQ(error_of({{0x1004, 16, indirect, 0}}), ring_errc::misaligned_table);
  EXPECT_EQ(error_of({{0x1000, 0, indirect, 0}}), ring_errc::bad_length);
  EXPECT_EQ(error_of({{0x1ff8, 16, indirect, 0}}), ring_errc::unmapped_address) << "two regions";
  EXPECT_EQ(error_of({{0x5000, 16, indirect, 0}}), ring_errc::unmapped_address);
  EXPECT_FALSE(error_of({{0x1000, 48, indirect | write, 0}})) << "the flag says nothing there";
  EXPECT_EQ(error_of({{0x1000, 48, indirect | next, 0}}), ring_errc::bad_flags);
  const chain_pieces both = pieces_of({{0x1000, 1, next, 1}, {0x1000, 48, indirect, 0}});
  EXPECT_EQ(both.readable_bytes, 11u) << "a direct descriptor, and a table at the end";
  EXPECT_EQ(both.descriptors, 2u);
  limits.indirect = false;
  EXPECT_EQ(error_of(outer), ring_errc::bad_flags);
}

// Where to say that a chain is refused.
TEST_F(Chain, TheLastWritableByte) {
  const auto last = [&](std::vector<descriptor> list, bool may_be_indirect = true) {
    return last_writable_byte(descriptor_list(list), 0, may_be_indirect, regions);
  };
  EXPECT_EQ(last({{0x5000, 7, next | 8, 1}, {0x1010, 5, write, 0}}), memory.data() + 0x14);
  EXPECT_EQ(last({{0x1010, 5, 0, 0}}), nullptr) << "not to be written";
  EXPECT_EQ(last({{0x9000, 5, write, 0}}), nullptr) << "not to be written by anybody";
  EXPECT_EQ(last({{0x1010, 0, write, 0}}), nullptr);
  EXPECT_EQ(last({{UINT64_MAX, 2, write, 0}}), nullptr);
  EXPECT_EQ(last({{0x5000, 5, write, 0}}), nullptr) << "no memory";
  EXPECT_EQ(last({{0x1000, 1, next, 0}}), nullptr) << "a loop";
  EXPECT_EQ(last({{0x1000, 1, next, 7}}), nullptr) << "no such number";
  const auto inner = shared_descriptor_table::at(std::span(memory).first(32));
  inner->write(0, {0x1100, 10, next, 1});
  inner->write(1, {0x1200, 20, write, 0});
  EXPECT_EQ(last({{0x1000, 32, indirect, 0}}), memory.data() + 0x213);
  EXPECT_EQ(last({{0x1000, 32, indirect, 0}}, false), nullptr);
  EXPECT_EQ(last({{0x1000, 31, indirect, 0}}), nullptr);
  inner->write(1, {0x1000, 32, indirect, 0});
  EXPECT_EQ(last({{0x1000, 32, indirect, 0}}), nullptr) << "nested";
}

TEST_F(Chain, ATableInSharedMemoryIsWhole) {
  alignas(16) std::byte bytes[64]{};
  EXPECT_TRUE(shared_descriptor_table::at(bytes));
  for (const std::size_t size : {0, 1, 15, 17}) {
    EXPECT_EQ(shared_descriptor_table::at(std::span(bytes).first(size)).error(),
              ring_errc::misaligned_table);
  }
  EXPECT_EQ(shared_descriptor_table::at(std::span(bytes).subspan(4, 16)).error(),
            ring_errc::misaligned_table);
  const descriptor d{
      .address = 0x0102030405060708, .length = 0x090a0b0c, .flags = 0x0d0e, .next = 0x0f10};
  const auto table = shared_descriptor_table::at(bytes);
  table->write(3, d);
  EXPECT_EQ(table->read(3), d);
  // As virtio lays it out: the struct itself.
  EXPECT_EQ(std::memcmp(bytes + 48, &d, sizeof d), 0);
}

// Another kind of translation: pages of 16 bytes in reverse order, as a page table may have them.
struct reversed_pages {
  static constexpr std::uint64_t page = 16;
  result<std::span<std::byte>> translate(std::uint64_t address, std::uint64_t length,
                                         device_access) const noexcept {
    if (address >= memory.size()) return fail(ring_errc::unmapped_address);
    const std::uint64_t offset = address % page;
    const std::span<std::byte> whole = memory.last(address - offset + page).first(page);
    return whole.subspan(offset, std::min(length, page - offset));
  }
  std::span<std::byte> memory;
};
static_assert(AddressTranslation<reversed_pages>);

TEST(ChainTranslation, ABufferIsWhereItsPagesAre) {
  std::vector<std::byte> memory(64);
  std::vector<std::span<std::byte>> storage(4);
  const std::vector<descriptor> table = {{10, 30, next, 1}, {0, 16, write, 0}};
  const auto r = collect_chain(descriptor_list(table), 0, {}, reversed_pages{memory}, storage);
  ASSERT_TRUE(r) << r.error().message();
  const auto is = [&](std::span<std::byte> piece, std::size_t at, std::size_t length) {
    return piece.data() == memory.data() + at && piece.size() == length;
  };
  ASSERT_EQ(r->readable.size(), 3u);
  EXPECT_TRUE(is(r->readable[0], 48 + 10, 6));
  EXPECT_TRUE(is(r->readable[1], 32, 16));
  EXPECT_TRUE(is(r->readable[2], 16, 8));
  ASSERT_EQ(r->writable.size(), 1u);
  EXPECT_TRUE(is(r->writable[0], 48, 16));
  EXPECT_EQ(collect_chain(descriptor_list({table.data(), 2}), 0, {}, reversed_pages{memory},
                          std::span(storage).first(3))
                .error(),
            ring_errc::chain_pieces);
}

// Whatever a table holds, the walk ends with an error or with pieces that lie within the memory and
// add up; beside a plain walk that allows so many steps.
RC_GTEST_PROP(ChainProperty, AnyTableIsSafe, ()) {
  std::vector<std::byte> memory(512);
  std::vector<std::byte> read_only(64);
  memory_region_table regions;
  RC_ASSERT(regions.add(100, std::span(memory).first(300)).has_value());
  RC_ASSERT(regions.add(400, std::span(memory).subspan(300)).has_value());
  RC_ASSERT(regions.add(700, read_only, device_access::read).has_value());
  const auto size = *rc::gen::inRange<std::size_t>(1, 12);
  std::vector<descriptor> table;
  for (std::size_t i = 0; i < size; ++i) {
    table.push_back(
        {.address = *rc::gen::inRange<std::uint64_t>(90, 780),
         .length = *rc::gen::inRange(0u, 60u),
         .flags = static_cast<std::uint16_t>(*rc::gen::element<unsigned>(0, 1, 1, 1, 2, 3, 3, 8)),
         .next = *rc::gen::inRange<std::uint16_t>(0, static_cast<std::uint16_t>(size + 1))});
  }
  std::vector<std::span<std::byte>> storage(*rc::gen::inRange<std::size_t>(0, 8));
  const chain_limits limits{.descriptors_max = *rc::gen::inRange(0u, 10u), .bytes_max = 200};
  const auto r = collect_chain(descriptor_list(table), 0, limits, regions, storage);

  std::vector<std::byte*> read;  // every byte
  std::vector<std::byte*> written;
  bool good = true;
  std::uint32_t steps = 0;
  for (std::uint32_t at = 0;; at = table[at].next) {
    good = good && at < size && ++steps <= limits.descriptors_max;
    if (!good) break;
    const descriptor& d = table[at];
    const bool w = (d.flags & write) != 0;
    good = d.length != 0 && d.flags < 4 && (w || written.empty());
    for (std::uint64_t a = d.address; good && a < d.address + d.length; ++a) {
      const auto byte = regions.translate(a, 1, w ? device_access::write : device_access::read);
      good = byte.has_value();
      if (good) (w ? written : read).push_back(byte->data());
    }
    if (!good || (d.flags & next) == 0) break;
  }
  good = good && read.size() + written.size() <= limits.bytes_max;
  if (!good) {
    RC_ASSERT(!r);
    return;
  }
  if (!r) {
    RC_ASSERT(r.error() == ring_errc::chain_pieces);
    return;
  }
  const auto bytes_of = [](std::span<const std::span<std::byte>> pieces) {
    std::vector<std::byte*> bytes;
    for (const auto& p : pieces) {
      for (std::byte& b : p) bytes.push_back(&b);
    }
    return bytes;
  };
  RC_ASSERT(bytes_of(r->readable) == read);
  RC_ASSERT(bytes_of(r->writable) == written);
  RC_ASSERT(r->readable_bytes == read.size() && r->writable_bytes == written.size());
  RC_ASSERT(r->descriptors == steps);
}

}  // namespace
}  // namespace forebay
