// What a tracked pin costs: the tracker switched off against a pin that knows of none, in turns in
// one process (`ratio` is the median quotient), and switched on.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <vector>

#include "forebay/base/refcount.h"
#include "forebay/memory/ref_tracker.h"

namespace forebay {
namespace {

struct counted {
  refcount refs;
};

ref_tracker bench_tracker("bench");

struct counted_traits {
  static void get(counted& c) noexcept { c.refs.get(); }
  static void put(counted& c) noexcept { static_cast<void>(c.refs.put()); }
  static ref_tracker& tracker(counted&) noexcept { return bench_tracker; }
};
using tracked_pin = tracked_ref<counted, counted_traits>;

// The same without a ticket.
class plain_pin {
 public:
  explicit plain_pin(counted& c) noexcept : counted_(&c) {}
  plain_pin(const plain_pin&) = delete;
  plain_pin& operator=(const plain_pin&) = delete;
  ~plain_pin() { counted_traits::put(*counted_); }
  plain_pin share() const noexcept {
    counted_traits::get(*counted_);
    return plain_pin(*counted_);
  }

 private:
  counted* counted_;
};

constexpr int operations = 2'000;

template <typename Pin>
double shares_ns(const Pin& pin) {
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < operations; ++i) {
    Pin copy = pin.share();
    benchmark::DoNotOptimize(copy);
  }
  const auto end = std::chrono::steady_clock::now();
  return std::chrono::duration<double, std::nano>(end - start).count();
}

void share_with_the_tracker_off_ratio(benchmark::State& state) {
  bench_tracker.enable(false);
  counted object;
  counted other;
  const tracked_pin tracked = tracked_pin::adopt(object);
  const plain_pin plain(other);
  std::vector<double> ratios;
  for (auto _ : state) {
    const double a = shares_ns(tracked);
    const double b = shares_ns(plain);
    ratios.push_back(a / b);
  }
  const auto middle = ratios.begin() + static_cast<std::ptrdiff_t>(ratios.size() / 2);
  std::nth_element(ratios.begin(), middle, ratios.end());
  state.counters["ratio"] = *middle;
}
BENCHMARK(share_with_the_tracker_off_ratio)->Iterations(2'000);

void share_with_the_tracker_on(benchmark::State& state) {
  bench_tracker.enable();
  counted object;
  {
    const tracked_pin tracked = tracked_pin::adopt(object);
    for (auto _ : state) {
      tracked_pin copy = tracked.share();
      benchmark::DoNotOptimize(copy);
    }
  }
  bench_tracker.enable(false);
}
BENCHMARK(share_with_the_tracker_on);

}  // namespace
}  // namespace forebay
