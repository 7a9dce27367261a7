#include "forebay/os/cgroup.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <sstream>
#include <utility>

namespace forebay {
namespace {

// v1 has no word for "no limit": it says the largest multiple of a page below 2^63.
constexpr std::uint64_t unlimited_from = std::uint64_t{1} << 62;

struct files {
  const char* usage;
  const char* hard_limit;
  const char* soft_limit;
  const char* inactive_file;  // keys in memory.stat that count the groups below too
  const char* active_file;
};

constexpr files v1_files = {"/memory.usage_in_bytes", "/memory.limit_in_bytes",
                            "/memory.soft_limit_in_bytes", "total_inactive_file",
                            "total_active_file"};
constexpr files v2_files = {"/memory.current", "/memory.max", "/memory.high", "inactive_file",
                            "active_file"};

constexpr const files& files_of(cgroup_version v) noexcept {
  return v == cgroup_version::v1 ? v1_files : v2_files;
}

// The number in a file of one value; none if there is no such file or it says "max".
std::optional<std::uint64_t> read_number(const std::string& path) {
  std::ifstream in(path);
  std::uint64_t value = 0;
  if (!(in >> value)) return std::nullopt;
  return value;
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

std::uint64_t memory_cgroup::limit_of(const std::string& directory) const {
  const files& names = files_of(version_);
  const std::uint64_t limit =
      std::min(read_number(directory + names.hard_limit).value_or(UINT64_MAX),
               read_number(directory + names.soft_limit).value_or(UINT64_MAX));
  return limit >= unlimited_from ? UINT64_MAX : limit;
}

memory_room memory_cgroup::room_of(const std::string& directory) const {
  memory_room room;
  room.limit_bytes = limit_of(directory);
  if (room.limit_bytes == UINT64_MAX) return room;
  const files& names = files_of(version_);
  room.usage_bytes = read_number(directory + names.usage).value_or(0);
  std::ifstream in(directory + "/memory.stat");
  std::string key;
  for (std::uint64_t value = 0; in >> key >> value;) {
    if (key == names.inactive_file || key == names.active_file) room.file_bytes += value;
  }
  return room;
}

std::optional<memory_room> memory_cgroup::tightest() const {
  std::optional<memory_room> least;
  for (const std::string& directory : directories_) {
    const memory_room room = room_of(directory);
    if (room.limit_bytes == UINT64_MAX) continue;
    if (!least || room.headroom_bytes() < least->headroom_bytes()) least = room;
  }
  return least;
}

std::uint64_t memory_cgroup::limit_bytes() const {
  std::uint64_t limit = UINT64_MAX;
  for (const std::string& directory : directories_) limit = std::min(limit, limit_of(directory));
  return limit;
}

std::uint64_t anonymous_bytes(const std::string& root) {
  // All of it, what is resident, and of that what belongs to files or is shared; in pages
  // (proc(5)).
  std::ifstream in(root + "/proc/self/statm");
  std::uint64_t size = 0;
  std::uint64_t resident = 0;
  std::uint64_t shared = 0;
  if (!(in >> size >> resident >> shared)) return UINT64_MAX;
  return (resident - std::min(resident, shared)) *
         static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
}

}  // namespace forebay
