#include "forebay/cache/buffer_head.h"

#include <algorithm>

namespace forebay {

buffer_head* page_buffers(const page& p) noexcept {
  // acquire: pairs with create_empty_buffers, so that the buffers are seen complete.
  return static_cast<buffer_head*>(p.private_data.load(std::memory_order_acquire));
}

bool create_empty_buffers(page& p, buffer_cache& heads, device& dev,
                          std::uint32_t block_bytes) noexcept {
  if (page_buffers(p) != nullptr) return true;
  std::uint32_t state = bh_mapped;
  if (p.test(page_uptodate)) state |= bh_uptodate;
  if (p.test(page_dirty)) state |= bh_dirty;
  const std::uint64_t blocks = page_bytes / block_bytes;
  // relaxed: the caller's reference keeps the index as it is.
  const std::uint64_t first_block = p.index.load(std::memory_order_relaxed) * blocks;
  buffer_head* first = nullptr;
  buffer_head* last = nullptr;
  for (std::uint64_t i = blocks; i-- > 0;) {
    buffer_head* b = heads.create();
    if (b == nullptr) {
      while (first != nullptr) heads.destroy(std::exchange(first, first->this_page));
      return false;
    }
    b->state.store(state, std::memory_order_relaxed);  // relaxed: published below
    b->size_bytes = block_bytes;
    b->frame = &p;
    b->block_number = first_block + i;
    b->data = p.data() + i * block_bytes;
    b->dev = &dev;
    b->this_page = first;
    if (last == nullptr) last = b;
    first = b;
  }
  last->this_page = first;
  p.private_data.store(first, std::memory_order_release);  // release: pairs with page_buffers
  p.set(page_private);
  return true;
}

void drop_buffers(page& p, buffer_cache& heads) noexcept {
  buffer_head* const first = page_buffers(p);
  if (first == nullptr) return;
  p.private_data.store(nullptr, std::memory_order_relaxed);  // relaxed: nobody else looks
  buffer_head* b = first;
  do {
    buffer_head* const next = b->this_page;
    heads.destroy(b);
    b = next;
  } while (b != first);
}

bool move_buffers(page& from, page& to) noexcept {
  buffer_head* const first = page_buffers(from);
  if (first == nullptr) return true;
  bool in_use = false;
  for_each_buffer(from, 0, page_bytes, [&](const buffer_head& b) {
    in_use = in_use || b.count.value() != 1 || b.test(bh_lock | bh_async_read | bh_async_write);
  });
  if (in_use) return false;
  for_each_buffer(from, 0, page_bytes, [&](buffer_head& b) {
    b.data = to.data() + (b.data - from.data());
    b.frame = &to;
  });
  from.private_data.store(nullptr, std::memory_order_relaxed);  // relaxed: nobody else looks
  // release: pairs with page_buffers
  to.private_data.store(first, std::memory_order_release);
  return true;
}

bool is_uptodate(const page& p, std::size_t from, std::size_t to) noexcept {
  if (p.test(page_uptodate)) return true;
  if (page_buffers(p) == nullptr) return false;
  bool all = true;
  for_each_buffer(p, from, to, [&](const buffer_head& b) { all = all && b.test(bh_uptodate); });
  return all;
}

void set_uptodate(page& p, std::size_t from, std::size_t to, std::size_t valid_bytes) noexcept {
  if (page_buffers(p) == nullptr) {
    if (from == 0 && to >= valid_bytes) p.set(page_uptodate);
    return;
  }
  bool all = true;
  for_each_buffer(p, 0, valid_bytes, [&](buffer_head& b) {
    const auto at = static_cast<std::size_t>(b.data - p.data());
    if (at >= from && std::min(at + b.size_bytes, valid_bytes) <= to) b.set(bh_uptodate);
    all = all && b.test(bh_uptodate);
  });
  if (all) p.set(page_uptodate);
}

}  // namespace forebay
