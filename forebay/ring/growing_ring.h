// A ring that doubles when it is full, up to a limit. Under a lock: what others are in the middle
// of using cannot be moved.
//
//    | … | oldest | … | newest |      `capacity` slots, a power of two, all items in order
//
// It does not shrink. lock_ guards all that changes; it is a leaf, and held while items are moved
// to their new place, once for each doubling.
#pragma once

#include <atomic>
#include <bit>
#include <cstring>
#include <memory>
#include <new>
#include <span>

#include "forebay/base/result.h"
#include "forebay/os/mutex.h"
#include "forebay/ring/ring_slots.h"

namespace forebay {

template <RingItem T>
class growing_ring {
 public:
  // Errors: EINVAL if one of the two is no power of two, the capacity is below ring_capacity_min or
  // the limit below the capacity; errc::too_large for a limit above ring_capacity_max; ENOMEM.
  static result<std::unique_ptr<growing_ring>> create(std::size_t capacity,
                                                      std::size_t limit) noexcept {
    if (!std::has_single_bit(capacity) || capacity < ring_capacity_min ||
        !std::has_single_bit(limit) || limit < capacity) {
      return fail(EINVAL);
    }
    if (limit > ring_capacity_max) return fail(errc::too_large);
    std::unique_ptr<T[]> slots(new (std::nothrow) T[capacity]);
    if (slots == nullptr) return fail(ENOMEM);
    std::unique_ptr<growing_ring> made(new (std::nothrow)
                                           growing_ring(std::move(slots), capacity, limit));
    if (made == nullptr) return fail(ENOMEM);
    return made;
  }
  growing_ring(const growing_ring&) = delete;
  growing_ring& operator=(const growing_ring&) = delete;

  // Any thread, all of them.

  // The first ones of `items`, as many as the limit and the machine's memory let in; how many.
  [[nodiscard]] std::size_t try_push_some(std::span<const T> items) noexcept
      FOREBAY_EXCLUDES(lock_) {
    const scoped_lock held(lock_);
    while (capacity_ - count() < items.size() && capacity_ < limit_ && grow()) {
    }
    const std::size_t room = capacity_ - count();
    const std::size_t n = items.size() < room ? items.size() : room;
    for (std::size_t i = 0; i < n; ++i) slot_at(pushed_ + i) = items[i];
    pushed_ += n;
    return n;
  }
  [[nodiscard]] std::size_t try_pop_some(std::span<T> items) noexcept FOREBAY_EXCLUDES(lock_) {
    const scoped_lock held(lock_);
    const std::size_t n = items.size() < count() ? items.size() : count();
    for (std::size_t i = 0; i < n; ++i) items[i] = slot_at(popped_ + i);
    popped_ += n;
    return n;
  }

  std::size_t size() const noexcept FOREBAY_EXCLUDES(lock_) {
    const scoped_lock held(lock_);
    return count();
  }
  std::size_t capacity() const noexcept FOREBAY_EXCLUDES(lock_) {
    const scoped_lock held(lock_);
    return capacity_;
  }
  // How often it has doubled.
  std::uint64_t expansions() const noexcept FOREBAY_EXCLUDES(lock_) {
    const scoped_lock held(lock_);
    return expansions_;
  }

 private:
  growing_ring(std::unique_ptr<T[]> slots, std::size_t capacity, std::size_t limit) noexcept
      : limit_(limit), slots_(std::move(slots)), capacity_(capacity) {}

  std::size_t count() const noexcept FOREBAY_REQUIRES(lock_) {
    return static_cast<std::size_t>(pushed_ - popped_);
  }
  T& slot_at(std::uint64_t position) const noexcept FOREBAY_REQUIRES(lock_) {
    return slots_[position & (capacity_ - 1)];
  }

  // False, and all is as it was, without memory.
  bool grow() noexcept FOREBAY_REQUIRES(lock_) {
    std::unique_ptr<T[]> larger(new (std::nothrow) T[2 * capacity_]);
    if (larger == nullptr) return false;
    for (std::uint64_t p = popped_; p != pushed_; ++p) {
      larger[p & (2 * capacity_ - 1)] = slot_at(p);
    }
    slots_ = std::move(larger);
    capacity_ *= 2;
    ++expansions_;
    return true;
  }

  const std::size_t limit_;
  mutable mutex lock_;
  std::unique_ptr<T[]> slots_ FOREBAY_GUARDED_BY(lock_);
  std::size_t capacity_ FOREBAY_GUARDED_BY(lock_);
  std::uint64_t pushed_ FOREBAY_GUARDED_BY(lock_) = 0;
  std::uint64_t popped_ FOREBAY_GUARDED_BY(lock_) = 0;
  std::uint64_t expansions_ FOREBAY_GUARDED_BY(lock_) = 0;
};

}  // namespace forebay
