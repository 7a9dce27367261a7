// A chain: entries of a scatter-gather list in linked chunks of 512 bytes, as Linux's chained
// scatterlist.
//
//    first_ --> | next | from, count | · · e e e e e e e e e | --> | next | … | e e e e · · · · |
//                                      31 entries a chunk              last_
//
// Invariants: no chunk is without entries; those of a chunk lie side by side, from `from` on; only
// the last chunk is ever added to. So a list that is cut in the middle of a chunk leaves room at
// the end of one chunk, and nobody moves entries to fill it.
//
// Chunks come from an sg_memory and return to it when their last entry goes. No member is slower
// than the entries it passes. One thread at a time.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <new>
#include <span>
#include <type_traits>
#include <utility>

#include "forebay/memory/slab.h"

namespace forebay {

inline constexpr std::size_t sg_chunk_bytes = 512;

// Where chunks come from. The chains must go first.
class sg_memory {
 public:
  sg_memory() noexcept = default;
  sg_memory(const sg_memory&) = delete;
  sg_memory& operator=(const sg_memory&) = delete;
  virtual ~sg_memory() = default;

  // sg_chunk_bytes, aligned to a cache line; null when there are none.
  virtual void* take() noexcept = 0;
  virtual void give(void* chunk) noexcept = 0;
};

// Chunks from a slab cache. Any thread.
class sg_slab final : public sg_memory {
 public:
  explicit sg_slab(arena& memory, std::string name = "sg_chunk");

  void* take() noexcept override { return slabs_.allocate(); }
  void give(void* chunk) noexcept override { slabs_.free(chunk); }

 private:
  slab_cache slabs_;
};

// As many chunks as it has itself, on a stack or in a request. One thread.
template <std::size_t Chunks>
class sg_array final : public sg_memory {
 public:
  sg_array() noexcept {
    for (std::size_t i = Chunks; i-- != 0;) sg_array::give(&memory_[i]);
  }

  void* take() noexcept override {
    return free_ == nullptr ? nullptr : std::exchange(free_, free_->next);
  }
  void give(void* chunk) noexcept override { free_ = new (chunk) free_chunk{free_}; }

 private:
  struct free_chunk {
    free_chunk* next;
  };
  struct alignas(64) block {
    std::array<std::byte, sg_chunk_bytes> bytes;
  };
  free_chunk* free_ = nullptr;
  std::array<block, Chunks> memory_;
};

template <typename Entry>
class sg_chain {
  static_assert(sizeof(Entry) == 16 && std::is_trivially_copyable_v<Entry>);

 public:
  static constexpr std::size_t chunk_entries = (sg_chunk_bytes - 16) / sizeof(Entry);

  struct chunk {
    chunk* next = nullptr;
    std::uint16_t from = 0;
    std::uint16_t count = 0;
    std::array<Entry, chunk_entries> entries;

    std::span<Entry> used() noexcept { return {entries.data() + from, count}; }
    std::span<const Entry> used() const noexcept { return {entries.data() + from, count}; }
    Entry& back() noexcept { return entries[from + count - 1u]; }
  };
  static_assert(sizeof(chunk) == sg_chunk_bytes);

  // Over the entries, in order. Good until the entry goes.
  class iterator {
   public:
    using value_type = Entry;
    using difference_type = std::ptrdiff_t;

    iterator() noexcept = default;
    const Entry& operator*() const noexcept { return chunk_->entries[index_]; }
    const Entry* operator->() const noexcept { return &**this; }
    iterator& operator++() noexcept {
      if (++index_ == std::size_t{chunk_->from} + chunk_->count) *this = iterator(chunk_->next);
      return *this;
    }
    iterator operator++(int) noexcept {
      const iterator here = *this;
      ++*this;
      return here;
    }
    friend bool operator==(const iterator&, const iterator&) = default;

   private:
    friend class sg_chain;
    explicit iterator(const chunk* c) noexcept
        : chunk_(c), index_(c == nullptr ? std::size_t{0} : c->from) {}
    const chunk* chunk_ = nullptr;  // null: the end
    std::size_t index_ = 0;
  };

