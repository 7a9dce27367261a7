#include "forebay/dma/debug.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <numeric>

#include "forebay/base/debug_names.h"
#include "forebay/os/mutex.h"

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

// The one lock, and the pieces of all mappings of all checked domains by the CPU's addresses.
mutex records_lock;
range_index<dma_mapping>& by_cpu_address() noexcept {
  static range_index<dma_mapping>& all = *new range_index<dma_mapping>;  // never destroyed
  return all;
}

// This thread holds the lock: a fault that happens then must not wait for it.
thread_local bool holds_records_lock = false;

// A line of text that is cut off where it gets too long.
class line {
 public:
  template <typename... Arguments>
  void add(fmt::format_string<Arguments...> format, Arguments&&... arguments) noexcept {
    const auto end = fmt::format_to_n(text_.data() + size_, text_.size() - 1 - size_, format,
                                      std::forward<Arguments>(arguments)...);
    size_ = std::min(size_ + end.size, text_.size() - 1);
  }
  void add(const dma_segment& s) noexcept {
    add("address {:#x}, length {}", to_number(s.address), s.length);
    if (s.region != dma_segment::no_region) add(", region {}", s.region);
  }
  void add(const std::source_location& where) noexcept {
    add("{}:{}", where.file_name(), where.line());
  }
  std::string_view text() const noexcept { return {text_.data(), size_}; }
  void print() noexcept {
    text_[size_] = '\n';
    std::fwrite(text_.data(), 1, size_ + 1, stderr);
  }

 private:
  std::array<char, 1024> text_;
  std::size_t size_ = 0;
};

}  // namespace

std::string_view to_string(dma_mistake m) noexcept {
  return mistake_names[static_cast<std::size_t>(m)];
}

class FOREBAY_SCOPED_CAPABILITY dma_debug::held {
 public:
  held() FOREBAY_ACQUIRE(records_lock) {
    records_lock.lock();
    holds_records_lock = true;
  }
  ~held() FOREBAY_RELEASE() {
    holds_records_lock = false;
    records_lock.unlock();
  }
  held(const held&) = delete;
  held& operator=(const held&) = delete;
};

// What was asked for.
struct dma_debug::call {
  dma_segment segment;
  dma_direction direction;
  dma_kind kind;
  const std::source_location& where;
};

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
    line l;
    l.add("forebay: dma \"{}\": no memory for checks, there are none", name);
    l.print();
  }
  return made;
}

dma_debug::dma_debug(std::string_view name, const dma_limits& limits, bool abort,
                     dma_guardable guard, std::uint32_t segments_max) noexcept
    : name_(name), limits_(limits), abort_(abort), guard_(guard), segments_max_(segments_max) {}

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
  line l;
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
    line last;
    last.add("forebay: dma \"{}\": further mistakes are counted, not shown", name_);
    last.print();
  }
}

