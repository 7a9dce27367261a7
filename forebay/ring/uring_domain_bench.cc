// What a mapping in an io_uring's address space costs: of registered memory, of memory that is not,
// and with a second arena in front.
#include <benchmark/benchmark.h>

#include <memory>

#include "forebay/ring/uring_queue_pair.h"

namespace forebay {
namespace {

std::unique_ptr<arena> make_arena() {
  auto a = arena::create({.bytes = std::size_t{16} << 20});
  return a ? std::move(*a) : nullptr;
}

// `arenas` of them registered; the last one's pages are mapped, or with none, of one that is not.
void map_and_unmap(benchmark::State& state) {
  const auto arenas = static_cast<std::size_t>(state.range(0));
  std::vector<std::unique_ptr<arena>> memory;
  for (std::size_t i = 0; i < std::max<std::size_t>(arenas, 1); ++i) memory.push_back(make_arena());
  auto made = uring_queue_pair::create(8);
  if (!made) return state.SkipWithError("no io_uring");
  uring_domain& domain = (*made)->registered();
  for (std::size_t i = 0; i < arenas; ++i) {
    if (!domain.add(*memory[i])) return state.SkipWithError("memory cannot be registered here");
  }
  const std::span<std::byte> all = memory.back()->memory();
  std::size_t at = 0;
  for (auto _ : state) {
    const auto s = domain.map(all.subspan(at, page_bytes), dma_direction::from_device);
    benchmark::DoNotOptimize(s);
    domain.unmap(*s, dma_direction::from_device);
    at = (at + page_bytes) % (all.size() - page_bytes);
  }
}
BENCHMARK(map_and_unmap)->ArgName("arenas")->Arg(0)->Arg(1)->Arg(4);

}  // namespace
}  // namespace forebay
