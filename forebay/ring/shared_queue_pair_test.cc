#include "forebay/ring/shared_queue_pair.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <array>
#include <cstring>
#include <map>
#include <optional>
#include <thread>
#include <vector>

#include "forebay/ring/shared_queue_controller.h"
#include "forebay/ring/test_region.h"

namespace forebay {
namespace {

using host_side = basic_shared_queue_pair<real_atomics, test_waiter>;
using controller_side = basic_shared_queue_controller<real_atomics, test_waiter>;

shared_command command(std::uint64_t offset, std::uint32_t length = 4096) {
  return {.opcode = 7,
          .flags = command_write | 0x4200,
          .argument = 0x89abcdef,
          .address = offset << 32 | 0x123,
          .length = length,
          .offset = offset};
}

struct pair_of_sides {
  explicit pair_of_sides(const host_side::options& o)
      : region(host_side::region_bytes(o.entries, o.completions)),
        host(*host_side::create(region, o)),
        peer(*controller_side::attach(region)) {}
  // One command, or none.
  std::optional<taken_command> take() {
    taken_command t;
    const auto n = peer.take({&t, 1});
    EXPECT_TRUE(n) << n.error().message();
    return n.value_or(0) == 1 ? std::optional(t) : std::nullopt;
  }
  test_region region;
  host_side host;
  controller_side peer;
};

TEST(SharedQueuePair, OneGoesThereAndComesBack) {
  pair_of_sides s({.entries = 4, .completions = 4});
  completion done;
  ASSERT_TRUE(s.host.submit(command(5), done));
  EXPECT_EQ(s.host.queued(), 1u);
  EXPECT_EQ(s.host.in_flight(), 1u);
  EXPECT_FALSE(s.take()) << "not published yet";
  ASSERT_TRUE(s.host.ring_doorbell(0));
  EXPECT_EQ(s.host.queued(), 0u);
  const auto t = s.take();
  ASSERT_TRUE(t);
  EXPECT_EQ(t->command, command(5));
  EXPECT_EQ(s.peer.in_flight(), 1u);
  EXPECT_FALSE(s.take());
  EXPECT_EQ(s.host.reap(), nullptr);
  ASSERT_TRUE(s.peer.complete(t->id, 4096));
  EXPECT_EQ(s.host.reap(), &done);
  EXPECT_EQ(done.status, 4096);
  EXPECT_EQ(s.host.reap(), nullptr);
  EXPECT_EQ(s.host.in_flight(), 0u);
  EXPECT_EQ(s.peer.in_flight(), 0u);
}

TEST(SharedQueuePair, CompletesInAnyOrder) {
  pair_of_sides s({.entries = 8, .completions = 8});
  std::array<completion, 8> done;
  for (std::uint32_t i = 0; i < 8; ++i) ASSERT_TRUE(s.host.submit(command(i), done[i]));
  ASSERT_TRUE(s.host.ring_doorbell(0));
  std::array<taken_command, 8> taken;
  ASSERT_EQ(*s.peer.take(taken), 8u);
  for (const std::uint32_t i : {3u, 7u, 0u, 1u, 6u, 2u, 5u, 4u}) {
    ASSERT_TRUE(s.peer.complete(taken[i].id, i % 2 == 0 ? static_cast<int>(i) : -EIO));
    EXPECT_EQ(s.host.reap(), &done[i]);
    EXPECT_EQ(done[i].status, i % 2 == 0 ? static_cast<int>(i) : -EIO);
  }
}

TEST(SharedQueuePair, FullQueues) {
  pair_of_sides s({.entries = 2, .completions = 4});
  std::array<completion, 6> done;
  const auto submit = [&](std::uint32_t i) { return s.host.submit(command(i), done[i]); };
  ASSERT_TRUE(submit(0));
  ASSERT_TRUE(submit(1));
  EXPECT_EQ(submit(2).error().value(), EAGAIN) << "the submission queue is full";
  EXPECT_EQ(s.host.in_flight(), 2u);
  ASSERT_TRUE(s.host.ring_doorbell(0));
  const auto a = s.take();
  const auto b = s.take();
  EXPECT_EQ(submit(2).error().value(), EAGAIN) << "the host does not know that it was read";
  ASSERT_TRUE(s.peer.complete(a->id, 0));
  EXPECT_EQ(s.host.reap(), &done[0]);
  // The completion said that both have been read, so there is room for two.
  ASSERT_TRUE(submit(2));
  ASSERT_TRUE(submit(3));
  EXPECT_EQ(submit(4).error().value(), EAGAIN);
  ASSERT_TRUE(s.host.ring_doorbell(0));
  const auto c = s.take();
  const auto d = s.take();
  ASSERT_TRUE(s.peer.complete(c->id, 0));
  EXPECT_EQ(s.host.reap(), &done[2]);
  ASSERT_TRUE(submit(4));
  ASSERT_TRUE(submit(5));
  EXPECT_EQ(s.host.in_flight(), 4u);
  EXPECT_EQ(submit(0).error().value(), EAGAIN) << "as many under way as can be completed";
  ASSERT_TRUE(s.host.ring_doorbell(0));
  // All that is under way finds room in the completion queue, though the host reads none of it.
  const auto e = s.take();
  const auto f = s.take();
  for (const auto& t : {b, d, e, f}) ASSERT_TRUE(s.peer.complete(t->id, 0));
  for (const std::uint32_t i : {1u, 3u, 4u, 5u}) EXPECT_EQ(s.host.reap(), &done[i]);
}

TEST(SharedQueuePair, ControllerRefusesWhatCannotBeCompleted) {
  pair_of_sides s({.entries = 4, .completions = 4});
  completion done;
  ASSERT_TRUE(s.host.submit(command(1, 100), done));
  ASSERT_TRUE(s.host.ring_doorbell(0));
  const std::uint32_t id = s.take()->id;
  EXPECT_EQ(s.peer.complete(id, 101).error().value(), EINVAL);
  EXPECT_EQ(s.peer.complete(id, -4096).error().value(), EINVAL);
  EXPECT_EQ(s.peer.complete(id, INT32_MIN).error().value(), EINVAL);
  EXPECT_EQ(s.peer.complete(id + 1, 0).error().value(), EINVAL);
  EXPECT_EQ(s.peer.complete(id + 4, 0).error().value(), EINVAL);
  EXPECT_EQ(s.peer.complete(id + (1u << 16), 0).error().value(), EINVAL);
  EXPECT_EQ(s.host.reap(), nullptr);
  ASSERT_TRUE(s.peer.complete(id, -4095));
  EXPECT_EQ(s.peer.complete(id, 0).error().value(), EINVAL) << "a second time";
  EXPECT_EQ(s.host.reap(), &done);
  EXPECT_EQ(done.status, -4095);
}

TEST(SharedQueuePair, RefusesCommandsThatCannotBe) {
  pair_of_sides s({.entries = 4, .completions = 4});
  completion done;
  shared_command c = command(1);
  c.length = shared_command_bytes_max + 1;
  EXPECT_EQ(s.host.submit(c, done).error(), ring_errc::bad_length);
  c.length = shared_command_bytes_max;
  c.flags = 4;
  EXPECT_EQ(s.host.submit(c, done).error(), ring_errc::bad_flags);
  EXPECT_EQ(s.host.in_flight(), 0u);
  c.flags = 0;
  ASSERT_TRUE(s.host.submit(c, done));
  ASSERT_TRUE(s.host.ring_doorbell(0));
  ASSERT_TRUE(s.peer.complete(s.take()->id, INT32_MAX));
  EXPECT_EQ(s.host.reap(), &done);
  EXPECT_EQ(done.status, INT32_MAX);
}

TEST(SharedQueuePair, RefusesSizesThatCannotBe) {
  const std::size_t bytes = host_side::region_bytes(8, 16);
  const test_region region(bytes);
  const auto error_of = [](std::span<std::byte> memory, std::uint32_t entries,
                           std::uint32_t completions) {
    auto r = host_side::create(memory, {.entries = entries, .completions = completions});
    return r ? std::error_code() : r.error();
  };
  for (const auto& [n, e] :
       {std::pair(0u, ring_errc::too_few_entries), std::pair(3u, ring_errc::no_power_of_two),
        std::pair(UINT32_MAX, ring_errc::no_power_of_two),
        std::pair(1u << 16, ring_errc::too_many_entries)}) {
    EXPECT_EQ(error_of(region, n, 8), e);
    EXPECT_EQ(error_of(region, 8, n), e);
  }
  EXPECT_EQ(error_of(region, 8, 32), ring_errc::region_too_small);
  EXPECT_EQ(error_of(region, 16, 16), ring_errc::region_too_small);
  EXPECT_EQ(error_of(region.memory().first(bytes - 1), 8, 16), ring_errc::region_too_small);
  EXPECT_EQ(error_of(region.memory().subspan(8), 1, 1), ring_errc::region_misaligned);
  for (const std::byte b : region.memory()) ASSERT_EQ(b, std::byte{0});
  EXPECT_FALSE(error_of(region, 8, 16));
}

TEST(SharedQueuePair, DoorbellsInBatches) {
  pair_of_sides s({.entries = 16, .completions = 16, .doorbell_batch = 4});
  std::array<completion, 16> done;
  for (std::uint32_t i = 0; i < 10; ++i) ASSERT_TRUE(s.host.submit(command(i), done[i]));
  EXPECT_EQ(s.host.queued(), 2u);
  EXPECT_EQ(s.host.statistics().doorbells, 2u);
  EXPECT_EQ(s.host.statistics().entries, 8u);
  EXPECT_EQ(s.host.statistics().bells, 0u) << "nobody waits";
  std::array<taken_command, 16> taken;
  EXPECT_EQ(*s.peer.take(taken), 8u);
  EXPECT_EQ(s.peer.wait(5).error(), std::errc::timed_out);
  ASSERT_TRUE(s.host.ring_doorbell(0));
  EXPECT_EQ(s.host.statistics().bells, 1u) << "now it does";
  ASSERT_TRUE(s.host.ring_doorbell(0));
  EXPECT_EQ(s.host.statistics().doorbells, 3u) << "nothing new is no doorbell";
  EXPECT_EQ(*s.peer.take(taken), 2u);

  EXPECT_TRUE(s.host.ring_doorbell(20)) << "a timeout is no error";
  EXPECT_EQ(s.host.wait(20).error(), std::errc::timed_out);
  ASSERT_TRUE(s.peer.complete(taken[1].id, 0));
  EXPECT_EQ(s.peer.statistics().bells, 0u);
  ASSERT_TRUE(s.peer.complete(taken[0].id, 0));
  s.peer.notify();
  EXPECT_EQ(s.peer.statistics().bells, 1u);
  EXPECT_EQ(s.peer.statistics().entries, 2u);
  EXPECT_TRUE(s.host.wait(5));
}

TEST(SharedQueuePair, WaitsForSeveralAtOnce) {
  pair_of_sides s({.entries = 8, .completions = 8, .start = 5});  // the queue comes round
  std::array<completion, 6> done;
  for (std::uint32_t i = 0; i < 6; ++i) ASSERT_TRUE(s.host.submit(command(i), done[i]));
  ASSERT_TRUE(s.host.ring_doorbell(0));
  std::array<taken_command, 8> taken;
  ASSERT_EQ(*s.peer.take(taken), 6u);
  EXPECT_EQ(s.host.wait(5, 4).error(), std::errc::timed_out);
  for (std::uint32_t i = 0; i < 3; ++i) ASSERT_TRUE(s.peer.complete(taken[i].id, 0));
  s.peer.notify();
  EXPECT_EQ(s.peer.statistics().bells, 0u) << "three are not what it waits for";
  EXPECT_TRUE(s.host.wait(5, 3));
  EXPECT_EQ(s.host.wait(5, 4).error(), std::errc::timed_out);
  ASSERT_TRUE(s.peer.complete(taken[3].id, 0));
  s.peer.notify();
  EXPECT_EQ(s.peer.statistics().bells, 1u);
  EXPECT_TRUE(s.host.wait(5, 4));
  for (std::uint32_t i = 0; i < 4; ++i) EXPECT_EQ(s.host.reap(), &done[i]);
  // No more than are under way.
  EXPECT_EQ(s.host.wait(5, 100).error(), std::errc::timed_out);
  ASSERT_TRUE(s.peer.complete(taken[4].id, 0));
  EXPECT_EQ(s.host.wait(5, 100).error(), std::errc::timed_out);
  ASSERT_TRUE(s.peer.complete(taken[5].id, 0));
  EXPECT_TRUE(s.host.ring_doorbell(5, 100));
  EXPECT_TRUE(s.host.wait(5, 0)) << "one at least";
}

TEST(SharedQueuePair, AClosedSideSaysSoAfterItsLastWord) {
  pair_of_sides s({.entries = 4, .completions = 4});
  completion done;
  ASSERT_TRUE(s.host.submit(command(1), done));
  ASSERT_TRUE(s.host.ring_doorbell(0));
  s.host.close();
  ASSERT_TRUE(s.peer.wait(5));
  const auto t = s.take();
  EXPECT_EQ(s.peer.wait(5).error(), errc::end_of_stream);
  ASSERT_TRUE(s.peer.complete(t->id, 1));
  s.peer.close();
  ASSERT_TRUE(s.host.ring_doorbell(5));
  EXPECT_EQ(s.host.reap(), &done);
  EXPECT_EQ(s.host.ring_doorbell(5).error(), errc::end_of_stream);
  EXPECT_FALSE(s.host.fault());
}

TEST(SharedQueuePair, AbandonedCommandsEndOnce) {
  pair_of_sides s({.entries = 8, .completions = 8});
  std::array<completion, 5> done;
  for (std::uint32_t i = 0; i < 5; ++i) ASSERT_TRUE(s.host.submit(command(i), done[i]));
  ASSERT_TRUE(s.host.ring_doorbell(0));
  ASSERT_TRUE(s.peer.complete(s.take()->id, 9));
  EXPECT_EQ(s.host.reap(), &done[0]);
  s.host.abandon(-ECONNRESET);
  std::map<completion*, int> ended;
  while (completion* c = s.host.reap()) ended[c] = c->status;
  EXPECT_EQ(ended.size(), 4u);
  for (std::uint32_t i = 1; i < 5; ++i) EXPECT_EQ(ended[&done[i]], -ECONNRESET);
  EXPECT_EQ(s.host.in_flight(), 0u);
  EXPECT_EQ(done[0].status, 9);
  EXPECT_EQ(s.host.submit(command(1), done[1]).error().value(), ECANCELED);
  EXPECT_EQ(s.host.reap(), nullptr);
}

// What is abandoned has ended: there is nothing to wait for, and nothing goes to the other side any
// more, which could write a buffer that has been given back.
TEST(SharedQueuePair, AbandonedCommandsAreNotWaitedForAndNotPublished) {
  pair_of_sides s({.entries = 8, .completions = 8});
  std::array<completion, 2> done;
  ASSERT_TRUE(s.host.submit(command(0), done[0]));
  ASSERT_TRUE(s.host.ring_doorbell(0));
  ASSERT_TRUE(s.host.submit(command(1), done[1]));
  s.host.abandon(-EIO);
  EXPECT_TRUE(s.host.wait(5));
  EXPECT_TRUE(s.host.ring_doorbell(5, 2));
  EXPECT_EQ(s.host.reap(), &done[0]);
  EXPECT_EQ(s.host.reap(), &done[1]);
  EXPECT_EQ(s.host.wait(5).error().value(), ECANCELED);
  EXPECT_EQ(s.host.ring_doorbell(5).error().value(), ECANCELED);
  EXPECT_TRUE(s.take());
  EXPECT_FALSE(s.take()) << "a command that was given back";
}

class MemoryOf : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(regions.add(0x1000, memory));
    ASSERT_TRUE(regions.add(0x9000, read_only, device_access::read));
  }
  result<std::span<const std::span<std::byte>>> of(const shared_command& c) {
    return memory_of(c, {}, regions, storage);
  }
  alignas(8) std::array<std::byte, 4096> memory{};
  std::array<std::byte, 64> read_only{};
  memory_region_table regions;
  std::array<std::span<std::byte>, 4> storage;
};

