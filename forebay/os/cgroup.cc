#include "forebay/os/cgroup.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <fstream>
#include <span>
#include <sstream>
#include <string_view>
#include <utility>

#include "forebay/os/fd.h"

namespace forebay {
namespace {

// v1 has no word for "no limit": it says the largest multiple of a page below 2^63.
constexpr std::uint64_t unlimited_from = std::uint64_t{1} << 62;

struct file_names {
  const char* usage;
  const char* hard_limit;
  const char* soft_limit;
  const char* inactive_file;  // keys in memory.stat that count the groups below too
  const char* active_file;
};

constexpr file_names v1_files = {"/memory.usage_in_bytes", "/memory.limit_in_bytes",
                                 "/memory.soft_limit_in_bytes", "total_inactive_file",
                                 "total_active_file"};
constexpr file_names v2_files = {"/memory.current", "/memory.max", "/memory.high", "inactive_file",
                                 "active_file"};

constexpr const file_names& files_of(cgroup_version v) noexcept {
  return v == cgroup_version::v1 ? v1_files : v2_files;
}

// Reads the front of a small file into `buffer`; empty if it cannot be read.
std::string_view read_text(const char* path, std::span<char> buffer) noexcept {
  const unique_fd fd(::open(path, O_RDONLY | O_CLOEXEC));
  if (!fd) return {};
  const ssize_t n = ::read(fd.get(), buffer.data(), buffer.size());
  return {buffer.data(), n > 0 ? static_cast<std::size_t>(n) : 0};
}

// Takes the next word of a text off its front; empty at the end.
std::string_view next_word(std::string_view& text) noexcept {
  constexpr const char* space = " \t\n";
  text.remove_prefix(std::min(text.size(), text.find_first_not_of(space)));
  const std::string_view word = text.substr(0, text.find_first_of(space));
  text.remove_prefix(word.size());
  return word;
}

std::optional<std::uint64_t> number_of(std::string_view word) noexcept {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
  if (error != std::errc{}) return std::nullopt;
  return value;
}

// The number in a file of one value; none if there is no such file or it says "max".
std::optional<std::uint64_t> read_number(const char* path) noexcept {
  std::array<char, 64> buffer{};
  std::string_view text = read_text(path, buffer);
  return number_of(next_word(text));
}

bool exists(const std::string& path) noexcept {
  struct stat s{};
  return ::stat(path.c_str(), &s) == 0;
}

// True if `list`, which is separated by commas, has `word`.
bool has_word(const std::string& list, const char* word) {
  std::istringstream in(list);
  for (std::string one; std::getline(in, one, ',');) {
    if (one == word) return true;
  }
  return false;
}

// The path of this process's group in the hierarchy that has the memory controller (v1), or in the
// unified one (v2); none if it is in no such hierarchy.
std::optional<std::string> group_path(const std::string& root, cgroup_version version) {
  std::ifstream in(root + "/proc/self/cgroup");
  // Lines are ID:CONTROLLERS:PATH, without controllers for v2.
  for (std::string line; std::getline(in, line);) {
    const auto first = line.find(':');
    const auto second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool right =
        version == cgroup_version::v2 ? controllers.empty() : has_word(controllers, "memory");
    if (right) return line.substr(second + 1);
  }
  return std::nullopt;
}

// Spaces and the like stand as three octal digits in mountinfo.
std::string unescape(const std::string& text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size()) {
      out.push_back(static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 +
                                      (text[i + 3] - '0')));
      i += 3;
    } else {
      out.push_back(text[i]);
    }
  }
  return out;
}

struct mount {
  std::string group;  // what is mounted: a group of the hierarchy
  std::string point;
};

// Where that hierarchy is mounted (proc(5), mountinfo).
std::optional<mount> find_mount(const std::string& root, cgroup_version version) {
  std::ifstream in(root + "/proc/self/mountinfo");
  for (std::string line; std::getline(in, line);) {
    const auto dash = line.find(" - ");
    if (dash == std::string::npos) continue;
    std::istringstream left(line.substr(0, dash));
    std::istringstream right(line.substr(dash + 3));
    std::string id, parent, device, group, point, type, source, options;
    if (!(left >> id >> parent >> device >> group >> point) || !(right >> type >> source)) continue;
    right >> options;
    const bool found = version == cgroup_version::v2
                           ? type == "cgroup2"
                           : type == "cgroup" && has_word(options, "memory");
    if (found) return mount{unescape(group), unescape(point)};
  }
  return std::nullopt;
}

