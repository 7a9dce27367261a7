#include "forebay/serve/guest_memory.h"

#include <utility>

namespace forebay {

result<> guest_memory::add(const region& r, int fd) {
  static_assert(regions_max <= memory_region_table::regions_max);
  if (r.bytes == 0) return fail(EINVAL);
  if (count_ == regions_max) return fail(ENOSPC);
  auto mapping = foreign_mapping::map(fd, r.file_offset, r.bytes);
  if (!mapping) return fail(mapping.error());
  if (auto added = by_guest_.add(r.guest_physical, mapping->memory()); !added) return added;
  if (auto added = by_user_.add(r.user_address, mapping->memory()); !added) {
    static_cast<void>(by_guest_.remove(r.guest_physical));
    return added;
  }
  places_[count_++] = {.where = r, .mapping = std::move(*mapping)};
  return {};
}

result<> guest_memory::remove(const region& r) noexcept {
  for (std::size_t i = 0; i < count_; ++i) {
    const region& mine = places_[i].where;
    const bool same = mine.guest_physical == r.guest_physical && mine.bytes == r.bytes &&
                      mine.user_address == r.user_address;
    if (!same) continue;
    static_cast<void>(by_guest_.remove(r.guest_physical));
    static_cast<void>(by_user_.remove(r.user_address));
    --count_;
    std::swap(places_[i], places_[count_]);
    places_[count_] = {};
    return {};
  }
  return fail(ENOENT);
}

void guest_memory::clear() noexcept {
  while (count_ != 0) static_cast<void>(remove(places_[count_ - 1].where));
}

result<std::span<std::byte>> guest_memory::at_user_address(
    std::uint64_t address, std::uint64_t length_bytes) const noexcept {
  auto piece = by_user_.translate(address, length_bytes, device_access::write);
  if (piece && piece->size() != length_bytes) return fail(ring_errc::unmapped_address);
  return piece;
}

bool guest_memory::damaged() const noexcept {
  for (std::size_t i = 0; i < count_; ++i) {
    if (places_[i].mapping.damaged()) return true;
  }
  return false;
}

}  // namespace forebay
