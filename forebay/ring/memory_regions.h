// Which memory of this process an address of the other side stands for.
//
//      addresses of the peer        0x10000000 ┌────────────┐ 0x10200000      0x40000000 ┌──────┐
//      this process                            └─ memory ───┘                            └──────┘
//
// The table is made while a connection is set up and looked at for every buffer. A piece of memory
// that it gives out lies within one region, whatever the address and length were: that check stands
// between a corrupted descriptor and this process's own data.
//
// One thread at a time changes it, and nobody looks meanwhile; any number of threads may look.
#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

#include "forebay/base/result.h"

namespace forebay {

// What the device is going to do with memory.
enum class device_access : std::uint8_t { read, write };

// Anything that can say where an address of the other side is: this table, the guest memory of a
// vhost-user connection, a dma domain that is simulated.
template <typename M>
concept AddressTranslation = requires(const M& m, std::uint64_t n, device_access access) {
  // The memory from address `n` on, as far as it lies in one piece, at most `n` > 0 bytes and never
  // empty. Errors: ring_errc::unmapped_address, ring_errc::forbidden_access.
  { m.translate(n, n, access) } noexcept -> std::same_as<result<std::span<std::byte>>>;
};

class memory_region_table {
 public:
  static constexpr std::size_t regions_max = 64;

  // Adds memory at the peer's addresses [address, address + memory.size()). It must stay until it
  // has been removed. Errors, nothing is added: EINVAL for no memory or addresses that wrap around,
  // EEXIST if one of the addresses is there already, ENOSPC above regions_max.
  result<> add(std::uint64_t address, std::span<std::byte> memory,
               device_access most = device_access::write) noexcept;

  // Takes the region off that begins at `address`. Error: ENOENT.
  result<> remove(std::uint64_t address) noexcept;

  std::size_t size() const noexcept { return size_; }

  // See AddressTranslation. O(log(regions)).
  result<std::span<std::byte>> translate(std::uint64_t address, std::uint64_t length_bytes,
                                         device_access access) const noexcept;

 private:
  struct region {
    std::uint64_t address = 0;
    std::span<std::byte> memory;
    device_access most = device_access::write;  // write includes read
  };

  // The number of regions that begin at or below `address`.
  std::size_t begin_until(std::uint64_t address) const noexcept;

  std::array<region, regions_max> regions_{};  // the first size_: by address, none overlap
  std::size_t size_ = 0;
};

static_assert(AddressTranslation<memory_region_table>);

}  // namespace forebay
