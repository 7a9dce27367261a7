// Waiting on a 32-bit word that lies in memory shared between processes (futex(2) without its
// private flag), and knowing whether the other process is still there.
//
// `shared_futex` is what the rings in shared memory wait with, behind the PeerWaiter concept so
// that a simulated one can stand in. The word is the other process's as well: it may hold anything,
// and a wake may never come. So every wait has an end, and the caller looks at the time and at
// gone() before it waits again.
#pragma once

#include <atomic>
#include <concepts>
#include <cstdint>

#include "forebay/os/peer_watch.h"

namespace forebay {

// `Word` is the atomics policy's atomic<std::uint32_t>.
template <typename W, typename Word>
concept PeerWaiter = requires(W& waiter, Word& word, std::uint32_t expected, std::uint64_t ns) {
  // Sleeps while `word` holds `expected`, at most `ns` nanoseconds, and perhaps shorter.
  { waiter.wait(word, expected, ns) } noexcept;
  // Wakes whoever waits for `word`, in any process.
  { waiter.wake(word) } noexcept;
  // Whether the other side is known to be gone for good.
  { waiter.gone() } noexcept -> std::same_as<bool>;
  { waiter.now_ns() } noexcept -> std::same_as<std::uint64_t>;
  // How often a waiter looks before it sleeps, and what it does between two looks.
  { waiter.spins() } noexcept -> std::same_as<unsigned>;
  { waiter.relax() } noexcept;
};

class shared_futex {
 public:
  // With a watch, a wait looks every `look_ns` whether the peer is gone; without, gone() is never
  // true and only the timeout ends a wait for a dead peer. The watch must outlive this.
  explicit shared_futex(const peer_watch* peer = nullptr, unsigned spins = 100) noexcept
      : peer_(peer), spins_(spins) {}

  static constexpr std::uint64_t look_ns = 20'000'000;

  void wait(std::atomic<std::uint32_t>& word, std::uint32_t expected,
            std::uint64_t timeout_ns) noexcept;
  void wake(std::atomic<std::uint32_t>& word) noexcept;
  bool gone() const noexcept { return peer_ != nullptr && peer_->gone(); }
  std::uint64_t now_ns() const noexcept;
  unsigned spins() const noexcept { return spins_; }
  void relax() const noexcept;

 private:
  const peer_watch* peer_;
  unsigned spins_;
};

static_assert(PeerWaiter<shared_futex, std::atomic<std::uint32_t>>);

}  // namespace forebay
