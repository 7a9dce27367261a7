#include "tools/forebay/burst_plot.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace forebay::tool {
namespace {

using testing::HasSubstr;
using testing::Not;

// A coordinate that is no number.
const auto has_no_place = testing::ContainsRegex("[M\" L]-?(nan|inf)");

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t n = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

TEST(burst_plot, has_a_line_and_a_mark_for_each_point) {
  const std::string svg = burst_svg({
      {.name = "ours", .points = {{1, 30}, {2, 17}, {256, 0.9}}},
      {.name = "a <peer> & co", .peer = true, .points = {{1, 70}, {256, 0.8}}},
  });
  EXPECT_EQ(svg.find("<svg "), 0u);
  EXPECT_THAT(svg, HasSubstr("</svg>"));
  EXPECT_EQ(count(svg, "<circle "), 5u);
  EXPECT_EQ(count(svg, "class=\"ours\""), 2u);  // the line, and the one beside its name
  EXPECT_EQ(count(svg, "class=\"peer\""), 2u);
  EXPECT_THAT(svg, HasSubstr("a &lt;peer&gt; &amp; co"));
  EXPECT_THAT(svg, HasSubstr("by 256: 0.90 ns"));
  EXPECT_THAT(svg, HasSubstr(">256</text>"));
  EXPECT_THAT(svg, HasSubstr(">0.1</text>"));  // decades around what was measured
  EXPECT_THAT(svg, HasSubstr(">100</text>"));
  EXPECT_THAT(svg, Not(has_no_place));
  EXPECT_LT(svg.find("a &lt;peer"), svg.find(">ours<"));  // the dearest first
}

TEST(burst_plot, dearer_is_higher_and_more_is_further_right) {
  const std::string svg = burst_svg({{.name = "x", .points = {{1, 100}, {4, 10}, {16, 1}}}});
  // left and top; the middle of both; right and bottom
  EXPECT_THAT(svg, HasSubstr("M70.0 50.0L355.0 235.0L640.0 420.0"));
}

TEST(burst_plot, one_value_or_none_is_no_trouble) {
  EXPECT_THAT(burst_svg({{.name = "x", .points = {{1, 10}}}}), Not(has_no_place));
  EXPECT_THAT(burst_svg({}), HasSubstr("nothing was measured"));
  EXPECT_THAT(burst_svg({{.name = "empty", .points = {}}}), Not(HasSubstr("empty")));
}

}  // namespace
}  // namespace forebay::tool
