// The block API: a device as an array of blocks that are cached, read and changed one by one, as
// fs/buffer.c of Linux has it. The blocks lie in the pages of the device's address space, so what
// is changed here is seen there at once, and the other way round.
//
//   bh_ref b = *bread(space, 1, 1024);        // block 1 of 1 KiB, read if it was not there
//   if (lock_buffer(*b)) {                        // nobody else changes it or writes it back
//     std::memcpy(b->data, …);
//     mark_buffer_dirty(*b);
//     unlock_buffer(*b);
//   }
//   sync_dirty_buffer(*b);                        // on the medium
//
// Each function that may wait has two forms over one implementation. The plain name is for a thread
// without a loop: a miss there is one synchronous read of the block. It never waits on a thread
// that runs a loop: EDEADLK, if it would have to. The form that ends in _async is to be awaited, on
// any thread that has an executor. Buffers that are cached are given without a task in both.
//
// Block sizes are powers of two from 512 bytes, and the device's logical block, to the page. A
// device may be used with several at different times: a page that has buffers of another size gets
// new ones, when its old ones are clean (dirty ones are written first) and nobody uses the page;
// EBUSY, if somebody goes on using it.
//
// Who holds a buffer's lock waits for nothing but this buffer's I/O: not for another buffer, for a
// page, or for write-back, which may be waiting for him.
//
// Errors, all of them without effect: EINVAL for a size that is none; ENXIO for a block that does
// not lie wholly inside the device as it is now; EBUSY as above; the device's, for what has to be
// read or written; ENOMEM if there is no memory for a task.
//
// Thread-safety: any thread, as address_space.
#pragma once

#include <optional>

#include "forebay/cache/address_space.h"
#include "forebay/cache/buffer_lru.h"

namespace forebay {

// Buffers that are to be written together, because they belong to one object, say the indirect
// blocks of a file (Linux: a mapping's private_list). All of them are of one device's space.
class associated_buffers {
 public:
  explicit associated_buffers(address_space& space) noexcept : space_(space) {}
  // What is still associated is so no longer; its data stays dirty.
  ~associated_buffers();
  associated_buffers(const associated_buffers&) = delete;
  associated_buffers& operator=(const associated_buffers&) = delete;

  address_space& space() const noexcept { return space_; }
  bool empty() const noexcept;

 private:
  friend class block_api;

  address_space& space_;
  // Guarded by the space's lock_. Buffers leave it when they are found clean, forgotten, or gone.
  intrusive_list<buffer_head, &buffer_head::assoc_buffers> buffers_;
};

// What there was without waiting, or the task that will have it. Awaited once, or waited for once
// on a thread without a loop.
template <typename T>
class [[nodiscard]] now_or_task {
 public:
  explicit now_or_task(result<T> value) noexcept : now_(std::move(value)) {}
  explicit now_or_task(task<T> later) noexcept : later_(std::move(later)) {}

  auto operator co_await() && noexcept {
    struct awaiter {
      now_or_task& self;
      std::optional<decltype(std::declval<task<T>>().operator co_await())> inner{};

      bool await_ready() noexcept {
        if (self.now_) return true;
        inner.emplace(std::move(*self.later_).operator co_await());
        return inner->await_ready();
      }
      std::coroutine_handle<> await_suspend(std::coroutine_handle<> h) noexcept {
        return inner->await_suspend(h);
      }
      result<T> await_resume() noexcept {
        return self.now_ ? std::move(*self.now_) : inner->await_resume();
      }
    };
    return awaiter{*this};
  }

  result<T> wait() && noexcept {
    if (now_) return std::move(*now_);
    if (executor::current() != nullptr) return fail(EDEADLK);
    return sync_wait(std::move(*later_));
  }

 private:
  std::optional<result<T>> now_;
  std::optional<task<T>> later_;
};

// The implementation.
class block_api {
 public:
  static now_or_task<bh_ref> getblk(address_space& space, std::uint64_t block,
                                    std::uint32_t size_bytes) noexcept {
    if (bh_ref b = find(space, block, size_bytes)) {
      return now_or_task<bh_ref>(result<bh_ref>(std::move(b)));
    }
    return now_or_task<bh_ref>(get(space, block, size_bytes, false));
  }
  static now_or_task<bh_ref> bread(address_space& space, std::uint64_t block,
                                   std::uint32_t size_bytes) noexcept {
    if (bh_ref b = find(space, block, size_bytes); b && b->test(bh_uptodate)) [[likely]] {
      return now_or_task<bh_ref>(result<bh_ref>(std::move(b)));
    }
    return now_or_task<bh_ref>(get(space, block, size_bytes, true));
  }
  // A buffer that is there, with its data or without. Takes no lock.
  static bh_ref find(address_space& space, std::uint64_t block, std::uint32_t size_bytes) noexcept {
    buffer_lru& lru = space.cache_.lru();
    return {lru, lru.get(&space, block, size_bytes, [&](std::uint32_t references) noexcept {
              return find_in_page(space, block, size_bytes, references);
            })};
  }

