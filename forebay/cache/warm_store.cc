#include "forebay/cache/warm_store.h"

#include <algorithm>
#include <cstring>

#include "forebay/cache/address_space.h"
#include "forebay/cache/warm_parts.h"
#include "forebay/os/clock.h"

namespace forebay {

warm_store::~warm_store() = default;

// Everything is taken from the arena, and what is not wanted given back: nobody else has been there
// yet, so no frame with data in it can go to somebody else in between.
void warm_store::claim(arena& memory) {
  const std::uint64_t began = monotonic_clock::now_ns();
  std::vector<page*> unwanted;
  for (unsigned order = arena::max_order;;) {
    page* const block = memory.allocate(order);
    if (block == nullptr) {
      if (order-- == 0) break;
      continue;
    }
    const std::uint32_t first = memory.frame_of(*block);
    const std::uint32_t count = block->frames();
    // relaxed, here and below: no other thread is there yet.
    const bool wanted =
        std::any_of(records_.begin() + first, records_.begin() + first + count,
                    [](const auto& w) { return w.load(std::memory_order_relaxed) != 0; });
    if (!wanted) {
      unwanted.push_back(block);
      continue;
    }
    memory.split(*block);
    for (std::uint32_t i = first; i < first + count; ++i) {
      if (records_[i].load(std::memory_order_relaxed) != 0) {  // relaxed: as above
        claimed_.push_back(i);
      } else {
        unwanted.push_back(&memory.frame(i));
      }
    }
  }
  for (page* const p : unwanted) put_page(*p);
  keep_room(memory);
  statistics_.recovery_ns += monotonic_clock::now_ns() - began;
}

// What the cache needs beside pages must find room: clean pages that are not hot give way.
void warm_store::keep_room(arena& memory) noexcept {
  const std::uint32_t room = memory.page_count() / 64 + 64;
  for (std::uint32_t& frame : claimed_) {
    if (memory.free_pages() >= room) return;
    // relaxed: as above
    const warm_record r = warm_record::of(records_[frame].load(std::memory_order_relaxed));
    if (r.dirty != 0 || r.hot) continue;
    drop(memory, std::exchange(frame, UINT32_MAX));
  }
}

void warm_store::drop(arena& memory, std::uint32_t frame) noexcept {
  records_[frame].store(0, std::memory_order_relaxed);  // relaxed: no other thread is there yet
  put_page(memory.frame(frame));
  ++statistics_.dropped_pages;
}

void warm_store::abandon(arena& memory) noexcept {
  for (const std::uint32_t frame : claimed_) {
    if (frame != UINT32_MAX) put_page(memory.frame(frame));
  }
  claimed_.clear();
}

result<> warm_store::adopt(page_cache& cache, address_space& space, std::uint32_t frame,
                           const warm_record& r) noexcept {
  page& p = cache.memory().frame(frame);
  for (;;) {
    const result<> done = space.adopt(p, r);
    if (done) {
      ++statistics_.recovered_pages;
      if (r.dirty != 0) ++statistics_.dirty_pages;
      return {};
    }
    if (done.error() == std::errc::not_enough_memory) {
      if (cache.try_make_room()) continue;
      if (r.dirty != 0) return done;
      drop(cache.memory(), frame);
      return {};
    }
    if (done.error() != std::errc::file_exists) return done;
    // The process ended while it moved the page: both are the same, or somebody has been at the
    // file.
    const page_ref other = space.recovered(r.index);
    // relaxed: no other thread is there yet
    const std::uint64_t has =
        other ? records_[cache.memory().frame_of(*other)].load(std::memory_order_relaxed) : 0;
    if ((has | warm_record::hot_bit) != (r.word() | warm_record::hot_bit) ||
        std::memcmp(other->data(), p.data(), page_bytes) != 0) {
      return fail(errc::corrupt);
    }
    drop(cache.memory(), frame);
    return {};
  }
}

result<> warm_store::recover(page_cache& cache, std::span<address_space* const> by_slot) {
  const std::uint64_t began = monotonic_clock::now_ns();
  // What a policy is given first leaves first.
  for (const bool hot : {false, true}) {
    for (std::uint32_t& frame : claimed_) {
      if (frame == UINT32_MAX) continue;
      // relaxed: no other thread is there yet
      const warm_record r = warm_record::of(records_[frame].load(std::memory_order_relaxed));
      if (r.hot != hot) continue;
      address_space* const space = r.image < by_slot.size() ? by_slot[r.image] : nullptr;
      if (space == nullptr) return fail(errc::corrupt);
      if (auto done = adopt(cache, *space, frame, r); !done) return done;
      frame = UINT32_MAX;
    }
  }
  claimed_ = {};
  header_->state.store(warm_state::in_use);
  statistics_.recovery_ns += monotonic_clock::now_ns() - began;
  return {};
}

void warm_store::close(bool clean) noexcept {
  if (closed_) return;
  closed_ = true;
  if (!clean) return;
  for (const unsigned slot : slots_) {
    const auto now = identity_of(entries_[slot].path_text());
    if (!now) return;
    entries_[slot].identity.size_bytes = now->size_bytes;
    entries_[slot].identity.modified_ns = now->modified_ns;
  }
  header_->state.store(warm_state::clean);
}

std::optional<unsigned> warm_store::note_discarding(unsigned image, std::uint64_t from,
                                                    std::uint64_t end) noexcept {
  auto& discards = entries_[image].discards;
  for (unsigned i = 0; i < discards.size(); ++i) {
    // The end makes it one, and is the last.
    std::atomic_ref<std::uint64_t> until(discards[i].end);
    if (until.load(std::memory_order_relaxed) != 0) continue;  // relaxed: under the space's lock
    discards[i].from = from;
    until.store(end);
    return i;
  }
  return std::nullopt;
}

bool warm_store::may_note_discarding(unsigned image) const noexcept {
  return std::any_of(entries_[image].discards.begin(), entries_[image].discards.end(),
                     [](const auto& d) { return d.end == 0; });
}

void warm_store::note_discarded(unsigned image, unsigned number) noexcept {
  std::atomic_ref<std::uint64_t>(entries_[image].discards[number].end).store(0);
}

void warm_store::note_grown(unsigned image, std::uint64_t bytes) noexcept {
  std::uint64_t& size = entries_[image].identity.size_bytes;
  // That of a block device is not kept.
  if (size != 0 && bytes > size) {
    // relaxed: the next line orders it, for the end of this thread.
    std::atomic_ref(size).store(bytes, std::memory_order_relaxed);
  }
  std::atomic_signal_fence(std::memory_order_seq_cst);
}

}  // namespace forebay
