#include "forebay/block/device.h"

#include "forebay/base/cache_line.h"

namespace forebay {

void device::complete(bio& b, std::int32_t status) noexcept {
  b.status = status;
  executor::current()->ready(b);
}

std::int32_t check_range(const bio& b, const device_limits& limits) noexcept {
  if (b.op != bio_op::read && limits.read_only && b.op != bio_op::flush) return -EROFS;
  if (b.op == bio_op::flush) return 0;
  if (b.length_bytes == 0 || b.offset_bytes > limits.size_bytes ||
      b.length_bytes > limits.size_bytes - b.offset_bytes) {
    return -EINVAL;
  }
  if (!is_aligned(b.offset_bytes, std::uint64_t{limits.logical_block_bytes}) ||
      !is_aligned(b.length_bytes, std::uint64_t{limits.logical_block_bytes})) {
    return -EINVAL;
  }
  return 0;
}

std::int32_t check_bio(const bio& b, const device_limits& limits) noexcept {
  const std::int32_t bad = check_range(b, limits);
  if (bad != 0) return bad;
  return b.is_transfer() && !fits_transfer(b, limits) ? -EINVAL : 0;
}

}  // namespace forebay
