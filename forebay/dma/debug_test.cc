// dma_debug: each mistake ends the process where it is to, and is counted where it is not; what is
// right is not reported.

#include "forebay/dma/debug.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdlib>
#include <thread>
#include <vector>

#include "forebay/dma/identity_domain.h"
#include "forebay/dma/test_domain.h"

namespace forebay {
namespace {

using enum dma_direction;

constexpr dma_limits limits{.max_segments = 2, .max_segment_bytes = 8192, .boundary_mask = 16383};

// `part` of the frames as a list of several pieces, mapped as `segments`.
void note(test_domain& d, const std::vector<std::span<std::byte>>& pieces,
          const std::vector<dma_segment>& segments, dma_direction direction = to_device) {
  d.note_mapped(pieces, segments, direction);
}

struct scenario {
  dma_mistake mistake;
  const char* report;  // a regular expression for what is behind the mistake's name
  void (*run)(test_domain& d, const test_frames& f);
};

// A domain for `d` whose end the scenario sees.
dma_check_options like(const test_domain& d) {
  return {.check = d.name() == "abort" ? dma_check::abort : dma_check::report};
}

alignas(4096) char writable_page[4096];
constexpr std::array<std::byte, 4096> constant_page{std::byte{1}};

const scenario scenarios[] = {
    {dma_mistake::no_bytes, "length 0, to_device, single; by .*debug_test.cc:[0-9]+",
     [](test_domain& d, const test_frames&) { EXPECT_FALSE(d.map({}, to_device)); }},
    {dma_mistake::overflowing_length, "address 0xffffffffffff[0-9a-f]*, length 4096",
     [](test_domain& d, const test_frames&) {
       auto* const end = std::bit_cast<std::byte*>(UINTPTR_MAX - 100);
       EXPECT_EQ(d.map({end, 4096}, to_device).error(), std::errc::bad_address);
     }},
    {dma_mistake::stack_memory, "length 64, from_device, single; by .*debug_test.cc",
     [](test_domain& d, const test_frames&) {
       std::array<std::byte, 64> local{};
       identity_domain i("stack", {}, like(d));
       const auto s = i.map(local, from_device);
       i.unmap(*s, from_device);
       EXPECT_EQ(i.debug()->count(dma_mistake::stack_memory), 1u);
       EXPECT_EQ(i.debug()->mistakes(), 1u);
     }},
    {dma_mistake::constant_memory, "length 4096, from_device",
     [](test_domain& d, const test_frames&) {
       identity_domain i("constants", {}, like(d));
       const std::span constants(const_cast<std::byte*>(constant_page.data()), 4096);
       const auto r = i.map(constants, to_device);
       i.unmap(*r, to_device);
       EXPECT_EQ(i.debug()->mistakes(), 0u) << "for the device to read they may be mapped";
       const auto s = i.map(constants, from_device);
       i.unmap(*s, from_device);
       EXPECT_EQ(i.debug()->count(dma_mistake::constant_memory), 1u);
       EXPECT_EQ(i.debug()->mistakes(), 1u);
     }},
    {dma_mistake::unreachable_memory, "length 4096, to_device",
     [](test_domain& d, const test_frames&) {
       const auto s = d.map(std::as_writable_bytes(std::span(writable_page)), to_device);
       d.unmap(*s, to_device);
     }},
    {dma_mistake::segment_too_long, "length 8193, region 3, to_device, list",
     [](test_domain& d, const test_frames& f) {
       note(d, {f.part(0, 8193)}, {d.segment_of(0, 8193)});
       EXPECT_TRUE(d.note_unmap(std::vector{d.segment_of(0, 8193)}, to_device));
     }},
    {dma_mistake::segment_over_boundary, "address 0x103000, length 4097",
     [](test_domain& d, const test_frames& f) {
       note(d, {f.part(12288, 4097)}, {d.segment_of(12288, 4097)});
       EXPECT_TRUE(d.note_unmap(std::vector{d.segment_of(12288, 4097)}, to_device));
     }},
    {dma_mistake::too_many_segments, "first of 3 segments",
     [](test_domain& d, const test_frames& f) {
       const std::vector s{d.segment_of(0, 1), d.segment_of(1, 1), d.segment_of(2, 1)};
       note(d, {f.part(0, 3)}, s);
       EXPECT_TRUE(d.note_unmap(s, to_device));
     }},
    {dma_mistake::unequal_lengths, "length 4096",
     [](test_domain& d, const test_frames& f) {
       note(d, {f.part(0, 4095)}, {d.segment_of(0, 4096)});
       EXPECT_TRUE(d.note_unmap(std::vector{d.segment_of(0, 4096)}, to_device));
     }},
    {dma_mistake::overlap,
     "address 0x101000, .*from_device.*mapped at .*debug_test.cc.* address 0x100000, length 4097, "
     "region 3, to_device, single; by .*; memory 0x[0-9a-f]+, 4096 bytes",
     [](test_domain& d, const test_frames& f) {
       const auto a = d.map(f.part(0, 4097), to_device);
       const auto b = d.map(f.part(4096, 4096), from_device);
       d.unmap(*a, to_device);
       d.unmap(*b, from_device);
     }},
    {dma_mistake::unmap_of_unmapped,
     "address 0x100000, length 512, region 3, to_device, single; by",
     [](test_domain& d, const test_frames&) { d.unmap(d.segment_of(0, 512), to_device); }},
    {dma_mistake::unmap_twice,
     "by .*; it was mapped at .*debug_test.cc:[0-9]+ and unmapped at .*debug_test.cc:[0-9]+",
     [](test_domain& d, const test_frames& f) {
       const auto s = d.map(f.part(0, 4096), to_device);
       d.unmap(*s, to_device);
       d.unmap(*s, to_device);
     }},
    {dma_mistake::unmap_with_other_length, "length 4095.*mapped at .*length 4096",
     [](test_domain& d, const test_frames& f) {
       const auto s = d.map(f.part(0, 4096), to_device);
       d.unmap(part_of(*s, 0, 4095), to_device);
     }},
    {dma_mistake::unmap_with_other_direction, "from_device.*mapped at.*bidirectional",
     [](test_domain& d, const test_frames& f) {
       const auto s = d.map(f.part(0, 4096), bidirectional);
       d.unmap(*s, from_device);
     }},
    {dma_mistake::unmap_as_other_kind, "bidirectional, coherent; mapped at.*single",
     [](test_domain& d, const test_frames& f) {
       const auto s = d.map(f.part(0, 4096), bidirectional);
       d.unmap_coherent(*s);
     }},
    {dma_mistake::unmap_with_other_count, "list; mapped at.*first of 2 segments",
     [](test_domain& d, const test_frames& f) {
       const std::vector s{d.segment_of(0, 64), d.segment_of(256, 64)};
       note(d, {f.part(0, 64), f.part(256, 64)}, s);
       EXPECT_TRUE(d.note_unmap(std::span(s).first(1), to_device));
     }},
    {dma_mistake::unmap_while_lent, "16 bytes from 32 were lent at .*debug_test.cc:[0-9]+",
     [](test_domain& d, const test_frames& f) {
       const auto s = d.map(f.part(0, 4096), from_device);
       d.sync_for_cpu(*s, 32, 16, from_device);
       d.unmap(*s, from_device);
     }},
    {dma_mistake::sync_of_unmapped, "address 0x100020, length 16",
     [](test_domain& d, const test_frames&) {
       d.sync_for_cpu(d.segment_of(0, 4096), 32, 16, from_device);
     }},
    {dma_mistake::sync_out_of_range, "address 0x100ff0, length 17.*mapped at.*length 4096",
     [](test_domain& d, const test_frames& f) {
       const auto s = d.map(f.part(0, 4096), from_device);
       d.sync_for_cpu(*s, 4080, 17, from_device);
       d.unmap(*s, from_device);
     }},
    {dma_mistake::sync_with_other_direction, "to_device.*mapped at.*from_device",
     [](test_domain& d, const test_frames& f) {
       const auto s = d.map(f.part(0, 4096), from_device);
       d.sync_for_cpu(*s, 0, 16, to_device);
       d.sync_for_device(*s, 0, 16, from_device);
       d.unmap(*s, from_device);
     }},
    {dma_mistake::lent_already, "address 0x10000f, length 16",
     [](test_domain& d, const test_frames& f) {
       const auto s = d.map(f.part(0, 4096), from_device);
       d.sync_for_cpu(*s, 0, 16, from_device);
       d.sync_for_cpu(*s, 15, 16, from_device);
       d.sync_for_device(*s, 0, 16, from_device);
       d.unmap(*s, from_device);
     }},
    {dma_mistake::not_lent, "address 0x100000, length 15",
     [](test_domain& d, const test_frames& f) {
       const auto s = d.map(f.part(0, 4096), from_device);
       d.sync_for_cpu(*s, 0, 16, from_device);
       d.sync_for_device(*s, 0, 15, from_device);
       d.sync_for_device(*s, 0, 16, from_device);
       d.unmap(*s, from_device);
     }},
    {dma_mistake::access_to_unmapped, "address 0x100800, length 512",
     [](test_domain& d, const test_frames& f) {
       const auto s = d.map(f.part(0, 2048), from_device);
       d.check_access(*s, 0, 2048, from_device);
       d.check_access(d.segment_of(2048, 4096), 0, 512, from_device);
       d.unmap(*s, from_device);
     }},
    {dma_mistake::access_in_other_direction, "from_device.*mapped at.*to_device",
     [](test_domain& d, const test_frames& f) {
       const auto s = d.map(f.part(0, 4096), to_device);
       d.check_access(*s, 0, 4096, from_device);
       d.unmap(*s, to_device);
     }},
    {dma_mistake::access_past_end, "length 4097.*mapped at.*length 4096",
     [](test_domain& d, const test_frames& f) {
       const auto s = d.map(f.part(0, 4096), to_device);
       d.check_access(*s, 0, 4097, to_device);
       d.unmap(*s, to_device);
     }},
    {dma_mistake::access_while_lent, "address 0x10000a, length 1,",
     [](test_domain& d, const test_frames& f) {
       const auto s = d.map(f.part(0, 4096), bidirectional);
       d.sync_for_cpu(*s, 10, 10, bidirectional);
       d.check_access(*s, 0, 10, from_device);
       d.check_access(*s, 20, 4076, from_device);
       d.check_access(*s, 10, 1, to_device);
       d.sync_for_device(*s, 10, 10, bidirectional);
       d.unmap(*s, bidirectional);
     }},
};

class DmaMistake : public ::testing::TestWithParam<scenario> {
 protected:
  test_frames frames_;
};

TEST_P(DmaMistake, EndsTheProcess) {
  test_domain d(frames_, {.check = dma_check::abort}, limits, "abort");
  EXPECT_DEATH(GetParam().run(d, frames_),
               "forebay: dma \"[a-z]+\": " + std::string(to_string(GetParam().mistake)) + ": .*" +
                   GetParam().report);
}

TEST_P(DmaMistake, IsCountedOtherwise) {
  test_domain d(frames_, {.check = dma_check::report}, limits, "report");
  ::testing::internal::CaptureStderr();
  GetParam().run(d, frames_);
  const std::string said = ::testing::internal::GetCapturedStderr();
  EXPECT_EQ(std::ranges::count(said, '\n'), 1) << said;
  EXPECT_NE(said.find(to_string(GetParam().mistake)), std::string::npos) << said;
  const bool by_another = said.find("\"report\"") == std::string::npos;
  EXPECT_EQ(d.debug()->count(GetParam().mistake), by_another ? 0u : 1u) << said;
  EXPECT_EQ(d.mapped.load(), 0);
  EXPECT_EQ(d.debug()->active(), 0u);
}

INSTANTIATE_TEST_SUITE_P(All, DmaMistake, ::testing::ValuesIn(scenarios), [](const auto& p) {
  std::string name(to_string(p.param.mistake));
  std::erase_if(name, [](char c) { return std::isalnum(static_cast<unsigned char>(c)) == 0; });
  return name;
});

TEST(DmaDebugDeathTest, ALeakIsNamed) {
  const test_frames f;
  const auto leak = [&](dma_check check) {
    test_domain d(f, {.check = check}, {}, "leaky");
    for (std::size_t i = 0; i < 9; ++i) ASSERT_TRUE(d.map(f.part(i * 512, 512), to_device));
  };
  EXPECT_DEATH(leak(dma_check::abort),
               "forebay: dma \"leaky\": domain destroyed with mappings: 9 of them; "
               "address 0x100000, length 512, region 3, to_device, single, mapped at "
               ".*debug_test.cc:[0-9]+; address 0x100200,.*; address 0x100e00, [^;]*; …\n");
  ::testing::internal::CaptureStderr();
  leak(dma_check::report);
  EXPECT_NE(::testing::internal::GetCapturedStderr().find("9 of them"), std::string::npos);
}

TEST(DmaDebug, WhatIsRightIsNotReported) {
  const test_frames f;
  test_domain d(f);
  // The same memory twice, and parts of it, for the device to read.
  const auto a = d.map(f.part(0, 8192), to_device);
  const auto b = d.map(f.part(0, 8192), to_device);
  const auto c = d.map(f.part(0, 4096), to_device);
  const auto e = d.map(f.part(100, 8), to_device);
  d.sync_for_cpu(*a, 0, 100, to_device);
  d.sync_for_cpu(*b, 0, 100, to_device);
  d.sync_for_cpu(*a, 100, 100, to_device);
  d.sync_for_device(*b, 0, 100, to_device);
  d.check_access(*b, 0, 8192, to_device);
  d.unmap(*b, to_device);
  d.sync_for_device(*a, 0, 100, to_device);
  d.sync_for_device(*a, 100, 100, to_device);
  d.unmap(*c, to_device);
  d.unmap(*e, to_device);
  d.unmap(*a, to_device);
  // Neighbours for the device to write, and syncs of one direction of two.
  const auto g = d.map(f.part(0, 100), bidirectional);
  const auto h = d.map(f.part(100, 100), from_device);
  d.sync_for_cpu(*g, 0, 100, from_device);
  d.sync_for_device(*g, 0, 100, to_device);
  d.check_access(part_of(*h, 10, 90), 0, 90, from_device);
  d.unmap(*g, bidirectional);
  d.unmap(*h, from_device);
  // A list: its segments are not its pieces, and are lent by themselves.
  const std::vector s{d.segment_of(0, 4196), d.segment_of(8192, 4096)};
  note(d, {f.part(0, 4096), f.part(4096, 100), f.part(8192, 4096)}, s, from_device);
  d.sync_for_cpu(s[1], 0, 4096, from_device);
  d.check_access(s[0], 0, 4196, from_device);
  d.sync_for_device(s[1], 0, 4096, from_device);
  EXPECT_EQ(d.debug()->active(), 1u);
  EXPECT_TRUE(d.note_unmap(s, from_device));
  EXPECT_EQ(d.debug()->mistakes(), 0u);
  EXPECT_EQ(d.debug()->active(), 0u);
}

TEST(DmaDebug, AListMayNotHoldAPieceTwiceForTheDeviceToWrite) {
  const test_frames f;
  test_domain d(f);
  const std::vector s{d.segment_of(0, 512), d.segment_of(256, 512)};
  note(d, {f.part(0, 512), f.part(256, 512)}, s, to_device);
  EXPECT_TRUE(d.note_unmap(s, to_device));
  EXPECT_EQ(d.debug()->mistakes(), 0u);
  note(d, {f.part(0, 512), f.part(256, 512)}, s, from_device);
  EXPECT_TRUE(d.note_unmap(s, from_device));
  EXPECT_EQ(d.debug()->count(dma_mistake::overlap), 1u);
}

TEST(DmaDebug, OverlapsAreSeenBetweenDomains) {
  const test_frames f;
  test_domain one(f, {.check = dma_check::report}, {}, "one");
  test_domain other(f, {.check = dma_check::report}, {}, "other");
  const auto a = one.map(f.part(0, 4096), to_device);
  const auto b = other.map(f.part(0, 4096), to_device);
  EXPECT_EQ(other.debug()->mistakes(), 0u);
  ::testing::internal::CaptureStderr();
  const auto c = other.map(f.part(4095, 2), from_device);
  const std::string said = ::testing::internal::GetCapturedStderr();
  EXPECT_EQ(other.debug()->count(dma_mistake::overlap), 1u);
  EXPECT_NE(said.find("mapped in \"one\""), std::string::npos) << said;
  other.unmap(*c, from_device);
  other.unmap(*b, to_device);
  one.unmap(*a, to_device);
  EXPECT_EQ(one.debug()->mistakes() + other.debug()->mistakes(), 1u);
}

TEST(DmaDebug, WhereMemoryForTheRecordRunsOutTheChecksEnd) {
  const test_frames f;
  test_domain d(f, {.check = dma_check::abort, .segments_max = 2});
  ::testing::internal::CaptureStderr();
  const auto a = d.map(f.part(0, 512), to_device);
  const auto b = d.map(f.part(512, 512), to_device);
  EXPECT_TRUE(d.debug()->working());
  const auto c = d.map(f.part(1024, 512), to_device);
  ASSERT_TRUE(a && b && c);
  EXPECT_FALSE(d.debug()->working());
  const auto e = d.map(f.part(1536, 512), to_device);
  EXPECT_EQ(::testing::internal::GetCapturedStderr(),
            "forebay: dma \"test\": more segments are mapped than it keeps track of, its checks "
            "end here\n");
  // Whatever happens is let through.
  d.sync_for_cpu(*a, 0, 4096, from_device);
  d.check_access(*a, 0, 4096, from_device);
  d.unmap(*a, from_device);
  d.unmap(*b, to_device);
  d.unmap(*c, to_device);
  d.unmap(*e, to_device);
  EXPECT_EQ(d.mapped.load(), 0);
  EXPECT_EQ(d.debug()->mistakes(), 0u);
}

TEST(DmaDebug, AfterAHundredReportsTheRestIsCounted) {
  const test_frames f;
  test_domain d(f);
  ::testing::internal::CaptureStderr();
  for (int i = 0; i < 1000; ++i) d.unmap(d.segment_of(0, 512), to_device);
  const std::string said = ::testing::internal::GetCapturedStderr();
  EXPECT_EQ(std::ranges::count(said, '\n'), 101);
  EXPECT_TRUE(said.ends_with("forebay: dma \"test\": further mistakes are counted, not shown\n"));
  EXPECT_EQ(d.debug()->count(dma_mistake::unmap_of_unmapped), 1000u);
}

TEST(DmaDebug, TheEnvironmentSwitchesItOn) {
  const auto mode = [](const char* debug, const char* guard, const char* report_only) {
    const auto set = [](const char* name, const char* value) {
      return value == nullptr ? ::unsetenv(name) : ::setenv(name, value, 1);
    };
    set("FOREBAY_DMA_DEBUG", debug);
    set("FOREBAY_DMA_GUARD", guard);
    set("FOREBAY_DMA_REPORT_ONLY", report_only);
    const test_frames f(0);
    const test_domain d(f, {}, {}, "disk");
    for (const char* name : {"FOREBAY_DMA_DEBUG", "FOREBAY_DMA_GUARD", "FOREBAY_DMA_REPORT_ONLY"})
      ::unsetenv(name);
    EXPECT_EQ(d.checked(), d.debug() != nullptr);
    return !d.checked() ? "off" : d.debug()->guards() ? "guard" : "on";
  };
  EXPECT_STREQ(mode(nullptr, nullptr, nullptr), "off");
  EXPECT_STREQ(mode("net", nullptr, "*"), "off");
  EXPECT_STREQ(mode("net,disk", nullptr, nullptr), "on");
  EXPECT_STREQ(mode("*", "net", nullptr), "on");
  EXPECT_STREQ(mode(nullptr, "disk", nullptr), "guard");
}

TEST(DmaDebug, ManyThreadsMapTheirOwn) {
  const test_frames f;
  test_domain d(f, {.check = dma_check::abort, .guard = true});
  std::vector<std::jthread> threads;
  for (std::size_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (std::size_t i = 0; i < 200; ++i) {
        const auto own = f.part(t * 8192 + (i % 3) * 1024, 5000);
        const auto s = d.map_coherent(own);
        d.check_access(*s, 0, 5000, bidirectional);
        d.unmap_coherent(*s);
        const auto r = d.map(own, from_device);
        d.sync_for_cpu(*r, 10, 20, from_device);
        own[10] = std::byte{1};
        d.sync_for_device(*r, 10, 20, from_device);
        d.unmap(*r, from_device);
        own[20] = std::byte{2};
      }
    });
  }
  threads.clear();
  EXPECT_EQ(d.debug()->active(), 0u);
}

TEST(DmaDebug, OffThereIsNothing) {
  const test_frames f;
  test_domain d(f, {.check = dma_check::off, .guard = true});
  EXPECT_EQ(d.debug(), nullptr);
  d.check_access({}, 1, 2, from_device);
  EXPECT_FALSE(d.map({}, to_device));
}

}  // namespace
}  // namespace forebay
