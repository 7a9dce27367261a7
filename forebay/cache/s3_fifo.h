// S3-FIFO, and the same with a small queue that adapts: scan-resistant, and nothing but FIFO
// queues.
//
//   insert ─> [ window | small ] ─oldest─> used twice? ─> [ main ] ─oldest─> used? another round,
//      │                                   no: taken                         │      one use less
//      │                                     └─> history <── (key)           no: taken
//      └──────── remembered by the history ────────────────> [ main ]
//
// Most entries are used once (a scan; the tail of any skewed load) and leave through the small
// queue without having cost anything that is used. One that comes back soon after is known to the
// history and goes into main at once. (Yang, Zhang, Qiu, Yue, Vigfusson, "FIFO queues are all you
// need for cache eviction", SOSP '23.)
//
// s3_fifo: the small queue is a tenth of the capacity, and the history as long as main.
//
// adaptive: how large the small queue should be differs from load to load, from a hundredth (loops)
// to half (recency is all that counts). Two more histories, of a twentieth of the capacity, say
// what would have been a hit if the queue that it left had been longer by that: what has just left
// small and is wanted again makes small larger, what has just left main makes it smaller. (ARC's
// idea, Megiddo and Modha, FAST '03, at the margin of the two queues; the S3-FIFO paper has a
// variant of the kind. Unlike both, what left main and comes back is new again: see
// docs/eviction.md.)
//
// And it has a window: all the uses in the first moments of an entry's way, while the next half
// hundredth of the capacity comes in, count as one. A page that is read in pieces of 512 bytes is
// used eight times by one scan. (Correlated references, as in LRU-K, O'Neil et al. 1993, and 2Q.)
//
// Invariants: an entry's place names the queue it is in. Window and small together are the small
// queue. target_ is between the tuning's least and most shares of the capacity.
#pragma once

#include <algorithm>
#include <array>

#include "forebay/cache/eviction.h"
#include "forebay/cache/eviction_history.h"

namespace forebay {

// Shares of the capacity but where said otherwise.
struct s3_fifo_tuning {
  double small = 0.1;        // the small queue, to begin with
  double small_least = 0.1;  // and what it adapts between
  double small_most = 0.1;
  double history = 0.9;
  double edge_history = 0;  // each of the two that it adapts by
  std::uint32_t step = 0;   // by how much for a hit in one of these, in the entry's weight
  double window = 0;        // at the young end of the small queue
};

inline constexpr s3_fifo_tuning s3_fifo_fixed{};
inline constexpr s3_fifo_tuning s3_fifo_adaptive{.small = 0.1,
                                                 .small_least = 0.01,
                                                 .small_most = 0.5,
                                                 .history = 0.9,
                                                 .edge_history = 0.05,
                                                 .step = 2,
                                                 .window = 0.005};

template <EvictionTraits Traits, s3_fifo_tuning Tuning>
class s3_fifo_policy {
 public:
  using entry = typename Traits::entry;

  explicit s3_fifo_policy(std::uint64_t capacity_max) noexcept
      : history_(share(Tuning.history, capacity_max)),
        small_edge_(share(Tuning.edge_history, capacity_max)),
        main_edge_(share(Tuning.edge_history, capacity_max)) {
    set_capacity(capacity_max);
  }

  // The small queue starts anew at its first size.
  void set_capacity(std::uint64_t capacity) noexcept {
    history_.set_capacity(share(Tuning.history, capacity));
    small_edge_.set_capacity(share(Tuning.edge_history, capacity));
    main_edge_.set_capacity(share(Tuning.edge_history, capacity));
    window_ = share(Tuning.window, capacity);
    target_least_ = share(Tuning.small_least, capacity);
    target_most_ = share(Tuning.small_most, capacity);
    set_target(share(Tuning.small, capacity));
  }

  // The other two histories are small.
  void expect(std::uint64_t key) const noexcept { history_.prefetch(key); }

  void insert(entry& e) noexcept {
    const std::uint64_t key = Traits::key(e);
    Traits::set_uses(e, 0);
    const bool came_back = history_.recall(key);
    if constexpr (Tuning.step != 0) adapt(key, Traits::weight(e));
    // While nothing had to leave yet, the small queue stays what it will be then.
    const bool filling = !full_ && small_weight() >= target_;
    if (came_back || filling) {
      put(e, in_main);
      return;
    }
    if constexpr (Tuning.window == 0) {
      put(e, in_small);
    } else {
      put(e, in_window);
      while (queue(in_window).weight() > window_) leave_window();
    }
  }

  void erase(entry& e) noexcept { queue(place_of(e)).erase(e); }
  entry* pop() noexcept {
    for (const where w : {in_small, in_window, in_main}) {
      if (!queue(w).empty()) return &queue(w).pop();
    }
    return nullptr;
  }

