#include "forebay/cache/page_index.h"

#include <new>

#include "forebay/cache/page_index_code.h"

namespace forebay {

template <typename Traits>
slab_cache::options basic_page_index<Traits>::node_cache_options()
  requires std::same_as<node_memory, slab_cache>
{
  static_assert(sizeof(node) <= 320);
  return {.name = "page_index_node",
          .object_bytes = sizeof(node),
          .alignment = 64,
          .type_stable = true,
          .construct = [](void* memory) { new (memory) node; }};
}

template class basic_page_index<page_index_traits>;

}  // namespace forebay
