// The memory limit of an address space: what it gives up of its own, and how much of it may be
// dirty.

#include "forebay/cache/memory_share.h"

#include <algorithm>

#include "forebay/cache/address_space.h"

namespace forebay {

// Evicts its own pages by a clock, in the order of their numbers: each is passed by once when it
// has come, for it may have come just before the hand, and once for each use. Returns how many 4
// KiB have gone; fewer than wanted if all that is left is dirty or in use, or very much is.
std::uint64_t address_space::evict_own(std::uint64_t wanted) noexcept {
  // Where everything is used all the time, so many are asked about it, and the next ones go.
  const std::uint64_t looks_patient = 1024 + 16 * wanted;
  const std::uint64_t busy_most = std::min(share_.pages(), 4096u);
  // Nothing to look for: this is asked again and again while all of it waits for the device.
  if (share_.unwritten().dirty() >= share_.pages()) return 0;
  std::uint64_t gone = 0;
  std::uint64_t busy = 0;  // one after the other
  for (std::uint64_t looks = 0; gone < wanted && busy <= busy_most; ++looks) {
    page* p = nullptr;
    {
      const scoped_lock hold(lock_);
      auto found = index_.next_clean(hand_, UINT64_MAX);
      if (!found) found = index_.next_clean(0, hand_);
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
  // Who has been refused has taken back what he counted, so that it may not be full now.
  if (!share_.is_filling()) return cache_.try_make_room();
  // The buffers that were used last keep their pages.
  if (evict_own(few) != 0 || cache_.lru().invalidate(this) != 0) return true;
  return !share_.is_full() && cache_.try_make_room();
}

void address_space::set_memory_limit(std::uint64_t bytes) noexcept {
  const std::uint64_t wish = std::min<std::uint64_t>(bytes >> page_shift, memory_share::unlimited);
  const std::uint32_t pages = std::max(static_cast<std::uint32_t>(wish), memory_share::pages_min);
  {
    const scoped_lock hold(lock_);
    share_.set_limit(pages);
    // Two windows of every stream, the one that is read and the one that comes, take half of it.
    readahead_.set_window_bound(pages / (4 * std::uint32_t{readahead::streams_max}));
  }
  if (share_.excess() != 0 || over_background_limit()) wake_flusher();
}

// Gives up what is over the limit and can go, a few at a time, so that others get on.
task<> address_space::give_up_excess() {
  constexpr std::uint32_t at_once = 512;
  // acquire: pairs with stop_flusher.
  while (share_.excess() != 0 && !stopping_.load(std::memory_order_acquire)) {
    if (evict_own(std::min(share_.excess(), at_once)) == 0) break;
    co_await sleep_for(0);
  }
  co_return result<>{};
}

dirty_pacer::levels address_space::dirty_levels() const noexcept {
  const dirty_pacer::levels own = share_.dirty_levels();
  return own.over_free_run() ? own : cache_.dirty_levels();
}

bool address_space::over_background_limit() const noexcept {
  return cache_.over_background_limit() || share_.over_background_limit();
}

bool address_space::may_dirty(std::uint32_t pages) const noexcept {
  return cache_.may_dirty(pages) && share_.may_dirty(pages);
}

}  // namespace forebay
