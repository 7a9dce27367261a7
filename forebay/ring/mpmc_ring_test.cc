#include "forebay/ring/mpmc_ring.h"

#include <atomic>
#include <random>

#include "forebay/ring/test_ring.h"

namespace forebay {
namespace {

using int_ring = mpmc_ring<int>;

std::unique_ptr<int_ring> make(std::size_t capacity, std::uint64_t first = 0) {
  return std::move(int_ring::create({.capacity = capacity, .first_position = first}).value());
}

TEST(mpmc_ring, refuses_bad_sizes) { check_bad_sizes<int_ring>(); }
TEST(mpmc_ring, without_memory_there_is_none) { check_without_memory<int_ring>(); }
RC_GTEST_PROP(mpmc_ring, does_what_a_queue_does, ()) { check_against_model<int_ring>(); }

TEST(mpmc_ring, is_full_at_its_capacity_and_not_before) {
  const auto ring = make(4, before_overflow);
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(ring->try_push(i));
  EXPECT_FALSE(ring->try_push(-1));
  int item = -1;
  ASSERT_TRUE(ring->try_pop(item));
  EXPECT_EQ(item, 0);
  EXPECT_TRUE(ring->try_push(4));
  EXPECT_FALSE(ring->try_push(5));
  std::vector<int> rest(4);
  EXPECT_TRUE(ring->try_pop_all(rest));
  EXPECT_EQ(rest, numbers_from(1, 4));
}

TEST(mpmc_ring, a_claimed_slot_holds_up_those_behind_it_until_it_is_finished) {
  const auto ring = make(4);
  auto first = ring->reserve(1);
  ASSERT_EQ(first.size(), 1u);
  first[0].set(10);
  EXPECT_TRUE(ring->try_push(11));
  int item = -1;
  EXPECT_FALSE(ring->try_pop(item));  // 11 is there, but not first
  EXPECT_EQ(ring->size(), 2u);
  auto moved = std::move(first);
  first.finish();  // has nothing any more
  EXPECT_FALSE(ring->try_pop(item));
  moved.finish();
  EXPECT_TRUE(ring->try_pop(item));
  EXPECT_EQ(item, 10);
  {
    const auto taken = ring->take(1);
    EXPECT_EQ(taken[0].get(), 11);
    EXPECT_EQ(ring->size(), 0u);
    EXPECT_EQ(ring->try_push_some(numbers_from(0, 4)), 3u);  // its slot is not free yet
  }
  EXPECT_TRUE(ring->try_push(3));
}

TEST(mpmc_ring, an_assigned_claim_finishes_the_one_it_replaces) {
  const auto ring = make(4);
  auto c = ring->reserve(1);
  c[0].set(1);
  c = ring->reserve(1);
  EXPECT_EQ(ring->take(4).size(), 1u);  // the first one
  c[0].set(2);
  c = {};
  int item = 0;
  EXPECT_TRUE(ring->try_pop(item));
  EXPECT_EQ(item, 2);
}

TEST(mpmc_ring, closed_takes_nothing_and_gives_what_it_has) {
  const auto ring = make(4);
  ASSERT_TRUE(ring->try_push(1));
  EXPECT_FALSE(ring->closed());
  EXPECT_FALSE(ring->drained());
  ring->close();
  ring->close();
  EXPECT_TRUE(ring->closed());
  EXPECT_FALSE(ring->drained());
  EXPECT_FALSE(ring->try_push(2));
  EXPECT_EQ(ring->try_push_some(numbers_from(0, 2)), 0u);
  EXPECT_TRUE(ring->reserve(2).empty());
  EXPECT_EQ(ring->size(), 1u);
  EXPECT_EQ(ring->statistics().pushed, 1u);
  int item = 0;
  EXPECT_TRUE(ring->try_pop(item));
  EXPECT_TRUE(ring->drained());
  EXPECT_FALSE(ring->try_pop(item));
}

// Every item goes once, whole; each consumer sees each producer's items in order. Closing ends it.
TEST(mpmc_ring_stress, nothing_is_lost_or_doubled_and_order_is_kept) {
  constexpr unsigned producers = 2;
  constexpr unsigned consumers = 2;
  constexpr std::uint64_t per_producer = 60'000;
  const auto ring =
      std::move(mpmc_ring<counted_item>::create(
                    {.capacity = 32, .first_position = (std::uint64_t{1} << 32) - 999})
                    .value());
  std::vector<std::thread> threads;
  std::atomic<unsigned> producing{producers};
  std::atomic<std::uint64_t> sum{0};
  std::atomic<std::uint64_t> count{0};
  std::atomic<std::uint64_t> wrong{0};
  for (unsigned id = 0; id < producers; ++id) {
    threads.emplace_back([&, id] {
      std::minstd_rand random(id + 1);
      std::array<counted_item, 9> batch;
      for (std::uint64_t next = 0; next < per_producer;) {
        const auto n = std::min<std::size_t>(random() % batch.size() + 1, per_producer - next);
        for (std::size_t i = 0; i < n; ++i) {
          batch[i] = counted_item::of((next + i) * producers + id);
        }
        std::size_t pushed = 0;
        if (random() % 4 == 0) {
          const auto slots = ring->reserve(n);
          for (std::size_t i = 0; i < slots.size(); ++i) slots[i].set(batch[i]);
          pushed = slots.size();
        } else if (random() % 4 == 0) {
          pushed = ring->try_push_all(std::span(batch).first(n)) ? n : 0;
        } else {
          pushed = ring->try_push_some(std::span(batch).first(n));
        }
        next += pushed;
        if (pushed == 0) std::this_thread::yield();
      }
      if (--producing == 0) ring->close();
    });
  }
  for (unsigned id = 0; id < consumers; ++id) {
    threads.emplace_back([&, id] {
      std::minstd_rand random(id + 100);
      std::array<counted_item, 9> batch;
      std::array<std::uint64_t, producers> last{};
      const auto see = [&](const counted_item& c) {
        std::uint64_t& before = last[c.number % producers];
        if (!c.whole() || c.number < before) ++wrong;
        before = c.number;
        sum += c.number;
        ++count;
      };
      while (!ring->drained()) {
        const std::size_t n = random() % batch.size() + 1;
        std::size_t popped = 0;
        if (random() % 4 == 0) {
          const auto slots = ring->take(n);
          popped = slots.size();
          for (std::size_t i = 0; i < popped; ++i) see(slots[i].get());
        } else if (random() % 4 == 0) {
          popped = ring->try_pop_all(std::span(batch).first(n)) ? n : 0;
          for (std::size_t i = 0; i < popped; ++i) see(batch[i]);
        } else {
          popped = ring->try_pop_some(std::span(batch).first(n));
          for (std::size_t i = 0; i < popped; ++i) see(batch[i]);
        }
        if (popped == 0) std::this_thread::yield();
      }
    });
  }
  for (std::thread& t : threads) t.join();
  constexpr std::uint64_t total = producers * per_producer;
  EXPECT_EQ(count.load(), total);
  EXPECT_EQ(sum.load(), total * (total - 1) / 2);
  EXPECT_EQ(wrong.load(), 0u);
}

// A batch that was pushed in one call comes out in one piece.
TEST(mpmc_ring_stress, batches_are_not_mixed) {
  constexpr unsigned batches = 8'000;
  const auto ring = std::move(mpmc_ring<std::uint32_t>::create(64).value());
  std::vector<std::thread> producers;
  for (std::uint32_t id = 0; id < 2; ++id) {
    producers.emplace_back([&, id] {
      for (std::uint32_t b = 0; b < batches;) {
        const std::array<std::uint32_t, 3> batch{b * 2 + id, b * 2 + id, b * 2 + id};
        if (ring->try_push_all(batch))
          ++b;
        else
          std::this_thread::yield();
      }
    });
  }
  unsigned mixed = 0;
  for (unsigned b = 0; b < 2 * batches;) {
    std::array<std::uint32_t, 3> batch{};
    if (!ring->try_pop_all(batch)) {
      std::this_thread::yield();
      continue;
    }
    if (batch[0] != batch[1] || batch[1] != batch[2]) ++mixed;
    ++b;
  }
  for (std::thread& t : producers) t.join();
  EXPECT_EQ(mixed, 0u);
}

}  // namespace
}  // namespace forebay
