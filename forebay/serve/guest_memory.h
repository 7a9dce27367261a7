// The memory of a guest, as a vhost-user front-end announces it: the domain whose addresses are in
// the guest's descriptors.
//
//    guest-physical:  | region 0 |     hole     | region 1 |       in descriptors
//    user:               | region 1 | region 0 |                   in the messages about rings
//    here:         | region 0 |   | region 1 |                     mappings of the front-end's
//    files
//
// Of the two ways of a dma domain this is the other one: here this process is the device, and turns
// the addresses that a driver gives it into memory. Every address is checked against the regions,
// at every segment; a piece lies within one region, whatever was asked for (an AddressTranslation).
//
// The front-end can change the contents at any time. It could also cut its files short; what is
// then missing reads as zeros here (os/foreign_mapping.h), and damaged() says so.
//
// One thread at a time changes it, and nobody looks meanwhile; any number of threads may look.
#pragma once

#include <array>

#include "forebay/os/fd.h"
#include "forebay/os/foreign_mapping.h"
#include "forebay/ring/memory_regions.h"
#include "forebay/ring/ring_error.h"

namespace forebay {

class guest_memory {
 public:
  static constexpr std::size_t regions_max = 64;

  // As in VHOST_USER_SET_MEM_TABLE.
  struct region {
    std::uint64_t guest_physical = 0;
    std::uint64_t bytes = 0;
    std::uint64_t user_address = 0;
    std::uint64_t file_offset = 0;
  };

  guest_memory() noexcept = default;
  guest_memory(const guest_memory&) = delete;  // virtqueues point to it
  guest_memory& operator=(const guest_memory&) = delete;

  // Maps a part of the file. Errors, nothing is added: EINVAL for no bytes or addresses that wrap
  // around, EEXIST if some are there already, ENOSPC above regions_max; as foreign_mapping::map.
  result<> add(const region& r, int fd);

  // Takes a region off: the one that begins at these addresses and has this size. Error: ENOENT.
  result<> remove(const region& r) noexcept;

  void clear() noexcept;

  std::size_t size() const noexcept { return count_; }

  // By guest-physical address; see AddressTranslation.
  result<std::span<std::byte>> translate(std::uint64_t address, std::uint64_t length_bytes,
                                         device_access access) const noexcept {
    return by_guest_.translate(address, length_bytes, access);
  }

  // By the front-end's own addresses: all of the range, in one region. Error:
  // ring_errc::unmapped_address.
  result<std::span<std::byte>> at_user_address(std::uint64_t address,
                                               std::uint64_t length_bytes) const noexcept;

  // Whether a file was found shorter than it had been.
  bool damaged() const noexcept;

 private:
  struct place {
    region where;
    foreign_mapping mapping;
  };

  std::array<place, regions_max> places_{};  // the first count_
  std::size_t count_ = 0;
  memory_region_table by_guest_;
  memory_region_table by_user_;
};

static_assert(AddressTranslation<guest_memory>);

}  // namespace forebay