// The part of `path` below `base`; none if it lies elsewhere.
std::optional<std::string> below(const std::string& path, const std::string& base) {
  if (base == "/") return path == "/" ? "" : path;
  if (path == base) return "";
  if (path.starts_with(base + "/")) return path.substr(base.size());
  return std::nullopt;
}

}  // namespace

std::int64_t memory_room::headroom_bytes() const noexcept {
  if (limit_bytes >= unlimited_from) return INT64_MAX;
  const std::uint64_t firm = usage_bytes - std::min(usage_bytes, file_bytes);
  return static_cast<std::int64_t>(limit_bytes) -
         static_cast<std::int64_t>(std::min(firm, unlimited_from));
}

result<memory_cgroup> memory_cgroup::find(const std::string& root) {
  for (const cgroup_version version : {cgroup_version::v1, cgroup_version::v2}) {
    const auto path = group_path(root, version);
    const auto where = find_mount(root, version);
    if (!path || !where) continue;
    // Inside of a container the path may be one that only the host knows; what is mounted is then
    // the best guess.
    std::string inside = below(*path, where->group).value_or("");
    const std::string top = root + where->point;
    if (inside.find("/..") != std::string::npos || !exists(top + inside)) inside.clear();
    std::vector<std::string> directories;
    for (;;) {
      const std::string directory = top + inside;
      if (directories.size() < max_depth && exists(directory + files_of(version).usage)) {
        directories.push_back(directory);
      }
      if (inside.empty()) break;
      inside.resize(inside.rfind('/'));
    }
    if (!directories.empty()) return memory_cgroup(version, std::move(directories));
  }
  return fail(ENOENT);
}

memory_cgroup::memory_cgroup(cgroup_version version, std::vector<std::string> directories)
    : version_(version), directories_(std::move(directories)) {
  const file_names& names = files_of(version_);
  for (const std::string& d : directories_) {
    files_.push_back({.usage = d + names.usage,
                      .hard_limit = d + names.hard_limit,
                      .soft_limit = d + names.soft_limit,
                      .stat = d + "/memory.stat"});
  }
}

std::uint64_t memory_cgroup::limit_of(const files& f) noexcept {
  const std::uint64_t limit = std::min(read_number(f.hard_limit.c_str()).value_or(UINT64_MAX),
                                       read_number(f.soft_limit.c_str()).value_or(UINT64_MAX));
  return limit >= unlimited_from ? UINT64_MAX : limit;
}

memory_room memory_cgroup::room_of(const files& f) const noexcept {
  memory_room room;
  room.limit_bytes = limit_of(f);
  if (room.limit_bytes == UINT64_MAX) return room;
  room.usage_bytes = read_number(f.usage.c_str()).value_or(0);
  std::array<char, 8192> buffer{};
  std::string_view text = read_text(f.stat.c_str(), buffer);
  const file_names& names = files_of(version_);
  for (;;) {
    const std::string_view key = next_word(text);
    const std::string_view value = next_word(text);
    if (value.empty()) break;
    if (key == names.inactive_file || key == names.active_file) {
      room.file_bytes += number_of(value).value_or(0);
    }
  }
  return room;
}

std::optional<memory_room> memory_cgroup::tightest() const noexcept {
  std::optional<memory_room> least;
  for (const files& f : files_) {
    const memory_room room = room_of(f);
    if (room.limit_bytes == UINT64_MAX) continue;
    if (!least || room.headroom_bytes() < least->headroom_bytes()) least = room;
  }
  return least;
}

std::uint64_t memory_cgroup::limit_bytes() const noexcept {
  std::uint64_t limit = UINT64_MAX;
  for (const files& f : files_) limit = std::min(limit, limit_of(f));
  return limit;
}

std::uint64_t anonymous_bytes(const char* statm) noexcept {
  // All of it, what is resident, and of that what belongs to files or is shared; in pages
  // (proc(5)).
  std::array<char, 128> buffer{};
  std::string_view text = read_text(statm, buffer);
  next_word(text);
  const auto resident = number_of(next_word(text));
  const auto shared = number_of(next_word(text));
  if (!resident || !shared) return UINT64_MAX;
  return (*resident - std::min(*resident, *shared)) *
         static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
}

}  // namespace forebay
