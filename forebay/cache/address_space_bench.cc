// What a hit costs: lookup, pin and unpin of random resident pages, by one thread and by two; and a
// miss whose device is a copy in memory, in a cache of a sixteenth of it: nearly all eviction and
// bookkeeping.

#include <benchmark/benchmark.h>

#include <memory>

#include "forebay/block/memory_device.h"
#include "forebay/cache/address_space.h"

namespace forebay {
namespace {

constexpr std::uint64_t resident_bytes = 256u << 20;

// A space with every page resident, shared by all threads of a run.
struct resident_space {
  explicit resident_space(bool miss_ratios = false)
      : dev(resident_bytes),
        cache(std::move(*page_cache::create(
            {.bytes = resident_bytes + (32u << 20), .miss_ratios = miss_ratios}))),
        space(*cache, dev, {.block_bytes = 4096}) {
    if (!sync_wait(space.prefetch(0, resident_bytes))) std::abort();
  }

  memory_device dev;
  std::unique_ptr<page_cache> cache;
  address_space space;
};

resident_space& shared_space() {
  static resident_space instance;
  return instance;
}

// xorshift64: cheap enough not to show.
std::uint64_t next_random(std::uint64_t& state) noexcept {
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}

void hit_pin_unpin(benchmark::State& state) {
  address_space& space = shared_space().space;
  std::uint64_t seed = 0x9e3779b97f4a7c15 + static_cast<std::uint64_t>(state.thread_index());
  std::array<page_ref, 1> pin;
  for (auto _ : state) {
    const std::uint64_t index = next_random(seed) % (resident_bytes / page_bytes);
    if (!space.try_pin(index * page_bytes, page_bytes, pin)) {
      state.SkipWithError("a resident page was not found");
      break;
    }
    benchmark::DoNotOptimize(pin[0]->data());
    pin[0].reset();
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(hit_pin_unpin)->Threads(1)->Threads(2)->UseRealTime();

// A view of one of a few pages, where the miss-ratio curve is estimated (1) and where not (0).
void hit_view(benchmark::State& state) {
  constexpr std::uint64_t hot_pages = 1024;
  static std::array<resident_space, 2> spaces{resident_space(false), resident_space(true)};
  address_space& space = spaces[static_cast<std::size_t>(state.range(0))].space;
  std::uint64_t seed = 0x9e3779b97f4a7c15;
  std::uint64_t sum = 0;
  for (auto _ : state) {
    const auto view = space.try_view(next_random(seed) % hot_pages);
    if (view) sum += view.load<std::uint64_t>(64);
    if (!view.still_valid()) state.SkipWithError("a resident page has changed");
  }
  benchmark::DoNotOptimize(sum);
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(hit_view)->Arg(0)->Arg(1)->Arg(0)->Arg(1);

void overwrite_dirty_page(benchmark::State& state) {
  address_space& space = shared_space().space;
  std::uint64_t seed = 42;
  const std::array<std::byte, page_bytes> data{};
  for (auto _ : state) {
    const std::uint64_t index = next_random(seed) % 1024;
    if (space.try_write(index * page_bytes, data) != page_bytes) {
      state.SkipWithError("a write had to wait");
      break;
    }
  }
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(page_bytes));
}
BENCHMARK(overwrite_dirty_page);

void miss_and_evict(benchmark::State& state, eviction_policy policy) {
  memory_device dev(resident_bytes);
  const auto cache =
      std::move(*page_cache::create({.bytes = resident_bytes / 16, .eviction = policy}));
  {
    address_space space(*cache, dev, {.block_bytes = 4096});
    if (!sync_wait(space.prefetch(0, resident_bytes))) std::abort();
    std::uint64_t seed = 42;
    std::vector<std::byte> page(page_bytes);
    for (auto _ : state) {
      const std::uint64_t index = next_random(seed) % (resident_bytes / page_bytes);
      if (!sync_wait(space.read(index * page_bytes, page))) {
        state.SkipWithError("a read failed");
        break;
      }
    }
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK_CAPTURE(miss_and_evict, adaptive, eviction_policy::adaptive);
BENCHMARK_CAPTURE(miss_and_evict, s3_fifo, eviction_policy::s3_fifo);
BENCHMARK_CAPTURE(miss_and_evict, clock, eviction_policy::clock);
BENCHMARK_CAPTURE(miss_and_evict, lru, eviction_policy::lru);

}  // namespace
}  // namespace forebay
