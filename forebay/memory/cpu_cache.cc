#include "forebay/memory/cpu_cache.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <new>
#include <thread>
#include <utility>

#include "forebay/base/assert.h"
#include "forebay/base/cache_line.h"
#include "forebay/base/stats.h"
#include "forebay/memory/closable_place.h"
#include "forebay/os/cpu.h"

namespace forebay {

// A line of its own for each.
struct alignas(no_sharing_bytes) cpu_cache::slot_lock {
  mutex lock;
};

// Says that the call may have a magazine in its hands: who does not see it sees what the call left
// behind.
class cpu_cache::hands {
 public:
  explicit hands(cpu_cache& c) noexcept : cache_(c) { cache_.in_hands_.begin(); }
  ~hands() { cache_.in_hands_.end(); }
  hands(const hands&) = delete;
  hands& operator=(const hands&) = delete;

 private:
  cpu_cache& cache_;
};

namespace {

// How often a call that finds no item looks again because others have some in their hands. They are
// done in a microsecond unless they are kept from running, which the later looks allow for.
constexpr unsigned looks_max = 60;
constexpr unsigned looks_in_haste = 20;
constexpr std::chrono::microseconds look_pause{100};

// For who has the magazine alone.
void set_word(item_stack& m, std::uint64_t word) noexcept {
  m.word.store(word, std::memory_order_relaxed);  // relaxed: handing it on publishes it
}

// Asks for the lines of a magazine that another CPU had, all at once: one after the other they
// would cost more than the exchange saves.
template <bool ForWriting>
void prefetch(const item_stack* m, std::uint32_t items) noexcept {
  constexpr std::uint32_t items_of_line = cache_line_bytes / sizeof(std::uint32_t);
  for (std::uint32_t i = 0; i < items; i += items_of_line) {
    __builtin_prefetch(m->items() + i, ForWriting ? 1 : 0);
  }
}

std::uint32_t slots_wanted(bool per_cpu) noexcept {
  // With fewer slots than threads, threads that share one meet at its lock.
  return per_cpu ? cpu_limit() : std::bit_ceil(2 * cpu_limit());
}

}  // namespace

cpu_cache::cpu_cache(free_list& backing, const options& opts) noexcept
    : backing_(backing),
      per_cpu_(opts.restartable_sequences && rseq_usable()),
      magazine_items_(std::clamp(opts.magazine_items, 1u, item_stack::max_capacity)),
      depot_magazines_(opts.depot_magazines),
      slot_count_(slots_wanted(per_cpu_)),
      slots_(new(std::nothrow) cpu_slot[slot_count_]),
      locks_(per_cpu_ ? nullptr : new(std::nothrow) slot_lock[slot_count_]),
      refill_items_(magazine_items_) {
  // Without memory for the slots there are no caches: every call goes to the backing list.
  if (!slots_ || (!per_cpu_ && !locks_)) slot_count_ = 0;
  cpu_slot_count_ = per_cpu_ ? slot_count_ : 0;
  for (std::uint32_t i = 0; i < slot_count_; ++i) load(i, &unloaded_);
}

cpu_cache::~cpu_cache() {
  close();
  const scoped_lock hold(reclaim_lock_);
  for (std::uint32_t i = 0; i < slot_count_; ++i) {
    if (slots_[i].taken != &unloaded_) to_depot(slots_[i].taken);
  }
  while (item_stack* m = empty_from_depot())
    ::operator delete(m, std::align_val_t{no_sharing_bytes});
}

std::uint32_t cpu_cache::slot_number() const noexcept {
#if FOREBAY_HAVE_RSEQ
  if (per_cpu_) return cpu_stack::cpu();
#endif
  return slot_count_ == 0 ? none : thread_number() & (slot_count_ - 1);
}

// --- the loaded magazine ---

std::size_t cpu_cache::pop_loaded(std::span<std::uint32_t> items) noexcept {
  const auto wanted =
      static_cast<std::uint32_t>(std::min<std::size_t>(items.size(), item_stack::max_capacity));
#if FOREBAY_HAVE_RSEQ
  if (per_cpu_) return cpu_stack::pop_some(slots_.get(), slot_count_, items.data(), wanted);
#endif
  const std::uint32_t slot = slot_number();
  if (slot >= slot_count_) return 0;
  const scoped_lock hold(locks_[slot].lock);
  // acquire, here and in push_loaded: pairs with load(), which is called without the slot's lock.
  item_stack& m = *slots_[slot].loaded.load(std::memory_order_acquire);
  const std::uint32_t n = std::min(m.count(), wanted);
  std::copy_n(m.items() + m.count() - n, n, items.data());
  // relaxed: the slot's lock orders the words of its magazine.
  set_word(m, m.word.load(std::memory_order_relaxed) + n * item_stack::one_pop);
  return n;
}

std::size_t cpu_cache::push_loaded(std::span<const std::uint32_t> items) noexcept {
  const auto wanted =
      static_cast<std::uint32_t>(std::min<std::size_t>(items.size(), item_stack::max_capacity));
#if FOREBAY_HAVE_RSEQ
  if (per_cpu_) return cpu_stack::push_some(slots_.get(), slot_count_, items.data(), wanted);
#endif
  const std::uint32_t slot = slot_number();
  if (slot >= slot_count_) return 0;
  const scoped_lock hold(locks_[slot].lock);
  item_stack& m = *slots_[slot].loaded.load(std::memory_order_acquire);  // acquire: see pop_loaded
  const std::uint32_t n = std::min(m.capacity - m.count(), wanted);
  std::copy_n(items.data(), n, m.items() + m.count());
  set_word(m, m.word.load(std::memory_order_relaxed) + n);  // relaxed: see pop_loaded
  return n;
}

bool cpu_cache::replace(std::uint32_t slot, item_stack* expected,
                        item_stack* replacement) noexcept {
#if FOREBAY_HAVE_RSEQ
  if (per_cpu_) return cpu_stack::replace(slots_.get(), slot, expected, replacement);
#endif
  const scoped_lock hold(locks_[slot].lock);
  // acquire: for who reads the count without the lock; release: publishes the replacement's items.
  return slots_[slot].loaded.compare_exchange_strong(expected, replacement,
                                                     std::memory_order_acq_rel);
}

item_stack* cpu_cache::unload(std::uint32_t slot) noexcept {
  if (per_cpu_) return slots_[slot].loaded.exchange(&closed_);
  const scoped_lock hold(locks_[slot].lock);
  return slots_[slot].loaded.exchange(&closed_);
}

void cpu_cache::load(std::uint32_t slot, item_stack* m) noexcept {
  // release: publishes the magazine to the CPU (or threads) of the slot.
  slots_[slot].loaded.store(m, std::memory_order_release);
}

// --- pop and push ---

std::size_t cpu_cache::pop(std::span<std::uint32_t> items) noexcept {
  std::size_t n = 0;
  while (n < items.size()) {
    n += pop_loaded(items.subspan(n));
    if (n == items.size()) break;
    const std::uint32_t item = pop_slow();
    if (item == none) break;
    items[n++] = item;
  }
  return n;
}

void cpu_cache::push(std::span<const std::uint32_t> items) noexcept {
  const std::size_t n = push_loaded(items);
  if (n < items.size()) push_slow(items.subspan(n));
}

std::uint32_t cpu_cache::pop_slow() noexcept {
  std::uint32_t item = none;
  if (!per_cpu_ && pop_loaded({&item, 1}) == 1) return item;
  add_to(slow_pops_);
  item = pop_magazine();
  return item != none ? item : pop_when_dry();
}

// An item of this CPU's magazine, which is exchanged for another one if it is empty.
std::uint32_t cpu_cache::pop_magazine() noexcept {
  std::uint32_t item = none;
  for (;;) {
    const std::uint32_t number = slot_number();
    if (number >= slot_count_) return none;
    cpu_slot& slot = slots_[number];
    // acquire: pairs with load() and replace(), so that the count below is the magazine's own.
    item_stack* const old = slot.loaded.load(std::memory_order_acquire);
    if (old == &closed_) return none;
    if (old->count() != 0) {  // another thread of this slot was here
      if (pop_loaded({&item, 1}) == 1) return item;
      continue;
    }
    const hands full_handed(*this);
    item_stack* const full = magazine_with_items(slot);
    if (full == nullptr) return none;
    // This thread's item is taken before anybody else can see the magazine.
    item = full->items()[full->count() - 1];
    // relaxed: this thread has the magazine alone.
    set_word(*full, full->word.load(std::memory_order_relaxed) + item_stack::one_pop);
    if (replace(number, old, full)) {
      retire(slot, old);
    } else {
      to_depot(full);
    }
    return item;
  }
}

void cpu_cache::push_slow(std::span<const std::uint32_t> items) noexcept {
  while (!items.empty()) {
    const std::uint32_t number = slot_number();
    item_stack* old = &closed_;
    // acquire: see pop_slow.
    if (number < slot_count_) old = slots_[number].loaded.load(std::memory_order_acquire);
    if (old == &closed_) return backing_.give(items);
    items = items.subspan(push_loaded(items));
    if (items.empty()) return;
    const hands full_handed(*this);
    item_stack* const fresh = magazine_with_room(slots_[number]);
    if (fresh == nullptr) return backing_.give(items);
    const std::size_t n = std::min<std::size_t>(items.size(), magazine_items_);
    std::copy_n(items.data(), n, fresh->items());
    set_word(*fresh, n);
    items = items.subspan(n);
    if (replace(number, old, fresh)) {
      retire(slots_[number], old);
    } else {
      to_depot(fresh);
    }
  }
}

std::uint32_t cpu_cache::pop_directly() noexcept {
  std::uint32_t item = none;
  if (backing_.take({&item, 1}) == 0) return none;
  add_to(direct_pops_);
  return item;
}

// This CPU and the depot have nothing, or there is no slot: another CPU may have some. If no call
// had a magazine in its hands during the look and nobody popped an item, then items can only have
// been added to places that were found empty, so at the start of the look none was free.
std::uint32_t cpu_cache::pop_when_dry() noexcept {
  for (unsigned look = 0; look < looks_max; ++look) {
    const std::uint64_t hands_before = in_hands_.look();
    const std::uint64_t pops_before = loaded_pops();
    std::uint32_t item = pop_directly();
    if (item != none) return item;
    if (cached() != 0) {
      item = take_back();
      if (item != none) return item;
    } else if (loaded_pops() == pops_before && in_hands_.none_since(hands_before)) {
      return none;
    }
    if (look < looks_in_haste) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(look_pause);
    }
  }
  return none;
}

