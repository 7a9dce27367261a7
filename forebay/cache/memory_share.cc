// The memory limit of an address space: what it gives up of its own, and how much of it may be
// dirty.

#include "forebay/cache/memory_share.h"

#include <algorithm>

#include "forebay/cache/address_space.h"

namespace forebay {

// Evicts its own pages by a clock, in the order of their numbers: each is passed by once when it
// has come, for it may have come just before the hand, and once for each use. Returns how many 4
// KiB have gone; fewer than wanted if nearly all that is left is in use or dirty.
std::uint64_t address_space::evict_own(std::uint64_t wanted) noexcept {
  // Where everything is used all the time, so many are asked about it, and the next ones go.
  const std::uint64_t looks_patient = 1024 + 16 * wanted;
  std::uint64_t gone = 0;
  std::uint64_t busy = 0;  // one after the other
  for (std::uint64_t looks = 0; gone < wanted && busy <= share_.pages(); ++looks) {
    page* p = nullptr;
    {
      const scoped_lock hold(lock_);
      auto found = index_.next(hand_, UINT64_MAX);
      if (!found) found = index_.next(0, UINT64_MAX);
      if (!found) break;
      hand_ = found->end();
      p = found->frame;
    }
    // It may be another page's by now, which age() finds out.
    const page_cache::aged found = cache_.age(*p, *this, looks >= looks_patient);
    busy = found.busy ? busy + 1 : 0;
    gone += found.evicted;
  }
  return gone;
}

// Counts pages that are about to be put into the index. Those that are over the limit then have to
// go for them, two for each one where the limit was lowered. False, and not counted, if they do
// not.
bool address_space::take_share(std::uint32_t pages) noexcept {
  const std::uint32_t over = share_.add(pages);
  if (over == 0) [[likely]]
    return true;
  const std::uint64_t wanted = std::min<std::uint64_t>(over, std::uint64_t{pages} * 2);
  if (evict_own(wanted) >= wanted) return true;
  share_.remove(pages);
  return false;
}

bool address_space::try_make_room() noexcept {
  constexpr std::uint64_t few = 32;
  if (share_.is_full()) return evict_own(few) != 0;
  return cache_.try_make_room();
}

void address_space::set_memory_limit(std::uint64_t bytes) noexcept {
  const std::uint64_t pages = std::min<std::uint64_t>(bytes >> page_shift, memory_share::unlimited);
  share_.set_limit(std::max(static_cast<std::uint32_t>(pages), memory_share::pages_min));
  // Two windows of every stream, the one that is read and the one that comes, take half of it.
  readahead_.set_window_bound(share_.limit() / (4 * std::uint32_t{readahead::streams_max}));
  evict_own(share_.over(share_.pages()));
  if (over_background_limit()) wake_flusher();
}

dirty_pacer::levels address_space::dirty_levels() const noexcept {
  const dirty_pacer::levels own = share_.dirty_levels(dirty_pages());
  return own.over_free_run() ? own : cache_.dirty_levels();
}

bool address_space::over_background_limit() const noexcept {
  return cache_.over_background_limit() || dirty_pages() > background_limit_of(share_.limit());
}

bool address_space::may_dirty(std::uint32_t pages) const noexcept {
  return cache_.may_dirty(pages) && dirty_pages() + pages <= dirty_limit_of(share_.limit());
}

}  // namespace forebay
