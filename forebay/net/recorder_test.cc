// The recorder, with its file, over ports that make packets.

#include "forebay/net/recorder.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <filesystem>
#include <ranges>
#include <string>
#include <vector>

#include "forebay/block/fault_device.h"
#include "forebay/memory/arena.h"
#include "forebay/net/capture_reader.h"
#include "forebay/os/poll.h"
#include "forebay/os/test_directory.h"

namespace forebay {
namespace {

namespace fs = std::filesystem;

// On a disk, where there is one: /tmp may be memory.
struct scratch : test_directory {
  scratch() : test_directory("/var/tmp") {}
};

// What packet number i has: a length that differs from the next, and bytes that tell it.
std::size_t length_of(std::uint64_t i) { return 60 + i * 37 % 1455; }
std::byte byte_of(std::uint64_t i, std::size_t at) {
  return static_cast<std::byte>(i * 131 + at * 7);
}

// Gives out numbered packets, in bursts, as fast as they are taken.
class making_port final : public port {
 public:
  making_port(packet_pool& pool, std::uint64_t count) : pool_(pool), count_(count) {}

  // Packet number i, or none without a buffer.
  static packet make(packet_pool& pool, std::uint64_t i) {
    packet p = pool.try_allocate();
    if (!p) return p;
    const std::size_t length = length_of(i);
    std::byte* const to = p->put_unchecked(length);
    for (std::size_t at = 0; at < length; ++at) to[at] = byte_of(i, at);
    p->set_timestamp_ns(first_stamp + i * 1000);
    return p;
  }

  const std::string& name() const noexcept override { return name_; }
  pcapng::link_type link() const noexcept override { return pcapng::link_type::ethernet; }
  std::size_t receive(std::span<packet> out) noexcept override {
    std::size_t n = 0;
    for (; n < out.size() && made_ < count_; ++n) {
      out[n] = make(pool_, made_);
      if (!out[n]) break;
      ++made_;
    }
    return n;
  }
  result<std::size_t> transmit(std::span<packet>) noexcept override { return fail(ENOTSUP); }
  result<> wait(int, int) noexcept override { return {}; }
  link_state state() noexcept override {
    return made_ == count_ ? link_state::gone : link_state::up;
  }
  void stop() noexcept override { count_ = made_; }
  bool drained() noexcept override { return made_ == count_; }
  port_statistics statistics() noexcept override { return {.received = made_, .delivered = made_}; }

  static constexpr std::uint64_t first_stamp = 1'700'000'000'000'000'000;

 private:
  const std::string name_ = "made0";
  packet_pool& pool_;
  std::uint64_t count_;
  std::uint64_t made_ = 0;
};

// Packets come whether they are taken or not: what a full ring has no room for is lost.
class wire_port final : public port {
 public:
  static constexpr std::size_t ring_packets = 1024;

  explicit wire_port(packet_pool& pool) : pool_(pool) {}

  // The next packets come, on the calling thread. A full ring is waited for, unless whoever takes
  // them waits himself: then it has been full for a while, and what comes is lost.
  void send(std::uint64_t count, const std::function<bool()>& taker_waits = [] { return false; }) {
    for (std::uint64_t i = 0; i < count; ++i) {
      for (int tries = 0; !stuck_ && waiting() == ring_packets; ++tries) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        stuck_ = tries == 60'000 || (tries >= 50 && taker_waits());
      }
      const scoped_lock hold(lock_);
      if (ring_.size() == ring_packets) {
        ++counted_.dropped_full;
      } else {
        ring_.push_back(counted_.received);
        stuck_ = false;
      }
      ++counted_.received;
    }
  }
  std::size_t waiting() const {
    const scoped_lock hold(lock_);
    return ring_.size();
  }

