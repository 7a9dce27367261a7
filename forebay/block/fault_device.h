// A device that fails, is slow or hangs on purpose, on its way to another device.
//
//    bio ──> a fault of its kind and place?  ── yes ──> fails, at once or late, stored in part or
//    not
//                   │ no
//                   ├── hung ──> waits for heal()
//                   ├── a pace is set ──> waits for its turn
//                   └──> the device below
//
// Any thread that has an executor submits; the rest is any thread's. lock_ guards all that changes;
// no other lock is taken under it.
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

// How slow a device is: it does one bio after the other.
struct device_pace {
  std::uint64_t bytes_per_second = 0;  // of reads and writes; 0: no limit
  std::uint64_t latency_ns = 0;        // of every bio, before its bytes
};

class fault_device final : public device {
 public:
  explicit fault_device(device& below) noexcept : below_(below) {}

  const device_limits& limits() const noexcept override { return below_.limits(); }
  void submit(bio& b) noexcept override;
  result<file_extent> extent_at(std::uint64_t offset_bytes) const override {
    return below_.extent_at(offset_bytes);
  }

  // These act on bios submitted afterwards.
  void inject(const fault& f);
  // They reach the device below when one that keeps this pace would have done them.
  void set_pace(const device_pace& pace);
  // They wait until heal(). Their executors must last until then.
  void hang();

  // Nothing is injected, slow or hung any more. Bios that hung go on; those that a pace keeps do so
  // in their time.
  void heal();

  // Bios that have been failed so far.
  std::uint64_t injected() const;

 private:
  struct delayed_end;
  struct partial_write;
  struct kept_bio;

  std::optional<fault> match(const bio& b) FOREBAY_EXCLUDES(lock_);
  bool keep(bio& b) FOREBAY_EXCLUDES(lock_);
  void store_front(bio& b, std::uint64_t bytes, std::int32_t error) noexcept;

  device& below_;
  mutable mutex lock_;
  std::vector<fault> faults_ FOREBAY_GUARDED_BY(lock_);
  std::uint64_t injected_ FOREBAY_GUARDED_BY(lock_) = 0;
  device_pace pace_ FOREBAY_GUARDED_BY(lock_);
  std::uint64_t busy_until_ns_ FOREBAY_GUARDED_BY(lock_) = 0;  // at its pace
  bool hung_ FOREBAY_GUARDED_BY(lock_) = false;
  std::vector<kept_bio*> hanging_ FOREBAY_GUARDED_BY(lock_);
};

}  // namespace forebay
