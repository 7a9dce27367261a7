#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "forebay/memory/arena.h"
#include "forebay/os/memory.h"

namespace forebay {
namespace {

constexpr std::size_t mebibyte = 1u << 20;

constexpr std::size_t bytes_for_chunks(std::size_t chunks) {
  return chunks * arena::chunk_frames * (page_bytes + page_state_bytes);
}

std::unique_ptr<arena> make_arena(arena::options opts,
                                  memory_source& source = memory_source::system()) {
  auto made = arena::create(opts, source);
  return made ? std::move(*made) : nullptr;
}

std::unique_ptr<arena> make_chunks(std::size_t chunks, std::uint64_t limit = UINT64_MAX) {
  return make_arena({.bytes = bytes_for_chunks(chunks), .huge_pages = false, .limit_bytes = limit});
}

std::vector<page*> take_all(arena& a) {
  std::vector<page*> held;
  while (page* p = a.allocate()) held.push_back(p);
  return held;
}

void give_all(std::vector<page*>& held) {
  for (page* p : held) put_page(*p);
  held.clear();
}

// Sanitizers make mlock() a call that does nothing.
bool can_pin() {
  const auto locked_kib = [] {
    std::ifstream in("/proc/self/status");
    for (std::string word; in >> word;) {
      long kib = 0;
      if (word == "VmLck:" && in >> kib) return kib;
    }
    return 0l;
  };
  const auto m = memory_source::system().map({.bytes = page_bytes});
  const long before = locked_kib();
  return m && memory_source::system().pin(m->part(0, page_bytes)) && locked_kib() > before;
}

// Counts what is asked of it and refuses one call.
class counting_source final : public memory_source {
 public:
  explicit counting_source(int refused = -1) : refused_(refused) {}

  result<memory_mapping> map(const memory_request& r) override {
    if (refuse()) return fail(ENOMEM);
    auto m = memory_source::map(r);
    if (m) mappings.emplace_back(m->data(), m->size_bytes());
    return m;
  }
  result<> commit(std::span<std::byte> part, page_backing b) override {
    if (refuse()) return fail(ENOMEM);
    return memory_source::commit(part, b);
  }
  result<> discard(std::span<std::byte> part) override {
    EXPECT_EQ(pinned.count(part.data()), 0u);
    if (refuse()) return fail(EIO);
    return memory_source::discard(part);
  }
  result<> pin(std::span<std::byte> part) override {
    if (refuse()) return fail(EAGAIN);
    for (std::size_t at = 0; at < part.size(); at += arena::chunk_bytes) {
      EXPECT_TRUE(pinned.insert(part.data() + at).second);
    }
    return {};
  }
  void unpin(std::span<std::byte> part) noexcept override {
    EXPECT_EQ(pinned.erase(part.data()), 1u);
  }

  int calls = 0;
  std::vector<std::pair<std::byte*, std::size_t>> mappings;
  std::set<std::byte*> pinned;

 private:
  bool refuse() { return calls++ == refused_; }
  int refused_;
};

class test_device final : public arena_device {
 public:
  explicit test_device(arena& a, bool at_once = false) : arena_(a), at_once_(at_once) {
    a.add_device(*this);
  }
  ~test_device() override { arena_.remove_device(*this); }
  void forget(std::uint32_t chunk) noexcept override {
    if (at_once_) return arena_.device_forgot(*this, chunk);
    asked.push_back(chunk);
  }
  void remember(std::uint32_t chunk) noexcept override { remembered.push_back(chunk); }
  void answer() {
    for (const std::uint32_t c : std::exchange(asked, {})) arena_.device_forgot(*this, c);
  }

  std::vector<std::uint32_t> asked;
  std::vector<std::uint32_t> remembered;

