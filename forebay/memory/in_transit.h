// Whether a search of several places, one after the other, may have missed something that was moved
// from one of them to another meanwhile.
//
//    mover:     begin() ── takes it from place 1 ──────────── puts it into place 2 ── end()
//    searcher:  look()  ── place 2: nothing ── place 1: nothing ── none_since()? no
//
//    word:  | how many have begun, 32 bits | how many are under way, 32 bits |
//
// A search that finds nothing, with nobody under way before it and nobody begun since, has missed
// nothing: what can have happened is that something was added to a place after the look at it.
//
// The places may be of any kind and order. A mover has a fence between begin() and its first place,
// a searcher one between its last place and the second look; so who sees a place emptied sees the
// begin(), and who saw the end() of a move finds what it put down. (On x86-64 the fences are
// nothing.)
#pragma once

#include <cstdint>

#include "forebay/base/atomics.h"

namespace forebay {

template <AtomicsPolicy Atomics = real_atomics>
class basic_in_transit {
 public:
  void begin() noexcept {
    word_.fetch_add(one_more, std::memory_order_relaxed);  // relaxed: the fence publishes it
    Atomics::fence(std::memory_order_release);             // release: before any place is emptied
  }
  void end() noexcept {
    word_.fetch_sub(1, std::memory_order_release);  // release: what was put down is there
  }

  // Before a search.
  std::uint64_t look() const noexcept {
    return word_.load(std::memory_order_acquire);  // acquire: pairs with end()
  }
  // After a search that found nothing.
  bool none_since(std::uint64_t look) const noexcept {
    Atomics::fence(std::memory_order_acquire);  // acquire: after all places have been looked at
    // relaxed: ordered by the fence.
    return (look & 0xffff'ffff) == 0 && word_.load(std::memory_order_relaxed) == look;
  }

 private:
  static constexpr std::uint64_t one_more = (std::uint64_t{1} << 32) + 1;

  typename Atomics::template atomic<std::uint64_t> word_{0};
};

using in_transit = basic_in_transit<>;

}  // namespace forebay
