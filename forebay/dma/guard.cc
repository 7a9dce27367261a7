#include "forebay/dma/guard.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <span>

#include "forebay/base/assert.h"
#include "forebay/base/cache_line.h"
#include "forebay/os/memory_checker.h"
#include "forebay/os/protection.h"

namespace forebay {
namespace {

// What a memory checker can tell apart: it knows of a word how many of its first bytes are open.
constexpr std::uintptr_t word_bytes = 8;

struct addresses {
  std::uintptr_t first = 0;
  std::uintptr_t end = 0;

  bool empty() const noexcept { return first >= end; }
};

// The words or pages that `a` touches, of those that lie in the piece whole.
addresses touched(const addresses& a, const dma_mapping::piece& in, std::uintptr_t unit) noexcept {
  return {.first = std::max(round_down(a.first, unit), round_up(in.first, unit)),
          .end = std::min(round_up(a.end, unit), round_down(in.first + in.bytes, unit))};
}

// The addresses of some of a mapping's bytes, as far as they are in the piece.
addresses part_of(const dma_mapping::piece& p, std::uint64_t start, std::uint64_t bytes) noexcept {
  const std::uint64_t from = std::clamp(start, p.start, p.start + p.bytes);
  const std::uint64_t to = std::clamp(start + bytes, p.start, p.start + p.bytes);
  return {.first = p.first + (from - p.start), .end = p.first + (to - p.start)};
}

std::byte* pointer(std::uintptr_t address) noexcept { return std::bit_cast<std::byte*>(address); }

bool told_to_checker(const dma_mapping& m) noexcept {
  return device_writes(m.direction) && memory_checker_active();
}

void tell_checker(const dma_mapping& m, const dma_mapping::piece& p, const addresses& part,
                  bool active) noexcept {
  const addresses words = touched(part, p, word_bytes);
  if (words.empty()) return;
  if (!active) return permit_access(pointer(words.first), words.end - words.first, true);
  forbid_access(pointer(words.first), words.end - words.first);
  for (const dma_mapping::lent& l : m.all_lent()) {
    const addresses open = touched(part_of(p, l.start, l.bytes), p, word_bytes);
    if (!open.empty()) permit_access(pointer(open.first), open.end - open.first, true);
  }
}

memory_access access_of(const range_index<dma_mapping>& all, std::uintptr_t page) noexcept {
  memory_access access = memory_access::read_write;
  const std::uintptr_t last = page + (protection_bytes - 1);
  all.overlapping(0, page, last, [&](const dma_mapping::range& r) {
    const dma_mapping& m = *r.of;
    if (!m.guarded || told_to_checker(m) || r.first > page || r.last < last) return true;
    if (m.is_lent(m.pieces[r.part].start + (page - r.first), protection_bytes)) return true;
    access = std::max(access,
                      device_writes(m.direction) ? memory_access::none : memory_access::read_only);
    return true;
  });
  return access;
}

bool protect_run(const addresses& pages, memory_access access) noexcept {
  if (pages.empty()) return true;
  const bool done = protect({pointer(pages.first), pages.end - pages.first}, access).has_value();
  FOREBAY_ASSERT(done || access != memory_access::read_write);
  return done;
}

// One call for neighbours with the same access.
bool protect_pages(const range_index<dma_mapping>& all, const addresses& pages) noexcept {
  addresses run{.first = pages.first, .end = pages.first};
  memory_access access = memory_access::read_write;
  bool done = true;
  for (std::uintptr_t page = pages.first; page < pages.end; page += protection_bytes) {
    const memory_access a = access_of(all, page);
    if (a != access) {
      done = protect_run(run, access) && done;
      run.first = page;
      access = a;
    }
    run.end = page + protection_bytes;
  }
  return protect_run(run, access) && done;
}

}  // namespace

bool dma_guard::possible(const dma_mapping& m) noexcept {
  if (told_to_checker(m)) return true;
  return std::ranges::all_of(m.all_pieces(), [](const dma_mapping::piece& p) {
    const addresses pages =
        touched({.first = p.first, .end = p.first + p.bytes}, p, protection_bytes);
    // A change that says nothing new is let through, whatever the pages.
    return pages.empty() ||
           protect({pointer(pages.first), protection_bytes}, memory_access::read_only).has_value();
  });
}

bool dma_guard::update(const records& all, const dma_mapping& m, std::uint64_t start,
                       std::uint64_t bytes, bool active) noexcept {
  bool done = true;
  for (const dma_mapping::piece& p : m.all_pieces()) {
    const addresses part = part_of(p, start, bytes);
    if (part.empty()) continue;
    if (told_to_checker(m)) {
      tell_checker(m, p, part, active);
    } else {
      done = protect_pages(all, touched(part, p, protection_bytes)) && done;
    }
  }
  return done;
}

}  // namespace forebay
