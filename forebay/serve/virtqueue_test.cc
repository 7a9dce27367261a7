// One thread: not in the thread sanitizer's tree.

#include "forebay/serve/virtqueue.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <deque>
#include <random>

#include "forebay/serve/test_vhost_client.h"
#include "forebay/serve/test_virtqueue.h"

namespace forebay {
namespace {

// A driver and a device over the same memory.
class both_sides {
 public:
  static constexpr std::uint64_t physical = 1u << 20;

  explicit both_sides(const virtio_driver::shape& s, std::uint16_t start = 0)
      : memory_(make()), driver(memory_.memory(), s) {
    FOREBAY_ASSERT(regions_.add({physical, memory_.memory().size(), 0, 0}, memory_.fd()));
    const virtqueue_setup setup{.size = s.size,
                                .packed = s.packed,
                                .event_index = s.event_index,
                                .indirect = true,
                                .driver = driver.driver_offset(),
                                .device = driver.device_offset(),
                                .base = s.packed ? 0x8000u : start};
    auto made = virtqueue::create(setup, regions_);
    FOREBAY_ASSERT(made.has_value());
    device = std::move(*made);
  }

  shared_memory& memory() { return memory_; }

 private:
  static shared_memory make() {
    auto made = shared_memory::create("both", 1u << 16);
    FOREBAY_ASSERT(made.has_value());
    return std::move(*made);
  }

  shared_memory memory_;
  guest_memory regions_;