void dma_debug::report_leaks(const held&) noexcept {
  constexpr std::size_t shown_max = 8;
  counts_[static_cast<std::size_t>(dma_mistake::leak)] += active_;
  line l;
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
  line l;
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

bool dma_debug::guards() const noexcept { return guard_ != dma_guardable::none && working(); }

// ---- Map ----

void dma_debug::to_be_mapped(std::span<const std::byte> memory, dma_direction d, bool reached,
                             const std::source_location& where) noexcept {
  const auto first = std::bit_cast<std::uintptr_t>(memory.data());
  const call c{.segment = {.address = dma_address{first},
                           .length = static_cast<std::uint32_t>(
                               std::min<std::size_t>(memory.size(), UINT32_MAX))},
               .direction = d,
               .kind = dma_kind::single,
               .where = where};
  const held lock;
  if (!working_) return;
  if (memory.empty()) return report(lock, dma_mistake::no_bytes, c, nullptr);
  if (memory.size() - 1 > UINTPTR_MAX - first)
    return report(lock, dma_mistake::overflowing_length, c, nullptr);
  if (!reached) report(lock, dma_mistake::unreachable_memory, c, nullptr);
}

void dma_debug::mapped(dma_kind kind, std::span<const dma_segment> segments,
                       std::span<const std::span<std::byte>> pieces, dma_direction d,
                       const std::source_location& where) noexcept {
  if (segments.empty()) return;
  std::unique_ptr<dma_mapping> m = dma_mapping::create(segments, pieces);
  const held lock;
  if (!working_) return;
  if (m == nullptr || !by_address_.reserve(segments.size()) ||
      !by_cpu_address().reserve(pieces.size()))
    return switch_off(lock, "no memory to keep track of mappings");
  if (by_address_.size() + segments.size() > segments_max_)
    return switch_off(lock, "more segments are mapped than it keeps track of");
  m->owner = this;
  m->kind = kind;
  m->direction = d;
  m->where = where;
  enter(lock, {.segment = segments[0], .direction = d, .kind = kind, .where = where}, std::move(m));
}

void dma_debug::enter(const held& lock, const call& c, std::unique_ptr<dma_mapping> m) noexcept {
  bool right = check_segments(lock, c, *m);
  for (std::uint32_t i = 0; i < m->segment_count; ++i) by_address_.insert(m->device_range(i));
  for (std::uint32_t i = 0; i < m->piece_count; ++i) {
    right = check_overlap(lock, c, *m, i) && right;
    by_cpu_address().insert(m->cpu_range(i));
  }
  ++active_;
  mappings_.push_back(*m.release());
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
  by_cpu_address().overlapping(0, p.first, p.last(), [&](const dma_mapping::range& r) {
    const bool written = device_writes(m.direction) || device_writes(r.of->direction);
    // Two devices may share memory that each uses at any time.
    const bool shared =
        m.kind == dma_kind::coherent && r.of->kind == dma_kind::coherent && r.of->owner != this;
    if (written && !shared) with = r.of;
    return with == nullptr;
  });
  if (with == nullptr) return true;
  line more;
  more.add("memory {:#x}, {} bytes", p.first, p.bytes);
  if (with->owner != this) more.add(", mapped in \"{}\"", with->owner->name_);
  report(lock, dma_mistake::overlap, c, with, more.text());
  return false;
}

// ---- Unmap ----

void dma_debug::remove(const held&, dma_mapping& m) noexcept {
  for (std::uint32_t i = 0; i < m.segment_count; ++i) by_address_.erase(m.device_range(i));
  for (std::uint32_t i = 0; i < m.piece_count; ++i) by_cpu_address().erase(m.cpu_range(i));
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
    line more;
    more.add("it was mapped at ");
    more.add(e.mapped);
    more.add(" and unmapped at ");
    more.add(e.unmapped);
    return report(lock, dma_mistake::unmap_twice, c, nullptr, more.text());
  }
  report(lock, dma_mistake::unmap_of_unmapped, c, nullptr);
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
    line more;
    more.add("{} bytes from {} were lent at ", m.lents[0].bytes, m.lents[0].start);
    more.add(m.lents[0].where);
    report(lock, dma_mistake::unmap_while_lent, c, &m, more.text());
  }
}

// ---- Sync and access ----

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
    if (fit > best_fit) {
      best = p;
      best_fit = fit;
    }
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
  const call c{.segment = part_of(s, offset, length),
               .direction = d,
               .kind = dma_kind::single,
               .where = where};
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
  return true;
}

bool dma_debug::to_be_returned(const dma_segment& s, std::uint32_t offset, std::uint32_t length,
                               dma_direction d, const std::source_location& where) noexcept {
  const call c{.segment = part_of(s, offset, length),
               .direction = d,
               .kind = dma_kind::single,
               .where = where};
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
  if (p.in != nullptr) p.in->take_back(p.start, length);
}

void dma_debug::access(const dma_segment& s, std::uint32_t offset, std::uint32_t length,
                       dma_direction direction, const std::source_location& where) noexcept {
  const call c{.segment = part_of(s, offset, length),
               .direction = direction,
               .kind = dma_kind::single,
               .where = where};
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
  if (p.in->is_lent(p.start, length)) report(lock, dma_mistake::access_while_lent, c, p.in);
}

std::size_t dma_debug::explain(const void* address, std::span<char> out) noexcept {
  if (holds_records_lock) return 0;
  const held lock;
  const auto at = std::bit_cast<std::uintptr_t>(address);
  std::size_t size = 0;
  by_cpu_address().overlapping(0, at, at, [&](const dma_mapping::range& r) {
    const dma_mapping& m = *r.of;
    line l;
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
