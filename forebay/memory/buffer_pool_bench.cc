// What a buffer costs: allocate and free, with and without a handle, beside the CPU cache that the
// pool is made of. The figure is the time of a thread for one pair.
//
//   pair    allocate one, free it
//   out32   allocate 32, free them in random order
//   churn   1,024 are held: free a random one, allocate another in its place
//   bulk    allocate 32 by one call, free them by one call

#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <random>
#include <vector>

#include "forebay/memory/buffer_pool.h"
#include "forebay/memory/locked_list.h"

namespace forebay {
namespace {

constexpr std::uint32_t count = 16384;

buffer_pool& shared_pool() {
  static const std::unique_ptr<arena> memory = std::move(*arena::create({.bytes = 64u << 20}));
  static const std::unique_ptr<buffer_pool> pool = std::move(
      *buffer_pool::create(*memory, {.name = "benchmark", .buffer_bytes = 2048, .count = count}));
  return *pool;
}

struct raw_buffers {
  using item = buffer*;
  static item allocate() noexcept { return pool.try_allocate_raw(); }
  static void free(item& b) noexcept { static_cast<void>(pool.free_raw(*b)); }
  static inline buffer_pool& pool = shared_pool();
};

struct handles {
  using item = buffer_ref;
  static item allocate() noexcept { return pool.try_allocate(); }
  static void free(item& b) noexcept { b.reset(); }
  static inline buffer_pool& pool = shared_pool();
};

struct numbers {
  using item = std::uint32_t;
  static item allocate() noexcept { return cache.pop(); }
  static void free(item& i) noexcept { cache.push(i); }

  static inline locked_list list{count};
  static inline cpu_cache cache = [] {
    give_range(list, 0, count);
    return cpu_cache(list, {.magazine_items = 256});
  }();
};

template <typename S>
void pair(benchmark::State& state) {
  for (auto _ : state) {
    typename S::item i = S::allocate();
    benchmark::DoNotOptimize(i);
    S::free(i);
  }
  state.SetItemsProcessed(state.iterations());
}

template <typename S>
void out32(benchmark::State& state) {
  std::array<typename S::item, 32> items{};
  std::array<std::array<std::uint8_t, 32>, 64> orders;
  std::minstd_rand random(1);
  for (auto& order : orders) {
    std::iota(order.begin(), order.end(), std::uint8_t{0});
    std::ranges::shuffle(order, random);
  }
  std::size_t round = 0;
  while (state.KeepRunningBatch(items.size())) {
    for (auto& i : items) i = S::allocate();
    benchmark::ClobberMemory();
    for (const std::uint8_t i : orders[round++ % orders.size()]) S::free(items[i]);
  }
  state.SetItemsProcessed(state.iterations());
}

template <typename S>
void churn(benchmark::State& state) {
  std::vector<typename S::item> held(1024);
  for (auto& i : held) i = S::allocate();
  std::vector<std::uint16_t> victims(4096);
  std::minstd_rand random(static_cast<unsigned>(state.thread_index()) + 1);
  for (auto& v : victims) v = static_cast<std::uint16_t>(random() % held.size());
  std::size_t round = 0;
  for (auto _ : state) {
    auto& i = held[victims[round++ % victims.size()]];
    S::free(i);
    i = S::allocate();
  }
  for (auto& i : held) S::free(i);
  state.SetItemsProcessed(state.iterations());
}

void bulk(benchmark::State& state) {
  std::array<buffer*, 32> items{};
  buffer_pool& pool = shared_pool();
  while (state.KeepRunningBatch(items.size())) {
    if (!pool.try_allocate_bulk_raw(items)) return state.SkipWithError("empty");
    benchmark::DoNotOptimize(items);
    static_cast<void>(pool.free_bulk_raw(items));
  }
  state.SetItemsProcessed(state.iterations());
}

#define FOREBAY_POOL_BENCH(pattern)                                       \
  BENCHMARK(pattern<raw_buffers>)->Threads(1)->Threads(2)->UseRealTime(); \
  BENCHMARK(pattern<handles>)->Threads(1)->Threads(2)->UseRealTime();     \
  BENCHMARK(pattern<numbers>)->Threads(1)->Threads(2)->UseRealTime()

FOREBAY_POOL_BENCH(pair);
FOREBAY_POOL_BENCH(out32);
FOREBAY_POOL_BENCH(churn);
BENCHMARK(bulk)->Threads(1)->Threads(2)->UseRealTime();

}  // namespace
}  // namespace forebay
