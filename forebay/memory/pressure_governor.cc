#include "forebay/memory/pressure_governor.h"

#include <algorithm>

namespace forebay {
namespace {

constexpr std::uint64_t mebibyte = 1u << 20;

}  // namespace

pressure_governor::pressure_governor(const options& opts) noexcept
    : options_(opts), ceiling_(opts.capacity_bytes), limit_(opts.capacity_bytes) {
  options_.floor_bytes = std::min(opts.floor_bytes, opts.capacity_bytes);
}

std::uint64_t pressure_governor::margin_bytes(std::uint64_t limit_bytes) noexcept {
  return std::clamp(limit_bytes / 16, 4 * mebibyte, 64 * mebibyte);
}

std::uint64_t pressure_governor::in_bounds(std::uint64_t bytes) const noexcept {
  if (bytes >= options_.capacity_bytes) return options_.capacity_bytes;
  return std::max(bytes - bytes % options_.unit_bytes, options_.floor_bytes);
}

std::uint64_t pressure_governor::allowed_bytes(const look& l) const noexcept {
  if (!l.room) return ceiling_;
  // A headroom is at most 2^62 or INT64_MAX, for none.
  const std::int64_t headroom = l.room->headroom_bytes();
  if (headroom == INT64_MAX) return ceiling_;
  const std::int64_t more = headroom - static_cast<std::int64_t>(margin_bytes(l.room->limit_bytes));
  const auto have = static_cast<std::int64_t>(std::min(l.resident_bytes, l.committed_bytes));
  const std::int64_t all = std::max<std::int64_t>(have + more, 0);
  return std::min(static_cast<std::uint64_t>(all), ceiling_);
}

void pressure_governor::set_ceiling(std::uint64_t bytes, const look& l) noexcept {
  const std::uint64_t before = ceiling_;
  ceiling_ = in_bounds(bytes);
  if (ceiling_ < limit_) {
    limit_ = ceiling_;
  } else if (limit_ == before && !is_tense(l.now_ns)) {
    // Only the old wish has kept it down.
    limit_ = std::max(limit_, in_bounds(allowed_bytes(l)));
  }
}

// Whether the last share that was taken has had its effect.
bool pressure_governor::is_settled(const look& l) const noexcept {
  return l.committed_bytes <= limit_ && l.now_ns - shared_ns_ >= options_.settle_ns;
}

std::uint64_t pressure_governor::decide(const look& l) noexcept {
  const std::uint64_t allowed = allowed_bytes(l);
  std::uint64_t wanted = std::min(limit_, allowed);
  if (l.event != memory_pressure::none && is_settled(l)) {
    shared_ns_ = l.now_ns;
    const std::uint64_t have = std::min(limit_, l.committed_bytes);
    const std::uint64_t share =
        have / (l.event == memory_pressure::critical ? critical_share : moderate_share);
    const std::uint64_t step = std::max(share, options_.unit_bytes);
    wanted = std::min(wanted, have - std::min(have, step));
  }
  if (wanted < limit_ || l.event != memory_pressure::none) {
    limit_ = std::min(limit_, in_bounds(wanted));
    pressed_ = true;
    pressed_ns_ = l.now_ns;
    return limit_;
  }
  const bool may_grow = is_limited() && !is_tense(l.now_ns) &&
                        l.now_ns - std::max(grown_ns_, pressed_ns_) >= options_.growth_ns;
  if (may_grow) {
    const std::uint64_t step =
        std::max(options_.capacity_bytes / growth_share, options_.unit_bytes);
    const std::uint64_t grown = in_bounds(std::min(limit_ + step, allowed));
    if (grown > limit_) {
      limit_ = grown;
      grown_ns_ = l.now_ns;
    }
  }
  return limit_;
}

}  // namespace forebay
