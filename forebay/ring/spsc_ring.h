// A bounded ring from one thread to another: first in, first out, no locked instruction, no index
// that both threads write (ring_slots.h says how).
//
//    producer's line:  | position | found full | closed |        the other side looks here only
//    consumer's line:  | position | found empty |                to tell sizes and statistics
//    slots:            | item, seq | item, seq | item, seq | …
//
// Slots become full in the order of their positions, and free in that order. So the last of n slots
// speaks for all n: a batch costs one look, and a thread that waits for a large one leaves the
// lines alone that the other is writing, but the last. A small one is asked for at its first slot
// as well: its few lines then come in the order in which the processor expects them.
//
// Which thread is the producer, or the consumer, may change, if what makes it change orders the one
// before the other. Either call wastes nothing when it fails: the ring is as it was.
//
// Each position is written by its side only; size() and the statistics may be asked by any thread.
#pragma once

#include "forebay/ring/ring_slots.h"

namespace forebay {

template <RingItem T, AtomicsPolicy Atomics = real_atomics>
class basic_spsc_ring {
 public:
  using slot = ring_slot<T, Atomics>;
  using window = ring_window<slot>;

  // Errors: EINVAL if the capacity is no power of two or 1, errc::too_large above
  // ring_capacity_max, ENOMEM.
  static result<std::unique_ptr<basic_spsc_ring>> create(const ring_options& opts) noexcept {
    result<ring_memory<T, Atomics>> memory = ring_memory<T, Atomics>::create(opts);
    if (!memory) return fail(memory.error());
    std::unique_ptr<basic_spsc_ring> made(
        new (std::nothrow) basic_spsc_ring(std::move(*memory), opts.first_position));
    if (made == nullptr) return fail(ENOMEM);
    return made;
  }
  static result<std::unique_ptr<basic_spsc_ring>> create(std::size_t capacity) noexcept {
    return create(ring_options{.capacity = capacity});
  }
  basic_spsc_ring(const basic_spsc_ring&) = delete;
  basic_spsc_ring& operator=(const basic_spsc_ring&) = delete;

  // ---- The producer ----

  // False if the ring is full or closed. (What is called for each item, or for a few, is inlined
  // whatever the compiler thinks of its size: a call would be a third of its cost.)
  [[nodiscard, gnu::always_inline]] bool try_push(const T& item) noexcept {
    const ring_slots<T, Atomics> slots = slots_;
    const std::uint64_t p = producer_.own();
    if (producer_.closed_by_me() || !slots.is_free(p)) {
      producer_.count_failure();
      return false;
    }
    slots.put(p, item);
    producer_.advance_to(p + 1);
    return true;
  }

  // All of `items`, or false and none of them: also if they are more than the capacity.
  [[nodiscard, gnu::always_inline]] bool try_push_all(std::span<const T> items) noexcept {
    const std::uint64_t p = producer_.own();
    if (items.empty()) return true;
    if (producer_.closed_by_me() || !all_free(p, items.size())) {
      producer_.count_failure();
      return false;
    }
    slots_.put(p, items);
    producer_.advance_to(p + items.size());
    return true;
  }

  // The first ones of `items`, as many as there is room for; how many.
  [[nodiscard]] std::size_t try_push_some(std::span<const T> items) noexcept {
    const std::uint64_t p = producer_.own();
    const std::size_t n = free_from(p, items.size());
    slots_.put(p, items.first(n));
    producer_.advance_to(p + n);
    if (n < items.size()) producer_.count_failure();
    return n;
  }

  // The next free slots, `n` or as many as there are, to write items into. They are the producer's
  // until commit(), and the next reserve() gives the same ones.
  [[nodiscard]] window reserve(std::size_t n) noexcept {
    const std::uint64_t p = producer_.own();
    const std::size_t found = free_from(p, n);
    if (found < n) producer_.count_failure();
    return slots_.window_at(p, found);
  }
  // Pushes what has been written into the first `n` of the slots that reserve() has given last;
  // nothing if the ring has been closed since.
  void commit(std::size_t n) noexcept {
    if (producer_.closed_by_me()) return;
    const std::uint64_t p = producer_.own();
    for (std::size_t i = 0; i < n; ++i) slots_.set_full(p + i);
    producer_.advance_to(p + n);
  }

  // No push succeeds from now on; what is in the ring can be popped.
  void close() noexcept { producer_.close(); }

  // ---- The consumer ----

  // The oldest item. False if the ring is empty; `item` is then as it was, here and below.
  [[nodiscard, gnu::always_inline]] bool try_pop(T& item) noexcept {
    const ring_slots<T, Atomics> slots = slots_;
    const std::uint64_t p = consumer_.own();
    if (!slots.is_full(p)) {
      consumer_.count_failure();
      return false;
    }
    slots.take(p, item);
    consumer_.advance_to(p + 1);
    return true;
  }

  // As many as `items` has, or false and none.
  [[nodiscard, gnu::always_inline]] bool try_pop_all(std::span<T> items) noexcept {
    const std::uint64_t p = consumer_.own();
    if (items.empty()) return true;
    if (!all_full(p, items.size())) {
      consumer_.count_failure();
      return false;
    }
    slots_.take(p, items);
    consumer_.advance_to(p + items.size());
    return true;
  }

