#include "forebay/ring/uring_domain.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <future>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "forebay/os/fd.h"
#include "forebay/os/memory.h"
#include "forebay/os/test_await.h"
#include "forebay/ring/loop.h"

namespace forebay {
namespace {

constexpr std::size_t mebibyte = 1u << 20;

std::unique_ptr<arena> make_chunks(std::size_t chunks) {
  auto a = arena::create({.bytes = chunks * arena::chunk_frames * (page_bytes + page_state_bytes),
                          .huge_pages = false});
  return a ? std::move(*a) : nullptr;
}

// A file in which each 8-byte word tells its own offset.
unique_fd numbered_file(std::size_t bytes) {
  std::string name = testing::TempDir() + "forebay-uring-domain-XXXXXX";
  unique_fd fd(::mkstemp(name.data()));
  ::unlink(name.c_str());
  std::vector<std::uint64_t> words(bytes / 8);
  for (std::size_t i = 0; i < words.size(); ++i) words[i] = i * 8;
  EXPECT_EQ(::write(fd.get(), words.data(), bytes), static_cast<ssize_t>(bytes));
  return fd;
}

// A loop on a thread of its own with an arena registered.
class registered_loop {
 public:
  explicit registered_loop(arena& memory, uring_domain::pace how = uring_domain::pace::at_once) {
    std::promise<void> ready;
    thread_ = std::thread([this, &memory, &ready, how] {
      auto made = loop::create(64);
      FOREBAY_ASSERT(made.has_value());
      loop_ = std::move(*made);
      registered_ = loop_->registered().add(memory, how).has_value();
      ready.set_value();
      loop_->run();
      loop_->registered().remove(memory);
    });
    ready.get_future().wait();
  }
  ~registered_loop() { stop(); }

  void stop() {
    if (!thread_.joinable()) return;
    loop_->stop();
    thread_.join();
  }

  bool usable() const { return registered_; }
  uring_domain& domain() { return loop_->registered(); }

  // Runs `f` on the loop.
  void call(std::function<void()> f) {
    struct record : completion {
      std::function<void()> action;
      std::promise<void> done;
    } r;
    r.action = std::move(f);
    r.run = [](completion& c) noexcept {
      auto& mine = static_cast<record&>(c);
      mine.action();
      mine.done.set_value();
    };
    auto done = r.done.get_future();
    loop_->post(r);
    done.wait();
  }

  bool knows(const arena& memory, std::uint32_t chunk) {
    bool yes = false;
    call([&] { yes = domain().has_region(memory, chunk); });
    return yes;
  }

