// The code of page_index.h, for who instantiates it: page_index.cc, and the explorer.
#pragma once

#include <algorithm>
#include <array>
#include <bit>

#include "forebay/cache/page_index.h"

namespace forebay {

template <typename Traits>
struct basic_page_index<Traits>::node {
  std::array<atomic<std::uint32_t>, fanout> slots{};
  // Below: guarded by the owner's lock.
  std::array<std::uint64_t, 2> tags{};
  std::uint64_t occupied = 0;  // a bit for each slot that is taken
  node* parent = nullptr;
  std::uint8_t offset = 0;  // in the parent
  std::uint8_t shift = 0;
};

template <typename Traits>
basic_page_index<Traits>::basic_page_index(node_memory& nodes, frame_memory& memory,
                                           std::uint64_t page_count) noexcept
    : nodes_(nodes),
      arena_(memory),
      root_shift_(page_count <= fanout
                      ? 0
                      : (static_cast<unsigned>(std::bit_width(page_count - 1)) - 1) / bits * bits) {
}

template <typename Traits>
basic_page_index<Traits>::~basic_page_index() {
  FOREBAY_ASSERT(size_ == 0);
}

template <typename Traits>
auto basic_page_index<Traits>::lookup(std::uint64_t index) const noexcept -> page* {
  // acquire, here and below: pairs with the release that publishes a node, which may be one that
  // the slab has just made. Frames are there from the start, and say themselves what they are.
  std::uint32_t entry = root_.load(std::memory_order_acquire);
  for (unsigned shift = root_shift_; (entry & node_bit) != 0; shift -= bits) {
    const unsigned slot = static_cast<unsigned>(index >> shift) & (fanout - 1);
    entry = node_of(entry)->slots[slot].load(std::memory_order_acquire);  // acquire: see above
    if (shift == 0) break;
  }
  if (entry == 0 || (entry & node_bit) != 0) return nullptr;
  return &arena_.frame(entry - 1);
}

// The slots of a page of this order, in the node that it is in.
template <typename Traits>
std::uint64_t basic_page_index<Traits>::slots_of(std::uint64_t index, unsigned order) noexcept {
  const unsigned shift = order / bits * bits;
  const unsigned count = 1u << (order - shift);
  const auto slot = static_cast<unsigned>(index >> shift) & (fanout - 1) & ~(count - 1);
  return ((1ull << count) - 1) << slot;
}

// Null and no slots, where there is no page.
template <typename Traits>
auto basic_page_index<Traits>::place_of(std::uint64_t index) const noexcept -> place {
  node* n = nullptr;
  std::uint32_t entry = root_.load(std::memory_order_relaxed);  // relaxed: under the owner's lock
  for (unsigned shift = root_shift_; (entry & node_bit) != 0; shift -= bits) {
    n = node_of(entry);
    const unsigned slot = static_cast<unsigned>(index >> shift) & (fanout - 1);
    entry = n->slots[slot].load(std::memory_order_relaxed);  // relaxed: under the owner's lock
  }
  if (entry == 0) return {nullptr, 0};
  return {n, slots_of(index, arena_.frame(entry - 1).order)};
}

template <typename Traits>
void basic_page_index<Traits>::store(const place& at, std::uint32_t entry) noexcept {
  for (std::uint64_t left = at.mask; left != 0; left &= left - 1) {
    // relaxed: see lookup; what is read of the frame is ordered by the reference taken to it, and
    // who finds some of a large page's slots only looks again under the lock.
    at.n->slots[static_cast<unsigned>(std::countr_zero(left))].store(entry,
                                                                     std::memory_order_relaxed);
  }
}

template <typename Traits>
auto basic_page_index<Traits>::add_node(node* parent, unsigned offset, unsigned shift) noexcept
    -> node* {
  // A node comes back to the slab as it left: empty, so nothing but its place has to be set.
  node* n = static_cast<node*>(nodes_.allocate());
  if (n == nullptr) return nullptr;
  n->parent = parent;
  n->offset = static_cast<std::uint8_t>(offset);
  n->shift = static_cast<std::uint8_t>(shift);
  const std::uint32_t entry = nodes_.handle_of(n) | node_bit;
  if (parent == nullptr) {
    root_.store(entry, std::memory_order_release);  // release: pairs with lookup
  } else {
    parent->slots[offset].store(entry, std::memory_order_release);  // release: pairs with lookup
    parent->occupied |= 1ull << offset;
  }
  return n;
}

// Gives back a node that is empty, and the ones above that this empties.
template <typename Traits>
void basic_page_index<Traits>::prune(node* n) noexcept {
  while (n != nullptr && n->occupied == 0) {
    node* parent = n->parent;
    // relaxed: a reader that still sees the entry finds an empty node.
    if (parent == nullptr) {
      root_.store(0, std::memory_order_relaxed);  // relaxed: see above
    } else {
      parent->slots[n->offset].store(0, std::memory_order_relaxed);  // relaxed: see above
      parent->occupied &= ~(1ull << n->offset);
    }
    nodes_.free(n);
    n = parent;
  }
}

template <typename Traits>
result<> basic_page_index<Traits>::insert(std::uint64_t index, page& p) noexcept {
  const unsigned bottom = p.order / bits * bits;
  FOREBAY_ASSERT(bottom <= root_shift_ && (index & (p.frames() - 1)) == 0);
  std::uint32_t entry = root_.load(std::memory_order_relaxed);  // relaxed: under the owner's lock
  node* n = nullptr;
  unsigned slot = 0;
  for (unsigned shift = root_shift_;; shift -= bits) {
    FOREBAY_ASSERT(entry == 0 || (entry & node_bit) != 0);
    node* below = entry != 0 ? node_of(entry) : add_node(n, slot, shift);
    if (below == nullptr) {
      prune(n);
      return fail(ENOMEM);
    }
    n = below;
    slot = static_cast<unsigned>(index >> shift) & (fanout - 1);
    entry = n->slots[slot].load(std::memory_order_relaxed);  // relaxed: under the owner's lock
    if (shift == bottom) break;
  }
  const place at{n, slots_of(index, p.order)};
  FOREBAY_ASSERT((n->occupied & at.mask) == 0);
  store(at, arena_.frame_of(p) + 1);
  n->occupied |= at.mask;
  ++size_;
  return {};
}

template <typename Traits>
void basic_page_index<Traits>::replace(std::uint64_t index, page& p) noexcept {
  store(place_of(index), arena_.frame_of(p) + 1);
}

template <typename Traits>
void basic_page_index<Traits>::erase(std::uint64_t index) noexcept {
  clear_tag(index, page_tag::dirty);
  clear_tag(index, page_tag::writeback);
  const place at = place_of(index);
  store(at, 0);
  at.n->occupied &= ~at.mask;
  --size_;
  prune(at.n);
}

template <typename Traits>
void basic_page_index<Traits>::set_tag(std::uint64_t index, page_tag tag) noexcept {
  for (place at = place_of(index); at.n != nullptr;) {
    std::uint64_t& word = at.n->tags[static_cast<unsigned>(tag)];
    const bool seen_above = word != 0;
    word |= at.mask;
    if (seen_above) return;
    at = {at.n->parent, 1ull << at.n->offset};
  }
}

template <typename Traits>
void basic_page_index<Traits>::clear_tag(std::uint64_t index, page_tag tag) noexcept {
  for (place at = place_of(index); at.n != nullptr;) {
    std::uint64_t& word = at.n->tags[static_cast<unsigned>(tag)];
    if ((word & at.mask) == 0) return;  // and so nothing of it above
    word &= ~at.mask;
    if (word != 0) return;
    at = {at.n->parent, 1ull << at.n->offset};
  }
}

// Depth-first to the first slot at or after `from` that `occupied` (a mask of a node's slots) lets
// through.
template <typename Traits>
template <typename Occupied>
auto basic_page_index<Traits>::search(std::uint64_t from, std::uint64_t end,
                                      Occupied occupied) const noexcept -> std::optional<found> {
  // Slots are the low bits of a number: past what the root reaches they would begin again at 0.
  end = std::min(end, std::uint64_t{fanout} << root_shift_);
  while (from < end) {
    std::uint32_t entry = root_.load(std::memory_order_relaxed);  // relaxed: under the owner's lock
    if (entry == 0) return std::nullopt;
    for (unsigned shift = root_shift_;; shift -= bits) {
      const node* n = node_of(entry);
      const unsigned slot = static_cast<unsigned>(from >> shift) & (fanout - 1);
      const std::uint64_t left = occupied(*n) >> slot;
      const std::uint64_t step = 1ull << shift;
      if (left == 0) {
        // Nothing more in this node: on to the first page behind it.
        const std::uint64_t span = step << bits;
        if (shift == root_shift_) return std::nullopt;
        from = (from / span + 1) * span;
        break;
      }
      const auto skip = static_cast<unsigned>(std::countr_zero(left));
      if (skip != 0) from = (from / step + skip) * step;
      if (from >= end) return std::nullopt;
      // relaxed: under the owner's lock.
      entry = n->slots[slot + skip].load(std::memory_order_relaxed);
      if ((entry & node_bit) != 0) continue;
      page& p = arena_.frame(entry - 1);
      return found{from & ~std::uint64_t{p.frames() - 1}, &p};
    }
  }
  return std::nullopt;
}

template <typename Traits>
auto basic_page_index<Traits>::next_tagged(std::uint64_t from, std::uint64_t end,
                                           page_tag tag) const noexcept -> std::optional<found> {
  return search(from, end, [tag](const node& n) { return n.tags[static_cast<unsigned>(tag)]; });
}

template <typename Traits>
auto basic_page_index<Traits>::next(std::uint64_t from, std::uint64_t end) const noexcept
    -> std::optional<found> {
  return search(from, end, [](const node& n) { return n.occupied; });
}

}  // namespace forebay