  static task<> read_ahead(address_space& space, std::uint64_t block, std::uint32_t size_bytes,
                           std::uint64_t count);
  static bool try_lock(buffer_head& b) noexcept;
  static now_or_task<void> lock(buffer_head& b) noexcept;
  static now_or_task<void> lock_unlimited(buffer_head& b) noexcept;
  static now_or_task<void> wait_unlocked(buffer_head& b) noexcept;
  static void set_uptodate(buffer_head& b) noexcept;
  static void mark_dirty(buffer_head& b) noexcept;
  static void mark_dirty(buffer_head& b, associated_buffers& with) noexcept;
  static task<> sync(buffer_head& b);
  static task<> sync(associated_buffers& all);
  static task<> forget(bh_ref b);
  static task<> invalidate(address_space& space);

 private:
  friend class address_space;
  friend class associated_buffers;

  static std::uint64_t size_bytes_of(const address_space& space) noexcept;
  static std::error_code check(const address_space& space, std::uint64_t block,
                               std::uint32_t size_bytes, std::uint64_t count = 1) noexcept;
  static buffer_head* buffer_at(const page& p, std::uint64_t offset) noexcept;
  static buffer_head* find_in_page(address_space& space, std::uint64_t block,
                                   std::uint32_t size_bytes, std::uint32_t references) noexcept;
  static task<bh_ref> get(address_space& space, std::uint64_t block, std::uint32_t size_bytes,
                          bool wanted_uptodate);
  static task<> make_small(address_space& space, page_ref p);
  // What became of the wish that a page have buffers; without memory for them there may be some
  // when pages have left the cache. (Without memory for a task there is an error: nothing of the
  // cache's helps then.)
  enum class gift { given, page_gone, no_memory };
  static task<gift> give_buffers(address_space& space, page& p, std::uint32_t size_bytes);
  static std::optional<gift> replace_unused(address_space& space, page& p,
                                            std::uint32_t size_bytes) noexcept;
  static task<> read(address_space& space, buffer_head& b);
  static void start_change(buffer_head& b) noexcept;
  // What a buffer is locked for: its own I/O; a change, which waits for the dirty limits; a change
  // that does not.
  enum class lock_use { io, change, change_unlimited };
  static task<> wait_and_lock(buffer_head& b, lock_use use);
  static task<> wait_until_clear_of_lock(buffer_head& b);

  // Under the space's lock_.
  static void disassociate(page& p) noexcept;
  static void disassociate(buffer_head& b) noexcept;

