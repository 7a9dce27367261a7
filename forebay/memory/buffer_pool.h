// Buffer pool: buffers of one size, each with a header that lies apart from its data.
//
//   headers: | buffer 0 | buffer 1 | buffer 2 | …      32 bytes each, one mapping, never move
//                 |          |          |
//   data:    | bytes 0 | bytes 1 |   | bytes 2 | …     blocks of the arena, a batch of buffers each
//
//   free:    CPU caches <-> gate <-> free list         items: the buffers' numbers
//                             |
//                          waiters                     first come, first served
//
// Three ways to size one: static (limit = count: all buffers are there from the start and stay),
// dynamic (count = 0: made on demand, a batch at a time, up to the limit) and hybrid (count for the
// common case, more on demand). What is above `count` goes back to the arena by shrink(), which the
// shrinker registry calls when memory is short.
//
// Life of a buffer:
//
//    absent -> free (0 holders) -> in use (1 holder or more) -> free -> … -> absent
//
// Headers are type-stable: a stale pointer to a buffer finds a header. The last holder gives it
// back; nobody finds a buffer but through a holder. The count of a free buffer is 0 if it was freed
// by free_raw(), so that a second call is an error, and rests at 1 if a handle gave it back, which
// happens once: a header that nobody writes stays in the caches of all CPUs.
//
// Allocation takes a number from the cache of this CPU, sets the holder count and is done; freeing
// is the reverse. Neither writes a statistic, takes a lock or executes a locked instruction in the
// common case, nor looks whether anybody waits: while somebody does, the CPU caches are closed
// (cpu_cache.h), so that each buffer that becomes free passes by the gate, which gives it to who
// has waited longest. As long as somebody waits, allocations that do not wait get nothing.
//
// The other policies of a free list (free_lists.h) go without CPU caches: the cache is closed for
// good, and every number passes by the gate.
//
// Debug mode, on by option, by FOREBAY_POOL_DEBUG in the environment ("*", or names with
// commas between them) or by set_debug(): the stack of each allocation and release is kept by a
// ref_tracker; what is freed twice, or still out when the pool is to go, is reported with the
// stacks of its last owner. Without it these are errors as well, reported by a line.
//
// Guards: a buffer's header belongs to its holders, and to the pool while it is free. grow_lock_
// guards batches_, and is held while buffers are made or given up, and while somebody is put among
// the waiters: shrink() takes nothing away from who waits. wait_lock_ guards waiters_.
//
// Lock order: grow_lock_, then one of: the cache's locks; wait_lock_, then the free list's; the
// arena's. The gate is called with none of them held, or with grow_lock_.
#pragma once

#include <chrono>
#include <memory>
#include <stop_token>
#include <string>

#include "forebay/base/refcount.h"
#include "forebay/base/waiter_count.h"
#include "forebay/memory/arena.h"
#include "forebay/memory/cpu_cache.h"
#include "forebay/memory/free_lists.h"
#include "forebay/memory/ref_tracker.h"
#include "forebay/memory/registry.h"
#include "forebay/memory/shrinker.h"

namespace forebay {

class buffer_pool;

// The header of a buffer.
class buffer {
 public:
  std::byte* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return bytes_; }
  std::span<std::byte> bytes() const noexcept { return {data_, bytes_}; }
  buffer_pool& pool() const noexcept { return *pool_; }
  // Its number in the pool, below buffer_pool::index_limit().
  std::uint32_t index() const noexcept { return index_; }
  // How many holders there are, for a holder; a moment's value if there are others.
  std::uint32_t holders() const noexcept { return refs_.value(); }
  // Whether the caller, a holder, is the only one; then all that others have done is over.
  bool has_one_holder() const noexcept { return refs_.only_holder(); }

  // The holders' own; 0 after allocation.
  std::uint32_t flags = 0;

 private:
  friend class buffer_pool;
  friend struct buffer_ref_traits;

  buffer(buffer_pool* pool, std::uint32_t index, std::uint32_t bytes) noexcept
      : index_(index), bytes_(bytes), pool_(pool) {}

  holder_refcount refs_{0};
  const std::uint32_t index_;
  const std::uint32_t bytes_;
  buffer_pool* const pool_;
  std::byte* data_ = nullptr;  // null while it is absent
};

