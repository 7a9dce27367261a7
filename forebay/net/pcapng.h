// pcapng: the blocks of a capture file as this house writes them (draft-ietf-opsawg-pcapng), in the
// byte order of the machine, which the section header tells.
//
//    Section Header │ Interface Description │ Enhanced Packet │ Enhanced Packet │ … │ Interface
//                   │ name, nanoseconds,    │ 28 bytes, data, │                 │   │ Statistics
//                   │ snap length, filter   │ padding, length │                 │   │
//
// Each block has its length in front and behind and is a multiple of 4 bytes long, so a file that
// is cut behind any whole block is a file. There is one interface to a section, number 0.
//
// Values and functions without state; any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

namespace forebay::pcapng {

enum class block_type : std::uint32_t {
  section_header = 0x0a0d0d0a,
  interface_description = 1,
  obsolete_packet = 2,
  simple_packet = 3,
  interface_statistics = 5,
  enhanced_packet = 6,
};

inline constexpr std::uint32_t byte_order_magic = 0x1a2b3c4d;
inline constexpr std::size_t block_overhead = 12;  // type and both lengths

// What the packets of an interface begin with (the registry of LINKTYPE_ values).
enum class link_type : std::uint16_t { ethernet = 1, raw_ip = 101, radiotap = 127 };

struct section {
  std::string hardware = {};  // each of these may be empty: it is left out then
  std::string system = {};
  std::string application = {};
};
std::vector<std::byte> section_header(const section& s);

struct interface_description {
  link_type type = link_type::ethernet;
  std::uint32_t snap_bytes = 0;  // 0: whole packets
  std::string name = {};
  std::string filter = {};  // in tcpdump's language, empty: none
};
std::vector<std::byte> describe(const interface_description& i);

// What became of the packets of the interface, from start_ns until end_ns (nanoseconds since 1970,
// UTC).
struct interface_statistics {
  std::uint64_t start_ns = 0;
  std::uint64_t end_ns = 0;
  std::uint64_t received = 0;           // isb_ifrecv: by the interface
  std::uint64_t interface_dropped = 0;  // isb_ifdrop
  std::uint64_t accepted = 0;           // isb_filteraccept
  std::uint64_t system_dropped = 0;     // isb_osdrop: between the filter and this program
  std::uint64_t delivered = 0;          // isb_usrdeliv: to this file
};
std::vector<std::byte> report(const interface_statistics& s);

constexpr std::size_t padded(std::size_t bytes) noexcept { return (bytes + 3) & ~std::size_t{3}; }

inline constexpr std::size_t packet_head_bytes = 28;  // of a packet's block, in front of its data

// How long the block of a packet is of which `captured` bytes are kept.
constexpr std::size_t packet_block_bytes(std::size_t captured) noexcept {
  return block_overhead + 20 + padded(captured);
}

// The head of such a block, and where its data begins.
inline std::byte* begin_packet(std::byte* at, std::uint64_t stamp_ns, std::size_t captured,
                               std::uint32_t wire_bytes) noexcept {
  const std::uint32_t head[7] = {static_cast<std::uint32_t>(block_type::enhanced_packet),
                                 static_cast<std::uint32_t>(packet_block_bytes(captured)),
                                 0,
                                 static_cast<std::uint32_t>(stamp_ns >> 32),
                                 static_cast<std::uint32_t>(stamp_ns),
                                 static_cast<std::uint32_t>(captured),
                                 wire_bytes};
  std::memcpy(at, head, sizeof head);
  return at + sizeof head;
}

// Its end, behind the last byte of data; where the next block begins.
inline std::byte* end_packet(std::byte* at, std::size_t captured) noexcept {
  constexpr std::uint32_t zero = 0;
  std::memcpy(at, &zero, padded(captured) - captured);
  at += padded(captured) - captured;
  const auto length = static_cast<std::uint32_t>(packet_block_bytes(captured));
  std::memcpy(at, &length, sizeof length);
  return at + sizeof length;
}

// A packet's block at `at`, where packet_block_bytes(data.size()) have room; where it ends.
inline std::byte* put_packet(std::byte* at, std::uint64_t stamp_ns, std::span<const std::byte> data,
                             std::uint32_t wire_bytes) noexcept {
  at = begin_packet(at, stamp_ns, data.size(), wire_bytes);
  if (!data.empty()) std::memcpy(at, data.data(), data.size());
  return end_packet(at + data.size(), data.size());
}

}  // namespace forebay::pcapng