  void replace(entry& old, entry& fresh) noexcept { queue(place_of(old)).replace(old, fresh); }

  template <typename Take>
  eviction_progress reclaim(std::uint64_t wanted, unsigned scan_limit, Take take) noexcept {
    full_ = true;
    eviction_progress done;
    refusals refused{};
    for (unsigned i = 0; i < scan_limit && done.freed < wanted; ++i) {
      const where from = next(refused);
      if (from == nowhere) break;
      entry& e = queue(from).pop();
      const entry* const coming = queue(from).expect_next();
      if (coming != nullptr && from != in_main) history_.prefetch(Traits::key(*coming));
      const unsigned uses = Traits::uses(e);
      if (uses >= (from == in_main ? 1u : uses_to_stay)) {
        Traits::set_uses(e, from == in_main ? std::min(uses, eviction_uses_max) - 1 : 0);
        put(e, in_main);
        if constexpr (requires { Traits::kept(e); }) Traits::kept(e);
        ++done.second_chances;
        continue;
      }
      const std::uint64_t key = Traits::key(e);
      const std::uint32_t weight = Traits::weight(e);
      if (!take(e)) {
        put(e, from);
        ++refused[from];
        continue;
      }
      done.freed += weight;
      remember(key, from);
    }
    return done;
  }

  std::uint64_t history_bytes() const noexcept {
    return history_.bytes() + small_edge_.bytes() + main_edge_.bytes();
  }
  // What the small queue should weigh.
  std::uint64_t small_target() const noexcept { return target_; }

 private:
  enum where : std::uint8_t { in_window, in_small, in_main, nowhere };
  using refusals = std::array<std::uint64_t, 3>;  // entries that were not to be had, in one call

  static constexpr unsigned uses_to_stay = 2;
  // While writers are faster than their device, all of the small queue is dirty: to go through it
  // for each page that is wanted would cost more than the page.
  static constexpr unsigned patience = 32;

  static constexpr std::uint64_t share(double of, std::uint64_t whole) noexcept {
    return static_cast<std::uint64_t>(of * static_cast<double>(whole));
  }

  static where place_of(entry& e) noexcept { return static_cast<where>(Traits::place(e)); }
  eviction_queue<Traits>& queue(where w) noexcept { return queues_[w]; }
  std::uint64_t small_weight() const noexcept {
    return queues_[in_window].weight() + queues_[in_small].weight();
  }
  void put(entry& e, where w) noexcept {
    Traits::place(e) = w;
    queue(w).push(e);
  }
  void leave_window() noexcept {
    entry& e = queue(in_window).pop();
    Traits::set_uses(e, std::min(Traits::uses(e), 1u));
    put(e, in_small);
  }

  // From where the next one is to go: small while it is as large as it should be, else main; the
  // other one if everything there was refused, or much and less there; nowhere if all was in both.
  where next(const refusals& refused) noexcept {
    if (queue(in_small).count() <= refused[in_small] && !queue(in_window).empty()) leave_window();
    const bool small_has = queue(in_small).count() > refused[in_small];
    const bool main_has = queue(in_main).count() > refused[in_main];
    if (!small_has && !main_has) return nowhere;
    if (!small_has) return in_main;
    if (!main_has) return in_small;
    const where first = small_weight() >= target_ ? in_small : in_main;
    const where other = first == in_small ? in_main : in_small;
    return refused[first] >= patience && refused[other] < refused[first] ? other : first;
  }

  void remember(std::uint64_t key, where from) noexcept {
    if (from == in_main) {
      if constexpr (Tuning.step != 0) main_edge_.remember(key);
      return;
    }
    history_.remember(key);
    if constexpr (Tuning.step != 0) small_edge_.remember(key);
  }

  void adapt(std::uint64_t key, std::uint32_t weight) noexcept {
    const std::uint64_t step = std::uint64_t{Tuning.step} * weight;
    if (small_edge_.recall(key)) {
      set_target(target_ + step);
    } else if (main_edge_.recall(key)) {
      set_target(target_ - std::min(target_, step));
    }
  }

  void set_target(std::uint64_t wish) noexcept {
    target_ = std::clamp(wish, target_least_, target_most_);
  }

  eviction_queue<Traits> queues_[3];
  eviction_history history_;     // left the small queue
  eviction_history small_edge_;  // the same, only the latest
  eviction_history main_edge_;   // left main of late
  std::uint64_t target_least_ = 0;
  std::uint64_t target_most_ = 0;
  std::uint64_t target_ = 0;
  std::uint64_t window_ = 0;
  bool full_ = false;  // something had to leave
};

template <EvictionTraits Traits>
using plain_s3_fifo = s3_fifo_policy<Traits, s3_fifo_fixed>;
template <EvictionTraits Traits>
using adaptive_s3_fifo = s3_fifo_policy<Traits, s3_fifo_adaptive>;

}  // namespace forebay
