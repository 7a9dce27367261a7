// A bounded ring between any number of threads: first in, first out (Vyukov's bounded queue, 2010,
// with batches and slots to write and read in place).
//
//    producers' line:  | position, closed |       a compare-and-swap claims positions to push
//    consumers' line:  | position |               and to pop
//    slots:            | item, seq | item, seq | item, seq | …            (ring_slots.h)
//
// A thread looks whether the slots from its side's position on are ready, claims them by moving the
// position past them, uses them, and makes each ready for the other side. Producers never look at
// the consumers' position, nor these at theirs. A claimed slot is nobody else's: a thread that is
// stopped in the middle of a push keeps those from popping that come to its slot, and they find the
// ring empty; nobody waits inside. Every item goes once; items of one batch stay together, and two
// pushes of which one ends before the other begins keep their order.
//
// "Full" and "empty" are a moment's truth: with other threads inside, a push may find the ring full
// that has just been popped from. A push that happened before the pop is never missed, unless
// another one before it is still under way.
//
// The positions have 64 bits and do not come round; so the compare-and-swap knows that nobody else
// has claimed anything since the look. They order nothing: what one thread wrote is handed to
// another by the slot.
#pragma once

#include <utility>

#include "forebay/base/spin.h"
#include "forebay/ring/ring_slots.h"

namespace forebay {

template <RingItem T, AtomicsPolicy Atomics = real_atomics>
class basic_mpmc_ring {
 public:
  using slot = ring_slot<T, Atomics>;
  using window = ring_window<slot>;

  // Slots that reserve() or take() has given: the caller's until finish() or the destructor, which
  // hands them on. Move-only, for one thread at a time, and not for long: everybody who comes to
  // these slots meanwhile finds the ring full or empty. The ring must outlive it.
  class claim {
   public:
    claim() = default;
    claim(claim&& other) noexcept
        : ring_(std::exchange(other.ring_, nullptr)),
          position_(other.position_),
          window_(std::exchange(other.window_, {})),
          pushes_(other.pushes_) {}
    claim& operator=(claim&& other) noexcept {
      if (this != &other) {
        finish();
        ring_ = std::exchange(other.ring_, nullptr);
        position_ = other.position_;
        window_ = std::exchange(other.window_, {});
        pushes_ = other.pushes_;
      }
      return *this;
    }
    ~claim() { finish(); }

    std::size_t size() const noexcept { return window_.size(); }
    bool empty() const noexcept { return window_.empty(); }
    slot& operator[](std::size_t i) const noexcept { return window_[i]; }
    const window& slots() const noexcept { return window_; }

    // The items written can be popped from now on; the slots of items that were read are free.
    void finish() noexcept {
      for (std::size_t i = 0; i < window_.size(); ++i) {
        if (pushes_) {
          ring_->slots_.set_full(position_ + i);
        } else {
          ring_->slots_.set_free(position_ + i);
        }
      }
      window_ = {};
    }

   private:
    friend class basic_mpmc_ring;
    claim(basic_mpmc_ring& ring, std::uint64_t position, window w, bool pushes) noexcept
        : ring_(&ring), position_(position), window_(w), pushes_(pushes) {}

    basic_mpmc_ring* ring_ = nullptr;
    std::uint64_t position_ = 0;
    window window_;
    bool pushes_ = false;
  };

  // Errors: EINVAL if the capacity is no power of two or 1, errc::too_large above
  // ring_capacity_max, ENOMEM.
  static result<std::unique_ptr<basic_mpmc_ring>> create(const ring_options& opts) noexcept {
    result<ring_memory<T, Atomics>> memory = ring_memory<T, Atomics>::create(opts);
    if (!memory) return fail(memory.error());
    std::unique_ptr<basic_mpmc_ring> made(
        new (std::nothrow) basic_mpmc_ring(std::move(*memory), opts.first_position));
    if (made == nullptr) return fail(ENOMEM);
    return made;
  }
  static result<std::unique_ptr<basic_mpmc_ring>> create(std::size_t capacity) noexcept {
    return create(ring_options{.capacity = capacity});
  }
  basic_mpmc_ring(const basic_mpmc_ring&) = delete;
  basic_mpmc_ring& operator=(const basic_mpmc_ring&) = delete;

