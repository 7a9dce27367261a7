// What an object costs: object_cache and general_cache beside the program's malloc and a cpu_cache
// alone; and what colouring does.
//
// bench/memory compares with other allocators under the same loops; this is for looking closer.

#include "forebay/memory/slab.h"

#include <benchmark/benchmark.h>

#include <array>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "forebay/memory/general_cache.h"

namespace forebay {
namespace {

std::unique_ptr<arena> make_arena() {
  auto made = arena::create({.bytes = std::size_t{256} << 20});
  FOREBAY_ASSERT(made.has_value());
  return std::move(*made);
}

class slab_subject {
 public:
  explicit slab_subject(std::size_t bytes)
      : cache_(*memory_, {.name = "bench", .object_bytes = bytes}) {}
  void* allocate() { return cache_.allocate(); }
  void free(void* p) { cache_.free(p); }

 private:
  std::unique_ptr<arena> memory_ = make_arena();
  slab_cache cache_;
};

class general_subject {
 public:
  explicit general_subject(std::size_t bytes) : bytes_(bytes) {}
  void* allocate() { return cache_->allocate(bytes_); }
  void free(void* p) { cache_->free(p); }

 private:
  std::size_t bytes_;
  std::unique_ptr<arena> memory_ = make_arena();
  std::unique_ptr<general_cache> cache_ =
      std::move(*general_cache::create(*memory_, {.number_if_name_is_taken = true}));
};

class malloc_subject {
 public:
  explicit malloc_subject(std::size_t bytes) : bytes_(bytes) {}
  void* allocate() { return std::malloc(bytes_); }
  void free(void* p) { std::free(p); }

 private:
  std::size_t bytes_;
};

// One object to and fro.
template <typename S>
void pair(benchmark::State& state) {
  S subject(static_cast<std::size_t>(state.range(0)));
  for (auto _ : state) {
    void* p = subject.allocate();
    benchmark::DoNotOptimize(p);
    subject.free(p);
  }
}

// 1,024 objects, of which a random one is replaced.
template <typename S>
void churn(benchmark::State& state) {
  S subject(static_cast<std::size_t>(state.range(0)));
  std::array<void*, 1024> held;
  for (void*& p : held) p = subject.allocate();
  std::array<std::uint16_t, 8192> order;
  std::mt19937 random(1);
  for (auto& o : order) o = static_cast<std::uint16_t>(random() % held.size());
  std::size_t i = 0;
  for (auto _ : state) {
    void*& p = held[order[i++ % order.size()]];
    subject.free(p);
    p = subject.allocate();
    *static_cast<std::uint64_t*>(p) = i;
  }
  for (void* p : held) subject.free(p);
}

// Reads the same field of `count` objects, which were allocated one after the other: 320 bytes,
// where slabs have room for colours, in random order. What is measured is the processor's cache.
void walk(benchmark::State& state) {
  const auto memory = make_arena();
  slab_cache cache(*memory, {.name = "bench",
                             .object_bytes = static_cast<std::size_t>(state.range(0)),
                             .colour = state.range(2) != 0});
  std::vector<std::uint64_t*> objects(static_cast<std::size_t>(state.range(1)));
  for (auto& o : objects) o = new (cache.allocate()) std::uint64_t{0};
  std::shuffle(objects.begin(), objects.end(), std::mt19937(2));
  for (auto _ : state) {
    for (std::uint64_t* o : objects) ++*o;
  }
  state.SetItemsProcessed(state.iterations() * state.range(1));
  for (std::uint64_t* o : objects) cache.free(o);
}

BENCHMARK(pair<slab_subject>)->Arg(64)->Arg(256)->Arg(4096);
BENCHMARK(pair<general_subject>)->Arg(64)->Arg(256)->Arg(4096);
BENCHMARK(pair<malloc_subject>)->Arg(64)->Arg(256)->Arg(4096);
BENCHMARK(churn<slab_subject>)->Arg(64)->Arg(256)->Arg(1024)->Arg(4096);
BENCHMARK(churn<general_subject>)->Arg(64)->Arg(256)->Arg(1024)->Arg(4096);
BENCHMARK(churn<malloc_subject>)->Arg(64)->Arg(256)->Arg(1024)->Arg(4096);
// One object to a slab's frame is the worst case: 3,008 bytes; 320 is the page index's node.
BENCHMARK(walk)->ArgsProduct({{320, 704, 3008}, {64, 256, 1024}, {0, 1}});

}  // namespace
}  // namespace forebay
