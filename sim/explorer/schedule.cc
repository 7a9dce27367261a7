// The engine's scheduler: who goes on, and who waits for what.
#include <algorithm>
#include <cstdio>

#include "sim/explorer/engine.h"
#include "sim/explorer/orders.h"

namespace forebay::explorer {
namespace {

constexpr unsigned rescues_max = 3;

std::uint32_t bit_of(unsigned thread) noexcept { return std::uint32_t{1} << thread; }

}  // namespace

// One of n ways to go on. In random exploration the first comes in three of four cases if it is the
// usual one: an execution in which every load is stale gets nowhere.
unsigned engine::pick(unsigned n, bool first_is_usual) {
  if (n == 1) return 0;
  if (!random_) return std::min(choices_.choose(n), n - 1);
  const unsigned drawn = first_is_usual && lots_.below(4) != 0 ? 0 : lots_.below(n);
  return choices_.choose(n, drawn);
}

unsigned engine::choose(unsigned n) {
  const unsigned chosen = pick(n, false);
  step(mix(chosen, 11));
  return chosen;
}

void engine::take_turn() {
  if (++steps_ > options_.steps) {
    fail("no end in sight: more operations than options::steps (a livelock?)");
  }
  if (entering_) {
    entering_ = false;
    return;
  }
  go_to(next_thread());
}

void engine::go_to(unsigned thread) {
  if (thread == self_) return;
  self_ = thread;
  fibers_[thread]->switch_to();
}

// The running thread cannot go on.
void engine::give_way() { go_to(next_thread()); }

// The threads that may go on, the running one first; how many. That is only itself where it could
// go on and there is no preemption left.
unsigned engine::alternatives(std::array<std::uint8_t, threads_max>& list) noexcept {
  unsigned n = 0;
  if ((runnable_ & bit_of(self_)) != 0) {
    list[n++] = static_cast<std::uint8_t>(self_);
    if (preemptions_left_ == 0) return n;
  }
  for (unsigned i = 1; i <= program_->threads; ++i) {
    if (i == self_ && (runnable_ & bit_of(i)) != 0) continue;
    const thread_state& t = threads_[i];
    const bool may_time_out = t.waiting == waits_for::wake && t.timed && t.timeouts_left != 0;
    if ((runnable_ & bit_of(i)) != 0 || may_time_out) list[n++] = static_cast<std::uint8_t>(i);
  }
  return n;
}

unsigned engine::next_thread() {
  std::array<std::uint8_t, threads_max> list;
  unsigned n = 0;
  while ((n = alternatives(list)) == 0) {
    if (!unblock_someone()) fail_stuck();
  }
  unsigned chosen = 0;
  if (n > 1) {
    const bool bounded = options_.preemptions != unlimited;
    if (telling_states_apart_ && !choices_.repeats()) {
      const std::uint64_t h = bounded ? mix(hash_, self_) : hash_;
      if (seen_.meet(last_mix(h), std::min(preemptions_left_, seen_states::budget_max))) {
        leave(end::pruned);
      }
    }
    chosen =
        random_ ? choices_.choose(n, draw_thread(list, n)) : std::min(choices_.choose(n), n - 1);
    if (chosen != 0 && bounded && (runnable_ & bit_of(self_)) != 0) --preemptions_left_;
  }
  const unsigned next = list[chosen];
  if ((runnable_ & bit_of(next)) == 0) {  // its time is over
    --threads_[next].timeouts_left;
    ++threads_[next].timeouts;
    threads_[next].timed_out = true;
    unblock(next);
  }
  return next;
}

// By lot: a thread that can go on does so half of the time; or by priorities that change at a few
// random operations (Burckhardt, Kothari, Musuvathi and Nagarakatte, 2010).
unsigned engine::draw_thread(const std::array<std::uint8_t, threads_max>& list, unsigned n) {
  if (!by_priority_) {
    const bool goes_on = list[0] == self_ && (runnable_ & bit_of(self_)) != 0;
    return goes_on && lots_.below(2) == 0 ? 0 : lots_.below(n);
  }
  for (std::size_t i = 0; i < priority_changes_.size(); ++i) {
    if (priority_changes_[i] == steps_) me().priority = static_cast<unsigned>(i);
  }
  unsigned best = 0;
  for (unsigned i = 1; i < n; ++i) {
    if (threads_[list[i]].priority > threads_[list[best]].priority) best = i;
  }
  return best;
}

void engine::block(waits_for what) {
  me().waiting = what;
  runnable_ &= ~bit_of(self_);
  give_way();
}

void engine::unblock(unsigned thread) noexcept {
  threads_[thread].waiting = waits_for::nothing;
  threads_[thread].spin_count = 0;
  runnable_ |= bit_of(thread);
}

void engine::wait_for_change() {
  if (!concurrent_) fail("a loop waits for a change, and no other thread runs");
  block(waits_for::change);
}

void engine::yield() {
  if (!concurrent_) return;
  me().spin_count = 0;  // any change will do
  wait_for_change();
}

// All stores there are become visible to the thread, as they do in a finite time.
void engine::see_everything(unsigned thread) noexcept {
  for (unsigned lane = 0; lane < locations_used_; ++lane) {
    threads_[thread].now.raise(lane, stores_[locations_[lane].last].time);
  }
  step_of(thread, mix(hash_, 16));
}

// When nobody can go on: loops that were taken for endless ones may show that they are not, now
// that they see every store; and time passes for those whose waits are timed.
bool engine::unblock_someone() {
  bool any = false;
  if (rescues_ < rescues_max) {
    for (unsigned i = 1; i <= program_->threads; ++i) {
      if (threads_[i].waiting != waits_for::change) continue;
      see_everything(i);
      unblock(i);
      any = true;
    }
    if (any) ++rescues_;
  }
  if (any) return true;
  for (unsigned i = 1; i <= program_->threads; ++i) {
    thread_state& t = threads_[i];
    if (t.waiting != waits_for::wake || !t.timed) continue;
    t.timeouts_left = 1;
    any = true;
  }
  return any;
}

void engine::fail_stuck() {
  std::array<char, 400> text{};
  std::size_t at = 0;
  for (unsigned i = 1; i <= program_->threads; ++i) {
    const char* what = nullptr;
    switch (threads_[i].waiting) {
      case waits_for::nothing:
      case waits_for::never:
        continue;
      case waits_for::change:
        what = "loops until something changes";
        break;
      case waits_for::lock:
        what = "waits for a lock";
        break;
      case waits_for::wake:
        what = "sleeps";
        break;
    }
    at += static_cast<std::size_t>(std::snprintf(text.data() + at, text.size() - at,
                                                 "%sthread %u %s", at == 0 ? "" : ", ", i, what));
  }
  fail_with("deadlock: %s, and nobody else is left", text.data());
}

// --- locks ---

void engine::make(lock_word& w) noexcept {
  w.name = mix(mix(self_, 13), ++me().made);
  w.history = w.name;
  w.execution = execution_;
  w.owner = threads_max;
  w.left.clear();
}

void engine::lock(lock_word& w) {
  point();
  if (w.execution != execution_) fail("a lock is used that was not made in this execution");
  while (w.owner != threads_max) {
    if (w.owner == self_) fail("a thread takes a lock that it holds");
    me().wants = &w;
    block(waits_for::lock);
  }
  take(w);
}

bool engine::try_lock(lock_word& w) {
  point();
  if (w.owner != threads_max) {
    step(mix(w.history, 9));
    return false;
  }
  take(w);
  return true;
}

void engine::take(lock_word& w) {
  w.owner = static_cast<std::uint8_t>(self_);
  me().now.join(w.left);
  step(w.history);
  if (trace_.on()) trace_.add({.what = "lock", .thread = self_});
}

void engine::unlock(lock_word& w) {
  if (w.owner != self_) fail("a thread gives back a lock that it does not hold");
  w.owner = threads_max;
  w.left.copy(me().now);
  tick();
  w.history = mix(w.history, event_name());
  step(10);
  me().spin_count = 0;
  for (unsigned i = 1; i <= program_->threads; ++i) {
    if (threads_[i].waiting == waits_for::lock && threads_[i].wants == &w) unblock(i);
  }
  if (trace_.on()) trace_.add({.what = "unlock", .thread = self_});
}

// --- futexes ---
//
// Both calls have a full barrier between what the caller did before and the look at the word or at
// the queue of sleepers (kernel/futex/waitwake.c); that is a sequentially consistent fence.

bool engine::futex_wait(word& w, std::uint64_t expected, bool timed, std::source_location where) {
  point();
  if (!concurrent_) fail("a futex wait, and no other thread runs");
  location& l = touch(w, where);
  step(mix(hash_of_common(), 5));
  join_common();
  const std::int16_t from = me().now.time_in(w.lane);
  std::array<std::uint16_t, 64> candidates;
  unsigned n = 0;
  for (std::uint16_t s = l.last; s != no_index && stores_[s].time >= from && n < candidates.size();
       s = stores_[s].before) {
    candidates[n++] = s;
  }
  const std::uint16_t s = candidates[pick(n, true)];
  me().now.raise(w.lane, stores_[s].time);
  step(mix(l.name, stores_[s].name));
  const bool sleeps = stores_[s].value == expected;
  if (trace_.on()) {
    trace_.add({.what = sleeps ? "sleep" : "no sleep",
                .thread = self_,
                .location = w.lane,
                .value = stores_[s].value,
                .from = stores_[s].name,
                .file = where.file_name(),
                .line = where.line()});
  }
  if (!sleeps) return true;
  thread_state& t = me();
  t.sleeps_on = w.lane;
  t.timed = timed;
  t.timed_out = false;
  block(waits_for::wake);
  step(t.timed_out ? 12 : 13);
  if (trace_.on()) trace_.add({.what = t.timed_out ? "time over" : "awake", .thread = self_});
  return !t.timed_out;
}

unsigned engine::futex_wake(word& w, unsigned count, std::source_location where) {
  point();
  step(mix(hash_of_common(), 5));
  join_common();
  unsigned woken = 0;
  for (; woken < count && w.lane != no_index; ++woken) {
    std::array<std::uint8_t, threads_max> sleepers;
    unsigned n = 0;
    for (unsigned i = 1; i <= program_->threads; ++i) {
      const thread_state& t = threads_[i];
      if (t.waiting == waits_for::wake && t.sleeps_on == w.lane) {
        sleepers[n++] = static_cast<std::uint8_t>(i);
      }
    }
    if (n == 0) break;
    const unsigned thread = sleepers[pick(n, false)];
    step(mix(thread, 14));
    unblock(thread);
  }
  me().spin_count = 0;
  if (trace_.on()) {
    trace_.add({.what = "wake",
                .thread = self_,
                .location = w.lane,
                .value = woken,
                .file = where.file_name(),
                .line = where.line()});
  }
  return woken;
}

}  // namespace forebay::explorer
