#include "forebay/memory/arena.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "forebay/base/cache_line.h"

namespace forebay {
namespace {

std::unique_ptr<arena> make_arena(std::size_t bytes, bool huge = false) {
  auto made = arena::create({.bytes = bytes, .huge_pages = huge});
  return made ? std::move(*made) : nullptr;
}

// Bytes that give exactly `pages` frames.
constexpr std::size_t bytes_for(std::size_t pages) {
  return pages * (page_bytes + page_state_bytes);
}

bool is_mapped(const void* address, std::size_t bytes) {
  std::vector<unsigned char> residency(bytes / page_bytes + 1);
  return ::mincore(const_cast<void*>(address), bytes, residency.data()) == 0;
}

// Lets the first `successes` calls through and refuses the rest; counts them.
class failing_source final : public memory_source {
 public:
  explicit failing_source(int successes) : left_(successes) {}

  result<memory_mapping> map(const memory_request& request) override {
    if (refuse()) return fail(ENOMEM);
    auto mapping = memory_source::system().map(request);
    if (mapping) given.emplace_back(mapping->data(), mapping->size_bytes());
    return mapping;
  }

  std::vector<std::pair<std::byte*, std::size_t>> given;

 private:
  bool refuse() { return left_-- <= 0; }
  int left_;
};

TEST(Arena, RefusesSizesOutsideItsBounds) {
  EXPECT_EQ(arena::create({.bytes = 0}).error(), errc::too_small);
  EXPECT_EQ(arena::create({.bytes = arena::min_bytes - 1}).error(), errc::too_small);
  EXPECT_EQ(arena::create({.bytes = arena::max_bytes + 1}).error(), errc::too_large);
  EXPECT_TRUE(arena::create({.bytes = arena::min_bytes}));
}

TEST(Arena, AFailingSourceIsAnErrorAndNothingLeaks) {
  for (const int successes : {0, 1}) {
    failing_source source(successes);
    const auto made = arena::create({.bytes = 8u << 20, .huge_pages = false}, source);
    ASSERT_FALSE(made);
    EXPECT_EQ(made.error(), std::errc::not_enough_memory);
    ASSERT_EQ(source.given.size(), static_cast<std::size_t>(successes));
    for (const auto& [data, bytes] : source.given) EXPECT_FALSE(is_mapped(data, bytes));
  }
  failing_source enough(2);
  {
    const auto made = arena::create({.bytes = 8u << 20, .huge_pages = false}, enough);
    ASSERT_TRUE(made);
    for (const auto& [data, bytes] : enough.given) EXPECT_TRUE(is_mapped(data, bytes));
  }
  for (const auto& [data, bytes] : enough.given) EXPECT_FALSE(is_mapped(data, bytes));
}

TEST(Arena, CountsDataAndPageStateTogether) {
  for (const std::size_t bytes : {std::size_t{1} << 20, std::size_t{3} << 20, bytes_for(777)}) {
    const auto a = make_arena(bytes);
    ASSERT_NE(a, nullptr);
    EXPECT_LE(a->page_count() * (page_bytes + page_state_bytes), bytes);
    EXPECT_GT((a->page_count() + 1) * (page_bytes + page_state_bytes), bytes);
    EXPECT_EQ(a->memory().size(), a->page_count() * page_bytes);
    EXPECT_EQ(a->free_pages(), a->page_count());
  }
}

TEST(Arena, HugePagesAreAlignedWhateverCameOfThem) {
  const auto a = make_arena(5u << 20, true);
  ASSERT_NE(a, nullptr);
  EXPECT_TRUE(is_aligned(reinterpret_cast<std::uintptr_t>(a->memory().data()), 2u << 20));
  EXPECT_NE(to_string(a->backing()), nullptr);
}

// Any page count is cut into the fewest aligned blocks: at most one of each order but the largest
// below the end, so the counts are the binary digits of what the largest blocks leave over.
RC_GTEST_PROP(Arena, OddPageCountsAreCutIntoAlignedBlocks, ()) {
  const auto pages = *rc::gen::inRange<std::uint32_t>(260, 5'000);
  const auto a = make_arena(bytes_for(pages));
  RC_ASSERT(a != nullptr);
  RC_ASSERT(a->page_count() == pages);
  const auto blocks = a->free_blocks();
  RC_ASSERT(blocks[arena::max_order] == pages >> arena::max_order);
  for (unsigned order = 0; order < arena::max_order; ++order) {
    RC_ASSERT(blocks[order] == ((pages >> order) & 1u));
  }
}

TEST(Arena, AddressesFramesAndNumbersAgree) {
  const auto a = make_arena(bytes_for(300));
  ASSERT_NE(a, nullptr);
  for (std::uint32_t i = 0; i < a->page_count(); ++i) {
    page& p = a->frame(i);
    ASSERT_EQ(a->frame_of(p), i);
    ASSERT_EQ(p.data(), a->memory().data() + std::size_t{i} * page_bytes);
    ASSERT_EQ(&a->frame_at(p.data()), &p);
    ASSERT_EQ(&a->frame_at(p.data() + page_bytes - 1), &p);
    ASSERT_EQ(frame_table::of(&p).home, a.get());
    ASSERT_FALSE(p.refs().get_unless_zero()) << "a free frame refuses";
  }
}

struct block {
  page* head;
  unsigned order;
};

std::uint32_t frame_number(const page& p) { return frame_table::of(&p).home->frame_of(p); }

void stamp(const block& b) {
  std::memset(b.head->data(), static_cast<int>(frame_number(*b.head) % 251), page_bytes << b.order);
}

bool has_stamp(const block& b) {
  const auto expected = static_cast<std::byte>(frame_number(*b.head) % 251);
  const std::span<const std::byte> bytes(b.head->data(), page_bytes << b.order);
  return std::all_of(bytes.begin(), bytes.end(), [&](std::byte x) { return x == expected; });
}

// What the buddy allocator must do, by definition: hand out aligned frames that are free.
class model {
 public:
  explicit model(const arena& a) : used_(a.page_count(), false), arena_(a) {}

  bool take(const block& b) {
    const std::uint32_t at = arena_.frame_of(*b.head);
    const std::uint32_t count = 1u << b.order;
    if (at % count != 0 || at + count > used_.size()) return false;
    for (std::uint32_t i = at; i < at + count; ++i) {
      if (used_[i]) return false;
      used_[i] = true;
    }
    free_ -= count;
    return true;
  }

  void give(const block& b) {
    const std::uint32_t at = arena_.frame_of(*b.head);
    for (std::uint32_t i = at; i < at + (1u << b.order); ++i) used_[i] = false;
    free_ += 1u << b.order;
  }

  // Whether any aligned block of this order is free.
  bool has(unsigned order) const {
    const std::uint32_t count = 1u << order;
    for (std::uint32_t at = 0; at + count <= used_.size(); at += count) {
      if (std::none_of(used_.begin() + at, used_.begin() + at + count, [](bool u) { return u; })) {
        return true;
      }
    }
    return false;
  }

  std::uint32_t free() const { return free_; }

 private:
  std::vector<bool> used_;
  const arena& arena_;
  std::uint32_t free_ = arena_.page_count();
};

RC_GTEST_PROP(Arena, AllocatesAsTheModelAllows, ()) {
  const auto pages = *rc::gen::inRange<std::uint32_t>(260, 2'500);
  const auto a = make_arena(bytes_for(pages));
  RC_ASSERT(a != nullptr);
  const auto at_first = a->free_blocks();
  model m(*a);
  std::vector<block> held;
  std::mt19937 random(*rc::gen::arbitrary<std::uint32_t>());
  for (int step = 0; step < 150; ++step) {
    if (held.empty() || random() % 5 < 3) {
      // Small orders often, large ones too.
      const unsigned order = std::min<unsigned>(random() % 12, random() % 12);
      page* const p = a->allocate(order);
      if (p == nullptr) {
        RC_ASSERT(order > arena::max_order || !m.has(order));
        continue;
      }
      RC_ASSERT(order <= arena::max_order);
      const block b{p, order};
      RC_ASSERT(m.take(b));
      RC_ASSERT(p->refs().value() == 1u);
      RC_ASSERT(p->flags.load() == 0u);
      RC_ASSERT(!p->owner.load());
      RC_ASSERT(!p->private_data.load());
      RC_ASSERT(!p->link.linked());
      RC_ASSERT(unsigned{p->order} == order);
      if (order < 3) stamp(b);
      held.push_back(b);
    } else {
      std::swap(held[random() % held.size()], held.back());
      const block b = held.back();
      held.pop_back();
      if (b.order < 3) RC_ASSERT(has_stamp(b));
      b.head->set(page_dirty | page_error);  // a new life must not see it
      b.head->private_data.store(&m);
      m.give(b);
      put_page(*b.head);
    }
    RC_ASSERT(a->free_pages() == m.free());
  }
  std::shuffle(held.begin(), held.end(), random);
  for (const block& b : held) put_page(*b.head);
  RC_ASSERT(a->free_blocks() == at_first);  // all merged again
  RC_ASSERT(a->free_pages() == pages);
}

TEST(Arena, ExhaustionGivesNullAndLeavesItWhole) {
  const auto a = make_arena(bytes_for(513));
  ASSERT_NE(a, nullptr);
  const auto at_first = a->free_blocks();
  std::vector<page*> held;
  while (page* p = a->allocate()) held.push_back(p);
  EXPECT_EQ(held.size(), 513u);
  std::sort(held.begin(), held.end());
  EXPECT_EQ(std::unique(held.begin(), held.end()), held.end());
  EXPECT_EQ(a->free_pages(), 0u);
  EXPECT_EQ(a->allocate(0), nullptr);
  EXPECT_EQ(a->allocate(arena::max_order), nullptr);
  EXPECT_EQ(a->free_blocks(), (std::array<std::uint32_t, arena::max_order + 1>{}));

  put_page(*held.back());
  held.pop_back();
  EXPECT_EQ(a->allocate(1), nullptr) << "a single frame is no pair";
  page* const again = a->allocate(0);
  ASSERT_NE(again, nullptr);
  held.push_back(again);
  for (page* p : held) put_page(*p);
  EXPECT_EQ(a->free_blocks(), at_first);
}

TEST(Arena, FramesThatWaitInTheCachesOfCpusAreFreeAndWithinReach) {
  const auto a = make_arena(bytes_for(512));
  ASSERT_NE(a, nullptr);
  const auto touch = [&] {
    page* const p = a->allocate();
    ASSERT_NE(p, nullptr);
    put_page(*p);
    EXPECT_EQ(p->refs().value(), 0u);
    EXPECT_FALSE(p->refs().get_unless_zero());
    EXPECT_FALSE(p->test(page_in_buddy)) << "it waits in a cache";
    EXPECT_EQ(a->free_pages(), 512u);
  };
  touch();
  // A large block, a fixed one, and the last single one take back what other threads left behind.
  std::thread(touch).join();
  page* const all = a->allocate(9);
  ASSERT_NE(all, nullptr);
  put_page(*all);
  std::thread(touch).join();
  std::vector<page*> held;
  while (page* p = a->allocate(0, placement::fixed)) held.push_back(p);
  EXPECT_EQ(held.size(), 512u);
  for (page* p : held) put_page(*p);
  held.clear();
  std::thread(touch).join();
  while (page* p = a->allocate()) held.push_back(p);
  EXPECT_EQ(held.size(), 512u);
  for (page* p : held) put_page(*p);
  EXPECT_EQ(a->free_pages(), 512u);
  ASSERT_TRUE(a->isolate_chunk(0));
  EXPECT_EQ(a->free_pages(), 0u);
  EXPECT_TRUE(a->give_back(0)) << "none was left in a cache";
}

TEST(Arena, AnOrderAboveTheLargestGivesNull) {
  const auto a = make_arena(16u << 20);
  ASSERT_NE(a, nullptr);
  EXPECT_EQ(a->allocate(arena::max_order + 1), nullptr);
  EXPECT_EQ(a->allocate(64), nullptr);
  EXPECT_EQ(a->allocate(arena::max_order), nullptr) << "larger than the arena";
  page* const largest = a->allocate(10);
  ASSERT_NE(largest, nullptr);
  EXPECT_EQ(a->free_pages(), a->page_count() - 1024);
  put_page(*largest);
}

RC_GTEST_PROP(Arena, ASplitBlockIsSingleFramesThatMergeAgain, ()) {
  const auto order = *rc::gen::inRange(0u, 7u);
  const auto a = make_arena(bytes_for(300));
  const auto at_first = a->free_blocks();
  page* const p = a->allocate(order);
  RC_ASSERT(p != nullptr);
  p->set(page_uptodate);
  a->split(*p);
  RC_ASSERT(p->test(page_uptodate));  // the first frame stays as it was
  std::vector<std::uint32_t> frames(std::size_t{1} << order);
  std::iota(frames.begin(), frames.end(), a->frame_of(*p));
  for (const std::uint32_t f : frames) {
    RC_ASSERT(a->frame(f).refs().value() == 1u);
    RC_ASSERT(unsigned{a->frame(f).order} == 0u);
    RC_ASSERT(!a->frame(f).link.linked());
    if (f != frames.front()) RC_ASSERT(a->frame(f).flags.load() == 0u);
  }
  std::mt19937 random(*rc::gen::arbitrary<std::uint32_t>());
  std::shuffle(frames.begin(), frames.end(), random);
  std::uint32_t free = a->free_pages();
  for (const std::uint32_t f : frames) {
    put_page(a->frame(f));
    RC_ASSERT(a->free_pages() == ++free);
  }
  RC_ASSERT(a->free_blocks() == at_first);
}

TEST(Arena, ATransientReferenceKeepsTheBlock) {
  const auto a = make_arena(bytes_for(300));
  page* const p = a->allocate(2);
  ASSERT_NE(p, nullptr);
  const std::uint32_t free = a->free_pages();
  std::thread reader([&] {
    ASSERT_TRUE(p->refs().get_unless_zero());
    EXPECT_FALSE(a->frame(a->frame_of(*p) + 1).refs().get_unless_zero()) << "not a head";
  });
  reader.join();
  put_page(*p);
  EXPECT_EQ(a->free_pages(), free) << "the reader still holds it";
  std::thread([&] { put_page(*p); }).join();
  EXPECT_EQ(a->free_pages(), free + 4);
  EXPECT_EQ(a->free_pages(), a->page_count());
}

// Two threads allocate, stamp, check and free; a third takes references on a guess all the time, as
// a cache lookup does, and is sometimes the one that gives a block back.
TEST(ArenaStress, ThreadsNeverShareAFrame) {
  const auto a = make_arena(bytes_for(700));
  ASSERT_NE(a, nullptr);
  const auto at_first = a->free_blocks();
  std::atomic<int> damaged{0};
  std::atomic<int> refused{0};
  std::atomic<bool> stop{false};
  std::thread guesser([&] {
    std::mt19937 random(1);
    while (!stop.load()) {
      page& p = a->frame(random() % a->page_count());
      if (!p.refs().get_unless_zero()) {
        std::this_thread::yield();
        continue;
      }
      if (p.test(page_in_buddy)) ++damaged;
      put_page(p);
    }
  });
  std::vector<std::thread> workers;
  for (unsigned t = 0; t < 2; ++t) {
    workers.emplace_back([&, t] {
      std::mt19937 random(100 + t);
      struct mine {
        page* head;
        unsigned order;
        std::uint64_t mark;
      };
      std::vector<mine> held;
      const auto words = [](page& p) { return reinterpret_cast<std::uint64_t*>(p.data()); };
      const auto free_last = [&] {
        const mine m = held.back();
        held.pop_back();
        for (std::uint32_t f = 0; f < 1u << m.order; ++f) {
          const std::uint64_t* const w = words(m.head[f]);
          if (w[0] != m.mark + f || w[511] != ~(m.mark + f)) ++damaged;
        }
        put_page(*m.head);
      };
      for (std::uint64_t i = 0; i < 4'000; ++i) {
        if (held.size() < 60 && random() % 2 == 0) {
          const unsigned order = std::min<unsigned>(random() % 8, random() % 8);
          page* const p = a->allocate(order);
          if (p == nullptr) {
            ++refused;
            continue;
          }
          const mine m{p, order, (std::uint64_t{t} << 56) + (i << 16)};
          for (std::uint32_t f = 0; f < 1u << order; ++f) {
            words(p[f])[0] = m.mark + f;
            words(p[f])[511] = ~(m.mark + f);
          }
          held.push_back(m);
        } else if (!held.empty()) {
          std::swap(held[random() % held.size()], held.back());
          free_last();
        }
      }
      while (!held.empty()) free_last();
    });
  }
  for (std::thread& w : workers) w.join();
  stop = true;
  guesser.join();
  EXPECT_EQ(damaged.load(), 0);
  EXPECT_EQ(a->free_pages(), a->page_count());
  EXPECT_EQ(a->free_blocks(), at_first);
}

TEST(ArenaDeathTest, AnArenaWithFramesOutMustNotGo) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        const auto a = make_arena(bytes_for(300));
        static_cast<void>(a->allocate());
      },
      "free_pages");
}

}  // namespace
}  // namespace forebay
