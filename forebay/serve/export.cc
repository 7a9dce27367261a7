#include "forebay/serve/export.h"

#include <algorithm>
#include <bit>

#include "forebay/base/cache_line.h"

namespace forebay {
namespace {

// 256 TiB: what the records of a warm store can number.
constexpr std::uint64_t image_bytes_max = std::uint64_t{1} << 48;

}  // namespace

nbd_export::nbd_export(std::unique_ptr<device> dev, page_cache& cache, export_options opts)
    : options_(std::move(opts)),
      device_(std::move(dev)),
      queue_(std::make_unique<request_queue>(*device_)) {
  const std::uint32_t block =
      std::max({512u, options_.min_block_bytes, device_->limits().logical_block_bytes});
  space_ = std::make_unique<address_space>(
      cache, *queue_,
      address_space::options{.block_bytes = block,
                             .readahead_bytes = options_.readahead_bytes,
                             .warm_slot = options_.warm_slot,
                             .max_bytes = image_bytes_max});
}

task<bool> nbd_export::grow() {
  if (growing_.exchange(true)) co_return fail(EALREADY);
  result<bool> outcome = false;
  const result<std::uint64_t> found = device_->follow_size();
  if (!found) {
    outcome = fail(found.error());
  } else {
    const std::uint64_t whole = round_down(
        *found, std::uint64_t{std::max(options_.min_block_bytes, space_->block_bytes())});
    if (whole < size_bytes()) {
      outcome = fail(EINVAL);
    } else if (whole > size_bytes()) {
      const result<> grown = co_await space_->grow(whole);
      outcome = grown ? result<bool>(true) : fail(grown.error());
    }
  }
  growing_.store(false);
  co_return outcome;
}

std::uint32_t nbd_export::preferred_block_bytes() const noexcept {
  return std::bit_ceil(std::clamp(device_->limits().physical_block_bytes, 4096u, 65536u));
}

std::uint16_t nbd_export::transmission_flags(bool structured) const noexcept {
  // One cache serves every connection, so a flush on one covers what was acknowledged on all.
  std::uint16_t flags =
      nbd::has_flags | nbd::send_flush | nbd::send_fua | nbd::can_multi_conn | nbd::send_cache;
  if (structured) flags |= nbd::send_df;
  if (is_read_only()) {
    flags |= nbd::read_only;
  } else {
    flags |= nbd::send_trim | nbd::send_write_zeroes | nbd::send_fast_zero;
  }
  return flags;
}

}  // namespace forebay
