#include "forebay/ring/waiting_ring.h"

#include <atomic>
#include <thread>

#include "forebay/ring/test_ring.h"

namespace forebay {
namespace {

using namespace std::chrono_literals;

template <typename Ring>
std::unique_ptr<Ring> make(std::size_t capacity, unsigned spins = 0) {
  return std::move(Ring::create({.ring = {.capacity = capacity}, .spins = spins}).value());
}

std::error_code error_of(int e) { return fail(e).error(); }

template <typename Ring>
class waiting_ring : public testing::Test {};
using rings = testing::Types<waiting_spsc_ring<int>, waiting_mpmc_ring<int>>;
TYPED_TEST_SUITE(waiting_ring, rings);

TYPED_TEST(waiting_ring, refuses_what_its_ring_refuses) {
  EXPECT_EQ(TypeParam::create(3).error(), error_of(EINVAL));
  EXPECT_EQ(TypeParam::create(ring_capacity_max * 2).error(), errc::too_large);
  if (!ring_allocations_can_fail) return;
  for (const int succeed : {0, 1, 2}) {
    ring_allocations_left = succeed;
    const auto made = TypeParam::create(64);
    ring_allocations_left = -1;
    ASSERT_FALSE(made.has_value());
    EXPECT_EQ(made.error(), error_of(ENOMEM));
  }
}

TYPED_TEST(waiting_ring, does_not_wait_for_what_is_there) {
  const auto ring = make<TypeParam>(4);
  EXPECT_TRUE(ring->push(1, {.timeout = 0ns}));
  EXPECT_EQ(ring->push_some(numbers_from(2, 9)).value(), 3u);
  EXPECT_FALSE(ring->try_push(5));
  EXPECT_EQ(ring->pop().value(), 1);
  std::vector<int> rest(9);
  EXPECT_EQ(ring->pop_some(rest).value(), 3u);
  EXPECT_EQ(rest[2], 4);
  EXPECT_EQ(ring->ring().statistics().popped, 4u);
}

TYPED_TEST(waiting_ring, gives_up_when_the_time_is_over) {
  const auto ring = make<TypeParam>(2, 10);
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(ring->pop({.timeout = 20ms}).error(), error_of(ETIMEDOUT));
  EXPECT_GE(std::chrono::steady_clock::now() - start, 20ms);
  EXPECT_EQ(ring->pop({.timeout = 0ns}).error(), error_of(ETIMEDOUT));
  EXPECT_EQ(ring->pop({.timeout = -5ns}).error(), error_of(ETIMEDOUT));
  EXPECT_EQ(ring->push_some(numbers_from(0, 2)).value(), 2u);
  EXPECT_EQ(ring->push(3, {.timeout = 1ms}).error(), error_of(ETIMEDOUT));
  EXPECT_EQ(ring->ring().size(), 2u);
}

TYPED_TEST(waiting_ring, stops_when_it_is_told_to) {
  const auto ring = make<TypeParam>(2);
  std::stop_source stop;
  std::thread stopper([&] {
    std::this_thread::sleep_for(10ms);
    stop.request_stop();
  });
  EXPECT_EQ(ring->pop({.stop = stop.get_token()}).error(), error_of(ECANCELED));
  stopper.join();
  ASSERT_TRUE(ring->push(1, {.stop = stop.get_token()}));  // there is room: no need to wait
  ASSERT_TRUE(ring->push(2));
  EXPECT_EQ(ring->push(3, {.stop = stop.get_token()}).error(), error_of(ECANCELED));
  EXPECT_EQ(ring->pop({.stop = stop.get_token()}).value(), 1);
}

TYPED_TEST(waiting_ring, wakes_who_waits_for_an_item_and_for_room) {
  const auto ring = make<TypeParam>(2);
  std::thread consumer([&] {
    for (int i = 0; i < 6; ++i) {
      EXPECT_EQ(ring->pop().value(), i);
      if (i == 2) std::this_thread::sleep_for(10ms);  // the producer waits for room meanwhile
    }
  });
  std::this_thread::sleep_for(10ms);
  for (int i = 0; i < 6; ++i) EXPECT_TRUE(ring->push(i));
  consumer.join();
}

TYPED_TEST(waiting_ring, closed_ends_the_waiting_when_nothing_is_left) {
  const auto ring = make<TypeParam>(4);
  ASSERT_TRUE(ring->push(1));
  std::thread consumer([&] {
    EXPECT_EQ(ring->pop().value(), 1);
    EXPECT_EQ(ring->pop().error(), errc::end_of_stream);
    EXPECT_EQ(ring->pop({.timeout = 0ns}).error(), errc::end_of_stream);
  });
  std::this_thread::sleep_for(10ms);
  ring->close();
  EXPECT_EQ(ring->push(2).error(), error_of(EPIPE));
  EXPECT_FALSE(ring->try_push(2));
  consumer.join();
}

TYPED_TEST(waiting_ring, nothing_is_not_waited_for) {
  const auto ring = make<TypeParam>(2);
  const wait_limit limit{.timeout = 50ms};
  EXPECT_EQ(ring->pop_some({}, limit).value_or(9), 0u);
  EXPECT_EQ(ring->push_some(numbers_from(0, 2)).value(), 2u);
  EXPECT_EQ(ring->push_some({}, limit).value_or(9), 0u);
}

TEST(waiting_mpmc_ring, closed_wakes_who_waits_for_room) {
  const auto ring = make<waiting_mpmc_ring<int>>(2);
  EXPECT_EQ(ring->push_some(numbers_from(0, 2)).value(), 2u);
  std::thread producer([&] { EXPECT_EQ(ring->push(9).error(), error_of(EPIPE)); });
  std::this_thread::sleep_for(10ms);
  ring->close();
  producer.join();
}

// A push that comes while an earlier one is under way wakes a consumer that cannot have its item
// yet. When it can, the one call that follows must reach all who can go on.
TEST(waiting_mpmc_ring, a_call_that_came_too_early_is_passed_on) {
  const auto ring = make<waiting_mpmc_ring<int>>(8);
  // The object is not const; the waiting ring shows it so, because this wakes nobody.
  auto& inner = const_cast<mpmc_ring<int>&>(ring->ring());
  std::vector<std::thread> consumers;
  for (int i = 0; i < 3; ++i) {
    consumers.emplace_back([&] { EXPECT_TRUE(ring->pop({.timeout = 60s})); });
  }
  std::this_thread::sleep_for(10ms);
  auto slot = inner.reserve(1);
  ASSERT_TRUE(ring->try_push(2));  // wakes one, who finds nothing
  std::this_thread::sleep_for(10ms);
  slot[0].set(1);
  slot.finish();
  const auto start = std::chrono::steady_clock::now();
  ASSERT_TRUE(ring->try_push(3));  // wakes one; the other two are his to wake
  for (std::thread& t : consumers) t.join();
  EXPECT_LT(std::chrono::steady_clock::now() - start, 30s);
}

template <typename Ring>
void pass_numbers(unsigned producers, unsigned consumers, unsigned per_producer) {
  const auto ring = make<Ring>(4, 3);
  std::vector<std::thread> threads;
  std::atomic<std::uint64_t> sum{0};
  std::atomic<unsigned> producing{producers};
  for (unsigned p = 0; p < producers; ++p) {
    threads.emplace_back([&] {
      for (unsigned i = 1; i <= per_producer; ++i) {
        EXPECT_TRUE(ring->push(static_cast<int>(i), {.timeout = 60s}));
      }
      if (--producing == 0) ring->close();
    });
  }
  for (unsigned c = 0; c < consumers; ++c) {
    threads.emplace_back([&] {
      std::array<int, 3> items{};
      for (;;) {
        const auto n = ring->pop_some(items, {.timeout = 60s});
        if (!n) {
          EXPECT_EQ(n.error(), errc::end_of_stream);
          return;
        }
        for (std::size_t i = 0; i < *n; ++i) sum += static_cast<std::uint64_t>(items[i]);
      }
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(sum.load(), std::uint64_t{producers} * per_producer * (per_producer + 1) / 2);
}

TEST(waiting_ring_stress, one_to_one_nobody_sleeps_for_ever) {
  pass_numbers<waiting_spsc_ring<int>>(1, 1, 20'000);
}
TEST(waiting_ring_stress, many_to_many_nobody_sleeps_for_ever) {
  pass_numbers<waiting_mpmc_ring<int>>(3, 3, 5'000);
}

// Who is stopped or times out takes nobody's call with him.
TEST(waiting_ring_stress, those_who_give_up_leave_the_rest_to_the_others) {
  const auto ring = make<waiting_mpmc_ring<int>>(4);
  constexpr int items = 3'000;
  std::atomic<int> got{0};
  std::vector<std::thread> consumers;
  for (int c = 0; c < 3; ++c) {
    consumers.emplace_back([&, c] {
      for (;;) {
        const auto item = ring->pop({.timeout = c == 0 ? std::chrono::nanoseconds(60s) : 50us});
        if (item)
          ++got;
        else if (item.error() == errc::end_of_stream)
          return;
        else
          EXPECT_EQ(item.error(), error_of(ETIMEDOUT));
      }
    });
  }
  for (int i = 0; i < items; ++i) ASSERT_TRUE(ring->push(i, {.timeout = 60s}));
  ring->close();
  for (std::thread& t : consumers) t.join();
  EXPECT_EQ(got.load(), items);
}

}  // namespace
}  // namespace forebay
