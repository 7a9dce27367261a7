// What must hold of parse_headers() whatever the bytes are: for the tests, and for fuzz/headers.cc.
#pragma once

#include <memory>

#include "forebay/base/assert.h"
#include "forebay/net/checksum.h"
#include "forebay/net/headers.h"
#include "forebay/net/packet_pool.h"

namespace forebay {

// Nothing is said to lie behind the end, wherever the packet's own end and that of its first part
// are. The bytes are copied to memory of just their size, so that the address sanitizer sees a look
// behind them.
inline void check_parsing(std::span<const std::byte> bytes) {
  const std::unique_ptr<std::byte[]> exact(new std::byte[bytes.size()]);
  std::ranges::copy(bytes, exact.get());
  const std::span<const std::byte> all(exact.get(), bytes.size());
  const auto h = parse_headers(all, all.size());
  if (!h) {
    FOREBAY_ASSERT(h.error() == std::errc::bad_message);
  } else {
    FOREBAY_ASSERT(h->end <= all.size() && h->payload_offset <= h->end);
    FOREBAY_ASSERT(h->network_offset <= h->payload_offset);
    FOREBAY_ASSERT(h->transport_offset <= h->payload_offset);
    FOREBAY_ASSERT((h->transport == transport_kind::none) == (h->transport_offset == 0));
  }
  // With less in the first part the answer is the same, or that more is needed.
  const auto half = parse_headers(all.first(all.size() / 2), all.size());
  if (half) {
    FOREBAY_ASSERT(h && half->payload_offset == h->payload_offset && half->end == h->end);
  } else if (half.error() != std::errc::no_message_available) {
    FOREBAY_ASSERT(!h);
  }
}

// A packet with these bytes, which fit.
inline packet packet_of(packet_pool& pool, std::span<const std::byte> bytes) {
  packet p = pool.try_allocate();
  std::ranges::copy(bytes, *p->put(bytes.size()));
  return p;
}

}  // namespace forebay
