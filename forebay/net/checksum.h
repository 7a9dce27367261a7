// The Internet checksum (RFC 1071): the ones' complement of the ones' complement sum of the 16-bit
// words of some bytes, big-endian.
//
// A sum is kept open in an internet_sum until it is asked for, so that it can run over the pieces
// of a packet and a pseudo header. Values; no state.
#pragma once

#include "forebay/net/packet_buffer.h"
#include "forebay/net/wire.h"

namespace forebay {

class internet_sum {
 public:
  // The bytes that follow. Pieces may have any lengths: after an odd one the next byte is the lower
  // half of a word.
  void add(std::span<const std::byte> bytes) noexcept;
  // A word, when what was added before had an even length.
  void add(std::uint16_t word) noexcept { sum_ += word; }
  // What is before a UDP, TCP or ICMPv6 packet of `length` bytes in its sum.
  void add_pseudo_header(const ipv4_header& ip, std::uint8_t protocol, std::size_t length) noexcept;
  void add_pseudo_header(const ipv6_header& ip, std::uint8_t protocol, std::size_t length) noexcept;

  // The sum, folded to 16 bits: 0xffff over bytes that hold their right checksum.
  std::uint16_t folded() const noexcept;
  // What belongs into the field of the checksum, which was 0 when it was added.
  std::uint16_t checksum() const noexcept { return static_cast<std::uint16_t>(~folded()); }

 private:
  std::uint64_t sum_ = 0;
  bool odd_ = false;
};

// Of `length` bytes of a packet from `offset` on, which there are, wherever they lie.
void add_to_sum(internet_sum& sum, const packet_buffer& p, std::size_t offset,
                std::size_t length) noexcept;

inline std::uint16_t internet_checksum(std::span<const std::byte> bytes) noexcept {
  internet_sum sum;
  sum.add(bytes);
  return sum.checksum();
}

// The checksum after a word of what it is of has become another (RFC 1624, equation 3).
constexpr std::uint16_t updated_checksum(std::uint16_t checksum, std::uint16_t before,
                                         std::uint16_t after) noexcept {
  std::uint32_t sum = static_cast<std::uint16_t>(~checksum);
  sum += static_cast<std::uint16_t>(~before);
  sum += after;
  sum = (sum & 0xffff) + (sum >> 16);
  sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<std::uint16_t>(~sum);
}

}  // namespace forebay
