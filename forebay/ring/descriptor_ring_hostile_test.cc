// One thread: not in the thread sanitizer's tree.
// A ring whose other side does what it must not: every case ends in an error that names it, at
// once, and nothing is read or written because of it.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <array>
#include <vector>

#include "forebay/ring/descriptor_ring.h"
#include "forebay/ring/test_region.h"

namespace forebay {
namespace {

using driver = basic_descriptor_driver<real_atomics, test_waiter>;
using device = basic_descriptor_device<real_atomics, test_waiter>;
using layout = descriptor_ring_layout<real_atomics>;

class HostileRing : public testing::Test {
 protected:
  static constexpr std::uint32_t entries = 8;

  void post(std::uint32_t count, std::uint32_t length = 100) {
    for (std::uint32_t i = 0; i < count; ++i) {
      ASSERT_TRUE(host.post({.address = i, .length = length, .flags = 0, .next = 0}, i));
    }
    host.ring_doorbell();
  }
  std::error_code attach_error() {
    auto r = device::attach(region);
    return r ? std::error_code() : r.error();
  }
  // What take() says now, and that it goes on saying it.
  std::error_code take_error() {
    const auto first = peer.take(chain);
    if (first) return {};
    EXPECT_EQ(peer.take(chain).error(), first.error());
    EXPECT_EQ(peer.fault(), first.error());
    EXPECT_EQ(peer.complete(0).error(), first.error());
    EXPECT_EQ(peer.wait(5).error(), first.error());
    return first.error();
  }
  std::error_code reap_error() {
    const auto first = host.reap(ended);
    if (first) return {};
    EXPECT_EQ(host.reap(ended).error(), first.error());
    EXPECT_EQ(host.fault(), first.error());
    EXPECT_EQ(host.post({.address = 0, .length = 1}, 0).error(), first.error());
    EXPECT_EQ(host.wait(5).error(), first.error());
    return first.error();
  }