  // As many as there are, at most as many as `items` has; how many.
  [[nodiscard]] std::size_t try_pop_some(std::span<T> items) noexcept {
    const std::uint64_t p = consumer_.own();
    const std::size_t n = full_from(p, items.size());
    slots_.take(p, items.first(n));
    consumer_.advance_to(p + n);
    if (n < items.size()) consumer_.count_failure();
    return n;
  }

  // The slots of the oldest items, `n` or as many as there are. They stay in the ring, and the
  // consumer's, until release(); the next peek() gives the same ones.
  [[nodiscard]] window peek(std::size_t n) noexcept {
    const std::uint64_t p = consumer_.own();
    const std::size_t found = full_from(p, n);
    if (found < n) consumer_.count_failure();
    return slots_.window_at(p, found);
  }
  // Pops the first `n` of the items that peek() has shown last.
  void release(std::size_t n) noexcept {
    const std::uint64_t p = consumer_.own();
    for (std::size_t i = 0; i < n; ++i) slots_.set_free(p + i);
    consumer_.advance_to(p + n);
  }

  // ---- Any thread ----

  // True: who looks for items after this sees all that there will be.
  bool closed() const noexcept { return producer_.closed(); }
  // Closed and empty: no pop will find anything any more.
  bool drained() const noexcept { return closed() && empty(); }

  std::size_t capacity() const noexcept { return slots_.capacity(); }
  // Items in the ring. The consumer finds so many at least; the producer finds room for all but so
  // many at least; to others it is a moment's approximation.
  std::size_t size() const noexcept {
    return items_between(consumer_.seen(), producer_.seen(), capacity());
  }
  std::size_t free_count() const noexcept { return capacity() - size(); }
  bool empty() const noexcept { return size() == 0; }

  ring_statistics statistics() const noexcept {
    return {.pushed = producer_.seen() - first_position_,
            .popped = consumer_.seen() - first_position_,
            .found_full = producer_.failures(),
            .found_empty = consumer_.failures()};
  }

 private:
  template <typename Word>
  using atomic = typename Atomics::template atomic<Word>;

  static constexpr std::size_t small_batch = 16;  // items; by measurement, four lines of pointers

  // What one side writes.
  class alignas(no_sharing_bytes) side {
   public:
    explicit side(std::uint64_t position) noexcept : position_(position) {}

    // Of the thread whose side it is.
    std::uint64_t own() const noexcept {
      return position_.load(std::memory_order_relaxed);  // relaxed: nobody else writes it
    }
    void advance_to(std::uint64_t position) noexcept {
      // release: who sees the position finds the slots before it as they are said to be.
      position_.store(position, std::memory_order_release);
    }
    void count_failure() noexcept {
      // relaxed: a statistic, with one writer.
      failures_.store(failures_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    }

    std::uint64_t seen() const noexcept {
      return position_.load(std::memory_order_acquire);  // acquire: pairs with advance_to
    }
    std::uint64_t failures() const noexcept {
      return failures_.load(std::memory_order_relaxed);  // relaxed: a statistic
    }

    // The producer's: no push any more.
    void close() noexcept {
      closed_.store(1, std::memory_order_release);  // release: pairs with closed()
    }
    bool closed_by_me() const noexcept {
      return closed_.load(std::memory_order_relaxed) != 0;  // relaxed: nobody else writes it
    }
    bool closed() const noexcept {
      return closed_.load(std::memory_order_acquire) != 0;  // acquire: pairs with close()
    }

   private:
    atomic<std::uint64_t> position_;  // of the next item
    atomic<std::uint64_t> failures_{0};
    atomic<std::uint32_t> closed_{0};
  };

  basic_spsc_ring(ring_memory<T, Atomics> memory, std::uint64_t first) noexcept
      : memory_(std::move(memory)),
        slots_(memory_.slots()),
        first_position_(first),
        producer_(first),
        consumer_(first) {}

  // Whether `n` slots are free, or full, from p on; n is not 0.
  bool all_free(std::uint64_t p, std::size_t n) const noexcept {
    if (n > capacity() || (n > 1 && n <= small_batch && !slots_.is_free(p))) return false;
    return slots_.is_free(p + n - 1);
  }
  bool all_full(std::uint64_t p, std::size_t n) const noexcept {
    if (n > capacity() || (n > 1 && n <= small_batch && !slots_.is_full(p))) return false;
    return slots_.is_full(p + n - 1);
  }

  // How many slots are free, or full, from p on; at most n.
  std::size_t free_from(std::uint64_t p, std::size_t n) const noexcept {
    if (producer_.closed_by_me()) return 0;
    if (n > capacity()) n = capacity();
    if (n != 0 && all_free(p, n)) return n;
    std::size_t found = 0;
    while (found < n && slots_.is_free(p + found)) ++found;
    return found;
  }
  std::size_t full_from(std::uint64_t p, std::size_t n) const noexcept {
    if (n > capacity()) n = capacity();
    if (n != 0 && all_full(p, n)) return n;
    std::size_t found = 0;
    while (found < n && slots_.is_full(p + found)) ++found;
    return found;
  }

  const ring_memory<T, Atomics> memory_;
  const ring_slots<T, Atomics> slots_;
  const std::uint64_t first_position_;
  side producer_;
  side consumer_;
};

template <RingItem T>
using spsc_ring = basic_spsc_ring<T>;

}  // namespace forebay
