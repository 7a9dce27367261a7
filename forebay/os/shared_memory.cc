#include "forebay/os/shared_memory.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "forebay/base/cache_line.h"

namespace forebay {
namespace {

constexpr std::size_t page_bytes = 4096;

}  // namespace

result<shared_memory> shared_memory::map(unique_fd fd, std::size_t bytes) {
  void* p = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (p == MAP_FAILED) return fail_errno();
  return shared_memory(std::move(fd), {static_cast<std::byte*>(p), bytes});
}

result<shared_memory> shared_memory::create(const char* name, std::size_t bytes) {
  if (bytes == 0) return fail(errc::too_small);
  if (bytes > bytes_max) return fail(errc::too_large);
  bytes = round_up(bytes, page_bytes);
  unique_fd fd(::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd) return fail_errno();
  // Allocated now: a page that is missing at its first touch would be a signal, not an error.
  if (::fallocate(fd.get(), 0, 0, static_cast<off_t>(bytes)) != 0) return fail_errno();
  if (::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    return fail_errno();
  }
  return map(std::move(fd), bytes);
}

result<shared_memory> shared_memory::open(unique_fd fd, std::size_t least_bytes,
                                          std::size_t most_bytes) {
  // The seals first: once the file cannot shrink, its size is at least what is read after.
  const int seals = ::fcntl(fd.get(), F_GET_SEALS);
  if (seals < 0) return fail_errno();
  if ((seals & F_SEAL_SHRINK) == 0) return fail(EPERM);
  struct statfs file_system{};
  if (::fstatfs(fd.get(), &file_system) != 0) return fail_errno();
  if (file_system.f_type == HUGETLBFS_MAGIC) return fail(ENOTSUP);
  struct stat st{};
  if (::fstat(fd.get(), &st) != 0) return fail_errno();
  const auto bytes = static_cast<std::size_t>(st.st_size);
  if (bytes == 0 || bytes < least_bytes) return fail(errc::too_small);
  if (bytes > most_bytes) return fail(errc::too_large);
  return map(std::move(fd), bytes);
}

shared_memory::~shared_memory() {
  if (!memory_.empty()) ::munmap(memory_.data(), memory_.size());
}

}  // namespace forebay
