// One thread: not in the thread sanitizer's tree.
// Guards: the CPU's stray access to what a device has is caught at the access, and nothing else is.

#include "forebay/dma/guard.h"

#include <gtest/gtest.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <random>
#include <vector>

#include "forebay/dma/ownership.h"
#include "forebay/dma/test_domain.h"
#include "forebay/os/memory_checker.h"
#include "forebay/os/protection.h"

namespace forebay {
namespace {

using enum dma_direction;

constexpr dma_check_options guarded{.check = dma_check::abort, .guard = true};

[[gnu::noinline]] std::byte peek(const std::byte& at) {
  return *static_cast<const volatile std::byte*>(&at);
}
[[gnu::noinline]] void poke(std::byte& at) {
  *static_cast<volatile std::byte*>(&at) = std::byte{9};
}

using owned = std::span<std::byte>;

TEST(DmaGuardDeathTest, AStrayReadIsCaught) {
  const test_frames f;
  test_domain d(f, guarded);
  const auto its = own(owned(f.part(4096, 8192))).map(d, from_device);
  ASSERT_TRUE(its);
  EXPECT_DEATH(peek(f.all()[4096]), "is byte 0 of memory that the device has");
  EXPECT_DEATH(peek(f.all()[12287]),
               "forebay: dma \"test\": 0x[0-9a-f]+ is byte 8191 of memory that the device has: "
               "address 0x101000, length 8192, region 3, from_device, single, mapped at "
               ".*guard_test.cc:[0-9]+");
  peek(f.all()[4095]);
  peek(f.all()[12288]);
}

TEST(DmaGuardDeathTest, AStrayWriteIsCaught) {
  const test_frames f;
  test_domain d(f, guarded);
  const auto its = own(owned(f.part(4096, 8192))).map(d, bidirectional);
  ASSERT_TRUE(its);
  EXPECT_DEATH(poke(f.all()[5000]), "is byte 904 of memory that the device has");
  poke(f.all()[4095]);
  poke(f.all()[12288]);
}

TEST(DmaGuardDeathTest, WhatTheDeviceReadsMayBeReadAndNotWritten) {
  const test_frames f;
  test_domain d(f, guarded);
  auto its = own(owned(f.part(4096, 4096))).map(d, to_device);
  ASSERT_TRUE(its);
  peek(f.all()[4096]);
  EXPECT_DEATH(poke(f.all()[4096]), "is byte 0 of memory that the device has.*to_device");
  const auto mine = std::move(*its).unmap();
  poke(mine.bytes()[0]);
}

TEST(DmaGuardDeathTest, WhatIsLentIsOpen) {
  const test_frames f;
  test_domain d(f, guarded);
  auto its = own(owned(f.part(0, 16384))).map(d, from_device);
  ASSERT_TRUE(its);
  {
    const auto view = its->sync_for_cpu(4000, 200);
    ASSERT_TRUE(view);
    for (std::byte& b : view->bytes()) poke(b);
    EXPECT_DEATH(poke(f.all()[8192]), "is byte 8192");
    if (memory_checker_active()) {
      EXPECT_DEATH(poke(f.all()[3999]), "is byte 3999");
      EXPECT_DEATH(poke(f.all()[4200]), "is byte 4200");
    }
    const auto other = its->sync_for_cpu(4200, 100);
    ASSERT_TRUE(other);
    poke(f.all()[4200]);
  }
  EXPECT_DEATH(poke(f.all()[4000]), "is byte 4000");
  EXPECT_DEATH(poke(f.all()[4250]), "is byte 4250");
  const auto mine = std::move(*its).unmap();
  for (std::byte& b : mine.bytes()) poke(b);
}

TEST(DmaGuardDeathTest, ABufferInAPageIsCaughtByACheckerOnly) {
  const test_frames f;
  test_domain d(f, guarded);
  const auto a = own(owned(f.part(101, 1000))).map(d, from_device);
  const auto b = own(owned(f.part(1101, 1000))).map(d, from_device);
  ASSERT_TRUE(a && b);
  poke(f.all()[100]);
  poke(f.all()[2101]);
  if (memory_checker_active()) {
    EXPECT_DEATH(poke(f.all()[600]), "is byte 499");
    EXPECT_DEATH(peek(f.all()[2000]), "is byte 899");
  } else {
    poke(f.all()[600]);
  }
}

TEST(DmaGuardDeathTest, APageOfTwoMappingsIsOpenAfterBoth) {
  const test_frames f;
  test_domain one(f, guarded, {}, "one");
  test_domain other(f, guarded, {}, "other");
  const auto a = one.map(f.part(0, 8192), to_device);
  const auto b = other.map(f.part(4096, 8192), to_device);
  const auto c = one.map(f.part(4096, 4096), to_device);
  EXPECT_DEATH(poke(f.all()[4096]), "dma \"one\".* is byte 4096");
  one.unmap(*a, to_device);
  poke(f.all()[0]);
  EXPECT_DEATH(poke(f.all()[4096]), "is byte 0");
  one.unmap(*c, to_device);
  EXPECT_DEATH(poke(f.all()[4096]), "dma \"other\".* is byte 0");
  other.unmap(*b, to_device);
  poke(f.all()[4096]);
}

TEST(DmaGuard, ListsAndWhatCannotBeGuarded) {
  const test_frames f;
  test_domain d(f, {.check = dma_check::abort, .guard = true, .segments_max = 2});
  {
    // Coherent memory is for both.
    const auto s = d.map_coherent(f.part(0, 4096));
    poke(f.all()[0]);
    d.unmap_coherent(*s);
  }
  // Two pieces that are neighbours fill a page.
  const std::vector s{d.segment_of(0, 4096)};
  d.note_mapped(std::vector{f.part(0, 1024), f.part(1024, 3072)}, s, to_device);
  const auto a = d.map(f.part(4096, 4096), from_device);
  std::array<char, 512> line;
  EXPECT_GT(dma_debug::explain(f.part(1024, 1).data(), line), 0u);
  EXPECT_EQ(dma_debug::explain(f.part(8192, 1).data(), line), 0u);
  std::array<char, 10> cut;
  EXPECT_EQ(dma_debug::explain(f.part(0, 1).data(), cut), cut.size());
  // When the checks end, all is open.
  ::testing::internal::CaptureStderr();
  const auto b = d.map(f.part(8192, 4096), from_device);
  ::testing::internal::GetCapturedStderr();
  EXPECT_FALSE(d.debug()->working());
  for (std::byte& x : f.all()) poke(x);
  d.unmap(*a, from_device);
  d.unmap(*b, from_device);
  EXPECT_TRUE(d.note_unmap(s, to_device));
}

// What the kernel and the checker say of a byte, without dying of it.
bool can_read(std::byte* at) {
  std::byte b{};
  const iovec to{&b, 1};
  const iovec from{at, 1};
  return ::process_vm_readv(::getpid(), &to, 1, &from, 1, 0) == 1;
}
bool can_write(std::byte* at) {
  std::byte b{};
  const iovec here{&b, 1};
  const iovec there{at, 1};
  return ::process_vm_readv(::getpid(), &here, 1, &there, 1, 0) == 1 &&
         ::process_vm_writev(::getpid(), &here, 1, &there, 1, 0) == 1;
}

// Random mappings, loans and returns: after each step every page is as open as it may be.
TEST(DmaGuard, PagesAgreeWithAModel) {
  if (memory_checker_active()) GTEST_SKIP() << "the checker is told bytes, not pages";
  struct mapping {
    std::size_t offset, bytes;
    dma_direction direction;
    dma_segment segment;
    std::vector<std::pair<std::size_t, std::size_t>> lent;
  };
  constexpr std::size_t pages = 8;
  const test_frames f;
  test_domain d(f, guarded);
  std::mt19937 random(3);
  const auto up_to = [&](std::size_t n) { return random() % (n + 1); };
  std::vector<mapping> all;
  const auto overlaps = [](std::size_t a, std::size_t a_bytes, std::size_t b, std::size_t b_bytes) {
    return a < b + b_bytes && b < a + a_bytes;
  };
  for (int step = 0; step < 2000; ++step) {
    const std::size_t what = up_to(3);
    if (what == 0 || all.empty()) {
      mapping m{.offset = up_to(7) * 4096 + (up_to(1) != 0 ? 0 : up_to(4095)),
                .bytes = 0,
                .direction = up_to(1) != 0 ? to_device : from_device,
                .segment = {},
                .lent = {}};
      m.bytes = 1 + up_to(f.all().size() - m.offset - 1);
      if (std::ranges::any_of(all, [&](const mapping& o) {
            return overlaps(o.offset, o.bytes, m.offset, m.bytes) &&
                   (o.direction == from_device || m.direction == from_device);
          }))
        continue;
      // Two of the same could not be told apart.
      if (std::ranges::any_of(all, [&](const mapping& o) { return o.offset == m.offset; }))
        continue;
      m.segment = *d.map(f.part(m.offset, m.bytes), m.direction);
      all.push_back(m);
    } else {
      mapping& m = all[up_to(all.size() - 1)];
      if (what == 1 && m.lent.empty()) {
        d.unmap(m.segment, m.direction);
        std::swap(m, all.back());
        all.pop_back();
      } else if (what == 2 || m.lent.empty()) {
        const std::size_t offset = up_to(m.bytes - 1);
        const std::size_t bytes = 1 + up_to(std::min<std::size_t>(m.bytes - offset - 1, 6000));
        if (std::ranges::any_of(
                m.lent, [&](const auto& l) { return overlaps(l.first, l.second, offset, bytes); }))
          continue;
        d.sync_for_cpu(m.segment, static_cast<std::uint32_t>(offset),
                       static_cast<std::uint32_t>(bytes), m.direction);
        m.lent.emplace_back(offset, bytes);
      } else {
        const auto [offset, bytes] = m.lent.back();
        m.lent.pop_back();
        d.sync_for_device(m.segment, static_cast<std::uint32_t>(offset),
                          static_cast<std::uint32_t>(bytes), m.direction);
      }
    }
    for (std::size_t p = 0; p < pages; ++p) {
      bool readable = true;
      bool writable = true;
      for (const mapping& m : all) {
        if (m.offset > p * 4096 || m.offset + m.bytes < (p + 1) * 4096) continue;
        if (std::ranges::any_of(m.lent, [&](const auto& l) {
              return overlaps(m.offset + l.first, l.second, p * 4096, 4096);
            }))
          continue;
        writable = false;
        if (m.direction == from_device) readable = false;
      }
      ASSERT_EQ(can_read(&f.all()[p * 4096]), readable) << "step " << step << " page " << p;
      ASSERT_EQ(can_write(&f.all()[p * 4096]), writable) << "step " << step << " page " << p;
    }
  }
  for (mapping& m : all) {
    for (const auto& [offset, bytes] : m.lent)
      d.sync_for_device(m.segment, static_cast<std::uint32_t>(offset),
                        static_cast<std::uint32_t>(bytes), m.direction);
    d.unmap(m.segment, m.direction);
  }
  for (std::byte& b : f.all()) poke(b);
}

}  // namespace
}  // namespace forebay
