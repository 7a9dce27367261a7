// A stream of bios of one kind that one coroutine builds and waits for: neighbouring pieces are
// merged, at most so many are under way at a time as its depth says.
//
// The first bio under way is part of the batch, so that there is progress without memory; the
// others come from the page cache's bio_pool. When that has none, the batch waits for one of its
// own to end and goes on with fewer at a time.
//
// One thread. The batch must be drained before it goes.
#pragma once

#include <array>
#include <coroutine>
#include <cstdint>

#include "forebay/block/device.h"
#include "forebay/cache/bio_pool.h"
#include "forebay/memory/page.h"

namespace forebay {

class address_space;

class bio_batch {
 public:
  // A reader waits for what it has asked for; write-back in the background leaves the device to
  // readers; where writers are slowed to its pace, the device is to give all it has.
  static constexpr unsigned usual_depth = 16;
  static constexpr unsigned background_depth = 32;
  static constexpr unsigned full_depth = 128;

  // Called for each bio that has ended, from the executor's loop.
  using end_function = void (*)(address_space&, const bio&) noexcept;

  bio_batch(address_space& space, bio_pool& pool, device& dev, bio_op op, std::uint8_t flags,
            bio_class urgency, end_function end) noexcept
      : space_(space),
        pool_(pool),
        device_(dev),
        op_(op),
        flags_(flags),
        urgency_(urgency),
        end_(end) {}
  ~bio_batch() { FOREBAY_ASSERT(in_flight_ == 0 && current_ == nullptr); }
  bio_batch(const bio_batch&) = delete;
  bio_batch& operator=(const bio_batch&) = delete;

  // Adds `bytes` of memory for a place on the device; what was gathered before is submitted if this
  // does not continue it. False, and nothing is added, when no bio is to be had: co_await room()
  // and call again.
  bool try_append(std::uint64_t offset_bytes, std::byte* data, std::size_t bytes) noexcept;

  // How many may be under way from now on.
  void set_depth(unsigned depth) noexcept { depth_ = depth; }

  // Submits what is gathered.
  void submit() noexcept;

  // Resumes when fewer than `limit` bios are in flight and one is to be had; when none is in
  // flight, for 0.
  class awaiter {
   public:
    awaiter(bio_batch& batch, unsigned limit) noexcept : batch_(batch), limit_(limit) {}
    bool await_ready() const noexcept { return batch_.reached(limit_); }
    void await_suspend(std::coroutine_handle<> h) noexcept {
      batch_.waiter_ = h;
      batch_.limit_ = limit_;
    }
    void await_resume() const noexcept {}

   private:
    bio_batch& batch_;
    unsigned limit_;
  };

  // co_await room(): until a bio is to be had; co_await drain(): submits, and until none is in
  // flight.
  awaiter room() noexcept { return {*this, depth_}; }
  awaiter drain() noexcept {
    submit();
    return {*this, 0};
  }

  bio_class urgency() const noexcept { return urgency_; }

  // Of what the pool gives.
  static std::size_t bio_bytes() noexcept;

  // The first failure, a negative errno; 0 if there was none.
  std::int32_t error() const noexcept { return error_; }
  void set_error(std::int32_t e) noexcept {
    if (error_ == 0) error_ = e;
  }

 private:
  struct batch_bio : bio {
    bio_batch* batch = nullptr;
  };

  bool reached(unsigned limit) const noexcept {
    return limit == 0 ? in_flight_ == 0 : in_flight_ < limit && !(reserve_busy_ && starved_);
  }

  batch_bio* acquire() noexcept;
  void ended(batch_bio& b) noexcept;

  address_space& space_;
  bio_pool& pool_;
  device& device_;
  const bio_op op_;
  const std::uint8_t flags_;
  const bio_class urgency_;
  const end_function end_;
  batch_bio* current_ = nullptr;  // being built
  batch_bio reserve_;
  bool reserve_busy_ = false;
  bool starved_ = false;  // the last allocation failed
  unsigned in_flight_ = 0;
  unsigned depth_ = usual_depth;
  std::int32_t error_ = 0;
  std::coroutine_handle<> waiter_;
  unsigned limit_ = 0;  // what waiter_ waits for
};

}  // namespace forebay
