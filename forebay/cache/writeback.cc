// Write-back of an address space: dirty pages to the device in block order, flush, and the
// background flusher.

#include <algorithm>
#include <array>

#include "forebay/cache/address_space.h"

namespace forebay {
namespace {

constexpr std::uint64_t flusher_period_ns = 1'000'000'000;
constexpr std::uint64_t age_limit_ns =
    5'000'000'000;  // dirty data is older than that only while it is being written
constexpr std::uint64_t retry_pause_ns = 1'000'000'000;  // after a pass in which a write failed

}  // namespace

// Pins pages with `tag` from `from` on, and moves `from` past them.
std::size_t address_space::collect(std::uint64_t& from, std::uint64_t end, page_tag tag,
                                   std::span<page_ref> out) noexcept {
  std::size_t n = 0;
  while (n < out.size()) {
    const auto found = index_.next_tagged(from, end, tag);
    if (!found) {
      from = end;
      break;
    }
    found->frame->refs.get();  // the index holds one while we hold lock_
    out[n++] = page_ref::adopt(*found->frame);
    from = found->index + 1;
  }
  return n;
}

// Whether a page of the range is dirty because its last write failed.
bool address_space::any_failed(std::uint64_t from, std::uint64_t end) const noexcept {
  if (error_pages_.load(std::memory_order_relaxed) == 0) return false;  // relaxed: under lock_
  for (auto found = index_.next_tagged(from, end, page_tag::dirty); found;
       found = index_.next_tagged(found->index + 1, end, page_tag::dirty)) {
    if (found->frame->test(page_error)) return true;
  }
  return false;
}

// Dirty becomes writeback; the caller holds the page lock. Nothing changes inside a range that is
// being discarded, nor while somebody has locked a buffer that would be written.
address_space::start_outcome address_space::start_writeback(page& p) noexcept {
  const std::uint64_t index = p.index.load(std::memory_order_relaxed);  // relaxed: locked by us
  const scoped_lock hold(lock_);
  if (being_discarded(index)) return start_outcome::discarding;
  bool locked = false;
  if (page_buffers(p) != nullptr) {
    for_each_buffer(p, 0, valid_bytes(index), [&](const buffer_head& b) {
      locked = locked || (b.test(bh_dirty) && b.test(bh_lock));
    });
  }
  if (locked) return start_outcome::buffer_locked;
  index_.clear_tag(index, page_tag::dirty);
  index_.set_tag(index, page_tag::writeback);
  p.set(page_writeback);
  cache_.count_writeback(1);
  clear_dirty(p);
  if (page_buffers(p) != nullptr) {
    for_each_buffer(p, 0, valid_bytes(index), [](buffer_head& b) {
      if (!b.test(bh_dirty)) return;
      b.end_io = &end_buffer_async_write;
      b.clear(bh_dirty | bh_write_error);
      b.set(bh_async_write | bh_lock | bh_req);
    });
  }
  return start_outcome::started;
}

// Writeback becomes clean, or dirty again if it failed: the data is kept and tried again.
void address_space::end_writeback(page& p, std::int32_t status) noexcept {
  const std::uint64_t index = p.index.load(std::memory_order_relaxed);  // relaxed: under write-back
  {
    const scoped_lock hold(lock_);
    index_.clear_tag(index, page_tag::writeback);
    cache_.count_writeback(-1);
    if (status == 0) pacer_.written(monotonic_clock::now_ns(), 1);
    if (status != 0) {
      set_dirty(p);  // it may be already, for a block that was not part of this write
      p.set(page_error);
      cache_.count_error(1);
      error_.store(status, std::memory_order_relaxed);       // relaxed: says it all itself
      error_pages_.fetch_add(1, std::memory_order_relaxed);  // relaxed: under lock_
      cache_.count().write_errors.add();
    } else {
      cache_.count().pages_written.add();
    }
  }
  clear_and_wake(p, page_writeback);
  cache_.progress().wake_all();
}

void address_space::end_write(address_space& self, const bio& b) noexcept {
  self.for_each_page(b, [&](page& p, std::size_t from, std::size_t to) {
    if (page_buffers(p) == nullptr) return self.end_writeback(p, b.status);
    end_buffers(p, from, to, b.status);
  });
}

void end_buffer_async_write(buffer_head& b, std::int32_t status) noexcept {
  page& p = *b.frame;
  address_space& space = address_space::space_of(b);
  if (status != 0) b.set(bh_write_error | bh_dirty);
  unlock_buffer(b, status == 0 ? bh_async_write | bh_new : bh_async_write);
  // The bios of a page belong to one sweep, and end one after the other on its thread.
  bool busy = false;
  bool failed = false;
  for_each_buffer(p, 0, page_bytes, [&](const buffer_head& bh) {
    busy = busy || bh.test(bh_async_write);
    failed = failed || bh.test(bh_write_error);
  });
  if (!busy) space.end_writeback(p, !failed ? 0 : status != 0 ? status : -EIO);
}

// Starts the write-back of one pinned page if it is still dirty, and counts it. `from` and `to` are
// the sweep's range, in bytes of the device.
task<> address_space::write_back_page(page& p, bio_batch& batch, std::uint64_t from,
                                      std::uint64_t to, sweep& done) {
  for (;;) {
    if (!try_lock_page(p)) {
      batch.submit();  // who holds the lock may wait for a page that we have gathered
      co_await wait_until_clear(p, page_locked);
      continue;
    }
    if (!owns(p) || !p.test(page_dirty)) {
      unlock_page(p);
      co_return result<>{};
    }
    if (p.test(page_writeback)) {
      unlock_page(p);
      batch.submit();
      co_await wait_until_clear(p, page_writeback);
      continue;
    }
    const start_outcome outcome = start_writeback(p);
    if (outcome == start_outcome::started) break;
    unlock_page(p);
    batch.submit();
    if (outcome == start_outcome::discarding) {
      co_await discard_over(p.index.load(std::memory_order_relaxed));  // relaxed: held by the pin
    } else if (buffer_head* const b = locked_buffer(p, 0, page_bytes); b != nullptr) {
      co_await wait_until_unlocked(*b);
    }
  }
  ++done.pages;
  const std::uint64_t index = p.index.load(std::memory_order_relaxed);  // relaxed: locked by us
  const std::size_t valid = valid_bytes(index);
  struct part {
    std::size_t from;
    std::size_t to;
  };
  std::array<part, page_bytes / 512> parts{};
  std::size_t count = 0;
  if (page_buffers(p) == nullptr) {
    parts[count++] = {0, valid};
  } else {
    for_each_run(
        p, 0, valid, [](const buffer_head& b) { return b.test(bh_async_write); },
        [&](std::size_t run_from, std::size_t run_to) {
          parts[count++] = {run_from, std::min(run_to, valid)};
        });
  }
  const std::uint64_t start = index << page_shift;
  const part wanted{static_cast<std::size_t>(std::max(from, start) - start),
                    static_cast<std::size_t>(std::min<std::uint64_t>(to - start, valid))};
  if (std::any_of(parts.begin(), parts.begin() + static_cast<std::ptrdiff_t>(count),
                  [&](const part& x) { return x.from <= wanted.from && x.to >= wanted.to; })) {
    ++done.covered;
  }
  // Under write-back the data is stable without the lock.
  unlock_page(p);
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint64_t at = start + parts[i].from;
    while (!batch.try_append(at, p.data() + parts[i].from, parts[i].to - parts[i].from)) {
      co_await batch.room();
    }
  }
  co_return result<>{};
}

