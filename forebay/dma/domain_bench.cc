// What mapping costs: a pair of map and unmap in the identity domain, beside a copy of it that
// knows of no checks, and with the checks on.
//
// "off_to_none" alternates the two in short turns, so that both see the same machine: its figure
// "ratio" is the median of the turns' (time with checks off) / (time without the branch).

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <vector>

#include "forebay/dma/debug.h"
#include "forebay/dma/identity_domain.h"

namespace forebay {
namespace {

// dma_domain and identity_domain as they would be without checks.
class plain_domain {
 public:
  explicit plain_domain(std::string name) : name_(std::move(name)) {}
  plain_domain(const plain_domain&) = delete;
  plain_domain& operator=(const plain_domain&) = delete;
  virtual ~plain_domain() = default;

  [[nodiscard]] result<dma_segment> map(std::span<std::byte> memory, dma_direction d) noexcept {
    if (memory.empty()) return fail(EINVAL);
    if (memory.size() > std::min(limits_.max_segment_bytes, limits_.max_mapping_bytes))
      return fail(errc::too_large);
    const result<dma_segment> s = do_map(memory, d);
    if (s && (s->length != memory.size() || !keeps_to(*s, limits_))) [[unlikely]] {
      do_unmap(*s, d);
      return fail(errc::too_large);
    }
    return s;
  }
  void unmap(const dma_segment& s, dma_direction d) noexcept { do_unmap(s, d); }

 protected:
  virtual result<dma_segment> do_map(std::span<std::byte> memory, dma_direction d) noexcept = 0;
  virtual void do_unmap(const dma_segment& s, dma_direction d) noexcept = 0;

 private:
  const std::string name_;
  const dma_limits limits_;
};

class plain_identity final : public plain_domain {
 public:
  using plain_domain::plain_domain;

 protected:
  result<dma_segment> do_map(std::span<std::byte> memory, dma_direction) noexcept override {
    return dma_segment{dma_address{std::bit_cast<std::uintptr_t>(memory.data())},
                       static_cast<std::uint32_t>(memory.size()), dma_segment::no_region};
  }
  void do_unmap(const dma_segment&, dma_direction) noexcept override {}
};

// Through the base class, whose kind the compiler does not know: as the block layer does.
template <typename Domain>
Domain& unknown(Domain& d) {
  Domain* volatile p = &d;
  return *p;
}

template <typename Domain>
[[gnu::noinline]] void pairs(Domain& d, std::span<std::byte> memory, int count) {
  for (int i = 0; i < count; ++i) {
    auto s = d.map(memory, dma_direction::from_device);
    benchmark::DoNotOptimize(s);
    if (s) d.unmap(*s, dma_direction::from_device);
  }
}

constexpr int pairs_each = 1000;
std::vector<std::byte> buffer(4096);

template <typename Domain>
void run(benchmark::State& state, Domain& d) {
  for (auto _ : state) pairs(d, buffer, pairs_each);
  state.SetItemsProcessed(state.iterations() * pairs_each);
}

void none(benchmark::State& state) {
  plain_identity d("bench");
  run(state, unknown<plain_domain>(d));
}
BENCHMARK(none);

void off(benchmark::State& state) {
  identity_domain d("bench", {}, {.check = dma_check::off});
  run(state, unknown<dma_domain>(d));
}
BENCHMARK(off);

void on(benchmark::State& state) {
  identity_domain d("bench", {}, {.check = dma_check::abort});
  run(state, unknown<dma_domain>(d));
}
BENCHMARK(on);

template <typename Domain>
double time_of(Domain& d) {
  const auto start = std::chrono::steady_clock::now();
  pairs(d, buffer, pairs_each);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void off_to_none(benchmark::State& state) {
  plain_identity without("bench");
  identity_domain with("bench", {}, {.check = dma_check::off});
  std::vector<double> ratios;
  for (auto _ : state) {
    // Each goes first in turn.
    const bool first = ratios.size() % 2 == 0;
    const double a = first ? time_of(unknown<dma_domain>(with)) : 0;
    const double b = time_of(unknown<plain_domain>(without));
    const double c = first ? a : time_of(unknown<dma_domain>(with));
    ratios.push_back(c / b);
  }
  if (ratios.empty()) return;
  const auto middle = ratios.begin() + static_cast<std::ptrdiff_t>(ratios.size() / 2);
  std::ranges::nth_element(ratios, middle);
  state.counters["ratio"] = *middle;
  state.SetItemsProcessed(state.iterations() * pairs_each * 2);
}
BENCHMARK(off_to_none);

}  // namespace
}  // namespace forebay
