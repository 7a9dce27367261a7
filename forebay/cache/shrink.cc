#include "forebay/cache/shrink.h"

#include <algorithm>
#include <chrono>
#include <thread>

namespace forebay {
namespace {

constexpr auto pause_between_attempts = std::chrono::microseconds(500);

// What a frame adds to the cost of its chunk, in pages to be evicted.
constexpr unsigned evict_cost = 1;
constexpr unsigned move_cost = 4;
constexpr unsigned busy_cost = 64;

// Whether a frame that is not free cannot be vacated just now: somebody besides the index holds it,
// or it is under I/O.
bool is_busy(const page& p) noexcept {
  return p.refs().value() > 1 || p.test(page_locked | page_writeback);
}

}  // namespace

std::uint64_t page_cache_shrinker::count_bytes() noexcept {
  return cache_.reclaimable_pages() << page_shift;
}

shrinker::scan_result page_cache_shrinker::scan_bytes(std::uint64_t bytes,
                                                      shrink_goal goal) noexcept {
  scan_result r;
  if (goal == shrink_goal::frames) {
    const unsigned wanted =
        static_cast<unsigned>(std::min<std::uint64_t>((bytes >> page_shift) + 1, 1u << 20));
    r.freed_bytes = std::uint64_t{cache_.evict_pages(wanted)} << page_shift;
    r.stop = r.freed_bytes == 0;
    return r;
  }
  cache_.lru().invalidate();  // what the CPUs' arrays hold could neither be evicted nor moved
  while (r.freed_bytes < bytes && !r.stop) {
    r.stop = !give_a_chunk_back();
    if (!r.stop) r.freed_bytes += arena::chunk_bytes;
  }
  return r;
}

unsigned page_cache_shrinker::cost_of(std::uint32_t chunk) const noexcept {
  arena& memory = cache_.memory();
  const buddy::frame_set used = memory.used_frames(chunk);
  unsigned cost = 0;
  for (std::uint32_t i = 0; i < arena::chunk_frames; ++i) {
    if (!used[i]) continue;
    const page& p = memory.frame(chunk * arena::chunk_frames + i);
    if (p.refs().value() == 0) continue;  // free, and on its way
    // A large page stands here for the frames behind its head, whose counts are zero.
    const bool move = p.was_used() || p.test(page_dirty);
    cost += p.frames() * (is_busy(p) ? busy_cost : move ? move_cost : evict_cost);
  }
  return cost;
}

// Chunks without anything in them that its user has to give back himself.
std::size_t page_cache_shrinker::find_candidates(std::span<std::uint32_t> out) noexcept {
  const arena& memory = cache_.memory();
  const auto fits = [&](std::uint32_t chunk) {
    const arena::chunk_info i = memory.info(chunk);
    return i.state == chunk_state::online && i.fixed == 0;
  };
  const std::size_t proposed = memory.candidates(out.first(out.size() / 2));
  std::size_t n = 0;
  for (std::size_t i = 0; i < proposed; ++i) {
    if (fits(out[i])) out[n++] = out[i];
  }
  const std::size_t kept = n;
  for (std::uint32_t i = 0; i < memory.chunk_count() && n < out.size(); ++i) {
    const std::uint32_t chunk = hand_;
    hand_ = (hand_ + 1) % memory.chunk_count();
    const auto end = out.begin() + static_cast<std::ptrdiff_t>(kept);
    if (fits(chunk) && std::find(out.begin(), end, chunk) == end) out[n++] = chunk;
  }
  return n;
}

// Tries the candidates in the order of their cost; false if none could be emptied, or if the
// operating system does not take one, which it would not do for the next one either.
bool page_cache_shrinker::give_a_chunk_back() noexcept {
  arena& memory = cache_.memory();
  std::array<std::uint32_t, candidates_max> found{};
  const std::size_t n = find_candidates(found);
  struct priced {
    unsigned cost;
    std::uint32_t chunk;
  };
  std::array<priced, candidates_max> order{};
  for (std::size_t i = 0; i < n; ++i) order[i] = {cost_of(found[i]), found[i]};
  std::sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(n),
            [](const priced& a, const priced& b) { return a.cost < b.cost; });
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint32_t chunk = order[i].chunk;
    if (!memory.isolate_chunk(chunk)) continue;
    empty(chunk);
    // It knows best whether the chunk is empty: frames may have gone to the CPUs' caches.
    const result<> given = memory.give_back(chunk);
    if (given) return true;
    // Nothing happens if give_back() has undone it itself.
    memory.undo_isolate(chunk);
    if (given.error() != std::errc::device_or_resource_busy) return false;
  }
  return false;
}

// Empties an isolated chunk as far as that can be done. Those that are in somebody's hands come
// first: if one of them stays there, the others need not go.
void page_cache_shrinker::empty(std::uint32_t chunk) noexcept {
  page* spare = nullptr;
  if (vacate_frames(chunk, true, spare)) vacate_frames(chunk, false, spare);
  if (spare != nullptr) put_page(*spare);
}

// Vacates the chunk's frames, or only those that cannot be had just now; false if some of them
// could not be had until the last attempt.
bool page_cache_shrinker::vacate_frames(std::uint32_t chunk, bool only_busy,
                                        page*& spare) noexcept {
  arena& memory = cache_.memory();
  buddy::frame_set wanted = memory.used_frames(chunk);
  for (std::uint32_t i = 0; only_busy && i < arena::chunk_frames; ++i) {
    if (wanted[i]) wanted[i] = is_busy(memory.frame(chunk * arena::chunk_frames + i));
  }
  for (unsigned attempt = 0; attempt < attempts && wanted.any(); ++attempt) {
    if (attempt != 0) std::this_thread::sleep_for(pause_between_attempts);
    bool none_to_spare = false;  // to find that out takes a look at all pages: once is enough
    for (std::uint32_t i = 0; i < arena::chunk_frames; ++i) {
      if (!wanted[i]) continue;
      if (spare == nullptr && !none_to_spare) {
        spare = cache_.try_allocate_frame();
        none_to_spare = spare == nullptr;
      }
      const page_cache::vacated done =
          cache_.vacate(memory.frame(chunk * arena::chunk_frames + i), spare);
      if (done != page_cache::vacated::busy) wanted.reset(i);
    }
  }
  return wanted.none();
}

}  // namespace forebay
