// The code of page_index.h, for who instantiates it: page_index.cc, and the explorer.
#pragma once

#include <algorithm>
#include <array>
#include <bit>

#include "forebay/cache/page_index.h"

namespace forebay {

// Of the root of an index for so many pages.
template <typename Traits>
unsigned basic_page_index<Traits>::shift_for(std::uint64_t page_count) noexcept {
  if (page_count <= fanout) return 0;
  return (static_cast<unsigned>(std::bit_width(page_count - 1)) - 1) / bits * bits;
}

template <typename Traits>
basic_page_index<Traits>::basic_page_index(node_memory& nodes, frame_memory& memory,
                                           std::uint64_t page_count,
                                           std::uint64_t most_pages) noexcept
    : nodes_(nodes),
      arena_(memory),
      first_home_(Traits::take_places(std::max(page_count, most_pages) + fanout)),
      root_(top_of(0, shift_for(page_count))) {}

template <typename Traits>
basic_page_index<Traits>::~basic_page_index() {
  FOREBAY_ASSERT(size_ == 0);
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
  // acquire: who has a page of the old root's beneath it, and no lock of the owner's, may be the
  // first to meet a root above it.
  const std::uint64_t top = root_.load(std::memory_order_acquire);
  std::uint32_t entry = entry_of(top);
  for (unsigned shift = shift_of(top); (entry & node_bit) != 0; shift -= bits) {
    n = node_of(entry);
    const unsigned slot = static_cast<unsigned>(index >> shift) & (fanout - 1);
    // relaxed: under the owner's lock, or that of a page that is there, which keeps its path.
    entry = n->slots[slot].load(std::memory_order_relaxed);
  }
  if (entry == 0) return {nullptr, 0};
  return {n, slots_of(index, order_of(entry))};
}

template <typename Traits>
std::uint32_t basic_page_index<Traits>::entry_for(page& p) const noexcept {
  const std::uint32_t number = arena_.frame_of(p) + 1;
  FOREBAY_ASSERT(number <= number_mask && p.order < 16);
  return number | std::uint32_t{p.order} << order_shift;
}

// Calls change(slot, what it is now) for the slots of a page. relaxed: they are changed under the
// owner's lock or the page's, and not by two threads at a time.
template <typename Traits>
template <typename Change>
void basic_page_index<Traits>::change_slots(const place& at, Change change) noexcept {
  for (std::uint64_t left = at.mask; left != 0; left &= left - 1) {
    atomic<std::uint32_t>& slot = at.n->slots[static_cast<unsigned>(std::countr_zero(left))];
    change(slot, slot.load(std::memory_order_relaxed));  // relaxed: see above
  }
}

// The node of this shift on the way to page `index`.
template <typename Traits>
auto basic_page_index<Traits>::add_node(node* parent, std::uint64_t index, unsigned shift) noexcept
    -> node* {
  // A node comes back to the slab as it left: empty, so nothing but its place has to be set.
  node* n = static_cast<node*>(nodes_.allocate());
  if (n == nullptr) return nullptr;
  n->parent = parent;
  n->offset = static_cast<std::uint8_t>((index >> shift >> bits) & (fanout - 1));
  n->shift = static_cast<std::uint8_t>(shift);
  n->home.store(home_of(index, shift), std::memory_order_relaxed);  // relaxed: published with it
  const std::uint32_t entry = nodes_.handle_of(n) | node_bit;
  if (parent == nullptr) {
    root_.store(top_of(entry, shift), std::memory_order_release);  // release: pairs with lookup
  } else {
    parent->slots[n->offset].store(entry, std::memory_order_release);  // release: pairs with lookup
    parent->occupied |= 1ull << n->offset;
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
      root_.store(top_of(0, n->shift), std::memory_order_relaxed);  // relaxed: see above
    } else {
      parent->slots[n->offset].store(0, std::memory_order_relaxed);  // relaxed: see above
      parent->occupied &= ~(1ull << n->offset);
    }
    nodes_.free(n);
    n = parent;
  }
}

template <typename Traits>
result<> basic_page_index<Traits>::grow(std::uint64_t page_count) noexcept {
  const unsigned wanted = shift_for(page_count);
  for (;;) {
    const std::uint64_t top = root_.load(std::memory_order_relaxed);  // relaxed: the owner's lock
    if (shift_of(top) >= wanted) return {};
    const unsigned shift = shift_of(top) + bits;
    if (entry_of(top) == 0) {
      root_.store(top_of(0, shift), std::memory_order_relaxed);  // relaxed: there is nothing below
      continue;
    }
    node* const n = static_cast<node*>(nodes_.allocate());
    if (n == nullptr) return fail(ENOMEM);
    node* const below = node_of(entry_of(top));
    n->parent = nullptr;
    n->offset = 0;
    n->shift = static_cast<std::uint8_t>(shift);
    // relaxed, both: published with it
    n->home.store(home_of(0, shift), std::memory_order_relaxed);
    n->slots[0].store(entry_of(top), std::memory_order_relaxed);
    n->occupied = 1;
    for (std::size_t t = 0; t < n->tags.size(); ++t) n->tags[t] = below->tags[t] != 0 ? 1 : 0;
    below->parent = n;
    below->offset = 0;
    // release: pairs with lookup
    root_.store(top_of(nodes_.handle_of(n) | node_bit, shift), std::memory_order_release);
  }
}

