// What is known of where an object's bytes lie: a bounded memory of its mapping's answers.
//
//   by offset:   | hole | mapped 7.. | delayed |      | mapped 3.. |      gaps: not known
//   by device:        | 3.. | 7.. |                                        the same places
//
// It saves calls, and it tells an answer that contradicts another one: two places of the object
// cannot have the same blocks, and a place cannot have two.
//
// Invariants: extents do not overlap, neither in the object nor on the device; neighbours that are
// one are joined; at most `most` of them: any one is dropped to make room, so nothing that is known
// is more than a hint that a mapping need not be asked.
//
// Thread-safety: any thread.
#pragma once

#include <cstddef>
#include <optional>
#include <vector>

#include "forebay/cache/mapping.h"
#include "forebay/os/mutex.h"

namespace forebay {

class known_extents {
 public:
  explicit known_extents(std::size_t most);

  // The one that the byte `offset` lies in.
  std::optional<mapped_extent> find(std::uint64_t offset) const FOREBAY_EXCLUDES(lock_);

  // Where what is delayed from `offset` on ends, as far as is known; `offset` if it is not.
  std::uint64_t delayed_until(std::uint64_t offset) const FOREBAY_EXCLUDES(lock_);

  // Whether both cannot be true: this and what is known.
  bool contradicts(const mapped_extent& e) const FOREBAY_EXCLUDES(lock_);

  // Remembers an extent, which replaces what is known of its range.
  void put(const mapped_extent& e) FOREBAY_EXCLUDES(lock_);

  void forget(std::uint64_t offset, std::uint64_t end) FOREBAY_EXCLUDES(lock_);

  std::size_t count() const noexcept FOREBAY_EXCLUDES(lock_) {
    const scoped_lock hold(lock_);
    return by_offset_.size();
  }

 private:
  // The first extent that ends behind a byte of the object.
  std::size_t first_behind(std::uint64_t offset) const noexcept FOREBAY_REQUIRES(lock_);
  void insert(std::size_t at, const mapped_extent& e) FOREBAY_REQUIRES(lock_);
  void erase(std::size_t at) FOREBAY_REQUIRES(lock_);
  void carve(std::uint64_t offset, std::uint64_t end) FOREBAY_REQUIRES(lock_);

  const std::size_t most_;
  mutable mutex lock_;
  std::vector<mapped_extent> by_offset_ FOREBAY_GUARDED_BY(lock_);
  // Those that have blocks, by device_offset_bytes.
  std::vector<mapped_extent> by_device_ FOREBAY_GUARDED_BY(lock_);
  std::size_t victim_ FOREBAY_GUARDED_BY(lock_) = 0;
};

}  // namespace forebay