 private:
  std::thread thread_;
  std::unique_ptr<loop> loop_;
  bool registered_ = false;
};

TEST(UringDomain, AChunkIsLetGoOfAndKnownAgain) {
  const auto a = make_chunks(8);
  registered_loop on(*a);
  if (!on.usable()) GTEST_SKIP() << "memory cannot be registered here";
  EXPECT_FALSE(on.domain().shortfall(*a));
  for (std::uint32_t c = 0; c < 8; ++c) EXPECT_TRUE(on.knows(*a, c));
  EXPECT_EQ(resident_bytes(a->memory()), a->memory().size()) << "registering brings it all in";
  for (std::uint32_t c = 1; c < 7; ++c) {
    ASSERT_TRUE(a->isolate_chunk(c));
    ASSERT_TRUE(a->give_back(c));
  }
  ASSERT_TRUE(eventually([&] { return a->statistics().offline_chunks == 6; }));
  EXPECT_EQ(resident_bytes(a->memory()), 2 * arena::chunk_bytes);
  EXPECT_FALSE(on.knows(*a, 3));
  EXPECT_TRUE(on.knows(*a, 0));
  for (int i = 0; i < 6; ++i) EXPECT_TRUE(a->bring_back());
  EXPECT_TRUE(eventually([&] { return on.knows(*a, 6); }));
  EXPECT_TRUE(on.knows(*a, 1));
}

TEST(UringDomain, ClosingAnswersWhatTheLoopHasNot) {
  const auto a = make_chunks(4);
  {
    registered_loop on(*a);
    if (!on.usable()) GTEST_SKIP() << "memory cannot be registered here";
    std::promise<void> busy;
    std::promise<void> asked;
    std::thread keeper([&] {
      on.call([&] {
        busy.set_value();
        asked.get_future().wait();
      });
    });
    busy.get_future().wait();
    ASSERT_TRUE(a->isolate_chunk(2));
    ASSERT_TRUE(a->give_back(2));
    EXPECT_EQ(a->info(2).state, chunk_state::leaving);
    asked.set_value();
    keeper.join();
    on.stop();
    EXPECT_EQ(a->info(2).state, chunk_state::offline);
  }
  EXPECT_TRUE(a->bring_back());
}

// What the arena asks while it is being added and removed is answered, whoever is too late for it.
TEST(UringDomain, ComesAndGoesWhileChunksDo) {
  const auto a = make_chunks(3);
  auto made = loop::create(64);
  ASSERT_TRUE(made);
  uring_domain& d = (*made)->registered();
  if (const auto r = d.add(*a); !r) GTEST_SKIP() << r.error().message();
  std::atomic<bool> stop{false};
  std::thread giver([&] {
    while (!stop) {
      if (a->isolate_chunk(1)) {
        EXPECT_TRUE(a->give_back(1));
      }
      a->bring_back();
    }
  });
  while (a->statistics().given_back < 2000) {
    d.remove(*a);
    EXPECT_TRUE(d.add(*a));
    d.answer();
  }
  stop = true;
  giver.join();
  d.remove(*a);
  EXPECT_TRUE(eventually([&] { return a->info(1).state != chunk_state::leaving; }));
}

// One that is registered gradually serves from the start, loses chunks before it has come to them,
// and may be left in the middle.
TEST(UringDomain, MemoryIsRegisteredWhileTheLoopRuns) {
  constexpr std::uint32_t chunks = 40;
  const auto a = make_chunks(chunks);
  auto made = loop::create(64);
  ASSERT_TRUE(made);
  uring_domain& d = (*made)->registered();
  for (const bool leave_early : {true, false}) {
    const auto first = d.add(*a, uring_domain::pace::gradual);
    if (!first) GTEST_SKIP() << first.error().message();
    EXPECT_EQ(*first, arena::chunk_bytes);
    EXPECT_TRUE(d.has_region(*a, 0));
    EXPECT_FALSE(d.has_region(*a, 1));
    ASSERT_TRUE(a->isolate_chunk(7));
    ASSERT_TRUE(a->give_back(7));
    ASSERT_TRUE(a->isolate_chunk(9));
    d.answer();
    EXPECT_EQ(a->info(7).state, chunk_state::offline);
    EXPECT_TRUE(d.has_region(*a, 1));
    EXPECT_FALSE(d.has_region(*a, 2));
    if (!leave_early) {
      for (std::uint32_t i = 2; i < chunks; ++i) d.answer();
      for (std::uint32_t c = 0; c < chunks; ++c) EXPECT_EQ(d.has_region(*a, c), c != 7) << c;
      EXPECT_FALSE(d.shortfall(*a));
    }
    ASSERT_TRUE(a->undo_isolate(9));
    ASSERT_TRUE(a->bring_back());
    d.answer();
    if (!leave_early) {
      EXPECT_TRUE(d.has_region(*a, 7));
    }
    d.remove(*a);
  }
  // A loop that has nothing to do goes on by itself until all is registered.
  const auto other = make_chunks(chunks);
  registered_loop on(*other, uring_domain::pace::gradual);
  const auto bytes = other->memory().size();
  EXPECT_TRUE(eventually([&] { return resident_bytes(other->memory()) == bytes; }));
  EXPECT_TRUE(on.knows(*other, chunks - 1));
}

// A chunk that has no memory when the loop comes is registered when it gets some.
TEST(UringDomain, TakesWhatComesLater) {
  const auto a = make_chunks(3);
  a->set_limit_bytes(arena::chunk_bytes);
  ASSERT_EQ(a->info(1).state, chunk_state::offline);
  registered_loop on(*a);
  if (!on.usable()) GTEST_SKIP() << "memory cannot be registered here";
  EXPECT_FALSE(on.domain().shortfall(*a));
  EXPECT_TRUE(on.knows(*a, 0));
  EXPECT_FALSE(on.knows(*a, 1));
  a->set_limit_bytes(UINT64_MAX);
  EXPECT_TRUE(a->bring_back());
  EXPECT_TRUE(eventually([&] { return on.knows(*a, 1); }));
}

// Memory is registered by chunks of 2 MiB; a transfer across two of them goes unregistered, and so
// does one in a chunk that has been taken off.
TEST(UringDomain, TransfersInAcrossAndBesideRegisteredChunksWork) {
  const auto memory = make_chunks(3);
  ASSERT_NE(memory, nullptr);
  auto made = uring_queue_pair::create(8);
  ASSERT_TRUE(made);
  uring_queue_pair& q = **made;
  const unique_fd file = numbered_file(page_bytes);
  const auto registered = q.registered().add(*memory);
  if (!registered) GTEST_SKIP() << registered.error().message();
  EXPECT_EQ(*registered, memory->memory().size());
  EXPECT_EQ(q.registered().add(*memory).error().value(), EEXIST);
  std::byte* const base = memory->memory().data();
  constexpr std::size_t chunk = arena::chunk_bytes;
  const auto region_at = [&](std::size_t at) {
    std::memset(base + at, static_cast<int>(at >> 12) | 1, 8192);
    const auto from = q.registered().map({base + at, 8192}, dma_direction::to_device);
    EXPECT_TRUE(from);
    completion c;
    EXPECT_TRUE(q.submit(uring_request::write(file.get(), {&*from, 1}, 0), c));
    EXPECT_TRUE(q.ring_doorbell(60'000'000'000));
    EXPECT_EQ(q.reap(), &c);
    EXPECT_EQ(c.status, 8192) << at;
    q.registered().unmap(*from, dma_direction::to_device);
    std::vector<std::byte> back(8192);
    EXPECT_EQ(::pread(file.get(), back.data(), back.size(), 0), 8192);
    EXPECT_EQ(std::memcmp(back.data(), base + at, 8192), 0) << at;
    return from->region;
  };
  EXPECT_EQ(region_at(0), 0u);
  EXPECT_EQ(region_at(chunk - 8192), 0u);
  EXPECT_EQ(region_at(chunk - 4096), dma_segment::no_region);
  EXPECT_EQ(region_at(chunk), 1u);
  EXPECT_EQ(region_at(3 * chunk - 8192), 2u);
  ASSERT_TRUE(memory->isolate_chunk(1));
  ASSERT_TRUE(memory->give_back(1));
  EXPECT_TRUE(q.ring_doorbell(0));  // answers
  EXPECT_EQ(memory->info(1).state, chunk_state::offline);
  EXPECT_FALSE(q.registered().has_region(*memory, 1));
  EXPECT_FALSE(q.registered().has_region(*memory, 77));
  EXPECT_EQ(region_at(chunk - 8192), 0u);
  ASSERT_TRUE(memory->bring_back());
  EXPECT_TRUE(q.ring_doorbell(0));
  EXPECT_EQ(region_at(chunk), 1u);
}

// An arena goes with transfers that are queued, and with memory that is mapped and not submitted
// yet, or to be submitted again; and another arena gets its regions.
TEST(UringDomain, TransfersGoOnWithoutTheArena) {
  const auto memory = make_chunks(1);
  const auto other = make_chunks(1);
  ASSERT_TRUE(memory && other);
  auto made = uring_queue_pair::create(8);
  ASSERT_TRUE(made);
  uring_queue_pair& q = **made;
  uring_domain& d = q.registered();
  const unique_fd file = numbered_file(mebibyte);
  if (const auto r = d.add(*memory); !r) GTEST_SKIP() << r.error().message();
  std::array<dma_segment, 3> to;
  for (std::size_t i = 0; i < to.size(); ++i) {
    const auto s =
        d.map(memory->memory().subspan(i * page_bytes, page_bytes), dma_direction::from_device);
    ASSERT_TRUE(s);
    ASSERT_EQ(s->region, 0u);
    to[i] = *s;
  }
  std::array<completion, 3> done;
  const auto read = [&](std::size_t i) {
    return q.submit(uring_request::read(file.get(), std::span(to).subspan(i, 1), i * page_bytes),
                    done[i]);
  };
  ASSERT_TRUE(read(0));
  ASSERT_EQ(q.queued(), 1u);
  d.remove(*memory);
  ASSERT_TRUE(read(1));
  ASSERT_TRUE(q.ring_doorbell(1'000'000'000, 2));
  EXPECT_NE(q.reap(), nullptr);
  EXPECT_NE(q.reap(), nullptr);
  ASSERT_TRUE(d.add(*other));
  ASSERT_TRUE(d.has_region(*other, 0));
  ASSERT_TRUE(read(2));
  ASSERT_TRUE(q.ring_doorbell(60'000'000'000));
  EXPECT_EQ(q.reap(), &done[2]);
  for (std::size_t i = 0; i < to.size(); ++i) {
    EXPECT_EQ(done[i].status, static_cast<int>(page_bytes)) << i;
    d.unmap(to[i], dma_direction::from_device);
    std::uint64_t word = 0;
    std::memcpy(&word, memory->memory().data() + i * page_bytes + 8, sizeof word);
    EXPECT_EQ(word, i * page_bytes + 8);
  }
}

class CheckedUringDomain : public testing::Test {
 protected:
  void SetUp() override {
    ::setenv("FOREBAY_DMA_GUARD", "uring", 1);
    memory_ = make_chunks(1);
    auto made = uring_queue_pair::create(8);
    ::unsetenv("FOREBAY_DMA_GUARD");
    ASSERT_TRUE(made);
    queue_ = std::move(*made);
    if (!queue_->registered().add(*memory_)) GTEST_SKIP() << "memory cannot be registered here";
  }

  std::span<std::byte> bytes() const { return memory_->memory().first(page_bytes); }

  std::unique_ptr<arena> memory_;
  std::unique_ptr<uring_queue_pair> queue_;
};

using CheckedUringDomainDeathTest = CheckedUringDomain;

TEST_F(CheckedUringDomainDeathTest, WhatTheDiskHasIsNotTheCpus) {
  uring_domain& d = queue_->registered();
  const auto to = d.map(bytes(), dma_direction::from_device);
  ASSERT_TRUE(to);
  volatile std::byte* const at = bytes().data() + 100;
  EXPECT_DEATH(static_cast<void>(*at), "");
  EXPECT_DEATH(*at = std::byte{1}, "");
  const unique_fd file = numbered_file(page_bytes);
  completion c;
  ASSERT_TRUE(queue_->submit(uring_request::read(file.get(), {&*to, 1}, 0), c));
  ASSERT_TRUE(queue_->ring_doorbell(60'000'000'000));
  ASSERT_EQ(queue_->reap(), &c);
  EXPECT_EQ(c.status, static_cast<int>(page_bytes)) << "the disk reaches it";
  d.unmap(*to, dma_direction::from_device);
  std::uint64_t word = 0;
  std::memcpy(&word, bytes().data() + 96, sizeof word);
  EXPECT_EQ(word, 96u);
}

TEST_F(CheckedUringDomainDeathTest, ATransferOfWhatIsNotMappedEndsTheProcess) {
  uring_domain& d = queue_->registered();
  const auto from = d.map(bytes(), dma_direction::to_device);
  ASSERT_TRUE(from);
  completion c;
  const auto submit = [&](const uring_request& r) { static_cast<void>(queue_->submit(r, c)); };
  EXPECT_DEATH(submit(uring_request::read(0, {&*from, 1}, 0)), "dma .uring.");
  auto longer = *from;
  longer.length += 512;
  EXPECT_DEATH(submit(uring_request::write(0, {&longer, 1}, 0)), "dma .uring.");
  d.unmap(*from, dma_direction::to_device);
  EXPECT_DEATH(submit(uring_request::write(0, {&*from, 1}, 0)), "dma .uring.");
}

// Regions are handed out to arenas as they come, and found again when one has gone.
TEST(UringDomain, SeveralArenasHaveRegionsOfTheirOwn) {
  std::vector<std::unique_ptr<arena>> arenas;
  for (std::size_t i = 0; i < uring_domain::max_arenas + 1; ++i) {
    arenas.push_back(make_chunks(1 + i % 2));
    ASSERT_NE(arenas.back(), nullptr);
  }
  auto made = uring_queue_pair::create(8);
  ASSERT_TRUE(made);
  uring_domain& d = (*made)->registered();
  const auto region = [&](const arena& a) {
    const auto s = d.map(a.memory().last(64), dma_direction::to_device);
    EXPECT_TRUE(s);
    d.unmap(*s, dma_direction::to_device);
    return s->region;
  };
  for (std::size_t i = 0; i < uring_domain::max_arenas; ++i) {
    const auto r = d.add(*arenas[i]);
    if (!r) GTEST_SKIP() << r.error().message();
  }
  EXPECT_EQ(region(*arenas[0]), 0u);
  EXPECT_EQ(region(*arenas[1]), 2u);
  EXPECT_EQ(region(*arenas[2]), 3u);
  EXPECT_EQ(region(*arenas[3]), 5u);
  EXPECT_EQ(d.add(*arenas[4]).error().value(), ENOSPC);
  EXPECT_EQ(region(*arenas[4]), dma_segment::no_region);
  d.remove(*arenas[1]);
  d.remove(*arenas[1]);
  EXPECT_EQ(region(*arenas[1]), dma_segment::no_region);
  EXPECT_TRUE(d.add(*arenas[4]));
  EXPECT_EQ(region(*arenas[4]), 1u);
  EXPECT_EQ(region(*arenas[2]), 3u);
  d.remove(*arenas[3]);
  EXPECT_TRUE(d.add(*arenas[1]));
  EXPECT_EQ(region(*arenas[1]), 5u) << "two regions are free behind the third arena only";
}

struct reading {
  arena& memory;
  int fd;
  std::size_t file_bytes;
  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> reads{0};
  std::atomic<std::uint64_t> wrong{0};
};

task<> read_on(reading* r, unsigned seed) {
  std::mt19937 random(seed);
  while (!r->stop.load()) {
    page* const p = r->memory.allocate();
    if (p == nullptr) {
      co_await loop::io(uring_request::nop());
      continue;
    }
    std::memset(p->data(), 0xff, page_bytes);
    const std::uint64_t offset = random() % (r->file_bytes / page_bytes) * page_bytes;
    uring_domain& domain = loop::current()->registered();
    const auto to = domain.map({p->data(), page_bytes}, dma_direction::from_device);
    const std::array into = {to.value_or(dma_segment{})};
    const int got = co_await loop::io(uring_request::read(r->fd, into, offset));
    domain.unmap(into[0], dma_direction::from_device);
    bool good = got == static_cast<int>(page_bytes);
    const auto* words = reinterpret_cast<const std::uint64_t*>(p->data());
    for (std::size_t i = 0; i < page_bytes / 8; ++i) good = good && words[i] == offset + i * 8;
    if (!good) ++r->wrong;
    ++r->reads;
    put_page(*p);
  }
  co_return result<>{};
}

// Readers keep frames of every chunk busy while chunks leave and come back.
TEST(UringDomain, ReadsGoOnWhileChunksComeAndGo) {
  constexpr std::uint32_t chunks = 4;
  const auto a = make_chunks(chunks);
  const unique_fd file = numbered_file(mebibyte);
  registered_loop on(*a);
  if (!on.usable()) GTEST_SKIP() << "memory cannot be registered here";
  // Most frames are held, so that what is free is spread over all chunks.
  std::vector<page*> held;
  while (page* p = a->allocate()) held.push_back(p);
  std::mt19937 random(5);
  std::shuffle(held.begin(), held.end(), random);
  while (held.size() > a->page_count() - 64) {
    put_page(*held.back());
    held.pop_back();
  }
  reading r{*a, file.get(), mebibyte};
  task_group readers;
  on.call([&] {
    for (unsigned i = 0; i < 4; ++i) EXPECT_TRUE(read_on(&r, i).spawn(readers));
  });
  for (std::uint32_t round = 0; round < 24; ++round) {
    const std::uint32_t c = round % chunks;
    ASSERT_TRUE(a->isolate_chunk(c));
    // The holder of frames lets go of this chunk's, as an evictor would.
    for (page*& p : held) {
      if (p != nullptr && a->chunk_of(*p) == c) put_page(*std::exchange(p, nullptr));
    }
    std::erase(held, nullptr);
    ASSERT_TRUE(eventually([&] { return a->give_back(c).has_value(); }));
    ASSERT_TRUE(eventually([&] {
      return a->info(c).state == chunk_state::offline || a->statistics().brought_back > round;
    }));
    const std::uint64_t before = r.reads.load();
    ASSERT_TRUE(eventually([&] { return r.reads.load() > before + 20; }));
    a->bring_back();  // unless a reader has done it
    ASSERT_TRUE(eventually([&] { return a->info(c).state == chunk_state::online; }));
    for (int i = 0; i < 400; ++i) {
      if (page* p = a->allocate()) held.push_back(p);
    }
  }
  r.stop = true;
  ASSERT_TRUE(eventually([&] {
    std::size_t running = 1;
    on.call([&] { running = readers.running(); });
    return running == 0;
  }));
  EXPECT_EQ(r.wrong.load(), 0u);
  EXPECT_GE(a->statistics().given_back, 24u);
  for (page* p : held) put_page(*p);
}

}  // namespace
}  // namespace forebay
