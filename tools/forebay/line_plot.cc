#include "tools/forebay/line_plot.h"

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

// From what is measured to where it is drawn, along one axis.
class ruler {
 public:
  ruler(plot_axis::scale kind, const std::vector<plot_line>& lines, double plot_point::* member)
      : kind_(kind) {
    double low = HUGE_VAL;
    double high = -HUGE_VAL;
    for (const plot_line& line : lines) {
      for (const plot_point& p : line.points) {
        low = std::min(low, p.*member);
        high = std::max(high, p.*member);
      }
    }
    switch (kind) {
      case plot_axis::scale::powers_of_two:
        low_ = 1;
        high_ = std::max(2.0, high);
        break;
      case plot_axis::scale::decades:
        low_ = std::pow(10, std::floor(std::log10(low)));
        high_ = std::max(std::pow(10, std::ceil(std::log10(high))), 10 * low_);
        break;
      case plot_axis::scale::tenths:
        low_ = std::floor(low * 10) / 10;
        high_ = std::max(std::ceil(high * 10) / 10, low_ + 0.1);
        break;
    }
  }

  // 0 at the low end, 1 at the high one.
  double at(double value) const {
    if (kind_ == plot_axis::scale::tenths) return (value - low_) / (high_ - low_);
    return std::log(value / low_) / std::log(high_ / low_);
  }

  std::vector<double> ticks() const {
    std::vector<double> out;
    switch (kind_) {
      case plot_axis::scale::powers_of_two:
        for (int power = 0; std::ldexp(1, power) <= high_; ++power) {
          out.push_back(std::ldexp(1, power));
        }
        break;
      case plot_axis::scale::decades:
        for (long decade = 0; decade <= std::lround(std::log10(high_ / low_)); ++decade) {
          for (const int step : {1, 2, 5}) out.push_back(low_ * std::pow(10, decade) * step);
        }
        while (out.back() > high_ * 1.5) out.pop_back();
        break;
      case plot_axis::scale::tenths:
        for (long i = 0; i <= std::lround((high_ - low_) * 10); ++i) {
          out.push_back(low_ + static_cast<double>(i) / 10);
        }
        break;
    }
    return out;
  }

 private:
  plot_axis::scale kind_;
  double low_;
  double high_;
};

struct frame {
  ruler x;
  ruler y;

  double across(double value) const { return left + (width - left - right) * x.at(value); }
  double up(double value) const { return height - bottom - (height - top - bottom) * y.at(value); }
};

std::string grid(const line_plot& plot, const frame& f) {
  std::string out;
  for (const double at : f.y.ticks()) {
    out += fmt::format(
        "<path class=\"grid\" d=\"M{:.1f} {:.1f}H{:.1f}\"/>"
        "<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"end\">{:g}</text>\n",
        left, f.up(at), width - right, left - 8, f.up(at) + 4, at);
  }
  for (const double at : f.x.ticks()) {
    out += fmt::format(
        "<path class=\"grid\" d=\"M{:.1f} {:.1f}V{:.1f}\"/>"
        "<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{:g}</text>\n",
        f.across(at), top, height - bottom, f.across(at), height - bottom + 20, at);
  }
  out += fmt::format(
      "<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}</text>\n"
      "<text x=\"{:.1f}\" y=\"30\">{}</text>\n",
      (left + width - right) / 2, height - 15, escaped(plot.x.label), left - 50,
      escaped(plot.y.label));
  return out;
}

std::string drawn(const plot_line& line, const frame& f, std::size_t index) {
  const char* const colour = colours[index % colours.size()];
  std::string path;
  std::string marks;
  for (const plot_point& p : line.points) {
    const double x = f.across(p.x);
    const double y = f.up(p.y);
    path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : "L", x, y);
    marks += fmt::format(
        "<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"{}\" fill=\"{}\"><title>{}</title></circle>\n", x,
        y, line.peer ? 2.5 : 3.5, colour, escaped(p.note));
  }
  return fmt::format("<path class=\"{}\" stroke=\"{}\" d=\"{}\"/>\n{}", line.peer ? "peer" : "ours",
                     colour, path, marks);
}

std::string legend(const std::vector<plot_line>& lines) {
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

std::string picture(line_plot plot, std::size_t number) {
  std::erase_if(plot.lines, [](const plot_line& l) { return l.points.empty(); });
  std::string out = fmt::format("<g transform=\"translate(0 {:g})\">\n<title>{}</title>\n",
                                static_cast<double>(number) * height, escaped(plot.title));
  if (plot.lines.empty()) {
    out += fmt::format("<text x=\"{:g}\" y=\"{:g}\">nothing was measured</text>\n", left, top);
  } else {
    const frame f{{plot.x.kind, plot.lines, &plot_point::x},
                  {plot.y.kind, plot.lines, &plot_point::y}};
    out += grid(plot, f);
    for (std::size_t i = 0; i < plot.lines.size(); ++i) out += drawn(plot.lines[i], f, i);
    out += legend(plot.lines);
  }
  return out + "</g>\n";
}

}  // namespace

std::string plots_svg(std::span<const line_plot> plots) {
  std::string out = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:g}\" height=\"{1:g}\" "
      "viewBox=\"0 0 {0:g} {1:g}\" font-family=\"sans-serif\" font-size=\"13\">\n"
      "<style>.grid{{stroke:#ddd;fill:none}}.ours{{stroke-width:2.5;fill:none}}"
      ".peer{{stroke-width:1.3;fill:none;stroke-dasharray:5 3}}</style>\n"
      "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
      width, height * static_cast<double>(std::max<std::size_t>(plots.size(), 1)));
  for (std::size_t i = 0; i < plots.size(); ++i) out += picture(plots[i], i);
  return out + "</svg>\n";
}

}  // namespace forebay::tool
