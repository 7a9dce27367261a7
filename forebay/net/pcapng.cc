#include "forebay/net/pcapng.h"

#include <array>
#include <limits>
#include <string_view>

namespace forebay::pcapng {
namespace {

// Options, each a code, a length and a value that is padded to 4 bytes.
enum : std::uint16_t {
  option_end = 0,
  option_hardware = 2,  // of a section
  option_system = 3,
  option_application = 4,
  option_name = 2,  // of an interface
  option_resolution = 9,
  option_filter = 11,
  option_start = 2,  // of statistics
  option_stop = 3,
  option_received = 4,
  option_interface_dropped = 5,
  option_accepted = 6,
  option_system_dropped = 7,
  option_delivered = 8,
};

// A block under construction.
class builder {
 public:
  explicit builder(block_type t) {
    put(static_cast<std::uint32_t>(t));
    put(std::uint32_t{0});
  }

  template <typename T>
  builder& put(T value) {
    std::array<std::byte, sizeof(T)> raw;
    std::memcpy(raw.data(), &value, sizeof value);
    bytes_.insert(bytes_.end(), raw.begin(), raw.end());
    return *this;
  }

  builder& option(std::uint16_t code, std::span<const std::byte> value) {
    if (value.size() > longest_option) value = value.first(longest_option);
    put(code).put(static_cast<std::uint16_t>(value.size()));
    bytes_.insert(bytes_.end(), value.begin(), value.end());
    bytes_.resize(padded(bytes_.size()));
    return *this;
  }
  // Left out if there is nothing to say.
  builder& text(std::uint16_t code, std::string_view value) {
    return value.empty() ? *this : option(code, std::as_bytes(std::span(value)));
  }
  builder& number(std::uint16_t code, std::uint64_t value) {
    return option(code, std::as_bytes(std::span(&value, 1)));
  }
  // Two words, the upper one first.
  builder& stamp(std::uint16_t code, std::uint64_t ns) {
    const std::array<std::uint32_t, 2> words{static_cast<std::uint32_t>(ns >> 32),
                                             static_cast<std::uint32_t>(ns)};
    return option(code, std::as_bytes(std::span(words)));
  }

  std::vector<std::byte> finish() {
    put(option_end).put(std::uint16_t{0});
    const auto length = static_cast<std::uint32_t>(bytes_.size() + sizeof(std::uint32_t));
    put(length);
    std::memcpy(bytes_.data() + sizeof(std::uint32_t), &length, sizeof length);
    return std::move(bytes_);
  }

 private:
  static constexpr std::size_t longest_option = std::numeric_limits<std::uint16_t>::max();

  std::vector<std::byte> bytes_;
};

}  // namespace

std::vector<std::byte> section_header(const section& s) {
  builder b(block_type::section_header);
  b.put(byte_order_magic).put(std::uint16_t{1}).put(std::uint16_t{0});  // version 1.0
  b.put(std::int64_t{-1});  // how long the section is, is not known
  b.text(option_hardware, s.hardware).text(option_system, s.system);
  return b.text(option_application, s.application).finish();
}

std::vector<std::byte> describe(const interface_description& i) {
  builder b(block_type::interface_description);
  b.put(static_cast<std::uint16_t>(i.type)).put(std::uint16_t{0}).put(i.snap_bytes);
  b.text(option_name, i.name);
  constexpr std::byte nanoseconds{9};  // ten to the minus ninth of a second
  b.option(option_resolution, {&nanoseconds, 1});
  if (!i.filter.empty()) {
    const std::string value = '\0' + i.filter;  // 0: it is a text of libpcap's language
    b.option(option_filter, std::as_bytes(std::span(value)));
  }
  return b.finish();
}

std::vector<std::byte> report(const interface_statistics& s) {
  builder b(block_type::interface_statistics);
  b.put(std::uint32_t{0});  // the interface
  b.put(static_cast<std::uint32_t>(s.end_ns >> 32)).put(static_cast<std::uint32_t>(s.end_ns));
  b.stamp(option_start, s.start_ns).stamp(option_stop, s.end_ns);
  b.number(option_received, s.received).number(option_interface_dropped, s.interface_dropped);
  b.number(option_accepted, s.accepted).number(option_system_dropped, s.system_dropped);
  return b.number(option_delivered, s.delivered).finish();
}

}  // namespace forebay::pcapng
