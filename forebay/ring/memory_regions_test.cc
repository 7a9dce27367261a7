// One thread: not in the thread sanitizer's tree.

#include "forebay/ring/memory_regions.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <vector>

#include "forebay/ring/ring_error.h"

namespace forebay {
namespace {

std::error_code error_of(const result<std::span<std::byte>>& r) {
  return r ? std::error_code() : r.error();
}

TEST(MemoryRegions, GivesOutWhatLiesInOneRegion) {
  std::vector<std::byte> a(100);
  std::vector<std::byte> b(50);
  memory_region_table table;
  ASSERT_TRUE(table.add(0x2000, b));
  ASSERT_TRUE(table.add(0x1000, a));
  const auto whole = table.translate(0x1000, 100, device_access::write);
  ASSERT_TRUE(whole);
  EXPECT_EQ(whole->data(), a.data());
  EXPECT_EQ(whole->size(), 100u);
  const auto tail = table.translate(0x1000 + 90, 1'000, device_access::read);
  ASSERT_TRUE(tail);
  EXPECT_EQ(tail->data(), a.data() + 90);
  EXPECT_EQ(tail->size(), 10u);
  const auto huge = table.translate(0x2001, UINT64_MAX, device_access::read);
  ASSERT_TRUE(huge);
  EXPECT_EQ(huge->size(), 49u);
}

TEST(MemoryRegions, RefusesWhatIsOutside) {
  std::vector<std::byte> a(100);
  memory_region_table table;
  EXPECT_EQ(error_of(table.translate(0, 1, device_access::read)), ring_errc::unmapped_address);
  ASSERT_TRUE(table.add(0x1000, a));
  for (const std::uint64_t address :
       {std::uint64_t{0}, std::uint64_t{0xfff}, std::uint64_t{0x1000 + 100}, UINT64_MAX}) {
    EXPECT_EQ(error_of(table.translate(address, 1, device_access::read)),
              ring_errc::unmapped_address);
  }
}

TEST(MemoryRegions, WritesOnlyWhereThatIsAllowed) {
  std::vector<std::byte> a(100);
  memory_region_table table;
  ASSERT_TRUE(table.add(0x1000, a, device_access::read));
  EXPECT_TRUE(table.translate(0x1000, 1, device_access::read));
  EXPECT_EQ(error_of(table.translate(0x1000, 1, device_access::write)),
            ring_errc::forbidden_access);
}

TEST(MemoryRegions, RefusesWhatCannotBeAdded) {
  std::vector<std::byte> a(100);
  memory_region_table table;
  EXPECT_EQ(table.add(0x1000, {}).error().value(), EINVAL);
  EXPECT_EQ(table.add(UINT64_MAX - 98, a).error().value(), EINVAL);
  ASSERT_TRUE(table.add(UINT64_MAX - 99, a));  // up to the last address
  EXPECT_EQ(table.translate(UINT64_MAX, 10, device_access::read)->size(), 1u);
  ASSERT_TRUE(table.add(0x1000, a));
  for (const std::uint64_t address : {0x1000, 0x1000 + 99, 0x1000 - 99}) {
    EXPECT_EQ(table.add(address, a).error().value(), EEXIST) << address;
  }
  ASSERT_TRUE(table.add(0x1000 + 100, a));
  ASSERT_TRUE(table.add(0x1000 - 100, a));
  EXPECT_EQ(table.remove(0x1001).error().value(), ENOENT);
  EXPECT_EQ(table.remove(0).error().value(), ENOENT);
  EXPECT_EQ(table.size(), 4u);
}

TEST(MemoryRegions, HoldsSoManyAndNoMore) {
  std::vector<std::byte> a(1);
  memory_region_table table;
  for (std::size_t i = 0; i < memory_region_table::regions_max; ++i) {
    ASSERT_TRUE(table.add(1'000 - i, a));
  }
  EXPECT_EQ(table.add(2'000, a).error().value(), ENOSPC);
  ASSERT_TRUE(table.remove(1'000));
  EXPECT_TRUE(table.add(2'000, a));
}

// Beside a list of regions that is searched address by address.
RC_GTEST_PROP(MemoryRegions, IsAMapOfAddresses, ()) {
  struct model_region {
    std::uint64_t address;
    std::size_t length;
    bool writable;
  };
  std::vector<std::byte> memory(64);
  memory_region_table table;
  std::vector<model_region> model;
  const auto find = [&](std::uint64_t address) {
    return std::ranges::find_if(model, [&](const model_region& r) {
      return address >= r.address && address < r.address + r.length;
    });
  };
  for (int steps = *rc::gen::inRange(1, 60); steps > 0; --steps) {
    const std::uint64_t address = *rc::gen::inRange(0, 80);
    if (*rc::gen::inRange(0, 3) == 0) {
      const auto it = std::ranges::find(model, address, &model_region::address);
      RC_ASSERT(table.remove(address).has_value() == (it != model.end()));
      if (it != model.end()) model.erase(it);
      continue;
    }
    const std::size_t length = *rc::gen::inRange<std::size_t>(0, 20);
    const bool writable = *rc::gen::arbitrary<bool>();
    bool free = length != 0;
    for (std::size_t n = 0; n < length; ++n) free &= find(address + n) == model.end();
    const auto added = table.add(address, std::span(memory).first(length),
                                 writable ? device_access::write : device_access::read);
    RC_ASSERT(added.has_value() == free);
    if (free) model.push_back({address, length, writable});
  }
  RC_ASSERT(table.size() == model.size());
  for (std::uint64_t address = 0; address < 110; ++address) {
    const auto it = find(address);
    const auto read = table.translate(address, 5, device_access::read);
    const auto write = table.translate(address, 5, device_access::write);
    RC_ASSERT(read.has_value() == (it != model.end()));
    RC_ASSERT(write.has_value() == (it != model.end() && it->writable));
    if (!read) continue;
    const std::size_t at = address - it->address;
    RC_ASSERT(read->data() == memory.data() + at);
    RC_ASSERT(read->size() == std::min<std::size_t>(5, it->length - at));
  }
}

}  // namespace
}  // namespace forebay
