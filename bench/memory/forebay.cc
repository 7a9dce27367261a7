// memory_forebay: what this library has for each family of measures.
//
// `floor` allocates nothing: an array of each thread's own. It shows what the loops and the
// hand-over cost by themselves, and that no allocator can be faster.
#include <malloc.h>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "bench/memory/program.h"
#include "forebay/base/version.h"
#include "forebay/memory/arena.h"
#include "forebay/memory/bitmap_list.h"
#include "forebay/memory/buddy_list.h"
#include "forebay/memory/buffer_pool.h"
#include "forebay/memory/cached_list.h"
#include "forebay/memory/lock_free_stack.h"
#include "forebay/memory/locked_list.h"
#include "forebay/memory/slab.h"

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

// A free list, called by its own type: what a pool or a cache above it would do.
template <typename List>
class list_subject {
 public:
  using item = std::uint32_t;

  list_subject() : list_(list_items) { give_range(list_, 0, list_items); }

  item allocate() noexcept {
    item i;
    return list_.take({&i, 1}) == 1 ? i : none;
  }
  void free(item i) noexcept { list_.give({&i, 1}); }
  static bool is_none(item i) noexcept { return i == none; }
  bool allocate_bulk(std::span<item> items) noexcept {
    const std::size_t got = list_.take(items);
    if (got == items.size()) [[likely]]
      return true;
    list_.give(items.first(got));
    return false;
  }
  void free_bulk(std::span<item> items) noexcept { list_.give(items); }

 private:
  static constexpr item none = UINT32_MAX;

  List list_;
};

template <typename List>
made_subject make_list(std::size_t) {
  return std::make_unique<subject_runner<list_subject<List>>>();
}

// Buffers with their holders counted, as users have them.
class pool_subject : public bulk_by_singles<pool_subject> {
 public:
  using item = buffer_ref;
  // The pool's memory must outlive it.
  explicit pool_subject(std::unique_ptr<arena> memory, std::unique_ptr<buffer_pool> pool)
      : arena_(std::move(memory)), pool_(std::move(pool)) {}

  item allocate() noexcept { return pool_->try_allocate(); }
  void free(item&& i) noexcept { i.reset(); }  // NOLINT(*-rvalue-reference-param-not-moved)
  static bool is_none(const item& i) noexcept { return !i; }
  static void* memory(const item& i) noexcept { return i->data(); }

 private:
  std::unique_ptr<arena> arena_;
  std::unique_ptr<buffer_pool> pool_;
};

// The same without handles, as rte_mempool gives them out.
class raw_pool_subject {
 public:
  using item = buffer*;
  explicit raw_pool_subject(std::unique_ptr<arena> memory, std::unique_ptr<buffer_pool> pool)
      : arena_(std::move(memory)), pool_(std::move(pool)) {}

  item allocate() noexcept { return pool_->try_allocate_raw(); }
  void free(item i) noexcept { (void)pool_->free_raw(*i); }
  static bool is_none(item i) noexcept { return i == nullptr; }
  static void* memory(item i) noexcept { return i->data(); }
  bool allocate_bulk(std::span<item> items) noexcept { return pool_->try_allocate_bulk_raw(items); }
  void free_bulk(std::span<item> items) noexcept { (void)pool_->free_bulk_raw(items); }

  // What another pool of `count` buffers takes: of the arena, headers, and everything on the heap,
  // CPU caches in use included.
  std::optional<double> overhead(std::size_t bytes, std::size_t count);

 private:
  std::unique_ptr<arena> arena_;
  std::unique_ptr<buffer_pool> pool_;
};

constexpr std::size_t pool_buffers = 16383;  // as many as the peer's

result<std::unique_ptr<buffer_pool>> make_buffers(arena& memory, std::size_t bytes,
                                                  std::size_t count) {
  return buffer_pool::create(
      memory, {.name = "benchmark", .buffer_bytes = bytes, .count = count, .registry = nullptr});
}

std::optional<double> raw_pool_subject::overhead(std::size_t bytes, std::size_t count) {
  const auto used = [this] {
    const struct mallinfo2 heap = mallinfo2();
    return heap.uordblks + heap.hblkhd + page_bytes * (arena_->page_count() - arena_->free_pages());
  };
  const std::size_t before = used();
  auto pool = make_buffers(*arena_, bytes, count);
  if (!pool) return std::nullopt;
  std::vector<buffer*> all(count);
  const std::size_t own = all.capacity() * sizeof(buffer*);
  if (!(*pool)->try_allocate_bulk_raw(all)) return std::nullopt;
  for (buffer* b : all) (void)(*pool)->free_raw(*b);
  const std::size_t headers = (*pool)->index_limit() * sizeof(buffer);
  return static_cast<double>(used() - own - before + headers) / static_cast<double>(count) -
         static_cast<double>(bytes);
}

template <typename S>
made_subject make_pool(std::size_t bytes) {
  auto memory = arena::create({.bytes = arena_bytes});
  if (!memory) return std::unexpected(memory.error().message());
  auto pool = make_buffers(**memory, bytes, pool_buffers);
  if (!pool) return std::unexpected(pool.error().message());
  return std::make_unique<subject_runner<S>>(std::move(*memory), std::move(*pool));
}

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

std::vector<subject_entry> subjects() {
  const auto make_floor = [](std::size_t) -> made_subject {
    return std::make_unique<subject_runner<floor_subject>>();
  };
  return {{.name = "floor", .make = make_floor},
          {.name = "pool", .make = make_pool<pool_subject>},
          {.name = "raw_pool", .make = make_pool<raw_pool_subject>},
          {.name = "slab", .make = make_slab},
          {.name = "locked", .make = make_list<locked_list>},
          {.name = "lock_free_stack", .make = make_list<lock_free_list>},
          {.name = "bitmap", .make = make_list<bitmap_list>},
          {.name = "buddy", .make = make_list<buddy_list>},
          {.name = "cached", .make = make_list<cached_list>}};
}

}  // namespace
}  // namespace forebay::bench

int main(int argc, char** argv) {
  using namespace forebay::bench;
  return run_program(argc, argv,
                     {.name = "Forebay",
                      .about = [] { return "forebay " + std::string(forebay::version); },
                      .subjects = subjects()});
}
