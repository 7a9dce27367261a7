// A device that logs every write, flush and FUA on its way to another device, as dm-log-writes
// does, so that a test can build every image that a crash could have left behind.
#pragma once

#include <cstddef>
#include <vector>

#include "forebay/block/device.h"
#include "forebay/os/mutex.h"

namespace forebay {

struct recorded_operation {
  bio_op op = bio_op::write;
  bool fua = false;
  std::uint64_t offset_bytes = 0;
  std::uint64_t length_bytes = 0;
  std::vector<std::byte> data;  // of a write
  std::uint64_t submitted = 0;  // position in the common order of submissions and completions
  std::uint64_t completed = 0;  // 0: not completed
  std::int32_t status = 0;      // of the completion
};

class recorder_device final : public device {
 public:
  explicit recorder_device(device& below) noexcept : below_(below) {}

  const device_limits& limits() const noexcept override { return below_.limits(); }
  void submit(bio& b) noexcept override;
  result<file_extent> extent_at(std::uint64_t offset_bytes) const override {
    return below_.extent_at(offset_bytes);
  }

  // The newest event's position in the common order of submissions and completions.
  std::uint64_t clock() const {
    const scoped_lock hold(lock_);
    return clock_;
  }

  // Everything logged so far, in the order of submission.
  std::vector<recorded_operation> log() const;

 private:
  struct forwarded;

  device& below_;
  mutable mutex lock_;
  std::vector<recorded_operation> log_ FOREBAY_GUARDED_BY(lock_);
  std::uint64_t clock_ FOREBAY_GUARDED_BY(lock_) = 0;
};

// The image after a crash right after event number `moment` of the log's common order, on top of
// `before`: everything that was durable by then (writes that completed before the submission of a
// flush that completed; FUA writes that completed), and of the others that were submitted those for
// which `survives(index)` says so.
template <typename Survives>
std::vector<std::byte> image_after_crash(std::vector<std::byte> before,
                                         const std::vector<recorded_operation>& log,
                                         std::uint64_t moment, Survives survives) {
  std::uint64_t flushed_before = 0;  // writes completed before this position are durable
  for (const auto& r : log) {
    if (r.op == bio_op::flush && r.completed != 0 && r.completed <= moment && r.status == 0) {
      flushed_before = std::max(flushed_before, r.submitted);
    }
  }
  for (std::size_t i = 0; i < log.size(); ++i) {
    const auto& r = log[i];
    if (r.op == bio_op::flush || r.submitted > moment) continue;
    const bool done = r.completed != 0 && r.completed <= moment && r.status == 0;
    const bool durable = done && (r.fua || r.completed < flushed_before);
    if (!durable && !survives(i)) continue;
    const auto at = before.begin() + static_cast<std::ptrdiff_t>(r.offset_bytes);
    if (r.op == bio_op::write) {
      std::copy(r.data.begin(), r.data.end(), at);
    } else {
      std::fill_n(at, r.length_bytes, std::byte{0});
    }
  }
  return before;
}

}  // namespace forebay
