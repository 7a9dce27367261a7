// A free list that is a bitmap: bit i % 64 of word i / 64 is set while item i is free.
//
//    hints:  thread group 0 -> word 7     thread group 1 -> word 40    …
//    words:  | 0…0 | 0110…1 | 1…1 | …
//
// take() starts at the word where the thread's group last took or gave, and goes round all words
// until it has enough; what it wants of one word it takes by one compare-and-swap. give() sets all
// bits of a word by one atomic or. So threads that have worked in different places meet on no line,
// and what comes back is near what was taken, in the order of the items rather than of time.
//
// An eighth of a byte for each item. take() is O(1) while there are free items where the hint
// points to, O(capacity / 64) at worst, always so when it finds none. An item that is free during
// the whole of a take() that finds too few is found by it.
//
// The hints are only hints and need no order; a word's atomics order what its items stand for.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <memory>
#include <new>

#include "forebay/base/assert.h"
#include "forebay/base/atomics.h"
#include "forebay/base/cache_line.h"
#include "forebay/base/stats.h"
#include "forebay/memory/free_lists.h"

namespace forebay {

template <AtomicsPolicy Atomics = real_atomics>
class basic_bitmap {
 public:
  static constexpr unsigned word_bits = 64;
  static constexpr unsigned hint_count = 16;  // groups of threads
  using word = typename Atomics::template atomic<std::uint64_t>;

  // The words that `capacity` items need.
  static constexpr std::size_t words_for(std::uint32_t capacity) noexcept {
    return (std::size_t{capacity} + word_bits - 1) / word_bits;
  }

  // No item is free at first. The words, at least one and all zero, must outlive this.
  explicit basic_bitmap(std::span<word> words) noexcept : words_(words) {
    for (std::size_t i = 0; i < hint_count; ++i) set_hint(i, i * words_.size() / hint_count);
  }
  basic_bitmap(const basic_bitmap&) = delete;
  basic_bitmap& operator=(const basic_bitmap&) = delete;

  // Up to items.size() items; how many. `group` is any number, the same for the same thread.
  std::size_t take(std::span<std::uint32_t> items, unsigned group) noexcept {
    const std::size_t start = hint(group % hint_count);
    std::size_t n = 0;
    std::size_t at = start;
    for (std::size_t left = words_.size(); left != 0 && n < items.size(); --left) {
      const std::size_t got = take_of(at, items.subspan(n));
      n += got;
      if (got != 0 && at != start) set_hint(group % hint_count, at);
      if (++at == words_.size()) at = 0;
    }
    return n;
  }

  void give(std::span<const std::uint32_t> items, unsigned group) noexcept {
    for (std::size_t i = 0; i < items.size();) {
      const std::size_t at = items[i] / word_bits;
      std::uint64_t bits = 0;
      for (; i < items.size() && items[i] / word_bits == at; ++i) {
        bits |= std::uint64_t{1} << items[i] % word_bits;
      }
      // release: pairs with take_of.
      const std::uint64_t before = words_[at].fetch_or(bits, std::memory_order_release);
      FOREBAY_ASSERT((before & bits) == 0);
      if (hint(group % hint_count) != at) set_hint(group % hint_count, at);
    }
  }

  // Exact at rest.
  std::size_t count() const noexcept {
    std::size_t n = 0;
    for (const word& w : words_) {
      // relaxed: a statistic.
      n += static_cast<std::size_t>(std::popcount(w.load(std::memory_order_relaxed)));
    }
    return n;
  }

 private:
  struct alignas(no_sharing_bytes) hint_line {
    typename Atomics::template atomic<std::uint32_t> word{0};
  };

  // relaxed, here and below: any word will do.
  std::size_t hint(std::size_t group) const noexcept {
    return hints_[group].word.load(std::memory_order_relaxed);  // relaxed: see above
  }
  void set_hint(std::size_t group, std::size_t at) noexcept {
    // relaxed: see above.
    hints_[group].word.store(static_cast<std::uint32_t>(at), std::memory_order_relaxed);
  }

  // The lowest bits of `bits`, at most `wanted`.
  static std::uint64_t lowest(std::uint64_t bits, std::size_t wanted) noexcept {
    if (static_cast<std::size_t>(std::popcount(bits)) <= wanted) return bits;
    std::uint64_t rest = bits;
    for (; wanted != 0; --wanted) rest &= rest - 1;
    return bits & ~rest;
  }

  std::size_t take_of(std::size_t at, std::span<std::uint32_t> items) noexcept {
    word& w = words_[at];
    std::uint64_t bits = w.load(std::memory_order_relaxed);  // relaxed: the exchange verifies it
    std::uint64_t mine = 0;
    do {
      if (bits == 0) return 0;
      mine = lowest(bits, items.size());
      // acquire: pairs with give, for what the items stand for.
    } while (!w.compare_exchange_weak(bits, bits & ~mine, std::memory_order_acquire,
                                      std::memory_order_relaxed));  // relaxed: retried
    std::size_t n = 0;
    for (; mine != 0; mine &= mine - 1) {
      items[n++] = static_cast<std::uint32_t>(at * word_bits +
                                              static_cast<unsigned>(std::countr_zero(mine)));
    }
    return n;
  }

  const std::span<word> words_;
  std::array<hint_line, hint_count> hints_;
};

class bitmap_list final : public sized_free_list {
 public:
  // Without memory for the words, has_memory() is false and nothing else may be called.
  explicit bitmap_list(std::uint32_t capacity) noexcept
      : sized_free_list(capacity),
        words_(new(std::nothrow) basic_bitmap<>::word[basic_bitmap<>::words_for(capacity)]),
        bits_({words_.get(), basic_bitmap<>::words_for(capacity)}) {}
  bool has_memory() const noexcept { return words_ != nullptr; }

  std::size_t take(std::span<std::uint32_t> items) noexcept override {
    return bits_.take(items, thread_number());
  }
  void give(std::span<const std::uint32_t> items) noexcept override {
    bits_.give(items, thread_number());
  }
  std::size_t free_count() const noexcept override { return bits_.count(); }

 private:
  const std::unique_ptr<basic_bitmap<>::word[]> words_;
  basic_bitmap<> bits_;
};

}  // namespace forebay
