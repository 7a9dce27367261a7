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
  for (unsigned shift = root_shift_;; shift -= bits) {
    if ((entry & node_bit) == 0) return nullptr;
    const unsigned slot = static_cast<unsigned>(index >> shift) & (fanout - 1);
    entry = node_of(entry)->slots[slot].load(std::memory_order_acquire);  // acquire: see above
    if (shift == 0) break;
  }
  if (entry == 0 || (entry & node_bit) != 0) return nullptr;
  return &arena_.frame(entry - 1);
}

template <typename Traits>
auto basic_page_index<Traits>::leaf_of(std::uint64_t index) const noexcept -> node* {
  std::uint32_t entry = root_.load(std::memory_order_relaxed);  // relaxed: under the owner's lock
  for (unsigned shift = root_shift_;; shift -= bits) {
    if (entry == 0) return nullptr;
    node* n = node_of(entry);
    if (shift == 0) return n;
    const unsigned slot = static_cast<unsigned>(index >> shift) & (fanout - 1);
    entry = n->slots[slot].load(std::memory_order_relaxed);  // relaxed: under the owner's lock
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
  std::uint32_t entry = root_.load(std::memory_order_relaxed);  // relaxed: under the owner's lock
  node* n = nullptr;
  unsigned slot = 0;
  for (unsigned shift = root_shift_;; shift -= bits) {
    node* below = entry != 0 ? node_of(entry) : add_node(n, slot, shift);
    if (below == nullptr) {
      prune(n);
      return fail(ENOMEM);
    }
    n = below;
    slot = static_cast<unsigned>(index >> shift) & (fanout - 1);
    entry = n->slots[slot].load(std::memory_order_relaxed);  // relaxed: under the owner's lock
    if (shift == 0) break;
  }
  FOREBAY_ASSERT(entry == 0);
  // relaxed: see lookup; what is read of the frame is ordered by the reference taken to it.
  n->slots[slot].store(arena_.frame_of(p) + 1, std::memory_order_relaxed);
  n->occupied |= 1ull << slot;
  ++size_;
  return {};
}

template <typename Traits>
void basic_page_index<Traits>::replace(std::uint64_t index, page& p) noexcept {
  const auto slot = static_cast<unsigned>(index) & (fanout - 1);
  // relaxed: as in insert
  leaf_of(index)->slots[slot].store(arena_.frame_of(p) + 1, std::memory_order_relaxed);
}

template <typename Traits>
void basic_page_index<Traits>::erase(std::uint64_t index) noexcept {
  clear_tag(index, page_tag::dirty);
  clear_tag(index, page_tag::writeback);
  node* n = leaf_of(index);
  const auto slot = static_cast<unsigned>(index) & (fanout - 1);
  n->slots[slot].store(0, std::memory_order_relaxed);  // relaxed: a reader checks the frame itself
  n->occupied &= ~(1ull << slot);
  --size_;
  prune(n);
}

template <typename Traits>
void basic_page_index<Traits>::set_tag(std::uint64_t index, page_tag tag) noexcept {
  auto slot = static_cast<unsigned>(index) & (fanout - 1);
  for (node* n = leaf_of(index); n != nullptr; n = n->parent) {
    std::uint64_t& word = n->tags[static_cast<unsigned>(tag)];
    const bool seen_above = word != 0;
    word |= 1ull << slot;
    if (seen_above) return;
    slot = n->offset;
  }
}

template <typename Traits>
void basic_page_index<Traits>::clear_tag(std::uint64_t index, page_tag tag) noexcept {
  auto slot = static_cast<unsigned>(index) & (fanout - 1);
  for (node* n = leaf_of(index); n != nullptr; n = n->parent) {
    std::uint64_t& word = n->tags[static_cast<unsigned>(tag)];
    if ((word & (1ull << slot)) == 0) return;  // and so nothing of it above
    word &= ~(1ull << slot);
    if (word != 0) return;
    slot = n->offset;
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
      if (shift == 0) return found{from, &arena_.frame(entry - 1)};
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
