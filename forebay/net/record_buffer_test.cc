// The buffer of the recorder: what it holds, and what each policy does when it is full.

#include "forebay/net/record_buffer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <thread>
#include <vector>

namespace forebay {
namespace {

void append(record_buffer& b, std::uint64_t i, std::size_t length, std::uint64_t now_ns = 1) {
  b.append(i, length, static_cast<std::uint32_t>(length), 0, now_ns,
           [&](std::byte* to) { std::memset(to, static_cast<int>(i), length); });
}

std::unique_ptr<record_buffer> small_buffer(exhaustion_policy policy, std::size_t limit = 0,
                                            std::uint64_t age_limit_ns = UINT64_MAX) {
  auto b = record_buffer::create({.bytes = 64 << 10,
                                  .limit_bytes = limit,
                                  .packet_bytes_max = 4096,
                                  .when_full = policy,
                                  .age_limit_ns = age_limit_ns});
  EXPECT_TRUE(b);
  return std::move(*b);
}

// The numbers (stamps) of the packets in what is there.
std::vector<std::uint32_t> take_all(record_buffer& b) {
  std::vector<std::uint32_t> numbers;
  while (record_chunk* const c = b.try_take()) {
    std::uint64_t packets = 0;
    for (std::size_t at = 0; at < c->used; ++packets) {
      std::uint32_t head[5];
      std::memcpy(head, c->data + at, sizeof head);
      EXPECT_EQ(head[0], 6u);
      numbers.push_back(head[4]);
      at += head[1];
      EXPECT_LE(at, c->used);
    }
    EXPECT_EQ(packets, c->packets);
    b.give_back(*c);
  }
  return numbers;
}

TEST(RecordBuffer, WhatFitsComesOutInOrder) {
  const auto b = small_buffer(exhaustion_policy::tail_drop);
  std::vector<std::uint32_t> all;
  for (std::uint32_t i = 0; i < 3000; ++i) {
    append(*b, i, i % 500);
    if (i % 40 == 0) {
      for (const std::uint32_t n : take_all(*b)) all.push_back(n);
    }
  }
  b->close();
  for (const std::uint32_t n : take_all(*b)) all.push_back(n);
  EXPECT_TRUE(b->drained());
  ASSERT_EQ(all.size(), 3000u);
  for (std::uint32_t i = 0; i < 3000; ++i) ASSERT_EQ(all[i], i);
  EXPECT_EQ(b->statistics().policy, exhaustion_statistics{});
}

TEST(RecordBuffer, EachPolicyDoesWhatItSaysAndCountsIt) {
  constexpr std::uint32_t sent = 200;  // of 1 KiB, into 64 KiB
  for (const auto policy : {exhaustion_policy::tail_drop, exhaustion_policy::head_drop,
                            exhaustion_policy::expand, exhaustion_policy::back_pressure}) {
    const auto b = small_buffer(policy, 128 << 10);
    bool pressed = false;
    std::uint32_t offered = 0;
    for (; offered < sent && !pressed; ++offered) {
      append(*b, offered, 1024);
      pressed = b->under_pressure(1);
    }
    const std::vector<std::uint32_t> got = take_all(*b);
    const record_buffer_statistics s = b->statistics();
    SCOPED_TRACE(name_of(policy));
    EXPECT_EQ(s.appended + s.policy.tail_drops, offered);
    ASSERT_FALSE(got.empty());
    switch (policy) {
      case exhaustion_policy::tail_drop:
        EXPECT_EQ(got.front(), 0u);
        EXPECT_NEAR(static_cast<double>(got.size()), 56, 8);
        EXPECT_GT(s.policy.tail_drops, 130u);
        break;
      case exhaustion_policy::head_drop:
        EXPECT_EQ(got.front(), s.policy.head_drops);
        EXPECT_GT(s.policy.head_drops, 120u);
        EXPECT_EQ(s.policy.tail_drops, 0u);
        break;
      case exhaustion_policy::expand:
        EXPECT_EQ(got.front(), 0u);
        EXPECT_NEAR(static_cast<double>(got.size()), 112, 16);
        EXPECT_EQ(s.policy.expansions, 1u);
        break;
      default:
        EXPECT_TRUE(pressed);
        EXPECT_EQ(got.size(), s.policy.refusals + 42);  // six of eight chunks of seven
        EXPECT_EQ(s.policy.raised, 1u);
        EXPECT_FALSE(b->under_pressure(1));
        EXPECT_EQ(b->statistics().policy.lowered, 1u);
    }
    // In order, with nothing missing but what was dropped.
    for (std::size_t i = 1; i < got.size(); ++i) ASSERT_EQ(got[i], got[i - 1] + 1);
    b->close();
    take_all(*b);
  }
}

TEST(RecordBuffer, BlockWaitsForRoom) {
  const auto b = small_buffer(exhaustion_policy::block);
  std::jthread producer([&] {
    for (std::uint32_t i = 0; i < 500; ++i) append(*b, i, 1024);
    b->close();
  });
  std::vector<std::uint32_t> all;
  while (!b->drained()) {
    std::this_thread::sleep_for(std::chrono::microseconds(200));
    for (const std::uint32_t n : take_all(*b)) all.push_back(n);
  }
  EXPECT_EQ(all.size(), 500u);
  EXPECT_EQ(b->statistics().policy.tail_drops, 0u);
}

TEST(RecordBuffer, AnAgeMakesItFullAsWell) {
  constexpr std::uint64_t second = 1'000'000'000;
  const auto tail = small_buffer(exhaustion_policy::tail_drop, 0, second);
  const auto head = small_buffer(exhaustion_policy::head_drop, 0, second);
  for (const auto* b : {&tail, &head}) {
    for (std::uint32_t i = 0; i < 8; ++i) append(**b, i, 1024, 1);  // one chunk is published
    for (std::uint32_t i = 8; i < 30; ++i) append(**b, i, 1024, 2 * second);  // too late for it
  }
  EXPECT_EQ(take_all(*tail).back(), 6u);
  EXPECT_EQ(tail->statistics().policy.tail_drops, 16u);
  EXPECT_EQ(take_all(*head).front(), 7u);
  EXPECT_EQ(head->statistics().policy.head_drops, 7u);
}

// What became of packets that came in bursts.
struct burst_account {
  std::uint64_t sent = 0;
  std::uint64_t taken = 0;             // in the chunks that the consumer had
  std::uint64_t left_with_sender = 0;  // at the most
  std::size_t bytes_max = 0;           // waiting in the queue
  exhaustion_statistics policy;
};

// Packets of 1 KiB come for 200 ms of each of three seconds, 10,000 a second, and are taken at 3 MB
// a second, one chunk after the other. Time is simulated.
burst_account record_bursts(exhaustion_policy policy, std::size_t bytes, std::size_t limit) {
  constexpr std::uint64_t second = 1'000'000'000;
  constexpr std::uint64_t between_ns = 100'000;
  constexpr double ns_per_byte = 1000.0 / 3;
  auto made = record_buffer::create({.bytes = bytes,
                                     .limit_bytes = limit,
                                     .chunk_bytes_max = 64 << 10,
                                     .packet_bytes_max = 1024,
                                     .when_full = policy});
  EXPECT_TRUE(made);
  record_buffer& b = **made;
  burst_account a;
  record_chunk* taken = nullptr;
  std::uint64_t free_at_ns = 0;
  std::uint64_t left = 0;
  const auto add = [&](std::uint64_t now_ns) {
    b.append(a.sent, 1024, 1024, 0, now_ns, [](std::byte* to) { std::memset(to, 1, 1024); });
  };
  for (std::uint64_t now_ns = 1; now_ns < 4 * second; now_ns += between_ns) {
    while (free_at_ns <= now_ns) {
      if (taken != nullptr) b.give_back(*taken);
      taken = b.try_take();
      if (taken == nullptr) break;
      a.taken += taken->packets;
      free_at_ns = std::max(free_at_ns, now_ns) +
                   static_cast<std::uint64_t>(static_cast<double>(taken->used) * ns_per_byte);
    }
    if (now_ns < 3 * second && now_ns % second < second / 5) {
      ++a.sent;
      ++left;
    }
    a.left_with_sender = std::max(a.left_with_sender, left);
    while (left != 0 && !b.under_pressure(now_ns)) {
      add(now_ns);
      --left;
    }
    b.tick(now_ns);
    const auto s = b.statistics();
    a.bytes_max = std::max(a.bytes_max, s.waiting_chunks * s.chunk_bytes);
  }
  if (taken != nullptr) b.give_back(*taken);
  EXPECT_EQ(left, 0u);
  a.policy = b.statistics().policy;
  return a;
}

TEST(RecordBuffer, BurstsAreHeldAsLongAsTheBufferDoes) {
  // Of the 2.11 MB of a burst 0.6 MB are taken while it comes, the rest before the next.
  constexpr std::size_t needed = 1'512'000;
  constexpr std::size_t enough = 1792 << 10;
  constexpr std::size_t little = 1 << 20;
  constexpr double lost = 3.0 * (needed - little) / 1056;
  for (const auto policy : {exhaustion_policy::tail_drop, exhaustion_policy::head_drop,
                            exhaustion_policy::expand, exhaustion_policy::back_pressure}) {
    SCOPED_TRACE(name_of(policy));
    if (policy != exhaustion_policy::back_pressure) {
      const burst_account held = record_bursts(policy, enough, enough);
      EXPECT_EQ(held.taken, held.sent);
      EXPECT_EQ(held.policy, exhaustion_statistics{});
      EXPECT_NEAR(static_cast<double>(held.bytes_max), needed, 128 << 10);
    }
    const burst_account a = record_bursts(policy, little, 2 * little);
    EXPECT_EQ(a.sent, 6000u);
    EXPECT_EQ(a.sent, a.taken + a.policy.tail_drops + a.policy.head_drops + a.policy.refusals);
    switch (policy) {
      case exhaustion_policy::tail_drop:
        EXPECT_NEAR(static_cast<double>(a.policy.tail_drops), lost, 400);
        break;
      case exhaustion_policy::head_drop:
        EXPECT_NEAR(static_cast<double>(a.policy.head_drops), lost, 400);
        break;
      case exhaustion_policy::expand:
        EXPECT_EQ(a.taken, a.sent);
        EXPECT_EQ(a.policy.expansions, 1u);
        EXPECT_GT(a.bytes_max, little);
        break;
      default:
        // Half of the buffer empties before the sender may go on, so more stays with it than is
        // lost else; it has to wait, and loses nothing.
        EXPECT_EQ(a.taken, a.sent);
        EXPECT_GT(a.left_with_sender, lost / 3);
        EXPECT_GE(a.policy.raised, 3u);
        EXPECT_EQ(a.policy.raised, a.policy.lowered);
    }
  }
}

}  // namespace
}  // namespace forebay
