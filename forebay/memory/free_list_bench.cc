// What one take() and give() cost, by policy and pattern, through the free_list interface. The
// figure is the time of a thread for one pair.
//
//   pair    take one, give it
//   out32   take 32 singly, give them singly in random order
//   churn   1,024 are held: give a random one, take another in its place
//   batch   take 32 by one call, give them by one call

#include <benchmark/benchmark.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <string>

#include "forebay/memory/free_lists.h"

namespace forebay {
namespace {

constexpr std::uint32_t capacity = 16384;

enum class pattern : std::uint8_t { pair, out32, churn, batch };
constexpr std::array pattern_names = {"pair", "out32", "churn", "batch"};

// The lists that all threads of a run share: one of each kind, made once.
free_list& shared_list(free_list_kind kind) {
  static std::array<std::unique_ptr<sized_free_list>, free_list_kinds.size()> lists = [] {
    decltype(lists) made;
    for (std::size_t i = 0; i < made.size(); ++i) {
      made[i] = std::move(*make_free_list(free_list_kinds[i], capacity));
      give_range(*made[i], 0, capacity);
    }
    return made;
  }();
  return *lists[static_cast<std::size_t>(kind)];
}

void pairs(free_list& list, benchmark::State& state) {
  for (auto _ : state) {
    std::uint32_t item = 0;
    if (list.take({&item, 1}) != 1) return state.SkipWithError("empty");
    benchmark::DoNotOptimize(item);
    list.give({&item, 1});
  }
  state.SetItemsProcessed(state.iterations());
}

void out32(free_list& list, benchmark::State& state) {
  std::array<std::uint32_t, 32> items{};
  std::array<std::array<std::uint8_t, 32>, 16> orders;
  std::minstd_rand random(1);
  for (auto& order : orders) {
    std::iota(order.begin(), order.end(), std::uint8_t{0});
    std::shuffle(order.begin(), order.end(), random);
  }
  std::size_t round = 0;
  for (auto _ : state) {
    for (std::uint32_t& item : items) {
      if (list.take({&item, 1}) != 1) return state.SkipWithError("empty");
    }
    for (const std::uint8_t i : orders[round++ % orders.size()]) list.give({&items[i], 1});
  }
  state.SetItemsProcessed(state.iterations() * 32);
}

void churn(free_list& list, benchmark::State& state) {
  std::vector<std::uint32_t> held(1024);
  held.resize(list.take(held));
  if (held.size() != 1024) return state.SkipWithError("empty");
  std::vector<std::uint16_t> victims(4096);
  std::minstd_rand random(static_cast<unsigned>(state.thread_index()) + 1);
  for (auto& v : victims) v = static_cast<std::uint16_t>(random() % held.size());
  std::size_t round = 0;
  for (auto _ : state) {
    std::uint32_t& item = held[victims[round++ % victims.size()]];
    list.give({&item, 1});
    if (list.take({&item, 1}) != 1) return state.SkipWithError("empty");
  }
  list.give(held);
  state.SetItemsProcessed(state.iterations());
}

void batches(free_list& list, benchmark::State& state) {
  std::array<std::uint32_t, 32> items{};
  for (auto _ : state) {
    if (list.take(items) != items.size()) return state.SkipWithError("empty");
    benchmark::DoNotOptimize(items);
    list.give(items);
  }
  state.SetItemsProcessed(state.iterations() * 32);
}

void measure(benchmark::State& state, free_list_kind kind, pattern what) {
  free_list& list = shared_list(kind);
  switch (what) {
    case pattern::pair:
      return pairs(list, state);
    case pattern::out32:
      return out32(list, state);
    case pattern::churn:
      return churn(list, state);
    case pattern::batch:
      return batches(list, state);
  }
}

[[maybe_unused]] const bool registered = [] {
  for (std::size_t p = 0; p < pattern_names.size(); ++p) {
    for (const free_list_kind kind : free_list_kinds) {
      std::string name = std::string("free_list/") + pattern_names[p] + '/' + to_string(kind);
      std::ranges::replace(name, ' ', '_');
      std::ranges::replace(name, '-', '_');
      benchmark::RegisterBenchmark(name.c_str(), measure, kind, static_cast<pattern>(p))
          ->Threads(1)
          ->Threads(2)
          ->UseRealTime();
    }
  }
  return true;
}();

}  // namespace
}  // namespace forebay
