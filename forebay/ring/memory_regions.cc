#include "forebay/ring/memory_regions.h"

#include <algorithm>

#include "forebay/ring/ring_error.h"

namespace forebay {

std::size_t memory_region_table::begin_until(std::uint64_t address) const noexcept {
  const auto* const end = regions_.data() + size_;
  const auto* const after =
      std::upper_bound(regions_.data(), end, address,
                       [](std::uint64_t a, const region& r) { return a < r.address; });
  return static_cast<std::size_t>(after - regions_.data());
}

result<> memory_region_table::add(std::uint64_t address, std::span<std::byte> memory,
                                  device_access most) noexcept {
  if (memory.empty() || address + (memory.size() - 1) < address) return fail(EINVAL);
  const std::size_t at = begin_until(address);
  if (at != 0 && address - regions_[at - 1].address < regions_[at - 1].memory.size()) {
    return fail(EEXIST);
  }
  if (at != size_ && regions_[at].address - address < memory.size()) return fail(EEXIST);
  if (size_ == regions_max) return fail(ENOSPC);
  std::move_backward(regions_.begin() + at, regions_.begin() + size_, regions_.begin() + size_ + 1);
  regions_[at] = {.address = address, .memory = memory, .most = most};
  ++size_;
  return {};
}

result<> memory_region_table::remove(std::uint64_t address) noexcept {
  const std::size_t at = begin_until(address);
  if (at == 0 || regions_[at - 1].address != address) return fail(ENOENT);
  std::move(regions_.begin() + at, regions_.begin() + size_, regions_.begin() + at - 1);
  regions_[--size_] = {};
  return {};
}

result<std::span<std::byte>> memory_region_table::translate(std::uint64_t address,
                                                            std::uint64_t length_bytes,
                                                            device_access access) const noexcept {
  const std::size_t at = begin_until(address);
  if (at == 0) return fail(ring_errc::unmapped_address);
  const region& r = regions_[at - 1];
  const std::uint64_t start = address - r.address;
  if (start >= r.memory.size()) return fail(ring_errc::unmapped_address);
  if (access == device_access::write && r.most == device_access::read) {
    return fail(ring_errc::forbidden_access);
  }
  return r.memory.subspan(start, std::min<std::uint64_t>(length_bytes, r.memory.size() - start));
}

}  // namespace forebay
