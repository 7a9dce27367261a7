// The head of a warm store's file, of which every word may be anything, by libFuzzer:
//
//   make fuzz FUZZ=warm_file FUZZ_SECONDS=60
//
// What must hold is in forebay/cache/test_warm_file.h, of which the tests run a short part as well.
#include <cstddef>
#include <cstdint>

#include "forebay/cache/test_warm_file.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static forebay::hostile_warm_file file;
  file.serve({data, size});
  return 0;
}
