#include "forebay/cache/object_device.h"

#include <algorithm>
#include <cstring>

#include "forebay/base/cache_line.h"
#include "forebay/cache/address_space.h"

namespace forebay {
namespace {

// The longest run that blocks are asked for at a time.
constexpr std::uint64_t run_bytes_max = 64u << 20;

// A bio of a batch has ended: the batch keeps its error.
void no_end(address_space& space, const bio& b) noexcept {
  static_cast<void>(space);
  static_cast<void>(b);
}

}  // namespace

struct object_device::detached {
  struct promise_type {
    static void* operator new(std::size_t bytes) noexcept { return detail::allocate_frame(bytes); }
    static void operator delete(void* frame, std::size_t bytes) noexcept {
      detail::free_frame(frame, bytes);
    }
    detached get_return_object() noexcept { return {true}; }
    static detached get_return_object_on_allocation_failure() noexcept { return {false}; }
    std::suspend_never initial_suspend() noexcept { return {}; }
    std::suspend_never final_suspend() noexcept { return {}; }
    void return_void() noexcept {}
    void unhandled_exception() noexcept { std::terminate(); }
  };
  bool started;
};

// The memory of a transfer, piece by piece.
class object_device::walk {
 public:
  explicit walk(const bio& b) noexcept : segments_(b.used_segments()) {}

  // The next bytes that lie together, at most `most`.
  std::span<std::byte> take(std::uint64_t most) noexcept {
    const iovec& s = segments_.front();
    auto* const data = static_cast<std::byte*>(s.iov_base) + done_;
    const std::size_t n = std::min<std::uint64_t>(most, s.iov_len - done_);
    done_ += n;
    if (done_ == s.iov_len) {
      segments_ = segments_.subspan(1);
      done_ = 0;
    }
    return {data, n};
  }
  void zero(std::uint64_t bytes) noexcept {
    while (bytes != 0) {
      const std::span<std::byte> piece = take(bytes);
      std::memset(piece.data(), 0, piece.size());
      bytes -= piece.size();
    }
  }
  void skip(std::uint64_t bytes) noexcept {
    while (bytes != 0) bytes -= take(bytes).size();
  }

