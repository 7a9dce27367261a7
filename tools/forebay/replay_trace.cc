#include "tools/forebay/replay_trace.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cstring>
#include <unordered_map>
#include <vector>

namespace forebay::tool {
namespace {

using outcome = std::expected<void, std::string>;

constexpr std::uint64_t length_max = 1ull << 30;  // of one request, in bytes
constexpr std::uint64_t requests_max = UINT32_MAX - 1;

// Puts requests together: gives each block its number.
class trace_builder {
 public:
  trace_builder(std::uint32_t block_bytes, const std::function<void(std::uint64_t)>& progress)
      : shift_(static_cast<unsigned>(std::countr_zero(block_bytes))), progress_(progress) {}

  // False if there are too many.
  bool add(std::uint64_t block) {
    if (trace_.requests.size() == requests_max) return false;
    const auto [at, fresh] = numbers_.try_emplace(block, trace_.blocks);
    if (fresh) ++trace_.blocks;
    trace_.requests.push_back(at->second);
    if (trace_.requests.size() % (1u << 20) == 0) progress_(trace_.requests.size());
    return true;
  }
  // Every block that a range of bytes touches, of a disk; a range of no bytes touches none.
  const char* add_range(std::uint64_t offset, std::uint64_t length, std::uint64_t disk) {
    if (length > length_max) return "the length is above 1 GiB";
    if (offset > (UINT64_MAX >> 16) - length) return "the offset is above 256 TiB";
    if (length == 0) return nullptr;
    for (std::uint64_t b = offset >> shift_; b <= (offset + length - 1) >> shift_; ++b) {
      if (!add(b | disk << 48)) return "more requests than can be replayed";
    }
    return nullptr;
  }

  replay_trace& trace() noexcept { return trace_; }

