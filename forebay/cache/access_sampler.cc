#include "forebay/cache/access_sampler.h"

#include <algorithm>
#include <new>

#include "forebay/os/clock.h"

namespace forebay {
namespace {

constexpr std::uint64_t window_ns = 100'000'000;
constexpr std::uint64_t windows_per_second = 10;
constexpr std::uint64_t aging_ns = 60'000'000'000;
constexpr double aging_weight = 0.9;
// A sample of fewer pages is begun anew when one so many times as large would be affordable.
constexpr std::uint32_t pages_few = 512;
constexpr double growth = 8;

}  // namespace

std::unique_ptr<access_sampler> access_sampler::create(const options& opts, const counter& hits,
                                                       const counter& misses) noexcept {
  auto curve = miss_ratio_curve::create(opts.curve);
  if (curve == nullptr) return nullptr;
  return std::unique_ptr<access_sampler>(new (std::nothrow)
                                             access_sampler(opts, std::move(curve), hits, misses));
}

access_sampler::access_sampler(const options& opts, std::unique_ptr<miss_ratio_curve> curve,
                               const counter& hits, const counter& misses) noexcept
    : hits_(hits),
      misses_(misses),
      budget_(std::max<std::uint64_t>(opts.accesses_per_second / windows_per_second, 1)),
      threshold_(curve->threshold()),
      curve_(std::move(curve)) {}

void access_sampler::take(std::uint64_t hash) noexcept {
  const std::uint32_t slot = thread_slot();
  if (slot >= slots) return pass_on({&hash, 1});
  buffer& mine = buffers_[slot];
  // relaxed, here and below: nobody else writes it, and others take it for a number only.
  const std::uint32_t n = mine.count.load(std::memory_order_relaxed);
  mine.hashes[n] = hash;
  if (n + 1 < buffer_hashes) return mine.count.store(n + 1, std::memory_order_relaxed);
  pass_on(mine.hashes);
  mine.count.store(0, std::memory_order_relaxed);  // relaxed: as above
}

void access_sampler::pass_on(std::span<const std::uint64_t> hashes) noexcept {
  const std::uint64_t now = monotonic_clock::now_ns();
  const scoped_lock hold(lock_);
  for (const std::uint64_t h : hashes) curve_->access(h);
  in_window_ += hashes.size();
  keep_within_budget(now);
  threshold_.store(curve_->threshold(), std::memory_order_relaxed);  // relaxed: see touch()
}

void access_sampler::keep_within_budget(std::uint64_t now_ns) noexcept {
  if (in_window_ > budget_) {
    // Every page in the sample is about as often used as another: half of them, half the accesses.
    curve_->thin();
    in_window_ = 0;
    window_began_ns_ = now_ns;
  } else if (now_ns - window_began_ns_ >= window_ns) {
    const double share = static_cast<double>(window_ns) /
                         static_cast<double>(std::max(now_ns - window_began_ns_, window_ns));
    const bool affordable =
        growth * static_cast<double>(in_window_) * share < static_cast<double>(budget_) / 2;
    if (affordable && curve_->pages() < pages_few && curve_->rate() * growth < 1) {
      curve_->start_anew(curve_->rate() * growth, references());
    }
    in_window_ = 0;
    window_began_ns_ = now_ns;
  }
  if (aged_ns_ == 0) aged_ns_ = now_ns;
  if (now_ns - aged_ns_ >= aging_ns) {
    curve_->age(aging_weight, references());
    aged_ns_ = now_ns;
  }
}

miss_ratio_estimate access_sampler::estimate() const {
  std::uint64_t waiting = 0;
  for (const buffer& b : buffers_) {
    waiting += b.count.load(std::memory_order_relaxed);  // relaxed: a statistic
  }
  const scoped_lock hold(lock_);
  // What is in the buffers has been counted, but the curve does not know it yet.
  const auto unknown = static_cast<std::uint64_t>(static_cast<double>(waiting) / curve_->rate());
  const std::uint64_t all = references();
  return {.points = curve_->points(all - std::min(all, unknown)),
          .rate = curve_->rate(),
          .sampled_pages = curve_->pages(),
          .sampled_accesses = curve_->accesses(),
          .bytes = sizeof *this + curve_->bytes()};
}

}  // namespace forebay
