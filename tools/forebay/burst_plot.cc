#include "tools/forebay/burst_plot.h"

#include <fmt/format.h>

#include <algorithm>

#include "tools/forebay/line_plot.h"

namespace forebay::tool {

std::string burst_svg(const std::vector<burst_line>& all) {
  line_plot plot{.title = "The cost of an item by the batch",
                 .x = {plot_axis::scale::powers_of_two, "items a call"},
                 .y = {plot_axis::scale::decades, "nanoseconds an item"},
                 .lines = {}};
  for (const burst_line& line : all) {
    if (line.points.empty()) continue;
    plot_line drawn{.name = line.name, .peer = line.peer, .points = {}};
    for (const burst_point& p : line.points) {
      drawn.points.push_back({static_cast<double>(p.batch), p.ns,
                              fmt::format("{}, by {}: {:.2f} ns", line.name, p.batch, p.ns)});
    }
    plot.lines.push_back(std::move(drawn));
  }
  // The dearest first, as the lines begin.
  std::ranges::sort(plot.lines, [](const plot_line& a, const plot_line& b) {
    const double of_a = a.points.front().y;
    const double of_b = b.points.front().y;
    return of_a != of_b ? of_a > of_b : a.name < b.name;
  });
  return plots_svg({&plot, 1});
}

}  // namespace forebay::tool
