#include "forebay/memory/free_lists.h"

#include <algorithm>
#include <new>

#include "forebay/memory/bitmap_list.h"
#include "forebay/memory/buddy_list.h"
#include "forebay/memory/cached_list.h"
#include "forebay/memory/lock_free_stack.h"
#include "forebay/memory/locked_list.h"

namespace forebay {
namespace {

template <typename List>
result<std::unique_ptr<sized_free_list>> make(std::uint32_t capacity) noexcept {
  std::unique_ptr<List> list(new (std::nothrow) List(capacity));
  if (!list || !list->has_memory()) return fail(ENOMEM);
  return list;
}

}  // namespace

const char* to_string(free_list_kind kind) noexcept {
  switch (kind) {
    case free_list_kind::locked:
      return "locked";
    case free_list_kind::lock_free_stack:
      return "lock-free stack";
    case free_list_kind::bitmap:
      return "bitmap";
    case free_list_kind::buddy:
      return "buddy";
    case free_list_kind::cached:
      return "cached";
  }
  return "unknown";
}

result<std::unique_ptr<sized_free_list>> make_free_list(free_list_kind kind,
                                                        std::uint32_t capacity) noexcept {
  if (capacity == 0) return fail(EINVAL);
  if (capacity > sized_free_list::capacity_max) return fail(errc::too_large);
  switch (kind) {
    case free_list_kind::locked:
      return make<locked_list>(capacity);
    case free_list_kind::lock_free_stack:
      return make<lock_free_list>(capacity);
    case free_list_kind::bitmap:
      return make<bitmap_list>(capacity);
    case free_list_kind::buddy:
      return make<buddy_list>(capacity);
    case free_list_kind::cached:
      return make<cached_list>(capacity);
  }
  return fail(EINVAL);
}

void give_range(free_list& list, std::uint32_t first, std::uint32_t count) noexcept {
  std::array<std::uint32_t, 256> batch;
  while (count != 0) {
    // From the end, so that the smallest lie on top; falling within a batch for the same reason.
    const auto n = std::min(count, static_cast<std::uint32_t>(batch.size()));
    for (std::uint32_t i = 0; i < n; ++i) batch[i] = first + count - 1 - i;
    list.give(std::span(batch).first(n));
    count -= n;
  }
}

}  // namespace forebay
