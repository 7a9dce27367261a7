// The index of one address space: a radix tree from page number to frame, 64 slots a node, with
// tags.
//
//   root ── node (shift 12) ── node (shift 6) ── node (shift 0) ── frame
//                                     │                └─────────── 16 slots ── frames of 64 KiB
//                                     └─ 8 slots ── frames of 2 MiB
//
// A slot is 32 bits:
//
//   31     30         29   26   25        0
//   | 0    | readable | order  | frame + 1 |   a page; 0: empty
//   | 1    |          slab handle          |   another node
//
// A page is readable while all of it is valid and nobody changes it. Beside the slots a node has a
// version for each 4 of them. It counts whatever happens to a readable page there that a reader
// must not miss: that it becomes unreadable, is taken off, or gets another frame. It never goes
// back, also when the node serves elsewhere. A node is 6 cache lines, so the index costs about 6
// bytes for a cached page where the pages lie together.
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
// look() takes no reference either. It remembers the version, and that the slot was readable after
// that and its node, by what the node says of itself, the right one. The caller reads the page's
// data, knowing that it may read nonsense, and then asks the sight whether the version is still the
// same: then what was read is the page, as it was at one moment (a sequence lock, after Boehm, "Can
// seqlocks get along with programming language memory models?", MSPC 2012). Not a byte is written,
// so any number of CPUs read one page at full speed. A node that is emptied has changed the version
// of every page that was readable, so one that serves elsewhere meanwhile is noticed too.
//
// pin() takes a reference to what has been seen and then asks the same question: if the version is
// the same, the frame was still the page's when the reference was there, and so stays the page's.
// It looks at the frame's count and at nothing else of the frame.
//
// Tags mark leaves and, in each node above, whether anything below is marked (as in Linux's
// XArray), so the next marked page is found in O(height).
//
// lookup(), look() and the walk in them are part of their callers whatever these are: what they
// return would go through memory otherwise, which takes longer than to find it.
//
// Guards: everything but lookup(), look() and the marks is guarded by the owner's lock; a
// page's readability, begin_change() and end_change(), by the page's lock while the page is in the
// index, or by the owner's lock when nobody can have that.
#pragma once

#include <array>
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
  // The first of `count` numbers that no other index of this process gets.
  static std::uint64_t take_places(std::uint64_t count) noexcept;
};

// Its code is in page_index_code.h and compiled in page_index.cc.
template <typename Traits>
class basic_page_index {
 public:
  using page = typename Traits::frame;
  using node_memory = typename Traits::node_memory;
  using frame_memory = typename Traits::frame_memory;

  // An index for pages 0 to page_count - 1, which may grow to `most_pages` if that is more. `nodes`
  // is a cache of node_cache_options().
  basic_page_index(node_memory& nodes, frame_memory& memory, std::uint64_t page_count,
                   std::uint64_t most_pages = 0) noexcept;
  // Gives back its nodes; the frames are the caller's business and must be off already.
  ~basic_page_index();
  basic_page_index(const basic_page_index&) = delete;
  basic_page_index& operator=(const basic_page_index&) = delete;

  struct node;

  // Options of the slab that nodes come from.
  static slab_cache::options node_cache_options()
    requires std::same_as<node_memory, slab_cache>;

  class sight;

  // The frame that is at `index`, or that was, or another one: see above. Any thread. O(log64 n).
  [[gnu::always_inline]] page* lookup(std::uint64_t index) const noexcept {
    const std::uint32_t entry = walk(index).entry;
    if (entry == 0 || (entry & node_bit) != 0) return nullptr;
    return &frame_of(entry);
  }

