#include "forebay/os/address.h"

#include <arpa/inet.h>

namespace forebay {

std::optional<std::array<std::uint8_t, 4>> parse_ipv4(const std::string& text) {
  std::array<std::uint8_t, 4> out{};
  if (inet_pton(AF_INET, text.c_str(), out.data()) != 1) return std::nullopt;
  return out;
}

std::optional<std::array<std::uint8_t, 16>> parse_ipv6(const std::string& text) {
  std::array<std::uint8_t, 16> out{};
  if (inet_pton(AF_INET6, text.c_str(), out.data()) != 1) return std::nullopt;
  return out;
}

}  // namespace forebay