TEST_F(MemoryOf, ABufferOfItsOwn) {
  const auto r = of({.flags = command_write, .address = 0x1100, .length = 100});
  ASSERT_TRUE(r);
  ASSERT_EQ(r->size(), 1u);
  EXPECT_EQ((*r)[0].data(), memory.data() + 0x100);
  EXPECT_EQ((*r)[0].size(), 100u);
  EXPECT_TRUE(of({.address = 0x9000, .length = 64}));
  EXPECT_TRUE(of({.address = 5, .length = 0})->empty());
  EXPECT_EQ(of({.flags = command_write, .address = 0x9000, .length = 64}).error(),
            ring_errc::forbidden_access);
  EXPECT_EQ(of({.address = 0x1fff, .length = 2}).error(), ring_errc::unmapped_address);
  EXPECT_EQ(of({.address = 0, .length = 2}).error(), ring_errc::unmapped_address);
}

TEST_F(MemoryOf, AChain) {
  const auto table = shared_descriptor_table::at(std::span(memory).first(64));
  const shared_command c{.flags = command_indirect, .argument = 4, .address = 0x1000, .length = 30};
  table->write(0, {0x1400, 10, descriptor_next, 2});
  table->write(2, {0x1800, 20, 0, 0});
  const auto r = of(c);
  ASSERT_TRUE(r) << r.error().message();
  ASSERT_EQ(r->size(), 2u);
  EXPECT_EQ((*r)[1].data(), memory.data() + 0x800);

  shared_command other = c;
  other.length = 31;
  EXPECT_EQ(of(other).error(), ring_errc::bad_length);
  other.length = 29;
  EXPECT_EQ(of(other).error(), ring_errc::bad_length);
  other = c;
  other.flags |= command_write;
  EXPECT_EQ(of(other).error(), ring_errc::bad_order) << "none of it is writable";
  table->write(2, {0x1800, 20, descriptor_write, 0});
  EXPECT_EQ(of(c).error(), ring_errc::bad_order);
  EXPECT_EQ(of(other).error(), ring_errc::bad_order) << "half of it is";
  table->write(2, {0x1800, 20, descriptor_next, 0});
  EXPECT_EQ(of(c).error(), ring_errc::chain_loop);
  table->write(2, {0x1800, 20, descriptor_next, 4});
  EXPECT_EQ(of(c).error(), ring_errc::chain_index);
  other = c;
  other.argument = UINT32_MAX;
  EXPECT_EQ(of(other).error(), ring_errc::misaligned_table);
  other.argument = 0;
  EXPECT_EQ(of(other).error(), ring_errc::bad_length);
  other.argument = 1u << 16;
  EXPECT_EQ(of(other).error(), ring_errc::unmapped_address);
}