  // The page that is readable at `index`; none if there is none, or perhaps is none. Any thread.
  [[gnu::always_inline]] sight look(std::uint64_t index) const noexcept {
    slot_seen at = walk(index);
    if ((at.entry & (node_bit | readable_bit)) != readable_bit) return {};
    // acquire, both: who reads a version sees the slot as it was then, or later; and the data as it
    // was when the page became readable, and the node's home as it was then, or later.
    const atomic<std::uint32_t>& counted = at.n->version_of(at.slot);
    const std::uint32_t current = counted.load(std::memory_order_acquire);
    at.entry = at.n->slots[at.slot].load(std::memory_order_acquire);  // acquire: above
    if ((at.entry & (node_bit | readable_bit)) != readable_bit) return {};
    // relaxed: of this slot's life, or still_valid() finds that the slot has another.
    if (at.n->home.load(std::memory_order_relaxed) != home_of(index, at.shift)) return {};
    if (order_of(at.entry) != 0) [[unlikely]]
      at.entry += static_cast<std::uint32_t>(index) & ((1u << order_of(at.entry)) - 1);
    // relaxed: a hint
    const bool marked = (at.n->marks.load(std::memory_order_relaxed) >> at.slot & 1) != 0;
    return {counted, current, marked ? at.entry : at.entry & ~sight::mark_bit};
  }

  // A reference to the page that has been seen, the head's if it is a large one, if it is still
  // there and readable; Reference is page_ref, or stands for it. Any thread.
  template <typename Reference>
  Reference pin(const sight& s) const noexcept {
    page& p = arena_.frame(s.head_number());
    // A frame that serves elsewhere by now has been given its count after the version was changed,
    // and who takes a reference to it sees that.
    if (!p.refs().get_unless_zero()) return {};
    Reference ref = Reference::adopt(p);
    if (!s.still_valid()) return {};
    return ref;
  }

  // Fetches what a look-up of this page will read of the index, and when that is there what it will
  // read of the frame: that of the 4 KiB, whose number is returned, so that the caller may fetch
  // its data; none where there is no page. Hints. Any thread.
  [[gnu::always_inline]] void expect_lookup(std::uint64_t index) const noexcept {
    const slot_seen at = walk_to<false>(index);
    if (at.n == nullptr) return;
    __builtin_prefetch(&at.n->slots[at.slot]);
    __builtin_prefetch(&at.n->version_of(at.slot));
    __builtin_prefetch(&at.n->home);
  }
  [[gnu::always_inline]] std::optional<std::uint32_t> expect_pin(
      std::uint64_t index) const noexcept {
    const std::uint32_t entry = walk(index).entry;
    if (entry == 0 || (entry & node_bit) != 0) return std::nullopt;
    page& head = frame_of(entry);
    __builtin_prefetch(&head.refs(), 1);
    __builtin_prefetch(&head);
    return number_of(entry) + (static_cast<std::uint32_t>(index) & ((1u << order_of(entry)) - 1));
  }

  // Fetches what will be needed to put a page at a place or to take one off: a hint. Any thread.
  [[gnu::always_inline]] void prefetch(std::uint64_t index) const noexcept {
    const slot_seen at = walk_to<false>(index);
    if (at.n == nullptr) return;
    __builtin_prefetch(&at.n->slots[at.slot], 1);
    __builtin_prefetch(&at.n->version_of(at.slot), 1);
    __builtin_prefetch(&at.n->occupied, 1);
  }

  // A mark beside a slot, for who has to do something only once (sight::marked()): a hint, which
  // may get lost, or stay for another page. Any thread.
  void set_mark(std::uint64_t index) const noexcept {
    const slot_seen at = walk(index);
    if (at.n == nullptr) return;
    at.n->marks.fetch_or(1ull << at.slot, std::memory_order_relaxed);  // relaxed: a hint
  }
  // Those of all of the page.
  void clear_mark(std::uint64_t index) const noexcept {
    const slot_seen at = walk(index);
    if (at.n == nullptr) return;
    const std::uint64_t mask = slots_of(index, order_of(at.entry));
    at.n->marks.fetch_and(~mask, std::memory_order_relaxed);  // relaxed: a hint
  }

  // From now on the page is not readable, and its data may be changed; before the first byte of it
  // is. The page is in the index and locked by the caller.
  void begin_change(std::uint64_t index) noexcept;
  // All of the page is valid, and nobody changes it until the next begin_change(): readable from
  // now on. Nothing if it is that already.
  void end_change(std::uint64_t index) noexcept;

  // From now on it is for so many pages, if that is more than before. ENOMEM when a node is needed
  // and there is none: it is for as many as before then.
  result<> grow(std::uint64_t page_count) noexcept;

