// The states that a depth-first exploration has been in, by their hashes: a hash table with open
// addressing, 8 bytes a state.
//
// Two states with the same 60 bits of hash are taken for one: with 10^7 states the chance that any
// two of them meet is about 4 in 10^5.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "sim/explorer/heap.h"

namespace forebay::explorer {

class seen_states {
 public:
  static constexpr unsigned budget_max = 15;

  // Forgets all.
  void clear() {
    if (slots_.size() > initial_slots) slots_.resize(initial_slots);
    std::fill(slots_.begin(), slots_.end(), 0);
    slots_.resize(initial_slots, 0);
    count_ = 0;
  }

  // Whether the state was met before with at least this budget of preemptions left; it is now.
  // Beyond slots_max states new ones are not kept: they are explored again when they come again.
  bool meet(std::uint64_t hash, unsigned budget) {
    const std::uint64_t key = (hash | 0x10) & ~std::uint64_t{15};
    for (std::size_t i = (hash >> 20) & (slots_.size() - 1);; i = (i + 1) & (slots_.size() - 1)) {
      std::uint64_t& slot = slots_[i];
      if ((slot & ~std::uint64_t{15}) == key) {
        if ((slot & 15) >= budget) return true;
        slot = key | budget;
        return false;
      }
      if (slot != 0) continue;
      if (count_ >= slots_max / 2) return false;
      slot = key | budget;
      if (++count_ * 2 > slots_.size()) grow();
      return false;
    }
  }

  std::size_t count() const noexcept { return count_; }

 private:
  using table = std::vector<std::uint64_t, own_memory<std::uint64_t>>;

  static constexpr std::size_t initial_slots = std::size_t{1} << 12;
  static constexpr std::size_t slots_max = std::size_t{1} << 24;

  void grow() {
    table old(slots_.size() * 2, 0);
    old.swap(slots_);
    for (const std::uint64_t slot : old) {
      if (slot == 0) continue;
      std::size_t i = (slot >> 20) & (slots_.size() - 1);
      while (slots_[i] != 0) i = (i + 1) & (slots_.size() - 1);
      slots_[i] = slot;
    }
  }

  table slots_ = table(initial_slots, 0);
  std::size_t count_ = 0;
};

}  // namespace forebay::explorer
