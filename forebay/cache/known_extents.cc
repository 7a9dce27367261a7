#include "forebay/cache/known_extents.h"

#include <algorithm>

#include "forebay/base/assert.h"

namespace forebay {
namespace {

// Where the object would begin on the device if all of it lay as this part does; wraps.
std::uint64_t origin(const mapped_extent& e) noexcept {
  return e.device_offset_bytes - e.offset_bytes;
}

// A part of an extent.
mapped_extent part(const mapped_extent& e, std::uint64_t from, std::uint64_t end) noexcept {
  mapped_extent p = e;
  p.offset_bytes = from;
  p.length_bytes = end - from;
  if (e.has_blocks()) p.device_offset_bytes += from - e.offset_bytes;
  p.boundary = e.boundary && end == e.end_bytes();
  return p;
}

bool joins(const mapped_extent& front, const mapped_extent& back) noexcept {
  return front.end_bytes() == back.offset_bytes && front.state == back.state && !front.boundary &&
         (!front.has_blocks() || origin(front) == origin(back));
}

}  // namespace

known_extents::known_extents(std::size_t most) : most_(most) {
  FOREBAY_ASSERT(most != 0);
  // One more while a new one is put in, and one for each that is cut in two.
  by_offset_.reserve(most + 3);
  by_device_.reserve(most + 3);
}

std::size_t known_extents::first_behind(std::uint64_t offset) const noexcept {
  const auto it =
      std::partition_point(by_offset_.begin(), by_offset_.end(),
                           [offset](const mapped_extent& e) { return e.end_bytes() <= offset; });
  return static_cast<std::size_t>(it - by_offset_.begin());
}

std::optional<mapped_extent> known_extents::find(std::uint64_t offset) const {
  const scoped_lock hold(lock_);
  const std::size_t i = first_behind(offset);
  if (i == by_offset_.size() || by_offset_[i].offset_bytes > offset) return std::nullopt;
  return by_offset_[i];
}

std::uint64_t known_extents::delayed_until(std::uint64_t offset) const {
  const scoped_lock hold(lock_);
  // Joined as they are, one says it.
  const std::size_t i = first_behind(offset);
  if (i == by_offset_.size() || by_offset_[i].offset_bytes > offset) return offset;
  return by_offset_[i].state == extent_state::delayed ? by_offset_[i].end_bytes() : offset;
}

bool known_extents::contradicts(const mapped_extent& e) const {
  const scoped_lock hold(lock_);
  for (std::size_t i = first_behind(e.offset_bytes); i < by_offset_.size(); ++i) {
    const mapped_extent& k = by_offset_[i];
    if (k.offset_bytes >= e.end_bytes()) break;
    if (k.has_blocks() && (!e.has_blocks() || origin(k) != origin(e))) return true;
  }
  if (!e.has_blocks()) return false;
  const auto first =
      std::partition_point(by_device_.begin(), by_device_.end(), [&e](const mapped_extent& k) {
        return k.device_offset_bytes + k.length_bytes <= e.device_offset_bytes;
      });
  return std::any_of(first, by_device_.end(), [&e](const mapped_extent& k) {
    return k.device_offset_bytes < e.device_offset_bytes + e.length_bytes && origin(k) != origin(e);
  });
}

void known_extents::insert(std::size_t at, const mapped_extent& e) {
  by_offset_.insert(by_offset_.begin() + static_cast<std::ptrdiff_t>(at), e);
  if (!e.has_blocks()) return;
  by_device_.insert(std::ranges::upper_bound(by_device_, e.device_offset_bytes, {},
                                             &mapped_extent::device_offset_bytes),
                    e);
}

void known_extents::erase(std::size_t at) {
  const mapped_extent e = by_offset_[at];
  by_offset_.erase(by_offset_.begin() + static_cast<std::ptrdiff_t>(at));
  if (!e.has_blocks()) return;
  by_device_.erase(std::ranges::lower_bound(by_device_, e.device_offset_bytes, {},
                                            &mapped_extent::device_offset_bytes));
}

// Nothing of a range is known any more.
void known_extents::carve(std::uint64_t offset, std::uint64_t end) {
  std::size_t i = first_behind(offset);
  while (i < by_offset_.size() && by_offset_[i].offset_bytes < end) {
    const mapped_extent e = by_offset_[i];
    erase(i);
    if (e.offset_bytes < offset) insert(i++, part(e, e.offset_bytes, offset));
    if (e.end_bytes() > end) insert(i++, part(e, end, e.end_bytes()));
  }
}

void known_extents::put(const mapped_extent& e) {
  const scoped_lock hold(lock_);
  carve(e.offset_bytes, e.end_bytes());
  mapped_extent joined = e;
  joined.is_new = false;
  std::size_t i = first_behind(e.offset_bytes);
  if (i != 0 && joins(by_offset_[i - 1], joined)) {
    const mapped_extent front = by_offset_[--i];
    erase(i);
    joined.offset_bytes = front.offset_bytes;
    joined.length_bytes += front.length_bytes;
    joined.device_offset_bytes = front.device_offset_bytes;
  }
  if (i < by_offset_.size() && joins(joined, by_offset_[i])) {
    joined.length_bytes += by_offset_[i].length_bytes;
    joined.boundary = by_offset_[i].boundary;
    erase(i);
  }
  insert(i, joined);
  while (by_offset_.size() > most_) erase(victim_++ % by_offset_.size());
}

void known_extents::forget(std::uint64_t offset, std::uint64_t end) {
  const scoped_lock hold(lock_);
  carve(offset, end);
  while (by_offset_.size() > most_) erase(victim_++ % by_offset_.size());
}

}  // namespace forebay