 public:
  virtio_driver driver;
  virtqueue device;
};

virtio_driver::shape any_shape() {
  return {.size = static_cast<std::uint16_t>(1 << *rc::gen::inRange(2, 8)),
          .packed = *rc::gen::arbitrary<bool>(),
          .event_index = *rc::gen::arbitrary<bool>()};
}

// What goes in comes out, in order, once, and what is put comes back, in any order; and whoever is
// not told of something had not asked.
RC_GTEST_PROP(Virtqueue, CarriesChainsThereAndBack, ()) {
  const virtio_driver::shape s = any_shape();
  both_sides b(s);
  const unsigned tags = s.size / virtio_driver::chain_max;
  std::mt19937 rng(*rc::gen::arbitrary<unsigned>());
  std::vector<std::uint16_t> free;
  for (unsigned t = 0; t < tags; ++t) free.push_back(static_cast<std::uint16_t>(t));
  struct chain {
    std::uint16_t tag;
    std::uint32_t read, written;
    std::uint16_t id, slots;
  };
  std::deque<chain> posted;
  std::vector<chain> taken;
  std::vector<chain> put;
  bool device_sleeps = false;
  for (int step = 0; step < 2000; ++step) {
    switch (rng() % 3) {
      case 0: {
        if (free.empty()) break;
        chain c{free.back(), 0, 0, 0, 0};
        free.pop_back();
        std::vector<descriptor> all;
        const unsigned n = rng() % virtio_driver::chain_max + 1;
        const unsigned reads = rng() % (n + 1);
        for (unsigned i = 0; i < n; ++i) {
          descriptor d{.address = both_sides::physical + 32768 + rng() % 8192,
                       .length = static_cast<std::uint32_t>(rng() % 1000 + 1)};
          if (i >= reads) d.flags = descriptor_write;
          (i >= reads ? c.written : c.read) += d.length;
          all.push_back(d);
        }
        b.driver.post(c.tag, all);
        posted.push_back(c);
        const bool kick = b.driver.wants_kick();
        RC_ASSERT(kick || !device_sleeps);
        if (kick) device_sleeps = false;
        break;
      }
      case 1: {
        if (device_sleeps) break;
        virtqueue::element e;
        virtqueue::piece_storage storage;
        const auto there = b.device.take(e, storage);
        RC_ASSERT(there.has_value());
        RC_ASSERT(*there == !posted.empty());
        if (!*there) {
          const auto more = b.device.enable_kicks();
          RC_ASSERT(more.has_value() && !*more);
          device_sleeps = true;
          break;
        }
        chain c = posted.front();
        posted.pop_front();
        RC_ASSERT(!e.error);
        RC_ASSERT(e.readable_bytes == c.read && e.writable_bytes == c.written);
        c.id = e.id;
        c.slots = e.slots;
        taken.push_back(c);
        b.device.disable_kicks();
        break;
      }
      default: {
        if (taken.empty()) break;
        const bool asked = rng() % 2 == 0;
        if (asked) RC_ASSERT(!b.driver.want_call());
        if (!asked) b.driver.poll_only();
        const std::size_t which = rng() % taken.size();
        const chain c = taken[which];
        taken.erase(taken.begin() + static_cast<std::ptrdiff_t>(which));
        b.device.put(c.id, c.slots, c.written);
        b.device.publish();
        const bool called = b.device.wants_call();
        if (asked) RC_ASSERT(called);
        if (!asked) RC_ASSERT(!called);
        const auto u = b.driver.reap();
        RC_ASSERT(u.has_value());
        RC_ASSERT(u->tag == c.tag && u->written == c.written);
        RC_ASSERT(!b.driver.reap().has_value());
        free.push_back(c.tag);
      }
    }
  }
}

// Indirect tables, as long as they may be.
// However often it is looked at, and whoever looks.
TEST(Virtqueue, AJumpOfTheIndexIsNoChain) {
  both_sides b({.size = 8, .packed = false, .event_index = true});
  b.driver.jump(9);
  virtqueue::element e;
  virtqueue::piece_storage storage;
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(b.device.available().error(), ring_errc::position_jump);
    EXPECT_EQ(b.device.enable_kicks().error(), ring_errc::position_jump);
    EXPECT_EQ(b.device.take(e, storage).error(), ring_errc::position_jump);
  }
}

TEST(Virtqueue, TakesIndirectTables) {
  for (const bool packed : {false, true}) {
    both_sides b({.size = 8, .packed = packed});
    constexpr std::uint64_t table_at = 16384;
    for (const std::uint32_t count : {1u, 256u, 257u}) {
      for (std::uint32_t i = 0; i < count; ++i) {
        descriptor d{.address = both_sides::physical + 32768 + 2 * i, .length = 1};
        if (packed) {
          // Address, length, number, flags; drivers leave the number as it is (virtio 1.2, 2.8.7).
          d.next = i == 0 ? 0 : descriptor_write;
          d.flags = 0x5555;
        } else {
          d.flags = static_cast<std::uint16_t>((i == 0 ? 0 : descriptor_write) |
                                               (i + 1 < count ? descriptor_next : 0));
          d.next = static_cast<std::uint16_t>(i + 1);
        }
        const descriptor_words w = descriptor_words::pack(d);
        std::memcpy(b.memory().memory().data() + table_at + std::size_t{16} * i, &w, 16);
      }
      const descriptor table{.address = both_sides::physical + table_at,
                             .length = count * 16,
                             .flags = descriptor_indirect};
      b.driver.post(0, {&table, 1});
      virtqueue::element e;
      virtqueue::piece_storage storage;
      ASSERT_TRUE(b.device.take(e, storage).value_or(false));
      if (count > 256) {
        EXPECT_EQ(e.error, make_error_code(ring_errc::chain_too_long));
      } else {
        EXPECT_FALSE(e.error);
        EXPECT_EQ(e.readable_bytes, 1u);
        EXPECT_EQ(e.writable_bytes, count - 1);
        EXPECT_EQ(e.pieces.size(), count);
      }
      b.device.put(e.id, e.slots, 0);
      b.device.publish();
      EXPECT_TRUE(b.driver.reap());
    }
  }
}

// Bytes of all kinds, most of them nearly right: descriptors that point into the guest.
TEST(Virtqueue, KeepsToTheGuestsMemoryWhateverItHolds) {
  hostile_guest guest;
  std::mt19937_64 rng(7);
  std::vector<std::uint8_t> input;
  for (int round = 0; round < 1500; ++round) {
    input.assign(4 + hostile_guest::bytes, 0);
    for (int i = 0; i < 4; ++i)
      input[static_cast<std::size_t>(i)] = static_cast<std::uint8_t>(rng());
    const auto put = [&](std::size_t at, std::uint64_t v, std::size_t n) {
      std::memcpy(input.data() + 4 + at, &v, n);
    };
    for (std::size_t at = 0; at < 1024; at += 16) {
      put(at, hostile_guest::physical + rng() % 24000, 8);
      put(at + 8, rng() % 3 == 0 ? rng() % 8 : rng() % 64 * 16, 4);
      put(at + 12, rng() % 16 == 0 ? rng() : rng() % 8 | (rng() % 2 << 7), 2);
      put(at + 14, rng() % 8 == 0 ? rng() : rng() % 64, 2);
    }
    for (std::size_t at = 1024; at < 2048; at += 2) put(at, rng() % 64, 2);
    for (std::size_t at = 2048; at < hostile_guest::bytes; at += 8) {
      put(at, rng() % 4 == 0 ? rng() : rng() % 64, 8);
    }
    guest.serve(input);
  }
}

}  // namespace
}  // namespace forebay
