// Waking the other side only when it sleeps: the announce-and-look-again protocol of virtio's
// EVENT_IDX and of NVMe's shadow doorbells, over a futex.
//
//      waits                                     rings
//      ticket = bell                             publish entries old … now
//      wanted = position it waits for            ── full fence ──
//      ── full fence ──                          if wanted lies in [old, now): bell += 1, wake
//      look again: there? then no sleep
//      sleep while bell == ticket
//
// Positions run freely through 32 bits. `wanted` stays where it is after a wait; once the other
// side has passed it no bell rings, until the waiter announces again: while both are busy there is
// no system call. (Should the position come round to a `wanted` of 2^32 entries ago, the bell rings
// once for nothing.)
//
// No wake is lost: the two full fences are in one order. If the waiter's is first, the ringer sees
// `wanted` and changes the bell after the ticket was taken; if the ringer's is first, the waiter's
// second look sees the entries.
//
// The words are shared with a process that may write anything into them. The worst it can do is
// deny or multiply wakes, which costs time: each wait looks at the clock.
#pragma once

#include <cstdint>

#include "forebay/base/atomics.h"
#include "forebay/base/result.h"
#include "forebay/os/shared_futex.h"
#include "forebay/ring/ring_error.h"

namespace forebay {

// Of one waiting side, in shared memory.
template <AtomicsPolicy Atomics>
struct event_words {
  typename Atomics::template atomic<std::uint32_t> wanted{0};  // the waiting side writes it
  typename Atomics::template atomic<std::uint32_t> bell{0};    // the ringing side adds to it
};

// Whether `wanted` is one of the positions old … now - 1 (vring_need_event, virtio 1.2, 2.7.10).
constexpr bool event_passed(std::uint32_t wanted, std::uint32_t old, std::uint32_t now) noexcept {
  return now - wanted - 1 < now - old;
}

// Wakes the side that waits on `words`, whatever it waits for.
template <AtomicsPolicy Atomics, typename Waiter>
void ring_bell(event_words<Atomics>& words, Waiter& waiter) noexcept {
  // release: this side has read `wanted` before, so not one that a waiter writes after it has taken
  // its ticket from this value: the bell which that one asks for is still to come.
  // And who takes its ticket from it sees what this side did before: that it has closed, say.
  words.bell.fetch_add(1, std::memory_order_release);
  waiter.wake(words.bell);
}

// After positions old … now - 1 have been published with release stores: wakes the other side if it
// waits for one of them. Whether it rang.
template <AtomicsPolicy Atomics, typename Waiter>
bool ring_bell_if_wanted(event_words<Atomics>& words, Waiter& waiter, std::uint32_t old,
                         std::uint32_t now) noexcept {
  if (old == now) return false;
  // seq_cst: pairs with the fence of wait_for_event, see the top.
  Atomics::fence(std::memory_order_seq_cst);
  // relaxed: the fence orders it.
  if (!event_passed(words.wanted.load(std::memory_order_relaxed), old, now)) return false;
  ring_bell(words, waiter);
  return true;
}

// Waits until ready() is true, which is a look at the other side's position of any order: whoever
// then reads what was published looks at it again, with acquire. `wanted` is the position whose
// publication makes it true. Errors: ETIMEDOUT after timeout_ns (UINT64_MAX:
// never), ring_errc::peer_gone if it has gone and ready() is still not true. `sleeps` counts.
template <AtomicsPolicy Atomics, typename Waiter, typename Ready>
result<> wait_for_event(event_words<Atomics>& words, Waiter& waiter, std::uint32_t wanted,
                        std::uint64_t timeout_ns, std::uint64_t& sleeps, Ready ready) noexcept {
  for (unsigned i = 0; i < waiter.spins(); ++i) {
    if (ready()) return {};
    waiter.relax();
  }
  const std::uint64_t start = waiter.now_ns();
  for (;;) {
    // acquire: pairs with ring_bell. beyond the explorer: the fence below is an acquire as well,
    // and that `wanted` is written after this load matters only where a store may pass a load.
    const std::uint32_t ticket = words.bell.load(std::memory_order_acquire);
    words.wanted.store(wanted, std::memory_order_relaxed);  // relaxed: the fence orders it
    // seq_cst: pairs with the fence of ring_bell_if_wanted, see the top.
    Atomics::fence(std::memory_order_seq_cst);
    if (ready()) return {};
    const std::uint64_t gone_by = waiter.now_ns() - start;
    if (gone_by >= timeout_ns) return fail(ETIMEDOUT);
    ++sleeps;
    waiter.wait(words.bell, ticket, timeout_ns == UINT64_MAX ? timeout_ns : timeout_ns - gone_by);
    if (ready()) return {};
    // relaxed: a hint. Who has rung is not gone, or is found so in the next round.
    if (words.bell.load(std::memory_order_relaxed) != ticket || !waiter.gone()) continue;
    // It may have published its last words just before: one more look.
    return ready() ? result<>() : fail(ring_errc::peer_gone);
  }
}

}  // namespace forebay
