// The pool's making, its size and its end. What it does for its users is in buffer_pool_use.cc.
#include "forebay/memory/buffer_pool.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <functional>
#include <new>
#include <string_view>

#include "forebay/base/assert.h"
#include "forebay/base/debug_names.h"
#include "forebay/base/stats.h"
#include "forebay/memory/buffer_pool_parts.h"
#include "forebay/os/cpu.h"

namespace forebay {
namespace {

constexpr std::size_t default_grow_bytes = std::size_t{64} << 10;
constexpr std::uint32_t magazine_buffers_max = 256;

// So many that each buffer's last owner is known, with some that share.
std::uint32_t records_for(std::uint32_t buffers) noexcept {
  return std::min(2 * buffers + 1024, std::uint32_t{1} << 20);
}

}  // namespace

// --- making ---

result<buffer_pool::layout> buffer_pool::layout_of(const arena& memory, const options& opts) {
  const std::size_t limit = opts.limit == 0 ? opts.count : opts.limit;
  if (opts.name.empty() || opts.buffer_bytes == 0 || !std::has_single_bit(opts.alignment) ||
      limit == 0 || limit < opts.count) {
    return fail(EINVAL);
  }
  if (opts.buffer_bytes > buffer_bytes_max || opts.alignment > alignment_max || limit > count_max ||
      opts.grow_count > count_max) {
    return fail(errc::too_large);
  }
  layout l;
  l.stride = round_up(opts.buffer_bytes, opts.alignment);
  if (l.stride * std::max<std::size_t>(opts.count, 1) > memory.memory().size()) {
    return fail(errc::too_large);
  }
  // Blocks of at least the alignment's size are all aligned as the arena's memory is.
  const auto base = reinterpret_cast<std::uintptr_t>(memory.memory().data());
  l.skew = round_up(base, opts.alignment) - base;
  while ((page_bytes << l.order_min) < l.skew + l.stride) ++l.order_min;
  if (l.order_min > arena::max_order) return fail(errc::too_large);
  l.count = static_cast<std::uint32_t>(opts.count);
  l.limit = static_cast<std::uint32_t>(limit);
  const std::size_t wanted = opts.grow_count != 0
                                 ? opts.grow_count
                                 : std::max<std::size_t>(1, default_grow_bytes / l.stride);
  const std::uint32_t more = l.limit - l.count;
  l.grow_count = std::max(1u, std::min(more, static_cast<std::uint32_t>(wanted)));
  const std::uint32_t batches = (more + l.grow_count - 1) / l.grow_count;
  l.index_limit = l.count + batches * l.grow_count;
  l.batch_count = 1 + batches;
  return l;
}

// So large that a magazine's worth of work needs no lock, so small that all CPUs together hold no
// more than a part of the pool.
cpu_cache::options buffer_pool::cache_options(const options& opts, const layout& l) noexcept {
  const std::uint32_t by_size = std::clamp(l.limit / (4 * cpu_limit()), 1u, magazine_buffers_max);
  const std::uint32_t magazine = opts.magazine_buffers != 0
                                     ? std::min(opts.magazine_buffers, item_stack::max_capacity)
                                     : by_size;
  return {.magazine_items = magazine,
          .depot_magazines = std::max(2u, l.limit / (4 * magazine)),
          .restartable_sequences = opts.restartable_sequences};
}

result<std::unique_ptr<buffer_pool>> buffer_pool::create(arena& memory, const options& opts) {
  const result<layout> l = layout_of(memory, opts);
  if (!l) return fail(l.error());
  const free_list_kind behind =
      opts.list == free_list_kind::cached ? free_list_kind::locked : opts.list;
  auto list = make_free_list(behind, l->index_limit);
  if (!list) return fail(list.error());
  auto headers = memory_source::system().map({.bytes = l->index_limit * sizeof(buffer)});
  if (!headers) return fail(headers.error());
  std::unique_ptr<batch[]> batches(new (std::nothrow) batch[l->batch_count]);
  if (!batches) return fail(ENOMEM);
  std::unique_ptr<buffer_pool> pool(new (std::nothrow) buffer_pool(
      memory, opts, *l, std::move(*list), std::move(*headers), std::move(batches)));
  if (!pool) return fail(ENOMEM);
  if (const auto started = pool->start(opts); !started) return fail(started.error());
  return pool;
}

buffer_pool::buffer_pool(arena& memory, const options& opts, const layout& l,
                         std::unique_ptr<sized_free_list> list, memory_mapping headers,
                         std::unique_ptr<batch[]> batches) noexcept
    : registered_memory(opts.name),
      arena_(memory),
      buffer_bytes_(opts.buffer_bytes),
      stride_(l.stride),
      skew_(l.skew),
      count_(l.count),
      limit_(l.limit),
      grow_count_(l.grow_count),
      index_limit_(l.index_limit),
      order_min_(l.order_min),
      exhausted_(opts.exhausted),
      cached_(opts.list == free_list_kind::cached),
      header_memory_(std::move(headers)),
      list_(std::move(list)),
      shrinkers_(opts.shrinkers),
      batches_(std::move(batches)),
      batch_count_(l.batch_count),
      tracker_(opts.name, {.records_max = records_for(l.index_limit)}),
      headers_(reinterpret_cast<buffer*>(header_memory_.data())),
      cache_(gate_, cache_options(opts, l)) {
  for (std::uint32_t i = 1; i < batch_count_; ++i) {
    batches_[i].first = count_ + (i - 1) * grow_count_;
  }
  if (!cached_) cache_.close();
}

result<> buffer_pool::start(const options& opts) {
  if (opts.debug || named_in_environment("FOREBAY_POOL_DEBUG", opts.name) || tracker_.enabled()) {
    if (const auto on = set_debug(); !on) return on;
  }
  if (count_ != 0) {
    const scoped_lock hold(grow_lock_);
    if (!make_batch(batches_[0], count_)) return fail(ENOMEM);
  }
  if (opts.registry != nullptr) {
    if (const auto enrolled = enroll(*opts.registry); !enrolled) return enrolled;
  }
  if (shrinkers_ != nullptr && limit_ > count_) {
    shrinker_.reset(new (std::nothrow) surplus_shrinker(*this));
    if (!shrinker_) return fail(ENOMEM);
    shrinkers_->add(*shrinker_);
  }
  return {};
}

// --- the end ---

result<> buffer_pool::destroy(std::unique_ptr<buffer_pool>& pool) {
  // Closed, what is out is in use.
  pool->cache_.close();
  // acquire: pairs with count_out() and give(), for the holders' last writes.
  const bool busy = pool->out_.load(std::memory_order_acquire) != 0 || pool->waiting_.value() != 0;
  pool->cache_.open();
  if (!busy) {
    pool.reset();
    return {};
  }
  if (pool->tracker_.enabled()) std::fputs(pool->owners().c_str(), stderr);
  return fail(EBUSY);
}

buffer_pool::~buffer_pool() {
  withdraw();
  if (shrinker_) shrinkers_->remove(*shrinker_);
  cache_.close();
  const std::int64_t out = out_.load(std::memory_order_acquire);  // acquire: as in destroy()
  if (out != 0) {
    std::fprintf(stderr, "forebay: pool \"%s\": %lld buffers are in use at its end\n%s",
                 name().c_str(), static_cast<long long>(out), owners().c_str());
  }
  FOREBAY_ASSERT(out == 0);
  const scoped_lock hold(grow_lock_);
  for (std::uint32_t i = 0; i < batch_count_; ++i) release_batch(batches_[i]);
  delete[] owners_.load(std::memory_order_relaxed);  // relaxed: nobody else is left
}

// --- batches ---

// A block for some of `wanted` buffers, the largest that is wholly used, as far as there are such;
// order_max becomes what there are no larger ones than.
page* buffer_pool::allocate_piece(unsigned& order_max, std::uint32_t wanted) noexcept {
  while (order_max > order_min_ && capacity_of(order_max) > wanted) --order_max;
  for (;; --order_max) {
    page* p = arena_.allocate(order_max, placement::fixed);
    if (p != nullptr || order_max == order_min_) return p;
  }
}

// Fills an empty batch with `count` buffers; false, and it stays empty, without memory for them.
bool buffer_pool::make_batch(batch& b, std::uint32_t count) noexcept {
  for (; b.constructed < count; ++b.constructed) {
    const std::uint32_t index = b.first + b.constructed;
    new (&headers_[index]) buffer(this, index, static_cast<std::uint32_t>(buffer_bytes_));
  }
  unsigned order_max = std::min(std::max(buddy::chunk_order, order_min_ + 2), buddy::max_order);
  while (b.count < count) {
    page* const piece = allocate_piece(order_max, count - b.count);
    if (piece == nullptr) {
      release_batch(b);
      return false;
    }
    b.pieces.push_back(*piece);
    const std::size_t bytes = page_bytes << piece->order;
    piece_bytes_.fetch_add(bytes, std::memory_order_relaxed);  // relaxed: a statistic
    const auto n = static_cast<std::uint32_t>(
        std::min<std::size_t>(capacity_of(piece->order), count - b.count));
    for (std::uint32_t i = 0; i < n; ++i) {
      headers_[b.first + b.count + i].data_ = piece->data() + skew_ + i * stride_;
    }
    b.count += n;
    total_.fetch_add(n, std::memory_order_relaxed);  // relaxed: a level, written under the lock
  }
  give_range(*list_, b.first, count);
  return true;
}

// Gives a batch back whose buffers are all free and in no list.
void buffer_pool::release_batch(batch& b) noexcept {
  for (std::uint32_t i = 0; i < b.count; ++i) headers_[b.first + i].data_ = nullptr;
  while (page* piece = b.pieces.pop_front()) {
    // relaxed: a statistic.
    piece_bytes_.fetch_sub(page_bytes << piece->order, std::memory_order_relaxed);
    put_page(*piece);
  }
  total_.fetch_sub(b.count, std::memory_order_relaxed);  // relaxed: a level
  b.count = 0;
}

// One batch more, if limit and memory allow it.
bool buffer_pool::grow() noexcept {
  const auto total = total_.load(std::memory_order_relaxed);  // relaxed: written under the lock
  if (total == limit_) return false;
  batch* const end = batches_.get() + batch_count_;
  batch* const empty =
      std::find_if(batches_.get() + 1, end, [](const batch& b) { return b.count == 0; });
  if (empty == end || !make_batch(*empty, std::min(grow_count_, limit_ - total))) return false;
  add_to(grows_);
  return true;
}

std::uint64_t buffer_pool::surplus_bytes() const noexcept {
  // relaxed: levels.
  const std::int64_t total = total_.load(std::memory_order_relaxed);
  const std::int64_t in_use = out_.load(std::memory_order_relaxed) -  // relaxed: as above
                              static_cast<std::int64_t>(cache_.cached());
  const std::int64_t surplus = std::min(total - in_use, total - count_);
  return surplus <= 0 ? 0 : static_cast<std::uint64_t>(surplus) * stride_;
}

std::uint64_t buffer_pool::shrink(std::uint64_t bytes) noexcept {
  if (surplus_bytes() == 0 || bytes == 0) return 0;
  const scoped_lock hold(grow_lock_);
  // Whoever waits has the first claim to what becomes free, and nobody comes to wait meanwhile:
  // the number rises under grow_lock_ only.
  if (waiting_.value() != 0) return 0;
  cache_.close();
  // While the free buffers are in the hands of this call, allocations that find none wait for
  // grow_lock_.
  const auto total = total_.load(std::memory_order_relaxed);  // relaxed: written under the lock
  const std::unique_ptr<std::uint32_t[]> items(new (std::nothrow) std::uint32_t[total]);
  std::uint64_t released = 0;
  if (items) {
    const std::size_t n = list_->take({items.get(), total});
    released = release_free_batches({items.get(), n}, bytes);
  }
  cache_.open();
  return released;
}

// `items` are all free buffers. Those that stay go back to the free list.
std::uint64_t buffer_pool::release_free_batches(std::span<std::uint32_t> items,
                                                std::uint64_t bytes) noexcept {
  std::ranges::sort(items, std::greater());
  std::uint64_t released = 0;
  std::size_t kept = 0;
  for (std::size_t i = 0; i < items.size();) {
    const std::uint32_t number = items[i] < count_ ? 0 : 1 + (items[i] - count_) / grow_count_;
    batch& b = batches_[number];
    std::size_t n = 0;  // free ones of this batch
    while (i + n < items.size() && items[i + n] >= b.first) ++n;
    if (number != 0 && n == b.count && released < bytes) {
      released += std::uint64_t{b.count} * stride_;
      release_batch(b);
      add_to(shrinks_);
    } else {
      std::copy_n(items.begin() + static_cast<std::ptrdiff_t>(i), n,
                  items.begin() + static_cast<std::ptrdiff_t>(kept));
      kept += n;
    }
    i += n;
  }
  list_->give(items.first(kept));
  return released;
}

}  // namespace forebay