static_assert(sizeof(buffer) == 32);

struct buffer_ref_traits {
  static void get(buffer& b) noexcept { b.refs_.get_likely_alone(); }
  static void put(buffer& b) noexcept;
  static ref_tracker& tracker(buffer& b) noexcept;
};

// A holder of a buffer: move-only, gives its reference back on destruction; share() makes another
// one. The buffer is free when the last one goes.
using buffer_ref = tracked_ref<buffer, buffer_ref_traits>;

// An allocation that waits: see buffer_pool::start_wait().
class buffer_wait {
 public:
  using function = void (*)(buffer_wait&) noexcept;

  explicit buffer_wait(function granted) noexcept : granted_(granted) {}
  buffer_wait(const buffer_wait&) = delete;
  buffer_wait& operator=(const buffer_wait&) = delete;

 private:
  friend class buffer_pool;

  list_node link_;  // guarded by the pool's wait_lock_
  const function granted_;
  std::uint32_t item_ = UINT32_MAX;  // set before granted_ is called
  int error_ = 0;                    // why there is none
  bool closed_ = false;              // it keeps the CPU caches closed
};

// Exact when no thread is inside; a moment's approximation otherwise.
struct buffer_pool_statistics {
  std::uint64_t allocations = 0;
  std::uint64_t frees = 0;
  std::uint64_t failures = 0;  // allocations that were refused
  std::uint64_t waits = 0;     // allocations that had to wait
  // The most buffers that were in use at once: exact without CPU caches. With them it is an upper
  // bound: the most that were out of the free list, which may have been more by what lay in the
  // CPU caches then.
  std::uint64_t high_watermark = 0;
  std::uint64_t in_use = 0;
  std::uint64_t total = 0;     // buffers there are
  std::uint64_t cached = 0;    // free ones in CPU caches
  std::uint64_t waiting = 0;   // who waits now
  std::uint64_t cpu_hits = 0;  // allocations that needed nothing but the CPU's cache
  std::uint64_t grows = 0;     // batches made on demand
  std::uint64_t shrinks = 0;   // and given back
  std::uint64_t misuses = 0;   // frees that were refused
  std::uint64_t bytes = 0;     // of data and headers of the buffers that there are
  bool per_cpu = false;
  bool debug = false;
};

// What allocate() does when no buffer is free and no more may be made.
enum class when_exhausted : std::uint8_t { fail, wait };

class buffer_pool final : public registered_memory {
 public:
  static constexpr std::size_t buffer_bytes_max = std::size_t{1} << 30;
  static constexpr std::size_t alignment_max = std::size_t{2} << 20;
  static constexpr std::size_t count_max = std::size_t{1} << 26;

  struct options {
    std::string name;
    std::size_t buffer_bytes = 0;
    std::size_t count = 0;       // made at the start, and kept
    std::size_t limit = 0;       // 0: count
    std::size_t grow_count = 0;  // made at a time; 0: about 64 KiB
    std::size_t alignment = 64;  // of the data; a power of two
    free_list_kind list = free_list_kind::cached;
    std::uint32_t magazine_buffers = 0;  // of the CPU caches; 0: by the limit and the CPUs
    bool restartable_sequences = true;
    when_exhausted exhausted = when_exhausted::fail;
    bool debug = false;
    memory_registry* registry = &memory_registry::process();  // null: in none
    shrinker_registry* shrinkers = nullptr;                   // that ask for what is above `count`
  };

  // The arena must outlive the pool. Errors: EINVAL for an empty name, buffers of 0 bytes, an
  // alignment that is no power of two, a limit of 0 or below the count; errc::too_large for more
  // than the maxima above or than the arena can ever have; EEXIST if the registry knows the name;
  // ENOMEM.
  static result<std::unique_ptr<buffer_pool>> create(arena& memory, const options& opts);

  // Ends the pool: EBUSY, and nothing has happened, if a buffer is in use or somebody waits for
  // one; in debug mode the holders are reported with their stacks.
  static result<> destroy(std::unique_ptr<buffer_pool>& pool);

  // No buffer may be in use: asserted, after a report.
  ~buffer_pool() override;