  const std::string& name() const noexcept override { return name_; }
  pcapng::link_type link() const noexcept override { return pcapng::link_type::ethernet; }
  std::size_t receive(std::span<packet> out) noexcept override {
    const scoped_lock hold(lock_);
    std::size_t n = 0;
    for (; n < out.size() && !ring_.empty(); ++n) {
      out[n] = making_port::make(pool_, ring_.front());
      if (!out[n]) break;
      ring_.pop_front();
      ++counted_.delivered;
    }
    return n;
  }
  result<std::size_t> transmit(std::span<packet>) noexcept override { return fail(ENOTSUP); }
  result<> wait(int timeout_ms, int also) noexcept override {
    static_cast<void>(wait_readable({&also, 1}, std::min(timeout_ms, 1)));
    return {};
  }
  link_state state() noexcept override { return link_state::up; }
  void stop() noexcept override {}
  bool drained() noexcept override { return waiting() == 0; }
  port_statistics statistics() noexcept override {
    const scoped_lock hold(lock_);
    return counted_;
  }

 private:
  const std::string name_ = "wire0";
  packet_pool& pool_;
  bool stuck_ = false;  // of the thread that sends
  mutable mutex lock_;
  std::deque<std::uint64_t> ring_ FOREBAY_GUARDED_BY(lock_);
  port_statistics counted_ FOREBAY_GUARDED_BY(lock_);
};

class Recorder : public testing::Test {
 protected:
  void SetUp() override {
    auto a = arena::create({.bytes = 8 << 20});
    ASSERT_TRUE(a);
    arena_ = std::move(*a);
    auto p = packet_pool::create(*arena_, {.name = "test packets", .count = 256, .limit = 256});
    ASSERT_TRUE(p) << p.error().message();
    pool_ = std::move(*p);
  }

  static recorder_options options(const std::string& path) {
    recorder_options o;
    o.path = path;
    o.section.application = "a test";
    o.snap_bytes = 1514;
    o.buffer.bytes = 2 << 20;
    o.buffer.chunk_bytes_max = 64 << 10;
    o.buffer.when_full = exhaustion_policy::block;
    o.cache_bytes = 8 << 20;
    return o;
  }