 private:
  std::span<const iovec> segments_;
  std::size_t done_ = 0;  // of the first
};

object_device::object_device(page_cache& cache, device& below, extent_mapping* extents,
                             block_mapping* blocks, const options& opts)
    : cache_(cache),
      below_(below),
      extents_(extents),
      blocks_(blocks),
      device_space_(opts.device_space),
      limits_(below.limits()),
      block_bytes_(opts.block_bytes),
      known_(opts.known_extents_max) {
  FOREBAY_ASSERT(is_aligned(opts.max_bytes, std::uint64_t{page_bytes}));
  FOREBAY_ASSERT(device_space_ == nullptr || &device_space_->dev() == &below);
  limits_.size_bytes = opts.max_bytes;
  limits_.logical_block_bytes = block_bytes_;
  limits_.max_segments = bio::max_segments;
  limits_.boundary_bytes = 0;
  limits_.may_have_holes = false;  // a hole costs no more than a question to the mapping
}

object_mapping& object_device::mapping() const noexcept {
  if (blocks_ != nullptr) return *blocks_;
  return *extents_;
}

void object_device::set_size(std::uint64_t bytes) noexcept {
  size_bytes_.store(bytes, std::memory_order_release);  // release: pairs with size_bytes()
  note_change();
}

// ---- Bios ----

void object_device::submit(bio& b) noexcept {
  if (const std::int32_t bad = check_bio(b, limits_); bad != 0) return complete(b, bad);
  if (b.op == bio_op::write_zeroes) return complete(b, -ENOTSUP);
  if (!run(b).started) complete(b, -ENOMEM);
}

object_device::detached object_device::run(bio& b) {
  result<> r;
  switch (b.op) {
    case bio_op::flush:
      r = co_await commit(true);
      break;
    case bio_op::discard:
      r = co_await unmap(b);
      break;
    default:
      r = co_await transfer(b);
      break;
  }
  complete(b, r ? 0 : -to_errno(r.error()));
}

task<> object_device::transfer(bio& b) {
  if (const result<> entered = co_await enter(transfers_); !entered) co_return entered;
  const result<> r = b.op == bio_op::read ? co_await read(b) : co_await write(b);
  transfers_.leave();
  if (r && b.op == bio_op::write && (b.flags & bio_fua) != 0) co_return co_await commit(false);
  co_return r;
}

task<> object_device::append(bio_batch& batch, std::uint64_t device_offset, std::byte* data,
                             std::size_t bytes) {
  const std::size_t most =
      std::max<std::size_t>(round_down(below_.limits().max_transfer_bytes, block_bytes_), 512);
  while (bytes != 0) {
    const std::size_t n = std::min(bytes, most);
    while (!batch.try_append(device_offset, data, n)) co_await batch.room();
    device_offset += n;
    data += n;
    bytes -= n;
  }
  co_return result<>{};
}

task<> object_device::read(bio& b) {
  bio_batch batch(*space_, cache_.bios(), below_, bio_op::read, 0, b.urgency, &no_end);
  const std::uint64_t data_until = data_end();
  const std::uint64_t end = b.end_bytes();
  const std::uint64_t ask_until = std::min(end, round_up(data_until, std::uint64_t{block_bytes_}));
  walk memory(b);
  result<> r;
  for (std::uint64_t at = b.offset_bytes; at < ask_until && r;) {
    if (blocks_ != nullptr) {
      const std::size_t from = at % page_bytes;
      const std::size_t n = std::min<std::uint64_t>(ask_until - at, page_bytes - from);
      page& p = space_->page_at(memory.take(n).data(), at);
      r = co_await block_read_full_page(p, from, from + n, batch);
      at += n;
      continue;
    }
    const result<mapped_extent> e = co_await place(at, ask_until - at, map_purpose::read);
    if (!e) {
      r = fail(e.error());
      break;
    }
    const std::uint64_t until = std::min(ask_until, e->end_bytes());
    if (e->state != extent_state::mapped) {
      memory.zero(until - at);
      at = until;
    }
    while (at < until && r) {
      const std::span<std::byte> piece = memory.take(until - at);
      r = co_await append(batch, e->device_offset_bytes + (at - e->offset_bytes), piece.data(),
                          piece.size());
      at += piece.size();
    }
    if (e->boundary) batch.submit();
  }
  co_await batch.drain();
  if (!r) co_return r;
  if (batch.error() != 0) co_return fail(-batch.error());
  if (end > data_until) {
    walk beyond(b);
    const std::uint64_t from = std::max(data_until, b.offset_bytes);
    beyond.skip(from - b.offset_bytes);
    beyond.zero(end - from);
  }
  co_return r;
}

task<> object_device::write(bio& b) {
  bio_batch batch(*space_, cache_.bios(), below_, bio_op::write, b.flags & bio_fua, b.urgency,
                  &no_end);
  walk memory(b);
  bool unwritten = false;
  result<> r;
  for (std::uint64_t at = b.offset_bytes; at < b.end_bytes() && r;) {
    if (blocks_ != nullptr) {
      const std::size_t from = at % page_bytes;
      const std::size_t n = std::min<std::uint64_t>(b.end_bytes() - at, page_bytes - from);
      page& p = space_->page_at(memory.take(n).data(), at);
      const result<bool> some = co_await block_write_full_page(p, from, from + n, batch);
      if (!some) r = fail(some.error());
      unwritten = unwritten || (some && *some);
      at += n;
      continue;
    }
    const result<mapped_extent> e = co_await place(at, b.end_bytes() - at, map_purpose::write_back);
    if (!e) {
      r = fail(e.error());
      break;
    }
    unwritten = unwritten || e->state == extent_state::unwritten;
    const std::uint64_t until = std::min(b.end_bytes(), e->end_bytes());
    while (at < until && r) {
      const std::span<std::byte> piece = memory.take(until - at);
      r = co_await append(batch, e->device_offset_bytes + (at - e->offset_bytes), piece.data(),
                          piece.size());
      at += piece.size();
    }
    if (e->boundary) batch.submit();
  }
  co_await batch.drain();
  if (!r) co_return r;
  if (batch.error() != 0) co_return fail(-batch.error());
  if (unwritten) co_return co_await written_extents(b);
  co_return r;
}

// All of a write is on the device: what of it was unwritten is so no longer.
task<> object_device::written_extents(const bio& b) {
  walk memory(b);
  result<> r;
  for (std::uint64_t at = b.offset_bytes; at < b.end_bytes() && r;) {
    if (blocks_ != nullptr) {
      const std::size_t from = at % page_bytes;
      const std::size_t n = std::min<std::uint64_t>(b.end_bytes() - at, page_bytes - from);
      r = co_await written_blocks(space_->page_at(memory.take(n).data(), at), from, from + n);
      at += n;
      continue;
    }
    const result<mapped_extent> e = co_await place(at, b.end_bytes() - at, map_purpose::write_back);
    if (!e) co_return fail(e.error());
    const std::uint64_t until = std::min(b.end_bytes(), e->end_bytes());
    if (e->state == extent_state::unwritten) {
      r = co_await close(mapping_);
      if (!r) break;
      r = co_await call_written(at, until - at);
      if (r) {
        mapped_extent now = *e;
        now.device_offset_bytes += at - e->offset_bytes;
        now.offset_bytes = at;
        now.length_bytes = until - at;
        now.state = extent_state::mapped;
        now.boundary = e->boundary && until == e->end_bytes();
        known_.put(now);
      }
      mapping_.open();
    }
    at = until;
  }
  co_return r;
}

task<> object_device::call_written(std::uint64_t offset, std::uint64_t length) {
  const result<> r = co_await mapping().written(offset, length);
  note_change();
  co_return r;
}

task<> object_device::unmap(const bio& b) {
  if (const result<> r = co_await close(transfers_); !r) co_return r;
  result<> r = co_await close(mapping_);
  if (r) {
    r = co_await mapping().unmap(b.offset_bytes, b.length_bytes);
    if (r) {
      known_.forget(b.offset_bytes, b.end_bytes());
      forget_buffers(b.offset_bytes, b.end_bytes());
      note_change();
    }
    mapping_.open();
  }
  transfers_.open();
  co_return r;
}

task<> object_device::commit(bool always) {
  if (const result<> r = co_await close(mapping_); !r) co_return r;
  // acquire: pairs with note_change().
  const std::uint64_t now = changes_.load(std::memory_order_acquire);
  // relaxed: no more is durable than it says.
  if (!always && committed_.load(std::memory_order_relaxed) >= now) {
    mapping_.open();
    co_return result<>{};
  }
  const result<> r = co_await mapping().commit(size_bytes());
  mapping_.open();
  if (!r) co_return r;
  bio b(bio_op::flush, 0);
  const std::int32_t status = co_await submit_and_wait(below_, b);
  if (status != 0) co_return fail(-status);
  // One that began later may have ended before: it covers this one.
  // relaxed: who makes use of it does so under mapping_, or commits once too often.
  std::uint64_t was = committed_.load(std::memory_order_relaxed);
  while (was < now && !committed_.compare_exchange_weak(
                          was, now, std::memory_order_relaxed)) {  // relaxed: above
  }
  co_return r;
}

// ---- The extent path ----

namespace {

bool will_do(const mapped_extent& e, map_purpose why) noexcept {
  switch (why) {
    case map_purpose::read:
      return true;
    case map_purpose::reserve:
      return e.state != extent_state::hole;
    case map_purpose::write_back:
      return e.has_blocks();
    default:
      return false;
  }
}

}  // namespace

task<mapped_extent> object_device::place(std::uint64_t offset, std::uint64_t length,
                                         map_purpose why) {
  if (const auto known = known_.find(offset); known && will_do(*known, why)) co_return *known;
  if (const result<> r = co_await close(mapping_); !r) co_return fail(r.error());
  result<mapped_extent> e = fail(EUCLEAN);
  if (const auto known = known_.find(offset); known && will_do(*known, why)) {
    e = *known;
  } else {
    e = co_await ask(offset, length, why);
  }
  mapping_.open();
  co_return e;
}

task<mapped_extent> object_device::ask(std::uint64_t offset, std::uint64_t length,
                                       map_purpose why) {
  if (why == map_purpose::write_back) {
    // All that waits for blocks, so that they can lie together.
    const std::uint64_t most = std::min(limits_.size_bytes.get(), offset + run_bytes_max);
    const std::uint64_t end =
        std::max(known_.delayed_until(offset), space_->unwritten_until(offset, most));
    length = std::max(length, std::min(end, most) - offset);
  }
  map_calls_.fetch_add(1, std::memory_order_relaxed);  // relaxed: a statistic
  result<mapped_extent> e = co_await extents_->map(offset, length, why);
  if (!e) co_return fail(e.error());
  if (!is_possible(*e, offset, why)) {
    lies_.fetch_add(1, std::memory_order_relaxed);  // relaxed: a statistic
    co_return fail(EUCLEAN);
  }
  e->length_bytes = std::min(e->end_bytes(), limits_.size_bytes.get()) - e->offset_bytes;
  if (e->is_new && e->has_blocks() && device_space_ != nullptr) {
    const result<> r =
        co_await device_space_->clean_aliases(e->device_offset_bytes, e->length_bytes);
    if (!r) co_return fail(r.error());
  }
  if (why == map_purpose::write_back || why == map_purpose::reserve) note_change();
  if (why != map_purpose::report) known_.put(*e);
  co_return e;
}

bool object_device::is_possible(const mapped_extent& e, std::uint64_t offset,
                                map_purpose why) const noexcept {
  const auto whole = [](std::uint64_t bytes, std::uint64_t unit) {
    return is_aligned(bytes, unit);
  };
  if (e.length_bytes == 0 || e.length_bytes > UINT64_MAX - e.offset_bytes) return false;
  if (e.offset_bytes > offset || e.end_bytes() <= offset) return false;
  if (!whole(e.offset_bytes, block_bytes_)) return false;
  if (!will_do(e, why) && why != map_purpose::report) return false;
  if (e.has_blocks()) {
    const device_limits& device_has = below_.limits();  // now: it may have shrunk
    if (!whole(e.length_bytes, block_bytes_) ||
        !whole(e.device_offset_bytes, device_has.logical_block_bytes)) {
      return false;
    }
    if (e.device_offset_bytes > device_has.size_bytes ||
        e.length_bytes > device_has.size_bytes - e.device_offset_bytes) {
      return false;
    }
    if (why == map_purpose::reserve && e.is_new && e.state == extent_state::mapped) return false;
  } else if (!whole(e.length_bytes, block_bytes_) && e.end_bytes() < limits_.size_bytes) {
    return false;
  }
  return !known_.contradicts(e);
}

task<> object_device::reserve(std::uint64_t offset, std::uint64_t length) {
  const std::uint64_t end = round_up(offset + length, std::uint64_t{block_bytes_});
  for (std::uint64_t at = round_down(offset, std::uint64_t{block_bytes_}); at < end;) {
    const result<mapped_extent> e = co_await place(at, end - at, map_purpose::reserve);
    if (!e) co_return fail(e.error());
    at = e->end_bytes();
  }
  co_return result<>{};
}

task<mapped_extent> object_device::report(std::uint64_t offset, std::uint64_t length) {
  if (const result<> r = co_await close(mapping_); !r) co_return fail(r.error());
  result<mapped_extent> e = fail(EUCLEAN);
  if (blocks_ == nullptr) {
    e = co_await ask(offset, length, map_purpose::report);
  } else {
    const std::uint64_t block = offset / block_bytes_;
    buffer_head b;
    b.size_bytes = block_bytes_;
    const result<> r = co_await get_block(block, b, map_purpose::report);
    if (!r) {
      e = fail(r.error());
    } else {
      e = mapped_extent{.offset_bytes = block * block_bytes_,
                        .length_bytes = block_bytes_,
                        .device_offset_bytes = b.test(bh_mapped) ? b.offset_bytes() : 0,
                        .state = b.test(bh_unwritten) ? extent_state::unwritten
                                 : b.test(bh_mapped)  ? extent_state::mapped
                                 : b.test(bh_delay)   ? extent_state::delayed
                                                      : extent_state::hole};
    }
  }
  mapping_.open();
  co_return e;
}

task<> object_device::forget(std::uint64_t offset, std::uint64_t length) {
  if (const result<> r = co_await close(mapping_); !r) co_return r;
  known_.forget(offset, offset + length);
  forget_buffers(offset, offset + length);
  mapping_.open();
  co_return result<>{};
}

}  // namespace forebay
