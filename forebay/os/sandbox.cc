#include "forebay/os/sandbox.h"

#include <fcntl.h>
#include <linux/landlock.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "forebay/os/fd.h"

namespace forebay {
namespace {

// What the kernel's newer versions know; the headers may be older.
struct ruleset {
  std::uint64_t files = 0;
  std::uint64_t network = 0;  // since version 4
  std::uint64_t scopes = 0;   // since version 6
};
constexpr std::uint64_t refer_files = 1u << 13;      // since version 2
constexpr std::uint64_t truncate_files = 1u << 14;   // since version 3
constexpr std::uint64_t control_devices = 1u << 15;  // since version 5: ioctl(2)
constexpr std::uint64_t bind_and_connect_tcp = 3;
constexpr std::uint64_t to_abstract_sockets = 1;
constexpr std::uint64_t to_signal_others = 2;
// Of version 1: from executing (bit 0) to making symbolic links (bit 12).
constexpr std::uint64_t first_files = (1u << 13) - 1;

constexpr std::uint64_t reading = LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR;
constexpr std::uint64_t writing = reading | LANDLOCK_ACCESS_FS_WRITE_FILE;
constexpr std::uint64_t of_single_files =
    LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_WRITE_FILE;

ruleset everything(int abi) noexcept {
  ruleset r{.files = first_files};
  if (abi >= 2) r.files |= refer_files;
  if (abi >= 3) r.files |= truncate_files;
  if (abi >= 4) r.network = bind_and_connect_tcp;
  if (abi >= 5) r.files |= control_devices;
  if (abi >= 6) {
    // The service manager may listen at such an address, and is told of the end.
    const char* const notify = std::getenv("NOTIFY_SOCKET");
    const bool needs_abstract = notify != nullptr && notify[0] == '@';
    r.scopes = to_signal_others | (needs_abstract ? 0 : to_abstract_sockets);
  }
  return r;
}

// The version of Landlock that the kernel has, 0 for none.
int landlock_version() noexcept {
  const long v =
      ::syscall(SYS_landlock_create_ruleset, nullptr, 0, LANDLOCK_CREATE_RULESET_VERSION);
  return v < 0 ? 0 : static_cast<int>(v);
}

result<> allow(int rules, const std::string& path, std::uint64_t what) {
  const unique_fd fd(::open(path.c_str(), O_PATH | O_CLOEXEC));
  if (!fd) return {};  // not there: nothing to be opened
  struct stat st{};
  if (::fstat(fd.get(), &st) != 0) return fail_errno();
  landlock_path_beneath_attr rule{};
  rule.allowed_access = S_ISDIR(st.st_mode) ? what : what & of_single_files;
  rule.parent_fd = fd.get();
  if (rule.allowed_access == 0) return fail(ENOTDIR);
  if (::syscall(SYS_landlock_add_rule, rules, LANDLOCK_RULE_PATH_BENEATH, &rule, 0) != 0) {
    return fail_errno();
  }
  return {};
}

}  // namespace

void sandbox::allow_own_state() {
  for (const char* path : {"/proc/self", "/proc/meminfo", "/sys/fs/cgroup", "/sys/kernel/mm",
                           "/sys/devices/system", "/proc/self/exe"}) {
    allow_read(path);
  }
}

result<> sandbox::restrict_files(int abi) {
  const ruleset all = everything(abi);
  const unique_fd rules(
      static_cast<int>(::syscall(SYS_landlock_create_ruleset, &all, sizeof all, 0)));
  if (!rules) return fail_errno();
  for (const std::string& path : readable_) {
    if (auto r = allow(rules.get(), path, reading); !r) return r;
  }
  for (const std::string& path : writable_) {
    if (auto r = allow(rules.get(), path, writing); !r) return r;
  }
  for (const std::string& path : removable_) {
    if (auto r = allow(rules.get(), path, LANDLOCK_ACCESS_FS_REMOVE_FILE); !r) return r;
  }
  if (::syscall(SYS_landlock_restrict_self, rules.get(), 0) != 0) return fail_errno();
  return {};
}

result<> sandbox::confine() {
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return fail_errno();
  const int abi = landlock_version();
  if (abi == 0) {
    remarks_.emplace_back(
        "sandbox: the kernel has no Landlock (5.13 and later can have it), so files that the "
        "server may read are not out of its reach");
    return {};
  }
  return restrict_files(abi);
}

}  // namespace forebay