// Both sides beside a model; positions begin shortly before 16 and 32 bits come round.
RC_GTEST_PROP(SharedQueuePairProperty, IsAQueueAndASet, ()) {
  const auto entries = 1u << *rc::gen::inRange(0, 4);
  const auto completions = 1u << *rc::gen::inRange(0, 4);
  const auto start = *rc::gen::element(0u, 3u, 0xfffeu, 0x1fffdu, UINT32_MAX, UINT32_MAX - 9);
  pair_of_sides s({.entries = entries, .completions = completions, .start = start});
  struct under_way {
    std::unique_ptr<completion> done;
    std::uint64_t offset;
    std::uint32_t id = 0;
    std::int32_t status = 0;
  };
  std::vector<under_way> queued;
  std::vector<under_way> published;
  std::vector<under_way> taken;
  std::vector<under_way> ended;
  std::uint64_t next = 0;
  std::uint32_t unread = 0;            // submissions that the host does not know to be read
  std::uint32_t read = 0;              // of those, read by the controller when it completed last
  std::vector<std::uint32_t> read_at;  // for each of `ended`: how many it told of
  for (int steps = *rc::gen::inRange(0, 200); steps > 0; --steps) {
    switch (*rc::gen::inRange(0, 5)) {
      case 0: {
        auto done = std::make_unique<completion>();
        const std::size_t all = queued.size() + published.size() + taken.size() + ended.size();
        const auto r = s.host.submit(command(next), *done);
        RC_ASSERT(r.has_value() == (all < completions && unread < entries));
        if (!r) break;
        ++unread;
        queued.push_back({.done = std::move(done), .offset = next++});
        break;
      }
      case 1:
        RC_ASSERT(s.host.ring_doorbell(0).has_value());
        for (under_way& u : queued) published.push_back(std::move(u));
        queued.clear();
        break;
      case 2: {
        std::vector<taken_command> out(*rc::gen::inRange<std::size_t>(0, 4));
        const auto n = s.peer.take(out);
        RC_ASSERT(n.has_value());
        RC_ASSERT(*n <= published.size() && (*n != 0 || out.empty() || published.empty()));
        for (std::size_t i = 0; i < *n; ++i) {
          RC_ASSERT(out[i].command == command(published.front().offset));
          published.front().id = out[i].id;
          taken.push_back(std::move(published.front()));
          published.erase(published.begin());
          ++read;
        }
        break;
      }
      case 3: {
        if (taken.empty()) break;
        const auto which = *rc::gen::inRange<std::size_t>(0, taken.size());
        under_way& u = taken[which];
        u.status = *rc::gen::element(0, 4096, -1, -4095);
        RC_ASSERT(s.peer.complete(u.id, u.status).has_value());
        ended.push_back(std::move(u));
        taken.erase(taken.begin() + static_cast<std::ptrdiff_t>(which));
        read_at.push_back(std::exchange(read, 0));
        break;
      }
      case 4: {
        completion* const c = s.host.reap();
        RC_ASSERT(c == (ended.empty() ? nullptr : ended.front().done.get()));
        if (c == nullptr) break;
        RC_ASSERT(c->status == ended.front().status);
        unread -= read_at.front();
        read_at.erase(read_at.begin());
        ended.erase(ended.begin());
        break;
      }
    }
    RC_ASSERT(s.host.queued() == queued.size());
    RC_ASSERT(s.host.in_flight() == queued.size() + published.size() + taken.size() + ended.size());
    RC_ASSERT(s.peer.in_flight() == taken.size());
  }
}

