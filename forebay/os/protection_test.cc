#include "forebay/os/protection.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

namespace forebay {
namespace {

class pages {
 public:
  explicit pages(std::size_t count)
      : all_(static_cast<std::byte*>(::mmap(nullptr, count * protection_bytes,
                                            PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
                                            0)),
             count * protection_bytes) {}
  ~pages() { ::munmap(all_.data(), all_.size()); }

  std::span<std::byte> all() const noexcept { return all_; }
  std::span<std::byte> operator[](std::size_t i) const noexcept {
    return all_.subspan(i * protection_bytes, protection_bytes);
  }

 private:
  std::span<std::byte> all_;
};

// By the kernel, which answers EFAULT where the process would die.
bool can_read(std::span<std::byte> memory) {
  std::byte b{};
  const iovec to{&b, 1};
  const iovec from{memory.data(), 1};
  return ::process_vm_readv(::getpid(), &to, 1, &from, 1, 0) == 1;
}
bool can_write(std::span<std::byte> memory) {
  std::byte b{7};
  const iovec from{&b, 1};
  const iovec to{memory.data(), 1};
  return ::process_vm_writev(::getpid(), &from, 1, &to, 1, 0) == 1;
}

TEST(Protection, ClosesAndOpens) {
  const pages p(3);
  std::ranges::fill(p.all(), std::byte{1});
  ASSERT_TRUE(protect(p[1], memory_access::none));
  EXPECT_FALSE(can_read(p[1]));
  EXPECT_FALSE(can_write(p[1]));
  EXPECT_TRUE(can_write(p[0]));
  EXPECT_TRUE(can_write(p[2]));
  ASSERT_TRUE(protect(p[1], memory_access::read_only));
  EXPECT_TRUE(can_read(p[1]));
  EXPECT_FALSE(can_write(p[1]));
  ASSERT_TRUE(protect(p[1], memory_access::read_write));
  EXPECT_EQ(p[1][9], std::byte{1}) << "the contents stay";
  p[1][9] = std::byte{2};
  EXPECT_EQ(p[1][9], std::byte{2});
}

TEST(Protection, ErrorsLeaveItAsItWas) {
  const pages p(2);
  EXPECT_EQ(protect(p.all().subspan(1, protection_bytes), memory_access::none).error(),
            std::errc::invalid_argument);
  ::munmap(p[1].data(), protection_bytes);
  EXPECT_EQ(protect(p[1], memory_access::none).error(), std::errc::not_enough_memory);
  p[0][0] = std::byte{1};
}

TEST(Protection, AKeyIsUsedWhereThereAreSome) {
  std::ifstream file("/proc/cpuinfo");
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  EXPECT_EQ(has_protection_key(), text.find(" ospke") != std::string::npos);
}

std::size_t explain_nothing_else(const void* address, std::span<char> out) noexcept {
  return static_cast<std::size_t>(
      std::snprintf(out.data(), out.size(), "that was %s", address == nullptr ? "null" : "it"));
}

TEST(ProtectionDeathTest, AFaultIsExplained) {
  const pages p(1);
  const auto touch = [&] {
    explain_faults(explain_nothing_else);
    std::ignore = protect(p[0], memory_access::none);
    const volatile std::byte& stray = p[0][5];
    [[maybe_unused]] const std::byte seen = stray;
  };
  EXPECT_DEATH(touch(), "that was it");
}

TEST(Protection, AThreadKnowsItsStack) {
  int here = 0;
  static int elsewhere = 0;
  const std::vector<int> heap(10);
  EXPECT_TRUE(on_own_stack(&here));
  EXPECT_FALSE(on_own_stack(&elsewhere));
  EXPECT_FALSE(on_own_stack(heap.data()));
  std::thread([&] {
    int there = 0;
    EXPECT_TRUE(on_own_stack(&there));
    EXPECT_FALSE(on_own_stack(&here));
  }).join();
}

TEST(Protection, ConstantsAreKnown) {
  static constexpr std::array<std::byte, 64> constant{std::byte{1}};
  static std::array<std::byte, 64> variable{std::byte{1}};
  const std::vector<std::byte> heap(64);
  EXPECT_TRUE(in_program_constants(constant));
  EXPECT_TRUE(in_program_constants({reinterpret_cast<const std::byte*>(&::getpid), 1}));
  EXPECT_FALSE(in_program_constants(variable));
  EXPECT_FALSE(in_program_constants(heap));
}

}  // namespace
}  // namespace forebay
