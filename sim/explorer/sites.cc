#include "sim/explorer/sites.h"

#include <algorithm>
#include <cstring>

namespace forebay::explorer {

bool site::operator==(const site& other) const noexcept {
  return line == other.line && column == other.column && part == other.part &&
         (file == other.file || std::strcmp(file, other.file) == 0);
}

const char* to_string(std::memory_order order) noexcept {
  switch (order) {
    case std::memory_order_relaxed:  // relaxed, and so on: their names
      return "relaxed";
    case std::memory_order_consume:  // consume
      return "consume";
    case std::memory_order_acquire:  // acquire
      return "acquire";
    case std::memory_order_release:  // release
      return "release";
    case std::memory_order_acq_rel:  // acq_rel
      return "acq_rel";
    default:
      return "seq_cst";
  }
}

std::vector<std::memory_order> weaker_orders(const site& s) {
  using enum std::memory_order;
  switch (s.order) {
    case seq_cst:
      if (s.part == site_part::store) return {release};
      if (s.part == site_part::load || s.part == site_part::failure) return {acquire};
      return {acq_rel};
    case acq_rel:
      return {acquire, release};
    case acquire:
    case release:
      return {relaxed};
    default:
      return {};
  }
}

std::memory_order site_table::order(std::memory_order order, std::source_location where,
                                    site_part part) {
  const site s{where.file_name(), where.line(), where.column(), part, order};
  if (active_) {
    if (!(s == weakened_)) return order;
    met_ = true;
    return instead_;
  }
  if (std::find(sites_.begin(), sites_.end(), s) == sites_.end()) sites_.push_back(s);
  return order;
}

}  // namespace forebay::explorer