// A controller in a thread, which completes out of order; both sleep when they have nothing to do.
TEST(SharedQueuePairStress, TwoThreadsMoveBytes) {
  constexpr std::uint32_t entries = 16;
  constexpr std::uint32_t commands = 20'000;
  constexpr std::uint32_t block = 64;
  const test_region region(shared_queue_pair::region_bytes(entries, entries));
  std::vector<std::byte> memory(std::size_t{entries} * block);
  memory_region_table regions;
  ASSERT_TRUE(regions.add(0x10000, memory));
  auto host = shared_queue_pair::create(
      region, {.entries = entries, .completions = entries, .start = UINT32_MAX - 5'000});
  ASSERT_TRUE(host);
  std::thread model([&] {
    auto peer = shared_queue_controller::attach(region);
    std::array<taken_command, entries> taken;
    std::array<std::span<std::byte>, 4> pieces;
    while (peer->wait(20'000'000'000)) {
      const auto n = peer->take(taken);
      ASSERT_TRUE(n) << n.error().message();
      for (std::size_t i = *n; i-- > 0;) {
        const auto to = memory_of(taken[i].command, {}, regions, pieces);
        ASSERT_TRUE(to) << to.error().message();
        std::memset((*to)[0].data(), static_cast<int>(taken[i].command.offset % 251), block);
        ASSERT_TRUE(peer->complete(taken[i].id, block));
      }
      peer->notify();
    }
    peer->close();
  });
  struct transfer {
    completion done;
    std::uint64_t number = 0;
    bool busy = false;
  };
  std::array<transfer, entries> transfers;
  std::uint32_t sent = 0;
  std::uint32_t received = 0;
  unsigned wrong = 0;
  while (received < commands) {
    for (std::uint32_t i = 0; i < entries && sent < commands; ++i) {
      transfer& t = transfers[i];
      if (t.busy) continue;
      const shared_command c{.opcode = 1,
                             .flags = command_write,
                             .address = 0x10000 + std::uint64_t{i} * block,
                             .length = block,
                             .offset = sent};
      if (!host->submit(c, t.done)) break;
      t.busy = true;
      t.number = sent++;
    }
    ASSERT_TRUE(host->ring_doorbell(20'000'000'000)) << host->fault().message();
    while (completion* c = host->reap()) {
      for (std::uint32_t i = 0; i < entries; ++i) {
        transfer& t = transfers[i];
        if (&t.done != c) continue;
        t.busy = false;
        if (c->status != static_cast<int>(block)) ++wrong;
        for (const std::byte b : std::span(memory).subspan(std::size_t{i} * block, block)) {
          if (b != static_cast<std::byte>(t.number % 251)) ++wrong;
        }
      }
      ++received;
    }
  }
  host->close();
  model.join();
  EXPECT_EQ(wrong, 0u);
}

}  // namespace
}  // namespace forebay
