// Reads block traces for `forebay replay`.
//
// Formats, each also compressed by xz or zstd (by the end of the name, .xz or .zst):
//   oracle  libCacheSim's oracleGeneral: records of 24 bytes, little-endian, u32 time, u64 block,
//           u32 size, i64 next access. A record is one request for one block, whatever its size
//   msr     MSR Cambridge CSV: timestamp, host, disk, Read or Write, offset, bytes, response time.
//           A request for every block that the range touches; each disk has its own blocks
//   text    one request a line: a block number, or `op offset length` with op read or write and the
//           others in bytes. Empty lines and lines from # on do not count
#pragma once

#include <cstdint>
#include <expected>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "tools/forebay/replay_simulate.h"

namespace forebay::tool {

enum class trace_format : std::uint8_t { oracle, msr, text };

std::optional<trace_format> trace_format_named(std::string_view name) noexcept;

// What the name says: oracle for .bin and oracleGeneral, msr for .csv, else text.
trace_format trace_format_of(std::string_view path) noexcept;

struct trace_options {
  std::optional<trace_format> format;  // none: trace_format_of()
  std::uint32_t block_bytes = 4096;    // what msr and text ranges are cut into; a power of two
};

// Bytes of a file, decompressed.
class byte_source {
 public:
  virtual ~byte_source() = default;
  // As many as there are, up to out.size(); 0 at the end. An error is a line of text.
  virtual std::expected<std::size_t, std::string> read(std::span<char> out) = 0;

  // An error is a line of text that begins with the path.
  static std::expected<std::unique_ptr<byte_source>, std::string> open(const std::string& path);
};

// All of a trace. `progress` is called now and then with the requests so far. An error is one line,
// with the path and where in the file it is.
std::expected<replay_trace, std::string> read_trace(
    const std::string& path, const trace_options& opts,
    const std::function<void(std::uint64_t requests)>& progress);

}  // namespace forebay::tool