std::uint64_t cpu_cache::loaded_pops() const noexcept {
  std::uint64_t n = 0;
  for (std::uint32_t i = 0; i < slot_count_; ++i) {
    n += slots_[i].loaded.load(std::memory_order_acquire)->pops();  // acquire: see cached()
  }
  return n;
}

// Takes everything back, keeps one item for the caller.
std::uint32_t cpu_cache::take_back() noexcept {
  std::uint32_t item = none;
  const hands full_handed(*this);
  item_stack* const taken = take_all_and_go_on();
  if (taken != nullptr) {
    item = taken->items()[taken->count() - 1];
    set_word(*taken, taken->count() - 1);
    add_to(direct_pops_);
  }
  drain_list(taken);
  return item;
}

// --- where magazines come from and go ---

item_stack* cpu_cache::magazine_with_items(cpu_slot& slot) noexcept {
  // acquire: pairs with retire().
  item_stack* spare = slot.spare.exchange(nullptr, std::memory_order_acquire);
  if (spare != nullptr && spare->count() != 0) return spare;
  item_stack* const full = full_from_depot();
  if (full == nullptr) {
    if (spare == nullptr) spare = empty_from_depot();
    if (spare == nullptr) spare = new_magazine();
    if (spare == nullptr) return nullptr;
    if (refill(*spare)) return spare;
  }
  if (spare != nullptr) to_depot(spare);
  return full;
}

