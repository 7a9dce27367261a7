// Eviction: which cached entry goes when room is needed. One interface for all policies, and two
// kinds of entry: page frames in the page cache (frame_eviction.h) and the records of the simulator
// `forebay replay`. What is measured there is the code that runs here.
//
//      hit ─────> uses += 1, at most 3        no lock, no list, no write once it is at 3
//      insert ──> ┌──────────────┐
//                 │ the policy's │ oldest ──> used? another place, and fewer uses
//                 │   queues     │            refused (pinned, dirty)? to the young end
//                 └──────────────┘            taken: freed, perhaps remembered (history)
//
// The policies:
//   clock     one queue; an entry that was used gets another round (FIFO with reinsertion)
//   lru       two: inactive entries that were used become active, and the oldest active ones fall
//             back while they are more than the balance allows (eviction_lists.h)
//   s3_fifo   a small queue that new entries have to get through, a main queue, and a history of
//             what left the small one (s3_fifo.h)
//   adaptive  the same with a small queue whose size follows the load; the default
//
// A policy is a class template over the traits of its entries, and does no locking: its owner's
// lock guards it, the entries' links and their `place`. Only `uses` is touched without the lock.
//
// Sizes are in weight: frames of a page, 1 for a record.
#pragma once

#include <concepts>
#include <cstdint>
#include <optional>
#include <string_view>
#include <type_traits>
#include <utility>

#include "forebay/base/list.h"

namespace forebay {

enum class eviction_policy : std::uint8_t { adaptive, s3_fifo, clock, lru };

inline constexpr eviction_policy all_eviction_policies[] = {
    eviction_policy::adaptive, eviction_policy::s3_fifo, eviction_policy::clock,
    eviction_policy::lru};

constexpr std::string_view to_string(eviction_policy p) noexcept {
  switch (p) {
    case eviction_policy::adaptive:
      return "adaptive";
    case eviction_policy::s3_fifo:
      return "s3-fifo";
    case eviction_policy::clock:
      return "clock";
    case eviction_policy::lru:
      return "lru";
  }
  return "?";
}

// For the user who is to choose one.
inline constexpr std::string_view eviction_policy_names = "adaptive, s3-fifo, clock or lru";

constexpr std::optional<eviction_policy> eviction_policy_named(std::string_view name) noexcept {
  for (const eviction_policy p : all_eviction_policies) {
    if (to_string(p) == name) return p;
  }
  return std::nullopt;
}

// Up to how many uses an entry counts.
inline constexpr unsigned eviction_uses_max = 3;

// What a policy has to know of an entry.
template <typename T>
concept EvictionTraits = requires(typename T::entry& e, unsigned n) {
  typename T::list;                                        // an intrusive_list of entries
  { T::uses(e) } -> std::same_as<unsigned>;                // hits since it was put in or aged
  T::set_uses(e, n);                                       // a hit that comes in between may win
  { T::place(e) } -> std::same_as<std::uint8_t&>;          // which queue it is in; the policy's
  { T::weight(e) } -> std::convertible_to<std::uint32_t>;  // does not change while it is in
  { T::key(e) } -> std::convertible_to<std::uint64_t>;     // what it is, while not being taken
  T::coming(e);  // a hint: it may be taken soon, so what that needs had better be on its way
};

struct eviction_progress {
  std::uint64_t freed = 0;           // weight
  std::uint64_t second_chances = 0;  // entries that were used, and are nearer to their end now
};

// A policy. `take(entry)` frees the entry and returns true, or refuses, and leaves it as it was; it
// is called with the entry on no list.
template <typename P>
concept EvictionPolicy =
    requires(P& p, typename P::entry& e, std::uint64_t n, bool (&take)(typename P::entry&)) {
      requires std::constructible_from<P, std::uint64_t>;  // the largest capacity there will be
      p.set_capacity(n);           // how much there may be now; until told so, the largest
      std::as_const(p).expect(n);  // a hint: an entry of this key will be put in; on any thread
      p.insert(e);                 // that is on no list
      p.erase(e);                  // not by eviction: nothing is remembered
      // The same for the one that is worth least by its place alone; null if there is none.
      { p.pop() } -> std::same_as<typename P::entry*>;
      p.replace(e, e);  // (old, fresh): the second, that is on no list, takes the first one's place
      // Frees up to n, looking at so many entries.
      { p.reclaim(n, 1u, take) } -> std::same_as<eviction_progress>;
      { p.history_bytes() } -> std::same_as<std::uint64_t>;
    };

// A FIFO of entries: a list that knows its weight.
template <EvictionTraits Traits>
class eviction_queue {
 public:
  using entry = typename Traits::entry;

  bool empty() const noexcept { return list_.empty(); }
  std::uint64_t weight() const noexcept { return weight_; }
  std::uint64_t count() const noexcept { return count_; }

  void push(entry& e) noexcept {
    list_.push_front(e);
    weight_ += Traits::weight(e);
    ++count_;
  }
  // The oldest; there is one.
  entry& pop() noexcept {
    entry& e = list_.back();
    list_.erase(e);
    weight_ -= Traits::weight(e);
    --count_;
    return e;
  }
  // Before what has been popped is dealt with, which takes as long as memory does: the next one
  // will have been fetched by then, and so will what it needs, as the call before this one has
  // fetched the entry. The next one, null if there is none.
  const entry* expect_next() noexcept {
    if (list_.empty()) return nullptr;
    auto oldest = --list_.end();
    entry& next = *oldest;
    Traits::coming(next);
    if (oldest != list_.begin()) __builtin_prefetch(&*--oldest, 1);
    return &next;
  }
  void erase(entry& e) noexcept {
    list_.erase(e);
    weight_ -= Traits::weight(e);
    --count_;
  }
  // Of the same weight.
  void replace(entry& old, entry& fresh) noexcept {
    Traits::place(fresh) = Traits::place(old);
    Traits::set_uses(fresh, Traits::uses(old));
    Traits::list::insert_after(old, fresh);
    list_.erase(old);
  }

 private:
  typename Traits::list list_;  // the youngest at the front
  std::uint64_t weight_ = 0;
  std::uint64_t count_ = 0;
};

}  // namespace forebay