  // ---- All of it: any thread ----

  // False if the ring is full or closed.
  [[nodiscard]] bool try_push(const T& item) noexcept { return try_push_all({&item, 1}); }

  // All of `items`, with none of others between them, or false and none of them: also if they are
  // more than the capacity.
  [[nodiscard]] bool try_push_all(std::span<const T> items) noexcept {
    if (items.empty()) return true;
    const claimed c = claim_slots<free_slots, true>(items.size());
    if (c.count != 0) slots_.put(c.position, items);
    return c.count != 0;
  }

  // The first ones of `items`, as many as there is room for; how many.
  [[nodiscard]] std::size_t try_push_some(std::span<const T> items) noexcept {
    if (items.empty()) return 0;
    const claimed c = claim_slots<free_slots, false>(items.size());
    slots_.put(c.position, items.first(c.count));
    return c.count;
  }

  // Free slots to write items into, `n` or as many as there are. Each must be written.
  [[nodiscard]] claim reserve(std::size_t n) noexcept {
    if (n == 0) return {};
    const claimed c = claim_slots<free_slots, false>(n);
    return {*this, c.position, slots_.window_at(c.position, c.count), true};
  }

  // The oldest item. False if the ring is empty; `item` is then as it was, here and below.
  [[nodiscard]] bool try_pop(T& item) noexcept { return try_pop_all({&item, 1}); }

  // As many as `items` has, which were pushed one after the other, or false and none.
  [[nodiscard]] bool try_pop_all(std::span<T> items) noexcept {
    if (items.empty()) return true;
    const claimed c = claim_slots<full_slots, true>(items.size());
    if (c.count != 0) slots_.take(c.position, items);
    return c.count != 0;
  }

  // As many as there are, at most as many as `items` has; how many.
  [[nodiscard]] std::size_t try_pop_some(std::span<T> items) noexcept {
    if (items.empty()) return 0;
    const claimed c = claim_slots<full_slots, false>(items.size());
    slots_.take(c.position, items.first(c.count));
    return c.count;
  }

  // The slots of the oldest items, `n` or as many as there are, to be read in place: popped as far
  // as others are concerned.
  [[nodiscard]] claim take(std::size_t n) noexcept {
    if (n == 0) return {};
    const claimed c = claim_slots<full_slots, false>(n);
    return {*this, c.position, slots_.window_at(c.position, c.count), false};
  }

  // No push that begins after this succeeds; what is in the ring can be popped.
  void close() noexcept {
    std::uint64_t p = pushed_.load(std::memory_order_relaxed);  // relaxed: a guess, verified below
    while ((p & closed_bit) == 0) {
      // release: pairs with closed(). The failure's is relaxed: retried.
      if (pushed_.compare_exchange_weak(p, p | closed_bit, std::memory_order_release,
                                        std::memory_order_relaxed)) {  // relaxed: see above
        return;
      }
    }
  }
  bool closed() const noexcept {
    // acquire: who sees it sees what was done before close().
    return (pushed_.load(std::memory_order_acquire) & closed_bit) != 0;
  }
  // Closed, and each item has gone to a consumer: no pop will find anything any more. False as long
  // as a push or pop may be under way that began before close().
  bool drained() const noexcept {
    // acquire, relaxed: as closed(); and the last position of all, once reached, is not left.
    const std::uint64_t p = pushed_.load(std::memory_order_acquire);
    return (p & closed_bit) != 0 &&
           popped_.load(std::memory_order_relaxed) == (p & ~closed_bit);  // relaxed: see above
  }

  std::size_t capacity() const noexcept { return slots_.capacity(); }
  // Items pushed and not popped, those under way included: exact at rest.
  std::size_t size() const noexcept {
    // relaxed, both: a moment's approximation.
    const std::uint64_t popped = popped_.load(std::memory_order_relaxed);
    const std::uint64_t pushed = pushed_.load(std::memory_order_relaxed);  // relaxed: see above
    return items_between(popped, pushed & ~closed_bit, capacity());
  }
  std::size_t free_count() const noexcept { return capacity() - size(); }
  bool empty() const noexcept { return size() == 0; }