bool cpu_cache::refill(item_stack& m) noexcept {
  // relaxed: a hint.
  const std::uint32_t wanted = refill_items_.load(std::memory_order_relaxed);
  const std::size_t n = backing_.take({m.items(), wanted});
  if (n == 0) return false;
  set_word(m, n);
  add_to(refills_);
  if (n == wanted && wanted < magazine_items_) {
    refill_items_.store(std::min(2 * wanted, magazine_items_),
                        std::memory_order_relaxed);  // relaxed: a hint
  }
  return true;
}

item_stack* cpu_cache::magazine_with_room(cpu_slot& slot) noexcept {
  // acquire: pairs with retire().
  item_stack* spare = slot.spare.exchange(nullptr, std::memory_order_acquire);
  if (spare != nullptr && spare->count() == 0) return spare;
  if (spare != nullptr) to_depot(spare);
  item_stack* const empty = empty_from_depot();
  if (empty == nullptr) return new_magazine();
  prefetch<true>(empty, empty->capacity);
  return empty;
}

item_stack* cpu_cache::new_magazine() noexcept {
  const std::size_t bytes =
      round_up(sizeof(item_stack) + magazine_items_ * sizeof(std::uint32_t), no_sharing_bytes);
  void* memory = ::operator new(bytes, std::align_val_t{no_sharing_bytes}, std::nothrow);
  if (memory == nullptr) return nullptr;
  item_stack* m = new (memory) item_stack;
  m->capacity = magazine_items_;
  add_to(magazines_);
  return m;
}