  // A buffer, or an empty handle at once: what it returns is not counted as a wait but as a
  // failure. Any thread, as all that follow. (What is called for each buffer is inlined whatever
  // the compiler thinks of its size: half of its cost would be the call.)
  [[nodiscard, gnu::always_inline]] buffer_ref try_allocate() noexcept {
    const std::uint32_t item = take();
    if (item == cpu_cache::none) [[unlikely]]
      return {};
    return adopt_new(*begin_shared_use(item));
  }

  // A buffer, now or when one is free and all who waited before have theirs. (That the arena has
  // memory again is noticed by the next allocation.) Errors: ETIMEDOUT, ECANCELED when a stop is
  // requested, ENOMEM if there is no buffer at all that could become free.
  result<buffer_ref> allocate(std::chrono::nanoseconds timeout,
                              const std::stop_token& stop = {}) noexcept;

  // As the option `exhausted` says: waits for any time, or fails with EAGAIN.
  result<buffer_ref> allocate(const std::stop_token& stop = {}) noexcept;

  // ---- Without a handle: the caller is the only holder and must call free_raw() ----

  [[nodiscard, gnu::always_inline]] buffer* try_allocate_raw() noexcept {
    const std::uint32_t item = take();
    if (item == cpu_cache::none) [[unlikely]]
      return nullptr;
    buffer* const b = begin_use(item);
    if (tracker_.enabled()) [[unlikely]]
      record_owner(*b);
    return b;
  }

  // Errors, each of which leaves the buffer as it was and is counted: EBUSY if there are other
  // holders, EALREADY if it is free (in debug mode, or if it was freed by this), EINVAL if it is
  // another pool's.
  [[gnu::always_inline]] result<> free_raw(buffer& b) noexcept {
    if (b.pool_ != this || has_owners() || !b.refs_.put_if_last()) [[unlikely]]
      return free_with_care(b);
    cache_.push(b.index_);
    return {};
  }

  // The same for who keeps a record of his own for each buffer, as a packet pool does, and so needs
  // no check against a second free: flags are left as they are, and so is the count, at 1. The
  // buffer may be shared meanwhile, by adopt() and share(); the only holder frees it.
  // Both speak of its number, which is at hand sooner than what lies behind a pointer: no_index if
  // there is none.
  static constexpr std::uint32_t no_index = cpu_cache::none;
  [[nodiscard, gnu::always_inline]] std::uint32_t try_allocate_resting() noexcept {
    const std::uint32_t item = take();
    if (item == cpu_cache::none) [[unlikely]]
      return no_index;
    buffer& b = headers_[item];
    if (b.refs_.value() != 1) [[unlikely]]
      b.refs_.set(1);
    if (tracker_.enabled()) [[unlikely]]
      record_owner(b);
    return item;
  }
  [[gnu::always_inline]] void free_resting(buffer& b, std::uint32_t index) noexcept {
    FOREBAY_DCHECK(b.pool_ == this && b.index_ == index && b.has_one_holder());
    if (has_owners()) [[unlikely]]
      end_raw(b);
    cache_.push(index);
  }

  // A handle for a buffer whose only holder is the caller, who is that no more. (What
  // buffer_ref::release() returns is such a buffer.)
  [[nodiscard]] buffer_ref adopt(buffer& b) noexcept {
    if (has_owners()) [[unlikely]]
      end_raw(b);
    return adopt_new(b);
  }

  // All of `buffers`, or false and none of them. What was taken and given back for want of the rest
  // counts as allocated and freed.
  [[nodiscard]] bool try_allocate_bulk_raw(std::span<buffer*> buffers) noexcept;
  // As free_raw() of each; the first error, if any. The others are freed all the same.
  result<> free_bulk_raw(std::span<buffer* const> buffers) noexcept;

  // ---- Waiting without a thread: what pool_await.h is made of ----

  // Asks for a buffer. True: there is no need to wait, call finish_wait(). False: w.granted will be
  // called once, from the thread that frees a buffer and with locks held: it must not block, nor
  // call the pool. It may be called before this returns. After that call, or cancel_wait() that
  // returned true, finish_wait() must follow.
  bool start_wait(buffer_wait& w) noexcept;
  // True if `w` does not wait any more; false if a buffer has been granted: the call has come or
  // will come.
  bool cancel_wait(buffer_wait& w) noexcept;
  // The buffer. Errors: ECANCELED after cancel_wait(), ENOMEM as for allocate().
  result<buffer_ref> finish_wait(buffer_wait& w) noexcept;