template <typename Traits>
result<> basic_page_index<Traits>::insert(std::uint64_t index, page& p) noexcept {
  const unsigned bottom = p.order / bits * bits;
  FOREBAY_ASSERT(bottom <= root_shift() && (index & (p.frames() - 1)) == 0);
  // relaxed: under the owner's lock
  std::uint32_t entry = entry_of(root_.load(std::memory_order_relaxed));
  node* n = nullptr;
  unsigned slot = 0;
  for (unsigned shift = root_shift();; shift -= bits) {
    // A large page; no node has been made then, which would have been empty.
    if (entry != 0 && (entry & node_bit) == 0) return fail(EEXIST);
    node* below = entry != 0 ? node_of(entry) : add_node(n, index, shift);
    if (below == nullptr) {
      prune(n);
      return fail(ENOMEM);
    }
    n = below;
    slot = static_cast<unsigned>(index >> shift) & (fanout - 1);
    // relaxed: under the owner's lock
    entry = n->slots[slot].load(std::memory_order_relaxed);
    if (shift == bottom) break;
  }
  const place at{n, slots_of(index, p.order)};
  // Nodes are there because there is something below them.
  if ((n->occupied & at.mask) != 0) return fail(EEXIST);
  const std::uint32_t own = entry_for(p);
  change_slots(at, [own](atomic<std::uint32_t>& slot_word, std::uint32_t) {
    // relaxed: what is read of the frame is ordered by the reference taken to it, and who finds
    // some of a large page's slots only looks again under the lock.
    slot_word.store(own, std::memory_order_relaxed);
  });
  // release: who still reads the frame as what it was before, and sees a byte of what the caller
  // puts there, also sees that this had gone; pairs with still_valid().
  Traits::atomics::fence(std::memory_order_release);
  n->occupied |= at.mask;
  ++size_;
  return {};
}

template <typename Traits>
void basic_page_index<Traits>::replace(std::uint64_t index, page& p) noexcept {
  const std::uint32_t own = entry_for(p);
  const place at = place_of(index);
  change_slots(at, [own](atomic<std::uint32_t>& slot, std::uint32_t was) {
    // release: the data that has been put into the new frame; pairs with look().
    slot.store(own | (was & readable_bit), std::memory_order_release);
  });
  change_versions(at);
}

// After the slots of a page have been changed, which was readable.
template <typename Traits>
void basic_page_index<Traits>::change_versions(const place& at) noexcept {
  std::uint64_t left = at.mask;
  while (left != 0) {
    const auto slot = static_cast<unsigned>(std::countr_zero(left));
    // release: who sees the version sees the slot as it is now; pairs with look(). Added, because
    // pages beside this one share it.
    at.n->version_of(slot).fetch_add(1, std::memory_order_release);
    // The slots of this version, and those before it, which are done.
    const unsigned next =
        slot / node::slots_per_version * node::slots_per_version + node::slots_per_version;
    left = next < 64 ? left >> next << next : 0;
  }
}

template <typename Traits>
void basic_page_index<Traits>::begin_change(std::uint64_t index) noexcept {
  const place at = place_of(index);
  bool readable = false;
  change_slots(at, [&](atomic<std::uint32_t>& slot, std::uint32_t was) {
    readable = (was & readable_bit) != 0;
    // relaxed: published with the version
    slot.store(was & ~readable_bit, std::memory_order_relaxed);
  });
  if (!readable) return;
  change_versions(at);
  // release: who sees a byte of what is written now also sees that the version has changed; pairs
  // with still_valid().
  Traits::atomics::fence(std::memory_order_release);
}

template <typename Traits>
void basic_page_index<Traits>::end_change(std::uint64_t index) noexcept {
  change_slots(place_of(index), [](atomic<std::uint32_t>& slot, std::uint32_t was) {
    slot.store(was | readable_bit,
               std::memory_order_release);  // release: the data; pairs with look()
  });
}

