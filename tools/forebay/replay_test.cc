// The simulator of `forebay replay`: what must hold of every policy on any load. (What each gives
// on known traces is in tests/replay_command.py.)

#include "tools/forebay/replay_simulate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <list>
#include <random>

#include "tools/forebay/line_plot.h"

namespace forebay::tool {
namespace {

// Some blocks often, many seldom, and a scan now and then.
replay_trace some_trace(unsigned seed) {
  constexpr std::uint32_t blocks = 300;
  std::mt19937 random(seed);
  replay_trace t{.name = "some", .requests = {}, .blocks = blocks};
  for (std::uint32_t b = 0; b < blocks; ++b) t.requests.push_back(b);
  for (int i = 0; i < 3000; ++i) {
    if (random() % 200 == 0) {
      const std::uint32_t from = random() % 200;
      for (std::uint32_t b = from; b < from + 100; ++b) t.requests.push_back(b);
    }
    t.requests.push_back(random() % 3 == 0 ? random() % blocks : random() % 20);
  }
  return t;
}

std::uint64_t plain_lru_misses(const replay_trace& t, std::size_t capacity) {
  std::list<std::uint32_t> list;
  std::uint64_t misses = 0;
  for (const std::uint32_t b : t.requests) {
    const auto at = std::ranges::find(list, b);
    if (at != list.end()) {
      list.erase(at);
    } else {
      ++misses;
      if (list.size() == capacity) list.pop_back();
    }
    list.push_front(b);
  }
  return misses;
}

TEST(replay, no_policy_beats_the_best_possible_or_misses_what_fits) {
  for (const unsigned seed : {1u, 2u}) {
    const replay_trace t = some_trace(seed);
    for (const std::uint32_t capacity : {1u, 2u, 3u, 7u, 30u, 150u, 299u}) {
      const std::uint64_t best = replay_misses(t, "belady", capacity);
      for (const replay_policy& p : replay_policies()) {
        const std::uint64_t misses = replay_misses(t, p.name, capacity);
        EXPECT_GE(misses, best) << p.name << " with " << capacity;
        EXPECT_LE(misses, t.requests.size());
      }
    }
    for (const replay_policy& p : replay_policies()) {
      EXPECT_EQ(replay_misses(t, p.name, t.blocks), t.blocks) << p.name;
    }
  }
}

TEST(replay, a_request_that_repeats_the_last_one_is_a_hit) {
  replay_trace t{.name = "twice", .requests = {}, .blocks = 50};
  for (std::uint32_t i = 0; i < 500; ++i) t.requests.insert(t.requests.end(), 2, i * 7 % 50);
  for (const replay_policy& p : replay_policies()) {
    for (const std::uint32_t capacity : {1u, 10u}) {
      EXPECT_LE(replay_misses(t, p.name, capacity), 500u) << p.name << " with " << capacity;
    }
  }
}

TEST(replay, exact_lru_is_exact) {
  const replay_trace t = some_trace(3);
  for (const std::uint32_t capacity : {1u, 10u, 100u}) {
    EXPECT_EQ(replay_misses(t, "exact-lru", capacity), plain_lru_misses(t, capacity));
  }
}

TEST(replay, the_same_trace_gives_the_same_figures) {
  const replay_trace t = some_trace(4);
  for (const replay_policy& p : replay_policies()) {
    EXPECT_EQ(replay_misses(t, p.name, 50), replay_misses(t, p.name, 50)) << p.name;
  }
}

TEST(line_plot, stands_one_below_the_other_and_counts_in_tenths) {
  const line_plot plot{.title = "a & b",
                       .x = {plot_axis::scale::decades, "blocks"},
                       .y = {plot_axis::scale::tenths, "ratio"},
                       .lines = {{.name = "l", .points = {{10, 0.5, "half"}, {1000, 0.31, ""}}}}};
  const std::vector<line_plot> two(2, plot);
  const std::string svg = plots_svg(two);
  EXPECT_NE(svg.find("height=\"960\""), std::string::npos);
  EXPECT_NE(svg.find("translate(0 480)"), std::string::npos);
  EXPECT_NE(svg.find("a &amp; b"), std::string::npos);
  EXPECT_NE(svg.find("<title>half</title>"), std::string::npos);
  EXPECT_NE(svg.find(">0.3</text>"), std::string::npos);
  EXPECT_NE(svg.find("M70.0 50.0L640.0 401.5"), std::string::npos) << svg;
  EXPECT_EQ(svg.find("nan"), std::string::npos);
}

}  // namespace
}  // namespace forebay::tool