  // ---- Size ----

  // Gives batches back to the arena that were made on demand and are wholly free, until about
  // `bytes` have been given back; how many bytes it was. Nothing while somebody waits for a buffer.
  // Takes all free buffers away for a moment.
  std::uint64_t shrink(std::uint64_t bytes = UINT64_MAX) noexcept FOREBAY_EXCLUDES(grow_lock_);
  // What shrink() may give back at most.
  std::uint64_t surplus_bytes() const noexcept;

  std::size_t buffer_bytes() const noexcept { return buffer_bytes_; }
  std::size_t stride_bytes() const noexcept { return stride_; }
  std::size_t limit() const noexcept { return limit_; }
  // Buffers there are, free or not.
  std::size_t total() const noexcept {
    return total_.load(std::memory_order_relaxed);  // relaxed: a level
  }
  std::uint32_t index_limit() const noexcept { return index_limit_; }
  // The header with this index; it is absent if the pool has not so many buffers.
  buffer& at(std::uint32_t index) const noexcept { return headers_[index]; }

  // Switches the debug mode on, or off for buffers allocated from now on. ENOMEM.
  result<> set_debug(bool on = true) noexcept FOREBAY_EXCLUDES(grow_lock_);
  // The holders of buffers, with their stacks, in debug mode.
  std::string owners() const { return tracker_.report(); }

  buffer_pool_statistics statistics() const noexcept;
  memory_statistics report() const override;

 private:
  friend struct buffer_ref_traits;

  // Between the CPU caches and the free list.
  class gate final : public free_list {
   public:
    explicit gate(buffer_pool& pool) noexcept : pool_(pool) {}
    std::size_t take(std::span<std::uint32_t> items) noexcept override;
    void give(std::span<const std::uint32_t> items) noexcept override;

   private:
    buffer_pool& pool_;
  };

  class surplus_shrinker;
  struct layout;
  struct batch;
  struct owner {
    ref_ticket ticket;
    bool raw = false;  // the ticket is not in a handle
  };

  buffer_pool(arena& memory, const options& opts, const layout& l,
              std::unique_ptr<sized_free_list> list, memory_mapping headers,
              std::unique_ptr<batch[]> batches) noexcept;

  static result<layout> layout_of(const arena& memory, const options& opts);
  static cpu_cache::options cache_options(const options& opts, const layout& l) noexcept;
  result<> start(const options& opts);

  // The caller is the only holder.
  buffer* begin_use(std::uint32_t item) noexcept {
    buffer& b = headers_[item];
    b.refs_.set(1);
    b.flags = 0;
    return &b;
  }
  // The same for a handle: what is as it should be is not written.
  buffer* begin_shared_use(std::uint32_t item) noexcept {
    buffer& b = headers_[item];
    if (b.refs_.value() != 1) b.refs_.set(1);
    if (b.flags != 0) b.flags = 0;
    return &b;
  }
  [[gnu::always_inline]] std::uint32_t take() noexcept {
    const std::uint32_t item = cache_.pop();
    return item != cpu_cache::none ? item : take_or_fail();
  }
  void recycle(buffer& b) noexcept { cache_.push(b.index_); }
  buffer_ref adopt_new(buffer& b) noexcept {
    buffer_ref r = buffer_ref::adopt(b);
    if (r.ticket()) [[unlikely]]
      keep_owner(b, {.ticket = r.ticket(), .raw = false});
    return r;
  }

  [[gnu::noinline]] std::uint32_t take_or_fail() noexcept FOREBAY_EXCLUDES(grow_lock_);
  std::uint32_t take_or_grow() noexcept FOREBAY_EXCLUDES(grow_lock_);
  std::uint32_t pop_or_grow() noexcept FOREBAY_REQUIRES(grow_lock_);
  bool enqueue(buffer_wait& w) noexcept FOREBAY_EXCLUDES(grow_lock_);
  void serve() noexcept FOREBAY_EXCLUDES(wait_lock_);
  void count_out(std::size_t n) noexcept;

