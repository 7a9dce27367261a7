#include "forebay/base/stats.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace forebay {
namespace {

std::atomic<unsigned> next_thread_number{0};

constinit basic_thread_slots<> slots;

// Gives a thread's slot back when it ends.
struct slot_holder {
  ~slot_holder() {
    const std::uint32_t slot = detail::thread_slot;
    // What the thread counts from now on, in other destructors, is counted without a slot.
    detail::thread_slot = detail::no_slot_any_more;
    if (slot < basic_thread_slots<>::count) slots.give(slot);
  }
};

}  // namespace

bool detail::take_thread_slot() noexcept {
  if (thread_slot == no_slot_any_more) return false;
  thread_local const slot_holder holder;
  thread_slot = slots.take();
  return thread_slot < basic_thread_slots<>::count;
}

void prepare_thread_to_count() noexcept {
  if (detail::thread_slot == detail::no_slot_yet) static_cast<void>(detail::take_thread_slot());
}

unsigned thread_number() noexcept {
  // relaxed: only the number itself matters.
  thread_local const unsigned number = next_thread_number.fetch_add(1, std::memory_order_relaxed);
  return number;
}

void histogram::merge(const histogram& other) noexcept {
  for (unsigned i = 0; i < bucket_count; ++i) {
    const std::uint64_t n =
        other.buckets_[i].load(std::memory_order_relaxed);            // relaxed: a statistic
    if (n != 0) buckets_[i].fetch_add(n, std::memory_order_relaxed);  // relaxed: a statistic
  }
}

std::uint64_t histogram::count() const noexcept {
  std::uint64_t sum = 0;
  for (const auto& b : buckets_) sum += b.load(std::memory_order_relaxed);  // relaxed: a statistic
  return sum;
}

std::uint64_t histogram::percentile(double fraction) const noexcept {
  std::array<std::uint64_t, bucket_count> counts;
  for (unsigned i = 0; i < bucket_count; ++i) counts[i] = count_of(i);
  return percentile_of(counts, fraction);
}

std::uint64_t histogram::percentile_of(std::span<const std::uint64_t, bucket_count> counts,
                                       double fraction) noexcept {
  const std::uint64_t total = std::accumulate(counts.begin(), counts.end(), std::uint64_t{0});
  if (total == 0) return 0;
  // Not std::clamp: it lets a NaN through, which has no value as an integer.
  const double share = fraction > 0.0 ? std::min(fraction, 1.0) : 0.0;
  const double wanted = std::ceil(share * static_cast<double>(total));
  const auto rank = std::max<std::uint64_t>(1, static_cast<std::uint64_t>(wanted));
  std::uint64_t seen = 0;
  for (unsigned i = 0; i < bucket_count; ++i) {
    seen += counts[i];
    if (seen >= rank) return bucket_top(i);
  }
  return bucket_top(bucket_count - 1);
}

}  // namespace forebay
