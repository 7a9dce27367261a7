// Stacks of 32-bit items, one to a CPU, changed by restartable sequences (rseq(2)).
//
//    slots[cpu].loaded -> item_stack | word: pops << 16 | count | capacity | items … |
//
// A restartable sequence is a few instructions that end in one store. If the thread is preempted,
// moved or signalled before that store, the kernel sends it back to the start; so on one CPU the
// sequences of different threads never interleave, without a locked instruction or a shared cache
// line. Each operation here ends in the store that makes it happen.
//
// The word of a stack holds the number of items in its low 16 bits and counts the pops since the
// stack was loaded in the others, so that statistics cost nothing: a pop adds 2^16 - 1.
//
// From another CPU a stack can be taken away: exchange `loaded` for another stack, then
// rseq_fence(). After the fence every sequence that may have seen the old one has ended or starts
// anew. A replace() that was in its last instruction may have overwritten the exchange: look at
// `loaded` again.
//
// Not for code that may be unloaded: a thread keeps the address of its last sequence's descriptor,
// and the kernel reads it. A shared library that contains this must be linked with -z nodelete.
//
// Usable on x86-64 where glibc (2.35 and later) has registered the threads and membarrier(2) knows
// MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ; not under valgrind and not in builds with the thread
// sanitizer, which know nothing of either. rseq_usable() tells; if it is false nothing else here
// may be called.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include "forebay/base/cache_line.h"
#include "forebay/base/sanitizer.h"

namespace forebay {

// Lies in memory that has room for `capacity` items behind it.
struct item_stack {
  static constexpr std::uint64_t one_pop =
      0xffff;  // added to the word: one pop more, one item less
  static constexpr std::uint32_t max_capacity = 0xffff;

  std::atomic<std::uint64_t> word{0};
  std::uint32_t capacity = 0;
  std::uint32_t unused = 0;
  item_stack* next = nullptr;  // belongs to who has the stack while it is not loaded

  std::uint32_t* items() noexcept { return reinterpret_cast<std::uint32_t*>(this + 1); }
  const std::uint32_t* items() const noexcept {
    return reinterpret_cast<const std::uint32_t*>(this + 1);
  }
  // relaxed: the owner's own value, or a moment's for a statistic.
  std::uint32_t count() const noexcept { return word.load(std::memory_order_relaxed) & 0xffff; }
  std::uint64_t pops() const noexcept { return word.load(std::memory_order_relaxed) >> 16; }
};

static_assert(sizeof(item_stack) == 24);

// What a CPU has. All but `loaded` belongs to the user.
struct alignas(no_sharing_bytes) cpu_slot {
  std::atomic<item_stack*> loaded{nullptr};  // never null once in use
  std::atomic<item_stack*> spare{nullptr};
  item_stack* taken = nullptr;
};

static_assert(sizeof(cpu_slot) == 128);

// Whether all this works here; the first call registers with membarrier(2). Any thread.
bool rseq_usable() noexcept;

// Returns when every restartable sequence of this process that was running when it was called has
// been committed or sent back, and all its stores are seen by the caller.
void rseq_fence() noexcept;

#if !FOREBAY_TSAN && defined(__x86_64__) && !defined(__ILP32__) && __has_include(<sys/rseq.h>)
#define FOREBAY_HAVE_RSEQ 1
#else
#define FOREBAY_HAVE_RSEQ 0
#endif

namespace cpu_stack {

#if FOREBAY_HAVE_RSEQ
// The CPU of the calling thread, at least 2^31 if it has none (a thread that glibc does not know).
inline std::uint32_t cpu() noexcept;

// Takes the last item of the stack of this CPU. False if it is empty, or there is no slot for this
// CPU.
inline bool pop(cpu_slot* slots, std::uint32_t slot_count, std::uint32_t& item) noexcept;

// A sequence moves no more than this many items, so that it has a good chance to end: it starts
// anew each time the thread is interrupted.
inline constexpr std::uint32_t max_some = 256;

// Takes up to `wanted` items, at most max_some, into `to`; how many. What is behind them in `to`
// may be overwritten.
inline std::uint32_t pop_some(cpu_slot* slots, std::uint32_t slot_count, std::uint32_t* to,
                              std::uint32_t wanted) noexcept;

// Puts an item onto the stack of this CPU. False if it is full, or there is no slot for this CPU.
inline bool push(cpu_slot* slots, std::uint32_t slot_count, std::uint32_t item) noexcept;

// Puts as many of `from` as there is room for, at most max_some; how many.
inline std::uint32_t push_some(cpu_slot* slots, std::uint32_t slot_count, const std::uint32_t* from,
                               std::uint32_t wanted) noexcept;

// Loads `replacement` in place of `expected` if the caller still runs on `cpu` and that is what is
// loaded there; then `expected` is the caller's alone. False changes nothing.
inline bool replace(cpu_slot* slots, std::uint32_t cpu, item_stack* expected,
                    item_stack* replacement) noexcept;

// For cpu_locked (os/cpu_lock.h): makes this CPU's slot busy, if it is neither busy nor closed, and
// returns where it lies; null changes nothing. Slots are `Stride` bytes apart.
template <std::size_t Stride>
inline void* try_lock(void* slots, std::uint32_t slot_count,
                      std::integral_constant<std::size_t, Stride> stride) noexcept;

#endif

}  // namespace cpu_stack
}  // namespace forebay

#if FOREBAY_HAVE_RSEQ
#include "forebay/os/rseq_x86_64.h"
#endif
