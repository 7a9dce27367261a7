// The NBD transmission phase, by libFuzzer: the first byte says which headers were settled, the
// others are requests. See forebay/serve/test_conversation.h, which the tests use as well; `make
// fuzz` runs it.
#include "forebay/serve/test_conversation.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using forebay::test_conversation;
  static test_conversation conversation;
  if (size == 0) return 0;
  const auto how =
      static_cast<test_conversation::beginning>(1 + data[0] % (test_conversation::beginnings - 1));
  conversation.run(how, std::as_bytes(std::span(data, size)).subspan(1));
  return 0;
}
