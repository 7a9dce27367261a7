#include "forebay/serve/rate_limit.h"

#include <algorithm>

namespace forebay {
namespace {

constexpr std::uint64_t second_ns = 1'000'000'000;
constexpr std::uint64_t counted_bytes_max = 1ull << 32;  // times second_ns it still has 64 bits

// Rounded up, so that the rate is never exceeded.
std::uint64_t time_of(std::uint64_t n, std::uint64_t per_s) noexcept {
  return per_s == 0 ? 0 : (n * second_ns + per_s - 1) / per_s;
}

std::uint64_t before(std::uint64_t at_ns, std::uint64_t by_ns) noexcept {
  return at_ns > by_ns ? at_ns - by_ns : 0;
}

}  // namespace

void rate_limit::set(const rate_limits& limits) noexcept {
  const scoped_lock hold(lock_);
  limits_ = limits;
  requests_empty_ns_ = bytes_empty_ns_ = 0;
  if (++generation_ == 0) generation_ = 1;
  applies_.store(limits.requests_per_s != 0 || limits.bytes_per_s != 0,
                 std::memory_order_relaxed);  // relaxed: as in applies()
}

rate_limits rate_limit::limits() const noexcept {
  const scoped_lock hold(lock_);
  return limits_;
}

rate_statistics rate_limit::statistics() const noexcept {
  const scoped_lock hold(lock_);
  return statistics_;
}

rate_limit::cost rate_limit::cost_of(const place& p) const noexcept {
  return {time_of(1, limits_.requests_per_s),
          time_of(std::min(p.bytes, counted_bytes_max), limits_.bytes_per_s)};
}

// Behind all who did before. Both buckets count from the begin that they agree on, else the one
// that has to wait for the other would let in together what it had meant for one after the other.
void rate_limit::line_up(place& p, std::uint64_t now_ns) noexcept {
  const cost c = cost_of(p);
  p.generation = generation_;
  p.start_ns = std::max({now_ns, before(requests_empty_ns_, limits_.burst_ns),
                         before(bytes_empty_ns_, limits_.burst_ns)});
  if (c.request != 0) requests_empty_ns_ = std::max(requests_empty_ns_, p.start_ns) + c.request;
  if (c.bytes != 0) bytes_empty_ns_ = std::max(bytes_empty_ns_, p.start_ns) + c.bytes;
}

std::uint64_t rate_limit::ask(place& p, std::uint64_t now_ns) noexcept {
  const scoped_lock hold(lock_);
  if (p.generation != generation_) line_up(p, now_ns);
  if (p.start_ns <= now_ns) {
    end(p, now_ns);
    return 0;
  }
  if (p.since_ns == 0) {
    p.since_ns = now_ns;
    ++statistics_.throttled;
    ++statistics_.waiting;
  }
  return std::min(p.start_ns - now_ns, look_again_ns);
}

void rate_limit::leave(place& p, std::uint64_t now_ns) noexcept {
  const scoped_lock hold(lock_);
  if (p.generation == generation_) {
    const cost c = cost_of(p);
    requests_empty_ns_ = before(requests_empty_ns_, c.request);
    bytes_empty_ns_ = before(bytes_empty_ns_, c.bytes);
  }
  end(p, now_ns);
}

void rate_limit::begin_early(place& p, std::uint64_t now_ns) noexcept {
  const scoped_lock hold(lock_);
  if (p.generation != generation_) line_up(p, now_ns);
  end(p, now_ns);
}

void rate_limit::end(place& p, std::uint64_t now_ns) noexcept {
  if (p.since_ns != 0) {
    --statistics_.waiting;
    statistics_.waited_ns += before(now_ns, p.since_ns);
  }
  p = {};
}

}  // namespace forebay
