// Locking a page and waiting for its state, across threads and coroutines.
//
// The lock is the bit page_locked of the frame. Waiters queue in a table hashed by frame, as
// Linux's page_waitqueue; the bit page_waiters tells who clears a bit whether anybody may be there.
// Rule that keeps this free of deadlock: who holds a page lock waits for nothing but that page's
// own I/O, never for memory, for another page's lock or for a dirty limit.
#pragma once

#include "forebay/memory/page.h"
#include "forebay/ring/wait_queue.h"

namespace forebay {

// The queue that waiters for `p` share with those of some other frames.
wait_queue& page_wait_queue(const page& p) noexcept;

// True if the caller now holds the lock.
template <typename Page>
bool try_lock_page(Page& p) noexcept {
  return (p.set(page_locked) & page_locked) == 0;
}

// Clears bits that somebody may wait for, and calls wake() if somebody may.
template <typename Page, typename Wake>
void clear_and_call(Page& p, std::uint32_t bits, const Wake& wake) noexcept {
  if ((p.clear(bits) & page_waiters) == 0) return;
  p.clear(page_waiters);
  wake();
}
inline void clear_and_wake(page& p, std::uint32_t bits) noexcept {
  clear_and_call(p, bits, [&p]() noexcept { page_wait_queue(p).wake_all(); });
}

// Whether the bits are clear. If not, who clears one of them will look for waiters: for who has
// announced itself as one.
template <typename Page>
bool clear_or_wanted(Page& p, std::uint32_t bits) noexcept {
  return ((p.set(page_waiters) | page_waiters) & bits) == 0;
}

inline void unlock_page(page& p) noexcept { clear_and_wake(p, page_locked); }

// co_await wait_until_clear(p, bits): suspends while any of the bits is set; a hint, look again.
// The caller holds a reference.
inline auto wait_until_clear(page& p, std::uint32_t bits) noexcept {
  return page_wait_queue(p).wait_unless([&p, bits]() noexcept {
    // The waiter counts itself before this runs (see wait_queue), so setting the bit first loses no
    // wake-up: who clears page_waiters afterwards finds the waiter counted.
    return clear_or_wanted(p, bits);
  });
}

}  // namespace forebay
