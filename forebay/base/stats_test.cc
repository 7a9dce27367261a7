#include "forebay/base/stats.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <set>
#include <thread>
#include <vector>

namespace forebay {
namespace {

// Values of all magnitudes, which a uniform choice would hardly ever give.
rc::Gen<std::uint64_t> any_magnitude() {
  return rc::gen::map(rc::gen::pair(rc::gen::inRange(0, 64), rc::gen::arbitrary<std::uint64_t>()),
                      [](const std::pair<int, std::uint64_t>& p) { return p.second >> p.first; });
}

TEST(Counter, AddsUpOverThreads) {
  counter c;
  EXPECT_EQ(c.value(), 0);
  std::vector<std::thread> threads;
  for (int t = 0; t < 20; ++t) {  // more than have a word of their own
    threads.emplace_back([&c] {
      for (int i = 0; i < 1000; ++i) c.add();
      c.add(-500);
      c.add(1'000'000'000'000);
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(c.value(), 20 * (1000 - 500 + 1'000'000'000'000));
}

// Threads that follow one another have the same words; what is counted when a thread's own objects
// go is counted too.
TEST(Counter, NothingIsLostWhenThreadsEnd) {
  struct counts_at_the_end {
    counter* to = nullptr;
    ~counts_at_the_end() {
      if (to != nullptr) to->add(1000);
    }
  };
  counter c;
  for (int t = 0; t < 40; ++t) {
    std::thread([&c, t] {
      thread_local counts_at_the_end last;
      if (t % 2 == 0) last.to = &c;  // made before or after the thread's first count
      c.add();
      last.to = &c;
    }).join();
  }
  EXPECT_EQ(c.value(), 40 * 1001);
}

TEST(Counter, ThreadNumbersStayAndDiffer) {
  const unsigned mine = thread_number();
  EXPECT_EQ(thread_number(), mine);
  std::set<unsigned> seen = {mine};
  for (int i = 0; i < 5; ++i) {
    std::thread([&seen] { seen.insert(thread_number()); }).join();
  }
  EXPECT_EQ(seen.size(), 6u);
}

TEST(Histogram, EveryBucketHoldsItsTopAndTheNextValueIsTheNextBucket) {
  for (unsigned b = 0; b < histogram::bucket_count; ++b) {
    const std::uint64_t top = histogram::bucket_top(b);
    ASSERT_EQ(histogram::bucket_of(top), b) << top;
    if (b + 1 < histogram::bucket_count) {
      ASSERT_EQ(histogram::bucket_of(top + 1), b + 1) << top + 1;
    } else {
      ASSERT_EQ(top, UINT64_MAX);
    }
  }
}

RC_GTEST_PROP(Histogram, ABucketsTopIsAtMostOneSixteenthAboveItsValues, ()) {
  const std::uint64_t value = *any_magnitude();
  const unsigned bucket = histogram::bucket_of(value);
  RC_ASSERT(bucket < histogram::bucket_count);
  const std::uint64_t top = histogram::bucket_top(bucket);
  RC_ASSERT(top >= value);
  RC_ASSERT(top - value <= value / 16);
}

RC_GTEST_PROP(Histogram, APercentileIsWithinOneSixteenthOfTheExactOne, ()) {
  auto values = *rc::gen::nonEmpty(rc::gen::container<std::vector<std::uint64_t>>(any_magnitude()));
  const double fraction = *rc::gen::inRange(0, 1001) / 1000.0;
  const auto h = std::make_unique<histogram>();
  for (const std::uint64_t v : values) h->record(v);
  RC_ASSERT(h->count() == values.size());

  std::sort(values.begin(), values.end());
  // The smallest value that at least this share does not exceed.
  const auto rank = static_cast<std::size_t>(
      std::max(1.0, std::ceil(fraction * static_cast<double>(values.size()))));
  const std::uint64_t exact = values[rank - 1];
  const std::uint64_t got = h->percentile(fraction);
  RC_ASSERT(got >= exact);
  RC_ASSERT(got - exact <= exact / 16);
}

TEST(Histogram, EmptyAndOutOfRangeQuestionsHaveAnswers) {
  histogram h;
  EXPECT_EQ(h.count(), 0u);
  EXPECT_EQ(h.percentile(0.5), 0u);
  h.record(7);
  h.record(9);
  EXPECT_EQ(h.percentile(-1.0), 7u);
  EXPECT_EQ(h.percentile(0.0), 7u);
  EXPECT_EQ(h.percentile(0.5), 7u);
  EXPECT_EQ(h.percentile(1.0), 9u);
  EXPECT_EQ(h.percentile(2.0), 9u);
  EXPECT_EQ(h.percentile(std::numeric_limits<double>::quiet_NaN()), 7u);
}

RC_GTEST_PROP(Histogram, MergingIsRecordingBoth, ()) {
  const auto values = rc::gen::container<std::vector<std::uint64_t>>(any_magnitude());
  const auto left = std::make_unique<histogram>();
  const auto right = std::make_unique<histogram>();
  const auto both = std::make_unique<histogram>();
  for (const std::uint64_t v : *values) left->record(v), both->record(v);
  for (const std::uint64_t v : *values) right->record(v), both->record(v);
  const std::uint64_t right_count = right->count();
  left->merge(*right);
  RC_ASSERT(left->count() == both->count());
  RC_ASSERT(right->count() == right_count);
  for (const double f : {0.0, 0.1, 0.5, 0.9, 0.99, 1.0}) {
    RC_ASSERT(left->percentile(f) == both->percentile(f));
  }
}

TEST(Histogram, ThreadsRecordTogetherWhileOneReads) {
  histogram h;
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 2; ++t) {
    threads.emplace_back([&h, t] {
      for (unsigned i = 0; i < 20'000; ++i) h.record(i * 2 + t);
    });
  }
  std::uint64_t before = 0;
  for (int i = 0; i < 50; ++i) {
    const std::uint64_t now = h.count();
    EXPECT_GE(now, before);
    EXPECT_LE(h.percentile(1.0), 40'000u + 40'000u / 16);
    before = now;
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(h.count(), 40'000u);
}

}  // namespace
}  // namespace forebay