 private:
  unsigned shift_;
  const std::function<void(std::uint64_t)>& progress_;
  replay_trace trace_;
  std::unordered_map<std::uint64_t, std::uint32_t> numbers_;
};

outcome read_oracle(const std::string& path, byte_source& in, trace_builder& to) {
  constexpr std::size_t record_bytes = 24;
  constexpr std::size_t block_at = 4;
  std::vector<char> buffer(record_bytes << 12);
  std::size_t have = 0;
  for (std::uint64_t record = 0;;) {
    const auto n = in.read(std::span(buffer).subspan(have));
    if (!n) return std::unexpected(n.error());
    if (*n == 0) {
      if (have == 0) return {};
      return std::unexpected(fmt::format("{}: ends with {} bytes of a record of {} (record {})",
                                         path, have, record_bytes, record + 1));
    }
    have += *n;
    std::size_t at = 0;
    for (; at + record_bytes <= have; at += record_bytes, ++record) {
      std::uint64_t block = 0;
      std::memcpy(&block, &buffer[at + block_at], sizeof(block));
      if constexpr (std::endian::native == std::endian::big) block = std::byteswap(block);
      if (!to.add(block)) return std::unexpected(path + ": more requests than can be replayed");
    }
    have -= at;
    std::memmove(buffer.data(), buffer.data() + at, have);
  }
}

// Calls f(line) for each line without its end; what f returns, if not null, is what is wrong.
template <typename F>
outcome for_each_line(const std::string& path, byte_source& in, F f) {
  constexpr std::size_t line_max = 4096;
  std::vector<char> buffer(1u << 16);
  std::size_t have = 0;
  std::uint64_t number = 0;
  for (bool ended = false; !ended;) {
    const auto n = in.read(std::span(buffer).subspan(have));
    if (!n) return std::unexpected(n.error());
    ended = *n == 0;
    if (ended && have != 0) buffer[have++] = '\n';  // the last line may have no end
    have += *n;
    std::size_t at = 0;
    while (at < have) {
      const auto* const end = static_cast<const char*>(std::memchr(&buffer[at], '\n', have - at));
      if (end == nullptr) break;
      std::string_view line(&buffer[at], end);
      at += line.size() + 1;
      if (line.ends_with('\r')) line.remove_suffix(1);
      ++number;
      if (const char* const wrong = f(number, line)) {
        return std::unexpected(fmt::format("{}: line {}: {}", path, number, wrong));
      }
    }
    have -= at;
    std::memmove(buffer.data(), buffer.data() + at, have);
    if (have > line_max) {
      return std::unexpected(fmt::format("{}: line {}: too long", path, number + 1));
    }
  }
  return {};
}

bool parse(std::string_view text, std::uint64_t& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

// The parts of a line between `separators`, up to N of them; how many there are, N + 1 for more.
template <std::size_t N>
std::size_t split(std::string_view line, std::string_view separators, bool merge,
                  std::array<std::string_view, N>& out) {
  std::size_t n = 0;
  while (!line.empty()) {
    const std::size_t end = std::min(line.find_first_of(separators), line.size());
    if (end != 0 || !merge) {
      if (n == N) return N + 1;
      out[n++] = line.substr(0, end);
    }
    line.remove_prefix(std::min(end + 1, line.size()));
  }
  return n;
}

bool is_one_of(std::string_view word, std::initializer_list<std::string_view> words) {
  return std::ranges::find(words, word) != words.end();
}

outcome read_msr(const std::string& path, byte_source& in, trace_builder& to) {
  std::unordered_map<std::string, std::uint64_t> disks;  // host and number
  return for_each_line(path, in, [&](std::uint64_t number, std::string_view line) -> const char* {
    if (line.empty() || (number == 1 && line.starts_with("Timestamp"))) return nullptr;
    std::array<std::string_view, 7> part;
    if (split(line, ",", false, part) != part.size()) return "not the seven fields of an MSR trace";
    if (!is_one_of(part[3], {"Read", "Write"})) return "neither Read nor Write";
    std::uint64_t offset = 0;
    std::uint64_t length = 0;
    if (!parse(part[4], offset)) return "the offset is no number";
    if (!parse(part[5], length)) return "the size is no number";
    const std::string disk = fmt::format("{},{}", part[1], part[2]);
    const std::uint64_t disk_number = disks.try_emplace(disk, disks.size()).first->second;
    if (disk_number > UINT16_MAX) return "more than 65536 disks";
    return to.add_range(offset, length, disk_number);
  });
}

outcome read_text(const std::string& path, byte_source& in, trace_builder& to) {
  return for_each_line(path, in, [&](std::uint64_t, std::string_view line) -> const char* {
    line = line.substr(0, line.find('#'));
    std::array<std::string_view, 3> part;
    const std::size_t n = split(line, " \t", true, part);
    if (n == 0) return nullptr;
    if (n == 1) {
      std::uint64_t block = 0;
      if (!parse(part[0], block)) return "not a block number";
      return to.add(block) ? nullptr : "more requests than can be replayed";
    }
    if (n != 3) return "neither a block number nor `op offset length`";
    if (!is_one_of(part[0], {"read", "write", "r", "w", "R", "W"})) return "neither read nor write";
    std::uint64_t offset = 0;
    std::uint64_t length = 0;
    if (!parse(part[1], offset)) return "the offset is no number";
    if (!parse(part[2], length)) return "the length is no number";
    return to.add_range(offset, length, 0);
  });
}

}  // namespace

std::optional<trace_format> trace_format_named(std::string_view name) noexcept {
  if (name == "oracle") return trace_format::oracle;
  if (name == "msr") return trace_format::msr;
  if (name == "text") return trace_format::text;
  return std::nullopt;
}

trace_format trace_format_of(std::string_view path) noexcept {
  for (const std::string_view suffix : {".xz", ".zst"}) {
    if (path.ends_with(suffix)) path.remove_suffix(suffix.size());
  }
  if (path.ends_with(".bin") || path.ends_with("oracleGeneral")) return trace_format::oracle;
  return path.ends_with(".csv") ? trace_format::msr : trace_format::text;
}

std::expected<replay_trace, std::string> read_trace(
    const std::string& path, const trace_options& opts,
    const std::function<void(std::uint64_t requests)>& progress) {
  const auto in = byte_source::open(path);
  if (!in) return std::unexpected(in.error());
  trace_builder built(opts.block_bytes, progress);
  outcome done;
  switch (opts.format.value_or(trace_format_of(path))) {
    case trace_format::oracle:
      done = read_oracle(path, **in, built);
      break;
    case trace_format::msr:
      done = read_msr(path, **in, built);
      break;
    case trace_format::text:
      done = read_text(path, **in, built);
      break;
  }
  if (!done) return std::unexpected(done.error());
  if (built.trace().requests.empty()) return std::unexpected(path + ": no requests in it");
  built.trace().name = path;
  return std::move(built.trace());
}

}  // namespace forebay::tool
