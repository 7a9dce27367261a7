#include "forebay/cache/dirty_pacer.h"

#include <algorithm>

namespace forebay {

double dirty_pacer::factor(levels at) noexcept {
  const double middle = (static_cast<double>(at.free_run) + at.limit) / 2;
  const double half = std::max(static_cast<double>(at.limit) - middle, 1.0);
  const double x = std::clamp((middle - at.dirty) / half, -1.0, 1.0);
  return std::max(1 + x * x * x, 1.0 / 64);
}

void dirty_pacer::dirtied(std::uint64_t now_ns, std::uint32_t pages, levels at) noexcept {
  if (at.dirty <= at.free_run || pace_ <= 0) return;
  const double cost_ns = 1e9 * pages / (pace_ * factor(at));
  // relaxed, both: written under the owner's lock.
  const std::uint64_t until = std::max(until_ns_.load(std::memory_order_relaxed), now_ns);
  // No further ahead than the longest pause, or a device that has become faster would not be used.
  const std::uint64_t next =
      std::min(until + static_cast<std::uint64_t>(std::min(cost_ns, 1e9)), now_ns + pause_max_ns);
  until_ns_.store(next, std::memory_order_relaxed);  // relaxed: as above
}

void dirty_pacer::written(std::uint64_t now_ns, std::uint32_t pages) noexcept {
  // After a while without write-back the time says nothing about the device.
  if (now_ns - last_written_ns_ > sample_ns || sample_start_ns_ == 0) {
    sample_start_ns_ = now_ns;
    sample_pages_ = 0;
    last_written_ns_ = now_ns;
    return;
  }
  last_written_ns_ = now_ns;
  sample_pages_ += pages;
  const std::uint64_t length_ns = now_ns - sample_start_ns_;
  if (length_ns < sample_ns) return;
  const double seen = 1e9 * static_cast<double>(sample_pages_) / static_cast<double>(length_ns);
  pace_ = pace_ <= 0 ? seen : pace_ + (seen - pace_) / 4;
  sample_start_ns_ = now_ns;
  sample_pages_ = 0;
}

}  // namespace forebay
