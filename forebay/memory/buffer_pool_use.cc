// What a pool does for its users beyond the common case: the gate before the free list, waiting,
// bulk calls, reports and statistics.
#include <algorithm>
#include <array>
#include <cstdio>
#include <new>

#include <fmt/format.h>

#include "forebay/base/stats.h"
#include "forebay/memory/buffer_pool_parts.h"
#include "forebay/os/clock.h"
#include "forebay/os/futex.h"

namespace forebay {
namespace {

constexpr std::uint64_t misuses_printed = 16;

// A thread that waits for a buffer, on its own stack.
struct waiting_thread : buffer_wait {
  static constexpr std::uint32_t granted_bit = 1;
  static constexpr std::uint32_t stopped_bit = 2;

  waiting_thread() noexcept
      : buffer_wait(
            [](buffer_wait& w) noexcept { static_cast<waiting_thread&>(w).wake(granted_bit); }) {}

  // The thread may go on, and its stack with this object go, before futex_wake(), which uses the
  // address as a number only.
  void wake(std::uint32_t bit) noexcept {
    events.fetch_or(bit, std::memory_order_release);  // release: pairs with the thread's look
    futex_wake(events);
  }

  std::atomic<std::uint32_t> events{0};  // futex word
};

}  // namespace

// --- the gate ---

void buffer_pool::count_out(std::size_t n) noexcept {
  const auto more = static_cast<std::int64_t>(n);
  // relaxed: levels; what buffers hold is ordered by the free list.
  const std::int64_t out = out_.fetch_add(more, std::memory_order_relaxed) + more;
  std::int64_t most = out_max_.load(std::memory_order_relaxed);  // relaxed: as above
  while (out > most &&
         !out_max_.compare_exchange_weak(most, out, std::memory_order_relaxed)) {  // relaxed: same
  }
}

std::size_t buffer_pool::gate::take(std::span<std::uint32_t> items) noexcept {
  // Who starts to wait at this moment may come after this call.
  if (pool_.waiting_.value() != 0) return 0;
  const std::size_t n = pool_.list_->take(items);
  if (n != 0) pool_.count_out(n);
  return n;
}

void buffer_pool::gate::give(std::span<const std::uint32_t> items) noexcept {
  // Before the list has them, or who takes them could be counted beside who gave them. release:
  // pairs with destroy().
  pool_.out_.fetch_sub(static_cast<std::int64_t>(items.size()), std::memory_order_release);
  pool_.list_->give(items);
  // The list has the items before this looks for waiters; a waiter looks into the list after it has
  // announced itself.
  if (pool_.waiting_.anybody()) pool_.serve();
}

// Gives free buffers to those who wait, in their order.
void buffer_pool::serve() noexcept {
  decltype(waiters_) granted;
  {
    const scoped_lock hold(wait_lock_);
    while (!waiters_.empty()) {
      std::uint32_t item = cpu_cache::none;
      if (list_->take({&item, 1}) == 0) break;
      count_out(1);
      add_to(granted_);
      buffer_wait& w = *waiters_.pop_front();
      waiting_.withdraw();
      w.item_ = item;
      granted.push_back(w);
    }
  }
  while (buffer_wait* w = granted.pop_front()) w->granted_(*w);
}

// --- allocation beyond the common case ---

// After a pop that found nothing. What is made while somebody waits is theirs first.
std::uint32_t buffer_pool::pop_or_grow() noexcept {
  for (;;) {
    const std::uint32_t item = cache_.pop();
    if (item != cpu_cache::none || !grow()) return item;
    serve();
  }
}

std::uint32_t buffer_pool::take_or_grow() noexcept {
  if (count_ == limit_) return cpu_cache::none;
  const scoped_lock hold(grow_lock_);
  return pop_or_grow();
}

std::uint32_t buffer_pool::take_or_fail() noexcept {
  const std::uint32_t item = take_or_grow();
  if (item == cpu_cache::none) add_to(failures_);
  return item;
}

bool buffer_pool::try_allocate_bulk_raw(std::span<buffer*> buffers) noexcept {
  std::array<std::uint32_t, 64> items;
  for (std::size_t done = 0; done < buffers.size();) {
    const std::size_t wanted = std::min(items.size(), buffers.size() - done);
    std::size_t n = cache_.pop(std::span(items).first(wanted));
    if (n == 0) {
      items[0] = take_or_fail();
      if (items[0] == cpu_cache::none) {
        for (buffer* b : buffers.first(done)) static_cast<void>(free_raw(*b));
        return false;
      }
      n = 1;
    }
    for (std::size_t i = 0; i < n; ++i) {
      buffers[done] = begin_use(items[i]);
      if (tracker_.enabled()) [[unlikely]]
        record_owner(*buffers[done]);
      ++done;
    }
  }
  return true;
}

result<> buffer_pool::free_bulk_raw(std::span<buffer* const> buffers) noexcept {
  result<> first_error;
  std::array<std::uint32_t, 64> items;
  std::size_t n = 0;
  for (buffer* b : buffers) {
    if (b->pool_ != this || has_owners() || !b->refs_.put_if_last()) [[unlikely]] {
      const auto freed = free_with_care(*b);
      if (!freed && first_error) first_error = freed;
      continue;
    }
    items[n++] = b->index_;
    if (n == items.size()) cache_.push(std::span(items).first(std::exchange(n, 0)));
  }
  if (n != 0) cache_.push(std::span(items).first(n));
  return first_error;
}

// --- waiting ---

// True: `w` is among those who wait. False: it has a buffer, or an error. Under grow_lock_, so that
// either shrink() sees who waits or he sees what it has left.
bool buffer_pool::enqueue(buffer_wait& w) noexcept {
  const scoped_lock hold(grow_lock_);
  if (count_ != limit_) w.item_ = pop_or_grow();
  if (w.item_ != cpu_cache::none) return false;
  if (total() == 0) {
    w.error_ = ENOMEM;
    add_to(failures_);
    return false;
  }
  add_to(waits_);
  w.closed_ = true;
  const scoped_lock hold_too(wait_lock_);
  waiters_.push_back(w);
  waiting_.announce();
  return true;
}

bool buffer_pool::start_wait(buffer_wait& w) noexcept {
  w.item_ = cache_.pop();
  if (w.item_ != cpu_cache::none || !enqueue(w)) return true;
  // The last look: what has been given before the announcement, and what lies in the caches.
  cache_.close();
  serve();
  return false;
}

bool buffer_pool::cancel_wait(buffer_wait& w) noexcept {
  const scoped_lock hold(wait_lock_);
  if (w.item_ != cpu_cache::none) return false;
  w.link_.unlink();
  waiting_.withdraw();
  w.error_ = ECANCELED;
  return true;
}

result<buffer_ref> buffer_pool::finish_wait(buffer_wait& w) noexcept {
  if (std::exchange(w.closed_, false)) cache_.open();
  if (w.item_ == cpu_cache::none) return fail(w.error_);
  return adopt_new(*begin_use(std::exchange(w.item_, cpu_cache::none)));
}

result<buffer_ref> buffer_pool::allocate(std::chrono::nanoseconds timeout,
                                         const std::stop_token& stop) noexcept {
  waiting_thread w;
  if (start_wait(w)) return finish_wait(w);
  const auto length = static_cast<std::uint64_t>(std::max<std::int64_t>(timeout.count(), 0));
  const std::uint64_t deadline = monotonic_clock::now_ns() + length;
  const std::stop_callback on_stop(stop, [&w] { w.wake(waiting_thread::stopped_bit); });
  for (;;) {
    // acquire: pairs with wake().
    const std::uint32_t events = w.events.load(std::memory_order_acquire);
    if ((events & waiting_thread::granted_bit) != 0) return finish_wait(w);
    const std::uint64_t now = monotonic_clock::now_ns();
    const bool stopped = (events & waiting_thread::stopped_bit) != 0;
    if (!stopped && now < deadline) {
      futex_wait(w.events, events, deadline - now);
    } else if (cancel_wait(w)) {
      static_cast<void>(finish_wait(w));
      return fail(stopped ? ECANCELED : ETIMEDOUT);
    } else {
      futex_wait(w.events, events);  // the call will come in a moment
    }
  }
}

result<buffer_ref> buffer_pool::allocate(const std::stop_token& stop) noexcept {
  if (exhausted_ == when_exhausted::wait) return allocate(std::chrono::nanoseconds::max(), stop);
  buffer_ref b = try_allocate();
  if (!b) return fail(EAGAIN);
  return b;
}

// --- debug mode ---

result<> buffer_pool::set_debug(bool on) noexcept {
  const scoped_lock hold(grow_lock_);
  // relaxed: written under grow_lock_.
  if (on && owners_.load(std::memory_order_relaxed) == nullptr) {
    auto* fresh = new (std::nothrow) owner[index_limit_];
    if (fresh == nullptr) return fail(ENOMEM);
    owners_.store(fresh, std::memory_order_release);  // release: who sees it sees its elements
  }
  tracker_.enable(on);
  return {};
}

void buffer_pool::record_owner(buffer& b) noexcept {
  keep_owner(b, {.ticket = tracker_.acquire(&b), .raw = true});
}

void buffer_pool::keep_owner(buffer& b, owner o) noexcept {
  owner* const owners = owners_.load(std::memory_order_acquire);  // acquire: see set_debug()
  if (owners != nullptr) owners[b.index_] = o;
}

// The holder without a handle is one no more.
void buffer_pool::end_raw(buffer& b) noexcept {
  owner* const owners = owners_.load(std::memory_order_acquire);  // acquire: see set_debug()
  if (owners != nullptr && std::exchange(owners[b.index_].raw, false)) {
    tracker_.release(owners[b.index_].ticket);
  }
}

result<> buffer_pool::free_with_care(buffer& b) noexcept {
  if (b.pool_ != this || b.refs_.value() != 1) return refuse_free(b);
  end_raw(b);
  if (b.refs_.put()) recycle(b);
  return {};
}

result<> buffer_pool::refuse_free(buffer& b) noexcept {
  if (b.pool_ != this) {
    report_misuse(b, "is another pool's");
    return fail(EINVAL);
  }
  if (b.refs_.value() == 0) {
    report_misuse(b, "is free already");
    return fail(EALREADY);
  }
  report_misuse(b, "has other holders");
  return fail(EBUSY);
}

// One line, in debug mode with the stacks of the buffer's holders, or its last owner if it has
// none.
void buffer_pool::report_misuse(const buffer& b, const char* what) noexcept {
  // relaxed: a statistic.
  if (misuses_.fetch_add(1, std::memory_order_relaxed) >= misuses_printed) return;
  std::string text =
      fmt::format("forebay: pool \"{}\": buffer {} ({}) of \"{}\" {}: free refused\n", name(),
                  b.index_, static_cast<const void*>(&b), b.pool_->name(), what);
  const buffer_pool& home = *b.pool_;
  const owner* owners = home.owners_.load(std::memory_order_acquire);  // acquire: see set_debug()
  if (owners != nullptr) text += home.tracker_.report(&b);
  std::fputs(text.c_str(), stderr);
  // The record of the last owner is one that was released: to release it again tells its stacks.
  if (owners != nullptr && b.refs_.value() == 0) {
    b.pool_->tracker_.release(owners[b.index_].ticket);
  }
}

// --- statistics ---

buffer_pool_statistics buffer_pool::statistics() const noexcept {
  const cpu_cache_statistics c = cache_.statistics();
  buffer_pool_statistics s;
  s.allocations = c.pops + value_of(granted_);
  // relaxed: levels, which order nothing.
  const std::int64_t out = out_.load(std::memory_order_relaxed);
  s.in_use = static_cast<std::uint64_t>(
      std::max<std::int64_t>(out - static_cast<std::int64_t>(c.cached), 0));
  s.frees = s.allocations - std::min(s.allocations, s.in_use);
  s.failures = value_of(failures_);
  s.waits = value_of(waits_);
  // relaxed: as above.
  s.high_watermark = static_cast<std::uint64_t>(out_max_.load(std::memory_order_relaxed));
  s.total = total();
  s.cached = c.cached;
  s.waiting = waiting_.value();
  s.cpu_hits = cached_ ? c.pops - std::min(c.pops, c.slow_pops) : 0;
  s.grows = value_of(grows_);
  s.shrinks = value_of(shrinks_);
  s.misuses = value_of(misuses_);
  s.bytes = value_of(piece_bytes_) + s.total * sizeof(buffer);
  s.per_cpu = cached_ && c.per_cpu;
  s.debug = tracker_.enabled();
  return s;
}

memory_statistics buffer_pool::report() const {
  const buffer_pool_statistics s = statistics();
  memory_statistics m;
  m.name = name();
  m.kind = memory_kind::pool;
  m.object_bytes = buffer_bytes_;
  m.stride_bytes = stride_;
  m.active = s.in_use;
  m.total = s.total;
  m.cached = s.cached;
  m.bytes = s.bytes;
  m.allocations = s.allocations;
  m.frees = s.frees;
  m.cpu_hits = s.cpu_hits;
  m.failures = s.failures;
  m.high_watermark = s.high_watermark;
  m.per_cpu = s.per_cpu;
  m.debug = s.debug;
  return m;
}

}  // namespace forebay
