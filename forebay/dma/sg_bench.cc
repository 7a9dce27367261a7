// What scatter-gather costs for each piece: into an array, as a list, and for comparison each piece
// mapped alone.

#include <benchmark/benchmark.h>

#include <array>
#include <cstdlib>

#include "forebay/dma/identity_domain.h"
#include "forebay/dma/sg_list.h"
#include "forebay/dma/sg_segments.h"

namespace forebay {
namespace {

constexpr std::size_t max_pieces = 32;
constexpr auto direction = dma_direction::from_device;

// Pieces of 4 KiB, every second of which follows the one before. Nobody looks at their bytes.
struct pieces_of_a_request {
  pieces_of_a_request() {
    alignas(4096) static std::array<std::byte, 4096> memory;
    for (std::size_t i = 0; i < max_pieces; ++i)
      all[i] = {memory.data() + 4096 * (i + i / 2), 4096};
  }
  std::array<iovec, max_pieces> all{};
};

std::span<const iovec> used_pieces(const benchmark::State& state) {
  static const pieces_of_a_request pieces;
  return {pieces.all.data(), static_cast<std::size_t>(state.range(0))};
}

void count(benchmark::State& state) {
  state.counters["ns_a_piece"] =
      benchmark::Counter(static_cast<double>(state.iterations() * state.range(0)) * 1e-9,
                         benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}

void map_and_unmap_pieces(benchmark::State& state) {
  identity_domain domain("bench");
  const std::span<const iovec> used = used_pieces(state);
  std::array<dma_segment, max_pieces> segments;
  for (auto _ : state) {
    const auto n = map_segments(domain, used, direction, segments);
    if (!n) std::abort();
    benchmark::DoNotOptimize(segments.data());
    benchmark::ClobberMemory();
    unmap_segments(domain, used, direction, std::span(segments).first(*n));
  }
  count(state);
}
BENCHMARK(map_and_unmap_pieces)->Arg(1)->Arg(2)->Arg(8)->Arg(32);

void map_and_unmap_each(benchmark::State& state) {
  identity_domain domain("bench");
  const std::span<const iovec> used = used_pieces(state);
  std::array<dma_segment, max_pieces> segments;
  for (auto _ : state) {
    std::size_t n = 0;
    for (const iovec& p : used) {
      const auto s = domain.map({static_cast<std::byte*>(p.iov_base), p.iov_len}, direction);
      if (!s) std::abort();
      segments[n++] = *s;
    }
    benchmark::DoNotOptimize(segments.data());
    benchmark::ClobberMemory();
    for (std::size_t i = 0; i < n; ++i) domain.unmap(segments[i], direction);
  }
  count(state);
}
BENCHMARK(map_and_unmap_each)->Arg(1)->Arg(2)->Arg(8)->Arg(32);

// A list made from the pieces, mapped, unmapped and emptied.
void list_made_and_mapped(benchmark::State& state) {
  identity_domain domain("bench");
  const std::span<const iovec> used = used_pieces(state);
  sg_array<4> chunks;
  for (auto _ : state) {
    sg_list list(chunks);
    if (!list.append(used)) std::abort();
    auto m = std::move(list).map(domain, direction);
    if (!m) std::abort();
    benchmark::DoNotOptimize(m->segments().size());
    list = std::move(*m).unmap();
  }
  count(state);
}
BENCHMARK(list_made_and_mapped)->Arg(1)->Arg(2)->Arg(8)->Arg(32);

}  // namespace
}  // namespace forebay