template <typename Traits>
result<> basic_page_index<Traits>::split(std::uint64_t index, page& p) noexcept {
  const place at = place_of(index);
  const auto slot = static_cast<unsigned>(std::countr_zero(at.mask));
  const auto count = static_cast<unsigned>(std::popcount(at.mask));
  const unsigned bottom = p.order / bits * bits;
  FOREBAY_ASSERT(bottom <= bits);  // one level of nodes to be added at most
  std::array<node*, fanout> leaves{};
  for (unsigned i = 0; bottom != 0 && i < count; ++i) {
    leaves[i] = static_cast<node*>(nodes_.allocate());
    if (leaves[i] != nullptr) continue;
    while (i != 0) nodes_.free(leaves[--i]);
    return fail(ENOMEM);
  }
  std::uint32_t number = arena_.frame_of(p) + 1;
  if (bottom == 0) {
    change_slots(at, [&number](atomic<std::uint32_t>& s, std::uint32_t was) {
      s.store(number++ | (was & readable_bit), std::memory_order_release);  // release: as replace()
    });
  }
  constexpr std::uint64_t all = ~0ull >> (64 - fanout);
  for (unsigned i = 0; bottom != 0 && i < count; ++i) {
    node& leaf = *leaves[i];
    atomic<std::uint32_t>& above = at.n->slots[slot + i];
    // relaxed: the page is nobody's
    const std::uint32_t readable = above.load(std::memory_order_relaxed) & readable_bit;
    leaf.parent = at.n;
    leaf.offset = static_cast<std::uint8_t>(slot + i);
    leaf.shift = 0;
    leaf.home.store(home_of(index + std::uint64_t{i} * fanout, 0),
                    std::memory_order_relaxed);  // relaxed: published with it
    leaf.occupied = all;
    for (std::size_t t = 0; t < leaf.tags.size(); ++t) {
      leaf.tags[t] = (at.n->tags[t] & at.mask) != 0 ? all : 0;
    }
    change_slots({&leaf, all}, [&number, readable](atomic<std::uint32_t>& s, std::uint32_t) {
      s.store(number++ | readable, std::memory_order_release);  // release: as replace()
    });
    above.store(nodes_.handle_of(&leaf) | node_bit, std::memory_order_release);  // release: walk()
  }
  change_versions(at);
  at.n->marks.fetch_and(~at.mask, std::memory_order_relaxed);  // relaxed: a hint
  size_ += p.frames() - 1;
  return {};
}

template <typename Traits>
void basic_page_index<Traits>::erase(std::uint64_t index) noexcept {
  const place at = place_of(index);
  clear_tag_at(at, page_tag::dirty);
  clear_tag_at(at, page_tag::writeback);
  change_slots(at, [](atomic<std::uint32_t>& slot, std::uint32_t) {
    // relaxed: a reader checks the frame itself, or the version
    slot.store(0, std::memory_order_relaxed);
  });
  change_versions(at);
  // relaxed, both: a hint
  if ((at.n->marks.load(std::memory_order_relaxed) & at.mask) != 0)
    at.n->marks.fetch_and(~at.mask, std::memory_order_relaxed);
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
  clear_tag_at(place_of(index), tag);
}

template <typename Traits>
void basic_page_index<Traits>::clear_tag_at(place at, page_tag tag) noexcept {
  while (at.n != nullptr) {
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
  const unsigned top_shift = root_shift();
  end = std::min(end, std::uint64_t{fanout} << top_shift);
  while (from < end) {
    // relaxed: under the owner's lock
    std::uint32_t entry = entry_of(root_.load(std::memory_order_relaxed));
    if (entry == 0) return std::nullopt;
    for (unsigned shift = top_shift;; shift -= bits) {
      const node* n = node_of(entry);
      const unsigned slot = static_cast<unsigned>(from >> shift) & (fanout - 1);
      const std::uint64_t left = occupied(*n) >> slot;
      const std::uint64_t step = 1ull << shift;
      if (left == 0) {
        // Nothing more in this node: on to the first page behind it.
        const std::uint64_t span = step << bits;
        if (shift == top_shift) return std::nullopt;
        from = (from / span + 1) * span;
        break;
      }
      const auto skip = static_cast<unsigned>(std::countr_zero(left));
      if (skip != 0) from = (from / step + skip) * step;
      if (from >= end) return std::nullopt;
      // relaxed: under the owner's lock.
      entry = n->slots[slot + skip].load(std::memory_order_relaxed);
      if ((entry & node_bit) != 0) continue;
      page& p = frame_of(entry);
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

// The tags of an inner node are those of any page below.
template <typename Traits>
auto basic_page_index<Traits>::next_clean(std::uint64_t from, std::uint64_t end) const noexcept
    -> std::optional<found> {
  return search(from, end, [](const node& n) {
    return n.shift == 0 ? n.occupied & ~(n.tags[0] | n.tags[1]) : n.occupied;
  });
}

}  // namespace forebay
