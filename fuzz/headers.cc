// Parsing of packet headers, by libFuzzer:
//
//   cmake --preset asan && cmake --build --preset asan --target fuzz_programs
//   build/asan/fuzz/headers -max_len=512 -max_total_time=60
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