 private:
  arena& arena_;
  const bool at_once_;
};

TEST(ArenaChunks, MemoryIsReallyGivenBackAndComesBackAsZeros) {
  for (const bool huge : {false, true}) {
    const auto a = make_arena({.bytes = bytes_for_chunks(16), .huge_pages = huge});
    ASSERT_NE(a, nullptr);
    std::memset(a->memory().data(), 0x5a, a->memory().size());
    ASSERT_EQ(resident_bytes(a->memory()), a->memory().size());
    for (std::uint32_t c = 2; c < 14; ++c) {
      ASSERT_TRUE(a->isolate_chunk(c));
      ASSERT_TRUE(a->give_back(c));
    }
    EXPECT_EQ(resident_bytes(a->memory()), 4 * arena::chunk_bytes) << huge;
    EXPECT_EQ(a->committed_bytes(), 4 * arena::chunk_bytes);
    EXPECT_EQ(a->statistics().offline_chunks, 12u);
    EXPECT_EQ(a->free_pages(), 4 * arena::chunk_frames);
    EXPECT_TRUE(a->frame(3 * arena::chunk_frames).test(page_offline));
    EXPECT_FALSE(a->frame(3 * arena::chunk_frames).refs().get_unless_zero());
    for (int i = 0; i < 12; ++i) ASSERT_TRUE(a->bring_back());
    EXPECT_FALSE(a->bring_back());
    EXPECT_FALSE(a->frame(3 * arena::chunk_frames).test(page_offline));
    EXPECT_EQ(a->memory_of(3)[100], std::byte{0});
    EXPECT_EQ(a->memory_of(15)[100], std::byte{0x5a});
    std::memset(a->memory().data(), 0x77, a->memory().size());
    EXPECT_EQ(resident_bytes(a->memory()), a->memory().size());
    EXPECT_EQ(a->free_blocks()[13], 1u) << "all merged again";
  }
}

TEST(ArenaChunks, FramesFreedInAnIsolatedChunkStayOut) {
  const auto a = make_chunks(3);
  auto held = take_all(*a);
  ASSERT_TRUE(a->isolate_chunk(1));
  EXPECT_FALSE(a->isolate_chunk(1));
  EXPECT_FALSE(a->isolate_chunk(3));
  EXPECT_EQ(a->used_frames(1).count(), 512u);
  EXPECT_EQ(a->give_back(1).error().value(), EBUSY);
  EXPECT_EQ(a->give_back(0).error().value(), EINVAL);
  EXPECT_EQ(a->give_back(77).error().value(), EINVAL);
  page* last = nullptr;
  for (page*& p : held) {
    if (a->chunk_of(*p) != 1) continue;
    if (last != nullptr) put_page(*last);
    last = std::exchange(p, nullptr);
  }
  std::erase(held, nullptr);
  EXPECT_EQ(a->free_pages(), 0u);
  EXPECT_EQ(a->allocate(), nullptr);
  EXPECT_EQ(a->info(1).state, chunk_state::isolated);
  EXPECT_EQ(a->info(1).free, 511u);
  EXPECT_TRUE(a->used_frames(1).test(a->frame_of(*last) - 512));
  EXPECT_EQ(a->used_frames(1).count(), 1u);
  EXPECT_EQ(a->give_back(1).error().value(), EBUSY);
  EXPECT_TRUE(a->undo_isolate(1));
  EXPECT_FALSE(a->undo_isolate(1));
  EXPECT_EQ(a->free_pages(), 511u);
  put_page(*last);
  EXPECT_EQ(a->free_blocks()[9], 1u);
  give_all(held);
}

TEST(ArenaChunks, TheLimitHoldsAndIsLiftedOnDemand) {
  const auto a = make_chunks(8, 3 * arena::chunk_bytes + 4096);
  ASSERT_NE(a, nullptr);
  EXPECT_EQ(a->committed_bytes(), 3 * arena::chunk_bytes);
  EXPECT_EQ(a->info(3).state, chunk_state::offline);
  EXPECT_EQ(a->frame(4 * 512).refs().value(), 0u) << "never taken, and refuses";
  auto held = take_all(*a);
  EXPECT_EQ(held.size(), 3u * 512);
  EXPECT_FALSE(a->bring_back());
  a->set_limit_bytes(5 * arena::chunk_bytes);
  EXPECT_EQ(a->committed_bytes(), 3 * arena::chunk_bytes) << "on demand only";
  held.push_back(a->allocate());
  ASSERT_NE(held.back(), nullptr);
  EXPECT_EQ(a->committed_bytes(), 4 * arena::chunk_bytes);
  // Lowering evicts nothing.
  a->set_limit_bytes(arena::chunk_bytes);
  EXPECT_EQ(a->committed_bytes(), 4 * arena::chunk_bytes);
  EXPECT_EQ(a->excess_bytes(), 3 * arena::chunk_bytes);
  give_all(held);
  EXPECT_EQ(a->trim(), 3u);
  EXPECT_EQ(a->excess_bytes(), 0u);
  EXPECT_EQ(a->committed_bytes(), arena::chunk_bytes);
  EXPECT_EQ(a->trim(), 0u);
  EXPECT_EQ(a->allocate(10), nullptr);
  a->set_limit_bytes(0);
  EXPECT_EQ(a->committed_bytes(), 0u);
  EXPECT_EQ(a->allocate(), nullptr);
  a->set_limit_bytes(UINT64_MAX);
  page* const large = a->allocate(12);
  ASSERT_NE(large, nullptr) << "as many chunks as the block needs";
  put_page(*large);
  EXPECT_EQ(a->statistics().brought_back, 9u);
  EXPECT_EQ(a->statistics().given_back, 4u);
}

TEST(ArenaChunks, TheSmallLastChunkComesAndGoesLikeTheOthers) {
  for (const bool huge : {false, true}) {
    const auto a = make_arena(
        {.bytes = bytes_for_chunks(2) + 100 * (page_bytes + page_state_bytes), .huge_pages = huge});
    ASSERT_NE(a, nullptr);
    ASSERT_EQ(a->page_count(), 2 * 512 + 100u);
    EXPECT_EQ(a->chunk_count(), 3u);
    EXPECT_EQ(a->info(2).frames, 100u);
    EXPECT_EQ(a->memory_of(2).size(), 100 * page_bytes);
    ASSERT_TRUE(a->isolate_chunk(2));
    ASSERT_TRUE(a->give_back(2)) << huge;
    EXPECT_EQ(a->committed_bytes(), 2 * arena::chunk_bytes);
    EXPECT_TRUE(a->bring_back());
    EXPECT_EQ(a->free_pages(), a->page_count());
  }
}

TEST(ArenaChunks, DevicesAreAskedAndTheLastAnswerDecides) {
  const auto a = make_chunks(4);
  test_device at_once(*a, true);
  test_device first(*a);
  test_device second(*a);
  ASSERT_TRUE(a->isolate_chunk(2));
  EXPECT_TRUE(a->give_back(2));
  EXPECT_EQ(a->info(2).state, chunk_state::leaving);
  EXPECT_EQ(first.asked, std::vector<std::uint32_t>{2});
  EXPECT_EQ(a->committed_bytes(), 4 * arena::chunk_bytes);
  EXPECT_FALSE(a->undo_isolate(2)) << "it is too late";
  EXPECT_EQ(a->statistics().leaving_chunks, 1u);
  second.answer();
  EXPECT_EQ(a->info(2).state, chunk_state::leaving);
  first.answer();
  EXPECT_EQ(a->info(2).state, chunk_state::offline);
  EXPECT_TRUE(first.remembered.empty());
  EXPECT_TRUE(a->bring_back());
  EXPECT_EQ(first.remembered, std::vector<std::uint32_t>{2});
  EXPECT_EQ(at_once.remembered, std::vector<std::uint32_t>{2});
  // A chunk that leaves does not count when more is to be given back.
  a->set_limit_bytes(3 * arena::chunk_bytes);
  EXPECT_EQ(first.asked, std::vector<std::uint32_t>{3});
  EXPECT_EQ(a->trim(), 0u);
  first.answer();
  second.answer();
  EXPECT_EQ(a->committed_bytes(), 3 * arena::chunk_bytes);
}

TEST(ArenaChunks, WhatTheSystemDoesNotTakeBackIsOnlineAgain) {
  counting_source source(2);  // the two mappings, then the first discard
  const auto a = make_arena({.bytes = bytes_for_chunks(2), .huge_pages = false}, source);
  ASSERT_NE(a, nullptr);
  test_device d(*a, true);
  ASSERT_TRUE(a->isolate_chunk(1));
  EXPECT_EQ(a->give_back(1).error().value(), EIO);
  EXPECT_EQ(a->info(1).state, chunk_state::online);
  EXPECT_EQ(d.remembered, std::vector<std::uint32_t>{1});
  EXPECT_EQ(a->statistics().give_back_failures, 1u);
  EXPECT_EQ(a->free_pages(), a->page_count());
  ASSERT_TRUE(a->isolate_chunk(1));
  EXPECT_TRUE(a->give_back(1));
  EXPECT_EQ(a->committed_bytes(), arena::chunk_bytes);
}

// A life of an arena in which each call of the memory source in turn is refused.
TEST(ArenaChunks, EveryRefusedCallLeavesAWholeArena) {
  int refused = 0;
  for (int calls = 1; refused < calls; ++refused) {
    counting_source source(refused);
    {
      const auto a = make_arena({.bytes = bytes_for_chunks(6),
                                 .huge_pages = false,
                                 .pin = true,
                                 .limit_bytes = 4 * arena::chunk_bytes},
                                source);
      ASSERT_EQ(a == nullptr, refused < 2) << refused;
      if (a == nullptr) {
        for (const auto& [data, bytes] : source.mappings) {
          std::vector<unsigned char> there(bytes / page_bytes + 1);
          EXPECT_NE(::mincore(data, bytes, there.data()), 0) << "still mapped";
        }
        calls = refused + 2;
        continue;
      }
      EXPECT_EQ(a->remarks().empty(), refused != 2);
      auto held = take_all(*a);
      EXPECT_EQ(held.size(), 4u * 512);
      a->set_limit_bytes(6 * arena::chunk_bytes);
      for (int i = 0; i < 600; ++i) {
        if (page* p = a->allocate()) held.push_back(p);
      }
      // An attempt that failed cost one allocation, the next one was good.
      EXPECT_EQ(held.size() + a->statistics().bring_back_failures, 4u * 512 + 600);
      give_all(held);
      a->set_limit_bytes(2 * arena::chunk_bytes);
      a->trim();
      EXPECT_EQ(a->committed_bytes(), 2 * arena::chunk_bytes);
      a->set_limit_bytes(UINT64_MAX);
      while (a->bring_back()) {
      }
      a->bring_back();
      EXPECT_EQ(a->free_pages(), a->committed_bytes() / page_bytes);
      const arena_statistics s = a->statistics();
      EXPECT_EQ(s.pinned_bytes, source.pinned.size() * arena::chunk_bytes);
      EXPECT_EQ(s.committed_bytes + s.offline_chunks * arena::chunk_bytes, s.reserved_bytes);
      EXPECT_EQ(s.isolated_chunks + s.leaving_chunks, 0u);
    }
    calls = std::max(calls, source.calls);
  }
  EXPECT_GT(refused, 15);
}

TEST(ArenaChunks, CandidatesAreTheCheapestFirst) {
  const auto a = make_chunks(6);
  auto held = take_all(*a);
  // Chunk 3 has 200 free frames, chunk 1 has 100, and one of chunk 3 is fixed.
  const auto free_some = [&](std::uint32_t chunk, int count) {
    for (page*& p : held) {
      if (p == nullptr || a->chunk_of(*p) != chunk || count == 0) continue;
      put_page(*std::exchange(p, nullptr));
      --count;
    }
    std::erase(held, nullptr);
  };
  free_some(3, 1);
  held.push_back(a->allocate(0, placement::fixed));
  ASSERT_EQ(a->chunk_of(*held.back()), 3u);
  EXPECT_TRUE(held.back()->test(page_fixed));
  EXPECT_EQ(a->info(3).fixed, 1u);
  page* const keep = held.back();
  held.pop_back();
  free_some(3, 200);
  free_some(1, 100);
  free_some(5, 50);
  ASSERT_TRUE(a->isolate_chunk(0));
  std::vector<std::uint32_t> out(8, 99);
  ASSERT_EQ(a->candidates(out), 5u);
  EXPECT_EQ(out[0], 1u);
  EXPECT_EQ(out[1], 5u);
  EXPECT_EQ(out[4], 3u);
  std::vector<std::uint32_t> two(2);
  ASSERT_EQ(a->candidates(two), 2u);
  EXPECT_EQ(two, (std::vector<std::uint32_t>{1, 5}));
  EXPECT_EQ(a->candidates({}), 0u);
  put_page(*keep);
  give_all(held);
}

TEST(ArenaChunks, SplitBlocksKeepTheirPlacement) {
  const auto a = make_chunks(2);
  page* const block = a->allocate(3, placement::fixed);
  EXPECT_EQ(a->info(1).fixed, 8u);
  a->split(*block);
  for (int i = 0; i < 8; ++i) {
    EXPECT_TRUE(block[i].test(page_fixed));
    put_page(block[i]);
  }
  EXPECT_EQ(a->info(1).fixed, 0u);
  EXPECT_EQ(a->free_blocks()[10], 1u);
}

RC_GTEST_PROP(ArenaScattered, GivesAllOrNothing, ()) {
  const auto a = make_chunks(2);
  std::vector<page*> held = take_all(*a);
  std::mt19937 random(*rc::gen::arbitrary<std::uint32_t>());
  std::shuffle(held.begin(), held.end(), random);
  held.resize(held.size() - *rc::gen::inRange<std::size_t>(0, held.size()));
  // What was cut off above is given back by number, whatever the order.
  std::set<page*> kept(held.begin(), held.end());
  for (std::uint32_t f = 0; f < a->page_count(); ++f) {
    if (kept.count(&a->frame(f)) == 0) put_page(a->frame(f));
  }
  const std::uint32_t free = a->free_pages();
  const auto blocks_before = a->free_blocks();
  const auto bytes = *rc::gen::inRange<std::size_t>(1, 5 * mebibyte);
  std::vector<page*> blocks(*rc::gen::element<std::size_t>(1, 10, 1024));
  const std::uint32_t frames = static_cast<std::uint32_t>((bytes + page_bytes - 1) / page_bytes);
  const auto n = a->allocate_scattered(bytes, blocks);
  if (!n) {
    RC_ASSERT(n.error().value() == (frames > free ? ENOMEM : EMSGSIZE) ||
              (n.error().value() == EMSGSIZE && blocks.size() < frames));
    RC_ASSERT(a->free_blocks() == blocks_before);
  } else {
    std::uint32_t got = 0;
    for (std::size_t i = 0; i < *n; ++i) {
      got += 1u << blocks[i]->order;
      RC_ASSERT(blocks[i]->refs().value() == 1u);
      put_page(*blocks[i]);
    }
    RC_ASSERT(got == frames);
  }
  RC_ASSERT(a->free_pages() == free);
  give_all(held);
}

TEST(ArenaScattered, RefusesNothingAndTooMuch) {
  const auto a = make_chunks(2);
  std::vector<page*> blocks(4);
  EXPECT_EQ(a->allocate_scattered(0, blocks).error().value(), EINVAL);
  EXPECT_EQ(a->allocate_scattered(SIZE_MAX, blocks).error().value(), ENOMEM);
  EXPECT_EQ(a->allocate_scattered(3 * page_bytes, std::span(blocks).first(1)).error().value(),
            EMSGSIZE);
  EXPECT_EQ(a->allocate_scattered(1, {}).error().value(), EMSGSIZE);
  EXPECT_EQ(a->free_pages(), a->page_count());
  const auto whole = a->allocate_scattered(4 * mebibyte, blocks);
  ASSERT_TRUE(whole);
  EXPECT_EQ(*whole, 1u);
  put_page(*blocks[0]);
}

// Threads allocate, stamp and free while another isolates chunks, gives them back and changes the
// limit.
TEST(ArenaChunksStress, FramesInUseNeverLeave) {
  const auto a = make_chunks(6);
  std::atomic<bool> stop{false};
  std::atomic<int> damaged{0};
  std::vector<std::thread> users;
  for (unsigned t = 0; t < 2; ++t) {
    users.emplace_back([&, t] {
      std::mt19937 random(t);
      std::vector<std::pair<page*, std::uint64_t>> held;
      const auto word = [](page* p) { return reinterpret_cast<std::uint64_t*>(p->data()); };
      const auto free_last = [&] {
        const auto [p, mark] = held.back();
        held.pop_back();
        if (word(p)[0] != mark || word(p)[511] != mark) ++damaged;
        put_page(*p);
      };
      for (std::uint64_t i = 1; !stop.load(); ++i) {
        if (held.size() < 700 && random() % 16 < 9) {
          page* const p = a->allocate(0, random() % 8 == 0 ? placement::fixed : placement::movable);
          if (p == nullptr) continue;
          word(p)[0] = word(p)[511] = (std::uint64_t{t} << 60) | i;
          held.emplace_back(p, (std::uint64_t{t} << 60) | i);
        } else if (!held.empty()) {
          std::swap(held[random() % held.size()], held.back());
          free_last();
        }
        if (i % 2000 == 0) {
          while (!held.empty()) free_last();
        }
      }
      while (!held.empty()) free_last();
    });
  }
  std::mt19937 random(9);
  for (int i = 0; i < 400; ++i) {
    const std::uint32_t c = random() % 6;
    if (a->isolate_chunk(c)) {
      std::this_thread::yield();
      if (!a->give_back(c)) a->undo_isolate(c);
    }
    if (i % 20 == 0) a->set_limit_bytes((1 + random() % 6) * arena::chunk_bytes);
    if (i % 3 == 0) a->bring_back();
  }
  stop = true;
  for (std::thread& u : users) u.join();
  EXPECT_EQ(damaged.load(), 0);
  a->set_limit_bytes(UINT64_MAX);
  while (a->bring_back()) {
  }
  EXPECT_EQ(a->free_pages(), a->page_count());
  EXPECT_GT(a->statistics().given_back, 0u);
}

TEST(ArenaOptions, ANodeThatDoesNotExistIsAnError) {
  for (const int node : {4711, -2, 1'000'000'000}) {
    EXPECT_EQ(arena::create({.bytes = mebibyte, .numa_node = node}).error().value(), ENODEV);
  }
  const auto a = make_arena({.bytes = 4 * mebibyte, .numa_node = 0});
  ASSERT_NE(a, nullptr);
  a->memory()[0] = std::byte{1};
  EXPECT_EQ(numa_node_of(a->memory().data()).value_or(0), 0);
}

TEST(ArenaOptions, SmallerPagesThanWishedForAreARemark) {
  // Nobody has reserved so many.
  const auto a = make_arena({.bytes = 3u << 20, .largest_pages = page_backing::gigantic_reserved});
  ASSERT_NE(a, nullptr);
  ASSERT_EQ(a->remarks().size(), 1u);
  EXPECT_NE(a->remarks()[0].find("not in reserved 1 GiB pages"), std::string::npos)
      << a->remarks()[0];
  EXPECT_NE(a->remarks()[0].find("hugepages"), std::string::npos);
  for (const bool huge : {false, true}) {
    const auto content = make_arena({.bytes = 3u << 20, .huge_pages = huge});
    EXPECT_EQ(content->remarks().empty(), !huge || content->backing() != page_backing::ordinary);
  }
}

TEST(ArenaOptions, ASmallLimitOfLockedMemoryLeavesAnUnpinnedArena) {
  if (!can_pin()) GTEST_SKIP() << "nothing can be pinned here";
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto child = [] {
    const rlimit small{64 << 10, 64 << 10};
    if (::setrlimit(RLIMIT_MEMLOCK, &small) != 0) std::exit(1);
    // A privileged process is above the limit.
    if (::geteuid() == 0 && ::setuid(65534) != 0) std::exit(2);
    const auto a = make_arena({.bytes = 8u << 20, .huge_pages = false, .pin = true});
    if (a == nullptr) std::exit(3);
    if (a->remarks().size() != 1) std::exit(4);
    std::fputs(a->remarks()[0].c_str(), stderr);
    if (a->statistics().pinned_bytes != 0) std::exit(5);
    page* const p = a->allocate();
    std::memset(p->data(), 1, page_bytes);
    put_page(*p);
    std::exit(0);
  };
  EXPECT_EXIT(child(), testing::ExitedWithCode(0),
              "not pinned.*needed are 8[0-9]{3} KiB, RLIMIT_MEMLOCK is 64 KiB");
}

TEST(ArenaOptions, PinnedMemoryIsPinnedAndUnpinned) {
  const auto a = make_arena({.bytes = bytes_for_chunks(2), .huge_pages = false, .pin = true});
  ASSERT_NE(a, nullptr);
  if (!a->remarks().empty()) GTEST_SKIP() << a->remarks()[0];
  EXPECT_EQ(a->statistics().pinned_bytes, 2 * arena::chunk_bytes);
  ASSERT_TRUE(a->isolate_chunk(0));
  ASSERT_TRUE(a->give_back(0));
  EXPECT_EQ(a->statistics().pinned_bytes, arena::chunk_bytes);
  EXPECT_TRUE(a->bring_back());
  EXPECT_EQ(a->statistics().pinned_bytes, 2 * arena::chunk_bytes);
}

// Reserves some huge pages for the time of a test, where this process may.
class reserved_pages {
 public:
  explicit reserved_pages(long wanted) {
    std::ifstream(path) >> before_;
    std::ofstream(path) << before_ + wanted;
    long now = 0;
    std::ifstream(path) >> now;
    enough = now == before_ + wanted;
  }
  ~reserved_pages() { std::ofstream(path) << before_; }
  bool enough = false;

 private:
  static constexpr const char* path = "/proc/sys/vm/nr_hugepages";
  long before_ = 0;
};

TEST(ArenaOptions, ReservedHugePagesAreGivenBackAndAnEmptyPoolIsNoAccident) {
  const reserved_pages pages(6);
  if (!pages.enough) GTEST_SKIP() << "no huge pages can be reserved";
  for (const bool starts_small : {true, false}) {
    const auto a = make_arena({.bytes = bytes_for_chunks(4),
                               .limit_bytes = starts_small ? arena::chunk_bytes : UINT64_MAX});
    ASSERT_NE(a, nullptr);
    if (a->backing() != page_backing::huge_reserved) GTEST_SKIP() << "somebody else took them";
    EXPECT_TRUE(a->remarks().empty());
    a->set_limit_bytes(UINT64_MAX);
    while (a->bring_back()) {
    }
    ASSERT_EQ(a->committed_bytes(), 4 * arena::chunk_bytes);
    std::memset(a->memory().data(), 1, a->memory().size());
    const auto free_before = reserved_huge_pages(page_backing::huge_reserved).free;
    a->set_limit_bytes(arena::chunk_bytes);
    EXPECT_EQ(reserved_huge_pages(page_backing::huge_reserved).free, free_before + 3);
    // Somebody takes all the rest of the pool.
    std::vector<memory_mapping> others;
    for (;;) {
      auto m = memory_source::system().map({.bytes = 1, .largest = page_backing::huge_reserved});
      if (!m || m->backing() != page_backing::huge_reserved) break;
      std::memset(m->data(), 1, m->size_bytes());
      others.push_back(std::move(*m));
    }
    a->set_limit_bytes(UINT64_MAX);
    const bool came = a->bring_back();
    EXPECT_EQ(a->statistics().bring_back_failures, came ? 0u : 1u);
    others.clear();
    while (a->bring_back()) {
    }
    EXPECT_EQ(a->committed_bytes(), 4 * arena::chunk_bytes);
    std::memset(a->memory().data(), 2, a->memory().size());
  }
}

}  // namespace
}  // namespace forebay
