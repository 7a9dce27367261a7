// Virtqueues over memory of which every byte is a guest's, by libFuzzer:
//
//   make fuzz FUZZ=virtqueue FUZZ_SECONDS=60
//
// What must hold is in forebay/serve/test_virtqueue.h, of which the tests run a short part as well.
#include <cstddef>
#include <cstdint>
#include <span>

#include "forebay/serve/test_virtqueue.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static forebay::hostile_guest guest;
  guest.serve({data, size});
  return 0;
}
