#include "forebay/os/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <string>

#include "forebay/base/cache_line.h"
#include "forebay/os/cgroup.h"

namespace forebay {
namespace {

constexpr std::size_t huge_page_bytes = 2u << 20;
constexpr std::size_t ordinary_page_bytes = 4096;

std::byte* map_anonymous(std::size_t bytes, int extra_flags) noexcept {
  void* p = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | extra_flags, -1, 0);
  return p == MAP_FAILED ? nullptr : static_cast<std::byte*>(p);
}

// Maps with slack and gives the ends back, so that the result starts on a huge-page boundary.
std::byte* map_huge_aligned(std::size_t bytes) noexcept {
  std::byte* raw = map_anonymous(bytes + huge_page_bytes, 0);
  if (raw == nullptr) return nullptr;
  const auto address = reinterpret_cast<std::uintptr_t>(raw);
  const std::size_t head = round_up(address, huge_page_bytes) - address;
  if (head != 0) ::munmap(raw, head);
  if (head != huge_page_bytes) ::munmap(raw + head + bytes, huge_page_bytes - head);
  return raw + head;
}

bool transparent_huge_pages_off() {
  std::ifstream in("/sys/kernel/mm/transparent_hugepage/enabled");
  std::string line;
  return !std::getline(in, line) || line.find("[never]") != std::string::npos;
}

}  // namespace

const char* to_string(page_backing b) noexcept {
  switch (b) {
    case page_backing::huge_reserved:
      return "reserved 2 MiB pages";
    case page_backing::huge_transparent:
      return "transparent 2 MiB pages";
    case page_backing::ordinary:
      return "4 KiB pages";
  }
  return "unknown pages";
}

memory_mapping& memory_mapping::operator=(memory_mapping&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(backing_, other.backing_);
  return *this;
}

memory_mapping::~memory_mapping() {
  if (data_ != nullptr) ::munmap(data_, bytes_);
}

result<memory_mapping> memory_source::map(std::size_t bytes, bool huge) {
  const std::size_t unit = huge ? huge_page_bytes : ordinary_page_bytes;
  if (bytes == 0 || bytes > SIZE_MAX - 2 * unit) return fail(EINVAL);
  bytes = round_up(bytes, unit);
  if (!huge) {
    std::byte* p = map_anonymous(bytes, 0);
    if (p == nullptr) return fail_errno();
    return memory_mapping(p, bytes, page_backing::ordinary);
  }
  // Without MAP_NORESERVE's overcommit: a reserved page that is promised must be there when it is
  // touched.
  void* reserved = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
  if (reserved != MAP_FAILED) {
    return memory_mapping(static_cast<std::byte*>(reserved), bytes, page_backing::huge_reserved);
  }
  std::byte* p = map_huge_aligned(bytes);
  if (p == nullptr) return fail_errno();
  const bool transparent = ::madvise(p, bytes, MADV_HUGEPAGE) == 0 && !transparent_huge_pages_off();
  return memory_mapping(p, bytes,
                        transparent ? page_backing::huge_transparent : page_backing::ordinary);
}

memory_source& memory_source::system() {
  static memory_source source;
  return source;
}

std::uint64_t machine_memory_bytes() noexcept {
  const auto pages = static_cast<std::uint64_t>(::sysconf(_SC_PHYS_PAGES));
  const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  return pages * page;
}

std::uint64_t memory_limit_bytes() {
  const auto group = memory_cgroup::find();
  return std::min(machine_memory_bytes(), group ? group->limit_bytes() : UINT64_MAX);
}

}  // namespace forebay
