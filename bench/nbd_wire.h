// The NBD protocol's numbers and byte order (NetworkBlockDevice/nbd doc/proto.md), as far as the
// benchmarks speak it.
//
// This is written on purpose without a look at forebay/serve: a client that shared the server's
// constants could not notice that one of them is wrong.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace forebay::bench::nbd {

inline constexpr std::uint64_t init_magic = 0x4e42444d41474943;    // "NBDMAGIC"
inline constexpr std::uint64_t option_magic = 0x49484156454f5054;  // "IHAVEOPT"
inline constexpr std::uint64_t option_reply_magic = 0x0003e889045565a9;
inline constexpr std::uint32_t request_magic = 0x25609513;
inline constexpr std::uint32_t simple_reply_magic = 0x67446698;
inline constexpr std::uint32_t structured_reply_magic = 0x668e33ef;

// Handshake flags; both sides use the same bits.
inline constexpr std::uint16_t flag_fixed_newstyle = 1;
inline constexpr std::uint16_t flag_no_zeroes = 2;

enum option : std::uint32_t {
  option_export_name = 1,
  option_abort = 2,
  option_info = 6,
  option_go = 7,
  option_structured_reply = 8,
};

inline constexpr std::uint32_t reply_ack = 1;
inline constexpr std::uint32_t reply_info = 3;
inline constexpr std::uint32_t reply_error_bit = 0x8000'0000;
inline constexpr std::uint32_t reply_unsupported = reply_error_bit | 1;
inline constexpr std::uint16_t info_export = 0;

// Transmission flags.
inline constexpr std::uint16_t has_flags = 1;
inline constexpr std::uint16_t read_only = 2;
inline constexpr std::uint16_t send_flush = 4;
inline constexpr std::uint16_t can_multi_conn = 256;

enum command : std::uint16_t {
  command_read = 0,
  command_write = 1,
  command_disconnect = 2,
  command_flush = 3,
};

// Structured reply chunks.
inline constexpr std::uint16_t chunk_done = 1;
inline constexpr std::uint16_t chunk_none = 0;
inline constexpr std::uint16_t chunk_offset_data = 1;
inline constexpr std::uint16_t chunk_offset_hole = 2;
inline constexpr std::uint16_t chunk_error_bit = 0x8000;

inline constexpr std::size_t request_bytes = 28;
inline constexpr std::size_t simple_reply_bytes = 16;
inline constexpr std::size_t chunk_header_bytes = 20;

// Unaligned big-endian integers.
template <typename Integer>
Integer load(const std::byte* from) noexcept {
  Integer value;
  std::memcpy(&value, from, sizeof value);
  if constexpr (sizeof value == 2) return __builtin_bswap16(value);
  if constexpr (sizeof value == 4) return __builtin_bswap32(value);
  if constexpr (sizeof value == 8) return __builtin_bswap64(value);
}

template <typename Integer>
std::byte* store(std::byte* to, Integer value) noexcept {
  static_assert(std::endian::native == std::endian::little);
  if constexpr (sizeof value == 2) value = __builtin_bswap16(value);
  if constexpr (sizeof value == 4) value = __builtin_bswap32(value);
  if constexpr (sizeof value == 8) value = __builtin_bswap64(value);
  std::memcpy(to, &value, sizeof value);
  return to + sizeof value;
}

}  // namespace forebay::bench::nbd