// Writes the pages of a range that are dirty, in block order, and waits for them. One sweep: what
// is dirtied behind it is left for the next, so a busy writer cannot hold it up for ever. Error:
// the first failure.
task<address_space::sweep> address_space::write_back(std::uint64_t offset, std::uint64_t length,
                                                     std::uint8_t flags) {
  // Somebody waits for what is to be durable when it ends.
  const bio_class urgency = (flags & bio_fua) != 0 ? bio_class::demand : bio_class::write_back;
  bio_batch batch(*this, cache_.bios(), device_, bio_op::write, flags, urgency, &end_write);
  std::array<page_ref, 32> pages;
  sweep done;
  std::error_code error;
  const std::uint64_t end = page_of(offset + length - 1) + 1;
  for (std::uint64_t at = page_of(offset); at < end && !error;) {
    batch.set_depth(cache_.over_free_run() ? bio_batch::full_depth : bio_batch::background_depth);
    std::size_t n = 0;
    {
      const scoped_lock hold(lock_);
      n = collect(at, end, page_tag::dirty, pages);
    }
    for (std::size_t i = 0; i < n; ++i) {
      if (!error) {
        const result<> r =
            co_await write_back_page(*pages[i], batch, offset, offset + length, done);
        if (!r) error = r.error();
      }
      pages[i].reset();
    }
  }
  co_await batch.drain();
  if (batch.error() != 0) co_return fail(-batch.error());
  if (error) co_return fail(error);
  co_return done;
}

// Waits for the pages that are under write-back, in whosever hands. The value: whether the range
// has no page now whose last write failed.
task<bool> address_space::wait_for_writeback(std::uint64_t first, std::uint64_t end) {
  std::array<page_ref, 32> pages;
  bool failed = false;
  while (first < end) {
    std::size_t n = 0;
    {
      // Together: a page that failed may be under write-back again at the next moment, and the
      // other way round, and would be passed over by two looks.
      const scoped_lock hold(lock_);
      const std::uint64_t from = first;
      n = collect(first, end, page_tag::writeback, pages);
      failed = failed || any_failed(from, first);
    }
    for (std::size_t i = 0; i < n; ++i) {
      page_ref p = std::move(pages[i]);
      for (;;) {
        // acquire: as page::test. One look at both bits, as above.
        const std::uint32_t flags = p->flags.load(std::memory_order_acquire);
        if ((flags & page_writeback) == 0) {
          failed = failed || (flags & page_error) != 0;
          break;
        }
        co_await wait_until_clear(*p, page_writeback);
      }
    }
  }
  co_return !failed;
}

