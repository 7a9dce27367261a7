// What a block that is cached costs: bread() and brelse() of blocks of 1 KiB, by one thread and by
// two. The aims are 15 ns through the CPU's array and 40 ns past it.

#include <benchmark/benchmark.h>

#include <cstdlib>
#include <memory>

#include "forebay/block/memory_device.h"
#include "forebay/cache/block_api.h"

namespace forebay {
namespace {

constexpr std::uint32_t block_bytes = 1024;
constexpr std::uint64_t blocks = 1024;

struct cached_blocks {
  cached_blocks()
      : dev(blocks * block_bytes),
        cache(std::move(*page_cache::create({.bytes = 16u << 20}))),
        space(*cache, dev, {.block_bytes = block_bytes}) {
    for (std::uint64_t i = 0; i < blocks; ++i) {
      if (!bread(space, i, block_bytes)) std::abort();
    }
  }

  memory_device dev;
  std::unique_ptr<page_cache> cache;
  address_space space;
};

address_space& shared_space() {
  static cached_blocks instance;
  return instance.space;
}

// So many blocks in turn, a page apart: up to 16 fit the array of a CPU.
void bread_cached(benchmark::State& state) {
  address_space& space = shared_space();
  const auto count = static_cast<std::uint64_t>(state.range(0));
  std::uint64_t i = 0;
  for (auto _ : state) {
    const result<bh_ref> b = bread(space, i * 4 + i % 4, block_bytes);
    if (!b) {
      state.SkipWithError("a cached block was not found");
      break;
    }
    benchmark::DoNotOptimize((*b)->data);
    if (++i == count) i = 0;
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(bread_cached)->ArgName("blocks")->Arg(1)->Arg(8)->Arg(16)->Arg(32)->Arg(256);
BENCHMARK(bread_cached)->ArgName("blocks")->Arg(8)->Arg(256)->Threads(2)->UseRealTime();

// The change of a block that is dirty already.
void lock_change_unlock(benchmark::State& state) {
  const result<bh_ref> b = bread(shared_space(), 5, block_bytes);
  for (auto _ : state) {
    if (!b || !lock_buffer(**b)) {
      state.SkipWithError("it had to wait");
      break;
    }
    mark_buffer_dirty(**b);
    unlock_buffer(**b);
  }
  static_cast<void>(sync_blockdev(shared_space()));
}
BENCHMARK(lock_change_unlock);

}  // namespace
}  // namespace forebay
