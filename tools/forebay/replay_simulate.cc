#include "tools/forebay/replay_simulate.h"

#include <array>
#include <climits>
#include <memory>

#include "forebay/cache/eviction_lists.h"
#include "forebay/cache/s3_fifo.h"
#include "tools/forebay/replay_models.h"

namespace forebay::tool {
namespace {

// A block as the page cache's policies see it.
struct record {
  list_node link;
  std::uint32_t number = 0;
  std::uint8_t uses = 0;
  std::uint8_t place = 0;
  bool in = false;
};

struct record_traits {
  using entry = record;
  using list = intrusive_list<record, &record::link>;

  static unsigned uses(const record& r) noexcept { return r.uses; }
  static void set_uses(record& r, unsigned n) noexcept { r.uses = static_cast<std::uint8_t>(n); }
  static std::uint8_t& place(record& r) noexcept { return r.place; }
  static std::uint32_t weight(const record&) noexcept { return 1; }
  static std::uint64_t key(const record& r) noexcept { return r.number; }
  static void coming(const record&) noexcept {}
};

template <EvictionPolicy Policy>
class cache_model {
 public:
  cache_model(std::uint32_t blocks, std::uint32_t capacity)
      : records_(new record[blocks]), policy_(capacity), free_(capacity) {}

  bool access(std::uint32_t b) {
    record& r = records_[b];
    if (r.in) {
      if (r.uses < eviction_uses_max) ++r.uses;
      return true;
    }
    while (free_ == 0) {
      const auto take = [](record& victim) noexcept {
        victim.in = false;
        return true;
      };
      free_ = static_cast<std::uint32_t>(policy_.reclaim(1, UINT_MAX, take).freed);
    }
    --free_;
    r.in = true;
    r.number = b;
    policy_.insert(r);
    return false;
  }

 private:
  std::unique_ptr<record[]> records_;
  Policy policy_;
  std::uint32_t free_;
};

template <typename Model, typename... More>
std::uint64_t misses(const replay_trace& trace, std::uint32_t capacity, const More&... more) {
  Model model(trace.blocks, capacity, more...);
  std::uint64_t n = 0;
  for (const std::uint32_t b : trace.requests) n += model.access(b) ? 0 : 1;
  return n;
}

std::uint64_t belady_misses(const replay_trace& trace, std::uint32_t capacity) {
  std::vector<std::uint32_t> next(trace.requests.size());
  std::vector<std::uint32_t> seen(trace.blocks, UINT32_MAX);
  for (std::size_t i = next.size(); i-- != 0;) {
    next[i] = std::exchange(seen[trace.requests[i]], static_cast<std::uint32_t>(i));
  }
  return misses<belady_model>(trace, capacity, next);
}

using simulation = std::uint64_t (*)(const replay_trace&, std::uint32_t);

template <typename Model>
std::uint64_t misses_of(const replay_trace& trace, std::uint32_t capacity) {
  return misses<Model>(trace, capacity);
}

constexpr std::array policies = std::to_array<replay_policy>({
    {"adaptive", "S3-FIFO with a small queue that adapts, the page cache's default", true},
    {"s3-fifo", "S3-FIFO with a small queue of a tenth", true, true},
    {"clock", "FIFO with reinsertion", true, true},
    {"lru", "active and inactive lists", true},
    {"exact-lru", "least recently used", false, true},
    {"fifo", "first in, first out"},
    {"sieve", "FIFO with a hand that leaves used blocks in place"},
    {"2q", "2Q, full version", false, true},
    {"arc", "adaptive replacement", false, true},
    {"lirs", "low inter-reference recency", false, true},
    {"belady", "the best possible, which knows the future"},
});

constexpr std::array<simulation, policies.size()> simulations = {
    &misses_of<cache_model<adaptive_s3_fifo<record_traits>>>,
    &misses_of<cache_model<plain_s3_fifo<record_traits>>>,
    &misses_of<cache_model<clock_policy<record_traits>>>,
    &misses_of<cache_model<lru_policy<record_traits>>>,
    &misses_of<exact_lru_model>,
    &misses_of<fifo_model>,
    &misses_of<sieve_model>,
    &misses_of<two_q_model>,
    &misses_of<arc_model>,
    &misses_of<lirs_model>,
    &belady_misses,
};

}  // namespace

std::vector<double> exact_miss_ratios(const replay_trace& trace) {
  // A Fenwick tree over the requests: which of them is the last one for its block so far.
  const std::size_t n = trace.requests.size();
  std::vector<std::uint32_t> tree(n + 1);
  const auto add = [&](std::size_t at, std::uint32_t what) {
    for (++at; at <= n; at += at & (~at + 1)) tree[at] += what;
  };
  const auto before = [&](std::size_t at) {
    std::uint32_t sum = 0;
    for (; at != 0; at &= at - 1) sum += tree[at];
    return sum;
  };
  std::vector<std::uint64_t> at_distance(trace.blocks);
  std::vector<std::size_t> last(trace.blocks, n);
  for (std::size_t i = 0; i < n; ++i) {
    std::size_t& then = last[trace.requests[i]];
    if (then != n) {
      ++at_distance[before(i) - before(then + 1)];
      add(then, ~std::uint32_t{0});  // minus one
    }
    then = i;
    add(i, 1);
  }
  std::vector<double> ratios{1};
  std::uint64_t hits = 0;
  for (const std::uint64_t more : at_distance) {
    hits += more;
    ratios.push_back(1 - static_cast<double>(hits) / static_cast<double>(n));
  }
  return ratios;
}

std::span<const replay_policy> replay_policies() noexcept { return policies; }

std::uint64_t replay_misses(const replay_trace& trace, std::string_view policy,
                            std::uint32_t capacity) {
  for (std::size_t i = 0; i < policies.size(); ++i) {
    if (policies[i].name == policy) return simulations[i](trace, capacity);
  }
  return 0;
}

}  // namespace forebay::tool
