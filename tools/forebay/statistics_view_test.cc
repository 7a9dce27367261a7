// What the tools make of two looks at a server's statistics.
//
// One thread: all of it is arithmetic.

#include "tools/forebay/statistics_view.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace forebay::tool {
namespace {

using json = nlohmann::ordered_json;

json looks(const char* buckets) { return {{"latency_ns", json::parse(buckets)}}; }

TEST(statistics_view, percentiles_are_those_of_the_time_between) {
  const json before = looks("[[1000,500],[8000,10]]");
  const json after = looks("[[1000,500],[2000,98],[8000,11],[90000,1]]");
  EXPECT_EQ(percentile_between(before, after, 0.5), 2);
  EXPECT_EQ(percentile_between(before, after, 0.98), 2);
  EXPECT_EQ(percentile_between(before, after, 0.99), 8);
  EXPECT_EQ(percentile_between(before, after, 0.999), 90);
  EXPECT_EQ(percentile_between(looks("[]"), after, 0.5), 1);
  EXPECT_EQ(percentile_between(after, after, 0.99), 0);
  EXPECT_EQ(percentile_between(looks("[]"), looks("[]"), 0.5), 0);
}

TEST(statistics_view, figures_are_short) {
  const std::pair<double, const char*> counts[] = {
      {0, "0"},           {999.4, "999"},  {999.6, "1.00k"},   {12'345, "12.3k"},
      {999'600, "1.00M"}, {456e6, "456M"}, {7.891e9, "7.89G"}, {5e15, "5000T"}};
  for (const auto& [n, text] : counts) EXPECT_EQ(short_count(n), text);
  const std::pair<double, const char*> latencies[] = {
      {0, "-"}, {0.95, "950 ns"}, {12.34, "12.3 us"}, {4560, "4.56 ms"}, {2.5e6, "2.5 s"}};
  for (const auto& [us, text] : latencies) EXPECT_EQ(latency(us), text);
}

}  // namespace
}  // namespace forebay::tool
