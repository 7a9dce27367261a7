#include "forebay/ring/spsc_ring.h"

#include <random>

#include "forebay/base/sanitizer.h"
#include "forebay/ring/test_ring.h"

namespace forebay {

thread_local int ring_allocations_left = -1;

}  // namespace forebay

// The thread sanitizer brings an operator of its own, which cannot be replaced.
#if !FOREBAY_TSAN
void* operator new(std::size_t bytes, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  if (forebay::ring_allocations_left == 0) return nullptr;
  if (forebay::ring_allocations_left > 0) --forebay::ring_allocations_left;
  return ::operator new(bytes, alignment);
}
#endif

namespace forebay {

const bool ring_allocations_can_fail = FOREBAY_TSAN == 0;

namespace {

using int_ring = spsc_ring<int>;

std::unique_ptr<int_ring> make(std::size_t capacity, std::uint64_t first = 0) {
  return std::move(int_ring::create({.capacity = capacity, .first_position = first}).value());
}

TEST(spsc_ring, refuses_bad_sizes) { check_bad_sizes<int_ring>(); }
TEST(spsc_ring, without_memory_there_is_none) { check_without_memory<int_ring>(); }
RC_GTEST_PROP(spsc_ring, does_what_a_queue_does, ()) { check_against_model<int_ring>(); }

TEST(spsc_ring, is_full_at_its_capacity_and_not_before) {
  for (const std::size_t capacity : {2u, 4u, 1024u}) {
    const auto ring = make(capacity, before_overflow);
    EXPECT_TRUE(ring->empty());
    for (int i = 0; i < static_cast<int>(capacity); ++i) ASSERT_TRUE(ring->try_push(i));
    EXPECT_FALSE(ring->try_push(-1));
    EXPECT_EQ(ring->size(), capacity);
    int item = -1;
    ASSERT_TRUE(ring->try_pop(item));
    EXPECT_EQ(item, 0);
    EXPECT_TRUE(ring->try_push(7));  // one slot is one item's room at once
    EXPECT_FALSE(ring->try_push(8));
    std::vector<int> rest(capacity);
    EXPECT_EQ(ring->try_pop_some(rest), capacity);
    EXPECT_EQ(rest.back(), 7);
    EXPECT_FALSE(ring->try_pop(item));
  }
}

TEST(spsc_ring, reserved_slots_are_the_same_until_the_commit) {
  const auto ring = make(8);
  ASSERT_EQ(ring->try_push_some(numbers_from(0, 6)), 6u);
  std::vector<int> out(5);
  ASSERT_TRUE(ring->try_pop_all(out));
  auto slots = ring->reserve(5);  // over the end of the memory
  ASSERT_EQ(slots.size(), 5u);
  EXPECT_EQ(slots.first().size(), 2u);
  EXPECT_EQ(slots.second().size(), 3u);
  for (std::size_t i = 0; i < 5; ++i) slots[i].set(100 + static_cast<int>(i));
  EXPECT_EQ(ring->size(), 1u);  // nothing is pushed yet
  EXPECT_EQ(&ring->reserve(5)[0], &slots[0]);
  ring->commit(3);
  EXPECT_EQ(ring->size(), 4u);
  EXPECT_EQ(&ring->reserve(1)[0], &slots[3]);
  const auto seen = ring->peek(10);
  ASSERT_EQ(seen.size(), 4u);
  EXPECT_EQ(seen[0].get(), 5);
  EXPECT_EQ(seen[3].read(), 102);
  ring->release(2);
  EXPECT_EQ(ring->size(), 2u);
  EXPECT_EQ(ring->peek(1)[0].get(), 101);
  EXPECT_TRUE(ring->reserve(0).empty());
}

TEST(spsc_ring, closed_takes_nothing_and_gives_what_it_has) {
  const auto ring = make(4);
  ASSERT_TRUE(ring->try_push(1));
  EXPECT_FALSE(ring->closed());
  ring->close();
  EXPECT_TRUE(ring->closed());
  EXPECT_FALSE(ring->drained());
  EXPECT_FALSE(ring->try_push(2));
  EXPECT_EQ(ring->try_push_some(numbers_from(0, 2)), 0u);
  EXPECT_TRUE(ring->reserve(2).empty());
  int item = 0;
  EXPECT_TRUE(ring->try_pop(item));
  EXPECT_EQ(item, 1);
  EXPECT_TRUE(ring->drained());
  EXPECT_FALSE(ring->try_pop(item));
}

TEST(spsc_ring, what_was_reserved_before_it_was_closed_is_not_pushed_after) {
  const auto ring = make(4);
  const auto reserved = ring->reserve(2);
  ASSERT_EQ(reserved.size(), 2u);
  reserved[0].set(1);
  ring->close();
  EXPECT_TRUE(ring->drained());
  ring->commit(1);
  EXPECT_TRUE(ring->drained());
  int item = 0;
  EXPECT_FALSE(ring->try_pop(item));
  EXPECT_EQ(ring->statistics().pushed, 0u);
}

TEST(spsc_ring, a_pointer_and_its_number_take_16_bytes) {
  static_assert(sizeof(ring_slot<void*, real_atomics>) == 16);
  static_assert(sizeof(ring_slot<std::uint32_t, real_atomics>) == 8);
}

// Every item arrives once, whole and in order, whatever the batches, through a ring that is full
// and empty all the time and whose numbers overflow.
TEST(spsc_ring_stress, keeps_the_order) {
  for (const std::size_t capacity : {2u, 64u}) {
    // Every second item in a ring of two is a yield, which on a busy machine is others' time slice.
    const std::uint64_t items = capacity * 3'000;
    const auto ring =
        std::move(spsc_ring<counted_item>::create(
                      {.capacity = capacity, .first_position = (std::uint64_t{1} << 32) - 999})
                      .value());
    std::thread producer([&] {
      std::minstd_rand random(1);
      std::array<counted_item, 40> batch;
      for (std::uint64_t next = 0; next < items;) {
        const auto n = std::min<std::size_t>(random() % batch.size() + 1, items - next);
        for (std::size_t i = 0; i < n; ++i) batch[i] = counted_item::of(next + i);
        std::size_t pushed = 0;
        if (random() % 4 == 0) {
          const auto slots = ring->reserve(n);
          for (std::size_t i = 0; i < slots.size(); ++i) slots[i].set(batch[i]);
          pushed = slots.size();
          ring->commit(pushed);
        } else if (random() % 4 == 0) {
          pushed = ring->try_push_all(std::span(batch).first(n)) ? n : 0;
        } else {
          pushed = ring->try_push_some(std::span(batch).first(n));
        }
        next += pushed;
        if (pushed == 0) std::this_thread::yield();
      }
    });
    std::uint64_t expected = 0;
    std::uint64_t wrong = 0;
    const auto check = [&](const counted_item& c) {
      if (!c.whole() || c.number != expected++) ++wrong;
    };
    std::minstd_rand random(2);
    std::array<counted_item, 40> batch;
    while (expected < items) {
      const std::size_t n = random() % batch.size() + 1;
      std::size_t popped = 0;
      if (random() % 4 == 0) {
        const auto slots = ring->peek(n);
        popped = slots.size();
        for (std::size_t i = 0; i < popped; ++i) check(slots[i].get());
        ring->release(popped);
      } else {
        popped = ring->try_pop_some(std::span(batch).first(n));
        for (std::size_t i = 0; i < popped; ++i) check(batch[i]);
      }
      if (popped == 0) std::this_thread::yield();
    }
    producer.join();
    EXPECT_EQ(wrong, 0u);
    EXPECT_TRUE(ring->empty());
    EXPECT_EQ(ring->statistics().pushed, items);
  }
}

// What a size says is there for the thread that asks it.
TEST(spsc_ring_stress, sizes_can_be_relied_on) {
  constexpr std::uint64_t items = 50'000;
  const auto ring = std::move(spsc_ring<std::uint64_t>::create(16).value());
  std::uint64_t refused = 0;
  std::thread producer([&] {
    std::array<std::uint64_t, 16> batch{};
    for (std::uint64_t sent = 0; sent < items;) {
      const std::size_t n = ring->free_count();
      if (n == 0) std::this_thread::yield();
      if (!ring->try_push_all(std::span(batch).first(n))) ++refused;
      sent += n;
    }
  });
  std::uint64_t missed = 0;
  std::array<std::uint64_t, 16> batch{};
  for (std::uint64_t got = 0; got < items;) {
    const std::size_t n = ring->size();
    if (n == 0) std::this_thread::yield();
    if (!ring->try_pop_all(std::span(batch).first(n))) ++missed;
    got += n;
  }
  producer.join();
  EXPECT_EQ(refused, 0u);
  EXPECT_EQ(missed, 0u);
}

}  // namespace
}  // namespace forebay
