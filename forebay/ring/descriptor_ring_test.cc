#include "forebay/ring/descriptor_ring.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <array>
#include <cstring>
#include <deque>
#include <thread>
#include <vector>

#include "forebay/ring/descriptor_chain.h"
#include "forebay/ring/test_region.h"

namespace forebay {
namespace {

using driver = basic_descriptor_driver<real_atomics, test_waiter>;
using device = basic_descriptor_device<real_atomics, test_waiter>;

descriptor piece(std::uint64_t address, std::uint32_t length, std::uint16_t flags = 0) {
  return {.address = address, .length = length, .flags = flags, .next = 0};
}

struct pair_of_sides {
  explicit pair_of_sides(std::uint32_t entries, std::uint32_t start = 0)
      : region(driver::region_bytes(entries)),
        host(*driver::create(region, {.entries = entries, .start = start})),
        peer(*device::attach(region)) {}
  test_region region;
  driver host;
  device peer;
};

TEST(DescriptorRing, OneGoesThereAndComesBack) {
  pair_of_sides s(4);
  std::array<descriptor, 4> chain;
  std::array<ended_chain, 4> ended;
  ASSERT_TRUE(s.host.post(piece(0x1000, 100, descriptor_write), 77));
  EXPECT_TRUE(s.peer.take(chain)->descriptors.empty()) << "not published yet";
  s.host.ring_doorbell();
  const auto taken = s.peer.take(chain);
  ASSERT_TRUE(taken);
  EXPECT_EQ(taken->id, 77u);
  ASSERT_EQ(taken->descriptors.size(), 1u);
  EXPECT_EQ(taken->descriptors[0].address, 0x1000u);
  EXPECT_EQ(taken->descriptors[0].length, 100u);
  EXPECT_EQ(taken->descriptors[0].flags, descriptor_write);
  EXPECT_EQ(*s.host.reap(ended), 0u);
  ASSERT_TRUE(s.peer.complete(60, EIO));
  ASSERT_EQ(*s.host.reap(ended), 1u);
  EXPECT_EQ(ended[0].id, 77u);
  EXPECT_EQ(ended[0].length, 60u);
  EXPECT_EQ(ended[0].error, EIO);
  EXPECT_EQ(*s.host.reap(ended), 0u);
  EXPECT_TRUE(s.peer.take(chain)->descriptors.empty());
}

TEST(DescriptorRing, FullAndEmpty) {
  pair_of_sides s(4);
  std::array<descriptor, 4> chain;
  std::array<ended_chain, 8> ended;
  for (std::uint64_t round = 0; round < 10; ++round) {
    for (std::uint64_t i = 0; i < 4; ++i) ASSERT_TRUE(s.host.post(piece(i, 1), i));
    EXPECT_EQ(s.host.room(), 0u);
    EXPECT_EQ(s.host.post(piece(9, 1), 9).error().value(), EAGAIN);
    s.host.ring_doorbell();
    for (std::uint64_t i = 0; i < 4; ++i) {
      ASSERT_EQ(s.peer.take(chain)->id, i);
      // The slot is not free before its status has been read.
      EXPECT_EQ(s.host.post(piece(9, 1), 9).error().value(), EAGAIN);
    }
    for (std::uint64_t i = 0; i < 4; ++i) ASSERT_TRUE(s.peer.complete(1));
    EXPECT_EQ(s.peer.complete(1).error().value(), EINVAL) << "more than were taken";
    EXPECT_EQ(*s.host.reap(ended), 4u);
    for (std::uint64_t i = 0; i < 4; ++i) EXPECT_EQ(ended[i].id, i);
    EXPECT_EQ(s.host.room(), 4u);
  }
}

TEST(DescriptorRing, AChainIsOneThing) {
  pair_of_sides s(8);
  const std::array three = {piece(1, 10), piece(2, 20, descriptor_write | descriptor_next),
                            piece(3, 30, descriptor_write)};
  std::array<descriptor, 8> chain;
  std::array<ended_chain, 8> ended;
  for (std::uint64_t round = 0; round < 20; ++round) {
    ASSERT_TRUE(s.host.post(three, round));
    ASSERT_TRUE(s.host.post(piece(4, 5), 1'000 + round));
    EXPECT_EQ(s.host.in_flight(), 4u);
    s.host.ring_doorbell();
    auto taken = s.peer.take(chain);
    ASSERT_TRUE(taken);
    EXPECT_EQ(taken->id, round);
    ASSERT_EQ(taken->descriptors.size(), 3u);
    EXPECT_EQ(taken->descriptors[0], (descriptor{1, 10, descriptor_next, 1}));
    EXPECT_EQ(taken->descriptors[1], (descriptor{2, 20, descriptor_next | descriptor_write, 2}));
    EXPECT_EQ(taken->descriptors[2].flags, descriptor_write);
    ASSERT_EQ(s.peer.take(chain)->id, 1'000 + round);
    ASSERT_TRUE(s.peer.complete(50));
    EXPECT_EQ(*s.host.reap(ended), 1u);
    EXPECT_EQ(ended[0].length, 50u);
    EXPECT_EQ(s.host.in_flight(), 1u);
    ASSERT_TRUE(s.peer.complete(5));
    EXPECT_EQ(*s.host.reap(ended), 1u);
  }
}

TEST(DescriptorRing, RefusesChainsThatCannotBe) {
  pair_of_sides s(4);
  const auto error_of = [&](std::vector<descriptor> chain) {
    return s.host.post(chain, 1).error();
  };
  EXPECT_EQ(error_of({}), ring_errc::bad_length);
  EXPECT_EQ(error_of({piece(0, 0)}), ring_errc::bad_length);
  EXPECT_EQ(error_of({piece(0, 1), piece(0, 0)}), ring_errc::bad_length);
  EXPECT_EQ(error_of({piece(0, UINT32_MAX), piece(0, 1)}), ring_errc::bad_length);
  EXPECT_EQ(error_of({piece(0, 1, descriptor_write), piece(0, 1)}), ring_errc::bad_order);
  EXPECT_EQ(error_of(std::vector<descriptor>(5, piece(0, 1))), ring_errc::chain_too_long);
  EXPECT_EQ(s.host.room(), 4u);
  EXPECT_TRUE(s.host.post(std::vector<descriptor>(4, piece(0, 1)), 1));
  EXPECT_EQ(error_of(std::vector<descriptor>(4, piece(0, 1))).value(), EAGAIN);
  // An error leaves what is there alone.
  s.host.ring_doorbell();
  std::array<descriptor, 4> chain;
  EXPECT_EQ(s.peer.take(chain)->descriptors.size(), 4u);
}

TEST(DescriptorRing, RefusesSizesThatCannotBe) {
  const test_region region(driver::region_bytes(8));
  const auto error_of = [](std::span<std::byte> memory, std::uint32_t entries) {
    auto r = driver::create(memory, {.entries = entries, .start = 0});
    return r ? std::error_code() : r.error();
  };
  EXPECT_EQ(error_of(region, 0), ring_errc::too_few_entries);
  for (const std::uint32_t n : {3u, 5u, 6u, 7u, 100u, UINT32_MAX}) {
    EXPECT_EQ(error_of(region, n), ring_errc::no_power_of_two) << n;
  }
  for (const std::uint32_t n : {1u << 16, 1u << 31}) {
    EXPECT_EQ(error_of(region, n), ring_errc::too_many_entries) << n;
  }
  EXPECT_EQ(error_of(region, 16), ring_errc::region_too_small);
  EXPECT_EQ(error_of(region.memory().first(region.memory().size() - 1), 8),
            ring_errc::region_too_small);
  EXPECT_EQ(error_of({}, 8), ring_errc::region_too_small);
  EXPECT_EQ(error_of(region.memory().subspan(64), 4), ring_errc::region_misaligned);
  // Nothing of this has been written.
  for (const std::byte b : region.memory()) ASSERT_EQ(b, std::byte{0});
  EXPECT_FALSE(error_of(region, 8));
  EXPECT_FALSE(error_of(region, 1));
}

TEST(DescriptorRing, TheDoorbellWakesOnlyWhoSleeps) {
  pair_of_sides s(64);
  std::array<descriptor, 4> chain;
  const auto post = [&](std::uint64_t n) {
    for (std::uint64_t i = 0; i < n; ++i) ASSERT_TRUE(s.host.post(piece(i, 1), i));
    s.host.ring_doorbell();
  };
  post(3);
  EXPECT_EQ(s.host.statistics().bells, 0u) << "nobody waits";
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(s.peer.take(chain));
  EXPECT_EQ(s.peer.wait(5).error(), std::errc::timed_out);
  post(2);
  EXPECT_EQ(s.host.statistics().bells, 1u);
  EXPECT_TRUE(s.peer.wait(5)) << "there is something";
  post(2);
  s.host.ring_doorbell();
  EXPECT_EQ(s.host.statistics().bells, 1u);
  EXPECT_EQ(s.host.statistics().doorbells, 3u);
  EXPECT_EQ(s.host.statistics().entries, 7u);

  EXPECT_EQ(s.host.wait(5).error(), std::errc::timed_out);
  EXPECT_GT(s.host.statistics().sleeps, 0u);
  ASSERT_TRUE(s.peer.complete(1));
  ASSERT_TRUE(s.peer.complete(1));
  EXPECT_EQ(s.peer.statistics().bells, 0u);
  s.peer.notify();
  EXPECT_EQ(s.peer.statistics().bells, 1u);
  EXPECT_TRUE(s.host.wait(5));
  ASSERT_TRUE(s.peer.complete(1));
  s.peer.notify();
  EXPECT_EQ(s.peer.statistics().bells, 1u);
}

TEST(DescriptorRing, AClosedSideSaysSoAfterItsLastWord) {
  pair_of_sides s(4);
  std::array<descriptor, 4> chain;
  std::array<ended_chain, 4> ended;
  ASSERT_TRUE(s.host.post(piece(1, 1), 1));
  ASSERT_TRUE(s.host.post(piece(1, 1), 2));
  s.host.ring_doorbell();
  s.host.close();
  EXPECT_TRUE(s.peer.wait(5));
  ASSERT_TRUE(s.peer.take(chain));
  EXPECT_TRUE(s.peer.wait(5));
  ASSERT_TRUE(s.peer.take(chain));
  EXPECT_EQ(s.peer.wait(5).error(), errc::end_of_stream);
  ASSERT_TRUE(s.peer.complete(1));
  s.peer.close();
  EXPECT_TRUE(s.host.wait(5));
  EXPECT_EQ(*s.host.reap(ended), 1u);
  EXPECT_EQ(s.host.wait(5).error(), errc::end_of_stream);
  EXPECT_FALSE(s.host.fault());
}

TEST(DescriptorRing, NothingPostedIsNothingToWaitFor) {
  pair_of_sides s(4);
  EXPECT_EQ(s.host.wait(UINT64_MAX).error().value(), ENODATA);
}

// Both sides beside a queue; positions begin shortly before they come round.
RC_GTEST_PROP(DescriptorRingProperty, IsAQueueOfChains, ()) {
  struct model_chain {
    std::uint64_t id;
    std::vector<descriptor> pieces;
    std::uint32_t length = 0;
    std::uint16_t error = 0;
  };
  const auto entries = 1u << *rc::gen::inRange(0, 4);
  const auto start = *rc::gen::element(0u, 1u, 7u, 0xfff0u, UINT32_MAX, UINT32_MAX - 9);
  pair_of_sides s(entries, start);
  std::deque<model_chain> posted;
  std::deque<model_chain> published;
  std::deque<model_chain> taken;
  std::deque<model_chain> done;
  std::size_t used = 0;
  std::uint64_t next_id = 0;
  std::vector<descriptor> storage(entries);
  for (int steps = *rc::gen::inRange(0, 200); steps > 0; --steps) {
    switch (*rc::gen::inRange(0, 5)) {
      case 0: {
        model_chain c{.id = ++next_id * 0x100000001, .pieces = {}};
        const auto pieces = *rc::gen::inRange(1u, entries + 1);
        for (std::uint32_t i = 0; i < pieces; ++i) {
          c.pieces.push_back({.address = next_id << 20 | i,
                              .length = 1 + i,
                              .flags = i > pieces / 2 ? descriptor_write : std::uint16_t{0},
                              .next = 0});
        }
        const auto r = s.host.post(c.pieces, c.id);
        RC_ASSERT(r.has_value() == (used + pieces <= entries));
        if (!r) break;
        used += pieces;
        posted.push_back(std::move(c));
        break;
      }
      case 1:
        s.host.ring_doorbell();
        for (; !posted.empty(); posted.pop_front()) published.push_back(posted.front());
        break;
      case 2: {
        const auto r = s.peer.take(storage);
        RC_ASSERT(r.has_value());
        RC_ASSERT(r->descriptors.empty() == published.empty());
        if (published.empty()) break;
        RC_ASSERT(r->id == published.front().id);
        RC_ASSERT(r->descriptors.size() == published.front().pieces.size());
        for (std::size_t i = 0; i < r->descriptors.size(); ++i) {
          RC_ASSERT(r->descriptors[i].address == published.front().pieces[i].address);
          RC_ASSERT(r->descriptors[i].length == published.front().pieces[i].length);
        }
        taken.push_back(published.front());
        published.pop_front();
        break;
      }
      case 3:
        if (taken.empty()) {
          RC_ASSERT(!s.peer.complete(0));
          break;
        }
        taken.front().length = *rc::gen::inRange(0u, taken.front().pieces.back().length + 1);
        taken.front().error = *rc::gen::element<std::uint16_t>(0, EIO, 4095);
        RC_ASSERT(s.peer.complete(taken.front().length, taken.front().error).has_value());
        done.push_back(taken.front());
        taken.pop_front();
        break;
      case 4: {
        std::vector<ended_chain> out(*rc::gen::inRange<std::size_t>(0, 4));
        const auto n = s.host.reap(out);
        RC_ASSERT(n.has_value() && *n == std::min(out.size(), done.size()));
        for (std::size_t i = 0; i < *n; ++i, done.pop_front()) {
          RC_ASSERT(out[i].id == done.front().id);
          RC_ASSERT(out[i].length == done.front().length && out[i].error == done.front().error);
          used -= done.front().pieces.size();
        }
        break;
      }
    }
    RC_ASSERT(s.host.room() == entries - used);
  }
}

// A device in a thread adds up what it is given, in memory that the descriptors say.
TEST(DescriptorRingStress, TwoThreadsMoveBytes) {
  constexpr std::uint32_t entries = 32;
  constexpr std::uint32_t chains = 20'000;
  constexpr std::uint32_t block = 64;
  const test_region region(descriptor_driver::region_bytes(entries));
  std::vector<std::byte> memory(std::size_t{entries} * block);
  memory_region_table regions;
  ASSERT_TRUE(regions.add(0x10000, memory));
  auto host = descriptor_driver::create(region, {.entries = entries, .start = UINT32_MAX - 5'000});
  ASSERT_TRUE(host);
  std::thread model([&] {
    auto peer = descriptor_device::attach(region);
    std::array<descriptor, 4> storage;
    std::array<std::span<std::byte>, 4> pieces;
    for (;;) {
      if (auto r = peer->wait(20'000'000'000); !r) break;
      for (;;) {
        const auto taken = peer->take(storage);
        ASSERT_TRUE(taken);
        if (taken->descriptors.empty()) break;
        const auto chain =
            collect_chain(descriptor_list(taken->descriptors), 0, {}, regions, pieces);
        ASSERT_TRUE(chain) << chain.error().message();
        // The writable part becomes the readable one, each byte plus one.
        const std::span<std::byte> from = chain->readable[0];
        const std::span<std::byte> to = chain->writable[0];
        for (std::size_t i = 0; i < to.size(); ++i) {
          to[i] = static_cast<std::byte>(static_cast<unsigned>(from[i]) + 1);
        }
        ASSERT_TRUE(peer->complete(static_cast<std::uint32_t>(to.size())));
      }
      peer->notify();
    }
    peer->close();
  });
  // Chain n uses the blocks 2n and 2n + 1, modulo the ring.
  const auto block_of = [&](std::uint32_t n) {
    return std::span(memory).subspan(std::size_t{n % entries} * block, block);
  };
  std::array<ended_chain, 8> ended;
  std::uint32_t sent = 0;
  std::uint32_t received = 0;
  unsigned wrong = 0;
  while (received < chains) {
    while (sent < chains && host->room() >= 2) {
      std::memset(block_of(2 * sent).data(), static_cast<int>(sent % 200), block);
      const std::uint64_t at = 0x10000 + std::uint64_t{2 * sent % entries} * block;
      ASSERT_TRUE(host->post(
          std::array{piece(at, block), piece(at + block, block, descriptor_write)}, sent));
      ++sent;
    }
    host->ring_doorbell();
    ASSERT_TRUE(host->wait(20'000'000'000));
    const auto n = host->reap(ended);
    ASSERT_TRUE(n) << n.error().message();
    for (std::size_t i = 0; i < *n; ++i, ++received) {
      if (ended[i].id != received || ended[i].length != block || ended[i].error != 0) ++wrong;
      for (const std::byte b : block_of(2 * received + 1)) {
        if (b != static_cast<std::byte>(received % 200 + 1)) ++wrong;
      }
    }
  }
  host->close();
  model.join();
  EXPECT_EQ(wrong, 0u);
}

}  // namespace
}  // namespace forebay
