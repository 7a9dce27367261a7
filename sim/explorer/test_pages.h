// What the explorer's scenarios of the page cache's lookup share: a tree of nodes with two or four
// slots, whose nodes and frames are used again while a reader is on its way, and an address space
// of four pages over it, as address_space.cc has it. Large pages are of two frames: one slot above
// the leaves, or two in a leaf.
#pragma once

#include <array>
#include <new>
#include <utility>

#include "forebay/cache/page_index_code.h"
#include "sim/explorer/test_explore.h"

namespace forebay::explorer {

using number = model_atomics::plain<int>;

// A search and a change walk the tree several times, which is not waiting.
constexpr unsigned spin_reads = 8;

struct model_frame : basic_page<model_atomics> {
  number data{0};
  // For who reads without a pin: the same number twice.
  std::array<model_atomics::atomic<int>, 2> words{};
};

struct frames {
  std::array<model_frame, 2> all;

  model_frame& frame(std::uint32_t i) { return all[i]; }
  std::uint32_t frame_of(const model_frame& f) const {
    return static_cast<std::uint32_t>(&f - all.data());
  }
};

template <unsigned Bits>
struct nodes;

template <unsigned Bits>
struct small_tree {
  using atomics = model_atomics;
  using node_memory = nodes<Bits>;
  using frame_memory = frames;
  using frame = model_frame;
  static constexpr unsigned bits = Bits;
  static std::uint64_t take_places(std::uint64_t) { return 16; }
};

template <unsigned Bits>
using small_index = basic_page_index<small_tree<Bits>>;

// A type-stable cache: a node is made when it first goes out, and stays one; the last one given
// back is the next to go out.
template <unsigned Bits>
struct nodes {
  static constexpr std::uint32_t count = 5;
  using node = typename small_index<Bits>::node;
  alignas(node) std::array<std::byte, count * sizeof(node)> memory;
  std::array<std::uint32_t, count> given_back{4, 3, 2, 1, 0};
  std::uint32_t free_count = count;
  std::uint32_t made = 0;

  void* allocate() {
    if (free_count == 0) return nullptr;
    void* const n = from_handle(given_back[--free_count]);
    if (count - free_count <= made) return n;
    ++made;
    return new (n) node;
  }
  void free(void* n) { given_back[free_count++] = handle_of(n); }
  std::uint32_t handle_of(const void* n) const {
    return static_cast<std::uint32_t>(static_cast<const node*>(n) -
                                      reinterpret_cast<const node*>(memory.data()));
  }
  void* from_handle(std::uint32_t handle) { return memory.data() + handle * sizeof(node); }
};

// A pin that gives the frame back as the arena does: who puts the last reference owns it.
class pin {
 public:
  pin() = default;
  static pin adopt(model_frame& f) {
    pin p;
    p.frame_ = &f;
    return p;
  }
  pin(pin&& other) noexcept : frame_(std::exchange(other.frame_, nullptr)) {}
  pin& operator=(pin&&) = delete;
  ~pin() {
    if (frame_ != nullptr && frame_->refs().put()) freed(*frame_);
  }
  explicit operator bool() const { return frame_ != nullptr; }
  model_frame* operator->() const { return frame_; }

  // From now on the block is anybody's.
  static void freed(model_frame& f) {
    for (std::uint32_t i = 0; i < f.frames(); ++i) (&f)[i].data.set(-1);
  }

 private:
  model_frame* frame_ = nullptr;
};

// An address space of four pages of 4 KiB, as address_space.cc has it; at first, of `Pages` of
// them.
template <unsigned Bits, std::uint64_t Pages = 4>
struct space_over {
  static constexpr std::uint64_t pages = 4;
  frames memory;
  nodes<Bits> cache;
  small_index<Bits> index{cache, memory, Pages, pages};
  model_mutex lock;

  // A block of frames, which nobody has, becomes page `n` and is filled.
  void add(std::uint64_t n, std::uint32_t of, std::uint8_t order = 0) {
    model_frame& f = memory.frame(of);
    f.order = order;
    f.flags.store(0, std::memory_order_relaxed);  // relaxed: refs().set() publishes
    f.refs().set(1);                              // as the arena
    {
      const model_scoped_lock hold(lock);
      check(index.lookup(n) == nullptr);
      check(index.insert(n, f).has_value());
      f.refs().get();
      f.set(page_locked);
      f.set_identity(this, n);
    }
    for (std::uint32_t i = 0; i < f.frames(); ++i) {
      memory.frame(of + i).data.set(static_cast<int>(n + i) + 1);
    }
    f.set(page_uptodate);
    f.clear(page_locked);
    check(!f.refs().put());  // the index keeps its own
  }
  void grow() {
    const model_scoped_lock hold(lock);
    check(index.grow(pages).has_value());
  }
  // Takes the page off the index if nobody holds it; its frame is then free.
  bool evict(std::uint64_t n) {
    model_frame* f = nullptr;
    {
      const model_scoped_lock hold(lock);
      f = index.lookup(n);
      if (f == nullptr || !f->is_owned_by(this) || !f->refs().freeze(1)) return false;
      if (f->test(page_dirty | page_writeback | page_locked)) {
        f->refs().set(1);
        return false;
      }
      index.erase(n);
      f->owner.store(nullptr, std::memory_order_relaxed);  // relaxed: nobody can take a reference
    }
    pin::freed(*f);
    return true;
  }
  // Makes pages of its frames of the large page that begins at `n`, if nobody holds it.
  bool split(std::uint64_t n) {
    const model_scoped_lock hold(lock);
    model_frame* const f = index.lookup(n);
    if (f == nullptr || !f->is_owned_by(this) || !f->refs().freeze(1)) return false;
    const std::uint32_t count = f->frames();
    check(index.split(n, *f).has_value());
    f->order = 0;
    for (std::uint32_t i = 1; i < count; ++i) {  // as the arena
      model_frame& part = f[i];
      part.order = 0;
      part.flags.store(0, std::memory_order_relaxed);        // relaxed: refs().set() publishes
      part.owner.store(nullptr, std::memory_order_relaxed);  // relaxed: as above
      part.refs().set(1);
    }
    for (std::uint32_t i = 0; i < count; ++i) {
      f[i].set(page_uptodate);
      f[i].set_identity(this, n + i);
    }
    f->refs().set(1);
    return true;
  }
  // Without the lock.
  void read(std::uint64_t n) {
    model_frame* const f = index.lookup(n);
    if (f == nullptr) return;
    const pin p = pin_if_page_of<pin>(*f, this, n);
    if (!p || !p->test(page_uptodate)) return;
    // relaxed: held by the pin.
    const std::uint64_t part = n - p->index.load(std::memory_order_relaxed);
    check(part < p->frames(), "a page that does not reach there");
    check((p.operator->() + part)->data.get() == static_cast<int>(n) + 1, "another page's data");
  }
  void clear() {
    for (std::uint64_t n = 0; n < pages; ++n) {
      const model_scoped_lock hold(lock);
      if (index.lookup(n) != nullptr) index.erase(n);
    }
    check(index.size() == 0 && cache.free_count == nodes<Bits>::count, "nodes were lost");
  }
};

using space = space_over<1>;

}  // namespace forebay::explorer
