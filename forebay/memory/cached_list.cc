#include "forebay/memory/cached_list.h"

namespace forebay {

std::size_t cached_list::take(std::span<std::uint32_t> items) noexcept {
  if (items.size() != 1) return cache_.pop(items);
  items[0] = cache_.pop();
  return items[0] == cpu_cache::none ? 0 : 1;
}

void cached_list::give(std::span<const std::uint32_t> items) noexcept {
  if (items.size() != 1) return cache_.push(items);
  cache_.push(items[0]);
}

}  // namespace forebay
