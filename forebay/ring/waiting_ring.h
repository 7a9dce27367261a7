// A ring whose threads can wait: for room, for items, until it is closed. Waiting means to try a
// bounded number of times first, and then to sleep on a futex (event_count.h).
//
//    push -> ring -> pop
//      |               |
//    items_.notify   room_.notify          to wake who sleeps on the other side
//
// Over either ring; what may be called by how many threads is what the ring says. Each operation
// that moves items pays a fence for the look whether anybody sleeps.
//
// Several items are waited for as "one or more", so that all who wait on one side wait for the
// same.
//
// Closing: no push succeeds afterwards, and who waits for room gets EPIPE; pops go on until the
// ring is empty and then get errc::end_of_stream. Every item pushed before is popped.
#pragma once

#include <chrono>
#include <stop_token>

#include "forebay/base/spin.h"
#include "forebay/ring/event_count.h"
#include "forebay/ring/mpmc_ring.h"
#include "forebay/ring/spsc_ring.h"

namespace forebay {

// How long to wait, and what may stop it.
struct wait_limit {
  static constexpr std::chrono::nanoseconds forever = std::chrono::nanoseconds::max();
  std::chrono::nanoseconds timeout = forever;
  std::stop_token stop = {};
};

struct waiting_options {
  ring_options ring;
  unsigned spins = 200;  // tries before it sleeps, some microseconds
};

// Waits at `event` until `attempt` returns other than 0, which is returned, or `over` returns an
// error other than 0. Errors: that, ETIMEDOUT, ECANCELED; none of them if `attempt` succeeded when
// it was last asked, after the reason to give up had come. `more` says whether others might succeed
// as well.
template <AtomicsPolicy Atomics, typename Wait, typename Attempt, typename Over, typename More>
result<std::size_t> wait_for(basic_event_count<Atomics, Wait>& event, unsigned spins,
                             const wait_limit& limit, const Attempt& attempt, const Over& over,
                             const More& more) noexcept {
  for (unsigned i = 0; i < spins; ++i) {
    if (const std::size_t n = attempt(); n != 0) return n;
    if (over()) break;  // found again below
    cpu_relax();
  }
  const bool timed = limit.timeout != wait_limit::forever;
  const std::uint64_t start = timed ? Wait::now_ns() : 0;
  const auto allowed =
      static_cast<std::uint64_t>(limit.timeout.count() > 0 ? limit.timeout.count() : 0);
  const std::stop_callback wake(limit.stop, [&event] { event.notify_all(); });
  for (;;) {
    const auto ticket = event.announce();
    // Why to give up is asked before the last look: what is there then is taken.
    const std::error_code ended = over();
    const bool stopped = limit.stop.stop_requested();
    const std::uint64_t elapsed = timed ? Wait::now_ns() - start : 0;
    if (const std::size_t n = attempt(); n != 0) {
      event.withdraw();
      event.pass_on(more);
      return n;
    }
    if (ended || stopped || (timed && elapsed >= allowed)) {
      event.withdraw();
      if (ended) return fail(ended);
      return fail(stopped ? ECANCELED : ETIMEDOUT);
    }
    event.wait(ticket, timed ? allowed - elapsed : UINT64_MAX);
  }
}

template <RingItem T, template <RingItem, AtomicsPolicy> typename Ring,
          AtomicsPolicy Atomics = real_atomics, WaitPolicy<Atomics> Wait = futex_waiting>
class basic_waiting_ring {
 public:
  using ring_type = Ring<T, Atomics>;

  // Errors: those of the ring.
  static result<std::unique_ptr<basic_waiting_ring>> create(const waiting_options& opts) noexcept {
    auto ring = ring_type::create(opts.ring);
    if (!ring) return fail(ring.error());
    std::unique_ptr<basic_waiting_ring> made(new (std::nothrow)
                                                 basic_waiting_ring(std::move(*ring), opts.spins));
    if (made == nullptr) return fail(ENOMEM);
    return made;
  }
  static result<std::unique_ptr<basic_waiting_ring>> create(std::size_t capacity) noexcept {
    return create(waiting_options{.ring = {.capacity = capacity}});
  }
  basic_waiting_ring(const basic_waiting_ring&) = delete;
  basic_waiting_ring& operator=(const basic_waiting_ring&) = delete;

