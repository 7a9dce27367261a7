#include "forebay/serve/request_memory.h"

#include <bit>
#include <utility>

namespace forebay {
namespace {

// What waits free in CPU caches, for all of them.
constexpr std::size_t cpu_cache_bytes = 4u << 20;

// Pieces are rounded up, by a third at most and less where it counts, a little of the arena's bytes
// is page state, and the tasks that run in the background are in no share.
constexpr std::size_t with_slack(std::size_t bytes) {
  return bytes + bytes / 4 + cpu_cache_bytes + (std::size_t{2} << 20);
}

}  // namespace

result<request_memory::parts> request_memory::make_parts(const options& opts,
                                                         memory_source& source) {
  const std::size_t bytes = with_slack(opts.request_bytes_max + opts.extra_bytes_max +
                                       std::size_t{opts.max_clients} * client_bytes);
  auto memory =
      arena::create({.bytes = bytes, .huge_pages = false, .numa_node = opts.numa_node}, source);
  if (!memory) return fail(memory.error());
  auto pieces = general_cache::create(
      **memory,
      {.name = "request", .number_if_name_is_taken = true, .cpu_cache_bytes = cpu_cache_bytes});
  if (!pieces) return fail(pieces.error());
  return parts{std::move(*memory), std::move(*pieces)};
}

result<std::unique_ptr<request_memory>> request_memory::create(const options& opts,
                                                               memory_source& source) {
  auto p = make_parts(opts, source);
  if (!p) return fail(p.error());
  return std::make_unique<request_memory>(std::move(*p), opts);
}

request_memory::request_memory(parts p, const options& opts) noexcept
    : options_(opts), arena_(std::move(p.memory)), pieces_(std::move(p.pieces)) {}

void* request_memory::allocate(std::size_t bytes) noexcept {
  void* memory = nullptr;
  if (bytes <= general_cache::max_bytes) {
    memory = pieces_->allocate(bytes);
  } else if (page* const block =
                 arena_->allocate(static_cast<unsigned>(std::bit_width((bytes - 1) >> page_shift)),
                                  placement::fixed);
             block != nullptr) {
    memory = block->data();
  }
  if (memory == nullptr) failures_.add();
  return memory;
}

void request_memory::free(void* memory, std::size_t bytes) noexcept {
  if (bytes <= general_cache::max_bytes) return pieces_->free(memory, bytes);
  put_page(arena_->frame_at(memory));
}

void* request_memory::allocate_extra(std::size_t bytes) noexcept {
  // relaxed, here and below: levels; what they bound is only memory.
  if (extra_.fetch_add(bytes, std::memory_order_relaxed) + bytes <= options_.extra_bytes_max) {
    if (void* memory = allocate(bytes); memory != nullptr) return memory;
  }
  extra_.fetch_sub(bytes, std::memory_order_relaxed);  // relaxed: as above
  extra_refusals_.add();
  return nullptr;
}

void request_memory::free_extra(void* memory, std::size_t bytes) noexcept {
  free(memory, bytes);
  extra_.fetch_sub(bytes, std::memory_order_relaxed);  // relaxed: as above
}

bool request_memory::take_request_share(std::size_t bytes) noexcept {
  // relaxed, here and below: a level; what it bounds is only memory.
  if (promised_.fetch_add(bytes, std::memory_order_relaxed) + bytes <= options_.request_bytes_max) {
    return true;
  }
  return_request_share(bytes);
  request_refusals_.add();
  return false;
}

void request_memory::return_request_share(std::size_t bytes) noexcept {
  promised_.fetch_sub(bytes, std::memory_order_relaxed);  // relaxed: as above
}

request_memory_statistics request_memory::statistics() const noexcept {
  return {.capacity_bytes = std::uint64_t{arena_->page_count()} << page_shift,
          .free_bytes = std::uint64_t{arena_->free_pages()} << page_shift,
          // relaxed: levels.
          .request_bytes = promised_.load(std::memory_order_relaxed),
          .extra_bytes = extra_.load(std::memory_order_relaxed),  // relaxed: as above
          .request_refusals = value_of(request_refusals_),
          .extra_refusals = value_of(extra_refusals_),
          .failures = value_of(failures_)};
}

}  // namespace forebay
