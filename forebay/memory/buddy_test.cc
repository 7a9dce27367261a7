// One thread: not in the thread sanitizer's tree.

#include "forebay/memory/buddy.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <set>
#include <vector>

namespace forebay {
namespace {

constexpr std::uint32_t chunk_frames = buddy::chunk_frames;
constexpr placement movable = placement::movable;
constexpr placement fixed = placement::fixed;

// An allocator with states of frames of its own; no memory lies behind them.
struct fixture {
  explicit fixture(std::uint32_t count, bool add_all = true)
      : frames(std::make_unique<page[]>(count)),
        chunks(buddy::chunks_of(count)),
        b(frames.get(), count, chunks) {
    for (std::uint32_t c = 0; add_all && c < chunks.size(); ++c) b.add(c);
  }

  std::uint32_t number(const page& p) const {
    return static_cast<std::uint32_t>(&p - frames.get());
  }
  std::uint32_t chunk_of(const page& p) const { return number(p) / chunk_frames; }

  std::unique_ptr<page[]> frames;
  std::vector<buddy::chunk_record> chunks;
  buddy b;
};

// What the allocator must do, by definition, on one flag a frame.
struct model {
  enum class frame : char { absent, free, isolated, used };
  explicit model(std::uint32_t count) : frames(count, frame::free), is_fixed(count, false) {}

  bool all(std::uint32_t at, std::uint32_t count, frame f) const {
    return at + count <= frames.size() &&
           std::all_of(frames.begin() + at, frames.begin() + at + count,
                       [&](frame x) { return x == f; });
  }

  bool has(unsigned order) const {
    const std::uint32_t size = 1u << order;
    for (std::uint32_t at = 0; at + size <= frames.size(); at += size) {
      if (all(at, size, frame::free)) return true;
    }
    return false;
  }

  // The free blocks when everything that can be merged is.
  buddy::counts blocks() const {
    buddy::counts out{};
    for (std::uint32_t at = 0; at < frames.size();) {
      if (frames[at] != frame::free) {
        ++at;
        continue;
      }
      unsigned order = 0;
      while (order < buddy::max_order && at % (2u << order) == 0 &&
             all(at + (1u << order), 1u << order, frame::free)) {
        ++order;
      }
      ++out[order];
      at += 1u << order;
    }
    return out;
  }

  std::uint32_t count(std::uint32_t first, std::uint32_t size, frame f) const {
    return static_cast<std::uint32_t>(
        std::count(frames.begin() + first, frames.begin() + first + size, f));
  }

  void change(std::uint32_t first, std::uint32_t size, frame from, frame to) {
    std::replace(frames.begin() + first, frames.begin() + first + size, from, to);
  }

  std::vector<frame> frames;
  std::vector<bool> is_fixed;
};

struct taken {
  page* head;
  unsigned order;
};

// Random use of an allocator beside the model.
class pair_of_them {
 public:
  pair_of_them(std::uint32_t count, std::uint32_t seed) : f_(count), m_(count), random_(seed) {}

  void step() {
    const unsigned what = random_() % 12;
    const std::uint32_t c = random_() % static_cast<std::uint32_t>(f_.chunks.size());
    if (what < 6) {
      take();
    } else if (what < 9) {
      if (!held_.empty()) give(random_() % held_.size());
    } else {
      change_chunk(c);
    }
    check();
  }

  void end() {
    while (!held_.empty()) give(random_() % held_.size());
    for (std::uint32_t c = 0; c < f_.chunks.size(); ++c) {
      if (state(c) == buddy::presence::absent) f_.b.add(c);
      if (state(c) == buddy::presence::isolated) f_.b.undo_isolate(c);
      RC_ASSERT(f_.chunks[c].fixed == 0);
      RC_ASSERT(f_.chunks[c].group == movable);
    }
    m_.change(0, size(), model::frame::absent, model::frame::free);
    m_.change(0, size(), model::frame::isolated, model::frame::free);
    check();
  }

 private:
  std::uint32_t size() const { return static_cast<std::uint32_t>(m_.frames.size()); }
  buddy::presence state(std::uint32_t c) const { return f_.chunks[c].state; }

  void take() {
    const unsigned order = std::min<unsigned>(random_() % 14, random_() % 14);
    const placement where = random_() % 3 == 0 ? fixed : movable;
    const bool possible = m_.has(order);
    page* const p = f_.b.take(order, where);
    RC_ASSERT((p != nullptr) == possible);
    if (p == nullptr) return;
    const std::uint32_t at = f_.number(*p);
    RC_ASSERT(at % (1u << order) == 0);
    RC_ASSERT(m_.all(at, 1u << order, model::frame::free));
    RC_ASSERT(p->order == order);
    RC_ASSERT(p->test(page_fixed) == (where == fixed));
    RC_ASSERT(!p->link.linked());
    for (std::uint32_t i = at; i < at + (1u << order); ++i) {
      m_.frames[i] = model::frame::used;
      m_.is_fixed[i] = where == fixed;
    }
    held_.push_back({p, order});
  }

