#include "forebay/base/debug_names.h"

#include <algorithm>
#include <cstdlib>

namespace forebay {

bool named_in_environment(const char* variable, std::string_view name) noexcept {
  const char* const text = std::getenv(variable);
  if (text == nullptr) return false;
  for (std::string_view rest = text; !rest.empty();) {
    const std::string_view word = rest.substr(0, rest.find(','));
    if (word == "*" || word == "all" || word == "1" || word == name) return true;
    rest.remove_prefix(std::min(rest.size(), word.size() + 1));
  }
  return false;
}

}  // namespace forebay
