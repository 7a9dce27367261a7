#include "forebay/cache/block_api.h"

#include <algorithm>
#include <array>
#include <bit>

namespace forebay {
namespace {

// How often somebody who uses a page whose buffers are to be replaced is waited for, and how long.
constexpr unsigned attempts_max = 20;
constexpr std::uint64_t attempt_pause_ns = 500'000;

// Pages that are looked at before others have their turn.
constexpr unsigned pages_in_a_row = 1024;

}  // namespace

// ---- Looking them up ----

// What there is of the device now: it may have shrunk.
std::uint64_t block_api::size_bytes_of(const address_space& space) noexcept {
  return std::min(space.size_bytes(), space.device_.limits().size_bytes.get());
}

std::error_code block_api::check(const address_space& space, std::uint64_t block,
                                 std::uint32_t size_bytes, std::uint64_t count) noexcept {
  const std::uint32_t least = std::max(512u, space.device_.limits().logical_block_bytes);
  if (!std::has_single_bit(size_bytes) || size_bytes < least || size_bytes > page_bytes) {
    return {EINVAL, std::generic_category()};
  }
  const std::uint64_t blocks = size_bytes_of(space) / size_bytes;
  if (block >= blocks || count > blocks - block) return {ENXIO, std::generic_category()};
  return {};
}

buffer_head* block_api::buffer_at(const page& p, std::uint64_t offset) noexcept {
  buffer_head* b = page_buffers(p);
  for (std::uint64_t at = offset % page_bytes; at >= b->size_bytes; at -= b->size_bytes) {
    b = b->this_page;
  }
  return b;
}

// With so many references to its page; null if there is no page, or none with blocks of this size.
// The arguments are not checked: what they lead to is.
buffer_head* block_api::find_in_page(address_space& space, std::uint64_t block,
                                     std::uint32_t size_bytes, std::uint32_t references) noexcept {
  const std::uint64_t offset = block * size_bytes;
  const std::uint64_t index = address_space::page_of(offset);
  page* const p = space.index_.lookup(index);
  if (p == nullptr || !p->refs().get_unless_zero(references)) return nullptr;
  if (p->is_page_of(&space, index) && !p->is_large()) {
    buffer_head* b = page_buffers(*p);
    if (b != nullptr && b->size_bytes == size_bytes) b = buffer_at(*p, offset);
    if (b != nullptr && b->size_bytes == size_bytes && b->block_number == block) return b;
  }
  if (p->refs().put(references)) release_page(*p);
  return nullptr;
}

// ---- Making them ----

task<bh_ref> block_api::get(address_space& space, std::uint64_t block, std::uint32_t size_bytes,
                            bool wanted_uptodate) {
  if (const std::error_code bad = check(space, block, size_bytes)) co_return fail(bad);
  page_cache& cache = space.cache_;
  const std::uint64_t offset = block * size_bytes;
  const std::uint64_t index = address_space::page_of(offset);
  page_ref p;
  auto outcome = address_space::add_outcome::exists;
  for (unsigned attempts = 0;;) {
    p = space.find(index);
    if (p && p->is_large()) {
      if (++attempts == attempts_max) co_return fail(EBUSY);
      const result<> made = co_await make_small(space, std::move(p));
      if (!made) co_return fail(made.error());
      continue;
    }
    outcome = address_space::add_outcome::exists;
    if (!p) {
      page* const frame = cache.try_allocate_frame();
      outcome =
          frame == nullptr ? address_space::add_outcome::no_memory : space.add_page(index, *frame);
      if (outcome == address_space::add_outcome::added) {
        cache.count().misses.add();
        space.sample(index, 1);
        p = page_ref::adopt(*frame);
        unlock_page(*p);
      } else if (frame != nullptr) {
        put_page(*frame);
      }
    }
    if (p) {
      const result<gift> given = co_await give_buffers(space, *p, size_bytes);
      if (!given) co_return fail(given.error());
      if (*given == gift::given) break;
      if (*given == gift::no_memory) outcome = address_space::add_outcome::no_memory;
      p.reset();
    }
    if (outcome == address_space::add_outcome::discarding)
      co_await space.discard_over(index, index + 1);
    if (outcome == address_space::add_outcome::no_memory) {
      if (const result<> r = co_await space.wait_for_memory(); !r) co_return fail(r.error());
    }
  }
  if (outcome != address_space::add_outcome::added) p->touch();
  buffer_head& b = *buffer_at(*p, offset);
  static_cast<void>(p.release());  // it is the use's now
  bh_ref found = bh_ref::adopt(cache.lru(), b);
  if (wanted_uptodate) {
    const result<> r = co_await read(space, b);
    if (!r) co_return fail(r.error());
  }
  co_return found;
}

// Makes a large page, which has no buffers, small ones. It may be in use, for the moment; or there
// is no memory for the nodes of the index that it needs.
task<> block_api::make_small(address_space& space, page_ref p) {
  co_await wait_until_clear(*p, page_locked | page_writeback);
  if (space.cache_.split(*p)) co_return result<>{};
  const bool room = space.cache_.memory().free_pages() != 0;
  if (room || !space.try_make_room()) co_await sleep_for(attempt_pause_ns);
  co_return result<>{};
}

// Sees to it that a page that the caller holds has buffers of this size.
task<block_api::gift> block_api::give_buffers(address_space& space, page& p,
                                              std::uint32_t size_bytes) {
  for (unsigned attempts = 0; attempts < attempts_max;) {
    while (!try_lock_page(p)) co_await wait_until_clear(p, page_locked);
    const buffer_head* const b = page_buffers(p);
    if (!space.owns(p) || (b != nullptr && b->size_bytes == size_bytes)) {
      const bool here = space.owns(p);
      unlock_page(p);
      co_return here ? gift::given : gift::page_gone;
    }
    if (p.test(page_writeback)) {
      // What ends it goes by the buffers that there were when it began.
      unlock_page(p);
      co_await wait_until_clear(p, page_writeback);
      continue;
    }
    if (b == nullptr) {
      const bool made = create_empty_buffers(p, space.cache_.buffers(), space.device_, size_bytes);
      unlock_page(p);
      co_return made ? gift::given : gift::no_memory;
    }
    const std::optional<gift> replaced = replace_unused(space, p, size_bytes);
    unlock_page(p);
    if (replaced) co_return *replaced;
    ++attempts;
    if (p.test(page_dirty)) {
      const auto wrote = co_await space.write_back(p.offset_bytes(), space.valid_bytes(p), 0);
      if (!wrote) co_return fail(wrote.error());
      if (wrote->error != 0) co_return fail(-wrote->error);
      continue;
    }
    // The CPUs' arrays let go of it at once, others in a moment.
    if (space.cache_.lru().invalidate(&space) == 0) co_await sleep_for(attempt_pause_ns);
  }
  co_return fail(EBUSY);
}

// New buffers for a page that the caller has locked and holds; none if it is dirty or others hold
// it as well.
std::optional<block_api::gift> block_api::replace_unused(address_space& space, page& p,
                                                         std::uint32_t size_bytes) noexcept {
  constexpr std::uint32_t holders = 2;  // we and the index
  const scoped_lock hold(space.lock_);
  if (!p.refs().freeze(holders)) return std::nullopt;
  // Nobody has a buffer any more who could mark it dirty.
  bool made = false;
  const bool clean = !p.test(page_dirty | page_writeback);
  if (clean) {
    disassociate(p);
    made = replace_buffers(p, space.cache_.buffers(), space.device_, size_bytes);
  }
  p.refs().set(holders);
  if (!clean) return std::nullopt;
  return made ? gift::given : gift::no_memory;
}

// Reads the one block.
task<> block_api::read(address_space& space, buffer_head& b) {
  if (b.test(bh_uptodate)) co_return result<>{};
  const result<> locked = co_await wait_and_lock(b, lock_use::io);
  if (!locked) co_return fail(locked.error());
  if (b.test(bh_uptodate)) {
    unlock_buffer(b);
    co_return result<>{};
  }
  b.end_io = &end_buffer_read_sync;
  std::uint64_t data_until = 0;
  std::int32_t status = 0;
  if (!space.fill_from_hole(b.offset_bytes(), b.data, b.size_bytes, data_until)) {
    b.set(bh_req);
    bio request(bio_op::read, b.offset_bytes());
    request.add(b.data, b.size_bytes);
    status = co_await submit_and_wait(space.device_, request);
    if (status == 0) space.cache_.count().pages_read.add();
  }
  b.end_io(b, status);
  if (status != 0) co_return fail(-status);
  co_return result<>{};
}

task<> block_api::read_ahead(address_space& space, std::uint64_t block, std::uint32_t size_bytes,
                             std::uint64_t count) {
  if (count == 0) co_return result<>{};
  if (const std::error_code bad = check(space, block, size_bytes, count)) co_return fail(bad);
  const std::uint64_t from = block * size_bytes / page_bytes * page_bytes;
  const std::uint64_t end = (block + count) * size_bytes;
  co_return co_await space.prefetch(
      from,
      std::min((end + page_bytes - 1) / page_bytes * page_bytes, size_bytes_of(space)) - from);
}

// ---- Locking and changing them ----

// Locks a buffer whose page the caller has locked. Views of the page end here; it is readable by
// views again when somebody reads it by a pin after the last of its buffers has been unlocked.
void block_api::start_change(buffer_head& b) noexcept {
  b.set(bh_lock);
  address_space::space_of(b).begin_change(*b.frame);
  b.frame->clear(page_zero);
}

bool block_api::try_lock(buffer_head& b) noexcept {
  page& p = *b.frame;
  address_space& space = address_space::space_of(b);
  if (!try_lock_page(p)) return false;
  const bool limited =
      !p.test(page_dirty) && (space.over_error_limit() || space.over_dirty_limit());
  const bool mine = !limited && !b.test(bh_lock);
  if (mine) start_change(b);
  unlock_page(p);
  return mine;
}

now_or_task<void> block_api::lock(buffer_head& b) noexcept {
  if (try_lock(b)) return now_or_task<void>(result<>{});
  return now_or_task<void>(wait_and_lock(b, lock_use::change));
}

now_or_task<void> block_api::lock_unlimited(buffer_head& b) noexcept {
  if (try_lock(b)) return now_or_task<void>(result<>{});
  return now_or_task<void>(wait_and_lock(b, lock_use::change_unlimited));
}

task<> block_api::wait_and_lock(buffer_head& b, lock_use use) {
  page& p = *b.frame;
  address_space& space = address_space::space_of(b);
  for (bool paced = false;;) {
    while (!try_lock_page(p)) co_await wait_until_clear(p, page_locked);
    if (b.test(bh_lock)) {
      unlock_page(p);
      co_await wait_until_unlocked(b);
      continue;
    }
    auto limit = address_space::step::done;
    if (use == lock_use::change && !p.test(page_dirty)) {
      if (!paced && space.pause_ns() != 0) limit = address_space::step::paced;
      if (space.over_dirty_limit()) limit = address_space::step::over_limit;
      if (space.over_error_limit()) limit = address_space::step::failing;
    }
    if (limit == address_space::step::done) break;
    unlock_page(p);
    paced = paced || limit == address_space::step::paced;
    page_ref none;
    const result<> r = co_await space.wait_for(limit, 0, 0, none);
    if (!r) co_return fail(r.error());
  }
  if (use == lock_use::io) {
    b.set(bh_lock);
  } else {
    start_change(b);
  }
  unlock_page(p);
  co_return result<>{};
}

now_or_task<void> block_api::wait_unlocked(buffer_head& b) noexcept {
  if (!b.test(bh_lock)) return now_or_task<void>(result<>{});
  return now_or_task<void>(wait_until_clear_of_lock(b));
}

task<> block_api::wait_until_clear_of_lock(buffer_head& b) {
  while (b.test(bh_lock)) co_await wait_until_unlocked(b);
  co_return result<>{};
}

void block_api::set_uptodate(buffer_head& b) noexcept {
  FOREBAY_ASSERT(b.test(bh_lock));
  forebay::set_buffer_uptodate(b, address_space::space_of(b).valid_bytes(*b.frame));
}

void block_api::mark_dirty(buffer_head& b) noexcept {
  FOREBAY_ASSERT(b.test(bh_lock) && b.test(bh_uptodate));
  if (b.test(bh_dirty)) return;  // nobody writes it while it is locked
  address_space& space = address_space::space_of(b);
  {
    const scoped_lock hold(space.lock_);
    b.set(bh_dirty);
    if (!b.frame->test(page_dirty)) space.pace_dirtied(1);
    space.set_dirty(*b.frame);
  }
  space.call_flusher();
}

void block_api::mark_dirty(buffer_head& b, associated_buffers& with) noexcept {
  FOREBAY_ASSERT(&address_space::space_of(b) == &with.space_);
  {
    const scoped_lock hold(with.space_.lock_);
    if (b.assoc_map != &with) {
      disassociate(b);
      with.buffers_.push_back(b);
      b.assoc_map = &with;
    }
  }
  mark_dirty(b);
}

// ---- Associated buffers ----

associated_buffers::~associated_buffers() {
  const scoped_lock hold(space_.lock_);
  while (!buffers_.empty()) buffers_.pop_front()->assoc_map = nullptr;
}

bool associated_buffers::empty() const noexcept {
  const scoped_lock hold(space_.lock_);
  return buffers_.empty();
}

void block_api::disassociate(buffer_head& b) noexcept {
  if (b.assoc_map == nullptr) return;
  b.assoc_map->buffers_.erase(b);
  b.assoc_map = nullptr;
}

void block_api::disassociate(page& p) noexcept {
  if (page_buffers(p) == nullptr) return;
  for_each_buffer(p, 0, page_bytes, [](buffer_head& b) { disassociate(b); });
}

// Takes some off the list, and holds them.
std::size_t block_api::take(associated_buffers& all, std::span<bh_ref> out) noexcept {
  const scoped_lock hold(all.space_.lock_);
  std::size_t n = 0;
  while (n < out.size() && !all.buffers_.empty()) {
    buffer_head& b = *all.buffers_.pop_front();
    b.assoc_map = nullptr;
    get_bh(b);  // evict() takes a page's buffers off the list, so the index holds this one
    out[n++] = bh_ref::adopt(all.space_.cache_.lru(), b);
  }
  return n;
}

// Puts one that is dirty on a list, if it is on none.
void block_api::keep(associated_buffers& with, buffer_head& b) noexcept {
  const scoped_lock hold(with.space_.lock_);
  if (b.assoc_map != nullptr || !b.test(bh_dirty)) return;
  with.buffers_.push_back(b);
  b.assoc_map = &with;
}

task<> block_api::sync(associated_buffers& all) {
  address_space& space = all.space_;
  associated_buffers left(space);  // what could not be written, or is dirty again
  std::array<bh_ref, 32> taken;
  std::error_code error;
  while (const std::size_t n = take(all, taken)) {
    std::sort(
        taken.begin(), taken.begin() + static_cast<std::ptrdiff_t>(n),
        [](const bh_ref& a, const bh_ref& b) { return a->offset_bytes() < b->offset_bytes(); });
    bio_batch batch(space, space.cache_.bios(), space.device_, bio_op::write, 0, bio_class::demand,
                    &address_space::end_write);
    address_space::sweep done;
    for (std::size_t i = 0; i < n; ++i) {
      const std::uint64_t at = taken[i]->offset_bytes();
      const result<> r = co_await space.write_back_page(*taken[i]->frame, batch, at,
                                                        at + taken[i]->size_bytes, done);
      if (!r && !error) error = r.error();
    }
    co_await batch.drain();
    for (std::size_t i = 0; i < n; ++i) {
      // It may be in the hands of another sweep.
      while (taken[i]->test(bh_async_write)) co_await wait_until_unlocked(*taken[i]);
      if (taken[i]->test(bh_write_error) && !error) error = space.write_error();
      keep(left, *taken[i]);
      taken[i].reset();
    }
  }
  {
    const scoped_lock hold(space.lock_);
    while (!left.buffers_.empty()) {
      buffer_head& b = *left.buffers_.pop_front();
      all.buffers_.push_back(b);
      b.assoc_map = &all;
    }
  }
  if (error) co_return fail(error);
  co_return co_await space.flush_device();
}

// ---- Durability, and letting go ----

task<> block_api::sync(buffer_head& b) {
  return address_space::space_of(b).sync_range(b.offset_bytes(), b.size_bytes);
}

task<> block_api::forget(bh_ref b) {
  page& p = *b->frame;
  address_space& space = address_space::space_of(*b);
  for (;;) {
    while (!try_lock_page(p)) co_await wait_until_clear(p, page_locked);
    if (!b->test(bh_lock)) break;
    unlock_page(p);
    co_await wait_until_unlocked(*b);
  }
  const auto at = static_cast<std::size_t>(b->data - p.data());
  space.clear_buffers_dirty(p, at, at + b->size_bytes);
  unlock_page(p);
  space.cache_.progress().wake_all();
  co_return result<>{};
}

task<> block_api::invalidate(address_space& space) {
  space.cache_.lru().invalidate(&space);
  std::uint64_t at = 0;
  for (unsigned n = 1;; ++n) {
    page* p = nullptr;
    {
      const scoped_lock hold(space.lock_);
      const auto found = space.index_.next(at, UINT64_MAX);
      if (!found) break;
      at = found->end();
      p = found->frame;
    }
    // It may be another page by now: one clean page less, that is all.
    page* no_spare = nullptr;
    space.cache_.vacate(*p, no_spare);
    if (n % pages_in_a_row == 0) co_await sleep_for(0);
  }
  co_return result<>{};
}

}  // namespace forebay
