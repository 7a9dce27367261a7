#include "sim/bounce_domain.h"

#include <algorithm>
#include <cstring>

#include "forebay/base/assert.h"

namespace forebay {
namespace {

// What a device finds that looks where nothing is mapped any more.
constexpr std::byte stale{0xdb};

dma_limits with_slots(dma_limits limits) noexcept {
  constexpr std::uint32_t most = bounce_domain::max_slots * bounce_domain::slot_bytes;
  limits.max_mapping_bytes = std::min(limits.max_mapping_bytes, most);
  return limits;
}

}  // namespace

bounce_domain::bounce_domain(const options& opts)
    : simulated_domain(opts.name, with_slots(opts.limits)),
      first_(opts.first),
      pool_(opts.pool_bytes, stale),
      slots_(opts.pool_bytes / slot_bytes) {
  FOREBAY_ASSERT(opts.pool_bytes % slot_bytes == 0);
}

result<dma_segment> bounce_domain::do_map(std::span<std::byte> memory, dma_direction d) noexcept {
  const std::size_t wanted = (memory.size() + slot_bytes - 1) / slot_bytes;
  const scoped_lock held(lock_);
  const auto run = std::search_n(slots_.begin(), slots_.end(), static_cast<long>(wanted), true,
                                 [](const slot& s, bool) { return s.memory.empty(); });
  if (run == slots_.end()) return fail(ENOSPC);
  const auto first = static_cast<std::size_t>(run - slots_.begin());
  for (std::size_t i = 0; i < wanted; ++i)
    slots_[first + i] = {static_cast<std::uint32_t>(i), memory, d};
  std::memcpy(&pool_[first * slot_bytes], memory.data(), memory.size());
  ++mappings_;
  return dma_segment{first_ + first * slot_bytes, static_cast<std::uint32_t>(memory.size()),
                     dma_segment::no_region};
}

// From `address` on to the mapping's end; empty if nothing is mapped there.
bounce_domain::place bounce_domain::find(dma_address address) noexcept {
  const std::uint64_t at = to_number(address) - to_number(first_);
  if (at >= pool_.size()) return {};
  const slot& s = slots_[at / slot_bytes];
  const std::size_t offset = s.before * slot_bytes + at % slot_bytes;
  if (offset >= s.memory.size()) return {};
  const std::span<std::byte> memory = s.memory.subspan(offset);
  return {std::span(pool_).subspan(at, memory.size()), memory, s.direction};
}

template <typename Move>
void bounce_domain::each_place(dma_address address, std::size_t bytes, Move move) noexcept {
  while (bytes != 0) {
    place p = find(address);
    if (p.memory.empty()) {
      ++strange_;
      return;
    }
    const std::size_t n = std::min(bytes, p.memory.size());
    p.copy = p.copy.first(n);
    p.memory = p.memory.first(n);
    move(p);
    address = address + n;
    bytes -= n;
  }
}

void bounce_domain::do_unmap(const dma_segment& s, dma_direction d) noexcept {
  const scoped_lock held(lock_);
  const place p = find(s.address);
  const std::size_t first = (to_number(s.address) - to_number(first_)) / slot_bytes;
  if (p.memory.size() != s.length || slots_[first].before != 0 || p.direction != d) {
    ++strange_;
    return;
  }
  if (device_writes(d)) std::memcpy(p.memory.data(), p.copy.data(), s.length);
  std::memset(p.copy.data(), static_cast<int>(stale), s.length);
  for (std::size_t i = 0; i < (s.length + slot_bytes - 1) / slot_bytes; ++i) slots_[first + i] = {};
  --mappings_;
}

void bounce_domain::do_sync_for_cpu(const dma_segment& s, std::uint32_t offset,
                                    std::uint32_t length, dma_direction) noexcept {
  const scoped_lock held(lock_);
  each_place(s.address + offset, length, [](const place& p) noexcept {
    if (device_writes(p.direction)) std::memcpy(p.memory.data(), p.copy.data(), p.copy.size());
  });
}

void bounce_domain::do_sync_for_device(const dma_segment& s, std::uint32_t offset,
                                       std::uint32_t length, dma_direction) noexcept {
  const scoped_lock held(lock_);
  each_place(s.address + offset, length, [](const place& p) noexcept {
    if (device_reads(p.direction)) std::memcpy(p.copy.data(), p.memory.data(), p.copy.size());
  });
}

std::expected<std::span<std::byte>, dma_fault_reason> bounce_domain::reach(
    dma_address address, dma_direction access) noexcept {
  const place p = find(address);
  if (p.memory.empty()) return std::unexpected(dma_fault_reason::not_mapped);
  if ((device_reads(access) && !device_reads(p.direction)) ||
      (device_writes(access) && !device_writes(p.direction)))
    return std::unexpected(dma_fault_reason::not_permitted);
  return p.copy;
}

std::size_t bounce_domain::mappings() const noexcept {
  const scoped_lock held(lock_);
  return mappings_;
}

std::uint64_t bounce_domain::strange_calls() const noexcept {
  const scoped_lock held(lock_);
  return strange_;
}

}  // namespace forebay
