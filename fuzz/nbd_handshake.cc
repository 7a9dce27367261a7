// The NBD handshake, by libFuzzer: what a client says from its first byte on. See
// forebay/serve/test_conversation.h, which the tests use as well; `make fuzz` runs it.
#include "forebay/serve/test_conversation.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static forebay::test_conversation conversation;
  conversation.run(forebay::test_conversation::beginning::none,
                   std::as_bytes(std::span(data, size)));
  return 0;
}
