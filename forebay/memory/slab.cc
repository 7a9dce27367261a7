#include "forebay/memory/slab.h"

#include <algorithm>
#include <bit>

#include "forebay/base/cache_line.h"

namespace forebay {

struct slab_cache::slab {
  list_node link;
  std::uint32_t free_count = 0;
  page* block = nullptr;

  // The stack of free object numbers, behind the header.
  std::uint16_t* free_stack() noexcept { return reinterpret_cast<std::uint16_t*>(this + 1); }

  static slab& of(list_node& node) noexcept { return *reinterpret_cast<slab*>(&node); }
};

namespace {

constexpr std::size_t max_object_bytes = 2048;
constexpr std::uint32_t wanted_objects = 8;  // of a slab, so that its header stays a small share

}  // namespace

slab_cache::slab_cache(arena& memory, options opts)
    : arena_(memory), base_(memory.memory().data()), options_(std::move(opts)) {
  static_assert(offsetof(slab, link) == 0);
  FOREBAY_ASSERT(options_.object_bytes > 0 && options_.object_bytes <= max_object_bytes);
  FOREBAY_ASSERT(std::has_single_bit(options_.alignment) && options_.alignment >= 64 &&
                 options_.alignment <= page_bytes);
  stride_ = round_up(options_.object_bytes, options_.alignment);
  order_ = 0;
  for (;; ++order_) {
    const std::size_t room = page_bytes << order_;
    count_ = static_cast<std::uint32_t>((room - sizeof(slab)) / (stride_ + sizeof(std::uint16_t)));
    // The alignment of object 0 may cost one object.
    first_ = round_up(sizeof(slab) + count_ * sizeof(std::uint16_t), options_.alignment);
    while (first_ + count_ * stride_ > room) --count_;
    if (count_ >= wanted_objects) break;
  }
  const scoped_lock hold(lock_);
  statistics_.slab_bytes = page_bytes << order_;
}

slab_cache::~slab_cache() {
  const scoped_lock hold(lock_);
  FOREBAY_ASSERT(statistics_.objects_in_use == 0);
  while (partial_.linked()) release_slab(slab::of(*partial_.next()));
}

std::byte* slab_cache::object_at(slab& s, std::uint32_t index) const noexcept {
  return reinterpret_cast<std::byte*>(&s) + first_ + index * stride_;
}

slab_cache::slab* slab_cache::add_slab() noexcept {
  page* block = arena_.allocate(order_);
  if (block == nullptr) return nullptr;
  slab* s = new (block->data()) slab;
  s->block = block;
  s->free_count = count_;
  for (std::uint32_t i = 0; i < count_; ++i) {
    s->free_stack()[i] = static_cast<std::uint16_t>(count_ - 1 - i);
    if (options_.construct != nullptr) options_.construct(object_at(*s, i));
  }
  s->link.insert_after(partial_);
  ++empty_slabs_;
  ++statistics_.slabs;
  statistics_.objects_total += count_;
  return s;
}

void slab_cache::release_slab(slab& s) noexcept {
  s.link.unlink();
  --empty_slabs_;
  --statistics_.slabs;
  statistics_.objects_total -= count_;
  page* block = s.block;
  s.~slab();
  put_page(*block);
}

void* slab_cache::allocate() noexcept {
  const scoped_lock hold(lock_);
  slab* s = partial_.linked() ? &slab::of(*partial_.next()) : add_slab();
  if (s == nullptr) {
    ++statistics_.failures;
    return nullptr;
  }
  if (s->free_count == count_) --empty_slabs_;
  const std::uint16_t index = s->free_stack()[--s->free_count];
  if (s->free_count == 0) {
    s->link.unlink();
    s->link.insert_after(full_);
  }
  ++statistics_.objects_in_use;
  return object_at(*s, index);
}

void slab_cache::free(void* object) noexcept {
  // A slab's block is aligned to its size relative to the arena's start.
  const auto distance = static_cast<std::size_t>(static_cast<std::byte*>(object) - base_);
  slab& s = *reinterpret_cast<slab*>(base_ + round_down(distance, page_bytes << order_));
  const auto offset = static_cast<std::size_t>(static_cast<std::byte*>(object) - object_at(s, 0));
  const scoped_lock hold(lock_);
  FOREBAY_ASSERT(offset % stride_ == 0 && s.free_count < count_);
  if (s.free_count == 0) {
    s.link.unlink();
    s.link.insert_after(partial_);
  }
  s.free_stack()[s.free_count++] = static_cast<std::uint16_t>(offset / stride_);
  --statistics_.objects_in_use;
  if (s.free_count != count_) return;
  ++empty_slabs_;
  // One empty slab stays, so that a cache that breathes does not go to the arena each time.
  if (!options_.type_stable && empty_slabs_ > 1) {
    release_slab(s);
  } else {
    s.link.unlink();
    s.link.insert_after(*partial_.prev());  // emptied slabs are used last
  }
}

slab_statistics slab_cache::statistics() const noexcept {
  const scoped_lock hold(lock_);
  return statistics_;
}

}  // namespace forebay
