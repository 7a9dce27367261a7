#include "forebay/dma/debug.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <new>
#include <numeric>

#include "forebay/base/debug_names.h"
#include "forebay/dma/debug_parts.h"
#include "forebay/dma/guard.h"
#include "forebay/os/protection.h"

namespace forebay {
namespace {

constexpr std::array<std::string_view, dma_mistakes> mistake_names{
    "map of no bytes",
    "map past the end of the address space",
    "map of memory on the stack",
    "map of the program's constants, for the device to write",
    "map of memory that the device cannot reach",
    "segment longer than the device's limit",
    "segment across the device's boundary",
    "more segments than the device's limit",
    "pieces and segments of different length",
    "map of memory that is mapped already",
    "unmap of what is not mapped",
    "unmap for the second time",
    "unmap with another length",
    "unmap with another direction",
    "unmap as another kind",
    "unmap of another number of segments",
    "unmap while the CPU has a part",
    "sync of what is not mapped",
    "sync out of range",
    "sync with another direction",
    "sync for the CPU of what it has already",
    "sync for the device of what it has already",
    "device's access to what is not mapped",
    "device's access in another direction than mapped",
    "device's access past the end of the mapping",
    "device's access to what the CPU has",
    "domain destroyed with mappings",
};

}  // namespace

constinit mutex dma_records_lock;
constinit thread_local bool holds_dma_records_lock = false;

range_index<dma_mapping>& dma_records() noexcept {
  using records = range_index<dma_mapping>;
  alignas(records) static std::array<std::byte, sizeof(records)> memory;
  static records& all = *new (memory.data()) records;  // never destroyed
  return all;
}

std::string_view to_string(dma_direction d) noexcept {
  switch (d) {
    case dma_direction::to_device:
      return "to_device";
    case dma_direction::from_device:
      return "from_device";
    case dma_direction::bidirectional:
      return "bidirectional";
  }
  return "no direction";
}

std::string_view to_string(dma_kind k) noexcept {
  switch (k) {
    case dma_kind::single:
      return "single";
    case dma_kind::list:
      return "list";
    case dma_kind::coherent:
      return "coherent";
  }
  return "no kind";
}

std::string_view to_string(dma_mistake m) noexcept {
  return mistake_names[static_cast<std::size_t>(m)];
}

// ---- Reports ----

std::unique_ptr<dma_debug> dma_debug::create(std::string_view name, const dma_limits& limits,
                                             dma_guardable guardable,
                                             const dma_check_options& options) noexcept {
  dma_check check = options.check;
  const bool guard_named = named_in_environment("FOREBAY_DMA_GUARD", name);
  if (check == dma_check::as_environment) {
    check = !guard_named && !named_in_environment("FOREBAY_DMA_DEBUG", name) ? dma_check::off
            : named_in_environment("FOREBAY_DMA_REPORT_ONLY", name)          ? dma_check::report
                                                                             : dma_check::abort;
  }
  if (check == dma_check::off) return nullptr;
  const dma_guardable guard = options.guard.value_or(guard_named) ? guardable : dma_guardable::none;
  std::unique_ptr<dma_debug> made(new (std::nothrow) dma_debug(
      name, limits, check == dma_check::abort, guard, options.segments_max));
  if (made == nullptr) {
    report_line l;
    l.add("forebay: dma \"{}\": no memory for checks, there are none", name);
    l.print();
  } else if (guard != dma_guardable::none) {
    explain_faults(explain);
  }
  return made;
}

dma_debug::dma_debug(std::string_view name, const dma_limits& limits, bool abort,
                     dma_guardable guard, std::uint32_t segments_max) noexcept
    : name_(name),
      limits_(limits),
      abort_(abort),
      guardable_(guard),
      segments_max_(segments_max),
      guards_(guard != dma_guardable::none) {}

dma_debug::~dma_debug() {
  const held lock;
  if (active_ != 0) report_leaks(lock);
  while (!mappings_.empty()) remove(lock, mappings_.front());
}

void dma_debug::report(const held&, dma_mistake m, const call& c, const dma_mapping* mapping,
                       std::string_view more) noexcept {
  constexpr std::uint64_t lines_max = 100;
  ++counts_[static_cast<std::size_t>(m)];
  const std::uint64_t all = std::accumulate(counts_.begin(), counts_.end(), std::uint64_t{0});
  if (all > lines_max && !abort_) return;
  report_line l;
  l.add("forebay: dma \"{}\": {}: ", name_, to_string(m));
  l.add(c.segment);
  l.add(", {}, {}", to_string(c.direction), to_string(c.kind));
  if (mapping != nullptr) {
    l.add("; mapped at ");
    l.add(mapping->where);
    l.add(" with ");
    l.add(mapping->segments[0]);
    if (mapping->segment_count > 1) l.add(" (first of {} segments)", mapping->segment_count);
    l.add(", {}, {}", to_string(mapping->direction), to_string(mapping->kind));
  }
  l.add("; by ");
  l.add(c.where);
  if (!more.empty()) l.add("; {}", more);
  l.print();
  if (abort_) std::abort();
  if (all == lines_max) {
    report_line last;
    last.add("forebay: dma \"{}\": further mistakes are counted, not shown", name_);
    last.print();
  }
}

void dma_debug::report_leaks(const held&) noexcept {
  constexpr std::size_t shown_max = 8;
  counts_[static_cast<std::size_t>(dma_mistake::leak)] += active_;
  report_line l;
  l.add("forebay: dma \"{}\": {}: {} of them", name_, to_string(dma_mistake::leak), active_);
  std::size_t shown = 0;
  for (const dma_mapping& m : mappings_) {
    if (shown++ == shown_max) break;
    l.add("; ");
    l.add(m.segments[0]);
    l.add(", {}, {}, mapped at ", to_string(m.direction), to_string(m.kind));
    l.add(m.where);
  }
  if (active_ > shown_max) l.add("; …");
  l.print();
  if (abort_) std::abort();
}

void dma_debug::switch_off(const held& lock, const char* why) noexcept {
  if (!working_) return;
  working_ = false;
  while (!mappings_.empty()) remove(lock, mappings_.front());
  report_line l;
  l.add("forebay: dma \"{}\": {}, its checks end here", name_, why);
  l.print();
}

void dma_debug::no_memory_for_record() noexcept {
  const held lock;
  switch_off(lock, "no memory to keep track of mappings");
}

std::uint64_t dma_debug::count(dma_mistake m) const noexcept {
  const held lock;
  return counts_[static_cast<std::size_t>(m)];
}

std::uint64_t dma_debug::mistakes() const noexcept {
  const held lock;
  return std::accumulate(counts_.begin(), counts_.end(), std::uint64_t{0});
}

std::size_t dma_debug::active() const noexcept {
  const held lock;
  return active_;
}

bool dma_debug::working() const noexcept {
  const held lock;
  return working_;
}

bool dma_debug::guards() const noexcept {
  const held lock;
  return guards_ && working_;
}

// ---- Map ----

bool dma_debug::to_be_mapped(std::span<const std::byte> memory, dma_direction d, bool reached,
                             const std::source_location& where) noexcept {
  const auto first = std::bit_cast<std::uintptr_t>(memory.data());
  const call c{.segment = {.address = dma_address{first},
                           .length = static_cast<std::uint32_t>(
                               std::min<std::size_t>(memory.size(), UINT32_MAX))},
               .direction = d,
               .kind = dma_kind::single,
               .where = where};
  const bool stack = on_own_stack(memory.data());
  const bool constant = device_writes(d) && in_program_constants(memory);
  const held lock;
  if (!working_) return true;
  if (memory.empty()) {
    report(lock, dma_mistake::no_bytes, c, nullptr);
    return false;
  }
  if (memory.size() - 1 > UINTPTR_MAX - first) {
    report(lock, dma_mistake::overflowing_length, c, nullptr);
    return false;
  }
  if (!reached) report(lock, dma_mistake::unreachable_memory, c, nullptr);
  if (stack) report(lock, dma_mistake::stack_memory, c, nullptr);
  if (constant) report(lock, dma_mistake::constant_memory, c, nullptr);
  return true;
}

void dma_debug::mapped(dma_kind kind, std::span<const dma_segment> segments,
                       std::span<const std::span<std::byte>> pieces, dma_direction d,
                       const std::source_location& where) noexcept {
  if (segments.empty()) return;
  std::unique_ptr<dma_mapping> m = dma_mapping::create(segments, pieces);
  const bool guardable = kind != dma_kind::coherent && can_be_guarded(segments, pieces);
  const held lock;
  if (!working_) return;
  if (m == nullptr || !by_address_.reserve(segments.size()) ||
      !dma_records().reserve(pieces.size()))
    return switch_off(lock, "no memory to keep track of mappings");
  if (by_address_.size() + segments.size() > segments_max_)
    return switch_off(lock, "more segments are mapped than it keeps track of");
  m->owner = this;
  m->kind = kind;
  m->direction = d;
  m->where = where;
  m->guarded = guardable && guards_;
  enter(lock, {.segment = segments[0], .direction = d, .kind = kind, .where = where}, std::move(m));
}

void dma_debug::enter(const held& lock, const call& c, std::unique_ptr<dma_mapping> m) noexcept {
  bool right = check_segments(lock, c, *m);
  for (std::uint32_t i = 0; i < m->segment_count; ++i) by_address_.insert(m->device_range(i));
  for (std::uint32_t i = 0; i < m->piece_count; ++i) {
    right = check_overlap(lock, c, *m, i) && right;
    dma_records().insert(m->cpu_range(i));
  }
  m->guarded = m->guarded && right;
  if (m->guarded &&
      !(dma_guard::possible(*m) && dma_guard::update(dma_records(), *m, 0, m->bytes, true)))
    stop_guarding(lock, *m);
  ++active_;
  mappings_.push_back(*m.release());
}

// Where the guard of one more mapping would harm, or its device could not do its work.
bool dma_debug::can_be_guarded(std::span<const dma_segment> segments,
                               std::span<const std::span<std::byte>> pieces) const noexcept {
  if (guardable_ == dma_guardable::none) return false;
  if (guardable_ == dma_guardable::single_in_region &&
      (segments.size() != 1 || segments[0].region == dma_segment::no_region))
    return false;
  return std::ranges::none_of(pieces, [](std::span<std::byte> p) {
    return on_own_stack(p.data()) || in_program_constants(p);
  });
}

void dma_debug::stop_guarding(const held&, dma_mapping& m) noexcept {
  m.guarded = false;
  static_cast<void>(dma_guard::update(dma_records(), m, 0, m.bytes, true));
  guards_ = false;
  report_line l;
  l.add(
      "forebay: dma \"{}\": the system refuses to protect memory (huge pages of MAP_HUGETLB, or "
      "vm.max_map_count); from now on stray accesses are not caught",
      name_);
  l.print();
}

bool dma_debug::check_segments(const held& lock, const call& c, const dma_mapping& m) noexcept {
  std::uint64_t bytes = 0;
  bool right = true;
  for (const dma_segment& s : m.all_segments()) {
    bytes += s.length;
    if (keeps_to(s, limits_)) continue;
    right = false;
    const call part{.segment = s, .direction = c.direction, .kind = c.kind, .where = c.where};
    report(lock,
           s.length == 0                          ? dma_mistake::no_bytes
           : s.length > limits_.max_segment_bytes ? dma_mistake::segment_too_long
                                                  : dma_mistake::segment_over_boundary,
           part, nullptr);
  }
  if (m.segment_count > limits_.max_segments) {
    right = false;
    report(lock, dma_mistake::too_many_segments, c, &m);
  }
  if (bytes != m.bytes) {
    right = false;
    report(lock, dma_mistake::unequal_lengths, c, &m);
  }
  return right;
}

bool dma_debug::check_overlap(const held& lock, const call& c, const dma_mapping& m,
                              std::uint32_t piece) noexcept {
  const dma_mapping::piece& p = m.pieces[piece];
  const dma_mapping* with = nullptr;
  dma_records().overlapping(0, p.first, p.last(), [&](const dma_mapping::range& r) {
    const bool written = device_writes(m.direction) || device_writes(r.of->direction);
    // Two devices may share memory that each uses at any time.
    const bool shared =
        m.kind == dma_kind::coherent && r.of->kind == dma_kind::coherent && r.of->owner != this;
    if (written && !shared) with = r.of;
    return with == nullptr;
  });
  if (with == nullptr) return true;
  report_line more;
  more.add("memory {:#x}, {} bytes", p.first, p.bytes);
  if (with->owner != this) more.add(", mapped in \"{}\"", with->owner->name_);
  report(lock, dma_mistake::overlap, c, with, more.text());
  return false;
}

// ---- Unmap ----

void dma_debug::remove(const held&, dma_mapping& m) noexcept {
  for (std::uint32_t i = 0; i < m.segment_count; ++i) by_address_.erase(m.device_range(i));
  for (std::uint32_t i = 0; i < m.piece_count; ++i) dma_records().erase(m.cpu_range(i));
  if (m.guarded) static_cast<void>(dma_guard::update(dma_records(), m, 0, m.bytes, false));
  m.link.unlink();
  --active_;
  const std::unique_ptr<dma_mapping> gone(&m);
}

// Of the mappings that begin with this segment's address, the one that fits best: there are several
// where memory is mapped twice for the device to read.
dma_mapping* dma_debug::find_exact(const held&, dma_kind kind,
                                   std::span<const dma_segment> segments,
                                   dma_direction d) const noexcept {
  dma_mapping* best = nullptr;
  int best_fit = -1;
  const std::uint64_t first = to_number(segments[0].address);
  const auto look = [&](const dma_mapping::range& r) {
    const dma_mapping& m = *r.of;
    if (r.part != 0 || r.first != first) return true;
    const int fit = 2 * (std::ranges::equal(m.all_segments(), segments) ? 1 : 0) +
                    2 * (m.kind == kind ? 1 : 0) + 2 * (m.direction == d ? 1 : 0) +
                    (m.lent_count == 0 ? 1 : 0);
    if (fit > best_fit) {
      best = r.of;
      best_fit = fit;
    }
    return true;
  };
  by_address_.overlapping(segments[0].region, first, first, look);
  return best;
}

std::optional<dma_debug::mapped_as> dma_debug::to_be_unmapped(
    dma_kind kind, std::span<const dma_segment> segments, dma_direction d,
    const std::source_location& where) noexcept {
  const dma_segment first = segments.empty() ? dma_segment{} : segments[0];
  const call c{.segment = first, .direction = d, .kind = kind, .where = where};
  const held lock;
  if (!working_) return mapped_as{.segment = first, .direction = d};
  dma_mapping* const m = segments.empty() ? nullptr : find_exact(lock, kind, segments, d);
  if (m == nullptr) {
    report_unknown(lock, c);
    return std::nullopt;
  }
  give_lent_to_twin(lock, *m);
  compare(lock, c, *m, segments);
  const mapped_as was{.segment = m->segments[0], .direction = m->direction};
  ended_[ended_next_++ % ended_.size()] = {
      .segment = m->segments[0], .mapped = m->where, .unmapped = where};
  remove(lock, *m);
  return was;
}

void dma_debug::report_unknown(const held& lock, const call& c) noexcept {
  for (std::size_t back = 1; back <= ended_.size(); ++back) {
    const ended& e = ended_[(ended_next_ - back) % ended_.size()];
    if (e.segment.length == 0 || e.segment.address != c.segment.address ||
        e.segment.region != c.segment.region)
      continue;
    report_line more;
    more.add("it was mapped at ");
    more.add(e.mapped);
    more.add(" and unmapped at ");
    more.add(e.unmapped);
    return report(lock, dma_mistake::unmap_twice, c, nullptr, more.text());
  }
  report(lock, dma_mistake::unmap_of_unmapped, c, nullptr);
}

// Of two equal mappings it is not known which one has lent a part, but only how often it is lent.
void dma_debug::give_lent_to_twin(const held&, dma_mapping& m) noexcept {
  if (m.lent_count == 0) return;
  const std::uint64_t first = to_number(m.segments[0].address);
  const auto look = [&](const dma_mapping::range& r) {
    dma_mapping& twin = *r.of;
    if (&twin == &m || twin.kind != m.kind || twin.direction != m.direction ||
        !std::ranges::equal(twin.all_segments(), m.all_segments()))
      return true;
    for (std::uint32_t i = m.lent_count; i-- != 0;) {
      const dma_mapping::lent l = m.lents[i];
      if (!twin.is_lent(l.start, l.bytes) && twin.lend(l)) m.take_back(l.start, l.bytes);
    }
    return m.lent_count != 0;
  };
  by_address_.overlapping(m.segments[0].region, first, first, look);
}

void dma_debug::compare(const held& lock, const call& c, const dma_mapping& m,
                        std::span<const dma_segment> segments) noexcept {
  if (m.kind != c.kind) {
    report(lock, dma_mistake::unmap_as_other_kind, c, &m);
  } else if (m.segment_count != segments.size()) {
    report(lock, dma_mistake::unmap_with_other_count, c, &m);
  } else if (!std::ranges::equal(m.all_segments(), segments)) {
    report(lock, dma_mistake::unmap_with_other_length, c, &m);
  }
  if (m.direction != c.direction) report(lock, dma_mistake::unmap_with_other_direction, c, &m);
  if (m.lent_count != 0) {
    report_line more;
    more.add("{} bytes from {} were lent at ", m.lents[0].bytes, m.lents[0].start);
    more.add(m.lents[0].where);
    report(lock, dma_mistake::unmap_while_lent, c, &m, more.text());
  }
}

std::size_t dma_debug::explain(const void* address, std::span<char> out) noexcept {
  if (holds_dma_records_lock) return 0;
  const held lock;
  const auto at = std::bit_cast<std::uintptr_t>(address);
  std::size_t size = 0;
  dma_records().overlapping(0, at, at, [&](const dma_mapping::range& r) {
    const dma_mapping& m = *r.of;
    if (!m.guarded) return true;
    report_line l;
    l.add("forebay: dma \"{}\": {:#x} is byte {} of memory that the device has: ", m.owner->name_,
          at, m.pieces[r.part].start + (at - r.first));
    l.add(m.segments[0]);
    l.add(", {}, {}, mapped at ", to_string(m.direction), to_string(m.kind));
    l.add(m.where);
    size = std::min(l.text().size(), out.size());
    std::ranges::copy(l.text().substr(0, size), out.begin());
    return false;
  });
  return size;
}

}  // namespace forebay
