// The two policies that the texts on the Linux kernel describe: clock, and lru with an active and
// an inactive list. Neither remembers what has left.
#pragma once

#include "forebay/cache/eviction.h"

namespace forebay {

// CLOCK in its list form, FIFO with reinsertion (Corbato 1968): the hand takes entries from the old
// end, gives those that were used another round, and takes the rest.
template <EvictionTraits Traits>
class clock_policy {
 public:
  using entry = typename Traits::entry;

  explicit clock_policy(std::uint64_t) noexcept {}

  void set_capacity(std::uint64_t) noexcept {}
  void expect(std::uint64_t) const noexcept {}
  void insert(entry& e) noexcept {
    Traits::set_uses(e, 0);
    queue_.push(e);
  }
  void erase(entry& e) noexcept { queue_.erase(e); }
  entry* pop() noexcept { return queue_.empty() ? nullptr : &queue_.pop(); }
  void replace(entry& old, entry& fresh) noexcept { queue_.replace(old, fresh); }

  template <typename Take>
  eviction_progress reclaim(std::uint64_t wanted, unsigned scan_limit, Take take) noexcept {
    eviction_progress done;
    std::uint64_t refused = 0;
    for (unsigned i = 0; i < scan_limit && done.freed < wanted && refused < queue_.count(); ++i) {
      entry& e = queue_.pop();
      queue_.expect_next();
      const std::uint32_t weight = Traits::weight(e);
      if (Traits::uses(e) != 0) {
        Traits::set_uses(e, 0);
        ++done.second_chances;
      } else if (take(e)) {
        done.freed += weight;
        continue;
      } else {
        ++refused;
      }
      queue_.push(e);
    }
    return done;
  }

  std::uint64_t history_bytes() const noexcept { return 0; }

 private:
  eviction_queue<Traits> queue_;
};

// The kernel's lists for file pages (mm/swap.c, mm/vmscan.c):
//
//   insert ──> [ inactive ] ──oldest──> used since? no: taken
//                   ^                        │ yes: activated
//                   └──oldest── [ active ] <─┘     while active outweighs its share
//
// The first touch is the one that brought an entry in; the second activates it. As no hit may take
// a lock, an entry is activated when it comes to the old end, not at once.
template <EvictionTraits Traits>
class lru_policy {
 public:
  using entry = typename Traits::entry;

  explicit lru_policy(std::uint64_t capacity_max) noexcept { set_capacity(capacity_max); }

  void set_capacity(std::uint64_t capacity) noexcept {
    // inactive_is_low(): as many inactive as active entries up to 1 GiB, and the square root of
    // ten times the GiB times fewer above.
    constexpr std::uint64_t gib_weight = 1u << 18;
    ratio_ = 1;
    while ((ratio_ + 1) * (ratio_ + 1) <= 10 * capacity / gib_weight && capacity >= gib_weight) {
      ++ratio_;
    }
  }
  void expect(std::uint64_t) const noexcept {}
  void insert(entry& e) noexcept {
    Traits::set_uses(e, 0);
    put(e, inactive);
  }
  void erase(entry& e) noexcept { queue_of(e).erase(e); }
  entry* pop() noexcept {
    for (const where w : {inactive, active}) {
      if (!queues_[w].empty()) return &queues_[w].pop();
    }
    return nullptr;
  }
  void replace(entry& old, entry& fresh) noexcept { queue_of(old).replace(old, fresh); }

  template <typename Take>
  eviction_progress reclaim(std::uint64_t wanted, unsigned scan_limit, Take take) noexcept {
    eviction_progress done;
    std::uint64_t refused = 0;
    for (unsigned i = 0; i < scan_limit && done.freed < wanted; ++i) {
      // What cannot be taken does not count as inactive: it must not keep the rest from aging.
      const bool none = queues_[inactive].count() <= refused;
      const bool low = queues_[inactive].weight() * ratio_ < queues_[active].weight();
      if ((none || low) && !queues_[active].empty()) {
        entry& e = queues_[active].pop();
        Traits::set_uses(e, 0);
        put(e, inactive);
        ++done.second_chances;
        continue;
      }
      if (none) break;
      entry& e = queues_[inactive].pop();
      queues_[inactive].expect_next();
      const std::uint32_t weight = Traits::weight(e);
      if (Traits::uses(e) != 0) {
        Traits::set_uses(e, 0);
        put(e, active);
        ++done.second_chances;
      } else if (take(e)) {
        done.freed += weight;
      } else {
        put(e, inactive);
        ++refused;
      }
    }
    return done;
  }

  std::uint64_t history_bytes() const noexcept { return 0; }

 private:
  enum where : std::uint8_t { inactive, active };

  eviction_queue<Traits>& queue_of(entry& e) noexcept { return queues_[Traits::place(e)]; }
  void put(entry& e, where w) noexcept {
    Traits::place(e) = w;
    queues_[w].push(e);
  }

  eviction_queue<Traits> queues_[2];
  std::uint64_t ratio_ = 1;  // active weight for one of inactive
};

}  // namespace forebay
