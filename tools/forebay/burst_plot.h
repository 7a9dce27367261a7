// The picture of `forebay bench burst`: what an item costs by the batch, one line for each subject.
#pragma once

#include <string>
#include <vector>

namespace forebay::tool {

struct burst_point {
  unsigned batch = 0;  // items a call, above 0
  double ns = 0;       // an item, above 0
};

struct burst_line {
  std::string name;
  bool peer = false;  // drawn thinner, with dashes
  std::vector<burst_point> points;
};

// An SVG document, both axes logarithmic. Lines without points are left out; if none are left the
// picture says so.
std::string burst_svg(const std::vector<burst_line>& all);

}  // namespace forebay::tool
