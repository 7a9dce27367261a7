#include "forebay/cache/buffer_head.h"

#include <algorithm>

namespace forebay {

buffer_head* page_buffers(const page& p) noexcept {
  // acquire: pairs with create_empty_buffers, so that the buffers are seen complete.
  return static_cast<buffer_head*>(p.private_data.load(std::memory_order_acquire));
}

buffer_head* alloc_page_buffers(page& p, buffer_cache& heads, device& dev,
                                std::uint32_t block_bytes) noexcept {
  const std::uint64_t blocks = page_bytes / block_bytes;
  // relaxed: the caller's reference keeps the index as it is.
  const std::uint64_t first_block = p.index.load(std::memory_order_relaxed) * blocks;
  buffer_head* first = nullptr;
  buffer_head* last = nullptr;
  for (std::uint64_t i = blocks; i-- > 0;) {
    buffer_head* b = heads.create();
    if (b == nullptr) {
      while (first != nullptr) heads.destroy(std::exchange(first, first->this_page));
      return nullptr;
    }
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
  return first;
}

namespace {

void free_circle(buffer_head* first, buffer_cache& heads) noexcept {
  buffer_head* b = first;
  do {
    FOREBAY_DCHECK(b->assoc_map == nullptr);
    buffer_head* const next = b->this_page;
    heads.destroy(b);
    b = next;
  } while (b != first);
}

}  // namespace

bool create_empty_buffers(page& p, buffer_cache& heads, device& dev, std::uint32_t block_bytes,
                          bool mapped) noexcept {
  if (page_buffers(p) != nullptr) return true;
  buffer_head* const first = alloc_page_buffers(p, heads, dev, block_bytes);
  if (first == nullptr) return false;
  std::uint32_t state = 0;
  if (mapped) state |= bh_mapped;
  if (p.test(page_uptodate)) state |= bh_uptodate;
  if (p.test(page_dirty)) state |= bh_dirty;
  buffer_head* b = first;
  do {
    b->state.store(state, std::memory_order_relaxed);  // relaxed: published below
    b = b->this_page;
  } while (b != first);
  p.private_data.store(first, std::memory_order_release);  // release: pairs with page_buffers
  p.set(page_private);
  return true;
}

void drop_buffers(page& p, buffer_cache& heads) noexcept {
  buffer_head* const first = page_buffers(p);
  if (first == nullptr) return;
  p.private_data.store(nullptr, std::memory_order_relaxed);  // relaxed: nobody else looks
  free_circle(first, heads);
}

bool replace_buffers(page& p, buffer_cache& heads, device& dev,
                     std::uint32_t block_bytes) noexcept {
  buffer_head* const before = page_buffers(p);
  buffer_head* const first = alloc_page_buffers(p, heads, dev, block_bytes);
  if (first == nullptr) return false;
  buffer_head* b = first;
  do {
    b->set(bh_mapped);
    const auto at = static_cast<std::size_t>(b->data - p.data());
    if (is_uptodate(p, at, at + block_bytes)) b->set(bh_uptodate);
    b = b->this_page;
  } while (b != first);
  // relaxed: nobody else looks; who takes a reference from now on acquires it.
  p.private_data.store(first, std::memory_order_relaxed);
  free_circle(before, heads);
  return true;
}

bool move_buffers(page& from, page& to) noexcept {
  buffer_head* const first = page_buffers(from);
  if (first == nullptr) return true;
  bool in_use = false;
  for_each_buffer(from, 0, page_bytes,
                  [&](const buffer_head& b) { in_use = in_use || b.test(bh_lock); });
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

buffer_head* locked_buffer(const page& p, std::size_t from, std::size_t to,
                           std::uint32_t without) noexcept {
  if (page_buffers(p) == nullptr) return nullptr;
  buffer_head* found = nullptr;
  for_each_buffer(p, from, to, [&](buffer_head& b) {
    if (b.test(bh_lock) && !b.test(without)) found = &b;
  });
  return found;
}

void set_uptodate(page& p, std::size_t from, std::size_t to, std::size_t valid_bytes) noexcept {
  if (page_buffers(p) == nullptr) {
    if (from == 0 && to >= valid_bytes) p.set(page_uptodate);
    return;
  }
  for_each_buffer(p, 0, valid_bytes, [&](buffer_head& b) {
    const auto at = static_cast<std::size_t>(b.data - p.data());
    if (at >= from && std::min(at + b.size_bytes, valid_bytes) <= to) b.state.fetch_or(bh_uptodate);
  });
  // Others may do the same for other blocks at this moment, each under its own bh_lock. The changes
  // above and the looks below are sequentially consistent, so the last of them sees all.
  bool all = true;
  for_each_buffer(p, 0, valid_bytes,
                  [&](const buffer_head& b) { all = all && (b.state.load() & bh_uptodate) != 0; });
  if (all) p.set(page_uptodate);
}

void set_buffer_uptodate(buffer_head& b, std::size_t valid_bytes) noexcept {
  const auto at = static_cast<std::size_t>(b.data - b.frame->data());
  set_uptodate(*b.frame, at, at + b.size_bytes, valid_bytes);
}

}  // namespace forebay
