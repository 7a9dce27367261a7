// The index of one address space: a radix tree from page number to frame, 64 slots a node, with
// tags.
//
//   root ── node (shift 12) ── node (shift 6) ── node (shift 0) ── frame
//                                     │                └─────────── 16 slots ── frames of 64 KiB
//                                     └─ 8 slots ── frames of 2 MiB
//
// Slots are 32 bits: 0 is empty, the top bit set is another node (its slab handle), otherwise the
// number of a frame plus one. That makes a node 5 cache lines, so the index costs about 5 bytes for
// a cached page where the pages lie together.
//
// A large page, of 2^order frames, has all the slots that stand for its numbers: 2^(order mod 6)
// neighbouring ones of a node that is order / 6 levels above the leaves, each with its head frame.
// A search that meets a frame before the leaves ends there. What is said of a page by its number
// below, may be said by any of its numbers. (Linux's XArray has sibling slots in place of the equal
// ones.)
//
// lookup() takes no lock and writes nothing. It is a guess: nodes come from a type-stable slab, so
// a reader that is overtaken by an erase walks through nodes that are empty or serve elsewhere now,
// and ends at no frame or at a wrong one. The caller takes a reference on the frame and then checks
// that the frame says it is the page that was looked for. A wrong "none" is found out under the
// owner's lock, where the same lookup is exact.
//
// Tags mark leaves and, in each node above, whether anything below is marked (as in Linux's
// XArray), so the next marked page is found in O(height).
//
// Everything but lookup() is guarded by the owner's lock.
#pragma once

#include <concepts>
#include <cstdint>
#include <optional>

#include "forebay/memory/slab.h"

namespace forebay {

enum class page_tag : unsigned { dirty = 0, writeback = 1 };

// What the index is made of; the explorer has smaller nodes, and its own memory for them.
struct page_index_traits {
  using atomics = real_atomics;
  using node_memory = slab_cache;
  using frame_memory = arena;
  using frame = page;
  static constexpr unsigned bits = 6;  // of a page number, for each node
};

// Its code is in page_index_code.h and compiled in page_index.cc.
template <typename Traits>
class basic_page_index {
 public:
  using page = typename Traits::frame;
  using node_memory = typename Traits::node_memory;
  using frame_memory = typename Traits::frame_memory;

  // An index for pages 0 to page_count - 1. `nodes` is a cache of node_cache_options().
  basic_page_index(node_memory& nodes, frame_memory& memory, std::uint64_t page_count) noexcept;
  // Gives back its nodes; the frames are the caller's business and must be off already.
  ~basic_page_index();
  basic_page_index(const basic_page_index&) = delete;
  basic_page_index& operator=(const basic_page_index&) = delete;

  struct node;

  // Options of the slab that nodes come from.
  static slab_cache::options node_cache_options()
    requires std::same_as<node_memory, slab_cache>;

  // The frame that is at `index`, or that was, or another one: see above. Any thread. O(log64 n).
  page* lookup(std::uint64_t index) const noexcept;

  // Puts a page where there is nothing, at none of its numbers; `index` is the first of these, a
  // multiple of 2^order. A large page is smaller than the index. ENOMEM when a node is needed and
  // there is none: nothing has changed then.
  result<> insert(std::uint64_t index, page& p) noexcept;

  // Puts another frame of the same order at a place that is taken; its tags stay.
  void replace(std::uint64_t index, page& p) noexcept;

  // Empties a place that is taken, and its tags.
  void erase(std::uint64_t index) noexcept;

  void set_tag(std::uint64_t index, page_tag tag) noexcept;
  void clear_tag(std::uint64_t index, page_tag tag) noexcept;

  // The first page that has a number from `from` on and before `end`, and has the tag; its first
  // number, which is before `from` where that lies inside a large page, and its frame.
  struct found {
    std::uint64_t index;
    page* frame;

    // The number behind it, to go on from.
    std::uint64_t end() const noexcept { return index + frame->frames(); }
  };
  std::optional<found> next_tagged(std::uint64_t from, std::uint64_t end,
                                   page_tag tag) const noexcept;
  // The same for any page.
  std::optional<found> next(std::uint64_t from, std::uint64_t end) const noexcept;

  // Pages, large and small.
  std::uint64_t size() const noexcept { return size_; }

 private:
  static constexpr unsigned bits = Traits::bits;
  static constexpr unsigned fanout = 1u << bits;
  static constexpr std::uint32_t node_bit = 1u << 31;

  template <typename T>
  using atomic = typename Traits::atomics::template atomic<T>;

  node* node_of(std::uint32_t entry) const noexcept {
    return static_cast<node*>(nodes_.from_handle(entry & ~node_bit));
  }
  // Where a page is: the slots of `mask` in `n`.
  struct place {
    node* n;
    std::uint64_t mask;
  };
  static std::uint64_t slots_of(std::uint64_t index, unsigned order) noexcept;
  place place_of(std::uint64_t index) const noexcept;
  static void store(const place& at, std::uint32_t entry) noexcept;
  node* add_node(node* parent, unsigned offset, unsigned shift) noexcept;
  void prune(node* n) noexcept;

  template <typename Occupied>
  std::optional<found> search(std::uint64_t from, std::uint64_t end,
                              Occupied occupied) const noexcept;

  node_memory& nodes_;
  frame_memory& arena_;
  const unsigned root_shift_;
  atomic<std::uint32_t> root_{0};  // entry of the root node, 0 while the tree is empty
  std::uint64_t size_ = 0;
};

using page_index = basic_page_index<page_index_traits>;

}  // namespace forebay
