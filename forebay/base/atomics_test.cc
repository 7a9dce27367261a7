// One thread: not in the thread sanitizer's tree.

#include "forebay/base/atomics.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <type_traits>

namespace forebay {
namespace {

struct item {
  std::uint64_t a = 1;
  std::uint32_t b = 2;
  friend bool operator==(const item&, const item&) = default;
};

TEST(plain, is_nothing_but_its_item) {
  static_assert(sizeof(real_atomics::plain<item>) == sizeof(item));
  static_assert(alignof(real_atomics::plain<item>) == alignof(item));
  static_assert(std::is_trivially_copyable_v<real_atomics::plain<item>>);
  static_assert(std::is_standard_layout_v<real_atomics::plain<item>>);
  EXPECT_EQ(real_atomics::plain<item>().get(), item{});
  EXPECT_EQ(real_atomics::plain<item>(item{7, 8}).get(), (item{7, 8}));
}

TEST(plain, reads_and_writes) {
  real_atomics::plain<item> p;
  p.set({3, 4});
  EXPECT_EQ(p.get(), (item{3, 4}));
  p.write().b = 5;
  EXPECT_EQ(p.read(), (item{3, 5}));
}

}  // namespace
}  // namespace forebay
