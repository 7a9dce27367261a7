#include "sim/explorer/choices.h"

namespace forebay::explorer {
namespace {

constexpr std::string_view letters =
    "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";

}  // namespace

std::string choices::text() const {
  std::string s;
  for (std::size_t i = 0; i < at_; ++i) {
    unsigned answer = taken_[i].answer;
    for (; answer >= letters.size(); answer -= static_cast<unsigned>(letters.size())) s += '+';
    s += letters[answer];
  }
  s.erase(s.find_last_not_of('0') + 1);
  return s;
}

void choices::replay(std::string_view text) {
  clear();
  std::size_t more = 0;
  for (const char c : text) {
    if (c == '+') {
      more += letters.size();
      continue;
    }
    taken_.push_back({static_cast<std::uint8_t>(more + letters.find(c)), UINT8_MAX});
    more = 0;
  }
}

}  // namespace forebay::explorer
