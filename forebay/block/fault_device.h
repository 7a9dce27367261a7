// A device that fails on purpose, on its way to another device.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "forebay/block/device.h"
#include "forebay/os/mutex.h"

namespace forebay {

// Which bios fail, and how.
struct fault {
  bio_op op = bio_op::write;
  std::uint64_t start_bytes = 0;  // bios that touch [start, end) match
  std::uint64_t end_bytes = UINT64_MAX;
  std::uint64_t skip = 0;            // this many matching bios pass first
  std::uint64_t count = UINT64_MAX;  // then so many fail; afterwards the fault is over
  std::int32_t error = 5;            // errno that they fail with
  // A write stores the whole blocks of so many bytes of its front before it fails.
  std::optional<std::uint64_t> partial_bytes{};
  std::uint64_t delay_ns = 0;  // a failure that stores nothing arrives so much later
};

class fault_device final : public device {
 public:
  explicit fault_device(device& below) noexcept : below_(below) {}

  const device_limits& limits() const noexcept override { return below_.limits(); }
  void submit(bio& b) noexcept override;
  result<file_extent> extent_at(std::uint64_t offset_bytes) const override {
    return below_.extent_at(offset_bytes);
  }

  // Any thread; acts on bios submitted afterwards.
  void inject(const fault& f);
  void heal();

  // Bios that have been failed so far.
  std::uint64_t injected() const;

 private:
  struct delayed_end;
  struct partial_write;

  std::optional<fault> match(const bio& b) FOREBAY_EXCLUDES(lock_);
  void store_front(bio& b, std::uint64_t bytes, std::int32_t error) noexcept;

  device& below_;
  mutable mutex lock_;
  std::vector<fault> faults_ FOREBAY_GUARDED_BY(lock_);
  std::uint64_t injected_ FOREBAY_GUARDED_BY(lock_) = 0;
};

}  // namespace forebay
