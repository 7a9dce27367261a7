#include "forebay/cache/page_cache.h"

#include <algorithm>
#include <bit>

#include "forebay/cache/address_space.h"
#include "forebay/cache/memory_share.h"
#include "forebay/cache/warm_store.h"

namespace forebay {
namespace {

constexpr std::uint32_t dirty_wish_min = 256;

// Enough for a few sweeps of write-back at full depth; at most a fiftieth of the smallest cache.
constexpr std::size_t bio_reserve_of(std::uint32_t pages) {
  return std::clamp<std::size_t>(pages / 64, bio_batch::usual_depth, 128);
}

}  // namespace

result<std::unique_ptr<page_cache>> page_cache::create(const options& opts, memory_source& source) {
  if (opts.bytes < min_bytes) return fail(errc::too_small);
  auto memory = arena::create({.bytes = opts.bytes,
                               .huge_pages = opts.huge_pages,
                               .largest_pages = opts.largest_pages,
                               .numa_node = opts.numa_node,
                               .pin = opts.pin,
                               .limit_bytes = opts.warm ? UINT64_MAX : opts.limit_bytes},
                              opts.warm ? opts.warm->memory() : source);
  if (!memory) return fail(memory.error());
  auto eviction = frame_eviction::create(opts.eviction, (*memory)->page_count());
  if (eviction == nullptr) return fail(ENOMEM);
  // Before anybody else has a frame.
  if (opts.warm) opts.warm->claim(**memory);
  std::unique_ptr<page_cache> made(
      new page_cache(opts.warm, std::move(*memory), std::move(eviction), opts.eviction));
  if (opts.warm) made->memory().set_limit_bytes(opts.limit_bytes);
  if (!opts.miss_ratios) return made;
  // A smaller cache is looked at more closely, with less memory.
  const std::uint32_t pages = made->memory().page_count();
  made->sampler_ = access_sampler::create(
      {.curve = {.pages_max = std::clamp(std::bit_ceil(pages / 2), 1024u, 16384u)}},
      made->counters_.hits, made->counters_.misses);
  if (made->sampler_ == nullptr) return fail(ENOMEM);
  return made;
}

miss_ratio_estimate page_cache::miss_ratios() const {
  return sampler_ == nullptr ? miss_ratio_estimate{} : sampler_->estimate();
}

page_cache::page_cache(std::shared_ptr<warm_store> warm, std::unique_ptr<arena> memory,
                       std::unique_ptr<frame_eviction> eviction, eviction_policy policy)
    : warm_(std::move(warm)),
      arena_(std::move(memory)),
      nodes_(*arena_, page_index::node_cache_options()),
      buffers_(*arena_, "buffer_head"),
      bios_(*arena_, bio_batch::bio_bytes(), bio_reserve_of(arena_->page_count())),
      background_limit_(background_limit_of(arena_->page_count())),
      dirty_limit_(dirty_limit_of(arena_->page_count())),
      allowed_(arena_->page_count()),
      eviction_(eviction.get()),
      policy_(policy) {
  policies_[static_cast<std::size_t>(policy)] = std::move(eviction);
}

page_cache::~page_cache() {
  if (warm_ != nullptr) warm_->abandon(*arena_);
  const scoped_lock hold(list_lock_);
  FOREBAY_ASSERT(resident_ == 0);
}

result<> page_cache::recover(std::span<address_space* const> by_slot) {
  return warm_->recover(*this, by_slot);
}

page* page_cache::try_allocate_frame() noexcept {
  for (;;) {
    if (page* p = arena_->allocate(0); p != nullptr) return p;
    if (!try_make_room()) return arena_->allocate(0);
  }
}

bool page_cache::try_make_room() noexcept {
  // A pass that only took second chances away has brought the next one nearer to a page.
  for (;;) {
    const eviction_progress r = reclaim(reclaim_batch);
    if (r.freed != 0) return true;
    // Buffers that wait free in CPU caches keep frames as well. (Index nodes are type-stable: their
    // frames stay, and none of them waits while an index wants one.)
    if (r.second_chances == 0) return lru_.invalidate() != 0 || buffers_.slabs().shrink() != 0;
  }
}

page* page_cache::try_allocate_run(unsigned order) noexcept {
  page* block = arena_->allocate(order);
  if (block != nullptr) arena_->split(*block);
  return block;
}

page* page_cache::try_allocate_large(unsigned order) noexcept {
  for (;;) {
    if (page* block = arena_->allocate(order); block != nullptr) return block;
    if (arena_->free_pages() >= 1u << order || order > evicting_order_max) return nullptr;
    if (!try_make_room()) return nullptr;
  }
}

void page_cache::add_to_list(page& p) noexcept {
  const scoped_lock hold(list_lock_);
  evictor().insert(p);
  resident_ += p.frames();
}

void page_cache::remove_from_list(page& p) noexcept {
  const scoped_lock hold(list_lock_);
  if (!p.link.linked()) return;
  evictor().erase(p);
  resident_ -= p.frames();
}

eviction_progress page_cache::reclaim(unsigned wanted) noexcept {
  const scoped_lock hold(list_lock_);
  const eviction_progress done = evictor().reclaim(
      wanted, scan_limit,
      [](void* self, page& p) noexcept { return static_cast<page_cache*>(self)->take(p); }, this);
  resident_ -= done.freed;
  counters_.evictions.add(static_cast<std::int64_t>(done.freed));
  return done;
}

// Frees a page that the policy has chosen, unless it is in use, under I/O or dirty.
bool page_cache::take(page& p) noexcept {
  if (p.test(page_dirty | page_writeback | page_locked)) return false;
  // On the list means in an index, and a space takes its pages off the list before it goes.
  auto* space = static_cast<address_space*>(
      p.owner.load(std::memory_order_acquire));  // acquire: sees it whole
  if (space == nullptr || !space->evict(p)) return false;
  drop_buffers(p, buffers_);
  arena_->release(p);
  return true;
}

page_cache::aged page_cache::age(page& p, address_space& of, bool any) noexcept {
  const scoped_lock hold(list_lock_);
  // On the list means in an index, and a space takes its pages off the list before it goes.
  if (!p.is_owned_by(&of) || !p.link.linked()) return {.busy = true};
  if (p.test(page_dirty | page_writeback | page_locked)) return {.busy = true};
  if (!any && (p.clear(page_young) & page_young) != 0) return {};
  if (!any && p.was_used()) {
    frame_eviction::take_use(p);
    return {};
  }
  if (!of.evict(p)) return {.busy = true};
  const std::uint32_t frames = p.frames();
  evictor().erase(p);
  resident_ -= frames;
  counters_.evictions.add(frames);
  drop_buffers(p, buffers_);
  arena_->release(p);
  return {.evicted = frames};
}

void page_cache::follow_limit(std::uint64_t bytes) noexcept {
  const auto pages = static_cast<std::uint32_t>(
      std::min<std::uint64_t>(bytes >> page_shift, arena_->page_count()));
  {
    const scoped_lock hold(list_lock_);
    if (pages != allowed_pages()) evictor().set_capacity(pages);
    allowed_.store(pages, std::memory_order_relaxed);  // relaxed: a level, as are the next two
  }
  set_dirty_levels();
}

void page_cache::set_dirty_limit(std::uint64_t bytes) noexcept {
  // At least as much as one sweep of write-back takes, so that writers get on.
  const std::uint64_t pages =
      std::clamp<std::uint64_t>(bytes >> page_shift, dirty_wish_min, UINT32_MAX);
  dirty_wish_.store(static_cast<std::uint32_t>(pages),
                    std::memory_order_relaxed);  // relaxed: level
  set_dirty_levels();
}

// Of two that change a level at once the later one here has seen both.
void page_cache::set_dirty_levels() noexcept {
  const scoped_lock hold(list_lock_);
  const std::uint32_t pages = allowed_pages();
  const std::uint32_t wish = dirty_wish_.load(std::memory_order_relaxed);  // relaxed: a level
  const std::uint32_t limit = std::min(dirty_limit_of(pages), wish);
  const std::uint32_t background = std::min(background_limit_of(pages), wish / 2);
  background_limit_.store(background, std::memory_order_relaxed);  // relaxed: a level
  dirty_limit_.store(limit, std::memory_order_relaxed);            // relaxed: a level
}

result<> page_cache::set_eviction(eviction_policy policy) noexcept {
  const auto number = static_cast<std::size_t>(policy);
  // Made without the lock, and thrown away if another thread was quicker or there is one already.
  std::unique_ptr<frame_eviction> made = frame_eviction::create(policy, arena_->page_count());
  const scoped_lock hold(list_lock_);
  if (policy == policy_) return {};
  if (policies_[number] == nullptr) policies_[number] = std::move(made);
  if (policies_[number] == nullptr) return fail(ENOMEM);
  frame_eviction& from = evictor();
  frame_eviction& to = *policies_[number];
  to.set_capacity(allowed_pages());
  while (page* const p = from.pop()) {
    const std::uint8_t uses = p->uses.load(std::memory_order_relaxed);  // relaxed: a hint
    to.insert(*p);
    p->uses.store(uses, std::memory_order_relaxed);  // relaxed: as above
  }
  eviction_.store(&to, std::memory_order_release);  // release: hints see it whole
  policy_ = policy;
  return {};
}

unsigned page_cache::evict_pages(unsigned wanted) noexcept {
  unsigned freed = 0;
  while (freed < wanted) {
    const eviction_progress r = reclaim(std::min(wanted - freed, reclaim_batch));
    freed += static_cast<unsigned>(r.freed);
    if (r.freed == 0 && r.second_chances == 0 && lru_.invalidate() == 0) break;
  }
  return freed;
}

std::uint64_t page_cache::reclaimable_pages() const noexcept {
  std::uint64_t resident = 0;
  {
    const scoped_lock hold(list_lock_);
    resident = resident_;
  }
  const std::uint64_t unclean = std::uint64_t{unwritten_.dirty()} + unwritten_.writeback();
  return resident - std::min(resident, unclean) + arena_->free_pages();
}

page_cache::vacated page_cache::vacate(page& p, page*& spare) noexcept {
  // With a reference of our own the frame stays what it is; without one it is free, or about to be,
  // or behind the head of a large page.
  if (!p.refs().get_unless_zero()) return vacated::empty;
  page_ref mine = page_ref::adopt(p);
  if (!p.is_large()) return vacate_held(mine, spare);
  // Its spare is a block. What fills a chunk is not moved as a whole: the block would be another
  // chunk.
  page* block = nullptr;
  const bool kept = spare != nullptr && (p.was_used() || p.test(page_dirty));
  if (kept && p.frames() < arena::chunk_frames) block = arena_->allocate(p.order);
  vacated done = vacate_held(mine, block);
  if (block != nullptr) put_page(*block);
  // In pieces, then: this one now, and the others are frames of the chunk like this one.
  if (done == vacated::busy && spare != nullptr && split(p)) done = vacate_held(mine, spare);
  return done;
}

bool page_cache::split(page& p) noexcept {
  constexpr std::uint32_t holders = 2;  // the caller and the index
  const scoped_lock hold(list_lock_);
  auto* space = static_cast<address_space*>(
      p.owner.load(std::memory_order_acquire));  // acquire: sees it whole
  if (space == nullptr || !p.link.linked()) return false;
  const std::uint32_t frames = p.frames();
  if (frames == 1) return false;
  evictor().erase(p);
  const bool done = space->split(p, holders);
  for (std::uint32_t i = 0; i < (done ? frames : 1); ++i) evictor().insert((&p)[i]);
  return done;
}

// The same, for who holds a reference; takes that, and `spare` if the page is moved there, when the
// page has left its frame.
page_cache::vacated page_cache::vacate_held(page_ref& mine, page*& spare) noexcept {
  page& p = *mine;
  constexpr std::uint32_t holders = 2;  // we and the index
  bool evicted = false;
  bool moved = false;
  {
    const scoped_lock hold(list_lock_);
    auto* space = static_cast<address_space*>(
        p.owner.load(std::memory_order_acquire));  // acquire: sees it whole
    // On the list means in an index, and a space takes its pages off the list before it goes.
    if (space == nullptr || !p.link.linked()) return vacated::busy;
    const bool wanted = p.was_used() || p.test(page_dirty);
    if (!wanted || spare == nullptr) evicted = space->evict(p, holders);
    if (!evicted && wanted && spare != nullptr && spare->order == p.order) {
      moved = space->move(p, holders, *spare);
    }
    if (moved) {
      evictor().replace(p, *std::exchange(spare, nullptr));
    } else if (evicted) {
      evictor().erase(p);
      resident_ -= p.frames();
    } else if (spare == nullptr && p.test(page_dirty)) {
      space->wake_flusher();
    }
  }
  if (!evicted && !moved) return vacated::busy;
  static_cast<void>(mine.release());  // the count is zero: it is ours as a whole
  if (evicted) {
    drop_buffers(p, buffers_);
    counters_.evictions.add(p.frames());
  }
  arena_->release(p);
  return evicted ? vacated::evicted : vacated::moved;
}

page_cache_statistics page_cache::statistics() const noexcept {
  page_cache_statistics s;
  s.capacity_pages = arena_->page_count();
  s.capacity_bytes = s.capacity_pages * page_bytes;
  s.free_pages = arena_->free_pages();
  {
    const scoped_lock hold(list_lock_);
    s.resident_pages = resident_;
    s.eviction_history_bytes = evictor().history_bytes();
    s.eviction = policy_;
  }
  s.dirty_pages = unwritten_.dirty();
  s.writeback_pages = unwritten_.writeback();
  s.error_pages = unwritten_.failed();
  s.dirty_limit_pages = dirty_limit_pages();
  s.background_limit_pages = background_limit_pages();
  s.hits = value_of(counters_.hits);
  s.misses = value_of(counters_.misses);
  s.evictions = value_of(counters_.evictions);
  s.pages_read = value_of(counters_.pages_read);
  s.pages_written = value_of(counters_.pages_written);
  s.write_errors = value_of(counters_.write_errors);
  s.throttled_writes = value_of(counters_.throttled_writes);
  s.paced_writes = value_of(counters_.paced_writes);
  s.readahead_pages = value_of(counters_.readahead_pages);
  s.readahead_used = value_of(counters_.readahead_used);
  s.readahead_wasted = value_of(counters_.readahead_wasted);
  s.frame_waits = value_of(frame_waits_);
  const auto lru = lru_.statistics();
  s.buffer_lru_hits = lru.hits;
  s.buffer_lru_misses = lru.misses;
  return s;
}

}  // namespace forebay
