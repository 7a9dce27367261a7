#include "forebay/memory/shrinker.h"

#include <algorithm>

namespace forebay {

shrinker::~shrinker() { FOREBAY_ASSERT(!link_.linked()); }

shrinker_statistics shrinker::statistics() noexcept {
  return {.name = options_.name,
          .seeks = options_.seeks,
          .count_bytes = count_bytes(),
          .calls = calls_.load(std::memory_order_relaxed),            // relaxed: a statistic
          .scanned_bytes = scanned_.load(std::memory_order_relaxed),  // relaxed: a statistic
          .freed_bytes = freed_.load(std::memory_order_relaxed)};     // relaxed: a statistic
}

shrinker_registry::~shrinker_registry() {
  const scoped_lock hold(lock_);
  FOREBAY_ASSERT(list_.empty());
}

void shrinker_registry::add(shrinker& s) noexcept {
  const scoped_lock mine(turn_);
  const scoped_lock hold(lock_);
  list_.push_back(s);
}

void shrinker_registry::remove(shrinker& s) noexcept {
  const scoped_lock mine(turn_);
  const scoped_lock hold(lock_);
  list_.erase(s);
}

// The list does not change during a turn; the lock is for those who look on meanwhile.
shrinker* shrinker_registry::next(shrinker* after) noexcept {
  const scoped_lock hold(lock_);
  auto at = after == nullptr ? list_.begin() : ++decltype(list_)::iterator(&after->link_);
  return at == list_.end() ? nullptr : &*at;
}

void shrinker_registry::ask(shrinker& s, unsigned priority, request& r) noexcept {
  if (s.stopped_) return;
  const std::uint64_t count = s.count_bytes();
  if (count == 0) return;
  const unsigned seeks = s.options_.seeks;
  const std::uint64_t batch = std::max<std::uint64_t>(s.options_.batch_bytes, 1);
  const std::uint64_t before = s.deferred_bytes_;
  const std::uint64_t share = seeks == 0 ? count / 2 : (count >> priority) * 4 / seeks;
  std::uint64_t left = std::min((before >> priority) + share, 2 * count);
  std::uint64_t scanned = 0;
  // Less than a batch only if that is all there is: then it is urgent.
  while ((left >= batch || left >= count) && left != 0 && !r.done()) {
    const std::uint64_t now = std::min(batch, left);
    const shrinker::scan_result got = s.scan_bytes(now, r.goal);
    s.calls_.fetch_add(1, std::memory_order_relaxed);                // relaxed: a statistic
    s.scanned_.fetch_add(now, std::memory_order_relaxed);            // relaxed: a statistic
    s.freed_.fetch_add(got.freed_bytes, std::memory_order_relaxed);  // relaxed: a statistic
    r.freed_bytes += got.freed_bytes;
    scanned += now;
    left -= now;
    s.stopped_ = got.stop;
    if (got.stop) break;
  }
  const std::uint64_t due = before + share;
  s.deferred_bytes_ = std::min(due - std::min(due, scanned), 2 * count);
}

std::uint64_t shrinker_registry::shrink(std::uint64_t wanted_bytes, shrink_goal goal,
                                        const std::stop_token& stop) noexcept {
  const scoped_lock mine(turn_);
  request r{.wanted_bytes = wanted_bytes, .goal = goal, .stop = stop};
  for (shrinker* s = next(nullptr); s != nullptr; s = next(s)) {
    s->stopped_ = s->options_.only_gives_back && goal != shrink_goal::give_back;
  }
  for (unsigned priority = lowest_priority; !r.done(); --priority) {
    for (shrinker* s = next(nullptr); s != nullptr && !r.done(); s = next(s)) {
      ask(*s, priority, r);
    }
    if (priority == 0) break;
  }
  return r.freed_bytes;
}

std::vector<shrinker_statistics> shrinker_registry::statistics() {
  std::vector<shrinker_statistics> all;
  const scoped_lock hold(lock_);
  for (shrinker& s : list_) all.push_back(s.statistics());
  return all;
}

}  // namespace forebay
