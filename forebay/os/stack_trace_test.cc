#include "forebay/os/stack_trace.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <thread>
#include <vector>

namespace forebay {

// With a name that a report can show: not inlined, not left by a tail call.
[[gnu::noinline]] stack_trace trace_from_here(unsigned skip) {
  stack_trace trace = stack_trace::capture(skip);
  trace.depth += 0u;
  asm volatile("" ::: "memory");
  return trace;
}

[[gnu::noinline]] stack_trace trace_from_depth(unsigned calls) {
  stack_trace trace = calls == 0 ? trace_from_here(0) : trace_from_depth(calls - 1);
  asm volatile("" ::: "memory");
  return trace;
}

namespace {

[[gnu::noinline]] stack_trace trace_from_a_local_function() {
  stack_trace trace = stack_trace::capture();
  asm volatile("" ::: "memory");
  return trace;
}

std::vector<std::byte> own_image() {
  std::ifstream file("/proc/self/exe", std::ios::binary);
  const std::vector<char> text(std::istreambuf_iterator<char>(file), {});
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

TEST(StackTrace, NamesTheCallersInnermostFirst) {
  const stack_trace trace = trace_from_depth(2);
  ASSERT_GE(trace.depth, 5u);
  symbolizer symbols;
  EXPECT_NE(symbols.name(trace.frames[0]).find("forebay::trace_from_here(unsigned int)+0x"),
            std::string::npos)
      << symbols.name(trace.frames[0]);
  for (int i = 1; i <= 3; ++i) {
    EXPECT_NE(symbols.name(trace.frames[i]).find("forebay::trace_from_depth(unsigned int)+0x"),
              std::string::npos)
        << symbols.name(trace.frames[i]);
  }
  EXPECT_NE(symbols.name(trace.frames[4]).find("NamesTheCallers"), std::string::npos)
      << "the test's own body has internal linkage and is named all the same";
}

TEST(StackTrace, SkipsTheInnermostFrames) {
  symbolizer symbols;
  EXPECT_EQ(symbols.name(trace_from_here(1).frames[0]).find("trace_from_here"), std::string::npos);
  EXPECT_EQ(trace_from_here(10'000).depth, 0u);
}

TEST(StackTrace, NamesStaticFunctionsAndShowsTheFile) {
  symbolizer symbols;
  const std::string name = symbols.name(trace_from_a_local_function().frames[0]);
  EXPECT_NE(name.find("trace_from_a_local_function()+0x"), std::string::npos) << name;
  EXPECT_NE(name.find(" (forebay_os_test)"), std::string::npos) << name;
}

TEST(StackTrace, KeepsTheInnermostOfADeepStack) {
  const stack_trace trace = trace_from_depth(100);
  EXPECT_EQ(trace.depth, stack_trace::depth_max);
  symbolizer symbols;
  EXPECT_NE(symbols.name(trace.frames[15]).find("trace_from_depth"), std::string::npos);
}

TEST(StackTrace, DescribesOneLineForEachFrame) {
  symbolizer symbols;
  stack_trace trace = trace_from_depth(0);
  trace.depth = 2;
  const std::string text = symbols.describe(trace, "  ");
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 2);
  EXPECT_EQ(text.find("  #0 forebay::trace_from_here"), 0u) << text;
  EXPECT_NE(text.find("\n  #1 forebay::trace_from_depth"), std::string::npos) << text;
  EXPECT_EQ(symbols.describe(stack_trace{}), "");
}

TEST(StackTrace, TheSameStackIsEqualAndHashesAlike) {
  std::array<stack_trace, 2> traces;
  for (stack_trace& t : traces) t = trace_from_here(0);
  EXPECT_EQ(traces[0], traces[1]);
  EXPECT_EQ(traces[0].hash(), traces[1].hash());
  const stack_trace other = trace_from_depth(1);
  EXPECT_NE(traces[0], other);
  EXPECT_NE(traces[0].hash(), other.hash());
}

TEST(StackTrace, AnAddressOutsideAnyFileIsShownAsItIs) {
  symbolizer symbols;
  EXPECT_EQ(symbols.name(reinterpret_cast<const void*>(0x1234)), "0x1234");
}

TEST(StackTrace, AFunctionOfALibraryIsNamed) {
  symbolizer symbols;
  // One past the start, as a return address would be.
  const auto* const address = reinterpret_cast<const char*>(&std::strtoul) + 1;
  const std::string name = symbols.name(address);
  EXPECT_NE(name.find("strtoul"), std::string::npos) << name;
}

TEST(StackTrace, ThreadsCaptureAtTheSameTime) {
  std::vector<std::thread> threads;
  std::array<stack_trace, 2> traces;
  for (stack_trace& t : traces) {
    threads.emplace_back([&t] {
      for (int i = 0; i < 200; ++i) t = trace_from_depth(1);
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(traces[0].frames[0], traces[1].frames[0]);
}

TEST(ElfFunctionAt, FindsNothingInWhatIsNoElfFile) {
  EXPECT_EQ(detail::elf_function_at({}, 0x1000).name, "");
  const std::vector<std::byte> zeros(4096);
  EXPECT_EQ(detail::elf_function_at(zeros, 0x1000).name, "");
  std::vector<std::byte> ones(4096, std::byte{0xff});
  EXPECT_EQ(detail::elf_function_at(ones, 0x1000).name, "");
  std::memcpy(ones.data(),
              "\x7f"
              "ELF\x02",
              5);
  EXPECT_EQ(detail::elf_function_at(ones, 0x1000).name, "");
}

// Cut anywhere, or with any byte of its header or section table turned over, a file gives a name or
// none; under the sanitizers this shows that nothing outside of it is read.
TEST(ElfFunctionAt, SurvivesDamagedFiles) {
  std::vector<std::byte> image = own_image();
  ASSERT_GT(image.size(), 4096u);
  std::uint64_t table = 0;
  std::memcpy(&table, image.data() + 40, sizeof(table));  // e_shoff
  ASSERT_LT(table, image.size());
  const auto damaged = [&](std::size_t bytes) {
    // An address that no function has makes it look at every symbol.
    return detail::elf_function_at(std::span(image).first(bytes), UINT64_MAX).name;
  };
  for (std::size_t bytes = 0; bytes < 64; ++bytes) EXPECT_EQ(damaged(bytes), "");
  for (std::size_t bytes = table; bytes < image.size(); bytes += 61) EXPECT_EQ(damaged(bytes), "");
  const auto turn_over = [&](std::size_t at) {
    image[at] ^= std::byte{0xff};
    damaged(image.size());
    image[at] ^= std::byte{0xff};
  };
  for (std::size_t at = 0; at < 64; ++at) turn_over(at);
  for (std::size_t at = table; at < std::min(image.size(), table + 64 * 64); at += 3) turn_over(at);
}

}  // namespace
}  // namespace forebay