  // ---- Who may push ----

  [[nodiscard]] bool try_push(const T& item) noexcept { return try_push_some({&item, 1}) != 0; }
  // As many as there is room for; how many.
  [[nodiscard]] std::size_t try_push_some(std::span<const T> items) noexcept {
    const std::size_t n = ring_->try_push_some(items);
    if (n != 0) items_.notify(n);
    return n;
  }

  // Waits for room. Errors: ETIMEDOUT; ECANCELED when a stop is requested; EPIPE if the ring is
  // closed. The item is then the caller's as before.
  result<> push(const T& item, const wait_limit& limit = {}) noexcept {
    const result<std::size_t> r = push_some({&item, 1}, limit);
    if (!r) return fail(r.error());
    return {};
  }
  // Waits for room for one at least of `items`; how many it was. Of no items: 0, at once.
  result<std::size_t> push_some(std::span<const T> items, const wait_limit& limit = {}) noexcept {
    if (items.empty()) return 0;
    return wait_for(
        room_, spins_, limit, [&] { return try_push_some(items); },
        [&] { return ring_->closed() ? std::error_code(EPIPE, std::generic_category()) : none(); },
        [&] { return ring_->free_count() != 0; });
  }

  // Of one-to-one rings: the producer only. May be called again.
  void close() noexcept {
    closed_.store(1, std::memory_order_relaxed);  // relaxed: read after a fence; see try_pop_some
    ring_->close();
    items_.notify_all();
    room_.notify_all();
  }

  // ---- Who may pop ----

  [[nodiscard]] bool try_pop(T& item) noexcept { return try_pop_some({&item, 1}) != 0; }
  // As many as there are, at most as many as `items` has; how many.
  [[nodiscard]] std::size_t try_pop_some(std::span<T> items) noexcept {
    const std::size_t n = ring_->try_pop_some(items);
    if (n == 0) return 0;
    room_.notify(n);
    // Who takes the last item of a closed ring tells the others that none will come: they have
    // announced themselves, then seen that the ring was not drained, and notify() above has a
    // fence.
    if (closed_.load(std::memory_order_relaxed) != 0) items_.notify_all();  // relaxed: see above
    return n;
  }

  // Waits for an item. Errors: ETIMEDOUT; ECANCELED when a stop is requested; errc::end_of_stream
  // if the ring is closed and empty.
  result<T> pop(const wait_limit& limit = {}) noexcept {
    T item{};
    const result<std::size_t> r = pop_some({&item, 1}, limit);
    if (!r) return fail(r.error());
    return item;
  }
  // Waits for one item at least, takes as many as there are and fit; how many it was. Into no
  // items: 0, at once.
  result<std::size_t> pop_some(std::span<T> items, const wait_limit& limit = {}) noexcept {
    if (items.empty()) return 0;
    return wait_for(
        items_, spins_, limit, [&] { return try_pop_some(items); },
        [&] { return ring_->drained() ? make_error_code(errc::end_of_stream) : none(); },
        [&] { return !ring_->empty(); });
  }

  // The ring itself, for sizes and statistics. What is pushed or popped past this wakes nobody.
  const ring_type& ring() const noexcept { return *ring_; }

 private:
  static std::error_code none() noexcept { return {}; }

  basic_waiting_ring(std::unique_ptr<ring_type> ring, unsigned spins) noexcept
      : ring_(std::move(ring)), spins_(spins) {}

  const std::unique_ptr<ring_type> ring_;
  const unsigned spins_;
  typename Atomics::template atomic<std::uint32_t> closed_{0};
  basic_event_count<Atomics, Wait> items_;  // who waits for items, as long as the ring has none
  basic_event_count<Atomics, Wait> room_;   // who waits for room
};

template <RingItem T>
using waiting_spsc_ring = basic_waiting_ring<T, basic_spsc_ring>;
template <RingItem T>
using waiting_mpmc_ring = basic_waiting_ring<T, basic_mpmc_ring>;

}  // namespace forebay