// The newest failure of a write-back.
std::error_code address_space::write_error() const noexcept {
  const std::int32_t e = error_.load(std::memory_order_relaxed);  // relaxed: says it all itself
  return {e != 0 ? -e : EIO, std::generic_category()};
}

task<> address_space::flush_device() {
  bio b(bio_op::flush, 0);
  const std::int32_t status = co_await submit_and_wait(device_, b);
  if (status != 0) co_return fail(-status);
  co_return result<>{};
}

task<> address_space::flush_now() {
  const result<sweep> wrote = co_await write_back(0, size_bytes_, 0);
  const result<bool> waited = co_await wait_for_writeback(0, page_of(size_bytes_ - 1) + 1);
  if (!wrote) co_return fail(wrote.error());
  if (!waited) co_return fail(waited.error());
  // One that was in other hands during our sweep.
  if (!*waited) co_return fail(write_error());
  co_return co_await flush_device();
}

task<> address_space::flush() {
  std::uint64_t mine = 0;
  {
    const scoped_lock hold(lock_);
    mine = flush_started_ + 1;  // the next one to start covers all that was written before
  }
  for (;;) {
    bool lead = false;
    {
      const scoped_lock hold(lock_);
      if (flush_done_ >= mine) co_return flush_result_ ? fail(flush_result_) : result<>{};
      if (!flush_running_) {
        flush_running_ = lead = true;
        mine = ++flush_started_;
      }
    }
    if (!lead) {
      co_await flush_ended_.wait_unless([this, mine]() noexcept {
        const scoped_lock hold(lock_);
        return !flush_running_ || flush_done_ >= mine;
      });
      continue;
    }
    const result<> r = co_await flush_now();
    {
      const scoped_lock hold(lock_);
      flush_running_ = false;
      flush_done_ = mine;
      flush_result_ = r ? std::error_code{} : r.error();
    }
    flush_ended_.wake_all();
    co_return r;
  }
}

task<> address_space::sync_range(std::uint64_t offset, std::uint64_t length) {
  if (length == 0) co_return result<>{};
  const std::uint64_t first = page_of(offset);
  const std::uint64_t end = page_of(offset + length - 1) + 1;
  for (bool again = false;; again = true) {
    const result<sweep> wrote = co_await write_back(offset, length, bio_fua);
    if (!wrote) co_return fail(wrote.error());
    // Every block of the range went out with FUA by our own hand: durable.
    if (wrote->covered == end - first) co_return result<>{};
    // Somebody else wrote, or is writing, some of it.
    const result<bool> waited = co_await wait_for_writeback(first, end);
    if (!waited) co_return fail(waited.error());
    if (*waited) break;
    // What failed in his hands is dirty again: our own attempt tells.
    if (again) co_return fail(write_error());
  }
  co_return co_await flush_device();
}

void address_space::stop_flusher() noexcept {
  stopping_.store(true, std::memory_order_release);  // release: pairs with run_flusher
  flusher_wanted_.wake_all();
}

task<> address_space::run_flusher() {
  std::uint64_t last_pass_ns = monotonic_clock::now_ns();
  flusher_running_.store(true, std::memory_order_release);  // release: pairs with throttled writers
  // acquire, here and below: pairs with stop_flusher.
  while (!stopping_.load(std::memory_order_acquire)) {
    flusher_idle_.store(
        true, std::memory_order_relaxed);  // relaxed: wait_unless orders it against the look
    co_await flusher_wanted_.wait_unless(
        [this]() noexcept {
          return stopping_.load(std::memory_order_acquire) || cache_.over_background_limit();
        },
        flusher_period_ns);
    flusher_idle_.store(false, std::memory_order_relaxed);  // relaxed: a hint for writers
    const std::uint64_t now = monotonic_clock::now_ns();
    const bool aged = now - last_pass_ns >= age_limit_ns;
    if (!aged && !cache_.over_background_limit()) continue;
    last_pass_ns = now;
    const result<sweep> wrote = co_await write_back(0, size_bytes_, 0);
    // Nothing of ours to write, or it failed: no reason to spin until something changes.
    if (wrote && wrote->pages != 0) continue;
    co_await flusher_wanted_.wait_unless(
        [this]() noexcept { return stopping_.load(std::memory_order_acquire); }, retry_pause_ns);
  }
  flusher_running_.store(false, std::memory_order_release);  // release: as above
  co_return result<>{};
}

}  // namespace forebay
