#include "forebay/net/capture_reader.h"

#include <algorithm>
#include <cstring>

#include "forebay/net/pcapng.h"

namespace forebay {
namespace {

using pcapng::block_type;

constexpr std::size_t chunk_bytes = std::size_t{64} << 10;
constexpr std::uint32_t classic_micro = 0xa1b2c3d4;
constexpr std::uint32_t classic_nano = 0xa1b23c4d;
constexpr std::size_t classic_header_bytes = 24;
constexpr std::size_t classic_record_bytes = 16;

enum : std::uint16_t { option_resolution = 9, option_offset = 14 };            // of an interface
enum : std::uint16_t { option_interface_drops = 5, option_system_drops = 7 };  // of statistics

template <typename T>
T load(std::span<const std::byte> from, std::size_t at) noexcept {
  T value{};
  std::memcpy(&value, from.data() + at, sizeof value);
  return value;
}

template <typename T>
constexpr T swap_bytes(T value) noexcept {
  if constexpr (sizeof(T) == 2)
    return static_cast<T>(__builtin_bswap16(static_cast<std::uint16_t>(value)));
  if constexpr (sizeof(T) == 4)
    return static_cast<T>(__builtin_bswap32(static_cast<std::uint32_t>(value)));
  if constexpr (sizeof(T) == 8)
    return static_cast<T>(__builtin_bswap64(static_cast<std::uint64_t>(value)));
}

__extension__ using uint128 = unsigned __int128;

// Units per second that the option if_tsresol stands for; 0 if they are none that can be.
std::uint64_t resolution_of(std::uint8_t option) noexcept {
  const unsigned exponent = option & 0x7f;
  if ((option & 0x80) != 0) return exponent < 64 ? std::uint64_t{1} << exponent : 0;
  if (exponent > 19) return 0;
  std::uint64_t units = 1;
  for (unsigned i = 0; i < exponent; ++i) units *= 10;
  return units;
}

std::uint64_t to_ns(std::uint64_t ticks, std::uint64_t units_per_second,
                    std::int64_t offset_s) noexcept {
  const std::uint64_t seconds = ticks / units_per_second;
  const auto part = static_cast<uint128>(ticks % units_per_second) * 1'000'000'000;
  return (seconds + static_cast<std::uint64_t>(offset_s)) * 1'000'000'000 +
         static_cast<std::uint64_t>(part / units_per_second);
}

}  // namespace

template <typename T>
T capture_reader::number(std::span<const std::byte> from, std::size_t at) const noexcept {
  const T value = load<T>(from, at);
  return swapped_ ? swap_bytes(value) : value;
}

// Calls f(code, value) for the options of a block, as far as they are well-formed.
template <typename F>
void capture_reader::for_each_option(std::span<const std::byte> options, F f) const {
  while (options.size() >= 4) {
    const auto code = number<std::uint16_t>(options, 0);
    const std::size_t length = number<std::uint16_t>(options, 2);
    if (code == 0 || pcapng::padded(length) > options.size() - 4) return;
    f(code, options.subspan(4, length));
    options = options.subspan(4 + pcapng::padded(length));
  }
}

result<capture_reader> capture_reader::open(const std::string& path) {
  auto file = stream_file::open(path);
  if (!file) return fail(file.error());
  capture_reader made(std::move(*file));
  if (auto r = made.recognise(); !r) return fail(r.error());
  return made;
}

// Sees to it that so many bytes are in the window; false if the file has not so many more. The
// buffer grows with what has been read, not with what is asked for.
result<bool> capture_reader::have(std::size_t bytes) {
  while (end_ - start_ < bytes) {
    if (start_ != 0) {
      std::memmove(buffer_.data(), buffer_.data() + start_, end_ - start_);
      end_ -= start_;
      start_ = 0;
    }
    if (buffer_.size() - end_ < chunk_bytes)
      buffer_.resize(std::max(buffer_.size() * 2, chunk_bytes));
    const auto n = file_.read(std::span(buffer_).subspan(end_));
    if (!n) return fail(n.error());
    if (*n == 0) return false;
    end_ += *n;
  }
  return true;
}

// What kind of file it is. The header of a classic one is used up, the section header of a pcapng
// stays.
result<> capture_reader::recognise() {
  const auto enough = have(classic_header_bytes);
  if (!enough) return fail(enough.error());
  if (!*enough) return fail(errc::corrupt);
  const auto first = load<std::uint32_t>(window(), 0);
  if (first == static_cast<std::uint32_t>(block_type::section_header)) {
    const auto magic = load<std::uint32_t>(window(), 8);
    const bool known =
        magic == pcapng::byte_order_magic || swap_bytes(magic) == pcapng::byte_order_magic;
    return known ? result<>{} : fail(errc::corrupt);
  }
  swapped_ = swap_bytes(first) == classic_micro || swap_bytes(first) == classic_nano;
  const std::uint32_t magic = swapped_ ? swap_bytes(first) : first;
  if (magic != classic_micro && magic != classic_nano) return fail(errc::corrupt);
  classic_ = true;
  interface only;
  only.link_type = static_cast<std::uint16_t>(number<std::uint32_t>(window(), 20));
  only.snap_bytes = number<std::uint32_t>(window(), 16);
  only.units_per_second = magic == classic_nano ? 1'000'000'000 : 1'000'000;
  interfaces_.push_back(only);
  use(classic_header_bytes);
  return {};
}

result<bool> capture_reader::next(record& out) {
  use(std::exchange(used_next_, 0));
  while (!ended_) {
    const auto s = classic_ ? next_classic(out) : next_block(out);
    if (!s) return fail(s.error());
    if (*s == step::packet) {
      ++seen_.packets;
      return true;
    }
    if (*s == step::nothing) use(std::exchange(used_next_, 0));
  }
  return false;
}

// The end, before its time: what is left is counted.
result<capture_reader::step> capture_reader::give_up(bool cut_short) {
  ended_ = true;
  used_next_ = 0;
  (cut_short ? seen_.cut_short : seen_.damaged) = true;
  for (;;) {
    seen_.unreadable += end_ - start_;
    start_ = end_;
    const auto more = have(1);
    if (!more) return fail(more.error());
    if (!*more) return step::end;
  }
}

// The same where the framing is broken, but if all from `from` on, in the window, is zeros.
result<capture_reader::step> capture_reader::give_up_unless_zeros(std::size_t from) {
  ended_ = true;
  used_next_ = 0;
  seen_.unreadable += from;
  use(from);
  bool zeros = true;
  for (;;) {
    seen_.unreadable += end_ - start_;
    zeros = zeros && std::ranges::all_of(window(), [](std::byte b) { return b == std::byte{0}; });
    start_ = end_;
    const auto more = have(1);
    if (!more) return fail(more.error());
    if (*more) continue;
    (zeros ? seen_.cut_short : seen_.damaged) = true;
    return step::end;
  }
}

result<capture_reader::step> capture_reader::next_classic(record& out) {
  const auto enough = have(classic_record_bytes);
  if (!enough) return fail(enough.error());
  if (!*enough) {
    ended_ = true;
    return window().empty() ? step::end : give_up(true);
  }
  const auto seconds = number<std::uint32_t>(window(), 0);
  const auto part = number<std::uint32_t>(window(), 4);
  const auto captured = number<std::uint32_t>(window(), 8);
  const auto whole = number<std::uint32_t>(window(), 12);
  if (captured > packet_bytes_max) return give_up(false);
  const auto complete = have(classic_record_bytes + captured);
  if (!complete) return fail(complete.error());
  if (!*complete) return give_up(true);
  used_next_ = classic_record_bytes + captured;
  const interface& i = interfaces_.front();
  if (captured > whole || part >= i.units_per_second) {
    ++seen_.skipped;
    return step::nothing;
  }
  out = {.data = window().subspan(classic_record_bytes, captured),
         .wire_bytes = whole,
         .stamp_ns = std::uint64_t{seconds} * 1'000'000'000 + to_ns(part, i.units_per_second, 0),
         .link_type = i.link_type,
         .interface = 0};
  return step::packet;
}

result<capture_reader::step> capture_reader::next_block(record& out) {
  const auto enough = have(pcapng::block_overhead);
  if (!enough) return fail(enough.error());
  if (!*enough) {
    ended_ = true;
    return window().empty() ? step::end : give_up(true);
  }
  // The type of a section header reads the same both ways, and it tells which way the rest is.
  const auto type = static_cast<block_type>(number<std::uint32_t>(window(), 0));
  if (type == block_type::section_header) {
    const auto magic = load<std::uint32_t>(window(), 8);
    swapped_ = magic != pcapng::byte_order_magic;
    if (swapped_ && swap_bytes(magic) != pcapng::byte_order_magic) return give_up(false);
  }
  const auto length = number<std::uint32_t>(window(), 4);
  if (length < pcapng::block_overhead || length % 4 != 0) {
    return give_up_unless_zeros(length == 0 ? sizeof type : 0);
  }
  if (length > block_bytes_max) return skip_block(length);
  const auto complete = have(length);
  if (!complete) return fail(complete.error());
  if (!*complete) return give_up(true);
  const auto block = window().first(length);
  if (number<std::uint32_t>(block, length - 4) != length) return give_up_unless_zeros(length - 4);
  used_next_ = length;
  const auto body = block.subspan(8, length - pcapng::block_overhead);
  switch (type) {
    case block_type::section_header:
      if (const auto r = start_section(body); !r) return give_up(false);
      return step::nothing;
    case block_type::interface_description:
      add_interface(body);
      return step::nothing;
    case block_type::interface_statistics:
      read_statistics(body);
      return step::nothing;
    case block_type::enhanced_packet:
    case block_type::obsolete_packet:
      return read_packet(body, out);
    case block_type::simple_packet:
      return read_simple_packet(body, out);
  }
  ++seen_.other_blocks;
  return step::nothing;
}

// A block that is larger than any with a packet may be.
result<capture_reader::step> capture_reader::skip_block(std::uint64_t length) {
  for (std::uint64_t left = length; left != 0;) {
    const auto more = have(1);
    if (!more) return fail(more.error());
    if (!*more) return give_up(true);
    const std::size_t n = std::min<std::uint64_t>(left, end_ - start_);
    use(n);
    left -= n;
  }
  ++seen_.other_blocks;
  return step::nothing;
}

result<> capture_reader::start_section(std::span<const std::byte> body) {
  // Byte order, version, length of the section: of the first version there is no other yet.
  if (body.size() < 16 || number<std::uint16_t>(body, 4) != 1) return fail(errc::corrupt);
  interfaces_before_ += static_cast<std::uint32_t>(interfaces_.size());
  interfaces_.clear();
  return {};
}

void capture_reader::add_interface(std::span<const std::byte> body) {
  interface i;
  // One that cannot be read is one all the same, because the packets count them.
  if (body.size() >= 8) {
    i.link_type = number<std::uint16_t>(body, 0);
    i.snap_bytes = number<std::uint32_t>(body, 4);
    for_each_option(body.subspan(8), [&](std::uint16_t code, std::span<const std::byte> value) {
      if (code == option_resolution && value.size() == 1) {
        i.units_per_second = resolution_of(static_cast<std::uint8_t>(value[0]));
      } else if (code == option_offset && value.size() == 8) {
        i.offset_s = number<std::int64_t>(value, 0);
      }
    });
  } else {
    i.units_per_second = 0;
  }
  interfaces_.push_back(i);
}

void capture_reader::read_statistics(std::span<const std::byte> body) {
  if (body.size() < 12) return;
  const auto which = number<std::uint32_t>(body, 0);
  if (which >= interfaces_.size()) return;
  interface& i = interfaces_[which];
  const auto set = [](std::uint64_t& total, std::uint64_t& last, std::uint64_t now) {
    total += now - last;
    last = now;
  };
  for_each_option(body.subspan(12), [&](std::uint16_t code, std::span<const std::byte> value) {
    if (value.size() != 8) return;
    const auto n = number<std::uint64_t>(value, 0);
    if (code == option_interface_drops) set(seen_.interface_drops, i.drops[0], n);
    if (code == option_system_drops) set(seen_.system_drops, i.drops[1], n);
  });
}

// An enhanced packet block; the obsolete one differs in a word that has the interface's number and
// a count of drops in its halves.
capture_reader::step capture_reader::read_packet(std::span<const std::byte> body, record& out) {
  const auto skip = [this] {
    ++seen_.skipped;
    return step::nothing;
  };
  if (body.size() < 20) return skip();
  std::uint32_t which = number<std::uint32_t>(body, 0);
  const auto type = static_cast<block_type>(number<std::uint32_t>(window(), 0));
  if (type == block_type::obsolete_packet) which = number<std::uint16_t>(body, 0);
  const std::uint64_t ticks =
      std::uint64_t{number<std::uint32_t>(body, 4)} << 32 | number<std::uint32_t>(body, 8);
  const auto captured = number<std::uint32_t>(body, 12);
  const auto whole = number<std::uint32_t>(body, 16);
  if (which >= interfaces_.size() || captured > body.size() - 20 || captured > packet_bytes_max ||
      captured > whole) {
    return skip();
  }
  const interface& i = interfaces_[which];
  if (i.units_per_second == 0) return skip();
  out = {.data = body.subspan(20, captured),
         .wire_bytes = whole,
         .stamp_ns = to_ns(ticks, i.units_per_second, i.offset_s),
         .link_type = i.link_type,
         .interface = interfaces_before_ + which};
  return step::packet;
}

// Of the section's first interface, without a time.
capture_reader::step capture_reader::read_simple_packet(std::span<const std::byte> body,
                                                        record& out) {
  if (body.size() >= 4 && !interfaces_.empty()) {
    const interface& i = interfaces_.front();
    const auto whole = number<std::uint32_t>(body, 0);
    const std::uint32_t captured = i.snap_bytes == 0 ? whole : std::min(whole, i.snap_bytes);
    if (captured <= body.size() - 4 && captured <= packet_bytes_max) {
      out = {.data = body.subspan(4, captured),
             .wire_bytes = whole,
             .stamp_ns = 0,
             .link_type = i.link_type,
             .interface = interfaces_before_};
      return step::packet;
    }
  }
  ++seen_.skipped;
  return step::nothing;
}

}  // namespace forebay