  // Records so many packets; the account adds up.
  recorder_statistics record(recorder_options o, std::uint64_t count, std::error_code& error) {
    making_port from(*pool_, count);
    auto r = recorder::create(from, o);
    EXPECT_TRUE(r) << r.error().message();
    if (!r) return {};
    EXPECT_TRUE((*r)->start());
    // It ends by itself: with the port, after the last one asked for, or when a file fails.
    const int ended = (*r)->ended_fd();
    EXPECT_EQ(wait_readable({&ended, 1}, 60'000), 1u);
    const auto finished = (*r)->finish();
    error = finished ? std::error_code{} : finished.error();
    const recorder_statistics s = (*r)->statistics();
    EXPECT_EQ(s.port.received, s.written + s.lost_to_errors + s.unwanted +
                                   s.buffer.policy.tail_drops + s.buffer.policy.head_drops);
    return s;
  }

  // Checks that a file has packets from `first` on, and nothing that cannot be read; how many.
  static std::uint64_t check_file(const std::string& path, std::uint64_t first) {
    auto in = capture_reader::open(path);
    EXPECT_TRUE(in) << path;
    if (!in) return 0;
    capture_reader::record r;
    std::uint64_t n = first;
    for (auto more = in->next(r); more && *more; more = in->next(r), ++n) {
      EXPECT_EQ(r.stamp_ns, making_port::first_stamp + n * 1000);
      EXPECT_EQ(r.data.size(), length_of(n));
      if (r.data.size() != length_of(n)) break;
      bool same = true;
      for (std::size_t at = 0; at < r.data.size(); ++at) same &= r.data[at] == byte_of(n, at);
      EXPECT_TRUE(same) << n;
    }
    EXPECT_FALSE(in->seen().damaged || in->seen().cut_short) << path;
    EXPECT_EQ(in->seen().skipped, 0u);
    return n - first;
  }

  // The numbers of the packets in a file that has nothing that cannot be read.
  static std::vector<std::uint64_t> numbers_in(const std::string& path) {
    std::vector<std::uint64_t> numbers;
    auto in = capture_reader::open(path);
    EXPECT_TRUE(in) << path;
    if (!in) return numbers;
    capture_reader::record r;
    for (auto more = in->next(r); more && *more; more = in->next(r)) {
      const std::uint64_t n = (r.stamp_ns - making_port::first_stamp) / 1000;
      EXPECT_EQ(r.data.size(), length_of(n));
      EXPECT_EQ(r.data.back(), byte_of(n, r.data.size() - 1));
      EXPECT_TRUE(numbers.empty() || numbers.back() < n) << "out of order at " << n;
      numbers.push_back(n);
    }
    EXPECT_FALSE(in->seen().damaged || in->seen().cut_short) << path;
    return numbers;
  }

  // Records what `send` does to the port, with the disk in its hand. The account adds up, and is
  // what the file has.
  struct outcome {
    recorder_statistics account;
    std::vector<std::uint64_t> numbers;
  };
  outcome record_wire(recorder_options o,
                      const std::function<void(wire_port&, fault_device&, recorder&)>& send) {
    wire_port wire(*pool_);
    fault_device* disk = nullptr;
    o.device_over = [&disk](device& file) {
      auto made = std::make_unique<fault_device>(file);
      disk = made.get();
      return made;
    };
    auto r = recorder::create(wire, o);
    EXPECT_TRUE(r) << r.error().message();
    if (!r) return {};
    EXPECT_TRUE((*r)->start());
    send(wire, *disk, **r);
    EXPECT_TRUE((*r)->finish());
    outcome seen{(*r)->statistics(), numbers_in(o.path)};
    const recorder_statistics& s = seen.account;
    EXPECT_EQ(s.port.received, s.port.delivered + s.port.dropped_full);
    EXPECT_EQ(s.port.delivered, s.written + s.lost_to_errors + s.unwanted +
                                    s.buffer.policy.tail_drops + s.buffer.policy.head_drops +
                                    s.buffer.policy.refusals);
    EXPECT_EQ(s.written, seen.numbers.size());
    return seen;
  }

  std::unique_ptr<arena> arena_;
  std::unique_ptr<packet_pool> pool_;
};

void await(const std::function<bool()>& done) {
  // Asked no more once it was so: what is awaited may be over a moment later.
  for (int tries = 0; tries < 60'000; ++tries) {
    if (done()) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  ADD_FAILURE() << "not in a minute";
}
void await_taken(const wire_port& wire) {
  await([&wire] { return wire.waiting() == 0; });
}
bool none_waits(const recorder& r) { return r.statistics().buffer.waiting_chunks == 0; }

// Sends no faster than the cache takes it, until that has so many pages; how many packets.
std::uint64_t fill_cache(wire_port& wire, const recorder& r, std::uint64_t pages) {
  std::uint64_t sent = 0;
  for (std::uint64_t has = 0; has < pages; has = r.statistics().backlog_pages) {
    wire.send(100);
    sent += 100;
    await_taken(wire);
    await([&] { return none_waits(r) || r.statistics().backlog_pages >= pages; });
  }
  return sent;
}

// The disk hangs while more comes than the buffer and the cache hold, then it goes on.
TEST_F(Recorder, EachPolicyDoesWhatItSaysWhileTheDiskHangs) {
  constexpr std::uint64_t burst = 9'000;  // 7.4 MB
  constexpr std::uint64_t after = 300;
  const scratch dir;
  std::uint64_t kept_by_tail_drop = 0;
  std::uint64_t cached_by_tail_drop = 0;  // pages
  for (const auto policy :
       {exhaustion_policy::tail_drop, exhaustion_policy::head_drop, exhaustion_policy::expand,
        exhaustion_policy::block, exhaustion_policy::back_pressure}) {
    SCOPED_TRACE(name_of(policy));
    recorder_options o = options(dir.file("hangs.pcapng"));
    o.buffer.bytes = 512 << 10;
    o.buffer.limit_bytes = 2 << 20;
    o.buffer.when_full = policy;
    o.cache_bytes = page_cache::min_bytes;
    const bool waits =
        policy == exhaustion_policy::block || policy == exhaustion_policy::back_pressure;
    const outcome seen = record_wire(o, [&](wire_port& wire, fault_device& disk, recorder& r) {
      const auto taker_waits = [&r, waits] {
        const exhaustion_statistics now = r.statistics().buffer.policy;
        return waits && (now.waits != 0 || now.raised != now.lowered);
      };
      disk.hang();
      wire.send(500);
      await_taken(wire);
      await([&r] { return none_waits(r); });  // the cache has them
      std::uint64_t sent = 500;
      // So that the buffer alone is what makes the difference.
      if (policy == exhaustion_policy::expand) sent += fill_cache(wire, r, cached_by_tail_drop);
      wire.send(burst - sent, taker_waits);
      if (!waits) await_taken(wire);
      if (policy == exhaustion_policy::tail_drop) {
        cached_by_tail_drop = r.statistics().backlog_pages;
      }
      disk.heal();
      await_taken(wire);
      await([&r] { return none_waits(r); });
      wire.send(after);
      await_taken(wire);
    });
    const recorder_statistics& s = seen.account;
    const exhaustion_statistics& did = s.buffer.policy;
    const auto& numbers = seen.numbers;
    ASSERT_GT(numbers.size(), burst / 10 + after);
    EXPECT_EQ(numbers.front(), 0u);
    // How many there are of the burst, and how many of them follow each other from the first on.
    const auto front = static_cast<std::uint64_t>(
        std::ranges::mismatch(numbers, std::views::iota(std::uint64_t{0})).in1 - numbers.begin());
    const std::uint64_t lost = s.port.received - s.written;
    EXPECT_GT(lost, burst / 10);
    EXPECT_LT(front, burst);
    switch (policy) {
      case exhaustion_policy::tail_drop:
        EXPECT_EQ(did.tail_drops + s.port.dropped_full, lost);
        EXPECT_GT(did.tail_drops, burst / 10);
        kept_by_tail_drop = front;
        break;
      case exhaustion_policy::head_drop:
        EXPECT_EQ(did.head_drops + s.port.dropped_full, lost);
        EXPECT_GT(did.head_drops, burst / 10);
        // What is missing is older than what the queue holds.
        EXPECT_TRUE(std::ranges::binary_search(numbers, burst - 1));
        EXPECT_TRUE(std::ranges::binary_search(numbers, burst - 300));
        break;
      case exhaustion_policy::expand:
        EXPECT_EQ(did.expansions, 2u);
        EXPECT_GT(front, kept_by_tail_drop + (1 << 20) / 1000);
        EXPECT_EQ(did.tail_drops + s.port.dropped_full, lost);
        break;
      case exhaustion_policy::block:
        EXPECT_GT(did.waits, 0u);
        EXPECT_EQ(s.port.dropped_full, lost);
        break;
      case exhaustion_policy::back_pressure:
        EXPECT_GT(did.raised, 0u);
        EXPECT_EQ(did.raised, did.lowered);
        EXPECT_EQ(s.port.dropped_full + did.refusals, lost);
        EXPECT_LT(did.refusals, 100u);
        break;
    }
    // Afterwards everything is as before.
    for (std::uint64_t i = burst; i < burst + after; ++i) {
      EXPECT_TRUE(std::ranges::binary_search(numbers, i)) << i;
    }
  }
}

// A disk that is slower than the bursts, and faster than all of them together.
TEST_F(Recorder, BurstsGoToASlowDiskWithoutLoss) {
  const bool stress = std::getenv("FOREBAY_STRESS") != nullptr;
  const std::uint64_t burst = stress ? 50'000 : 4'000;  // 39 or 3.2 MB
  const auto every = std::chrono::milliseconds(stress ? 1000 : 80);
  const unsigned bursts = stress ? 5 : 2;
  const scratch dir;
  recorder_options o = options(dir.file("slow.pcapng"));
  o.buffer.bytes = stress ? 48 << 20 : 6 << 20;
  o.buffer.when_full = exhaustion_policy::tail_drop;
  const auto start = std::chrono::steady_clock::now();
  const outcome seen = record_wire(o, [&](wire_port& wire, fault_device& disk, recorder& r) {
    disk.set_pace({.bytes_per_second = 64u << 20});
    for (unsigned i = 0; i < bursts; ++i) {
      std::this_thread::sleep_until(start + i * every);
      // Two of them are more than the buffer has room for.
      if (i != 0) await([&r] { return none_waits(r); });
      wire.send(burst);
    }
    await_taken(wire);
  });
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  EXPECT_EQ(seen.account.written, bursts * burst);
  EXPECT_EQ(seen.numbers.size(), bursts * burst);
  EXPECT_EQ(seen.account.buffer.policy, exhaustion_statistics{});
  EXPECT_GE(took.count(), static_cast<double>(seen.account.written_bytes) / (64 << 20) * 0.95);
}

TEST_F(Recorder, EverythingIsInTheFileInOrder) {
  const scratch dir;
  std::error_code error;
  const auto s = record(options(dir.file("all.pcapng")), 20'000, error);
  EXPECT_FALSE(error) << error.message();
  EXPECT_EQ(s.written, 20'000u);
  EXPECT_EQ(check_file(dir.file("all.pcapng"), 0), 20'000u);
  EXPECT_EQ(s.written_bytes, fs::file_size(dir.file("all.pcapng")));
}

TEST_F(Recorder, AsManyAsAreAskedFor) {
  const scratch dir;
  std::error_code error;
  recorder_options o = options(dir.file("some.pcapng"));
  o.packets_max = 777;
  const auto s = record(o, 2000, error);
  EXPECT_EQ(s.written, 777u);
  EXPECT_EQ(check_file(o.path, 0), 777u);
}

TEST_F(Recorder, FilesFollowEachOtherBySizeAndTheOldestGo) {
  const scratch dir;
  std::error_code error;
  recorder_options o = options(dir.file("ring.pcapng"));
  o.file_bytes_max = recorder::file_bytes_min;
  o.files_max = 3;
  const auto s = record(o, 8'000, error);  // 6 MiB and more
  EXPECT_FALSE(error) << error.message();
  EXPECT_EQ(s.written, 8'000u);
  ASSERT_GT(s.files, 5u);
  EXPECT_EQ(std::distance(fs::directory_iterator(dir.path()), fs::directory_iterator()), 3);
  std::uint64_t n = s.removed;
  for (std::uint64_t i = s.files - 2; i <= s.files; ++i) {
    const std::string path = dir.file(fmt::format("ring-{:05}.pcapng", i).c_str());
    EXPECT_LE(fs::file_size(path), o.file_bytes_max);
    n += check_file(path, n);
  }
  EXPECT_EQ(n, 8'000u);
}

TEST_F(Recorder, FilesFollowEachOtherByTime) {
  const scratch dir;
  std::error_code error;
  recorder_options o = options(dir.file("time.pcapng"));
  o.file_ns_max = 1'000'000;  // a thousand packets
  const auto s = record(o, 3'500, error);
  EXPECT_EQ(s.files, 4u);
  for (std::uint64_t i = 0; i < 4; ++i) {
    const std::string path = dir.file(fmt::format("time-{:05}.pcapng", i + 1).c_str());
    EXPECT_EQ(check_file(path, i * 1000), i == 3 ? 500u : 1000u) << path;
  }
}

TEST_F(Recorder, AFullDiskEndsTheFileBehindAWholePacket) {
  const scratch dir;
  if (::mount("none", dir.path().c_str(), "tmpfs", 0, "size=3m") != 0) {
    GTEST_SKIP() << "no tmpfs of its own: " << std::strerror(errno);
  }
  std::error_code error;
  const auto s = record(options(dir.file("full.pcapng")), 20'000, error);
  EXPECT_EQ(error.value(), ENOSPC);
  EXPECT_GT(s.written, 1000u);
  EXPECT_GT(s.lost_to_errors, 0u);
  EXPECT_EQ(check_file(dir.file("full.pcapng"), 0), s.written);
  ::umount2(dir.path().c_str(), MNT_DETACH);
}

TEST_F(Recorder, WhatCannotBeWrittenIsRefused) {
  const scratch dir;
  making_port from(*pool_, 1);
  EXPECT_EQ(recorder::create(from, options(dir.file("no/where"))).error().value(), ENOENT);
  EXPECT_EQ(recorder::create(from, options(dir.path().string())).error().value(), EISDIR);
  EXPECT_EQ(recorder::create(from, options("/dev/null")).error(), errc::not_a_device);
  recorder_options small = options(dir.file("small"));
  small.buffer.bytes = 4096;
  EXPECT_EQ(recorder::create(from, small).error(), errc::too_small);
}

}  // namespace
}  // namespace forebay
