// Write-back of an address space: dirty pages to the device in block order, flush, and the
// background flusher.

#include <algorithm>
#include <array>

#include "forebay/cache/address_space.h"
#include "forebay/cache/pages_of_bio.h"

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
    found->frame->refs().get();  // the index holds one while we hold lock_
    out[n++] = page_ref::adopt(*found->frame);
    from = found->end();
  }
  return n;
}

// Whether something of [from, end) is in a page, which lock_ keeps as it is and which is not under
// write-back, because its last write failed.
bool address_space::has_failed(page& p, std::uint64_t from, std::uint64_t end) noexcept {
  if (!p.is_large() || !p.test(page_error)) return p.test(page_error);
  const std::uint64_t index = p.index.load(std::memory_order_relaxed);  // relaxed: in the index
  const std::uint64_t until = std::min(end, index + p.frames());
  const auto first = static_cast<unsigned>(std::max(from, index) - index);
  return page_parts(p).count(part_set::failed, first, static_cast<unsigned>(until - index)) != 0;
}

// Whether something of the range is dirty because its last write failed.
bool address_space::any_failed(std::uint64_t from, std::uint64_t end) const noexcept {
  if (share_.unwritten().failed() == 0) return false;
  for (auto found = index_.next_tagged(from, end, page_tag::dirty); found;
       found = index_.next_tagged(found->end(), end, page_tag::dirty)) {
    if (has_failed(*found->frame, from, end)) return true;
  }
  return false;
}

