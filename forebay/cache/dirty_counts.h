// How many pages have not reached the device: of a cache, or of one address space.
//
// Guards: all are atomics, changed under the space's lock_. Thread-safety: any thread.
#pragma once

#include <atomic>
#include <cstdint>

namespace forebay {

class dirty_counts {
 public:
  // Of these, and not under write-back, `failed` are dirty because their last write failed.
  std::uint32_t dirty() const noexcept { return level(dirty_); }
  std::uint32_t failed() const noexcept { return level(failed_); }
  std::uint32_t writeback() const noexcept { return level(writeback_); }

  // Pages that write-back is to bring down, or is bringing: those that cannot be written have a
  // limit of their own, so that one failing device does not stop the writers of the others.
  std::uint32_t to_write() const noexcept {
    const std::uint32_t all = dirty();
    const std::uint32_t stuck = failed();
    return (all > stuck ? all - stuck : 0) + writeback();
  }

  void add_dirty(std::int64_t delta) noexcept { add(dirty_, delta); }
  void add_failed(std::int64_t delta) noexcept { add(failed_, delta); }
  void add_writeback(std::int64_t delta) noexcept { add(writeback_, delta); }

 private:
  using count = std::atomic<std::uint32_t>;

  // relaxed, both: levels; a limit that is overrun by a page or two is still a limit.
  static std::uint32_t level(const count& c) noexcept { return c.load(std::memory_order_relaxed); }
  static void add(count& c, std::int64_t delta) noexcept {
    c.fetch_add(static_cast<std::uint32_t>(delta), std::memory_order_relaxed);  // relaxed: above
  }

  count dirty_{0};
  count writeback_{0};
  count failed_{0};
};

}  // namespace forebay
