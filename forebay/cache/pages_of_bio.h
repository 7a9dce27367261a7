// What a bio transfers, page by page: for the ends of reads and of write-back.
#pragma once

#include <algorithm>

#include "forebay/cache/address_space.h"

namespace forebay {

template <typename F>
void address_space::for_each_page(const bio& b, F f) noexcept {
  std::uint64_t offset = b.offset_bytes;
  for (const iovec& s : b.used_segments()) {
    auto* data = static_cast<std::byte*>(s.iov_base);
    for (std::size_t left = s.iov_len; left != 0;) {
      page& p = page_at(data, offset);
      const std::size_t from = offset - p.offset_bytes();
      const std::size_t n = std::min(left, p.bytes() - from);
      f(p, from, from + n);
      data += n;
      offset += n;
      left -= n;
    }
  }
}

}  // namespace forebay
