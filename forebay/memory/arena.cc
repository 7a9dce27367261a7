#include "forebay/memory/arena.h"

#include <algorithm>
#include <bit>
#include <new>

#include "forebay/base/cache_line.h"

namespace forebay {

std::byte* page::data() const noexcept { return home->address_of(*this); }

void release_page(page& p) noexcept { p.home->release(p); }

result<std::unique_ptr<arena>> arena::create(const options& opts, memory_source& source) {
  if (opts.bytes < min_bytes) return fail(errc::too_small);
  if (opts.bytes > max_bytes) return fail(errc::too_large);
  const auto count = static_cast<std::uint32_t>(opts.bytes / (page_bytes + sizeof(page)));
  auto data = source.map(std::size_t{count} << page_shift, opts.huge_pages);
  if (!data) return fail(data.error());
  auto states = source.map(count * sizeof(page), false);
  if (!states) return fail(states.error());
  std::unique_ptr<arena> a(new (std::nothrow) arena(std::move(*data), std::move(*states), count));
  if (!a) return fail(ENOMEM);
  return a;
}

arena::arena(memory_mapping data, memory_mapping pages_mapping, std::uint32_t page_count) noexcept
    : data_(std::move(data)), page_states_(std::move(pages_mapping)), page_count_(page_count) {
  for (std::uint32_t i = 0; i < page_count_; ++i) {
    page* p = new (pages() + i) page;
    p->home = this;
  }
  const scoped_lock hold(lock_);
  for (std::uint32_t at = 0; at < page_count_;) {
    // The largest block that is aligned at `at` and does not reach past the end.
    const unsigned by_alignment = at == 0 ? max_order : static_cast<unsigned>(std::countr_zero(at));
    const unsigned by_room = static_cast<unsigned>(std::bit_width(page_count_ - at)) - 1;
    const unsigned order = std::min({by_alignment, by_room, max_order});
    add_free(frame(at), order);
    at += 1u << order;
  }
}

arena::~arena() { FOREBAY_ASSERT(free_pages() == page_count_); }

void arena::add_free(page& block, unsigned order) noexcept {
  block.order = static_cast<std::uint8_t>(order);
  block.set(page_in_buddy);
  free_[order].push_front(block);
  ++free_count_[order];
  // relaxed: lock_ orders the writers, readers take a hint.
  free_pages_.fetch_add(1u << order, std::memory_order_relaxed);
}

void arena::remove_free(page& block) noexcept {
  free_list::erase(block);
  block.clear(page_in_buddy);
  --free_count_[block.order];
  // relaxed: as in add_free.
  free_pages_.fetch_sub(1u << block.order, std::memory_order_relaxed);
}

page* arena::allocate(unsigned order) noexcept {
  if (order > max_order) return nullptr;
  page* block = nullptr;
  {
    const scoped_lock hold(lock_);
    unsigned found = order;
    while (found <= max_order && free_[found].empty()) ++found;
    if (found > max_order) return nullptr;
    block = &free_[found].front();
    remove_free(*block);
    while (found > order) {
      --found;
      add_free(block[std::size_t{1} << found], found);
    }
    block->order = static_cast<std::uint8_t>(order);
  }
  // relaxed: refs.set() below publishes the fields to who takes a reference.
  block->flags.store(0, std::memory_order_relaxed);
  block->private_data.store(nullptr, std::memory_order_relaxed);  // relaxed: see above
  block->owner.store(nullptr, std::memory_order_relaxed);         // relaxed: see above
  block->refs.set(1);
  return block;
}

void arena::split(page& block) noexcept {
  const std::size_t count = std::size_t{1} << block.order;
  block.order = 0;
  for (std::size_t i = 1; i < count; ++i) {
    page& p = (&block)[i];
    p.order = 0;
    p.flags.store(0, std::memory_order_relaxed);               // relaxed: refs.set() publishes
    p.private_data.store(nullptr, std::memory_order_relaxed);  // relaxed: as above
    p.owner.store(nullptr, std::memory_order_relaxed);         // relaxed: as above
    p.refs.set(1);
  }
}

void arena::release(page& block) noexcept {
  FOREBAY_DCHECK(block.refs.value() == 0 && !block.link.linked());
  // relaxed: nobody can hold a reference now.
  block.owner.store(nullptr, std::memory_order_relaxed);
  const scoped_lock hold(lock_);
  std::uint32_t at = frame_of(block);
  unsigned order = block.order;
  while (order < max_order) {
    const std::uint32_t buddy_at = at ^ (1u << order);
    if (buddy_at + (1u << order) > page_count_) break;
    page& buddy = frame(buddy_at);
    if (!buddy.test(page_in_buddy) || buddy.order != order) break;
    remove_free(buddy);
    at = std::min(at, buddy_at);
    ++order;
  }
  add_free(frame(at), order);
}

std::array<std::uint32_t, arena::max_order + 1> arena::free_blocks() const noexcept {
  const scoped_lock hold(lock_);
  return free_count_;
}

}  // namespace forebay
