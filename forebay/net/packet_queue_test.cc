#include "forebay/net/packet_queue.h"

#include <array>
#include <thread>
#include <vector>

#include "forebay/net/test_packets.h"

namespace forebay {
namespace {

packet numbered(const test_packets& t, std::uint32_t number) {
  packet p = t->try_allocate();
  if (!p) return p;
  static_cast<void>(p->put(100));
  p->set_mark(number);
  return p;
}

std::unique_ptr<packet_queue> make(packet_queue::options o) {
  if (o.capacity == 0) o.capacity = 4;
  return std::move(*packet_queue::create(o));
}

std::vector<std::uint32_t> drain(packet_queue& q) {
  std::vector<std::uint32_t> marks;
  while (const packet p = q.pop()) marks.push_back(p->mark());
  return marks;
}

using marks = std::vector<std::uint32_t>;

TEST(packet_queue, each_policy_does_what_its_name_says_and_counts_it) {
  const test_packets t;
  const auto fill = [&](packet_queue& q, std::uint32_t n, const wait_limit& limit = {}) {
    std::uint32_t refused = 0;
    for (std::uint32_t i = 0; i < n; ++i) {
      packet p = numbered(t, i);
      if (q.push(std::move(p), limit)) continue;
      EXPECT_TRUE(p);  // NOLINT(bugprone-use-after-move): what is refused stays
      ++refused;
    }
    return refused;
  };
  {
    const auto q = make({.when_full = exhaustion_policy::tail_drop});
    EXPECT_EQ(fill(*q, 6), 2u);
    EXPECT_EQ(q->statistics().policy.tail_drops, 2u);
    EXPECT_EQ(q->statistics().bytes_dropped, 200u);
    EXPECT_EQ(drain(*q), (marks{0, 1, 2, 3}));
  }
  {
    const auto q = make({.when_full = exhaustion_policy::head_drop});
    EXPECT_EQ(fill(*q, 6), 0u);
    EXPECT_EQ(q->statistics().policy.head_drops, 2u);
    EXPECT_EQ(q->statistics().packets_dropped, 2u);
    EXPECT_EQ(drain(*q), (marks{2, 3, 4, 5}));
  }
  {
    std::vector<bool> told;
    const auto q = make({.when_full = exhaustion_policy::back_pressure,
                         .on_pressure =
                             [](void* c, bool high) noexcept {
                               static_cast<std::vector<bool>*>(c)->push_back(high);
                             },
                         .context = &told});
    EXPECT_EQ(fill(*q, 6), 2u);
    EXPECT_TRUE(q->pressure());
    EXPECT_EQ(q->statistics().policy.refusals, 2u);
    EXPECT_EQ(q->statistics().packets_dropped, 0u);
    EXPECT_EQ(drain(*q).size(), 4u);
    EXPECT_EQ(told, (std::vector<bool>{true, false}));
  }
  {
    const auto q = make({.when_full = exhaustion_policy::expand, .limit = 8});
    EXPECT_EQ(fill(*q, 10), 2u);
    EXPECT_EQ(q->statistics().policy.expansions, 1u);
    EXPECT_EQ(q->statistics().capacity, 8u);
    EXPECT_EQ(q->statistics().policy.tail_drops, 2u);
  }
  {
    const auto q = make({.when_full = exhaustion_policy::block});
    EXPECT_EQ(fill(*q, 5, {.timeout = std::chrono::milliseconds(1)}), 1u);
    EXPECT_EQ(q->statistics().policy.timeouts, 1u);
    std::thread taker([&] { EXPECT_EQ(q->pop()->mark(), 0u); });
    EXPECT_EQ(fill(*q, 1), 0u);  // waits for the room
    taker.join();
  }
  EXPECT_EQ(t->statistics().buffers.in_use, 0u);  // what queues still had is free too
}

TEST(packet_queue, bursts_keep_their_order_and_what_is_refused) {
  const test_packets t;
  const auto q = make({.capacity = 8});
  std::array<packet, 10> burst;
  for (std::uint32_t i = 0; i < burst.size(); ++i) burst[i] = numbered(t, i);
  EXPECT_EQ(q->push_burst(burst), 8u);
  EXPECT_TRUE(burst[8] && burst[9]);
  std::array<packet, 5> out;
  EXPECT_EQ(q->pop_burst(out), 5u);
  EXPECT_EQ(out[4]->mark(), 4u);
  EXPECT_EQ(q->pop_burst(out), 3u);
  EXPECT_EQ(out[0]->mark(), 5u);
  EXPECT_EQ(q->push({}).error(), std::errc::invalid_argument);
  const auto s = q->statistics();
  EXPECT_EQ(s.packets_in, 8u);
  EXPECT_EQ(s.bytes_in, 800u);
  EXPECT_EQ(s.packets_out, 8u);
  EXPECT_EQ(packet_queue::create({.capacity = 3}).error(), std::errc::invalid_argument);
}

// Between threads nothing is lost and nothing comes twice: what went in came out or was dropped.
TEST(packet_queue, accounts_add_up_between_threads) {
  const test_packets t({.count = 256});
  const auto q = make({.capacity = 16, .when_full = exhaustion_policy::head_drop});
  constexpr std::uint64_t sent = 20'000;
  std::atomic<bool> done{false};
  std::thread taker([&] {
    std::array<packet, 8> burst;
    while (q->pop_burst(burst) != 0 || !done.load()) packet_pool::release_burst(burst);
  });
  for (std::uint64_t i = 0; i < sent;) {
    packet p = numbered(t, static_cast<std::uint32_t>(i));
    if (!p) continue;
    static_cast<void>(q->push(std::move(p)));
    ++i;
  }
  done.store(true);
  taker.join();
  const auto s = q->statistics();
  EXPECT_EQ(s.packets_out + s.packets_dropped + s.length, sent);
  EXPECT_EQ(s.packets_dropped, s.policy.head_drops + s.policy.tail_drops);
  EXPECT_EQ(t->statistics().buffers.in_use, s.length);
}

}  // namespace
}  // namespace forebay