  ring_statistics statistics() const noexcept {
    // relaxed, all: statistics.
    return {.pushed = (pushed_.load(std::memory_order_relaxed) & ~closed_bit) -
                      first_position_,                                            // see above
            .popped = popped_.load(std::memory_order_relaxed) - first_position_,  // relaxed: above
            .found_full = found_full_.load(std::memory_order_relaxed),            // relaxed: above
            .found_empty = found_empty_.load(std::memory_order_relaxed)};         // relaxed: above
  }

 private:
  template <typename Word>
  using atomic = typename Atomics::template atomic<Word>;
  using slots_type = ring_slots<T, Atomics>;

  static constexpr std::uint64_t closed_bit = std::uint64_t{1} << 63;

  // The two sides of a ring: whose position, which slots it wants, where a failure is counted.
  struct free_slots {
    static bool ready(const slots_type& s, std::uint64_t p) noexcept { return s.is_free(p); }
    static atomic<std::uint64_t>& position(basic_mpmc_ring& r) noexcept { return r.pushed_; }
    static atomic<std::uint64_t>& failures(basic_mpmc_ring& r) noexcept { return r.found_full_; }
  };
  struct full_slots {
    static bool ready(const slots_type& s, std::uint64_t p) noexcept { return s.is_full(p); }
    static atomic<std::uint64_t>& position(basic_mpmc_ring& r) noexcept { return r.popped_; }
    static atomic<std::uint64_t>& failures(basic_mpmc_ring& r) noexcept { return r.found_empty_; }
  };

  struct claimed {
    std::uint64_t position = 0;
    std::size_t count = 0;
  };

  basic_mpmc_ring(ring_memory<T, Atomics> memory, std::uint64_t first) noexcept
      : memory_(std::move(memory)),
        slots_(memory_.slots()),
        first_position_(first),
        pushed_(first),
        popped_(first) {}

  // `wanted` slots, or without All as many as are ready, at least one; none and a failure counted
  // if they are not there.
  template <typename Side, bool All>
  claimed claim_slots(std::size_t wanted) noexcept {
    atomic<std::uint64_t>& position = Side::position(*this);
    // relaxed, here and below: only the compare-and-swap decides, and slots order the items.
    std::uint64_t p = position.load(std::memory_order_relaxed);
    back_off pause;
    while ((p & closed_bit) == 0) {
      const std::size_t n = ready_from<Side, All>(p, wanted);
      if (n == 0) {
        // Others have been here meanwhile, or it is so.
        const std::uint64_t now = position.load(std::memory_order_relaxed);  // relaxed: see above
        if (now == p) break;
        p = now;
        continue;
      }
      // relaxed: see above
      if (position.compare_exchange_weak(p, p + n, std::memory_order_relaxed,
                                         std::memory_order_relaxed)) {  // relaxed: see above
        if (n < wanted) count_failure<Side>();
        return {.position = p, .count = n};
      }
      pause.wait();
    }
    count_failure<Side>();
    return {};
  }

  // How many slots are ready from p on. For all or none, the last one is asked early: it is the one
  // that comes last as a rule, and the lines before it are left to those who use them.
  template <typename Side, bool All>
  std::size_t ready_from(std::uint64_t p, std::size_t wanted) const noexcept {
    if (!Side::ready(slots_, p)) return 0;
    if (All && (wanted > capacity() || !Side::ready(slots_, p + wanted - 1))) return 0;
    if (wanted > capacity()) wanted = capacity();
    std::size_t n = 1;
    while (n < wanted && Side::ready(slots_, p + n)) ++n;
    return All && n < wanted ? 0 : n;
  }

  template <typename Side>
  void count_failure() noexcept {
    Side::failures(*this).fetch_add(1, std::memory_order_relaxed);  // relaxed: a statistic
  }

  const ring_memory<T, Atomics> memory_;
  const slots_type slots_;
  const std::uint64_t first_position_;
  // The position of the next item to be pushed, with closed_bit, and to be popped.
  alignas(no_sharing_bytes) atomic<std::uint64_t> pushed_;
  alignas(no_sharing_bytes) atomic<std::uint64_t> popped_;
  alignas(no_sharing_bytes) atomic<std::uint64_t> found_full_{0};
  atomic<std::uint64_t> found_empty_{0};
};

template <RingItem T>
using mpmc_ring = basic_mpmc_ring<T>;

}  // namespace forebay
