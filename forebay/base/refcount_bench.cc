// What references cost: get and put against two plain atomic operations, a lookup, the last put of
// either kind of count, and strong and weak references against shared_ptr.
//
// The `_ratio` benchmarks run ours and the other in turns inside one iteration and show the median
// of the quotients, `ratio`: what else the machine does falls on both alike.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#include "forebay/base/refcount.h"
#include "forebay/base/weak_ref.h"

namespace forebay {
namespace {

constexpr int operations = 2'000;  // in one measured stretch: some ten microseconds

// Nanoseconds that `operations` runs of `f` take.
template <typename F>
double stretch_ns(F f) {
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < operations; ++i) f();
  const auto end = std::chrono::steady_clock::now();
  return std::chrono::duration<double, std::nano>(end - start).count();
}

double median(std::vector<double>& values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// Runs `ours` and `other` in turns and shows the median of their quotients and of their costs.
template <typename Ours, typename Other>
void alternate(benchmark::State& state, Ours ours, Other other) {
  std::vector<double> ratios;
  std::vector<double> ours_ns;
  std::vector<double> other_ns;
  for (auto _ : state) {
    // There and back, so that neither is always the first.
    double a = stretch_ns(ours);
    double b = stretch_ns(other);
    b += stretch_ns(other);
    a += stretch_ns(ours);
    ratios.push_back(a / b);
    ours_ns.push_back(a / (2 * operations));
    other_ns.push_back(b / (2 * operations));
  }
  state.counters["ratio"] = median(ratios);
  state.counters["ours_ns"] = median(ours_ns);
  state.counters["other_ns"] = median(other_ns);
}

// --- one count against plain atomics -------------------------------------------------------------

// What a count does without any check: the floor.
struct plain_count {
  std::atomic<std::uint32_t> value{1};
  void get() noexcept { value.fetch_add(1, std::memory_order_relaxed); }  // relaxed: as refcount
  void put() noexcept { value.fetch_sub(1, std::memory_order_release); }  // release: as refcount
};

template <typename Count>
void get_put_ratio(benchmark::State& state) {
  alignas(64) Count ours;
  alignas(64) plain_count plain;
  alternate(
      state,
      [&ours] {
        ours.get();
        if (ours.put()) std::abort();
      },
      [&plain] {
        plain.get();
        plain.put();
      });
}
BENCHMARK(get_put_ratio<refcount>)->Iterations(1'000);
BENCHMARK(get_put_ratio<holder_refcount>)->Iterations(1'000);

void get_unless_zero_put(benchmark::State& state) {
  refcount count;
  for (auto _ : state) {
    if (!count.get_unless_zero() || count.put()) std::abort();
  }
}
BENCHMARK(get_unless_zero_put);

// A life of one reference: set() is a plain store, the rest is the last put.
template <typename Count>
void last_put(benchmark::State& state) {
  alignas(64) std::array<Count, 16> counts;
  std::size_t i = 0;
  for (auto _ : state) {
    Count& c = counts[i++ % counts.size()];
    c.set(1);
    if (!c.put()) std::abort();
  }
}
BENCHMARK(last_put<refcount>);
BENCHMARK(last_put<holder_refcount>);

// Two threads on one count: the cache line's way there and back decides.
template <typename Count>
void get_put_shared(benchmark::State& state) {
  alignas(64) static Count count;
  for (auto _ : state) {
    count.get();
    if (count.put()) std::abort();
  }
}
BENCHMARK(get_put_shared<refcount>)->Threads(2)->UseRealTime();
BENCHMARK(get_put_shared<holder_refcount>)->Threads(2)->UseRealTime();

// --- strong and weak references against shared_ptr -----------------------------------------------

struct payload {
  std::uint64_t words[4] = {};
};

// libstdc++'s shared_ptr counts without locked instructions until the process has had a second
// thread, which a program with I/O always has.
void have_had_a_second_thread() {
  std::thread([] {}).join();
}

void share_ratio_shared_ptr(benchmark::State& state) {
  have_had_a_second_thread();
  const ref_ptr<payload> ours = make_ref<payload>();
  const std::shared_ptr<payload> theirs = std::make_shared<payload>();
  alternate(
      state, [&ours] { benchmark::DoNotOptimize(ours.share().get()); },
      [&theirs] {
        std::shared_ptr<payload> copy = theirs;
        benchmark::DoNotOptimize(copy.get());
      });
}
BENCHMARK(share_ratio_shared_ptr)->Iterations(1'000);

void lock_ratio_shared_ptr(benchmark::State& state) {
  have_had_a_second_thread();
  const ref_ptr<payload> ours = make_ref<payload>();
  const weak_ref<payload> ours_weak = ours.weak();
  const std::shared_ptr<payload> theirs = std::make_shared<payload>();
  const std::weak_ptr<payload> theirs_weak = theirs;
  alternate(
      state, [&ours_weak] { benchmark::DoNotOptimize(ours_weak.lock().get()); },
      [&theirs_weak] { benchmark::DoNotOptimize(theirs_weak.lock().get()); });
}
BENCHMARK(lock_ratio_shared_ptr)->Iterations(1'000);

void make_and_drop_ratio_shared_ptr(benchmark::State& state) {
  have_had_a_second_thread();
  alternate(
      state, [] { benchmark::DoNotOptimize(make_ref<payload>().get()); },
      [] { benchmark::DoNotOptimize(std::make_shared<payload>().get()); });
}
BENCHMARK(make_and_drop_ratio_shared_ptr)->Iterations(1'000);

// Without the heap: what the counts of one life cost, on memory that is there.
struct keep_memory {
  void operator()(void*, std::size_t, std::size_t) const noexcept {}
};

void last_strong_put_in_place(benchmark::State& state) {
  alignas(64) std::byte memory[sizeof(counted_block<payload, keep_memory>)];
  for (auto _ : state) {
    auto only = make_ref_in<payload>(memory, keep_memory{});
    benchmark::DoNotOptimize(only.get());
  }
}
BENCHMARK(last_strong_put_in_place);

}  // namespace
}  // namespace forebay
