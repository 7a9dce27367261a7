// Policies that `forebay replay` compares those of the page cache with: as their papers have them,
// with a list operation at every hit, so none is fit for a cache that is read without locks. And
// the best that could be done, which needs to know the future.
//
// A model is made for a number of blocks and a capacity in blocks, at least 1; access(block) says
// whether it was a hit, and puts the block in if not. Blocks are numbers from 0 on.
#pragma once

#include <algorithm>
#include <cstdint>
#include <queue>
#include <utility>
#include <vector>

namespace forebay::tool {

// Doubly-linked circular lists of block numbers, each number on at most one of them.
class block_lists {
 public:
  block_lists(std::uint32_t blocks, std::uint32_t lists)
      : heads_(blocks), links_(std::size_t{blocks} + lists), sizes_(lists) {
    for (std::uint32_t i = 0; i < links_.size(); ++i) links_[i] = {i, i};
  }

  bool empty(unsigned list) const noexcept { return sizes_[list] == 0; }
  std::uint32_t size(unsigned list) const noexcept { return sizes_[list]; }
  std::uint32_t oldest(unsigned list) const noexcept { return links_[heads_ + list].prev; }
  // The next younger one; no block if there is none.
  std::uint32_t younger(std::uint32_t block) const noexcept { return links_[block].prev; }
  bool is_block(std::uint32_t n) const noexcept { return n < heads_; }

  void push(unsigned list, std::uint32_t block) noexcept {
    const std::uint32_t head = heads_ + list;
    const std::uint32_t first = links_[head].next;
    links_[block] = {first, head};
    links_[first].prev = block;
    links_[head].next = block;
    ++sizes_[list];
  }
  void erase(unsigned list, std::uint32_t block) noexcept {
    const link l = links_[block];
    links_[l.prev].next = l.next;
    links_[l.next].prev = l.prev;
    --sizes_[list];
  }
  std::uint32_t pop(unsigned list) noexcept {
    const std::uint32_t block = oldest(list);
    erase(list, block);
    return block;
  }

 private:
  struct link {
    std::uint32_t next;  // older
    std::uint32_t prev;  // younger
  };

  std::uint32_t heads_;
  std::vector<link> links_;
  std::vector<std::uint32_t> sizes_;
};

// Least recently used, exactly.
class exact_lru_model {
 public:
  exact_lru_model(std::uint32_t blocks, std::uint32_t capacity)
      : list_(blocks, 1), in_(blocks), capacity_(capacity) {}

  bool access(std::uint32_t b) {
    const bool hit = in_[b] != 0;
    if (hit) {
      list_.erase(0, b);
    } else if (list_.size(0) == capacity_) {
      in_[list_.pop(0)] = 0;
    }
    in_[b] = 1;
    list_.push(0, b);
    return hit;
  }

 private:
  block_lists list_;
  std::vector<std::uint8_t> in_;
  std::uint32_t capacity_;
};

// First in, first out.
class fifo_model {
 public:
  fifo_model(std::uint32_t blocks, std::uint32_t capacity) : in_(blocks), ring_(capacity) {}

  bool access(std::uint32_t b) {
    if (in_[b] != 0) return true;
    if (full_) in_[ring_[at_]] = 0;
    ring_[at_] = b;
    in_[b] = 1;
    if (++at_ == ring_.size()) {
      at_ = 0;
      full_ = true;
    }
    return false;
  }

 private:
  std::vector<std::uint8_t> in_;
  std::vector<std::uint32_t> ring_;
  std::size_t at_ = 0;
  bool full_ = false;
};

// Zhang et al., "SIEVE is simpler than LRU", NSDI '24: the hand passes over used blocks and leaves
// them where they are.
class sieve_model {
 public:
  sieve_model(std::uint32_t blocks, std::uint32_t capacity)
      : list_(blocks, 1), state_(blocks), capacity_(capacity), hand_(blocks) {}

  bool access(std::uint32_t b) {
    if (state_[b] != 0) {
      state_[b] = 2;
      return true;
    }
    if (list_.size(0) == capacity_) evict();
    state_[b] = 1;
    list_.push(0, b);
    return false;
  }

 private:
  void evict() {
    for (;; hand_ = list_.younger(hand_)) {
      if (!list_.is_block(hand_)) hand_ = list_.oldest(0);
      if (state_[hand_] == 1) break;
      state_[hand_] = 1;
    }
    const std::uint32_t victim = std::exchange(hand_, list_.younger(hand_));
    list_.erase(0, victim);
    state_[victim] = 0;
  }

