// The places of the source at which the code under test states a memory order.
//
// While a table is in use, each order that an operation states is looked up in it: it learns which
// sites there are, and one of them may be set to a weaker order than the source says.
#pragma once

#include <atomic>
#include <cstdint>
#include <source_location>
#include <string>
#include <vector>

#include "sim/explorer/heap.h"

namespace forebay::explorer {

// Which order of the call: a compare-exchange states two.
enum class site_part : std::uint8_t { load, store, modify, failure, fence };

struct site {
  const char* file;
  std::uint32_t line;
  std::uint32_t column;
  site_part part;
  std::memory_order order;

  bool operator==(const site& other) const noexcept;
};

const char* to_string(std::memory_order order) noexcept;

// The orders that are one step weaker; empty for relaxed.
std::vector<std::memory_order> weaker_orders(const site& s);

class site_table {
 public:
  // The order to use; `order` unless this is the site that is weakened.
  std::memory_order order(std::memory_order order, std::source_location where, site_part part);

  // From here on `s` has this order; no site is learnt meanwhile.
  void weaken(const site& s, std::memory_order order) {
    weakened_ = s;
    instead_ = order;
    active_ = true;
    met_ = false;
  }
  void restore() noexcept { active_ = false; }
  // Whether the weakened site was come to.
  bool met() const noexcept { return met_; }

  const std::vector<site, own_memory<site>>& sites() const noexcept { return sites_; }

 private:
  std::vector<site, own_memory<site>> sites_;
  site weakened_{};
  std::memory_order instead_ = std::memory_order_seq_cst;
  bool active_ = false;
  bool met_ = false;
};

}  // namespace forebay::explorer
