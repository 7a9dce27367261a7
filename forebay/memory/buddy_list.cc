#include "forebay/memory/buddy_list.h"

#include <algorithm>
#include <bit>
#include <new>

#include "forebay/base/assert.h"

namespace forebay {

buddy_list::buddy_list(std::uint32_t capacity) noexcept
    : sized_free_list(capacity),
      links_(new(std::nothrow) link[capacity]),
      orders_(new(std::nothrow) std::uint8_t[capacity]) {
  first_.fill(none);
  if (orders_) std::fill_n(orders_.get(), capacity, no_block);
}

std::size_t buddy_list::take(std::span<std::uint32_t> items) noexcept {
  const scoped_lock hold(lock_);
  std::size_t n = 0;
  while (n < items.size() && free_ != 0) items[n++] = take_block(0);
  return n;
}

void buddy_list::give(std::span<const std::uint32_t> items) noexcept {
  const scoped_lock hold(lock_);
  for (const std::uint32_t item : items) give_block(item, 0);
}

std::size_t buddy_list::free_count() const noexcept {
  const scoped_lock hold(lock_);
  return free_;
}

std::optional<std::uint32_t> buddy_list::take_run(unsigned order) noexcept {
  if (order > max_order) return std::nullopt;
  const scoped_lock hold(lock_);
  const std::uint32_t first = take_block(order);
  if (first == none) return std::nullopt;
  return first;
}

void buddy_list::give_run(std::uint32_t first, unsigned order) noexcept {
  const scoped_lock hold(lock_);
  give_block(first, order);
}

buddy_list::counts buddy_list::free_blocks() const noexcept {
  const scoped_lock hold(lock_);
  return count_;
}

// The last freed of the smallest sufficient blocks, cut down from the upper end.
std::uint32_t buddy_list::take_block(unsigned order) noexcept {
  const std::uint32_t sufficient = nonempty_ >> order << order;
  if (sufficient == 0) return none;
  auto have = static_cast<unsigned>(std::countr_zero(sufficient));
  const std::uint32_t block = first_[have];
  take_off(block, have);
  while (have > order) {
    --have;
    put_on(block + (1u << have), have);
  }
  free_ -= std::size_t{1} << order;
  return block;
}

void buddy_list::give_block(std::uint32_t first, unsigned order) noexcept {
  FOREBAY_ASSERT(first < capacity() && orders_[first] == no_block);
  free_ += std::size_t{1} << order;
  for (; order < max_order; ++order) {
    // A half that lies behind the capacity is never free.
    const std::uint32_t other = first ^ (1u << order);
    if (other >= capacity() || orders_[other] != order) break;
    take_off(other, order);
    first &= ~(1u << order);
  }
  put_on(first, order);
}

void buddy_list::put_on(std::uint32_t first, unsigned order) noexcept {
  const std::uint32_t next = first_[order];
  links_[first] = {.next = next, .prev = none};
  if (next != none) links_[next].prev = first;
  first_[order] = first;
  orders_[first] = static_cast<std::uint8_t>(order);
  nonempty_ |= 1u << order;
  ++count_[order];
}

void buddy_list::take_off(std::uint32_t first, unsigned order) noexcept {
  const link l = links_[first];
  if (l.next != none) links_[l.next].prev = l.prev;
  if (l.prev != none) {
    links_[l.prev].next = l.next;
  } else {
    first_[order] = l.next;
  }
  orders_[first] = no_block;
  if (--count_[order] == 0) nonempty_ &= ~(1u << order);
}

}  // namespace forebay
