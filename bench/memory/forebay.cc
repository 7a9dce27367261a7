// memory_forebay: what this library has for each family of measures.
//
// `floor` allocates nothing: an array of each thread's own. It shows what the loops and the
// hand-over cost by themselves, and that no allocator can be faster.
#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "bench/memory/program.h"
#include "forebay/base/version.h"
#include "forebay/memory/arena.h"
#include "forebay/memory/cpu_cache.h"
#include "forebay/memory/free_list.h"
#include "forebay/memory/slab.h"
#include "forebay/os/mutex.h"

namespace forebay::bench {
namespace {

constexpr std::uint32_t list_items = 16384;
constexpr std::size_t arena_bytes = std::size_t{256} << 20;

class floor_subject : public bulk_by_singles<floor_subject> {
 public:
  using item = void*;

  item allocate() noexcept { return mine_.items[--mine_.next % mine_.items.size()]; }
  void free(item i) noexcept { mine_.items[mine_.next++ % mine_.items.size()] = i; }
  static bool is_none(item i) noexcept { return i == nullptr; }

 private:
  struct array {
    std::size_t next = 0;
    std::array<void*, 2048> items;
    array() noexcept { items.fill(room); }
  };
  alignas(64) static inline std::byte room[4096];
  static thread_local array mine_;
};

thread_local floor_subject::array floor_subject::mine_;

// A locked array: what a per-CPU cache stands before, and hardly ever asks.
class locked_array final : public free_list {
 public:
  explicit locked_array(std::uint32_t count) : items_(count) {
    std::iota(items_.begin(), items_.end(), 0U);
  }

  std::size_t take(std::span<std::uint32_t> to) noexcept override {
    const scoped_lock hold(lock_);
    const std::size_t n = std::min(to.size(), items_.size());
    std::copy_n(items_.end() - static_cast<std::ptrdiff_t>(n), n, to.begin());
    items_.resize(items_.size() - n);
    return n;
  }
  void give(std::span<const std::uint32_t> items) noexcept override {
    const scoped_lock hold(lock_);
    items_.insert(items_.end(), items.begin(), items.end());  // never beyond the first capacity
  }

 private:
  mutex lock_;
  std::vector<std::uint32_t> items_ FOREBAY_GUARDED_BY(lock_);
};

class cpu_cache_subject {
 public:
  using item = std::uint32_t;

  item allocate() noexcept { return cache_.pop(); }
  void free(item i) noexcept { cache_.push(i); }
  static bool is_none(item i) noexcept { return i == cpu_cache::none; }
  bool allocate_bulk(std::span<item> items) noexcept {
    const std::size_t got = cache_.pop(items);
    if (got == items.size()) [[likely]]
      return true;
    cache_.push(items.first(got));
    return false;
  }
  void free_bulk(std::span<item> items) noexcept { cache_.push(items); }

 private:
  locked_array backing_{list_items};
  cpu_cache cache_{backing_};
};

// An object that its constructor leaves as it is.
template <std::size_t Bytes>
struct block {
  block() noexcept {
  }  // NOLINT(modernize-use-equals-default): a defaulted one would clear the bytes
  std::byte bytes[Bytes];
};

template <std::size_t Bytes>
class slab_subject : public bulk_by_singles<slab_subject<Bytes>> {
 public:
  using item = block<Bytes>*;
  explicit slab_subject(std::unique_ptr<arena> memory)
      : arena_(std::move(memory)), cache_(*arena_, "benchmark") {}

  item allocate() noexcept { return cache_.create(); }
  void free(item i) noexcept { cache_.destroy(i); }
  static bool is_none(item i) noexcept { return i == nullptr; }

  // The slabs that `count` objects need, by the cache's own statistics.
  std::optional<double> overhead(std::size_t bytes, std::size_t count) {
    std::vector<item> items(count);
    for (item& i : items) {
      i = allocate();
      if (is_none(i)) return std::nullopt;
    }
    const slab_statistics s = cache_.slabs().statistics();
    for (const item i : items) free(i);
    return static_cast<double>(s.slabs * s.slab_bytes) / static_cast<double>(s.objects_in_use) -
           static_cast<double>(bytes);
  }

 private:
  std::unique_ptr<arena> arena_;
  object_cache<block<Bytes>> cache_;
};

template <typename S>
made_subject in_new_arena() {
  auto memory = arena::create({.bytes = arena_bytes});
  if (!memory) return std::unexpected(memory.error().message());
  return std::make_unique<subject_runner<S>>(std::move(*memory));
}

made_subject make_slab(std::size_t bytes) {
  switch (bytes) {
    case 64:
      return in_new_arena<slab_subject<64>>();
    case 256:
      return in_new_arena<slab_subject<256>>();
    case 1024:
      return in_new_arena<slab_subject<1024>>();
    default:
      return std::unexpected("64, 256 or 1024 bytes");
  }
}

}  // namespace
}  // namespace forebay::bench

int main(int argc, char** argv) {
  using namespace forebay::bench;
  return run_program(argc, argv,
                     {.name = "Forebay",
                      .about = [] { return "forebay " + std::string(forebay::version); },
                      .subjects = {{.name = "floor",
                                    .make = [](std::size_t) -> made_subject {
                                      return std::make_unique<subject_runner<floor_subject>>();
                                    }},
                                   {.name = "slab", .make = make_slab},
                                   {.name = "cpu_cache", .make = [](std::size_t) -> made_subject {
                                      return std::make_unique<subject_runner<cpu_cache_subject>>();
                                    }}}});
}