// The magazine that was loaded before becomes the slot's spare one: a CPU that goes to and fro over
// the edge of one magazine exchanges the two.
void cpu_cache::retire(cpu_slot& slot, item_stack* m) noexcept {
  if (m == &unloaded_) return;
  fold_pops(*m);
  // Either close() finds the magazine there or this finds the place closed.
  const displaced<item_stack> out = put_unless_closed(slot.spare, closing_, m);
  if (out.before != nullptr) to_depot(out.before);
  if (out.after != nullptr) to_depot(out.after);
}

void cpu_cache::fold_pops(item_stack& m) noexcept {
  add_to(pops_, m.pops());
  set_word(m, m.count());
}

void cpu_cache::to_depot(item_stack* m) noexcept {
  fold_pops(*m);
  {
    const scoped_lock hold(depot_lock_);
    // The flag is read under the lock: close() sets it before it takes the lock to empty the depot.
    const bool keep = full_count_ < depot_magazines_ && !closing_.load();
    if (m->count() != 0 && keep) {
      m->next = full_;
      full_ = m;
      ++full_count_;
      add_to(depot_items_, m->count());
      return;
    }
  }
  if (m->count() != 0) drain(*m);
  const scoped_lock hold(depot_lock_);
  m->next = empty_;
  empty_ = m;
}

item_stack* cpu_cache::full_from_depot() noexcept {
  const scoped_lock hold(depot_lock_);
  item_stack* m = full_;
  if (m == nullptr) return nullptr;
  full_ = m->next;
  --full_count_;
  prefetch<false>(m, m->count());
  add_to(depot_items_, -std::uint64_t{m->count()});
  return m;
}

item_stack* cpu_cache::empty_from_depot() noexcept {
  const scoped_lock hold(depot_lock_);
  item_stack* m = empty_;
  if (m != nullptr) empty_ = m->next;
  return m;
}

void cpu_cache::drain(item_stack& m) noexcept {
  add_to(drains_);
  backing_.give({m.items(), m.count()});
  set_word(m, 0);
}

// Of magazines linked by next; how many items.
std::size_t cpu_cache::drain_list(item_stack* magazines) noexcept {
  std::size_t n = 0;
  while (magazines != nullptr) {
    item_stack* m = std::exchange(magazines, magazines->next);
    n += m->count();
    if (m->count() != 0) drain(*m);
    to_depot(m);
  }
  return n;
}

// --- taking back ---

