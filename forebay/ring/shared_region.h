// What the rings in shared memory have in common: the header of a region, and a side.
//
//      ┌ header ─────────┬ first side's words ┬ second side's words ┬ entries … ┐
//      │ magic, version, │ position, consumed │ the same            │           │
//      │ kind, sizes     │ closed, event      │                     │           │
//      └─────────────────┴────────────────────┴─────────────────────┴───────────┘
//
// The first side makes the ring and writes the header; the second one reads each of its words once
// when it attaches, checks them and works with its copies ever after. A side writes its own words
// and reads the other's, but for the bell. Each lies on lines of its own.
//
// All that both can reach is words of the atomics policy: the other process may change any of them
// at any time, so a word is loaded once, and the copy is checked before it is used. A check that
// fails is this side's fault(): from then on every call fails with it, and nothing more is read or
// written. What this side must not lose is its own memory, not shared.
//
// Positions run freely through 32 bits and are taken modulo the number of entries, a power of two
// up to 2^15. They begin anywhere (`start`), so that a ring can take up where another one ended.
//
// A side belongs to one thread at a time.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <new>
#include <span>
#include <system_error>
#include <utility>

#include "forebay/base/cache_line.h"
#include "forebay/ring/event_index.h"

namespace forebay {

// Of the region's first byte, in either process.
inline constexpr std::size_t shared_region_alignment = no_sharing_bytes;
inline constexpr std::uint32_t shared_ring_entries_max = 1u << 15;

enum class shared_ring_kind : std::uint32_t { descriptor_ring = 1, queue_pair = 2 };

// A region's header as plain values.
struct shared_ring_shape {
  shared_ring_kind kind = shared_ring_kind::descriptor_ring;
  std::uint32_t entries = 0;   // of the ring, or of the submission queue
  std::uint32_t entries2 = 0;  // of the completion queue
  std::uint32_t start = 0;     // first position
  std::uint64_t bytes = 0;     // of the whole region
};

template <AtomicsPolicy Atomics>
struct alignas(no_sharing_bytes) shared_ring_header {
  template <typename T>
  using atomic = typename Atomics::template atomic<T>;
  static constexpr std::uint32_t magic_value = 0x79616234;  // "4bay"
  static constexpr std::uint32_t version_value = 1;

  atomic<std::uint32_t> magic{0};
  atomic<std::uint32_t> version{0};
  atomic<std::uint32_t> kind{0};
  atomic<std::uint32_t> entries{0};
  atomic<std::uint32_t> entries2{0};
  atomic<std::uint32_t> start{0};
  atomic<std::uint64_t> bytes{0};
};

// What one side writes (but for the bell, which the other side adds to).
template <AtomicsPolicy Atomics>
struct alignas(no_sharing_bytes) shared_side_words {
  typename Atomics::template atomic<std::uint32_t> position{0};  // up to where it has published
  typename Atomics::template atomic<std::uint32_t> consumed{0};  // up to where it has read
  typename Atomics::template atomic<std::uint32_t> closed{0};    // not 0: it sends no more
  event_words<Atomics> event;                                    // what it waits for
};

inline result<> check_entries(std::uint32_t entries) noexcept {
  if (entries == 0) return fail(ring_errc::too_few_entries);
  if (!std::has_single_bit(entries)) return fail(ring_errc::no_power_of_two);
  if (entries > shared_ring_entries_max) return fail(ring_errc::too_many_entries);
  return {};
}

inline result<> check_region(std::span<std::byte> region, std::size_t bytes) noexcept {
  if (!is_aligned(reinterpret_cast<std::uintptr_t>(region.data()), shared_region_alignment)) {
    return fail(ring_errc::region_misaligned);
  }
  if (region.size() < bytes) return fail(ring_errc::region_too_small);
  return {};
}

// The objects of a region: made by the first side, found by the second.
template <typename T>
T* make_in(std::span<std::byte> region, std::size_t at, std::size_t count = 1) noexcept {
  T* const first = reinterpret_cast<T*>(region.data() + at);
  for (std::size_t i = 0; i < count; ++i) new (region.data() + at + i * sizeof(T)) T;
  return std::launder(first);
}
template <typename T>
T* find_in(std::span<std::byte> region, std::size_t at) noexcept {
  return std::launder(reinterpret_cast<T*>(region.data() + at));
}

template <AtomicsPolicy Atomics>
void write_shape(shared_ring_header<Atomics>& h, const shared_ring_shape& shape) noexcept {
  // relaxed, all: the region goes to the other side after it has been made, by what orders memory
  // (a descriptor that is sent, a thread that is started).
  constexpr auto relaxed = std::memory_order_relaxed;
  h.version.store(shared_ring_header<Atomics>::version_value, relaxed);
  h.kind.store(static_cast<std::uint32_t>(shape.kind), relaxed);
  h.entries.store(shape.entries, relaxed);
  h.entries2.store(shape.entries2, relaxed);
  h.start.store(shape.start, relaxed);
  h.bytes.store(shape.bytes, relaxed);
  h.magic.store(shared_ring_header<Atomics>::magic_value, relaxed);
}

// One copy of the header of a region that the other side made, checked but for `bytes`, which the
// caller compares with what the entries take. Errors: ring_errc.
template <AtomicsPolicy Atomics>
result<shared_ring_shape> read_shape(std::span<std::byte> region, shared_ring_kind kind) noexcept {
  using header = shared_ring_header<Atomics>;
  if (auto r = check_region(region, sizeof(header)); !r) return fail(r.error());
  const header& h = *find_in<header>(region, 0);
  // relaxed, all: as in write_shape.
  constexpr auto relaxed = std::memory_order_relaxed;
  if (h.magic.load(relaxed) != header::magic_value) return fail(ring_errc::bad_magic);
  if (h.version.load(relaxed) != header::version_value) return fail(ring_errc::bad_version);
  if (h.kind.load(relaxed) != static_cast<std::uint32_t>(kind)) return fail(ring_errc::bad_kind);
  const shared_ring_shape shape{.kind = kind,
                                .entries = h.entries.load(relaxed),
                                .entries2 = h.entries2.load(relaxed),
                                .start = h.start.load(relaxed),
                                .bytes = h.bytes.load(relaxed)};
  if (auto r = check_entries(shape.entries); !r) return fail(r.error());
  if (shape.bytes > region.size()) return fail(ring_errc::region_too_small);
  return shape;
}

// How a side has talked to the other.
struct shared_side_statistics {
  std::uint64_t entries = 0;    // published
  std::uint64_t doorbells = 0;  // times that any were: entries / doorbells is the batch
  std::uint64_t bells = 0;      // of those, the ones that had to wake the other side
  std::uint64_t sleeps = 0;     // times that this side slept
};

// One side: its words, the other's, and how it waits.
template <AtomicsPolicy Atomics, typename Waiter>
class shared_side {
 public:
  using words = shared_side_words<Atomics>;
  static_assert(PeerWaiter<Waiter, typename Atomics::template atomic<std::uint32_t>>);