  explicit sg_chain(sg_memory& memory) noexcept : memory_(&memory) {}
  sg_chain(sg_chain&& other) noexcept
      : memory_(other.memory_),
        first_(std::exchange(other.first_, nullptr)),
        last_(std::exchange(other.last_, nullptr)),
        entries_(std::exchange(other.entries_, 0)) {}
  sg_chain& operator=(sg_chain&& other) noexcept {
    if (this != &other) {
      clear();
      memory_ = other.memory_;
      first_ = std::exchange(other.first_, nullptr);
      last_ = std::exchange(other.last_, nullptr);
      entries_ = std::exchange(other.entries_, 0);
    }
    return *this;
  }
  ~sg_chain() { clear(); }

  sg_memory& memory() const noexcept { return *memory_; }
  std::size_t size() const noexcept { return entries_; }
  bool empty() const noexcept { return entries_ == 0; }
  iterator begin() const noexcept { return iterator(first_); }
  iterator end() const noexcept { return iterator(); }
  Entry& front() noexcept { return first_->entries[first_->from]; }
  Entry& back() noexcept { return last_->back(); }

  // Null, and nothing changes, when there is no memory for another chunk.
  Entry* push_back(const Entry& e) noexcept {
    if (last_ == nullptr || std::size_t{last_->from} + last_->count == chunk_entries) {
      chunk* const c = make_chunk();
      if (c == nullptr) return nullptr;
      (last_ == nullptr ? first_ : last_->next) = c;
      last_ = c;
    }
    ++entries_;
    ++last_->count;
    last_->back() = e;
    return &last_->back();
  }

  void pop_front() noexcept {
    --entries_;
    ++first_->from;
    if (--first_->count != 0) return;
    give(std::exchange(first_, first_->next));
    if (first_ == nullptr) last_ = nullptr;
  }

  void clear() noexcept {
    while (first_ != nullptr) give(std::exchange(first_, first_->next));
    last_ = nullptr;
    entries_ = 0;
  }

  // A place to return to: what has been added since goes.
  struct mark {
    chunk* last = nullptr;
    std::uint16_t count = 0;
    std::size_t entries = 0;
  };
  mark here() const noexcept {
    return {last_, last_ == nullptr ? std::uint16_t{0} : last_->count, entries_};
  }
  void go_back(const mark& to) noexcept {
    if (to.last == nullptr) return clear();
    while (to.last->next != nullptr) give(std::exchange(to.last->next, to.last->next->next));
    last_ = to.last;
    last_->count = to.count;
    entries_ = to.entries;
  }

  // Moves all entries from `at` on, which is one, to `rest`, which is empty and has the same
  // memory. False, and nothing changes, when that takes a chunk, as in the middle of one, and there
  // is none.
  bool cut(iterator at, sg_chain& rest) noexcept {
    chunk* c = first_;
    chunk* before = nullptr;
    std::size_t kept = 0;
    for (; c != at.chunk_; c = c->next) {
      before = c;
      kept += c->count;
    }
    const auto staying = static_cast<std::uint16_t>(at.index_ - c->from);
    chunk* second = c;
    if (staying != 0) {
      second = rest.make_chunk();
      if (second == nullptr) return false;
      for (const Entry& e : c->used().subspan(staying)) second->entries[second->count++] = e;
      second->next = std::exchange(c->next, nullptr);
      c->count = staying;
      before = c;
    }
    (before == nullptr ? first_ : before->next) = nullptr;
    rest.first_ = second;
    rest.last_ = last_ == c ? second : last_;
    rest.entries_ = entries_ - kept - staying;
    last_ = before;
    entries_ = kept + staying;
    return true;
  }

  // Adds all entries of `other`, which has the same memory and is empty after.
  void splice(sg_chain&& other) noexcept {
    if (other.first_ == nullptr) return;
    (last_ == nullptr ? first_ : last_->next) = std::exchange(other.first_, nullptr);
    last_ = std::exchange(other.last_, nullptr);
    entries_ += std::exchange(other.entries_, 0);
  }

 private:
  chunk* make_chunk() noexcept {
    void* const memory = memory_->take();
    if (memory == nullptr) return nullptr;
    return new (memory) chunk;
  }
  void give(chunk* c) noexcept { memory_->give(c); }

  sg_memory* memory_;
  chunk* first_ = nullptr;
  chunk* last_ = nullptr;
  std::size_t entries_ = 0;
};

}  // namespace forebay