  // Puts a page where there is nothing, at none of its numbers; `index` is the first of these, a
  // multiple of 2^order; not readable. A large page is smaller than the index. EEXIST if there is
  // something, ENOMEM when a node is needed and there is none: nothing has changed then.
  result<> insert(std::uint64_t index, page& p) noexcept;

  // Puts another frame of the same order at a place that is taken; its tags stay, and it is
  // readable if the old one was, which is nobody's.
  void replace(std::uint64_t index, page& p) noexcept;

  // Puts the frames of a large page in its place, as pages of one frame each with its tags. It
  // still says its order. ENOMEM as above, nothing has changed then.
  result<> split(std::uint64_t index, page& p) noexcept;

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
  // The same for any page; and for one without a tag, but that a page that takes slots of an inner
  // node may have one.
  std::optional<found> next(std::uint64_t from, std::uint64_t end) const noexcept;
  std::optional<found> next_clean(std::uint64_t from, std::uint64_t end) const noexcept;

  // Pages, large and small.
  std::uint64_t size() const noexcept { return size_; }

 private:
  static constexpr unsigned bits = Traits::bits;
  static constexpr unsigned fanout = 1u << bits;
  static constexpr std::uint32_t node_bit = 1u << 31;
  static constexpr std::uint32_t readable_bit = 1u << 30;
  static constexpr std::uint64_t no_home = UINT64_MAX;

  template <typename T>
  using atomic = typename Traits::atomics::template atomic<T>;

  static constexpr unsigned order_shift = 26;
  static constexpr std::uint32_t number_mask = (1u << order_shift) - 1;

  // Of the entry of a page: its head frame, and its order.
  static std::uint32_t number_of(std::uint32_t entry) noexcept { return (entry & number_mask) - 1; }
  static unsigned order_of(std::uint32_t entry) noexcept { return entry >> order_shift & 15; }
  // Of root_.
  static std::uint32_t entry_of(std::uint64_t top) noexcept {
    return static_cast<std::uint32_t>(top);
  }
  static unsigned shift_of(std::uint64_t top) noexcept { return static_cast<unsigned>(top >> 32); }
  static std::uint64_t top_of(std::uint32_t entry, unsigned shift) noexcept {
    return std::uint64_t{shift} << 32 | entry;
  }
  static unsigned shift_for(std::uint64_t page_count) noexcept;
  unsigned root_shift() const noexcept {
    return shift_of(root_.load(std::memory_order_relaxed));  // relaxed: under the owner's lock
  }
  page& frame_of(std::uint32_t entry) const noexcept { return arena_.frame(number_of(entry)); }
  std::uint32_t entry_for(page& p) const noexcept;
  node* node_of(std::uint32_t entry) const noexcept {
    return static_cast<node*>(nodes_.from_handle(entry & ~node_bit));
  }
  // Of the node of this shift above page `index`: a number that no node has elsewhere, nor in
  // another index.
  std::uint64_t home_of(std::uint64_t index, unsigned shift) const noexcept {
    return first_home_ + (index >> shift >> bits << bits << shift) + shift;
  }

  // A slot as a walk without a lock has met it; n is null where there is no node.
  struct slot_seen {
    node* n = nullptr;
    std::uint32_t entry = 0;
    unsigned slot = 0;
    unsigned shift = 0;
  };
  // To the slot of a page, or to where the walk has to end.
  [[gnu::always_inline]] slot_seen walk(std::uint64_t index) const noexcept {
    return walk_to<true>(index);
  }
  // The same, and whether the leaf's slot is looked at.
  template <bool Leaf>
  [[gnu::always_inline]] slot_seen walk_to(std::uint64_t index) const noexcept {
    slot_seen at;
    // acquire, here and below: pairs with the release that publishes a node, which may be one that
    // the slab has just made, or serves elsewhere now; and with the one that makes a page readable,
    // for its data. Frames are there from the start, and say themselves what they are.
    const std::uint64_t top = root_.load(std::memory_order_acquire);
    std::uint32_t entry = entry_of(top);
    for (unsigned shift = shift_of(top); (entry & node_bit) != 0; shift -= bits) {
      at.n = node_of(entry);
      at.slot = static_cast<unsigned>(index >> shift) & (fanout - 1);
      at.shift = shift;
      if (!Leaf && shift == 0) break;
      entry = at.entry = at.n->slots[at.slot].load(std::memory_order_acquire);  // acquire: above
      if (shift == 0) break;
    }
    return at;
  }
  // Where a page is: the slots of `mask` in `n`.
  struct place {
    node* n;
    std::uint64_t mask;
  };
  static std::uint64_t slots_of(std::uint64_t index, unsigned order) noexcept;
  place place_of(std::uint64_t index) const noexcept;
  static void clear_tag_at(place at, page_tag tag) noexcept;
  node* add_node(node* parent, std::uint64_t index, unsigned shift) noexcept;
  void prune(node* n) noexcept;
  static void change_versions(const place& at) noexcept;
  template <typename Change>
  static void change_slots(const place& at, Change change) noexcept;

