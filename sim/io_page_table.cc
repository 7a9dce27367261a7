#include "sim/io_page_table.h"

#include <algorithm>
#include <array>
#include <bit>
#include <new>

#include "forebay/base/assert.h"

namespace forebay {
namespace {

constexpr std::uint64_t may_read = 1u << 0;
constexpr std::uint64_t may_write = 1u << 1;
constexpr std::uint64_t is_huge = 1u << 7;
constexpr std::uint64_t flag_bits = 0xfff;

constexpr unsigned shift_of(unsigned level) noexcept { return 12 + 9 * (level - 1); }

}  // namespace

struct alignas(4096) io_page_table::table {
  std::array<std::uint64_t, 512> entries{};
};
static_assert(sizeof(std::uintptr_t) == sizeof(std::uint64_t));

io_page_table::io_page_table() noexcept = default;

io_page_table::~io_page_table() {
  if (root_ != nullptr) free(*root_, 3);
}

std::uint64_t* io_page_table::entry(table& t, std::uint64_t iova, unsigned level) noexcept {
  return &t.entries[(iova >> shift_of(level)) & 511];
}

io_page_table::table* io_page_table::next(std::uint64_t entry) noexcept {
  return std::bit_cast<table*>(static_cast<std::uintptr_t>(entry & ~flag_bits));
}

// What the table leads to.
void io_page_table::free(table& t, unsigned level) noexcept {
  for (const std::uint64_t e : t.entries) {
    if (e == 0 || level == 1 || (e & is_huge) != 0) continue;
    free(*next(e), level - 1);
    delete next(e);
  }
}

// An entry of level 1 or 2, with the tables on the way; false if there is no memory for one. Tables
// that were made stay then, for unmap() to find empty.
bool io_page_table::set(std::uint64_t iova, unsigned level, std::uint64_t value) noexcept {
  if (root_ == nullptr) root_.reset(new (std::nothrow) table);
  table* t = root_.get();
  for (unsigned l = 3; t != nullptr && l > level; --l) {
    std::uint64_t& e = *entry(*t, iova, l);
    if (e == 0) {
      table* const made = new (std::nothrow) table;
      if (made == nullptr) return false;
      ++tables_;
      e = std::bit_cast<std::uintptr_t>(made) | may_read | may_write;
    }
    FOREBAY_ASSERT((e & is_huge) == 0);
    t = next(e);
  }
  if (t == nullptr) return false;
  std::uint64_t& e = *entry(*t, iova, level);
  FOREBAY_ASSERT(e == 0);
  e = value;
  ++(level == 2 ? huge_pages_ : pages_);
  return true;
}

result<> io_page_table::map(std::uint64_t iova, std::span<std::byte> pages, dma_direction d,
                            bool huge) noexcept {
  const auto first = std::bit_cast<std::uintptr_t>(pages.data());
  FOREBAY_ASSERT((iova | first | pages.size()) % page_bytes == 0);
  FOREBAY_ASSERT(iova < address_limit && pages.size() <= address_limit - iova);
  const std::uint64_t permission =
      (device_reads(d) ? may_read : 0) | (device_writes(d) ? may_write : 0);
  for (std::size_t at = 0; at < pages.size();) {
    const bool whole =
        huge && ((iova + at) | (first + at)) % huge_bytes == 0 && pages.size() - at >= huge_bytes;
    if (!set(iova + at, whole ? 2 : 1, (first + at) | permission | (whole ? is_huge : 0))) {
      unmap(iova, at + 1);
      return fail(ENOMEM);
    }
    at += whole ? huge_bytes : page_bytes;
  }
  return {};
}

// The page at `iova`, if there is one, and what tables it leaves empty; returns how far it went.
std::size_t io_page_table::clear(table& t, unsigned level, std::uint64_t iova) noexcept {
  std::uint64_t& e = *entry(t, iova, level);
  const std::size_t span = std::size_t{1} << shift_of(level);
  if (e == 0) return span - iova % span;
  if (level == 1 || (e & is_huge) != 0) {
    FOREBAY_ASSERT(iova % span == 0);
    --(level == 1 ? pages_ : huge_pages_);
    e = 0;
    return span;
  }
  table* const lower = next(e);
  const std::size_t n = clear(*lower, level - 1, iova);
  if (std::ranges::all_of(lower->entries, [](std::uint64_t other) { return other == 0; })) {
    delete lower;
    --tables_;
    e = 0;
  }
  return n;
}

void io_page_table::unmap(std::uint64_t iova, std::size_t bytes) noexcept {
  if (root_ == nullptr) return;
  for (std::size_t at = 0; at < bytes;) at += clear(*root_, 3, iova + at);
}

std::optional<io_page_table::translation> io_page_table::find(std::uint64_t iova) const noexcept {
  if (root_ == nullptr || iova >= address_limit) return {};
  table* t = root_.get();
  for (unsigned level = 3;; --level) {
    const std::uint64_t e = *entry(*t, iova, level);
    if (e == 0) return {};
    if (level != 1 && (e & is_huge) == 0) {
      t = next(e);
      continue;
    }
    const std::size_t span = std::size_t{1} << shift_of(level);
    auto* const page = std::bit_cast<std::byte*>(static_cast<std::uintptr_t>(e & ~flag_bits));
    return translation{
        {page + iova % span, span - iova % span}, (e & may_read) != 0, (e & may_write) != 0};
  }
}

}  // namespace forebay