  [[gnu::noinline]] void record_owner(buffer& b) noexcept;
  [[gnu::noinline]] void keep_owner(buffer& b, owner o) noexcept;
  [[gnu::noinline]] void end_raw(buffer& b) noexcept;
  [[gnu::noinline]] result<> free_with_care(buffer& b) noexcept;
  result<> refuse_free(buffer& b) noexcept;
  void report_misuse(const buffer& b, const char* what) noexcept;

  bool grow() noexcept FOREBAY_REQUIRES(grow_lock_);
  bool make_batch(batch& b, std::uint32_t count) noexcept FOREBAY_REQUIRES(grow_lock_);
  std::size_t capacity_of(unsigned order) const noexcept {
    return ((page_bytes << order) - skew_) / stride_;
  }
  page* allocate_piece(unsigned& order_max, std::uint32_t wanted) noexcept;
  void release_batch(batch& b) noexcept FOREBAY_REQUIRES(grow_lock_);
  std::uint64_t release_free_batches(std::span<std::uint32_t> items, std::uint64_t bytes) noexcept
      FOREBAY_REQUIRES(grow_lock_);

  arena& arena_;
  const std::size_t buffer_bytes_;
  const std::size_t stride_;
  const std::size_t skew_;     // from a block's start to its first buffer: its alignment's need
  const std::uint32_t count_;  // of the first batch, which stays
  const std::uint32_t limit_;
  const std::uint32_t grow_count_;
  const std::uint32_t index_limit_;
  const unsigned order_min_;  // of blocks that hold a buffer
  const when_exhausted exhausted_;
  const bool cached_;  // there are CPU caches
  const memory_mapping header_memory_;
  const std::unique_ptr<sized_free_list> list_;
  gate gate_{*this};
  shrinker_registry* const shrinkers_;
  std::unique_ptr<surplus_shrinker> shrinker_;  // null while it is in no registry

  mutex grow_lock_;
  // The first one holds buffers [0, count_), the others grow_count_ each from there on.
  const std::unique_ptr<batch[]> batches_;  // guarded by grow_lock_
  const std::uint32_t batch_count_;
  std::atomic<std::uint32_t> total_{0};  // written under grow_lock_

  mutex wait_lock_;
  intrusive_list<buffer_wait, &buffer_wait::link_> waiters_ FOREBAY_GUARDED_BY(wait_lock_);
  // Their number; changed under wait_lock_, and it rises under grow_lock_ as well.
  waiter_count waiting_;

  // Written by the gate: by the batch where there are CPU caches. Any thread.
  alignas(no_sharing_bytes) std::atomic<std::int64_t> out_{0};  // not in the free list
  std::atomic<std::int64_t> out_max_{0};
  std::atomic<std::uint64_t> granted_{0};  // allocations that the cache has not seen
  std::atomic<std::uint64_t> failures_{0};
  std::atomic<std::uint64_t> waits_{0};
  std::atomic<std::uint64_t> grows_{0};
  std::atomic<std::uint64_t> shrinks_{0};
  std::atomic<std::uint64_t> misuses_{0};
  std::atomic<std::uint64_t> piece_bytes_{0};  // of data

  // The last owner of each buffer; null before the debug mode is first switched on. An element
  // belongs to who has just allocated its buffer or is about to free it.
  std::atomic<owner*> owners_{nullptr};

  // Whether a buffer may have an owner on record: also when the debug mode is off again.
  bool has_owners() const noexcept {
    // relaxed: who has a buffer with a record has it from the one who made that, and saw them.
    return owners_.load(std::memory_order_relaxed) != nullptr;
  }

  // Read by every call, written by none.
  ref_tracker tracker_;
  buffer* const headers_;
  cpu_cache cache_;
};

[[gnu::always_inline]] inline void buffer_ref_traits::put(buffer& b) noexcept {
  buffer_pool& pool = *b.pool_;
  if ((!pool.tracker_.enabled() && b.refs_.rest_if_last()) || b.refs_.put()) pool.recycle(b);
}

inline ref_tracker& buffer_ref_traits::tracker(buffer& b) noexcept { return b.pool_->tracker_; }

}  // namespace forebay
