#include "forebay/os/memory.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <fstream>
#include <string>

#include "forebay/base/cache_line.h"
#include "forebay/os/cgroup.h"

namespace forebay {
namespace {

constexpr std::size_t ordinary_page_bytes = 4096;
constexpr std::size_t huge_page_bytes = std::size_t{2} << 20;
constexpr std::size_t gigantic_page_bytes = std::size_t{1} << 30;

// MAP_HUGE_2MB and MAP_HUGE_1GB of linux/mman.h, which clashes with sys/mman.h: the size's
// logarithm, shifted.
constexpr int map_huge_shift = 26;
constexpr int map_huge_2m = 21 << map_huge_shift;
constexpr int map_huge_1g = 30 << map_huge_shift;

std::byte* map_anonymous(std::size_t bytes, int extra_flags,
                         int protection = PROT_READ | PROT_WRITE) noexcept {
  void* p = ::mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | extra_flags, -1, 0);
  return p == MAP_FAILED ? nullptr : static_cast<std::byte*>(p);
}

// Maps with slack and gives the ends back, so that the result starts on a multiple of `alignment`.
std::byte* map_aligned(std::size_t bytes, std::size_t alignment) noexcept {
  if (alignment <= ordinary_page_bytes) return map_anonymous(bytes, MAP_NORESERVE);
  // Without access until it has been cut, so that a process that locks its memory locks no slack.
  std::byte* raw = map_anonymous(bytes + alignment, MAP_NORESERVE, PROT_NONE);
  if (raw == nullptr) return nullptr;
  const auto address = reinterpret_cast<std::uintptr_t>(raw);
  const std::size_t head = round_up(address, alignment) - address;
  if (head != 0) ::munmap(raw, head);
  if (head != alignment) ::munmap(raw + head + bytes, alignment - head);
  if (::mprotect(raw + head, bytes, PROT_READ | PROT_WRITE) == 0) return raw + head;
  const int error = errno;
  ::munmap(raw + head, bytes);
  errno = error;
  return nullptr;
}

// From the pool of reserved pages; no mapping if it does not hold what must be certain.
memory_mapping map_reserved(const memory_request& request, page_backing b) {
  const std::size_t bytes = round_up(request.bytes, page_bytes_of(b));
  const bool all = request.commit_bytes >= request.bytes;
  // All of it is promised by the mapping itself; a part must be touched to be certain.
  int flags = MAP_HUGETLB | (all ? 0 : MAP_NORESERVE);
  flags |= b == page_backing::gigantic_reserved ? map_huge_1g : map_huge_2m;
  std::byte* const p = map_anonymous(bytes, flags);
  if (p == nullptr) return {};
  memory_mapping mapping(p, bytes, b);
  if (request.node != any_numa_node && !bind_to_numa_node({p, bytes}, request.node)) return {};
  // A promise is not bound to a node: only what has been touched is.
  if (all && request.node == any_numa_node) return mapping;
  const std::size_t certain =
      round_up(std::min(request.commit_bytes, request.bytes), page_bytes_of(b));
  if (certain != 0 && !memory_source::system().commit({p, certain}, b)) return {};
  return mapping;
}

bool transparent_huge_pages_off() {
  std::ifstream in("/sys/kernel/mm/transparent_hugepage/enabled");
  std::string line;
  return !std::getline(in, line) || line.find("[never]") != std::string::npos;
}

}  // namespace

const char* to_string(page_backing b) noexcept {
  switch (b) {
    case page_backing::gigantic_reserved:
      return "reserved 1 GiB pages";
    case page_backing::huge_reserved:
      return "reserved 2 MiB pages";
    case page_backing::huge_transparent:
      return "transparent 2 MiB pages";
    case page_backing::ordinary:
      return "4 KiB pages";
  }
  return "unknown pages";
}

