// Reads capture files packet by packet: pcapng (draft-ietf-opsawg-pcapng) of any number of sections
// and interfaces, and classic pcap with micro- or nanoseconds, each in either byte order.
//
// Nothing that a file says of itself is believed before it has been checked: a packet whose record
// contradicts itself is skipped and counted. Where the framing itself is broken, nobody knows where
// the next record begins: the rest is counted as unreadable, and the file ends there. A file that
// ends in nothing but zeros behind its last records, whole or not, counts as cut short there: its
// writer had room allocated ahead when it was killed.
//
// Thread-safety: none of its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "forebay/base/result.h"
#include "forebay/os/stream_file.h"

namespace forebay {

class capture_reader {
 public:
  // One of them; `data` is good until the next is asked for.
  struct record {
    std::span<const std::byte> data;
    std::uint32_t wire_bytes = 0;
    std::uint64_t stamp_ns = 0;  // since 1970, 0 if the file does not say
    std::uint16_t link_type = 0;
    std::uint32_t interface = 0;  // counted through all sections
  };

  struct counters {
    std::uint64_t packets = 0;
    std::uint64_t skipped = 0;          // packets whose record contradicts itself
    std::uint64_t other_blocks = 0;     // of other kinds, read over
    std::uint64_t unreadable = 0;       // bytes behind the last record that could be read
    bool cut_short = false;             // the file ends inside a record, or in zeros
    bool damaged = false;               // the framing is broken
    std::uint64_t interface_drops = 0;  // what the last statistics of the file's interfaces told
    std::uint64_t system_drops = 0;
  };

  static constexpr std::uint32_t block_bytes_max = 16u << 20;
  static constexpr std::uint32_t packet_bytes_max = 1u << 20;

  // Errors: errno of open(2) and read(2); errc::corrupt if it is no capture file.
  static result<capture_reader> open(const std::string& path);

  // False at the end. Error: of read(2).
  result<bool> next(record& out);

  const counters& seen() const noexcept { return seen_; }

 private:
  struct interface {
    std::uint16_t link_type = 0;
    std::uint32_t snap_bytes = 0;
    std::uint64_t units_per_second = 1'000'000;
    std::int64_t offset_s = 0;
    std::uint64_t drops[2] = {0, 0};  // by itself, by its system
  };
  enum class step : std::uint8_t { packet, nothing, end };

  explicit capture_reader(stream_file file) noexcept : file_(std::move(file)) {}

  result<bool> have(std::size_t bytes);
  result<> recognise();
  result<step> next_block(record& out);
  result<step> next_classic(record& out);
  result<step> skip_block(std::uint64_t length);
  result<> start_section(std::span<const std::byte> body);
  void add_interface(std::span<const std::byte> body);
  void read_statistics(std::span<const std::byte> body);
  step read_packet(std::span<const std::byte> body, record& out);
  step read_simple_packet(std::span<const std::byte> body, record& out);
  result<step> give_up(bool cut_short);
  result<step> give_up_unless_zeros(std::size_t from);
  void use(std::size_t bytes) noexcept { start_ += bytes; }
  std::span<const std::byte> window() const noexcept {
    return std::span(buffer_).subspan(start_, end_ - start_);
  }
  template <typename T>
  T number(std::span<const std::byte> from, std::size_t at) const noexcept;
  template <typename F>
  void for_each_option(std::span<const std::byte> options, F f) const;

  stream_file file_;
  std::vector<std::byte> buffer_;
  std::size_t start_ = 0;  // of what is in the buffer and not used yet
  std::size_t end_ = 0;
  std::size_t used_next_ = 0;  // how long the record is that was given out last
  bool swapped_ = false;       // the file has the other byte order
  bool classic_ = false;
  bool ended_ = false;
  std::vector<interface> interfaces_;  // of this section; one of a classic file
  std::uint32_t interfaces_before_ = 0;
  counters seen_;
};

}  // namespace forebay