  test_region region{driver::region_bytes(entries)};
  driver host = *driver::create(region, {.entries = entries, .start = 0});
  device peer = *device::attach(region);
  layout::header& header = *find_in<layout::header>(region, 0);
  layout::side& driver_words = *find_in<layout::side>(region, layout::driver_at);
  layout::slot* slots = find_in<layout::slot>(region, layout::slots_at);
  std::array<descriptor, 4> chain;
  std::array<ended_chain, entries> ended;
};

TEST_F(HostileRing, HeadersThatDoNotFit) {
  const auto with = [&](auto& word, auto value) {
    const auto before = word.exchange(value);
    const std::error_code e = attach_error();
    word = before;
    return e;
  };
  EXPECT_FALSE(attach_error());
  EXPECT_EQ(with(header.magic, 0u), ring_errc::bad_magic);
  EXPECT_EQ(with(header.magic, 0x34626179u), ring_errc::bad_magic) << "the other byte order";
  EXPECT_EQ(with(header.version, 0u), ring_errc::bad_version);
  EXPECT_EQ(with(header.version, 2u), ring_errc::bad_version);
  EXPECT_EQ(with(header.kind, 0u), ring_errc::bad_kind);
  EXPECT_EQ(with(header.kind, 2u), ring_errc::bad_kind);
  EXPECT_EQ(with(header.entries, 0u), ring_errc::too_few_entries);
  EXPECT_EQ(with(header.entries, 7u), ring_errc::no_power_of_two);
  EXPECT_EQ(with(header.entries, 1u << 16), ring_errc::too_many_entries);
  EXPECT_EQ(with(header.entries, 4u), ring_errc::bad_layout);
  EXPECT_EQ(with(header.entries, 16u), ring_errc::bad_layout);
  EXPECT_EQ(with(header.bytes, std::uint64_t{0}), ring_errc::bad_layout);
  EXPECT_EQ(with(header.bytes, header.bytes - 1), ring_errc::bad_layout);
  EXPECT_EQ(with(header.bytes, header.bytes + 1), ring_errc::region_too_small);
  EXPECT_EQ(with(header.bytes, UINT64_MAX), ring_errc::region_too_small);
  EXPECT_FALSE(attach_error());
}

TEST_F(HostileRing, RegionsThatDoNotFit) {
  const std::span<std::byte> all = region;
  const auto error_of = [](std::span<std::byte> memory) {
    auto r = device::attach(memory);
    return r ? std::error_code() : r.error();
  };
  EXPECT_EQ(error_of({}), ring_errc::region_too_small);
  EXPECT_EQ(error_of(all.first(sizeof(layout::header) - 1)), ring_errc::region_too_small);
  EXPECT_EQ(error_of(all.first(all.size() - 1)), ring_errc::region_too_small);
  EXPECT_EQ(error_of(all.subspan(8)), ring_errc::region_misaligned);
  EXPECT_EQ(error_of(all.subspan(128)), ring_errc::bad_magic);
}

TEST_F(HostileRing, AHeaderThatChangesLaterIsNotLookedAt) {
  post(1);
  header.entries = 1u << 15;
  header.bytes = UINT64_MAX;
  header.magic = 0;
  ASSERT_TRUE(peer.take(chain));
  ASSERT_TRUE(peer.complete(1));
  EXPECT_EQ(*host.reap(ended), 1u);
}

TEST_F(HostileRing, ADoorbellThatJumps) {
  driver_words.position = entries + 1;
  EXPECT_EQ(take_error(), ring_errc::position_jump);
}

TEST_F(HostileRing, ADoorbellThatGoesBack) {
  post(3);
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(peer.take(chain));
  driver_words.position = 2;
  EXPECT_EQ(take_error(), ring_errc::position_jump);
}

TEST_F(HostileRing, ADoorbellThatPassesWhatIsNotCompleted) {
  post(entries);
  for (std::uint32_t i = 0; i < entries; ++i) ASSERT_TRUE(peer.take(chain));
  ASSERT_TRUE(peer.complete(1));
  driver_words.position = entries + 2;
  EXPECT_EQ(take_error(), ring_errc::position_jump);
}

TEST_F(HostileRing, AChainThatIsCut) {
  post(2);
  slots[1].shape = slots[1].shape | std::uint64_t{descriptor_next} << 32;
  ASSERT_TRUE(peer.take(chain));
  EXPECT_EQ(take_error(), ring_errc::chain_cut);
}

TEST_F(HostileRing, AChainThatGoesRoundTheRing) {
  post(entries);
  for (std::uint32_t i = 0; i < entries; ++i) {
    slots[i].shape = slots[i].shape | std::uint64_t{descriptor_next} << 32;
  }
  std::vector<descriptor> all(100);
  device other = *device::attach(region);
  EXPECT_EQ(other.take(all).error(), ring_errc::chain_cut);
  EXPECT_EQ(take_error(), ring_errc::chain_too_long);  // four are this one's limit
}

TEST_F(HostileRing, FlagsThatAreUnknown) {
  post(1);
  slots[0].shape = slots[0].shape | std::uint64_t{8} << 32;
  EXPECT_EQ(take_error(), ring_errc::bad_flags);
}

TEST_F(HostileRing, AnIndirectDescriptorIsNone) {
  post(1);
  slots[0].shape = slots[0].shape | std::uint64_t{descriptor_indirect} << 32;
  EXPECT_EQ(take_error(), ring_errc::bad_flags);
}

TEST_F(HostileRing, TheDriverDoesNotReadItsSlotsBack) {
  post(2, 10);
  for (std::uint32_t i = 0; i < 2; ++i) {
    slots[i].id = 0xdead;
    slots[i].shape = UINT64_MAX;
    slots[i].address = UINT64_MAX;
  }
  slots[0].status = descriptor_status::pack(10, 0);
  ASSERT_EQ(*host.reap(ended), 1u);
  EXPECT_EQ(ended[0].id, 0u);
  slots[1].status = descriptor_status::pack(11, 0);
  EXPECT_EQ(reap_error(), ring_errc::bad_length);
  EXPECT_EQ(host.in_flight(), 1u);
}

TEST_F(HostileRing, ALengthPastTheBuffer) {
  ASSERT_TRUE(
      host.post(std::array{descriptor{1, 100, 0, 0}, descriptor{2, 10, descriptor_write, 0}}, 1));
  host.ring_doorbell();
  // The device may say it has written 10 bytes, not that it has read 100.
  slots[1].status = descriptor_status::pack(11, 0);
  EXPECT_EQ(reap_error(), ring_errc::bad_length);
}

TEST_F(HostileRing, AStatusThatIsNone) {
  post(2);
  slots[0].status = descriptor_status::pack(1, 4096);
  EXPECT_EQ(reap_error(), ring_errc::bad_status);
}

TEST_F(HostileRing, AStatusOfUnusedBits) {
  post(2);
  slots[0].status = descriptor_status::pack(1, 0) | std::uint64_t{1} << 48;
  EXPECT_EQ(reap_error(), ring_errc::bad_status);
}

TEST_F(HostileRing, GoodOnesBeforeABadOneAreGivenOut) {
  post(3);
  slots[0].status = descriptor_status::pack(1, 0);
  slots[1].status = UINT64_MAX;
  EXPECT_EQ(*host.reap(ended), 1u);
  EXPECT_EQ(reap_error(), ring_errc::bad_status);
}

TEST_F(HostileRing, ACompletionOutOfOrderIsNotSeen) {
  post(3);
  slots[1].status = descriptor_status::pack(1, 0);
  EXPECT_EQ(*host.reap(ended), 0u);
  slots[0].status = descriptor_status::pack(1, 0);
  EXPECT_EQ(*host.reap(ended), 2u);
}

TEST_F(HostileRing, AStatusOfWhatItHasNotSeen) {
  post(1);
  ASSERT_TRUE(host.post({.address = 1, .length = 100}, 1));  // not published
  slots[0].status = descriptor_status::pack(1, 0);
  slots[1].status = descriptor_status::pack(1, 0);
  EXPECT_EQ(*host.reap(ended), 1u);
  EXPECT_EQ(*host.reap(ended), 0u) << "its buffer would go to the device afterwards";
  EXPECT_EQ(host.in_flight(), 1u);
  EXPECT_EQ(host.wait(5).error().value(), ENODATA);
}

TEST_F(HostileRing, AfterAFaultNothingMoreIsPublished) {
  post(1);
  ASSERT_TRUE(host.post({.address = 1, .length = 100}, 1));
  slots[0].status = UINT64_MAX;
  EXPECT_EQ(reap_error(), ring_errc::bad_status);
  host.ring_doorbell();
  EXPECT_EQ(driver_words.position.load(), 1u);
}

TEST_F(HostileRing, APeerThatIsGoneEndsTheWait) {
  test_waiter waiter;
  waiter.peer_gone = std::make_shared<bool>(true);
  device lonely = *device::attach(region, waiter);
  EXPECT_EQ(lonely.wait(UINT64_MAX).error(), ring_errc::peer_gone);
  EXPECT_EQ(lonely.fault(), ring_errc::peer_gone);
}

TEST_F(HostileRing, TheDriversOwnEventWordsCanHoldAnything) {
  post(2);
  driver_words.event.wanted = 0xdeadbeef;
  driver_words.event.bell = 0x12345678;
  EXPECT_EQ(host.wait(20).error(), std::errc::timed_out);
  ASSERT_TRUE(peer.take(chain));
  ASSERT_TRUE(peer.complete(1));
  EXPECT_TRUE(host.wait(20));
}

// Whatever is written into the region at whatever moment, both sides end every call, give out no
// more than was posted and keep within their own memory (the sanitizers look at that).
RC_GTEST_PROP(HostileRingProperty, AnyWordAtAnyTime, ()) {
  const test_region region(driver::region_bytes(8));
  auto host = *driver::create(region, {.entries = 8, .start = UINT32_MAX - 2});
  auto peer = *device::attach(region);
  auto* words = reinterpret_cast<std::atomic<std::uint64_t>*>(region.memory().data());
  const std::size_t count = region.memory().size() / 8;
  std::array<descriptor, 6> chain;
  std::array<ended_chain, 8> ended;
  std::uint32_t posted = 0;
  std::uint32_t reaped = 0;
  for (int steps = *rc::gen::inRange(0, 100); steps > 0; --steps) {
    switch (*rc::gen::inRange(0, 7)) {
      case 0: {
        std::vector<descriptor> pieces(*rc::gen::inRange<std::size_t>(1, 4),
                                       descriptor{1, 7, 0, 0});
        if (host.post(pieces, posted)) ++posted;
        break;
      }
      case 1:
        host.ring_doorbell();
        break;
      case 2:
        if (const auto r = peer.take(chain)) RC_ASSERT(r->descriptors.size() <= chain.size());
        break;
      case 3:
        static_cast<void>(peer.complete(7));
        peer.notify();
        break;
      case 4: {
        const auto n = host.reap(ended);
        for (std::size_t i = 0; n && i < *n; ++i) RC_ASSERT(ended[i].id == reaped++);
        RC_ASSERT(reaped <= posted);
        break;
      }
      case 5:
        static_cast<void>(host.wait(3));
        static_cast<void>(peer.wait(3));
        break;
      case 6: {
        const auto bits = *rc::gen::element<std::uint64_t>(1, 0x100, std::uint64_t{1} << 32,
                                                           std::uint64_t{1} << 63, UINT64_MAX);
        words[*rc::gen::inRange<std::size_t>(0, count)] ^= bits;
        break;
      }
    }
  }
}

}  // namespace
}  // namespace forebay
