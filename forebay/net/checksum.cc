#include "forebay/net/checksum.h"

namespace forebay {
namespace {

// Ones' complement sums do not mind the order of bytes in a word as long as it is the same in all:
// eight bytes at a time are added as they lie, and the halves are turned round at the end.
std::uint64_t sum_of_words(std::span<const std::byte> bytes) noexcept {
  static_assert(std::endian::native == std::endian::little);
  std::uint64_t sum = 0;
  while (bytes.size() >= 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes.data(), 8);
    sum += word;
    sum += sum < word ? 1 : 0;
    bytes = bytes.subspan(8);
  }
  if (!bytes.empty()) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes.data(), bytes.size());
    sum += word;
    sum += sum < word ? 1 : 0;
  }
  sum = (sum & 0xffff'ffff) + (sum >> 32);
  sum = (sum & 0xffff'ffff) + (sum >> 32);
  sum = (sum & 0xffff) + (sum >> 16);
  sum = (sum & 0xffff) + (sum >> 16);
  return (sum & 0xff) << 8 | sum >> 8;
}

template <typename Address>
void add_addresses(internet_sum& sum, const Address& source, const Address& destination) noexcept {
  sum.add(std::as_bytes(std::span(source)));
  sum.add(std::as_bytes(std::span(destination)));
}

}  // namespace

void internet_sum::add(std::span<const std::byte> bytes) noexcept {
  if (bytes.empty()) return;
  if (odd_) {
    sum_ += std::to_integer<std::uint64_t>(bytes[0]);
    bytes = bytes.subspan(1);
    odd_ = false;
  }
  sum_ += sum_of_words(bytes);
  odd_ = bytes.size() % 2 != 0;
}

void internet_sum::add_pseudo_header(const ipv4_header& ip, std::uint8_t protocol,
                                     std::size_t length) noexcept {
  add_addresses(*this, ip.source, ip.destination);
  sum_ += protocol + length;
}

void internet_sum::add_pseudo_header(const ipv6_header& ip, std::uint8_t protocol,
                                     std::size_t length) noexcept {
  add_addresses(*this, ip.source, ip.destination);
  sum_ += protocol + (length >> 16) + (length & 0xffff);
}

std::uint16_t internet_sum::folded() const noexcept {
  std::uint64_t sum = sum_;
  while (sum >> 16 != 0) sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<std::uint16_t>(sum);
}

void add_to_sum(internet_sum& sum, const packet_buffer& p, std::size_t offset,
                std::size_t length) noexcept {
  p.for_each_segment([&](std::span<const std::byte> segment) {
    if (offset >= segment.size()) {
      offset -= segment.size();
      return;
    }
    const std::size_t n = std::min(segment.size() - offset, length);
    sum.add(segment.subspan(offset, n));
    length -= n;
    offset = 0;
  });
}

}  // namespace forebay
