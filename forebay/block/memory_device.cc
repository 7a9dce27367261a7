#include "forebay/block/memory_device.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

namespace forebay {

memory_device::memory_device(std::uint64_t size_bytes, std::uint32_t logical_block_bytes) {
  if (size_bytes != 0) {
    auto mapped = memory_source::system().map({.bytes = size_bytes});
    if (!mapped) throw std::bad_alloc();
    memory_ = std::move(*mapped);
  }
  limits_.size_bytes = size_bytes;
  limits_.logical_block_bytes = logical_block_bytes;
}

void memory_device::submit(bio& b) noexcept {
  if (const std::int32_t bad = check_bio(b, limits_); bad != 0) return complete(b, bad);
  {
    const scoped_lock hold(lock_);
    std::byte* at = memory_.data() + b.offset_bytes;
    switch (b.op) {
      case bio_op::read:
        for (const iovec& s : b.used_segments()) {
          std::memcpy(s.iov_base, at, s.iov_len);
          at += s.iov_len;
        }
        break;
      case bio_op::write:
        for (const iovec& s : b.used_segments()) {
          std::memcpy(at, s.iov_base, s.iov_len);
          at += s.iov_len;
        }
        break;
      case bio_op::discard:
      case bio_op::write_zeroes:
        std::fill_n(at, b.length_bytes, std::byte{0});
        break;
      case bio_op::flush:
        break;
    }
  }
  complete(b, 0);
}

}  // namespace forebay
