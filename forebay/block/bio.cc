#include "forebay/block/bio.h"

#include <algorithm>

#include "forebay/base/assert.h"
#include "forebay/base/cache_line.h"
#include "forebay/block/device.h"

namespace forebay {

void bio::truncate(std::uint64_t bytes) noexcept {
  FOREBAY_ASSERT(bytes <= length_bytes);
  length_bytes = bytes;
  std::uint16_t kept = 0;
  for (std::uint64_t left = bytes; left != 0; ++kept) {
    iovec& s = segments[kept];
    s.iov_len = std::min<std::uint64_t>(s.iov_len, left);
    left -= s.iov_len;
  }
  segment_count = kept;
}

void bio_cursor::advance(std::uint64_t bytes) noexcept {
  FOREBAY_ASSERT(bytes <= bytes_left());
  done_bytes_ += bytes;
  bytes += in_segment_;
  while (bytes != 0 && bytes >= bio_->segments[segment_].iov_len) {
    bytes -= bio_->segments[segment_++].iov_len;
  }
  in_segment_ = bytes;
}

std::uint64_t bio_cursor::take(bio& part, const device_limits& limits) noexcept {
  part.op = bio_->op;
  part.flags = bio_->flags;
  part.urgency = bio_->urgency;
  part.offset_bytes = bio_->offset_bytes + done_bytes_;
  const std::uint64_t most =
      std::min(std::min<std::uint64_t>(bytes_left(), limits.max_transfer_bytes),
               bytes_to_boundary(part.offset_bytes, limits));
  std::size_t in_segment = in_segment_;
  for (std::size_t i = segment_; part.length_bytes < most; ++i, in_segment = 0) {
    const iovec& s = bio_->segments[i];
    auto* const data = static_cast<std::byte*>(s.iov_base) + in_segment;
    const std::size_t bytes =
        std::min<std::uint64_t>(s.iov_len - in_segment, most - part.length_bytes);
    const bool continues = part.segment_count != 0 && [&part, data] {
      const iovec& last = part.segments[part.segment_count - 1u];
      return static_cast<std::byte*>(last.iov_base) + last.iov_len == data;
    }();
    if (!continues && part.segment_count >= limits.max_segments) break;
    part.add(data, bytes);
  }
  if (part.length_bytes != bytes_left()) {
    part.truncate(round_down(part.length_bytes, std::uint64_t{limits.logical_block_bytes}));
  }
  advance(part.length_bytes);
  return part.length_bytes;
}

bool can_merge(const bio& front, const bio& back, const device_limits& limits) noexcept {
  if (front.end_bytes() != back.offset_bytes || front.op != back.op || front.flags != back.flags ||
      front.urgency != back.urgency || !front.is_transfer()) {
    return false;
  }
  const std::uint64_t length = front.length_bytes + back.length_bytes;
  return length <= limits.max_transfer_bytes &&
         front.segment_count + back.segment_count <=
             std::min<std::size_t>(limits.max_segments, bio::max_segments) &&
         length <= bytes_to_boundary(front.offset_bytes, limits);
}

}  // namespace forebay
