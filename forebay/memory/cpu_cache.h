// Per-CPU caches of free items before a free list: magazines and a depot (Bonwick and Adams, 2001).
//
//    CPU 0: loaded, spare      CPU 1: loaded, spare      …       pop() and push() work here
//            \                        /
//             depot: full magazines, empty magazines             whole magazines travel
//                         |
//                  backing free list                             items travel, a magazine at a time
//
// A magazine is an item_stack (os/rseq.h). pop() and push() of the common case are one restartable
// sequence on the loaded one: no locked instruction, no line that another CPU writes. When it is
// empty (full), it is exchanged for the spare one or a full (empty) one of the depot, so what one
// CPU frees and another allocates travels by the magazine. When the backing list is dry too, what
// all CPUs and the depot hold is taken back (reclaim), so no item that lies in a cache is out of
// reach, though all threads of that CPU sleep.
//
// Where restartable sequences cannot be had (rseq_usable() is false, or the option says so), the
// slots belong to threads instead of CPUs, several threads to a slot, each slot with a lock. All
// else is the same.
//
// The cache does not know what items mean and never calls a destructor: before it goes, every item
// must be in it or in the backing list (close() takes them there).
//
// Who guards what: the loaded magazine of a slot belongs to its CPU, by restartable sequences (or
// the slot's lock); `spare` is exchanged atomically, whoever gets the magazine owns it; depot_lock_
// guards the depot; reclaim_lock_ makes one thread at a time load or unload closed_, and guards
// `taken`. A magazine lies in exactly one of these places or is in the hands of one call.
//
// Lock order: reclaim_lock_, then a slot's lock or depot_lock_. The backing list is called with
// none of them held.
//
// Not for signal handlers, nor for the child of a fork() of a process with several threads.
#pragma once

#include <memory>

#include "forebay/memory/free_list.h"
#include "forebay/memory/in_transit.h"
#include "forebay/os/mutex.h"
#include "forebay/os/rseq.h"

namespace forebay {

struct cpu_cache_statistics {
  std::uint64_t pops = 0;  // items handed out, from wherever they came
  // Calls that did not find enough in the CPU's magazine, failed ones too.
  std::uint64_t slow_pops = 0;
  std::uint64_t refills = 0;   // magazines filled from the backing list
  std::uint64_t drains = 0;    // magazines emptied into it
  std::uint64_t reclaims = 0;  // times that all CPUs' items were taken back
  std::uint64_t cached = 0;    // items in all magazines now; exact at rest
  std::uint64_t magazines = 0;
  bool per_cpu = false;  // restartable sequences are in use
};

class alignas(no_sharing_bytes) cpu_cache {
 public:
  // No item has this number.
  static constexpr std::uint32_t none = UINT32_MAX;

  struct options {
    std::uint32_t magazine_items = 120;  // 1 to item_stack::max_capacity
    std::uint32_t depot_magazines = 64;  // at most so many full ones wait in the depot
    bool restartable_sequences = true;   // false: as where there are none
  };

  cpu_cache(free_list& backing, const options& opts) noexcept;
  explicit cpu_cache(free_list& backing) noexcept : cpu_cache(backing, options{}) {}
  // Gives all that it holds to the backing list.
  ~cpu_cache();
  cpu_cache(const cpu_cache&) = delete;
  cpu_cache& operator=(const cpu_cache&) = delete;

  // A free item. `none` when there was a moment at which no item was free. While other calls have
  // free items in their hands, it looks again for some milliseconds before it gives up. After
  // close() the backing list alone decides. Any thread.
  std::uint32_t pop() noexcept {
#if FOREBAY_HAVE_RSEQ
    std::uint32_t item;
    if (cpu_stack::pop(slots_.get(), cpu_slot_count_, item)) [[likely]]
      return item;
#endif
    return pop_slow();
  }

  // Takes an item back. Any thread; never fails.
  void push(std::uint32_t item) noexcept {
#if FOREBAY_HAVE_RSEQ
    if (cpu_stack::push(slots_.get(), cpu_slot_count_, item)) [[likely]]
      return;
#endif
    push_slow({&item, 1});
  }

  // The same for many: as many as there are, up to items.size(); how many. What is behind them in
  // `items` is left in disorder.
  std::size_t pop(std::span<std::uint32_t> items) noexcept;
  void push(std::span<const std::uint32_t> items) noexcept;

  // Gives everything that lies in the caches to the backing list; how many items. The caches stay
  // in use, and what calls in progress hold stays with them. Any thread.
  std::size_t reclaim() noexcept FOREBAY_EXCLUDES(reclaim_lock_);

  // The same, and from now on every item goes to and comes from the backing list directly, until
  // open(). When close() returns, each item that is not in use is in the backing list or in the
  // hands of a call in progress, which will give it there. For owners that must see each item come
  // back. Calls nest.
  void close() noexcept FOREBAY_EXCLUDES(reclaim_lock_);
  void open() noexcept FOREBAY_EXCLUDES(reclaim_lock_);

