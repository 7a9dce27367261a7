// One thread: not in the thread sanitizer's tree.
// A queue pair whose other side does what it must not: every case ends in an error that names it,
// at once, and nothing is read, written or completed because of it.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <array>
#include <set>
#include <vector>

#include "forebay/ring/shared_queue_controller.h"
#include "forebay/ring/shared_queue_pair.h"
#include "forebay/ring/test_region.h"

namespace forebay {
namespace {

using host_side = basic_shared_queue_pair<real_atomics, test_waiter>;
using controller_side = basic_shared_queue_controller<real_atomics, test_waiter>;
using layout = shared_queue_layout<real_atomics>;

class HostileQueue : public testing::Test {
 protected:
  static constexpr std::uint32_t entries = 8;
  static constexpr std::uint32_t completions = 4;

  void submit(std::uint32_t count) {
    for (std::uint32_t i = 0; i < count; ++i) {
      ASSERT_TRUE(host.submit({.length = 100, .offset = i}, done[i]));
    }
    host.publish();
  }
  std::uint32_t take() {
    taken_command t;
    EXPECT_EQ(peer.take({&t, 1}).value_or(0), 1u);
    return t.id;
  }
  std::error_code attach_error() {
    auto r = controller_side::attach(region);
    return r ? std::error_code() : r.error();
  }
  std::error_code take_error() {
    const auto first = peer.take(taken);
    if (first) return {};
    EXPECT_EQ(peer.take(taken).error(), first.error());
    EXPECT_EQ(peer.fault(), first.error());
    EXPECT_EQ(peer.complete(0, 0).error(), first.error());
    EXPECT_EQ(peer.wait(5).error(), first.error());
    return first.error();
  }
  // Writes a completion as entry 0, as the controller would.
  void forge(std::uint32_t id, std::uint32_t count, std::uint64_t state) {
    completion_words[0].what = id | std::uint64_t{count} << 32;
    completion_words[0].state = state;
  }
  // Nothing is reaped, the fault stays, and the commands are still under way.
  std::error_code reap_error() {
    const std::uint32_t before = host.in_flight();
    EXPECT_EQ(host.reap(), nullptr);
    EXPECT_EQ(host.reap(), nullptr);
    EXPECT_EQ(host.in_flight(), before);
    if (host.fault()) {
      EXPECT_EQ(host.submit({}, done[7]).error(), host.fault());
      EXPECT_EQ(host.ring_doorbell(0).error(), host.fault());
      EXPECT_EQ(host.ring_doorbell(5).error(), host.fault());
    }
    return host.fault();
  }
  static constexpr std::uint64_t good(std::uint32_t head, std::uint16_t error = 0) {
    return completion_state::pack(head, error, true);
  }