// Dirty becomes writeback; the caller holds the page lock. Nothing changes inside a range that is
// being discarded, nor while somebody has locked a buffer that would be written.
address_space::start_outcome address_space::start_writeback(page& p) noexcept {
  const std::uint64_t index = p.index.load(std::memory_order_relaxed);  // relaxed: locked by us
  const scoped_lock hold(lock_);
  if (being_discarded(index, index + p.frames())) return start_outcome::discarding;
  bool locked = false;
  if (page_buffers(p) != nullptr) {
    for_each_buffer(p, 0, valid_bytes(p), [&](const buffer_head& b) {
      locked = locked || (b.test(bh_dirty) && b.test(bh_lock));
    });
  }
  if (locked) return start_outcome::buffer_locked;
  index_.clear_tag(index, page_tag::dirty);
  index_.set_tag(index, page_tag::writeback);
  p.set(page_writeback);
  if (p.is_large()) {
    page_parts parts(p);
    parts.copy(part_set::dirty, part_set::io);
    count_writeback(parts.count(part_set::io));
  } else {
    count_writeback(1);
  }
  clear_dirty(p);
  if (page_buffers(p) != nullptr) {
    for_each_buffer(p, 0, valid_bytes(p), [](buffer_head& b) {
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
    std::int64_t ended = 1;
    std::int64_t failed = status != 0 ? 1 : 0;
    if (p.is_large()) {
      page_parts parts(p);
      parts.copy(part_set::io_failed, part_set::dirty);
      parts.copy(part_set::io_failed, part_set::failed);
      ended = parts.clear(part_set::io);
      parts.clear(part_set::io_ended);
      failed = parts.clear(part_set::io_failed);
    }
    count_writeback(-ended);
    if (ended != failed) {
      pacer_.written(monotonic_clock::now_ns(), static_cast<std::uint32_t>(ended - failed));
    }
    if (failed != 0) {
      // A small one may be dirty already, for a block that was not part of this write.
      const bool was_dirty = (p.set(page_dirty | page_error) & page_dirty) != 0;
      if (!was_dirty) index_.set_tag(index, page_tag::dirty);
      count_dirty(was_dirty ? 0 : failed, failed);
      error_.store(status, std::memory_order_relaxed);  // relaxed: says it all itself
    }
    cache_.count().write_errors.add(failed);
    cache_.count().pages_written.add(ended - failed);
    notes_.written(p);
  }
  clear_and_wake(p, page_writeback);
  cache_.progress().wake_all();
}

void address_space::end_write(address_space& self, const bio& b) noexcept {
  self.for_each_page(b, [&](page& p, std::size_t from, std::size_t to) {
    if (p.is_large()) {
      return self.end_write_of_parts(p, static_cast<unsigned>(from >> page_shift),
                                     static_cast<unsigned>(to >> page_shift), b.status);
    }
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

// Parts [first, end) of a large page have been written, or could not be.
void address_space::end_write_of_parts(page& p, unsigned first, unsigned end,
                                       std::int32_t status) noexcept {
  page_parts parts(p);
  parts.add(part_set::io_ended, first, end);
  if (status != 0) parts.add(part_set::io_failed, first, end);
  if (parts.count(part_set::io_ended) != parts.count(part_set::io)) return;
  const bool failed = parts.count(part_set::io_failed) != 0;
  end_writeback(p, !failed ? 0 : status != 0 ? status : -EIO);
}

// The first stretch from `at` on of a page under write-back that is to be written; empty if there
// is none.
address_space::page_part address_space::next_to_write(page& p, std::size_t at) const noexcept {
  const std::size_t valid = valid_bytes(p);
  if (p.is_large()) {
    const page_parts parts(p);
    const unsigned first = parts.next(part_set::io, static_cast<unsigned>(at >> page_shift));
    const unsigned end = parts.next_without(part_set::io, first);
    return {std::size_t{first} << page_shift, std::size_t{end} << page_shift};
  }
  page_part found{valid, valid};
  if (at >= valid) return found;
  if (page_buffers(p) == nullptr) return {at, valid};
  for_each_run(
      p, at, valid, [](const buffer_head& b) { return b.test(bh_async_write); },
      [&](std::size_t from, std::size_t to) {
        if (found.from == valid) found = {from, std::min(to, valid)};
      });
  return found;
}

// How many 4 KiB of a page under write-back are written with every block that the bytes [from, to)
// of the device touch in them.
std::uint64_t address_space::covered_by_write(page& p, std::uint64_t from,
                                              std::uint64_t to) const noexcept {
  const page_part wanted = part_of(p, from, to);
  if (p.is_large()) {
    return page_parts(p).count(part_set::io, static_cast<unsigned>(wanted.from >> page_shift),
                               static_cast<unsigned>((wanted.to - 1) >> page_shift) + 1);
  }
  const std::size_t valid = valid_bytes(p);
  page_part x = next_to_write(p, 0);
  while (x.to < std::min(wanted.to, valid)) x = next_to_write(p, x.to);
  return x.from <= wanted.from ? 1 : 0;
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
      co_await discard_over(page_of(p.offset_bytes()), page_of(p.end_bytes()));
    } else if (buffer_head* const b = locked_buffer(p, 0, page_bytes); b != nullptr) {
      co_await wait_until_unlocked(*b);
    }
  }
  ++done.pages;
  done.covered += covered_by_write(p, from, to);
  // Under write-back the data is stable without the lock.
  unlock_page(p);
  const std::uint64_t start = p.offset_bytes();
  for (page_part x = next_to_write(p, 0); x.from != x.to;) {
    const std::size_t bytes = std::min(x.to - x.from, transfer_bytes_);
    while (!batch.try_append(start + x.from, p.data() + x.from, bytes)) co_await batch.room();
    x.from += bytes;
    if (x.from == x.to) x = next_to_write(p, x.to);
  }
  co_return result<>{};
}

// Writes the pages of a range that are dirty, in block order, and waits for them. One sweep: what
// is dirtied behind it is left for the next, so a busy writer cannot hold it up for ever. Error:
// there was no memory to go on; that a write failed, is in the sweep.
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
    batch.set_depth(dirty_levels().over_free_run() ? bio_batch::full_depth
                                                   : bio_batch::background_depth);
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
  done.error = batch.error();
  if (error) co_return fail(error);
  co_return done;
}

// Waits for the pages that are under write-back, in whosever hands. The value: whether the range
// has no page now whose last write failed.
task<bool> address_space::wait_for_writeback(std::uint64_t first, std::uint64_t end) {
  std::array<page_ref, 32> pages;
  const std::uint64_t range_first = first;
  bool failed = false;
  while (first < end) {
    std::size_t n = 0;
    {
      // Together: a page that failed may be under write-back again at the next moment, and the
      // other way round, and would be passed over by two looks.
      const scoped_lock hold(lock_);
      const std::uint64_t from = first;
      n = collect(first, end, page_tag::writeback, pages);
      failed = failed || any_failed(from, std::min(first, end));
    }
    for (std::size_t i = 0; i < n; ++i) {
      page_ref p = std::move(pages[i]);
      for (;;) {
        // acquire: as page::test. One look at both bits, as above.
        const std::uint32_t flags = p->flags.load(std::memory_order_acquire);
        if ((flags & page_writeback) == 0 && (flags & page_error) != 0) {
          // Which part of it? As long as lock_ is held no write-back begins.
          const scoped_lock hold(lock_);
          if (!p->test(page_writeback)) {
            failed = failed || (owns(*p) && has_failed(*p, range_first, end));
            break;
          }
        } else if ((flags & page_writeback) == 0) {
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
  const result<sweep> wrote = co_await write_back(0, size_bytes(), 0);
  const result<bool> waited = co_await wait_for_writeback(0, page_of(size_bytes() - 1) + 1);
  if (!wrote) co_return fail(wrote.error());
  if (wrote->error != 0) co_return fail(-wrote->error);
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
    if (wrote->error == 0 && wrote->covered == end - first) co_return result<>{};
    // What failed may be a part of a large page that the range has no share in.
    if (wrote->error != 0 && max_page_order_ == 0) co_return fail(-wrote->error);
    // Somebody else wrote, or is writing, some of it.
    const result<bool> waited = co_await wait_for_writeback(first, end);
    if (!waited) co_return fail(waited.error());
    if (*waited) break;
    if (wrote->error != 0) co_return fail(-wrote->error);
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
          return stopping_.load(std::memory_order_acquire) || over_background_limit();
        },
        flusher_period_ns);
    flusher_idle_.store(false, std::memory_order_relaxed);  // relaxed: a hint for writers
    if (share_.excess() != 0) co_await give_up_excess();
    const std::uint64_t now = monotonic_clock::now_ns();
    const bool aged = now - last_pass_ns >= age_limit_ns;
    if (!aged && !over_background_limit()) continue;
    last_pass_ns = now;
    const result<sweep> wrote = co_await write_back(0, size_bytes(), 0);
    // Nothing of ours to write, or it failed: no reason to spin until something changes.
    if (wrote && wrote->error == 0 && wrote->pages != 0) continue;
    co_await flusher_wanted_.wait_unless(
        [this]() noexcept { return stopping_.load(std::memory_order_acquire); }, retry_pause_ns);
  }
  flusher_running_.store(false, std::memory_order_release);  // release: as above
  co_return result<>{};
}

}  // namespace forebay