  // Exact when no thread is inside; a moment's approximation otherwise.
  cpu_cache_statistics statistics() const noexcept;
  // Items in the caches: the same, cheaper.
  std::uint64_t cached() const noexcept;

 private:
  struct slot_lock;
  class hands;

  std::uint32_t slot_number() const noexcept;
  std::uint32_t pop_slow() noexcept;
  void push_slow(std::span<const std::uint32_t> items) noexcept;
  std::size_t pop_loaded(std::span<std::uint32_t> items) noexcept;
  std::size_t push_loaded(std::span<const std::uint32_t> items) noexcept;
  std::uint32_t pop_magazine() noexcept;
  std::uint32_t pop_directly() noexcept;
  std::uint32_t pop_when_dry() noexcept FOREBAY_EXCLUDES(reclaim_lock_);
  std::uint32_t take_back() noexcept FOREBAY_EXCLUDES(reclaim_lock_);
  std::uint64_t loaded_pops() const noexcept;
  bool replace(std::uint32_t slot, item_stack* expected, item_stack* replacement) noexcept;
  item_stack* unload(std::uint32_t slot) noexcept;
  void load(std::uint32_t slot, item_stack* m) noexcept;

  item_stack* magazine_with_items(cpu_slot& slot) noexcept;
  item_stack* magazine_with_room(cpu_slot& slot) noexcept;
  item_stack* new_magazine() noexcept;
  bool refill(item_stack& m) noexcept;
  void retire(cpu_slot& slot, item_stack* m) noexcept;
  void fold_pops(item_stack& m) noexcept;
  void to_depot(item_stack* m) noexcept;
  item_stack* full_from_depot() noexcept;
  item_stack* empty_from_depot() noexcept;
  void drain(item_stack& m) noexcept;
  std::size_t drain_list(item_stack* magazines) noexcept;

  void unload_all() noexcept FOREBAY_REQUIRES(reclaim_lock_);
  void load_all() noexcept FOREBAY_REQUIRES(reclaim_lock_);
  item_stack* take_all() noexcept FOREBAY_REQUIRES(reclaim_lock_);
  item_stack* take_all_and_go_on() noexcept FOREBAY_EXCLUDES(reclaim_lock_);

  // Read by every call, written at the start only (but closing_). The class is aligned so that
  // nothing that is written often shares their lines.
  free_list& backing_;
  const bool per_cpu_;
  std::atomic<bool> closing_{false};  // written under reclaim_lock_: no magazine may keep items
  const std::uint32_t magazine_items_;
  const std::uint32_t depot_magazines_;
  std::uint32_t slot_count_;      // a power of two where slots belong to threads
  std::uint32_t cpu_slot_count_;  // of slots that belong to CPUs: slot_count_, or 0
  std::unique_ptr<cpu_slot[]> slots_;
  std::unique_ptr<slot_lock[]> locks_;  // of the slots, where they belong to threads

  // Stand-ins for a magazine, without items and without room: of a slot that never had one, and of
  // one that must not have one now.
  item_stack unloaded_;
  item_stack closed_;

  alignas(no_sharing_bytes) mutable mutex reclaim_lock_;
  unsigned closes_ FOREBAY_GUARDED_BY(reclaim_lock_) = 0;
  // How many items a refill asks for: few when the caches had to be emptied for want of items, and
  // twice as many each time until it is a magazine again. Otherwise CPUs that are short of items
  // would strip one another. Any thread; a hint.
  std::atomic<std::uint32_t> refill_items_;

  alignas(no_sharing_bytes) mutable mutex depot_lock_;
  item_stack* full_ FOREBAY_GUARDED_BY(depot_lock_) = nullptr;   // those with items, linked by next
  item_stack* empty_ FOREBAY_GUARDED_BY(depot_lock_) = nullptr;  // those without
  std::uint32_t full_count_ FOREBAY_GUARDED_BY(depot_lock_) = 0;
  std::atomic<std::uint64_t> depot_items_{0};  // written under depot_lock_
  // Calls that may have a magazine with items in their hands. Who finds no item looks again if
  // there were some.
  in_transit in_hands_;

  // Statistics of the slow paths: any thread, each orders nothing.
  std::atomic<std::uint64_t> pops_{0};  // of magazines that are not loaded any more
  std::atomic<std::uint64_t> direct_pops_{0};
  std::atomic<std::uint64_t> slow_pops_{0};
  std::atomic<std::uint64_t> refills_{0};
  std::atomic<std::uint64_t> drains_{0};
  std::atomic<std::uint64_t> reclaims_{0};
  std::atomic<std::uint64_t> magazines_{0};
};

}  // namespace forebay
