#include "forebay/memory/arena.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <new>

#include "forebay/base/cache_line.h"

namespace forebay {

static_assert(sizeof(page) == 48 && sizeof(refcount) == 4);

void release_page(page& p) noexcept { frame_table::of(&p).home->release(p); }

arena_device::~arena_device() {
  // acquire: the last answer is complete.
  FOREBAY_ASSERT(!link_.linked() && owed_.load(std::memory_order_acquire) == 0);
}

namespace {

// Whole chunks that a limit allows at the start, in bytes of an arena of `count` frames.
std::uint64_t initial_bytes(std::uint64_t limit, std::uint32_t count) noexcept {
  const std::uint64_t all = std::uint64_t{count} << page_shift;
  return limit >= all ? all : round_down(limit, std::uint64_t{arena::chunk_bytes});
}

// The table, the counts and the frames.
std::size_t table_bytes(std::uint32_t frames) noexcept {
  return page_bytes + frame_table::count_bytes(frames) + frames * sizeof(page);
}

frame_table make_table(std::byte* at, std::byte* data, std::uint32_t frames) noexcept {
  std::byte* const counts = at + page_bytes;
  return {nullptr, data, reinterpret_cast<refcount*>(counts),
          counts + frame_table::count_bytes(frames)};
}

// Twice what the page cache evicts at a time.
constexpr std::uint32_t magazine_frames = 64;

}  // namespace

result<std::unique_ptr<arena>> arena::create(const options& opts, memory_source& source) {
  if (opts.bytes < min_bytes) return fail(errc::too_small);
  if (opts.bytes > max_bytes) return fail(errc::too_large);
  if (opts.numa_node != any_numa_node && !numa_node_exists(opts.numa_node)) return fail(ENODEV);
  parts p;
  p.page_count = frames_of(opts.bytes);
  auto data = source.map({.bytes = std::size_t{p.page_count} << page_shift,
                          .largest = opts.huge_pages
                                         ? opts.largest_pages.value_or(page_backing::huge_reserved)
                                         : page_backing::ordinary,
                          .node = opts.numa_node,
                          .commit_bytes = initial_bytes(opts.limit_bytes, p.page_count),
                          .holds_data = true});
  if (!data) return fail(data.error());
  p.data = std::move(*data);
  auto states = source.map({.bytes = table_bytes(p.page_count),
                            .node = opts.numa_node,
                            .alignment = frame_table::alignment});
  if (!states) return fail(states.error());
  p.page_states = std::move(*states);
  new (p.page_states.data())
      frame_table(make_table(p.page_states.data(), p.data.data(), p.page_count));
  const std::uint32_t chunks = buddy::chunks_of(p.page_count);
  p.chunks.reset(new (std::nothrow) chunk_record[chunks]);
  p.buddy_chunks.reset(new (std::nothrow) buddy::chunk_record[chunks]);
  if (p.chunks == nullptr || p.buddy_chunks == nullptr) return fail(ENOMEM);
  std::unique_ptr<arena> a(new (std::nothrow) arena(source, opts, std::move(p)));
  if (!a) return fail(ENOMEM);
  a->start(opts);
  return a;
}

arena::arena(memory_source& source, const options& opts, parts p) noexcept
    : source_(source),
      data_(std::move(p.data)),
      page_states_(std::move(p.page_states)),
      page_count_(p.page_count),
      chunks_(std::move(p.chunks)),
      buddy_chunks_(std::move(p.buddy_chunks)),
      buddy_(pages(), page_count_, {buddy_chunks_.get(), buddy::chunks_of(page_count_)}),
      limit_(opts.limit_bytes),
      frame_list_(*this),
      cache_(frame_list_, {.magazine_items = magazine_frames, .depot_magazines = 8}) {
  table().home = this;
}

arena::~arena() {
  const scoped_lock hold(device_lock_);
  FOREBAY_ASSERT(devices_.empty());
  const scoped_lock hold_too(lock_);
  std::uint64_t away = 0;  // frames that are nobody's and not on the buddy's lists
  for (std::uint32_t c = 0; c < chunk_count(); ++c) {
    FOREBAY_ASSERT(chunks_[c].state != chunk_state::leaving);
    if (chunks_[c].state == chunk_state::offline) away += buddy_.frames_in(c);
    if (chunks_[c].state == chunk_state::isolated) away += buddy_.state_of(c).free;
  }
  FOREBAY_ASSERT(free_pages() + away == page_count_);
}

void arena::start(const options& opts) {
  if (opts.huge_pages) {
    remark_on_pages(
        opts.largest_pages.value_or(std::min(backing(), page_backing::huge_transparent)));
  }
  const std::size_t bytes = initial_bytes(opts.limit_bytes, page_count_);
  const std::uint32_t initial = buddy::chunks_of(static_cast<std::uint32_t>(bytes >> page_shift));
  if (opts.pin && bytes != 0) {
    const auto r = source_.pin(data_.part(0, bytes));
    pin_ = r.has_value();
    if (!r) remark_on_pin(r.error());
  } else {
    pin_ = opts.pin;
  }
  for (std::uint32_t c = 0; c < initial; ++c) make_frames(c);
  const scoped_lock hold(lock_);
  for (std::uint32_t c = 0; c < chunk_count(); ++c) {
    if (c >= initial) {
      offline_chunks_.fetch_add(1, std::memory_order_relaxed);  // relaxed: a level
      continue;
    }
    // relaxed: a level
    committed_frames_.fetch_add(buddy_.frames_in(c), std::memory_order_relaxed);
    if (pin_) {
      chunks_[c].pinned = true;
      counts_.pinned_bytes += mapping_of(c).size();
    }
    put_online(c);
  }
  lowest_offline_ = initial;
}

void arena::remark_on_pages(page_backing wanted) {
  const page_backing got = backing();
  if (got == wanted) return;
  std::string text =
      fmt::format("the memory is in {}, not in {}", to_string(got), to_string(wanted));
  if (wanted <= page_backing::huge_reserved) {
    const huge_page_pool pool = reserved_huge_pages(wanted);
    const std::size_t needed = (data_.size_bytes() - 1) / page_bytes_of(wanted) + 1;
    text += fmt::format(" ({} of them are free, {} are needed: {})", pool.free, needed,
                        wanted == page_backing::gigantic_reserved
                            ? "boot with hugepagesz=1G hugepages=N"
                            : "raise vm.nr_hugepages");
  }
  if (got == page_backing::ordinary) {
    text += ", which costs address translation time: ";
    text += source_.huge_page_advice();
  } else if (got == page_backing::huge_transparent) {
    text += ": the kernel gives them while it finds some and may split them";
  }
  remarks_.push_back(std::move(text));
}

void arena::remark_on_pin(std::error_code error) {
  const std::uint64_t limit = pin_limit_bytes();
  remarks_.push_back(fmt::format(
      "the memory is not pinned ({}): the kernel may swap it out; needed are {} KiB, "
      "RLIMIT_MEMLOCK is {}: raise it with ulimit -l or LimitMEMLOCK=, or give CAP_IPC_LOCK",
      error.message(), data_.size_bytes() >> 10,
      limit == UINT64_MAX ? "unlimited" : fmt::format("{} KiB", limit >> 10)));
}

std::size_t arena::frame_list::take(std::span<std::uint32_t> items) noexcept {
  const scoped_lock hold(arena_.lock_);
  std::size_t count = 0;
  while (count < items.size()) {
    page* const p = arena_.buddy_.take(0, placement::movable);
    if (p == nullptr) break;
    items[count++] = arena_.frame_of(*p);
  }
  return count;
}

void arena::frame_list::give(std::span<const std::uint32_t> items) noexcept {
  const scoped_lock hold(arena_.lock_);
  for (const std::uint32_t number : items) arena_.buddy_.give(arena_.frame(number));
}

// A block as the buddy has it, or a frame from the caches before it.
page* arena::take_block(unsigned order, placement where) noexcept {
  if (order == 0 && where == placement::movable) {
    const std::uint32_t number = cache_.pop();  // flushes the caches itself
    return number == cpu_cache::none ? nullptr : &frame(number);
  }
  {
    const scoped_lock hold(lock_);
    if (page* const block = buddy_.take(order, where)) return block;
  }
  if (cache_.cached() == 0) return nullptr;
  cache_.reclaim();
  const scoped_lock hold(lock_);
  return buddy_.take(order, where);
}

page* arena::allocate(unsigned order, placement where) noexcept {
  if (order > max_order) return nullptr;
  page* block = take_block(order, where);
  while (block == nullptr) {
    if (!bring_back()) return nullptr;
    block = take_block(order, where);
  }
  const std::uint32_t flags = where == placement::fixed ? std::uint32_t{page_fixed} : 0u;
  // relaxed: refs().set() below publishes the fields to who takes a reference.
  block->flags.store(flags, std::memory_order_relaxed);
  block->private_data.store(nullptr, std::memory_order_relaxed);  // relaxed: see above
  block->owner.store(nullptr, std::memory_order_relaxed);         // relaxed: see above
  block->refs().set(1);
  return block;
}

result<std::size_t> arena::allocate_scattered(std::size_t bytes, std::span<page*> blocks,
                                              placement where) noexcept {
  if (bytes == 0) return fail(EINVAL);
  if (bytes > memory().size()) return fail(ENOMEM);
  auto left = static_cast<std::uint32_t>(round_up(bytes, page_bytes) >> page_shift);
  unsigned order = max_order;
  std::size_t count = 0;
  int error = 0;
  while (left != 0 && error == 0) {
    order = std::min(order, static_cast<unsigned>(std::bit_width(left)) - 1);
    if (count == blocks.size()) {
      error = EMSGSIZE;
    } else if (page* const block = allocate(order, where); block != nullptr) {
      blocks[count++] = block;
      left -= 1u << order;
    } else if (order == 0) {
      error = ENOMEM;
    } else {
      --order;
    }
  }
  if (error == 0) return count;
  while (count != 0) put_page(*blocks[--count]);
  return fail(error);
}

void arena::split(page& block) noexcept {
  const std::size_t count = std::size_t{1} << block.order;
  // relaxed: the block is the caller's.
  const std::uint32_t fixed = block.flags.load(std::memory_order_relaxed) & page_fixed;
  block.order = 0;
  for (std::size_t i = 1; i < count; ++i) {
    page& p = (&block)[i];
    p.order = 0;
    p.flags.store(fixed, std::memory_order_relaxed);           // relaxed: refs().set() publishes
    p.private_data.store(nullptr, std::memory_order_relaxed);  // relaxed: as above
    p.owner.store(nullptr, std::memory_order_relaxed);         // relaxed: as above
    p.refs().set(1);
  }
}

void arena::release(page& block) noexcept {
  FOREBAY_DCHECK(block.refs().value() == 0 && !block.link.linked());
  // relaxed: nobody can hold a reference now.
  block.owner.store(nullptr, std::memory_order_relaxed);
  // A frame that slips into the caches while its chunk is being isolated is flushed by give_back().
  if (block.order == 0 && !block.test(page_fixed) && isolated_.load() == 0) {
    cache_.push(frame_of(block));
    return;
  }
  const scoped_lock hold(lock_);
  buddy_.give(block);
}

buddy::counts arena::free_blocks() const noexcept {
  cache_.reclaim();
  const scoped_lock hold(lock_);
  return buddy_.free_blocks();
}

}  // namespace forebay
