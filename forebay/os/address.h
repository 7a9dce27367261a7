// Internet addresses as people write them.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>

namespace forebay {

// In the order of the wire; nothing if `text` is no such address (inet_pton(3)).
std::optional<std::array<std::uint8_t, 4>> parse_ipv4(const std::string& text);
std::optional<std::array<std::uint8_t, 16>> parse_ipv6(const std::string& text);

}  // namespace forebay
