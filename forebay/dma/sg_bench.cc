// What scatter-gather costs for each piece.

#include <benchmark/benchmark.h>

#include <array>
#include <cstdlib>

#include "forebay/dma/identity_domain.h"
#include "forebay/dma/sg_segments.h"

namespace forebay {
namespace {

// Pieces of 4 KiB, every second of which follows the one before.
void map_and_unmap_pieces(benchmark::State& state) {
  identity_domain domain("bench");
  alignas(4096) static std::array<std::byte, 4096> memory;
  std::array<iovec, 32> pieces{};
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    // Not looked at.
    pieces[i] = {memory.data() + 4096 * (i + i / 2), 4096};
  }
  const std::span<const iovec> used(pieces.data(), static_cast<std::size_t>(state.range(0)));
  std::array<dma_segment, 32> segments;
  for (auto _ : state) {
    const auto n = map_segments(domain, used, dma_direction::from_device, segments);
    if (!n) std::abort();
    benchmark::DoNotOptimize(segments.data());
    benchmark::ClobberMemory();
    unmap_segments(domain, used, dma_direction::from_device, std::span(segments).first(*n));
  }
  state.counters["ns_a_piece"] =
      benchmark::Counter(static_cast<double>(state.iterations() * state.range(0)) * 1e-9,
                         benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}
BENCHMARK(map_and_unmap_pieces)->Arg(1)->Arg(2)->Arg(8)->Arg(32);

}  // namespace
}  // namespace forebay
