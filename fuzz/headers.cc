// Parsing of packet headers, by libFuzzer:
//
//   make fuzz FUZZ=headers FUZZ_SECONDS=60
//
// What must hold is in forebay/net/test_headers.h, of which the tests run a short part as well.
#include <cstddef>
#include <cstdint>
#include <span>

#include "forebay/net/test_headers.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  forebay::check_parsing(std::as_bytes(std::span(data, size)));
  return 0;
}