  block_lists list_;
  std::vector<std::uint8_t> state_;  // 0 not there, 1 there, 2 used as well
  std::uint32_t capacity_;
  std::uint32_t hand_;
};

// Johnson and Shasha, VLDB '94, "full version": a quarter for new blocks, the numbers of half as
// many blocks as the cache has for those that left from there.
class two_q_model {
 public:
  two_q_model(std::uint32_t blocks, std::uint32_t capacity)
      : lists_(blocks, 4), where_(blocks), capacity_(capacity) {}

  bool access(std::uint32_t b) {
    if (where_[b] == in) return true;
    if (where_[b] == main) {
      lists_.erase(main, b);
      lists_.push(main, b);
      return true;
    }
    const bool known = where_[b] == out;
    if (known) lists_.erase(out, b);
    where_[b] = none;
    if (lists_.size(in) + lists_.size(main) == capacity_) evict();
    put(b, known ? main : in);
    return false;
  }

 private:
  enum list : std::uint8_t { none, in, main, out };

  void put(std::uint32_t b, list to) {
    where_[b] = to;
    lists_.push(to, b);
  }
  void evict() {
    if (lists_.size(in) <= capacity_ / 4 && !lists_.empty(main)) {
      where_[lists_.pop(main)] = none;
      return;
    }
    const std::uint32_t victim = lists_.pop(in);
    where_[victim] = none;
    if (capacity_ / 2 == 0) return;
    if (lists_.size(out) == capacity_ / 2) where_[lists_.pop(out)] = none;
    put(victim, out);
  }

  block_lists lists_;
  std::vector<std::uint8_t> where_;
  std::uint32_t capacity_;
};

// Megiddo and Modha, FAST '03, figure 4.
class arc_model {
 public:
  arc_model(std::uint32_t blocks, std::uint32_t capacity)
      : lists_(blocks, 5), where_(blocks), capacity_(capacity) {}

  bool access(std::uint32_t b) {
    const auto was = static_cast<list>(where_[b]);
    if (was == t1 || was == t2) {
      move(b, t2);
      return true;
    }
    if (was == none) {
      add(b);
      return false;
    }
    const double ours = lists_.size(was);
    const double others = lists_.size(was == b1 ? b2 : b1);
    const double step = std::max(1.0, others / ours);
    target_ =
        was == b1 ? std::min<double>(capacity_, target_ + step) : std::max(0.0, target_ - step);
    replace(was == b2);
    move(b, t2);
    return false;
  }

 private:
  enum list : std::uint8_t { none, t1, t2, b1, b2 };

  void move(std::uint32_t b, list to) {
    if (where_[b] != none) lists_.erase(where_[b], b);
    where_[b] = to;
    if (to != none) lists_.push(to, b);
  }
  void replace(bool known_to_b2) {
    const std::uint32_t n = lists_.size(t1);
    if (n != 0 && (n > target_ || (known_to_b2 && n == target_) || lists_.empty(t2))) {
      move(lists_.oldest(t1), b1);
    } else {
      move(lists_.oldest(t2), b2);
    }
  }
  void add(std::uint32_t b) {
    const std::uint32_t recent = lists_.size(t1) + lists_.size(b1);
    const std::uint32_t all = recent + lists_.size(t2) + lists_.size(b2);
    if (recent == capacity_) {
      if (lists_.size(t1) < capacity_) {
        move(lists_.oldest(b1), none);
        replace(false);
      } else {
        move(lists_.oldest(t1), none);
      }
    } else if (all >= capacity_) {
      if (all == 2 * capacity_) move(lists_.oldest(b2), none);
      replace(false);
    }
    move(b, t1);
  }

  block_lists lists_;
  std::vector<std::uint8_t> where_;
  std::uint32_t capacity_;
  double target_ = 0;  // of t1
};

// Jiang and Zhang, SIGMETRICS '02: a hundredth for blocks of high inter-reference recency (hir).
// The stack has up to twice as many blocks as the cache.
class lirs_model {
 public:
  lirs_model(std::uint32_t blocks, std::uint32_t capacity)
      : stack_(blocks, 1),
        queue_(blocks, 1),
        gone_(blocks, 1),
        blocks_(blocks),
        capacity_(capacity),
        lir_limit_(capacity - std::max(1u, capacity / 100)) {}

