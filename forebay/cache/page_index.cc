#include "forebay/cache/page_index.h"

#include <atomic>
#include <new>

#include "forebay/cache/page_index_code.h"

namespace forebay {

std::uint64_t page_index_traits::take_places(std::uint64_t count) noexcept {
  // 2^64 of them: enough for 4096 indexes of the largest object there can be, one after the other.
  static std::atomic<std::uint64_t> next{0};
  constexpr std::uint64_t leaf = std::uint64_t{1} << bits;
  // relaxed: only the number itself matters.
  return next.fetch_add((count + leaf - 1) & ~(leaf - 1), std::memory_order_relaxed);
}

template <typename Traits>
slab_cache::options basic_page_index<Traits>::node_cache_options()
  requires std::same_as<node_memory, slab_cache>
{
  static_assert(sizeof(node) <= 384);
  return {.name = "page_index_node",
          .object_bytes = sizeof(node),
          .alignment = 64,
          .type_stable = true,
          .construct = [](void* memory) { new (memory) node; }};
}

template class basic_page_index<page_index_traits>;

}  // namespace forebay
