// One thread: not in the thread sanitizer's tree.
// The rings in shared memory when there is no memory for what a side keeps of its own.
#include <gtest/gtest.h>

#include <cstddef>
#include <new>

#include "forebay/base/sanitizer.h"
#include "forebay/ring/descriptor_ring.h"
#include "forebay/ring/shared_queue_controller.h"
#include "forebay/ring/shared_queue_pair.h"
#include "forebay/ring/test_region.h"

namespace {

// Array allocations of this thread that still succeed; negative: all do.
[[maybe_unused]] thread_local int arrays_left = -1;

}  // namespace

// The thread sanitizer brings an operator of its own, which cannot be replaced.
#if !FOREBAY_TSAN
void* operator new[](std::size_t bytes, const std::nothrow_t&) noexcept {
  if (arrays_left == 0) return nullptr;
  if (arrays_left > 0) --arrays_left;
  return ::operator new[](bytes);
}
#endif

namespace forebay {
namespace {

// Fails with ENOMEM after 0 … allocations - 1 allocations, and works after that.
template <typename Make>
void expect_enomem(int allocations, Make make) {
  if (FOREBAY_TSAN != 0) GTEST_SKIP() << "allocations cannot be made to fail";
  for (int n = 0; n < allocations; ++n) {
    arrays_left = n;
    const auto r = make();
    arrays_left = -1;
    ASSERT_FALSE(r) << n;
    EXPECT_EQ(r.error().value(), ENOMEM);
  }
  arrays_left = allocations;
  const auto r = make();
  arrays_left = -1;
  EXPECT_TRUE(r);
}

void expect_untouched(const test_region& region) {
  for (const std::byte b : region.memory()) ASSERT_EQ(b, std::byte{0});
}

TEST(SharedRingAllocation, ADriverIsNotHalfMade) {
  const test_region region(descriptor_driver::region_bytes(8));
  expect_enomem(1, [&] {
    expect_untouched(region);
    return descriptor_driver::create(region, {.entries = 8, .start = 0});
  });
}

TEST(SharedRingAllocation, ADeviceIsNotHalfMade) {
  const test_region region(descriptor_driver::region_bytes(8));
  ASSERT_TRUE(descriptor_driver::create(region, {.entries = 8, .start = 0}));
  expect_enomem(1, [&] { return descriptor_device::attach(region); });
}

TEST(SharedRingAllocation, AHostIsNotHalfMade) {
  const test_region region(shared_queue_pair::region_bytes(8, 8));
  expect_enomem(2, [&] {
    expect_untouched(region);
    return shared_queue_pair::create(region, {.entries = 8, .completions = 8});
  });
}

TEST(SharedRingAllocation, AControllerIsNotHalfMade) {
  const test_region region(shared_queue_pair::region_bytes(8, 8));
  ASSERT_TRUE(shared_queue_pair::create(region, {.entries = 8, .completions = 8}));
  expect_enomem(1, [&] { return shared_queue_controller::attach(region); });
}

}  // namespace
}  // namespace forebay