std::size_t page_bytes_of(page_backing b) noexcept {
  switch (b) {
    case page_backing::gigantic_reserved:
      return gigantic_page_bytes;
    case page_backing::huge_reserved:
    case page_backing::huge_transparent:
      return huge_page_bytes;
    case page_backing::ordinary:
      break;
  }
  return ordinary_page_bytes;
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

result<memory_mapping> memory_source::map(const memory_request& request) {
  const bool huge = request.largest != page_backing::ordinary;
  const std::size_t unit = huge ? huge_page_bytes : ordinary_page_bytes;
  if (request.bytes == 0 || request.bytes > SIZE_MAX - 2 * gigantic_page_bytes) return fail(EINVAL);
  if (request.node != any_numa_node && !numa_node_exists(request.node)) return fail(ENODEV);
  for (const page_backing b : {page_backing::gigantic_reserved, page_backing::huge_reserved}) {
    if (request.largest > b) continue;
    // A 1 GiB page for less than 1 GiB would waste the rest of it.
    if (request.bytes < page_bytes_of(b) && b == page_backing::gigantic_reserved) continue;
    if (memory_mapping m = map_reserved(request, b); m.data() != nullptr) return m;
  }
  const std::size_t bytes = round_up(request.bytes, unit);
  std::byte* const p = map_aligned(bytes, huge ? huge_page_bytes : request.alignment);
  if (p == nullptr) return fail_errno();
  const bool transparent =
      huge && ::madvise(p, bytes, MADV_HUGEPAGE) == 0 && !transparent_huge_pages_off();
  memory_mapping mapping(p, bytes,
                         transparent ? page_backing::huge_transparent : page_backing::ordinary);
  if (request.node != any_numa_node) {
    if (auto r = bind_to_numa_node({p, bytes}, request.node); !r) return fail(r.error());
  }
  return mapping;
}

result<> memory_source::commit(std::span<std::byte> part, page_backing backing) {
  if (backing > page_backing::huge_reserved) return {};
  // Populating reports an empty pool; touching would end the process with SIGBUS.
  if (::madvise(part.data(), part.size(), MADV_POPULATE_WRITE) == 0) return {};
  return fail(errno == EFAULT ? ENOMEM : errno);
}

result<> memory_source::discard(std::span<std::byte> part) {
  if (::madvise(part.data(), part.size(), MADV_DONTNEED) != 0) return fail_errno();
  return {};
}

result<> memory_source::pin(std::span<std::byte> part) {
  if (::mlock(part.data(), part.size()) == 0) return {};
  const int error = errno;
  // A range may have been locked in part before the call failed.
  ::munlock(part.data(), part.size());
  return fail(error);
}

void memory_source::unpin(std::span<std::byte> part) noexcept {
  ::munlock(part.data(), part.size());
}

const char* memory_source::huge_page_advice() const noexcept {
  return "allow transparent huge pages in /sys/kernel/mm/transparent_hugepage/enabled";
}

memory_source& memory_source::system() {
  static memory_source source;
  return source;
}

huge_page_pool reserved_huge_pages(page_backing b) {
  const std::string directory =
      "/sys/kernel/mm/hugepages/hugepages-" + std::to_string(page_bytes_of(b) / 1024) + "kB/";
  huge_page_pool pool;
  std::ifstream(directory + "nr_hugepages") >> pool.total;
  std::ifstream(directory + "free_hugepages") >> pool.free;
  return pool;
}

void map_what_is_there(std::span<std::byte> range) noexcept {
  static_cast<void>(::madvise(range.data(), range.size(), MADV_POPULATE_READ));
}

std::size_t resident_bytes(std::span<const std::byte> range) noexcept {
  constexpr std::size_t page = 4096;
  std::array<unsigned char, 512> present{};
  std::size_t pages = 0;
  while (!range.empty()) {
    const std::size_t bytes = std::min(range.size(), present.size() * page);
    // The range is only asked about, not changed.
    if (::mincore(const_cast<std::byte*>(range.data()), bytes, present.data()) != 0) return 0;
    pages += static_cast<std::size_t>(
        std::count_if(present.begin(), present.begin() + static_cast<std::ptrdiff_t>(bytes / page),
                      [](unsigned char p) { return (p & 1) != 0; }));
    range = range.subspan(bytes);
  }
  return pages * page;
}

std::uint64_t pin_limit_bytes() noexcept {
  rlimit limit{};
  if (::getrlimit(RLIMIT_MEMLOCK, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) {
    return UINT64_MAX;
  }
  return limit.rlim_cur;
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
