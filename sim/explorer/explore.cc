#include "sim/explorer/explore.h"

#include <cxxabi.h>

#include <cstdlib>
#include <memory>

namespace forebay::explorer {

const char* name_of(const char* mangled) {
  int status = 0;
  char* const name = abi::__cxa_demangle(mangled, nullptr, nullptr, &status);
  return status == 0 ? name : mangled;  // kept as long as the process, as the program is
}

outcome explore(const program& p, const options& opts, site_table* sites) {
  static const std::unique_ptr<engine> one = std::make_unique<engine>();
  return one->explore(p, opts, sites);
}

}  // namespace forebay::explorer
