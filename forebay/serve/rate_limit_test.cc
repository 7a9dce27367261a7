// One thread: the clock is the test's own, and nothing waits.
#include "forebay/serve/rate_limit.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <deque>
#include <vector>

#include "forebay/serve/export_limits.h"

namespace forebay {
namespace {

constexpr std::uint64_t second = 1'000'000'000;
constexpr std::uint64_t first_ns = 1000 * second;  // of the test's clock

TEST(RateLimit, WithoutOneNobodyWaits) {
  rate_limit limit;
  EXPECT_FALSE(limit.applies());
  for (int i = 0; i < 100; ++i) {
    rate_limit::place p{.bytes = 1u << 30};
    EXPECT_EQ(limit.ask(p, first_ns), 0u);
  }
  EXPECT_EQ(limit.statistics().throttled, 0u);
}

TEST(RateLimit, ABurstAndThenTheRate) {
  rate_limit limit;
  limit.set({.requests_per_s = 100, .burst_ns = second / 10});
  EXPECT_TRUE(limit.applies());
  // 10 of the burst, and the one that takes it over.
  for (int i = 0; i < 11; ++i) {
    rate_limit::place p;
    EXPECT_EQ(limit.ask(p, first_ns), 0u) << i;
  }
  rate_limit::place a;
  rate_limit::place b;
  EXPECT_EQ(limit.ask(a, first_ns), second / 100);
  EXPECT_EQ(limit.ask(b, first_ns), second / 50);
  EXPECT_EQ(limit.statistics().waiting, 2u);
  // Who comes later does not come first.
  rate_limit::place c;
  EXPECT_EQ(limit.ask(c, first_ns + second / 100), second / 50);
  EXPECT_EQ(limit.ask(a, first_ns + second / 100), 0u);
  EXPECT_EQ(limit.ask(b, first_ns + second / 100), second / 100);
  EXPECT_EQ(limit.statistics().throttled, 3u);
  EXPECT_EQ(limit.statistics().waiting, 2u);
  EXPECT_EQ(limit.statistics().waited_ns, second / 100);
}

TEST(RateLimit, APlaceThatIsLeftIsForWhoComesNext) {
  rate_limit limit;
  limit.set({.bytes_per_s = 1u << 20, .burst_ns = 0});
  rate_limit::place first{.bytes = 1u << 20};
  EXPECT_EQ(limit.ask(first, first_ns), 0u);
  rate_limit::place gone{.bytes = 64u << 20};
  EXPECT_NE(limit.ask(gone, first_ns), 0u);
  limit.leave(gone, first_ns + second / 2);
  EXPECT_EQ(limit.statistics().waiting, 0u);
  rate_limit::place next{.bytes = 4096};
  EXPECT_NE(limit.ask(next, first_ns + second - 1), 0u);
  EXPECT_EQ(limit.ask(next, first_ns + second), 0u);
}

TEST(RateLimit, OtherLimitsHoldForThoseWhoWait) {
  rate_limit limit;
  limit.set({.requests_per_s = 1, .burst_ns = 0});
  rate_limit::place p;
  EXPECT_EQ(limit.ask(p, first_ns), 0u);
  rate_limit::place a;
  rate_limit::place b;
  EXPECT_EQ(limit.ask(a, first_ns), rate_limit::look_again_ns);
  EXPECT_EQ(limit.ask(b, first_ns), rate_limit::look_again_ns);
  limit.set({.requests_per_s = 1000, .burst_ns = 0});
  EXPECT_EQ(limit.ask(a, first_ns + 1), 0u);
  EXPECT_EQ(limit.ask(b, first_ns + 1), second / 1000);
  limit.set({});
  EXPECT_FALSE(limit.applies());
  EXPECT_EQ(limit.ask(b, first_ns + 2), 0u);
  EXPECT_EQ(limit.statistics().waiting, 0u);
}

struct begun {
  std::uint64_t at_ns;
  std::uint64_t bytes;
};

// From any request to any later one: all between them, without the last.
void expect_within(const std::vector<begun>& all, const rate_limits& l) {
  for (std::size_t from = 0; from < all.size(); ++from) {
    double bytes = 0;
    for (std::size_t to = from; to < all.size(); ++to) {
      const double w = static_cast<double>(all[to].at_ns - all[from].at_ns + l.burst_ns) / 1e9;
      if (l.requests_per_s != 0) {
        RC_ASSERT(static_cast<double>(to - from) <=
                  w * static_cast<double>(l.requests_per_s) + 1e-6);
      }
      if (l.bytes_per_s != 0) RC_ASSERT(bytes <= w * static_cast<double>(l.bytes_per_s) + 1e-3);
      bytes += static_cast<double>(all[to].bytes);
    }
  }
}

RC_GTEST_PROP(RateLimit, NoTimeHasMoreThanItsRateAndTheBurst, ()) {
  const rate_limits l{
      .requests_per_s = *rc::gen::element<std::uint64_t>(0, 1, 7, 1000, 300'000),
      .bytes_per_s = *rc::gen::element<std::uint64_t>(0, 64u << 10, 1'000'000, 3ull << 30),
      .burst_ns = *rc::gen::element<std::uint64_t>(0, 1000, second / 10, 3 * second)};
  rate_limit limit;
  limit.set(l);
  std::uint64_t now = first_ns;
  std::deque<rate_limit::place> waiting;
  std::vector<begun> all;
  const auto ask = [&](rate_limit::place& p) {
    const std::uint64_t bytes = p.bytes;
    const std::uint64_t ns = limit.ask(p, now);
    RC_ASSERT(ns <= rate_limit::look_again_ns);
    if (ns == 0) all.push_back({now, bytes});
    return ns == 0;
  };
  const auto steps = *rc::gen::inRange(1, 60);
  for (int i = 0; i < steps; ++i) {
    if (*rc::gen::arbitrary<bool>()) {
      rate_limit::place p{.bytes = *rc::gen::element<std::uint64_t>(0, 512, 4096, 1u << 20)};
      if (!ask(p)) waiting.push_back(p);
    } else {
      // Those who wait look in time.
      now += *rc::gen::element<std::uint64_t>(0, 1, 1000, second / 50, 2 * second);
      if (!waiting.empty()) now = std::min(now, waiting.front().start_ns);
    }
    std::erase_if(waiting, ask);
  }
  // Nobody waits for more than what was asked for before him takes.
  while (!waiting.empty()) {
    now = std::max(now, waiting.front().start_ns);
    const std::size_t before = waiting.size();
    std::erase_if(waiting, ask);
    RC_ASSERT(waiting.size() < before);
  }
  RC_ASSERT(limit.statistics().waiting == 0u);
  expect_within(all, l);
}

TEST(ExportLimits, AreReadAsTheyAreWritten) {
  const auto read = [](std::string_view text) {
    export_limits out;
    EXPECT_EQ(read_limits(text, out), "") << text;
    return out;
  };
  const export_limits all = read("iops=5000,bytes=20M,burst=0.25");
  EXPECT_FALSE(all.name);
  EXPECT_EQ(all.requests_per_s, 5000u);
  EXPECT_EQ(all.bytes_per_s, 20u << 20);
  EXPECT_EQ(all.burst_ns, second / 4);
  EXPECT_FALSE(all.memory_bytes);
  EXPECT_EQ(read("memory=4M").memory_bytes, 4u << 20);
  EXPECT_EQ(read("memory=0").memory_bytes, UINT64_MAX);
  EXPECT_EQ(read("a:b.img:iops=0").name, "a:b.img");
  EXPECT_EQ(read(":iops=1").name, "");
  const rate_limits over = read("iops=7").over({.requests_per_s = 1, .bytes_per_s = 1u << 20});
  EXPECT_EQ(over.requests_per_s, 7u);
  EXPECT_EQ(over.bytes_per_s, 1u << 20);
  for (const char* text :
       {"", ":", "a:", "iops", "iops=", "iops=x", "iops=-1", "iops=2G", "bytes=1K", "bytes=99T",
        "bytes=99999999999999T", "burst=-1", "burst=nan", "burst=1e9", "speed=1",
        "memory=", "memory=3M", "iops=1,", "iops=1,,bytes=1M"}) {
    export_limits out;
    EXPECT_NE(read_limits(text, out), "") << text;
  }
}

}  // namespace
}  // namespace forebay
