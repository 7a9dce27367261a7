// The arena's chunks: how memory comes from the operating system and goes back.
#include <algorithm>
#include <new>

#include "forebay/memory/arena.h"

namespace forebay {

std::span<std::byte> arena::memory_of(std::uint32_t chunk) const noexcept {
  return memory().subspan(std::size_t{chunk} * chunk_bytes,
                          std::size_t{buddy_.frames_in(chunk)} << page_shift);
}

// The same with what the last one was rounded up by for the sake of larger pages.
std::span<std::byte> arena::mapping_of(std::uint32_t chunk) const noexcept {
  const std::size_t start = std::size_t{chunk} * chunk_bytes;
  return data_.part(start, std::min(chunk_bytes, data_.size_bytes() - start));
}

// Readies the states of a chunk's frames for the buddy. The chunk is arriving.
void arena::make_frames(std::uint32_t chunk) noexcept {
  const std::uint32_t first = chunk << buddy::chunk_order;
  const std::uint32_t end = first + buddy_.frames_in(chunk);
  for (std::uint32_t i = first; i < end; ++i) {
    if (!chunks_[chunk].made) {
      new (pages() + i) page;
      new (&table().count_of(i)) refcount(0);
    } else {
      frame(i).flags.store(0, std::memory_order_relaxed);  // relaxed: lock_ publishes it
    }
  }
  chunks_[chunk].made = true;
}

void arena::put_online(std::uint32_t chunk) noexcept {
  buddy_.add(chunk);
  chunks_[chunk].state = chunk_state::online;
}

std::uint64_t arena::staying_bytes() const noexcept {
  return committed_bytes() - (std::uint64_t{leaving_frames_} << page_shift);
}

std::uint64_t arena::limit_bytes() const noexcept {
  const scoped_lock hold(lock_);
  return limit_;
}

std::uint64_t arena::excess_bytes() const noexcept {
  const scoped_lock hold(lock_);
  const std::uint64_t staying = staying_bytes();
  return staying > limit_ ? staying - limit_ : 0;
}

arena::chunk_info arena::info(std::uint32_t chunk) const noexcept {
  const scoped_lock hold(lock_);
  const buddy::chunk_record& c = buddy_.state_of(chunk);
  return {chunks_[chunk].state, buddy_.frames_in(chunk), c.free, c.fixed};
}

bool arena::begin_isolation(std::uint32_t chunk) noexcept {
  if (!buddy_.isolate(chunk)) return false;
  chunks_[chunk].state = chunk_state::isolated;
  isolated_.fetch_add(1);
  return true;
}

void arena::end_isolation(std::uint32_t chunk) noexcept {
  buddy_.undo_isolate(chunk);
  chunks_[chunk].state = chunk_state::online;
  isolated_.fetch_sub(1);
}

bool arena::isolate_chunk(std::uint32_t chunk) noexcept {
  {
    const scoped_lock hold(lock_);
    if (chunk >= chunk_count() || !begin_isolation(chunk)) return false;
  }
  cache_.reclaim();
  return true;
}

bool arena::undo_isolate(std::uint32_t chunk) noexcept {
  const scoped_lock hold(lock_);
  if (chunk >= chunk_count() || chunks_[chunk].state != chunk_state::isolated) return false;
  end_isolation(chunk);
  return true;
}

result<> arena::give_back(std::uint32_t chunk) noexcept {
  if (chunk >= chunk_count()) return fail(EINVAL);
  const chunk_info before = info(chunk);
  if (before.state == chunk_state::isolated && before.free != before.frames) cache_.reclaim();
  {
    const scoped_lock hold(lock_);
    if (chunks_[chunk].state != chunk_state::isolated) return fail(EINVAL);
    if (backing() == page_backing::gigantic_reserved) {
      // A 1 GiB page goes as a whole or not at all.
      end_isolation(chunk);
      return fail(EOPNOTSUPP);
    }
    if (!buddy_.wholly_free(chunk)) return fail(EBUSY);
    chunks_[chunk].state = chunk_state::leaving;
    chunks_[chunk].answers = 1;  // this call's own
    leaving_frames_ += buddy_.frames_in(chunk);
  }
  {
    const scoped_lock hold(device_lock_);
    for (arena_device& d : devices_) {
      d.owed_.fetch_add(1, std::memory_order_relaxed);  // relaxed: before forget() in any case
      {
        const scoped_lock hold_too(lock_);
        ++chunks_[chunk].answers;
      }
      d.forget(chunk);
    }
  }
  return answered(chunk);
}

void arena::device_forgot(arena_device& d, std::uint32_t chunk) noexcept {
  static_cast<void>(answered(chunk));  // an error is counted, and the chunk online again
  // release: the device may go once it sees this.
  d.owed_.fetch_sub(1, std::memory_order_release);
}

result<> arena::answered(std::uint32_t chunk) noexcept {
  {
    const scoped_lock hold(lock_);
    if (--chunks_[chunk].answers != 0) return {};
  }
  return discard(chunk);
}

// The last step of give_back(), when nobody but the caller has anything to do with the chunk.
result<> arena::discard(std::uint32_t chunk) noexcept {
  const std::span<std::byte> part = mapping_of(chunk);
  const bool pinned = chunks_[chunk].pinned;
  if (pinned) source_.unpin(part);
  const result<> done = source_.discard(part);
  if (!done && pinned) chunks_[chunk].pinned = source_.pin(part).has_value();
  {
    const scoped_lock hold(lock_);
    const std::uint32_t frames = buddy_.frames_in(chunk);
    leaving_frames_ -= frames;
    if (pinned && (done || !chunks_[chunk].pinned)) counts_.pinned_bytes -= part.size();
    if (done) {
      buddy_.remove(chunk);
      isolated_.fetch_sub(1);
      const std::uint32_t first = chunk << buddy::chunk_order;
      for (std::uint32_t i = first; i < first + frames; ++i) {
        frame(i).flags.store(page_offline, std::memory_order_relaxed);  // relaxed: lock_ publishes
      }
      chunks_[chunk].state = chunk_state::offline;
      chunks_[chunk].pinned = false;
      lowest_offline_ = std::min(lowest_offline_, chunk);
      committed_frames_.fetch_sub(frames, std::memory_order_relaxed);  // relaxed: a level
      offline_chunks_.fetch_add(1, std::memory_order_relaxed);         // relaxed: a level
      ++counts_.given_back;
      return {};
    }
    end_isolation(chunk);
    ++counts_.give_back_failures;
  }
  ask_to_remember(chunk);
  return done;
}

// Chooses the lowest offline chunk and makes it arriving, if the limit allows.
std::optional<std::uint32_t> arena::begin_bringing() noexcept {
  const scoped_lock hold(lock_);
  while (lowest_offline_ < chunk_count() &&
         chunks_[lowest_offline_].state != chunk_state::offline) {
    ++lowest_offline_;
  }
  const std::uint32_t chunk = lowest_offline_;
  if (chunk == chunk_count()) return std::nullopt;
  const std::uint32_t frames = buddy_.frames_in(chunk);
  const std::uint64_t bytes = std::uint64_t{frames} << page_shift;
  const std::uint64_t staying = staying_bytes();
  if (staying >= limit_ || bytes > limit_ - staying) return std::nullopt;
  chunks_[chunk].state = chunk_state::arriving;
  committed_frames_.fetch_add(frames, std::memory_order_relaxed);  // relaxed: a level
  offline_chunks_.fetch_sub(1, std::memory_order_relaxed);         // relaxed: a level
  return chunk;
}

bool arena::bring_back() noexcept {
  // relaxed: an arena that is whole, or full to its limit, must not pay for the question.
  if (offline_chunks_.load(std::memory_order_relaxed) == 0) return false;
  const std::optional<std::uint32_t> chosen = begin_bringing();
  if (!chosen) return false;
  const std::uint32_t chunk = *chosen;
  const std::span<std::byte> part = mapping_of(chunk);
  if (!source_.commit(part, backing())) {
    const scoped_lock hold(lock_);
    chunks_[chunk].state = chunk_state::offline;
    lowest_offline_ = std::min(lowest_offline_, chunk);
    committed_frames_.fetch_sub(buddy_.frames_in(chunk),
                                std::memory_order_relaxed);   // relaxed: a level
    offline_chunks_.fetch_add(1, std::memory_order_relaxed);  // relaxed: a level
    ++counts_.bring_back_failures;
    return false;
  }
  const bool pinned = pin_ && source_.pin(part).has_value();
  make_frames(chunk);
  {
    const scoped_lock hold(lock_);
    chunks_[chunk].pinned = pinned;
    if (pinned) counts_.pinned_bytes += part.size();
    if (pin_ && !pinned) ++counts_.unpinned_chunks;
    ++counts_.brought_back;
    put_online(chunk);
  }
  ask_to_remember(chunk);
  return true;
}

void arena::set_limit_bytes(std::uint64_t bytes) noexcept {
  {
    const scoped_lock hold(lock_);
    limit_ = bytes;
  }
  trim();
}

std::uint32_t arena::trim() noexcept {
  if (backing() == page_backing::gigantic_reserved) return 0;
  if (excess_bytes() == 0) return 0;
  cache_.reclaim();
  std::uint32_t started = 0;
  for (std::uint32_t c = chunk_count(); c-- > 0;) {
    {
      const scoped_lock hold(lock_);
      if (staying_bytes() <= limit_) break;
      if (chunks_[c].state != chunk_state::online || !buddy_.wholly_free(c)) continue;
      if (!begin_isolation(c)) continue;
    }
    if (!give_back(c)) break;
    ++started;
  }
  return started;
}

std::size_t arena::candidates(std::span<std::uint32_t> out) const noexcept {
  cache_.reclaim();
  const scoped_lock hold(lock_);
  const auto cheaper = [&](std::uint32_t a, std::uint32_t b) {
    const buddy::chunk_record& x = buddy_chunks_[a];
    const buddy::chunk_record& y = buddy_chunks_[b];
    return x.fixed != y.fixed ? x.fixed < y.fixed : x.free > y.free;
  };
  std::size_t count = 0;
  if (out.empty()) return 0;
  for (std::uint32_t c = 0; c < chunk_count(); ++c) {
    if (chunks_[c].state != chunk_state::online) continue;
    // A heap with the dearest on top.
    if (count < out.size()) {
      out[count++] = c;
      std::push_heap(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(count), cheaper);
    } else if (cheaper(c, out.front())) {
      std::pop_heap(out.begin(), out.end(), cheaper);
      out.back() = c;
      std::push_heap(out.begin(), out.end(), cheaper);
    }
  }
  std::sort_heap(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(count), cheaper);
  return count;
}

buddy::frame_set arena::used_frames(std::uint32_t chunk) const noexcept {
  const scoped_lock hold(lock_);
  return buddy_.used(chunk);
}

void arena::add_device(arena_device& d) noexcept {
  const scoped_lock hold(device_lock_);
  devices_.push_back(d);
}

void arena::remove_device(arena_device& d) noexcept {
  const scoped_lock hold(device_lock_);
  devices_.erase(d);
}

void arena::ask_to_remember(std::uint32_t chunk) noexcept {
  const scoped_lock hold(device_lock_);
  for (arena_device& d : devices_) d.remember(chunk);
}

arena_statistics arena::statistics() const noexcept {
  const scoped_lock hold(lock_);
  arena_statistics s = counts_;
  s.reserved_bytes = memory().size();
  s.committed_bytes = committed_bytes();
  s.limit_bytes = limit_;
  s.free_pages = free_pages();
  s.offline_chunks = offline_chunks_.load(std::memory_order_relaxed);  // relaxed: a level
  for (std::uint32_t c = 0; c < chunk_count(); ++c) {
    if (chunks_[c].state == chunk_state::isolated) ++s.isolated_chunks;
    if (chunks_[c].state == chunk_state::leaving) ++s.leaving_chunks;
  }
  s.free_blocks = buddy_.free_blocks();
  s.backing = backing();
  return s;
}

}  // namespace forebay
