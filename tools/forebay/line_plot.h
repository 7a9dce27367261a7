// Pictures of lines over two axes, as SVG.
#pragma once

#include <span>
#include <string>
#include <vector>

namespace forebay::tool {

struct plot_axis {
  enum class scale {
    powers_of_two,  // from 1
    decades,
    tenths,  // linear, in steps of 0.1
  };
  scale kind;
  std::string label;
};

struct plot_point {
  double x = 0;  // above 0 on all but tenths, as is y
  double y = 0;
  std::string note;  // shown by a pointer above it
};

struct plot_line {
  std::string name;
  bool peer = false;  // drawn thinner, with dashes
  std::vector<plot_point> points;
};

struct line_plot {
  std::string title;
  plot_axis x;
  plot_axis y;
  std::vector<plot_line> lines;
};

// An SVG document with the pictures one below the other. Lines without points are left out; if none
// are left the picture says so.
std::string plots_svg(std::span<const line_plot> plots);

}  // namespace forebay::tool
