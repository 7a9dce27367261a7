// What a device knows of memory: addresses of its own, and which way the data goes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

namespace forebay {

// An address as one device sees memory (Linux's dma_addr_t): an I/O virtual address behind an
// IOMMU, an offset in a UMEM, a guest-physical address, or the processor's own. A number of another
// kind, so that it is not taken for a pointer; it means something in its domain only.
enum class dma_address : std::uint64_t {};

constexpr std::uint64_t to_number(dma_address a) noexcept { return static_cast<std::uint64_t>(a); }
constexpr dma_address operator+(dma_address a, std::uint64_t bytes) noexcept {
  return dma_address{to_number(a) + bytes};
}

// What the device may do with the memory (Linux's enum dma_data_direction).
enum class dma_direction : std::uint8_t {
  to_device = 1,    // read it: a disk write, a packet to send
  from_device = 2,  // write it: a disk read, a received packet
  bidirectional = 3,
};

constexpr bool device_reads(dma_direction d) noexcept {
  return (static_cast<unsigned>(d) & static_cast<unsigned>(dma_direction::to_device)) != 0;
}
constexpr bool device_writes(dma_direction d) noexcept {
  return (static_cast<unsigned>(d) & static_cast<unsigned>(dma_direction::from_device)) != 0;
}

// One contiguous piece of a device's address space.
struct dma_segment {
  static constexpr std::uint32_t no_region = UINT32_MAX;

  dma_address address{};
  std::uint32_t length = 0;          // bytes
  std::uint32_t region = no_region;  // which of the device's registered regions it lies in; devices
                                     // that know regions by number want it beside the address

  friend bool operator==(const dma_segment&, const dma_segment&) = default;
};

static_assert(sizeof(dma_segment) == 16);

// A part of a segment: `offset` + `length` must not exceed it.
constexpr dma_segment part_of(const dma_segment& s, std::uint32_t offset,
                              std::uint32_t length) noexcept {
  return {s.address + offset, length, s.region};
}

// What a device's transfers can be made of.
struct dma_limits {
  std::uint32_t max_segments = std::numeric_limits<std::uint32_t>::max();
  std::uint32_t max_segment_bytes = std::numeric_limits<std::uint32_t>::max();
  // A segment does not cross a multiple of boundary_mask + 1 of device addresses (Linux's
  // dma_set_seg_boundary); all ones: none. A power of two less one.
  std::uint64_t boundary_mask = std::numeric_limits<std::uint64_t>::max();
  // What one mapping can have, however many segments it becomes (Linux's dma_max_mapping_size).
  std::uint32_t max_mapping_bytes = std::uint32_t{1} << 31;
};

// Whether `s` keeps to the limits of one segment.
constexpr bool keeps_to(const dma_segment& s, const dma_limits& limits) noexcept {
  const std::uint64_t first = to_number(s.address);
  return s.length != 0 && s.length <= limits.max_segment_bytes &&
         (first & ~limits.boundary_mask) == ((first + s.length - 1) & ~limits.boundary_mask);
}

}  // namespace forebay