  shared_side(words& own, words& other, std::uint32_t start, Waiter waiter) noexcept
      : own_(&own), other_(&other), told_(start), waiter_(std::move(waiter)) {}

  words& own() noexcept { return *own_; }
  const words& other() const noexcept { return *other_; }

  // Everything before `now` has been published: wakes the other side if it waits for that.
  void tell(std::uint32_t now) noexcept {
    if (now == told_) return;
    statistics_.entries += now - told_;
    ++statistics_.doorbells;
    if (ring_bell_if_wanted(other_->event, waiter_, told_, now)) ++statistics_.bells;
    told_ = now;
  }

  // Waits until ready() is true or the other side has closed. Errors: fault(), ETIMEDOUT,
  // errc::end_of_stream, ring_errc::peer_gone.
  template <typename Ready>
  result<> wait(std::uint32_t wanted, std::uint64_t timeout_ns, Ready ready) noexcept {
    if (fault_) return fail(fault_);
    auto r = wait_for_event(own_->event, waiter_, wanted, timeout_ns, statistics_.sleeps,
                            [&]() noexcept { return ready() || other_closed(); });
    if (!r) {
      if (r.error() == ring_errc::peer_gone) fault_ = r.error();
      return r;
    }
    // What it published before it closed comes first.
    if (!ready()) return fail(errc::end_of_stream);
    return {};
  }

  void close() noexcept {
    // release: who sees it sees everything that was published before.
    own_->closed.store(1, std::memory_order_release);
    ring_bell(other_->event, waiter_);
  }
  bool other_closed() const noexcept {
    return other_->closed.load(std::memory_order_acquire) != 0;  // acquire: pairs with close
  }

  // Sets what is wrong with the other side, for good, and returns it.
  std::unexpected<std::error_code> set_fault(ring_errc e) noexcept {
    fault_ = make_error_code(e);
    return std::unexpected(fault_);
  }
  std::error_code fault() const noexcept { return fault_; }
  const shared_side_statistics& statistics() const noexcept { return statistics_; }

 private:
  words* own_;
  words* other_;
  std::uint32_t told_;  // up to where the other side has been told
  Waiter waiter_;
  std::error_code fault_;
  shared_side_statistics statistics_;
};

// Before anybody waits: a position that is passed last.
template <AtomicsPolicy Atomics>
void begin_side(shared_side_words<Atomics>& side, std::uint32_t start) noexcept {
  // relaxed, all: as in write_shape.
  side.position.store(start, std::memory_order_relaxed);
  side.consumed.store(start, std::memory_order_relaxed);          // relaxed: see above
  side.event.wanted.store(start - 1, std::memory_order_relaxed);  // relaxed: see above
}

}  // namespace forebay