  template <typename Occupied>
  std::optional<found> search(std::uint64_t from, std::uint64_t end,
                              Occupied occupied) const noexcept;

  node_memory& nodes_;
  frame_memory& arena_;
  const std::uint64_t first_home_;  // of page 0; those of all pages are this index's alone
  // The entry of the root node, 0 while the tree is empty, and above it the node's shift. When the
  // tree grows the root becomes slot 0 of a node above it; a walk that began at the old one finds
  // what it would have found, or nothing of its own.
  atomic<std::uint64_t> root_;
  std::uint64_t size_ = 0;
};

template <typename Traits>
struct basic_page_index<Traits>::node {
  static constexpr unsigned slots_per_version = 4;

  atomic<std::uint32_t>& version_of(unsigned slot) noexcept {
    return versions[slot / slots_per_version];
  }

  std::array<atomic<std::uint32_t>, fanout> slots{};
  std::array<atomic<std::uint32_t>, (fanout + slots_per_version - 1) / slots_per_version>
      versions{};
  atomic<std::uint64_t> home{no_home};  // home_of() its pages; changes while it is empty
  atomic<std::uint64_t> marks{0};       // a bit for each slot
  // Below: guarded by the owner's lock.
  std::array<std::uint64_t, 2> tags{};
  std::uint64_t occupied = 0;  // a bit for each slot that is taken
  node* parent = nullptr;
  std::uint8_t offset = 0;  // in the parent
  std::uint8_t shift = 0;
};

// A page as look() has seen it. Holds nothing. Two words, so that it stays in registers.
template <typename Traits>
class basic_page_index<Traits>::sight {
 public:
  sight() noexcept = default;

  // Whether there was a readable page.
  explicit operator bool() const noexcept { return version_at_ != nullptr; }
  // The frame of the number that was looked for: of a large page the one that lies there.
  std::uint32_t frame_number() const noexcept { return number_of(entry()); }
  // That of its page: blocks of 2^order frames begin at multiples of as many.
  std::uint32_t head_number() const noexcept { return frame_number() >> order() << order(); }
  unsigned order() const noexcept { return order_of(entry()); }
  bool marked() const noexcept { return (entry() & mark_bit) != 0; }

  // Whether what has been read of the page since look() is the page's.
  bool still_valid() const noexcept {
    // acquire: who has read a byte that came later than the page sees that the version has changed
    // before; pairs with the fences of begin_change() and insert().
    Traits::atomics::fence(std::memory_order_acquire);
    // relaxed: the fence has ordered it behind what was read.
    return version_at_->load(std::memory_order_relaxed) == seen_ >> 32;
  }

 private:
  friend class basic_page_index;
  static constexpr std::uint32_t mark_bit = readable_bit;

  sight(const atomic<std::uint32_t>& version_at, std::uint32_t current, std::uint32_t at) noexcept
      : version_at_(&version_at), seen_(std::uint64_t{current} << 32 | at) {}
  std::uint32_t entry() const noexcept { return static_cast<std::uint32_t>(seen_); }

  const atomic<std::uint32_t>* version_at_ = nullptr;
  // The version, and the entry with the mark for a readable bit, and of a large page the part's
  // number for the head's.
  std::uint64_t seen_ = 0;
};

using page_index = basic_page_index<page_index_traits>;

}  // namespace forebay