// Afterwards every slot has closed_ loaded and what it had is in `taken`.
void cpu_cache::unload_all() noexcept {
  for (std::uint32_t i = 0; i < slot_count_; ++i) slots_[i].taken = unload(i);
  if (!per_cpu_) return;
  for (bool again = true; again;) {
    rseq_fence();
    again = false;
    for (std::uint32_t i = 0; i < slot_count_; ++i) {
      // A replace() that was at its last instruction has overwritten the exchange: what was taken
      // is its caller's, and what it has loaded is to be taken instead.
      if (slots_[i].loaded.load() == &closed_) continue;
      slots_[i].taken = unload(i);
      again = true;
    }
  }
}

void cpu_cache::load_all() noexcept {
  for (std::uint32_t i = 0; i < slot_count_; ++i) load(i, slots_[i].taken);
}

// After unload_all(): the magazines with items of the slots and the depot, linked by next, for the
// caller to drain when it has let go of the lock.
item_stack* cpu_cache::take_all() noexcept {
  item_stack* all = nullptr;
  std::uint64_t n = 0;
  const auto add = [&](item_stack* m) {
    n += m->count();
    m->next = all;
    all = m;
  };
  for (std::uint32_t i = 0; i < slot_count_; ++i) {
    if (slots_[i].taken != &unloaded_ && slots_[i].taken->count() != 0) {
      fold_pops(*slots_[i].taken);
      add(std::exchange(slots_[i].taken, &unloaded_));
    }
    if (item_stack* spare = slots_[i].spare.exchange(nullptr)) {
      spare->count() != 0 ? add(spare) : to_depot(spare);
    }
  }
  while (item_stack* m = full_from_depot()) add(m);
  const auto share = static_cast<std::uint32_t>(
      std::min<std::uint64_t>(n / (std::uint64_t{2} * slot_count_), magazine_items_));
  refill_items_.store(std::max(share, 1u), std::memory_order_relaxed);  // relaxed: a hint
  return all;
}

// The magazines with items, linked by next, which are the caller's; the slots stay in use.
item_stack* cpu_cache::take_all_and_go_on() noexcept {
  const scoped_lock hold(reclaim_lock_);
  if (closes_ != 0 || slot_count_ == 0) return nullptr;
  add_to(reclaims_);
  unload_all();
  item_stack* const taken = take_all();
  load_all();
  return taken;
}

std::size_t cpu_cache::reclaim() noexcept {
  const hands full_handed(*this);
  return drain_list(take_all_and_go_on());
}

void cpu_cache::close() noexcept {
  const hands full_handed(*this);
  item_stack* taken = nullptr;
  {
    const scoped_lock hold(reclaim_lock_);
    if (closes_++ != 0 || slot_count_ == 0) return;
    closing_.store(true);
    unload_all();
    taken = take_all();
  }
  drain_list(taken);
}

void cpu_cache::open() noexcept {
  const scoped_lock hold(reclaim_lock_);
  FOREBAY_ASSERT(closes_ != 0);
  if (--closes_ != 0) return;
  closing_.store(false);
  load_all();
}

// --- statistics ---

std::uint64_t cpu_cache::cached() const noexcept {
  std::uint64_t n = value_of(depot_items_);
  for (std::uint32_t i = 0; i < slot_count_; ++i) {
    // acquire: what is read of the magazine was written before it was put there.
    const item_stack* loaded = slots_[i].loaded.load(std::memory_order_acquire);
    if (loaded != nullptr) n += loaded->count();
    const item_stack* spare = slots_[i].spare.load(std::memory_order_acquire);  // acquire: the same
    if (spare != nullptr) n += spare->count();
  }
  return n;
}

cpu_cache_statistics cpu_cache::statistics() const noexcept {
  cpu_cache_statistics s;
  s.pops = value_of(pops_) + value_of(direct_pops_) + loaded_pops();
  s.slow_pops = value_of(slow_pops_);
  s.refills = value_of(refills_);
  s.drains = value_of(drains_);
  s.reclaims = value_of(reclaims_);
  s.cached = cached();
  s.magazines = value_of(magazines_);
  s.per_cpu = per_cpu_;
  return s;
}

}  // namespace forebay
