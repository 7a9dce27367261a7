#include "forebay/base/atomics.h"

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <vector>

namespace forebay {
namespace {

struct item {
  std::uint64_t a = 1;
  std::uint32_t b = 2;
  friend bool operator==(const item&, const item&) = default;
};

// A policy's slot that is more than its item, as a model's.
template <typename T>
class counted {
 public:
  T get() const noexcept {
    ++reads;
    return value_;
  }
  void set(const T& value) noexcept {
    ++writes;
    value_ = value;
  }
  mutable unsigned reads = 0;
  unsigned writes = 0;

 private:
  T value_{};
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

TEST(plain, is_copied_by_the_batch) {
  std::array<real_atomics::plain<item>, 8> slots;
  const std::vector<item> items{{1, 10}, {2, 20}, {3, 30}};
  copy_into(slots.data() + 2, items.data(), items.size());
  copy_into(slots.data() + 7, items.data(), 0);
  EXPECT_EQ(slots[1].get(), item{});
  EXPECT_EQ(slots[2].get(), items[0]);
  EXPECT_EQ(slots[4].get(), items[2]);
  EXPECT_EQ(slots[5].get(), item{});
  std::vector<item> out(3);
  copy_out(out.data(), slots.data() + 2, 3);
  EXPECT_EQ(out, items);
}

TEST(plain, of_a_model_sees_each_access_of_a_batch) {
  std::array<counted<int>, 4> slots;
  const std::array<int, 3> items{1, 2, 3};
  copy_into(slots.data(), items.data(), items.size());
  std::array<int, 3> out{};
  copy_out(out.data(), slots.data(), out.size());
  EXPECT_EQ(out, items);
  EXPECT_EQ(slots[0].writes, 1u);
  EXPECT_EQ(slots[2].reads, 1u);
  EXPECT_EQ(slots[3].writes + slots[3].reads, 0u);
}

}  // namespace
}  // namespace forebay