  void give(std::size_t which) {
    std::swap(held_[which], held_.back());
    const taken t = held_.back();
    held_.pop_back();
    const std::uint32_t at = f_.number(*t.head);
    for (std::uint32_t i = at; i < at + (1u << t.order); ++i) {
      const bool away = state(i / chunk_frames) == buddy::presence::isolated;
      m_.frames[i] = away ? model::frame::isolated : model::frame::free;
      m_.is_fixed[i] = false;
    }
    f_.b.give(*t.head);
  }

  void change_chunk(std::uint32_t c) {
    const std::uint32_t first = c * chunk_frames;
    const std::uint32_t frames = f_.b.frames_in(c);
    switch (state(c)) {
      case buddy::presence::online:
        RC_ASSERT(f_.b.isolate(c));
        m_.change(first, frames, model::frame::free, model::frame::isolated);
        return;
      case buddy::presence::absent:
        RC_ASSERT(!f_.b.isolate(c));
        f_.b.add(c);
        m_.change(first, frames, model::frame::absent, model::frame::free);
        return;
      case buddy::presence::isolated:
        RC_ASSERT(!f_.b.isolate(c));
        RC_ASSERT(f_.b.wholly_free(c) == m_.all(first, frames, model::frame::isolated));
        if (f_.b.wholly_free(c) && random_() % 2 == 0) {
          f_.b.remove(c);
          m_.change(first, frames, model::frame::isolated, model::frame::absent);
        } else {
          f_.b.undo_isolate(c);
          m_.change(first, frames, model::frame::isolated, model::frame::free);
        }
        return;
    }
  }

  void check() {
    RC_ASSERT(f_.b.free_frames() == m_.count(0, size(), model::frame::free));
    RC_ASSERT(f_.b.free_blocks() == m_.blocks());
    for (std::uint32_t c = 0; c < f_.chunks.size(); ++c) {
      const std::uint32_t first = c * chunk_frames;
      const std::uint32_t frames = f_.b.frames_in(c);
      const buddy::frame_set used = f_.b.used(c);
      std::uint32_t in_use = 0;
      std::uint32_t in_fixed = 0;
      for (std::uint32_t i = 0; i < frames; ++i) {
        const bool is_used = m_.frames[first + i] == model::frame::used;
        RC_ASSERT(used.test(i) == is_used);
        in_use += is_used;
        in_fixed += m_.is_fixed[first + i];
      }
      RC_ASSERT(used.count() == in_use);
      RC_ASSERT(f_.chunks[c].fixed == in_fixed);
      if (state(c) != buddy::presence::absent) RC_ASSERT(f_.chunks[c].free == frames - in_use);
    }
  }