  test_region region{host_side::region_bytes(entries, completions)};
  host_side host = *host_side::create(region, {.entries = entries, .completions = completions});
  controller_side peer = *controller_side::attach(region);
  layout::header& header = *find_in<layout::header>(region, 0);
  layout::side& host_words = *find_in<layout::side>(region, layout::host_at);
  layout::submission* commands = find_in<layout::submission>(region, layout::submissions_at);
  layout::completion* completion_words =
      find_in<layout::completion>(region, layout::completions_at(entries));
  std::array<completion, 8> done;
  std::array<taken_command, 8> taken;
};

TEST_F(HostileQueue, HeadersThatDoNotFit) {
  const auto with = [&](auto& word, auto value) {
    const auto before = word.exchange(value);
    const std::error_code e = attach_error();
    word = before;
    return e;
  };
  EXPECT_FALSE(attach_error());
  EXPECT_EQ(with(header.magic, 1u), ring_errc::bad_magic);
  EXPECT_EQ(with(header.version, 3u), ring_errc::bad_version);
  EXPECT_EQ(with(header.kind, 1u), ring_errc::bad_kind);
  EXPECT_EQ(with(header.entries, 0u), ring_errc::too_few_entries);
  EXPECT_EQ(with(header.entries, 9u), ring_errc::no_power_of_two);
  EXPECT_EQ(with(header.entries, 1u << 20), ring_errc::too_many_entries);
  EXPECT_EQ(with(header.entries2, 0u), ring_errc::too_few_entries);
  EXPECT_EQ(with(header.entries2, 9u), ring_errc::no_power_of_two);
  EXPECT_EQ(with(header.entries2, 1u << 31), ring_errc::too_many_entries);
  EXPECT_EQ(with(header.entries, 4u), ring_errc::bad_layout);
  EXPECT_EQ(with(header.entries2, 8u), ring_errc::bad_layout);
  EXPECT_EQ(with(header.bytes, header.bytes - 8), ring_errc::bad_layout);
  EXPECT_EQ(with(header.bytes, header.bytes + 1), ring_errc::region_too_small);
  EXPECT_EQ(controller_side::attach(region.memory().first(64)).error(),
            ring_errc::region_too_small);
  EXPECT_EQ(controller_side::attach(region.memory().subspan(1)).error(),
            ring_errc::region_misaligned);
  EXPECT_FALSE(attach_error());
}

TEST_F(HostileQueue, ADoorbellThatJumps) {
  host_words.position = entries + 1;
  EXPECT_EQ(take_error(), ring_errc::position_jump);
}

TEST_F(HostileQueue, ADoorbellThatGoesBack) {
  submit(2);
  take();
  take();
  host_words.position = 1;
  EXPECT_EQ(take_error(), ring_errc::position_jump);
}

TEST_F(HostileQueue, IdsThatDoNotExist) {
  submit(2);
  commands[1].id_length = completions | 1u << 16;
  take();
  EXPECT_EQ(take_error(), ring_errc::unknown_id);
}

TEST_F(HostileQueue, IdsThatAreUsedTwice) {
  submit(2);
  commands[1].id_length = commands[0].id_length.load() + (1u << 16);
  take();
  EXPECT_EQ(take_error(), ring_errc::duplicate_id);
}

TEST_F(HostileQueue, CommandsBeforeABadOneAreGivenOut) {
  submit(3);
  commands[2].id_length = 0xffff;
  EXPECT_EQ(*peer.take(taken), 2u);
  EXPECT_EQ(take_error(), ring_errc::unknown_id);
}

TEST_F(HostileQueue, FlagsAndLengthsOfACommand) {
  submit(1);
  controller_side second = *controller_side::attach(region);
  commands[0].rest = std::uint64_t{4} << 16;
  EXPECT_EQ(take_error(), ring_errc::bad_flags);
  commands[0].rest = 0;
  commands[0].id_length = commands[0].id_length.load() | std::uint64_t{1} << 63;
  EXPECT_EQ(second.take(taken).error(), ring_errc::bad_length);
}

TEST_F(HostileQueue, MoreUnderWayThanTheCompletionQueueHas) {
  // A host that reuses numbers without having read their completions.
  for (std::uint32_t i = 0; i < completions; ++i) {
    submission_slot<real_atomics>& c = commands[i];
    c.write({}, i);
  }
  host_words.position = completions;
  EXPECT_EQ(*peer.take(taken), completions);
  for (std::uint32_t i = 0; i < completions; ++i) ASSERT_TRUE(peer.complete(i, 0));
  commands[completions].write({}, 0);
  host_words.position = completions + 1;
  EXPECT_EQ(take(), 0u);
  const std::uint64_t before = completion_words[0].what;
  EXPECT_EQ(peer.complete(0, 0).error().value(), EAGAIN);
  EXPECT_EQ(completion_words[0].what.load(), before) << "nothing is overwritten";
  host_words.consumed = completions + 1;
  EXPECT_EQ(peer.complete(0, 0).error(), ring_errc::position_jump);
  EXPECT_EQ(peer.fault(), ring_errc::position_jump);
}

TEST_F(HostileQueue, TheHostReadsOnAndTheQueueHasRoomAgain) {
  for (std::uint32_t i = 0; i <= completions; ++i) commands[i].write({}, i % completions);
  host_words.position = completions + 1;
  for (std::uint32_t i = 0; i < completions; ++i) ASSERT_TRUE(peer.complete(take(), 0));
  const std::uint32_t id = take();
  EXPECT_EQ(peer.complete(id, 0).error().value(), EAGAIN);
  host_words.consumed = 1;
  EXPECT_TRUE(peer.complete(id, 0));
}

TEST_F(HostileQueue, CompletionsOfUnknownIds) {
  submit(2);
  forge(completions, 0, good(0));
  EXPECT_EQ(reap_error(), ring_errc::unknown_id);
}

TEST_F(HostileQueue, CompletionsOfWhatIsNotUnderWay) {
  submit(2);
  forge(3, 0, good(0));
  EXPECT_EQ(reap_error(), ring_errc::stale_id);
}

TEST_F(HostileQueue, CompletionsThatComeTwice) {
  submit(2);
  const std::uint32_t id = take();
  ASSERT_TRUE(peer.complete(id, 1));
  EXPECT_EQ(host.reap(), &done[0]);
  // The number is used again; the first use's completion must not end the second one.
  ASSERT_TRUE(host.submit({.length = 100}, done[2]));
  host.publish();
  completion_words[1].what = id;
  completion_words[1].state = good(1);
  EXPECT_EQ(reap_error(), ring_errc::stale_id);
}

TEST_F(HostileQueue, CompletionsOfWhatTheyHaveNotSeen) {
  submit(1);
  ASSERT_TRUE(host.submit({.length = 100}, done[1]));  // not published
  const std::uint32_t id = static_cast<std::uint32_t>(commands[1].id_length.load());
  ASSERT_EQ(id & 0xffff, 1u);
  forge(id, 0, good(1));
  EXPECT_EQ(reap_error(), ring_errc::stale_id);
}

TEST_F(HostileQueue, CompletionsOfWhatTheyHaveNotReadYet) {
  // A queue would be full for ever if everything ended and its head stayed.
  host = *host_side::create(region, {.entries = 2, .completions = 4, .start = UINT32_MAX});
  completion_words = find_in<layout::completion>(region, layout::completions_at(2));
  submit(2);
  const std::uint64_t before = UINT16_MAX;
  completion_words[3].what = 1u << 16;  // the first one's id
  completion_words[3].state = completion_state::pack(before, 0, phase_of(UINT32_MAX, 4));
  EXPECT_EQ(reap_error(), ring_errc::stale_id);
}

TEST_F(HostileQueue, AfterAFaultNothingMoreIsPublished) {
  submit(1);
  ASSERT_TRUE(host.submit({.length = 100}, done[1]));
  forge(completions, 0, good(0));
  EXPECT_EQ(reap_error(), ring_errc::unknown_id);
  host.publish();
  EXPECT_EQ(host_words.position.load(), 1u);
  EXPECT_EQ(host.queued(), 1u);
}

TEST_F(HostileQueue, CountsPastTheBuffer) {
  submit(1);
  forge(take(), 101, good(1));
  EXPECT_EQ(reap_error(), ring_errc::bad_length);
}

TEST_F(HostileQueue, AnErrorHasNoCount) {
  submit(1);
  forge(take(), 1, good(1, EIO));
  EXPECT_EQ(reap_error(), ring_errc::bad_length);
}

TEST_F(HostileQueue, StatusThatIsNone) {
  submit(1);
  forge(take(), 0, good(1, 4096));
  EXPECT_EQ(reap_error(), ring_errc::bad_status);
}

TEST_F(HostileQueue, UnusedBitsOfACompletion) {
  submit(1);
  forge(take(), 0, good(1) | std::uint64_t{1} << 40);
  EXPECT_EQ(reap_error(), ring_errc::bad_status);
}

TEST_F(HostileQueue, HeadsThatJump) {
  submit(1);
  forge(take(), 0, good(2));  // more than was published
  EXPECT_EQ(reap_error(), ring_errc::position_jump);
}

TEST_F(HostileQueue, HeadsThatGoBack) {
  submit(2);
  ASSERT_TRUE(peer.complete(take(), 0));
  EXPECT_EQ(host.reap(), &done[0]);
  completion_words[1].what = take();
  completion_words[1].state = good(0);
  EXPECT_EQ(reap_error(), ring_errc::position_jump);
}

TEST_F(HostileQueue, APhaseFromNowhere) {
  submit(1);
  take();
  // An entry that is not the next one is not looked at, whatever it holds.
  for (std::uint32_t i = 1; i < completions; ++i) {
    completion_words[i].what = UINT64_MAX;
    completion_words[i].state = UINT64_MAX;
  }
  EXPECT_EQ(host.reap(), nullptr);
  EXPECT_FALSE(host.fault());
  completion_words[0].state = UINT64_MAX;
  EXPECT_EQ(reap_error(), ring_errc::bad_status);
}

TEST_F(HostileQueue, ThePhaseBitAlone) {
  submit(1);
  take();
  // It says that an entry is there, so its other words are believed to be the controller's: number
  // 0 was never used with this id.
  completion_words[0].state = good(0);
  EXPECT_EQ(reap_error(), ring_errc::stale_id);
}

TEST_F(HostileQueue, AfterAFaultWhatIsUnderWayCanBeAbandoned) {
  submit(3);
  forge(completions, 0, good(0));
  EXPECT_EQ(reap_error(), ring_errc::unknown_id);
  host.abandon(-EIO);
  for (std::uint32_t i = 0; i < 3; ++i) {
    EXPECT_EQ(host.reap(), &done[i]);
    EXPECT_EQ(done[i].status, -EIO);
  }
  EXPECT_EQ(host.reap(), nullptr);
}

TEST_F(HostileQueue, APeerThatIsGoneEndsTheWait) {
  test_waiter waiter;
  waiter.peer_gone = std::make_shared<bool>(true);
  controller_side lonely = *controller_side::attach(region, waiter);
  EXPECT_EQ(lonely.wait(UINT64_MAX).error(), ring_errc::peer_gone);
  host_side alone = *host_side::create(region, {.entries = 4, .completions = 4}, waiter);
  EXPECT_EQ(alone.ring_doorbell(UINT64_MAX).error(), ring_errc::peer_gone);
  EXPECT_EQ(alone.submit({}, done[0]).error(), ring_errc::peer_gone);
}

TEST_F(HostileQueue, WhatCameBeforeThePeerWentIsReaped) {
  test_waiter waiter;
  waiter.peer_gone = std::make_shared<bool>(true);
  host = *host_side::create(region, {.entries = entries, .completions = completions}, waiter);
  peer = *controller_side::attach(region);
  submit(3);
  ASSERT_TRUE(peer.complete(take(), 7));
  EXPECT_EQ(host.ring_doorbell(UINT64_MAX, 3).error(), ring_errc::peer_gone);
  EXPECT_EQ(host.reap(), &done[0]);
  EXPECT_EQ(done[0].status, 7);
  EXPECT_EQ(host.reap(), nullptr);
  host.abandon(-EPIPE);
  EXPECT_EQ(host.reap(), &done[1]);
  EXPECT_EQ(host.reap(), &done[2]);
  EXPECT_EQ(done[2].status, -EPIPE);
}

// Whatever is written into the region at whatever moment, both sides end every call, and each
// command ends at most once with a status that it can have.
RC_GTEST_PROP(HostileQueueProperty, AnyWordAtAnyTime, ()) {
  const test_region region(host_side::region_bytes(8, 8));
  auto host = *host_side::create(region, {.entries = 8, .completions = 8, .start = 0xfffe});
  auto peer = *controller_side::attach(region);
  auto* words = reinterpret_cast<std::atomic<std::uint64_t>*>(region.memory().data());
  const std::size_t count = region.memory().size() / 8;
  std::vector<std::unique_ptr<completion>> records;
  std::set<completion*> under_way;
  std::vector<std::uint32_t> ids;
  std::array<taken_command, 4> taken;
  const auto reap_all = [&] {
    while (completion* c = host.reap()) {
      RC_ASSERT(under_way.erase(c) == 1);
      RC_ASSERT(c->status <= 100 && c->status >= -4095);
    }
    RC_ASSERT(under_way.size() == host.in_flight());
  };
  for (int steps = *rc::gen::inRange(0, 120); steps > 0; --steps) {
    switch (*rc::gen::inRange(0, 7)) {
      case 0: {
        auto c = std::make_unique<completion>();
        if (!host.submit({.length = 100}, *c)) break;
        under_way.insert(c.get());
        records.push_back(std::move(c));
        break;
      }
      case 1:
        host.publish();
        break;
      case 2: {
        const auto n = peer.take(taken);
        for (std::size_t i = 0; n && i < *n; ++i) ids.push_back(taken[i].id);
        RC_ASSERT(peer.in_flight() <= 8);
        break;
      }
      case 3:
        if (ids.empty()) break;
        static_cast<void>(peer.complete(ids.back(), 0));
        ids.pop_back();
        peer.notify();
        break;
      case 4:
        reap_all();
        break;
      case 5:
        static_cast<void>(host.wait(3));
        static_cast<void>(peer.wait(3));
        break;
      case 6: {
        const auto bits = *rc::gen::element<std::uint64_t>(
            1, 0x100, 0x10000, std::uint64_t{1} << 32, std::uint64_t{1} << 63, UINT64_MAX);
        words[*rc::gen::inRange<std::size_t>(0, count)] ^= bits;
        break;
      }
    }
  }
  host.abandon(-EIO);
  reap_all();
  RC_ASSERT(under_way.empty());
}

}  // namespace
}  // namespace forebay