  bool access(std::uint32_t b) {
    block& at = blocks_[b];
    const bool hit = at.is == lir || at.is == hir;
    if (at.is == lir) {
      to_top(b);
      prune();
    } else if (at.is == hir) {
      hit_hir(b);
    } else {
      miss(b);
    }
    while (stack_.size(0) > 2 * capacity_ && !gone_.empty(0)) forget(gone_.oldest(0));
    return hit;
  }

 private:
  enum kind : std::uint8_t { none, lir, hir, gone };
  struct block {
    kind is = none;
    bool stacked = false;
  };

  void to_top(std::uint32_t b) {
    if (blocks_[b].stacked) stack_.erase(0, b);
    blocks_[b].stacked = true;
    stack_.push(0, b);
  }
  void off_stack(std::uint32_t b) {
    stack_.erase(0, b);
    blocks_[b].stacked = false;
  }
  void forget(std::uint32_t b) {
    gone_.erase(0, b);
    off_stack(b);
    blocks_[b].is = none;
  }
  // The stack ends with a lir block.
  void prune() {
    while (!stack_.empty(0)) {
      const std::uint32_t b = stack_.oldest(0);
      if (blocks_[b].is == lir) break;
      if (blocks_[b].is == gone) {
        forget(b);
      } else {
        off_stack(b);
      }
    }
  }
  void make_lir(std::uint32_t b) {
    blocks_[b].is = lir;
    ++lirs_;
    to_top(b);
    if (lirs_ > lir_limit_) demote();
  }
  // The oldest lir block is a hir one from now on.
  void demote() {
    prune();
    const std::uint32_t b = stack_.oldest(0);
    off_stack(b);
    blocks_[b].is = hir;
    --lirs_;
    queue_.push(0, b);
    prune();
  }
  void hit_hir(std::uint32_t b) {
    const bool recent = blocks_[b].stacked && lir_limit_ != 0;
    queue_.erase(0, b);
    if (recent) {
      make_lir(b);
      return;
    }
    to_top(b);
    queue_.push(0, b);
  }
  void miss(std::uint32_t b) {
    const bool recent = blocks_[b].is == gone && lir_limit_ != 0;
    if (blocks_[b].is == gone) {
      gone_.erase(0, b);
      blocks_[b].is = none;
    }
    const bool filling = lirs_ < lir_limit_ && queue_.empty(0);
    if (lirs_ + queue_.size(0) == capacity_) evict();
    if (recent || filling) {
      make_lir(b);
      return;
    }
    blocks_[b].is = hir;
    to_top(b);
    queue_.push(0, b);
  }
  void evict() {
    if (queue_.empty(0)) demote();
    const std::uint32_t b = queue_.pop(0);
    blocks_[b].is = blocks_[b].stacked ? gone : none;
    if (blocks_[b].stacked) gone_.push(0, b);
  }

  block_lists
      stack_;  // by recency: lir, and hir and gone ones that are younger than the oldest lir
  block_lists queue_;  // resident hir
  block_lists gone_;   // in the stack, but not in the cache
  std::vector<block> blocks_;
  std::uint32_t capacity_;
  std::uint32_t lir_limit_;
  std::uint32_t lirs_ = 0;
};

// Belady 1966: what is wanted again last goes first. `next[i]` is the number of the request that
// wants request i's block again, or none beyond all.
class belady_model {
 public:
  belady_model(std::uint32_t blocks, std::uint32_t capacity, const std::vector<std::uint32_t>& next)
      : next_(next), next_of_(blocks), in_(blocks), capacity_(capacity) {}

  bool access(std::uint32_t b) {
    const bool hit = in_[b] != 0;
    if (!hit) {
      if (resident_ == capacity_) evict();
      in_[b] = 1;
      ++resident_;
    }
    next_of_[b] = next_[now_++];
    queue_.emplace(next_of_[b], b);
    return hit;
  }

 private:
  void evict() {
    for (;;) {
      const auto [when, b] = queue_.top();
      queue_.pop();
      if (in_[b] == 0 || next_of_[b] != when) continue;  // was wanted in between
      in_[b] = 0;
      --resident_;
      return;
    }
  }

  const std::vector<std::uint32_t>& next_;
  std::vector<std::uint32_t> next_of_;
  std::vector<std::uint8_t> in_;
  std::priority_queue<std::pair<std::uint32_t, std::uint32_t>> queue_;
  std::uint32_t capacity_;
  std::uint32_t resident_ = 0;
  std::size_t now_ = 0;
};

}  // namespace forebay::tool