  fixture f_;
  model m_;
  std::mt19937 random_;
  std::vector<taken> held_;
};

RC_GTEST_PROP(Buddy, DoesWhatTheModelAllows, ()) {
  const auto frames = *rc::gen::inRange<std::uint32_t>(1, 4'500);
  pair_of_them both(frames, *rc::gen::arbitrary<std::uint32_t>());
  for (int i = 0; i < 60; ++i) both.step();
  both.end();
}

TEST(Buddy, AWholeGibibyteIsOneBlock) {
  fixture f((1u << buddy::max_order) + 3 * chunk_frames + 5);
  buddy::counts expected{};
  expected[18] = 1;
  expected[10] = 1;
  expected[9] = 1;
  expected[2] = 1;
  expected[0] = 1;
  EXPECT_EQ(f.b.free_blocks(), expected);
  page* const all = f.b.take(buddy::max_order, movable);
  ASSERT_NE(all, nullptr);
  EXPECT_EQ(f.number(*all), 0u);
  EXPECT_EQ(f.b.take(buddy::max_order, fixed), nullptr);
  EXPECT_EQ(f.b.take(buddy::max_order + 1, movable), nullptr);
  EXPECT_EQ(f.b.take(1000, fixed), nullptr);
  EXPECT_EQ(f.b.free_frames(), 3 * chunk_frames + 5);
  f.b.give(*all);
  EXPECT_EQ(f.b.free_blocks(), expected);
}

TEST(Buddy, AChunkOfALargeBlockLeavesAndComesBack) {
  fixture f(16 * chunk_frames);
  const auto whole = f.b.free_blocks();
  EXPECT_EQ(whole[13], 1u);
  ASSERT_TRUE(f.b.isolate(5));
  EXPECT_FALSE(f.b.isolate(5));
  EXPECT_EQ(f.b.free_frames(), 15 * chunk_frames);
  EXPECT_EQ(f.b.free_blocks()[12], 1u);
  EXPECT_EQ(f.b.free_blocks()[11], 1u);
  EXPECT_EQ(f.b.free_blocks()[10], 1u);
  EXPECT_EQ(f.b.free_blocks()[9], 1u);
  EXPECT_TRUE(f.frames[5 * chunk_frames + 7].test(page_isolated));
  f.b.remove(5);
  EXPECT_FALSE(f.frames[5 * chunk_frames + 7].test(page_isolated));
  EXPECT_EQ(f.chunks[5].state, buddy::presence::absent);
  f.b.add(5);
  EXPECT_EQ(f.b.free_blocks(), whole);
}

// Half of the frames are in use, picked at random, then all movable ones go: chunks without fixed
// frames are whole again, and the fixed ones take few chunks.
TEST(Buddy, FixedBlocksStayTogether) {
  constexpr std::uint32_t chunks = 64;
  fixture f(chunks * chunk_frames);
  std::mt19937 random(3);
  std::vector<page*> of_movable;
  std::set<std::uint32_t> chunks_with_fixed;
  std::uint32_t fixed_frames = 0;
  for (int i = 0; i < 12'000; ++i) {
    if (random() % 8 == 0) {
      const unsigned order = random() % 3;
      page* const p = f.b.take(order, fixed);
      ASSERT_NE(p, nullptr);
      chunks_with_fixed.insert(f.chunk_of(*p));
      fixed_frames += 1u << order;
    } else {
      page* const p = f.b.take(random() % 2, movable);
      ASSERT_NE(p, nullptr);
      of_movable.push_back(p);
    }
    if (of_movable.size() > 6'000) {
      std::swap(of_movable[random() % of_movable.size()], of_movable.back());
      f.b.give(*of_movable.back());
      of_movable.pop_back();
    }
  }
  for (page* p : of_movable) f.b.give(*p);
  const std::uint32_t needed = (fixed_frames + chunk_frames - 1) / chunk_frames;
  EXPECT_LE(chunks_with_fixed.size(), needed + 1);
  EXPECT_EQ(*chunks_with_fixed.rbegin(), chunks - 1) << "from the far end";
  EXPECT_GE(*chunks_with_fixed.begin(), chunks - needed - 1);
  std::uint32_t whole = 0;
  for (std::uint32_t c = 0; c < chunks; ++c) whole += f.b.wholly_free(c);
  EXPECT_EQ(whole, chunks - chunks_with_fixed.size());
}

TEST(Buddy, WithoutAFreeChunkFixedBlocksTakeOneChunkOver) {
  fixture f(4 * chunk_frames);
  std::vector<page*> held;
  while (page* p = f.b.take(0, movable)) held.push_back(p);
  ASSERT_EQ(held.size(), 4 * chunk_frames);
  // A little room in every chunk, the most of it in chunk 2.
  std::vector<page*> rest;
  for (page* p : held) {
    const std::uint32_t at = f.number(*p) % chunk_frames;
    if (at < 8 || (f.chunk_of(*p) == 2 && at < 64)) {
      f.b.give(*p);
    } else {
      rest.push_back(p);
    }
  }
  for (int i = 0; i < 64; ++i) {
    page* const p = f.b.take(0, fixed);
    ASSERT_NE(p, nullptr);
    EXPECT_EQ(f.chunk_of(*p), 2u);
  }
  EXPECT_EQ(f.chunks[2].fixed, 64u);
  // Frames that become free there are for fixed blocks; movable ones are taken elsewhere first.
  for (page* p : rest) {
    if (f.chunk_of(*p) == 2) f.b.give(*p);
  }
  for (int i = 0; i < 24; ++i) EXPECT_NE(f.chunk_of(*f.b.take(0, movable)), 2u);
  EXPECT_EQ(f.chunk_of(*f.b.take(0, movable)), 2u) << "before there is nothing at all";
}

TEST(Buddy, TheSmallLastChunkServesFixedBlocksThatFitInIt) {
  fixture f(chunk_frames + 100);
  EXPECT_EQ(f.chunk_of(*f.b.take(6, fixed)), 1u);
  EXPECT_EQ(f.chunk_of(*f.b.take(7, fixed)), 0u);
  EXPECT_EQ(f.chunk_of(*f.b.take(5, fixed)), 1u);
}

TEST(Fragmentation, IndexesFollowTheirDefinition) {
  buddy::counts free{};
  EXPECT_EQ(fragmentation_index(free, 3), 0);
  EXPECT_EQ(unusable_free_index(free, 3), 1000);
  free[0] = 100;
  // 1000 - (1000 + 100 * 1000 / 8) / 100
  EXPECT_EQ(fragmentation_index(free, 3), 865);
  EXPECT_EQ(unusable_free_index(free, 3), 1000);
  EXPECT_EQ(fragmentation_index(free, 0), -1000);
  EXPECT_EQ(unusable_free_index(free, 0), 0);
  free[4] = 5;
  EXPECT_EQ(fragmentation_index(free, 3), -1000);
  EXPECT_EQ(unusable_free_index(free, 3), 1000 * 100 / 180);
  EXPECT_EQ(unusable_free_index(free, 18), 1000);
  buddy::counts few{};
  few[0] = 1;
  EXPECT_LT(fragmentation_index(few, 18), 10) << "for want of memory";
  buddy::counts scattered{};
  scattered[0] = 100'000;
  EXPECT_GT(fragmentation_index(scattered, 9), 990) << "scattered";
}

}  // namespace
}  // namespace forebay
