// The checks of what is lent to the CPU, and of the device's access.

#include <cstdint>

#include "forebay/dma/debug_parts.h"
#include "forebay/dma/guard.h"

namespace forebay {

// Where a part of `s`, a segment or a part of one, is in a mapping. Of several mappings, the one
// that `prefer(place)` likes most; one that holds all of the part before one that does not.
template <typename Prefer>
dma_debug::place dma_debug::find_part(const held&, const dma_segment& s, std::uint64_t offset,
                                      std::uint64_t length, Prefer prefer) const noexcept {
  place best;
  int best_fit = -1;
  const std::uint64_t first = to_number(s.address);
  by_address_.overlapping(s.region, first, first, [&](const dma_mapping::range& r) {
    const dma_segment& segment = r.of->segments[r.part];
    const std::uint64_t before = first - to_number(segment.address);
    const place p{.in = r.of,
                  .start = r.of->start_of(r.part) + before + offset,
                  .inside = length != 0 && before + offset + length <= segment.length &&
                            offset + length <= s.length};
    const int fit = 4 * (p.inside ? 1 : 0) + 2 * (prefer(p) ? 1 : 0) + (segment == s ? 1 : 0);
    const bool only = best.in == nullptr;
    if (fit > best_fit) {
      best = p;
      best_fit = fit;
    }
    best.only = only;
    return true;
  });
  return best;
}

bool dma_debug::check_sync(const held& lock, const call& c, const place& p) noexcept {
  if (p.in == nullptr) {
    report(lock, dma_mistake::sync_of_unmapped, c, nullptr);
    return false;
  }
  if (!p.inside) {
    report(lock, dma_mistake::sync_out_of_range, c, p.in);
    return false;
  }
  if (c.direction != p.in->direction && p.in->direction != dma_direction::bidirectional)
    report(lock, dma_mistake::sync_with_other_direction, c, p.in);
  return true;
}

bool dma_debug::to_be_lent(const dma_segment& s, std::uint32_t offset, std::uint32_t length,
                           dma_direction d, const std::source_location& where) noexcept {
  const call c = call::of_part(s, offset, length, d, where);
  const held lock;
  if (!working_) return true;
  const place p = find_part(lock, s, offset, length,
                            [&](const place& q) { return !q.in->is_lent(q.start, length); });
  if (!check_sync(lock, c, p)) return false;
  if (p.in->is_lent(p.start, length)) {
    report(lock, dma_mistake::lent_already, c, p.in);
    return false;
  }
  if (!p.in->lend({.start = p.start, .bytes = length, .where = where}))
    switch_off(lock, "no memory to keep track of mappings");
  else if (p.in->guarded)
    static_cast<void>(dma_guard::update(dma_records(), *p.in, p.start, length, true));
  return true;
}

bool dma_debug::to_be_returned(const dma_segment& s, std::uint32_t offset, std::uint32_t length,
                               dma_direction d, const std::source_location& where) noexcept {
  const call c = call::of_part(s, offset, length, d, where);
  const held lock;
  if (!working_) return true;
  const place p = find_part(lock, s, offset, length, [&](const place& q) {
    return q.in->find_lent(q.start, length) != nullptr;
  });
  if (!check_sync(lock, c, p)) return false;
  if (p.in->find_lent(p.start, length) != nullptr) return true;
  report(lock, dma_mistake::not_lent, c, p.in);
  return false;
}

void dma_debug::returned(const dma_segment& s, std::uint32_t offset,
                         std::uint32_t length) noexcept {
  const held lock;
  if (!working_) return;
  const place p = find_part(lock, s, offset, length, [&](const place& q) {
    return q.in->find_lent(q.start, length) != nullptr;
  });
  if (p.in == nullptr) return;
  p.in->take_back(p.start, length);
  if (p.in->guarded && !dma_guard::update(dma_records(), *p.in, p.start, length, true))
    stop_guarding(lock, *p.in);
}

void dma_debug::access(const dma_segment& s, std::uint32_t offset, std::uint32_t length,
                       dma_direction direction, const std::source_location& where) noexcept {
  const call c = call::of_part(s, offset, length, direction, where);
  const held lock;
  if (!working_) return;
  const auto allows = [&](const dma_mapping& m) {
    return (!device_reads(direction) || device_reads(m.direction)) &&
           (!device_writes(direction) || device_writes(m.direction));
  };
  const place p = find_part(lock, s, offset, length, [&](const place& q) {
    return allows(*q.in) && !q.in->is_lent(q.start, length);
  });
  if (p.in == nullptr) return report(lock, dma_mistake::access_to_unmapped, c, nullptr);
  if (!p.inside) return report(lock, dma_mistake::access_past_end, c, p.in);
  if (!allows(*p.in)) return report(lock, dma_mistake::access_in_other_direction, c, p.in);
  // Of several mappings of the same memory it is not known which one is meant.
  if (p.only && p.in->is_lent(p.start, length))
    report(lock, dma_mistake::access_while_lent, c, p.in);
}

}  // namespace forebay
