#include "tools/forebay/burst_plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

namespace forebay::tool {
namespace {

constexpr double width = 860;
constexpr double height = 480;
constexpr double left = 70;
constexpr double right = 220;  // for the names
constexpr double top = 50;
constexpr double bottom = 60;

// Told apart with the common kinds of colour blindness (Okabe and Ito 2008).
constexpr std::array<const char*, 7> colours = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                                "#56b4e9", "#e69f00", "#000000"};

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

// From what is measured to where it is drawn: powers of two on the way right, of ten on the way up.
struct scale {
  double batch_max = 2;
  double ns_min = 1;
  double ns_max = 10;

  double x(double batch) const {
    return left + (width - left - right) * std::log2(batch) / std::log2(batch_max);
  }
  double y(double ns) const {
    return height - bottom -
           (height - top - bottom) * std::log10(ns / ns_min) / std::log10(ns_max / ns_min);
  }
};

scale scale_of(const std::vector<burst_line>& lines) {
  scale s;
  double low = HUGE_VAL;
  double high = 0;
  for (const burst_line& line : lines) {
    for (const burst_point& p : line.points) {
      s.batch_max = std::max(s.batch_max, static_cast<double>(p.batch));
      low = std::min(low, p.ns);
      high = std::max(high, p.ns);
    }
  }
  if (high == 0) return s;
  s.ns_min = std::pow(10, std::floor(std::log10(low)));
  s.ns_max = std::pow(10, std::ceil(std::log10(high)));
  if (s.ns_max <= s.ns_min) s.ns_max = 10 * s.ns_min;
  return s;
}

std::string grid(const scale& s) {
  std::string out;
  const auto decades = std::lround(std::log10(s.ns_max / s.ns_min));
  for (long decade = 0; decade <= decades; ++decade) {
    for (const int step : {1, 2, 5}) {
      if (decade == decades && step > 1) break;
      const double at = s.ns_min * std::pow(10, decade) * step;
      out += fmt::format(
          "<path class=\"grid\" d=\"M{:.1f} {:.1f}H{:.1f}\"/>"
          "<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"end\">{:g}</text>\n",
          left, s.y(at), width - right, left - 8, s.y(at) + 4, at);
    }
  }
  for (int power = 0; std::ldexp(1, power) <= s.batch_max; ++power) {
    const double batch = std::ldexp(1, power);
    out += fmt::format(
        "<path class=\"grid\" d=\"M{:.1f} {:.1f}V{:.1f}\"/>"
        "<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{:g}</text>\n",
        s.x(batch), top, height - bottom, s.x(batch), height - bottom + 20, batch);
  }
  out += fmt::format(
      "<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">items a call</text>\n"
      "<text x=\"{:.1f}\" y=\"30\">nanoseconds an item</text>\n",
      (left + width - right) / 2, height - 15, left - 50);
  return out;
}

std::string drawn(const burst_line& line, const scale& s, std::size_t index) {
  const char* const colour = colours[index % colours.size()];
  std::string path;
  std::string marks;
  for (const burst_point& p : line.points) {
    const double x = s.x(p.batch);
    const double y = s.y(p.ns);
    path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : "L", x, y);
    marks += fmt::format(
        "<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"{}\" fill=\"{}\"><title>{}, by {}: {:.2f} "
        "ns</title></circle>\n",
        x, y, line.peer ? 2.5 : 3.5, colour, escaped(line.name), p.batch, p.ns);
  }
  return fmt::format("<path class=\"{}\" stroke=\"{}\" d=\"{}\"/>\n{}", line.peer ? "peer" : "ours",
                     colour, path, marks);
}

// One below the other, the dearest first, as the lines begin.
std::string legend(const std::vector<burst_line>& lines) {
  std::string out;
  double y = top + 10;
  for (std::size_t i = 0; i < lines.size(); ++i, y += 22) {
    out += fmt::format(
        "<path class=\"{}\" stroke=\"{}\" d=\"M{:.1f} {:.1f}h28\"/>"
        "<text x=\"{:.1f}\" y=\"{:.1f}\">{}</text>\n",
        lines[i].peer ? "peer" : "ours", colours[i % colours.size()], width - right + 20, y,
        width - right + 56, y + 4, escaped(lines[i].name));
  }
  return out;
}

}  // namespace

std::string burst_svg(const std::vector<burst_line>& all) {
  std::vector<burst_line> lines;
  std::ranges::copy_if(all, std::back_inserter(lines),
                       [](const burst_line& l) { return !l.points.empty(); });
  std::ranges::sort(lines, [](const burst_line& a, const burst_line& b) {
    const double of_a = a.points.front().ns;
    const double of_b = b.points.front().ns;
    return of_a != of_b ? of_a > of_b : a.name < b.name;
  });
  std::string out = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:g}\" height=\"{1:g}\" "
      "viewBox=\"0 0 {0:g} {1:g}\" font-family=\"sans-serif\" font-size=\"13\">\n"
      "<title>The cost of an item by the batch</title>\n"
      "<style>.grid{{stroke:#ddd;fill:none}}.ours{{stroke-width:2.5;fill:none}}"
      ".peer{{stroke-width:1.3;fill:none;stroke-dasharray:5 3}}</style>\n"
      "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
      width, height);
  if (lines.empty()) {
    out += fmt::format("<text x=\"{:g}\" y=\"{:g}\">nothing was measured</text>\n", left, top);
  } else {
    const scale s = scale_of(lines);
    out += grid(s);
    for (std::size_t i = 0; i < lines.size(); ++i) out += drawn(lines[i], s, i);
    out += legend(lines);
  }
  return out + "</svg>\n";
}

}  // namespace forebay::tool
