#include "forebay/memory/buddy.h"

#include <algorithm>
#include <bit>

#include "forebay/base/cache_line.h"

namespace forebay {

// Puts a block that has no free buddy on the list it belongs to.
void buddy::link(std::uint32_t at, unsigned order) noexcept {
  page& block = frames_[at];
  block.order = static_cast<std::uint8_t>(order);
  block.set(page_in_buddy);
  const placement group = order < chunk_order ? chunk_at(at).group : placement::movable;
  lists(group)[order].push_front(block);
  ++count_[order];
  // relaxed: the owner's lock orders the writers, readers take a hint.
  free_frames_.fetch_add(1u << order, std::memory_order_relaxed);
}

void buddy::unlink(page& block) noexcept {
  block_list::erase(block);
  block.clear(page_in_buddy);
  --count_[block.order];
  // relaxed: as in link.
  free_frames_.fetch_sub(1u << block.order, std::memory_order_relaxed);
}

void buddy::merge_and_link(std::uint32_t at, unsigned order) noexcept {
  while (order < max_order) {
    const std::uint32_t other_at = at ^ (1u << order);
    if (other_at + (1u << order) > frame_count_) break;
    // A buddy below 2 MiB is in the same chunk.
    if (order >= chunk_order && chunk_at(other_at).state != presence::online) break;
    page& other = frames_[other_at];
    if (!other.test(page_in_buddy) || other.order != order) break;
    unlink(other);
    at = std::min(at, other_at);
    ++order;
  }
  link(at, order);
}

// Halves a block that is on no list until it has `order`, and lists what is cut off.
page& buddy::cut(page& block, unsigned order, bool upper) noexcept {
  std::uint32_t at = number(block);
  for (unsigned o = block.order; o > order;) {
    --o;
    const std::uint32_t half = at + (1u << o);
    link(upper ? at : half, o);
    if (upper) at = half;
  }
  frames_[at].order = static_cast<std::uint8_t>(order);
  return frames_[at];
}

page* buddy::first_of(list_array& from, unsigned low, unsigned high) noexcept {
  for (unsigned order = low; order <= high; ++order) {
    if (!from[order].empty()) return &from[order].front();
  }
  return nullptr;
}

// Makes a wholly free chunk that can hold a block of `order`, which is below 2 MiB, one of the
// group: the lowest for movable blocks, the highest for fixed ones.
bool buddy::claim_free_chunk(unsigned order, placement group) noexcept {
  if (free_chunks_ == 0) return false;
  const auto suits = [&](std::uint32_t c) {
    return chunks_[c].state == presence::online && wholly_free(c) && frames_in(c) >> order != 0;
  };
  if (group == placement::movable) {
    // The small last one is on the lists below 2 MiB already.
    const std::uint32_t whole = frame_count_ >> chunk_order;
    while (lowest_free_ < whole && !suits(lowest_free_)) ++lowest_free_;
    if (lowest_free_ >= whole) return false;
    regroup(lowest_free_, group);
    return true;
  }
  for (std::uint32_t c = highest_free_ + 1; c-- > 0;) {
    if (!suits(c)) {
      // The hint passes by the small last one for good only when that is not free.
      if (c == highest_free_ && c != 0 && !wholly_free(c)) --highest_free_;
      continue;
    }
    regroup(c, group);
    return true;
  }
  return false;
}

page* buddy::take_movable(unsigned order) noexcept {
  page* found = nullptr;
  if (order < chunk_order) {
    found = first_of(free_, order, chunk_order - 1);
    if (found == nullptr && claim_free_chunk(order, placement::movable)) {
      found = first_of(free_, order, chunk_order - 1);
    }
    if (found == nullptr) found = first_of(fixed_, order, chunk_order - 1);
  } else {
    found = first_of(free_, order, max_order);
  }
  if (found == nullptr) return nullptr;
  unlink(*found);
  return &cut(*found, order, false);
}

page* buddy::take_fixed(unsigned order) noexcept {
  if (order >= chunk_order) {
    page* found = first_of(free_, order, max_order);
    if (found == nullptr) return nullptr;
    unlink(*found);
    return &cut(*found, order, true);
  }
  page* found = first_of(fixed_, order, chunk_order - 1);
  if (found == nullptr) {
    if (!claim_free_chunk(order, placement::fixed)) {
      // The largest block, so that the chunk that is given up for this had the least to lose.
      unsigned o = chunk_order;
      while (o > order && free_[o - 1].empty()) --o;
      if (o == order) return nullptr;
      regroup(number(free_[o - 1].front()) >> chunk_order, placement::fixed);
    }
    found = first_of(fixed_, order, chunk_order - 1);
  }
  unlink(*found);
  return &cut(*found, order, true);
}

// The free block of at least 2 MiB that a chunk is or lies in.
page* buddy::containing_block(std::uint32_t chunk) const noexcept {
  for (unsigned order = chunk_order; order <= max_order; ++order) {
    const std::uint32_t head = round_down(chunk << chunk_order, 1u << order);
    if (chunks_[head >> chunk_order].state != presence::online) continue;
    const page& block = frames_[head];
    if (block.test(page_in_buddy) && block.order >= order) return &frames_[head];
  }
  return nullptr;
}

// Moves a chunk and its free blocks to a group. One that was a free block of 2 MiB or more, or part
// of one, becomes two halves, which exist unmerged only until one of them is taken.
void buddy::regroup(std::uint32_t chunk, placement group) noexcept {
  const std::uint32_t first = chunk << chunk_order;
  if (page* block = containing_block(chunk)) {
    unlink(*block);
    std::uint32_t at = number(*block);
    for (unsigned o = block->order; o > chunk_order;) {
      --o;
      const std::uint32_t half = at + (1u << o);
      const bool upper = first >= half;
      link(upper ? at : half, o);
      if (upper) at = half;
    }
    chunks_[chunk].group = group;
    link(first, chunk_order - 1);
    link(first + chunk_frames / 2, chunk_order - 1);
    return;
  }
  chunks_[chunk].group = group;
  const std::uint32_t end = first + frames_in(chunk);
  for (std::uint32_t at = first; at < end;) {
    page& p = frames_[at];
    if (!p.test(page_in_buddy)) {
      ++at;
      continue;
    }
    block_list::erase(p);
    lists(group)[p.order].push_front(p);
    at += 1u << p.order;
  }
}

void buddy::note_free_chunk(std::uint32_t chunk) noexcept {
  ++free_chunks_;
  lowest_free_ = std::min(lowest_free_, chunk);
  highest_free_ = std::max(highest_free_, chunk);
}

void buddy::count_taken(std::uint32_t at, unsigned order, placement where) noexcept {
  const std::uint32_t share = std::min(1u << order, chunk_frames);
  const std::uint32_t end = at + (1u << order);
  for (std::uint32_t f = at; f < end; f += chunk_frames) {
    chunk_record& c = chunk_at(f);
    if (wholly_free(f >> chunk_order)) --free_chunks_;
    c.free = static_cast<std::uint16_t>(c.free - share);
    if (where == placement::fixed) c.fixed = static_cast<std::uint16_t>(c.fixed + share);
    if (order >= chunk_order) c.group = where;
  }
}

page* buddy::take(unsigned order, placement where) noexcept {
  if (order > max_order) return nullptr;
  page* const block = where == placement::fixed ? take_fixed(order) : take_movable(order);
  if (block == nullptr) return nullptr;
  count_taken(number(*block), order, where);
  if (where == placement::fixed) {
    block->set(page_fixed);
  } else {
    block->clear(page_fixed);
  }
  return block;
}

// The part of a given block that lies in one chunk, if the block is larger than a chunk.
void buddy::give_in_chunk(std::uint32_t at, unsigned order, bool fixed) noexcept {
  const std::uint32_t number = at >> chunk_order;
  chunk_record& c = chunks_[number];
  const std::uint32_t frames = 1u << order;
  c.free = static_cast<std::uint16_t>(c.free + frames);
  if (fixed) c.fixed = static_cast<std::uint16_t>(c.fixed - frames);
  FOREBAY_DCHECK(c.free <= frames_in(number));
  if (c.state == presence::isolated) {
    for (std::uint32_t f = at; f < at + frames; ++f) frames_[f].set(page_isolated);
    return;
  }
  if (wholly_free(number)) {
    note_free_chunk(number);
    // Before the last block is listed: a chunk that merges to 2 MiB has nothing left to move.
    if (c.group != placement::movable && order < chunk_order) regroup(number, placement::movable);
    c.group = placement::movable;
  }
  merge_and_link(at, order);
}

void buddy::give(page& block) noexcept {
  const bool fixed = (block.clear(page_fixed) & page_fixed) != 0;
  const std::uint32_t at = number(block);
  const unsigned order = block.order;
  if (order <= chunk_order) return give_in_chunk(at, order, fixed);
  for (std::uint32_t f = at; f < at + (1u << order); f += chunk_frames) {
    give_in_chunk(f, chunk_order, fixed);
  }
}

void buddy::add(std::uint32_t chunk) noexcept {
  FOREBAY_ASSERT(chunks_[chunk].state == presence::absent);
  const std::uint32_t frames = frames_in(chunk);
  chunks_[chunk] = {.free = static_cast<std::uint16_t>(frames), .state = presence::online};
  note_free_chunk(chunk);
  const std::uint32_t first = chunk << chunk_order;
  for (std::uint32_t left = frames; left != 0;) {
    // The largest block first, so that each is aligned to its size.
    const auto order = static_cast<unsigned>(std::bit_width(left)) - 1;
    merge_and_link(first + (frames - left), order);
    left -= 1u << order;
  }
}

bool buddy::isolate(std::uint32_t chunk) noexcept {
  if (chunks_[chunk].state != presence::online) return false;
  if (wholly_free(chunk)) {
    --free_chunks_;
    // A block that is larger than the chunk is cut up.
    if (frames_in(chunk) == chunk_frames) regroup(chunk, placement::movable);
  }
  chunks_[chunk].state = presence::isolated;
  const std::uint32_t first = chunk << chunk_order;
  for (std::uint32_t at = first; at < first + frames_in(chunk);) {
    page& p = frames_[at];
    if (!p.test(page_in_buddy)) {
      ++at;
      continue;
    }
    unlink(p);
    const std::uint32_t end = at + (1u << p.order);
    for (; at < end; ++at) frames_[at].set(page_isolated);
  }
  return true;
}

void buddy::undo_isolate(std::uint32_t chunk) noexcept {
  FOREBAY_ASSERT(chunks_[chunk].state == presence::isolated);
  chunks_[chunk].state = presence::online;
  if (wholly_free(chunk)) {
    note_free_chunk(chunk);
    chunks_[chunk].group = placement::movable;
  }
  const std::uint32_t first = chunk << chunk_order;
  for (std::uint32_t at = first; at < first + frames_in(chunk); ++at) {
    if ((frames_[at].clear(page_isolated) & page_isolated) != 0) merge_and_link(at, 0);
  }
}

void buddy::remove(std::uint32_t chunk) noexcept {
  FOREBAY_ASSERT(chunks_[chunk].state == presence::isolated && wholly_free(chunk));
  const std::uint32_t first = chunk << chunk_order;
  for (std::uint32_t at = first; at < first + frames_in(chunk); ++at) {
    frames_[at].clear(page_isolated);
  }
  chunks_[chunk] = {};
}

buddy::frame_set buddy::used(std::uint32_t chunk) const noexcept {
  frame_set out;
  if (chunks_[chunk].state == presence::absent || containing_block(chunk) != nullptr) return out;
  const std::uint32_t first = chunk << chunk_order;
  const std::uint32_t frames = frames_in(chunk);
  for (std::uint32_t i = 0; i < frames;) {
    const page& p = frames_[first + i];
    if (p.test(page_in_buddy)) {
      i += 1u << p.order;
      continue;
    }
    if (!p.test(page_isolated)) out.set(i);
    ++i;
  }
  return out;
}

namespace {

struct free_space {
  std::uint64_t frames = 0;
  std::uint64_t blocks = 0;
  std::uint64_t suitable = 0;  // blocks of the wanted order that could be cut from what is free
};

free_space measure(const buddy::counts& free_blocks, unsigned wanted) noexcept {
  free_space s;
  for (unsigned o = 0; o <= buddy::max_order; ++o) {
    s.blocks += free_blocks[o];
    s.frames += std::uint64_t{free_blocks[o]} << o;
    if (o >= wanted) s.suitable += std::uint64_t{free_blocks[o]} << (o - wanted);
  }
  return s;
}

}  // namespace

int fragmentation_index(const buddy::counts& free_blocks, unsigned order) noexcept {
  const free_space s = measure(free_blocks, order);
  if (s.blocks == 0) return 0;
  if (s.suitable != 0) return -1000;
  const std::uint64_t requested = std::uint64_t{1} << order;
  return 1000 - static_cast<int>((1000 + s.frames * 1000 / requested) / s.blocks);
}

int unusable_free_index(const buddy::counts& free_blocks, unsigned order) noexcept {
  const free_space s = measure(free_blocks, order);
  if (s.frames == 0) return 1000;
  return static_cast<int>((s.frames - (s.suitable << order)) * 1000 / s.frames);
}

}  // namespace forebay
