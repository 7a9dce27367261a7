#include "forebay/os/foreign_mapping.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <array>
#include <atomic>
#include <bit>
#include <csignal>

#include "forebay/base/cache_line.h"

namespace forebay {
namespace {

// A mapping as the handler sees it. `end` is 0 while it is none.
struct covered {
  std::atomic<bool> taken{false};
  std::atomic<bool> damaged{false};
  std::atomic<std::uintptr_t> first{0};
  std::atomic<std::uintptr_t> end{0};
  std::atomic<std::size_t> page_bytes{0};
};

constinit std::array<covered, foreign_mapping::mappings_max> table{};
struct sigaction earlier_action;  // set once, before the handler is installed

// Puts zeros where a page is missing. Only what a signal handler may do: atomics and mmap(2).
bool cover(std::uintptr_t address) noexcept {
  for (covered& c : table) {
    // acquire: sees the other words; they were set before it, and the mapping is not taken away
    // while one of its bytes is being touched.
    const std::uintptr_t end = c.end.load(std::memory_order_acquire);
    // relaxed, here and below: see above.
    const std::uintptr_t first = c.first.load(std::memory_order_relaxed);
    if (address < first || address >= end) continue;
    const std::size_t bytes = c.page_bytes.load(std::memory_order_relaxed);  // relaxed: see above
    void* const page = std::bit_cast<void*>(first + (address - first) / bytes * bytes);
    c.damaged.store(true, std::memory_order_relaxed);  // relaxed: a flag
    return ::mmap(page, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
                  0) != MAP_FAILED;
  }
  return false;
}

void on_bus_error(int number, siginfo_t* info, void*) noexcept {
  const int error = errno;
  if (info->si_code != BUS_ADRERR || !cover(std::bit_cast<std::uintptr_t>(info->si_addr))) {
    // It happens again, as it would have without this handler.
    ::sigaction(number, &earlier_action, nullptr);
  }
  errno = error;
}

void install_handler() noexcept {
  static const bool installed = [] {
    struct sigaction action{};
    action.sa_sigaction = on_bus_error;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    ::sigaction(SIGBUS, nullptr, &earlier_action);
    ::sigaction(SIGBUS, &action, nullptr);
    return true;
  }();
  static_cast<void>(installed);
}

// A free place of the table; mappings_max if there is none.
std::size_t take_slot() noexcept {
  for (std::size_t i = 0; i < table.size(); ++i) {
    // acquire: pairs with the release of who had it before.
    if (!table[i].taken.exchange(true, std::memory_order_acquire)) return i;
  }
  return table.size();
}

}  // namespace

result<foreign_mapping> foreign_mapping::map(int fd, std::uint64_t offset_bytes,
                                             std::uint64_t bytes) {
  if (bytes == 0) return fail(EINVAL);
  if (bytes > bytes_max || offset_bytes > bytes_max) return fail(errc::too_large);
  struct stat st{};
  if (::fstat(fd, &st) != 0) return fail_errno();
  if (!S_ISREG(st.st_mode)) return fail(EINVAL);
  // In a file of huge pages only whole ones can be mapped: st_blksize is their size there.
  const std::uint64_t page = std::max<std::uint64_t>(
      4096, std::bit_ceil(std::uint64_t(std::max<blksize_t>(st.st_blksize, 1))));
  const std::uint64_t first = offset_bytes / page * page;
  const std::uint64_t end = round_up(offset_bytes + bytes, page);
  if (static_cast<std::uint64_t>(st.st_size) < offset_bytes + bytes) return fail(EINVAL);
  install_handler();
  const std::size_t slot = take_slot();
  if (slot == table.size()) return fail(ENOSPC);
  void* const p = ::mmap(nullptr, end - first, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
                         fd, static_cast<off_t>(first));
  covered& c = table[slot];
  if (p == MAP_FAILED) {
    const int error = errno;
    c.taken.store(false, std::memory_order_release);  // release: pairs with take_slot()
    return fail(error);
  }
  // It is somebody else's memory, and may be large: none of it belongs in a core file.
  static_cast<void>(::madvise(p, end - first, MADV_DONTDUMP));
  foreign_mapping made;
  made.whole_ = {static_cast<std::byte*>(p), end - first};
  made.part_ = made.whole_.subspan(offset_bytes - first, bytes);
  made.slot_ = slot;
  // relaxed: `end` publishes these.
  c.damaged.store(false, std::memory_order_relaxed);
  c.first.store(std::bit_cast<std::uintptr_t>(p), std::memory_order_relaxed);  // relaxed: as above
  c.page_bytes.store(page, std::memory_order_relaxed);                         // relaxed: as above
  c.end.store(std::bit_cast<std::uintptr_t>(p) + (end - first),
              std::memory_order_release);  // release: pairs with cover()
  return made;
}

foreign_mapping::~foreign_mapping() {
  if (whole_.empty()) return;
  covered& c = table[slot_];
  c.end.store(0, std::memory_order_relaxed);  // relaxed: nobody touches the mapping any more
  ::munmap(whole_.data(), whole_.size());
  c.taken.store(false, std::memory_order_release);  // release: pairs with take_slot()
}

bool foreign_mapping::damaged() const noexcept {
  return !whole_.empty() &&
         table[slot_].damaged.load(std::memory_order_relaxed);  // relaxed: a flag
}

}  // namespace forebay