  // Take it.
  static std::size_t take(associated_buffers& all, std::span<bh_ref> out) noexcept;
  static void keep(associated_buffers& with, buffer_head& b) noexcept;
};

// ---- Getting blocks ----

// The buffer of a block, with its data if that is cached, otherwise without: for who overwrites all
// of it, under its lock, and says set_buffer_uptodate() then.
inline result<bh_ref> getblk(address_space& space, std::uint64_t block,
                             std::uint32_t size_bytes) noexcept {
  if (bh_ref b = block_api::find(space, block, size_bytes)) [[likely]]
    return b;
  return block_api::getblk(space, block, size_bytes).wait();
}
inline auto getblk_async(address_space& space, std::uint64_t block,
                         std::uint32_t size_bytes) noexcept {
  return block_api::getblk(space, block, size_bytes);
}

// The same with its data, which is read if it is not cached: this block and no more.
inline result<bh_ref> bread(address_space& space, std::uint64_t block,
                            std::uint32_t size_bytes) noexcept {
  if (bh_ref b = block_api::find(space, block, size_bytes); b && b->test(bh_uptodate)) [[likely]] {
    return b;
  }
  return block_api::bread(space, block, size_bytes).wait();
}
inline auto bread_async(address_space& space, std::uint64_t block,
                        std::uint32_t size_bytes) noexcept {
  return block_api::bread(space, block, size_bytes);
}

// Brings `count` blocks into the cache, whole pages at once. For who does not want to wait for them
// yet: spawn the task, a bread() of one of them waits for what is under way.
inline result<> breadahead(address_space& space, std::uint64_t block, std::uint32_t size_bytes,
                           std::uint64_t count = 1) noexcept {
  return now_or_task<void>(block_api::read_ahead(space, block, size_bytes, count)).wait();
}
inline task<> breadahead_async(address_space& space, std::uint64_t block, std::uint32_t size_bytes,
                               std::uint64_t count = 1) {
  return block_api::read_ahead(space, block, size_bytes, count);
}

// Ends a use, as b.reset() and the destructor do.
inline void brelse(bh_ref& b) noexcept { b.reset(); }

// ---- Changing them ----

// Locks a buffer for a change of its data: no write-back of it begins, and nobody reads it from the
// device or writes to it through its page, until unlock_buffer() (buffer_head.h). Waits while
// another holds the lock, while the buffer is being read or written, and as every writer while the
// cache has too many dirty pages. Errors: as address_space::write().
inline result<> lock_buffer(buffer_head& b) noexcept { return block_api::lock(b).wait(); }
inline auto lock_buffer_async(buffer_head& b) noexcept { return block_api::lock(b); }
// The same, but it waits for no limit of dirty pages and is not refused for those that could not be
// written: for what write-back itself has to change so that it can go on, such as a mapping's
// metadata (mapping.h).
inline result<> lock_buffer_unlimited(buffer_head& b) noexcept {
  return block_api::lock_unlimited(b).wait();
}
inline auto lock_buffer_unlimited_async(buffer_head& b) noexcept {
  return block_api::lock_unlimited(b);
}
// False if it would have to wait.
inline bool trylock_buffer(buffer_head& b) noexcept { return block_api::try_lock(b); }

// Waits while the buffer is locked: after a read or a write that somebody else has begun, look at
// its state.
inline result<> wait_on_buffer(buffer_head& b) noexcept {
  return block_api::wait_unlocked(b).wait();
}
inline auto wait_on_buffer_async(buffer_head& b) noexcept { return block_api::wait_unlocked(b); }

// The holder of the lock has given the block all of its data.
inline void set_buffer_uptodate(buffer_head& b) noexcept { block_api::set_uptodate(b); }

// The holder of the lock has changed the data of a buffer that is uptodate: it is to be written.
inline void mark_buffer_dirty(buffer_head& b) noexcept { block_api::mark_dirty(b); }
// The same, and sync_mapping_buffers(with) writes it.
inline void mark_buffer_dirty_inode(buffer_head& b, associated_buffers& with) noexcept {
  block_api::mark_dirty(b, with);
}

// ---- Durability ----

// Makes a buffer durable if it is dirty. The caller does not hold its lock.
inline result<> sync_dirty_buffer(buffer_head& b) noexcept {
  return now_or_task<void>(block_api::sync(b)).wait();
}
inline task<> sync_dirty_buffer_async(buffer_head& b) { return block_api::sync(b); }

// Makes durable everything that was dirty on the device when it was called.
inline result<> sync_blockdev(address_space& space) noexcept {
  return now_or_task<void>(space.flush()).wait();
}
inline task<> sync_blockdev_async(address_space& space) { return space.flush(); }

// Makes durable what is associated and dirty. Error: the first of those that could not be written;
// they stay dirty and associated, as does what is dirtied again meanwhile.
inline result<> sync_mapping_buffers(associated_buffers& all) noexcept {
  return now_or_task<void>(block_api::sync(all)).wait();
}
inline task<> sync_mapping_buffers_async(associated_buffers& all) { return block_api::sync(all); }

// ---- Letting go of them ----

// Ends a use of a block whose contents are no longer needed: if it is dirty it will not be written,
// unless that is under way. In the cache it keeps what it has. The caller does not hold its lock.
inline result<> bforget(bh_ref b) noexcept {
  return now_or_task<void>(block_api::forget(std::move(b))).wait();
}
inline task<> bforget_async(bh_ref b) { return block_api::forget(std::move(b)); }

// Takes off what is clean and not in use, so that it is read anew.
inline result<> invalidate_bdev(address_space& space) noexcept {
  return now_or_task<void>(block_api::invalidate(space)).wait();
}
inline task<> invalidate_bdev_async(address_space& space) { return block_api::invalidate(space); }

}  // namespace forebay
