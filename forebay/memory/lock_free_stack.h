// A lock-free stack of items (Treiber 1986), with a tag against ABA (IBM System/370, Principles of
// Operation).
//
//    head:  | tag, 32 bits | index of the top item, or `none` |      one 64-bit word
//    links: | next of 0 | next of 1 | next of 2 | …                  four bytes for each item
//
// An item of the stack is linked to the one below it by links[item]; the last one to `none`. Both
// operations are one compare-and-swap of the head, whatever the number of items: a batch is linked
// up before it is pushed, and a pop of many walks down and moves the head past all of them.
//
// ABA: between a pop's reading the links and its compare-and-swap others may pop the same items and
// push them in another order. Each pop adds one to the tag, so that the head differs then; a push
// leaves the tag, because no succession of pushes brings an old head back. The tag comes round
// after 2^32 pops: a thread would have to be stopped between two instructions for exactly so many
// of them (more than half a minute of uninterrupted pops), with the same item on top in the end.
//
// While a pop walks, the links may change under it; they always hold some item or `none`, and the
// compare-and-swap then fails. So links are atomics, but order nothing: all orders are the head's.
// Every write of it is a read-modify-write, so each pop synchronizes with all pushes before it.
//
// Lock-free: some thread's compare-and-swap succeeds whenever another's fails. Backing off after a
// failure keeps the line with who has it for a few more operations.
#pragma once

#include <algorithm>
#include <bit>
#include <memory>
#include <new>
#include <span>

#include "forebay/base/atomics.h"
#include "forebay/base/cache_line.h"
#include "forebay/base/spin.h"
#include "forebay/memory/free_lists.h"

namespace forebay {

template <AtomicsPolicy Atomics = real_atomics>
class basic_lock_free_stack {
 public:
  static constexpr std::uint32_t none = UINT32_MAX;
  using link = typename Atomics::template atomic<std::uint32_t>;

  // An empty stack for items below links.size(). The links must outlive it.
  explicit basic_lock_free_stack(std::span<link> links) noexcept : links_(links.data()) {}
  basic_lock_free_stack(const basic_lock_free_stack&) = delete;
  basic_lock_free_stack& operator=(const basic_lock_free_stack&) = delete;

  // The item on top, `none` if the stack is empty. Any thread.
  std::uint32_t pop() noexcept {
    // A round that was lost to another thread leaves an item behind that is not ours.
    std::uint32_t item = none;
    return pop({&item, 1}) == 1 ? item : none;
  }

  // Up to items.size() items in one step, the top one first; how many. Any thread.
  std::size_t pop(std::span<std::uint32_t> items) noexcept {
    if (items.empty()) return 0;
    // acquire, here and below: pairs with push, for the links and for what the items stand for.
    std::uint64_t head = head_.load(std::memory_order_acquire);
    for (back_off failures;; failures.wait()) {
      std::uint32_t top = index_of(head);
      std::size_t n = 0;
      while (n < items.size() && top != none) {
        items[n++] = top;
        top = links_[top].load(std::memory_order_relaxed);  // relaxed: ordered by the head
      }
      if (n == 0) return 0;
      // relaxed: the value was read with acquire, and the tag tells that it is the same store.
      // acquire on failure: for the next round.
      if (head_.compare_exchange_weak(head, word(tag_of(head) + 1, top), std::memory_order_relaxed,
                                      std::memory_order_acquire)) {  // acquire: see above
        return n;
      }
    }
  }

  // Puts an item that is not in the stack on top of it. Any thread.
  void push(std::uint32_t item) noexcept { push({&item, 1}); }

  // The same for many, in one step; the last one will be on top.
  void push(std::span<const std::uint32_t> items) noexcept {
    if (items.empty()) return;
    for (std::size_t i = 1; i < items.size(); ++i) {
      links_[items[i]].store(items[i - 1], std::memory_order_relaxed);  // relaxed: the head orders
    }
    // relaxed: a guess, which the exchange verifies; nothing is read through it.
    std::uint64_t head = head_.load(std::memory_order_relaxed);
    for (back_off failures;; failures.wait()) {
      // relaxed: the exchange of the head publishes it.
      links_[items.front()].store(index_of(head), std::memory_order_relaxed);
      // release: who pops an item sees its link, and all that was written before it was pushed.
      if (head_.compare_exchange_weak(head, word(tag_of(head), items.back()),
                                      std::memory_order_release,
                                      std::memory_order_relaxed)) {  // relaxed: retried
        return;
      }
    }
  }

  // Items in the stack, found by walking down it: exact at rest. If the stack changes meanwhile the
  // walk may go astray; it ends after `limit` items.
  std::size_t count(std::size_t limit) const noexcept {
    std::size_t n = 0;
    // relaxed: at rest everything is ordered, and before that nothing is promised.
    std::uint32_t item = index_of(head_.load(std::memory_order_relaxed));
    for (; item != none && n < limit; ++n) {
      item = links_[item].load(std::memory_order_relaxed);  // relaxed: ordered by the head
    }
    return n;
  }

 private:
  static constexpr std::uint32_t index_of(std::uint64_t head) noexcept {
    return static_cast<std::uint32_t>(head);
  }
  static constexpr std::uint32_t tag_of(std::uint64_t head) noexcept {
    return static_cast<std::uint32_t>(head >> 32);
  }
  static constexpr std::uint64_t word(std::uint32_t tag, std::uint32_t index) noexcept {
    return std::uint64_t{tag} << 32 | index;
  }

  link* const links_;
  alignas(no_sharing_bytes) typename Atomics::template atomic<std::uint64_t> head_{word(0, none)};
};

// It as a free list, with its links. take() is O(number of items), as is give(); free_count() is
// linear in the free items.
class lock_free_list final : public sized_free_list {
 public:
  // Without memory for the links, has_memory() is false and nothing else may be called.
  explicit lock_free_list(std::uint32_t capacity) noexcept
      : sized_free_list(capacity),
        links_(new(std::nothrow) basic_lock_free_stack<>::link[capacity]),
        stack_({links_.get(), capacity}) {}
  bool has_memory() const noexcept { return links_ != nullptr; }

  std::size_t take(std::span<std::uint32_t> items) noexcept override { return stack_.pop(items); }
  void give(std::span<const std::uint32_t> items) noexcept override { stack_.push(items); }
  std::size_t free_count() const noexcept override { return stack_.count(capacity()); }

 private:
  const std::unique_ptr<basic_lock_free_stack<>::link[]> links_;
  basic_lock_free_stack<> stack_;
};

}  // namespace forebay
