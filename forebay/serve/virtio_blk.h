// The wire format of a virtio block device: features, configuration, requests (virtio 1.2, 5.2).
// Little-endian, so on the machines that this is for (memory_regions and descriptors say the same)
// as it lies in memory.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

namespace forebay::virtio {

static_assert(std::endian::native == std::endian::little, "virtio 1 is little-endian");

constexpr std::uint64_t bit(unsigned n) noexcept { return std::uint64_t{1} << n; }

// ---- Features of every device (virtio 1.2, 6) ----

inline constexpr std::uint64_t ring_indirect = bit(28);     // INDIRECT_DESC
inline constexpr std::uint64_t ring_event_index = bit(29);  // EVENT_IDX
inline constexpr std::uint64_t version_1 = bit(32);
inline constexpr std::uint64_t ring_packed = bit(34);

// ---- Features of a block device (5.2.3) ----

inline constexpr std::uint64_t blk_size_max = bit(1);
inline constexpr std::uint64_t blk_seg_max = bit(2);
inline constexpr std::uint64_t blk_read_only = bit(5);
inline constexpr std::uint64_t blk_block_size = bit(6);
inline constexpr std::uint64_t blk_flush = bit(9);
inline constexpr std::uint64_t blk_topology = bit(10);
inline constexpr std::uint64_t blk_config_wce = bit(11);
inline constexpr std::uint64_t blk_multi_queue = bit(12);
inline constexpr std::uint64_t blk_discard = bit(13);
inline constexpr std::uint64_t blk_write_zeroes = bit(14);

inline constexpr std::uint64_t sector_bytes = 512;  // of every sector number, whatever the block is

// struct virtio_blk_config up to and with what this device has (5.2.4).
struct blk_config {
  std::uint64_t capacity_sectors = 0;
  std::uint32_t size_max = 0;  // bytes of one segment
  std::uint32_t seg_max = 0;   // segments of one request
  std::uint16_t cylinders = 0;
  std::uint8_t heads = 0;
  std::uint8_t sectors = 0;
  std::uint32_t block_bytes = 0;
  std::uint8_t physical_block_exponent = 0;  // log2 of logical blocks in a physical one
  std::uint8_t alignment_offset = 0;
  std::uint16_t min_io_blocks = 0;
  std::uint32_t optimal_io_blocks = 0;
  std::uint8_t writeback = 0;  // 1: there is a volatile cache, which FLUSH is for
  std::uint8_t unused0 = 0;
  std::uint16_t num_queues = 0;
  std::uint32_t max_discard_sectors = 0;
  std::uint32_t max_discard_segments = 0;
  std::uint32_t discard_alignment_sectors = 0;
  std::uint32_t max_write_zeroes_sectors = 0;
  std::uint32_t max_write_zeroes_segments = 0;
  std::uint8_t write_zeroes_may_unmap = 0;
  std::uint8_t unused1[3] = {};
};
static_assert(sizeof(blk_config) == 64 && offsetof(blk_config, writeback) == 32 &&
              offsetof(blk_config, max_discard_sectors) == 36 &&
              offsetof(blk_config, write_zeroes_may_unmap) == 56);
inline constexpr std::size_t blk_config_bytes = 60;  // without the padding of this struct

// ---- Requests (5.2.6) ----

enum class blk_type : std::uint32_t {
  in = 0,   // read
  out = 1,  // write
  flush = 4,
  get_id = 8,
  discard = 11,
  write_zeroes = 13,
};

struct blk_header {
  std::uint32_t type = 0;
  std::uint32_t reserved = 0;
  std::uint64_t sector = 0;
};
static_assert(sizeof(blk_header) == 16);

// Of a discard and of a write-zeroes.
struct blk_range {
  std::uint64_t sector = 0;
  std::uint32_t sectors = 0;
  std::uint32_t flags = 0;
};
static_assert(sizeof(blk_range) == 16);
inline constexpr std::uint32_t range_unmap = 1;  // a write-zeroes may deallocate

// The last byte that the device writes.
enum class blk_status : std::uint8_t { ok = 0, io_error = 1, unsupported = 2 };

inline constexpr std::size_t id_bytes = 20;  // of get_id

}  // namespace forebay::virtio
