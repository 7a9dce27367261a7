// The recorder's buffer, file and the whole of it, over a port that makes packets.

#include "forebay/net/recorder.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <string>
#include <vector>

#include "forebay/memory/arena.h"
#include "forebay/net/capture_reader.h"
#include "forebay/os/poll.h"

namespace forebay {
namespace {

namespace fs = std::filesystem;

struct scratch {
  explicit scratch(const fs::path& parent = "/var/tmp") {
    std::string name = (parent / "forebay-recorder-XXXXXX").string();
    FOREBAY_ASSERT(::mkdtemp(name.data()) != nullptr);
    path = name;
  }
  ~scratch() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
  }
  scratch(const scratch&) = delete;
  scratch& operator=(const scratch&) = delete;
  std::string file(const char* name) const { return (path / name).string(); }

  fs::path path;
};

// What packet number i has: a length that differs from the next, and bytes that tell it.
std::size_t length_of(std::uint64_t i) { return 60 + i * 37 % 1455; }
std::byte byte_of(std::uint64_t i, std::size_t at) {
  return static_cast<std::byte>(i * 131 + at * 7);
}

void append(record_buffer& b, std::uint64_t i, std::size_t length, std::uint64_t now_ns = 1) {
  b.append(i, length, static_cast<std::uint32_t>(length), 0, now_ns, [&](std::byte* to) {
    for (std::size_t at = 0; at < length; ++at) to[at] = byte_of(i, at);
  });
}

std::unique_ptr<record_buffer> small_buffer(exhaustion_policy policy, std::size_t limit = 0,
                                            std::uint64_t age_limit_ns = UINT64_MAX) {
  auto b = record_buffer::create({.bytes = 64 << 10,
                                  .limit_bytes = limit,
                                  .packet_bytes_max = 4096,
                                  .when_full = policy,
                                  .age_limit_ns = age_limit_ns});
  EXPECT_TRUE(b);
  return std::move(*b);
}

// The numbers (stamps) of the packets in what is there.
std::vector<std::uint32_t> take_all(record_buffer& b) {
  std::vector<std::uint32_t> numbers;
  while (record_chunk* const c = b.try_take()) {
    std::uint64_t packets = 0;
    for (std::size_t at = 0; at < c->used; ++packets) {
      std::uint32_t head[5];
      std::memcpy(head, c->data + at, sizeof head);
      EXPECT_EQ(head[0], 6u);
      numbers.push_back(head[4]);
      at += head[1];
      EXPECT_LE(at, c->used);
    }
    EXPECT_EQ(packets, c->packets);
    b.give_back(*c);
  }
  return numbers;
}

TEST(RecordBuffer, WhatFitsComesOutInOrder) {
  const auto b = small_buffer(exhaustion_policy::tail_drop);
  std::vector<std::uint32_t> all;
  for (std::uint32_t i = 0; i < 3000; ++i) {
    append(*b, i, i % 500);
    if (i % 40 == 0) {
      for (const std::uint32_t n : take_all(*b)) all.push_back(n);
    }
  }
  b->close();
  for (const std::uint32_t n : take_all(*b)) all.push_back(n);
  EXPECT_TRUE(b->drained());
  ASSERT_EQ(all.size(), 3000u);
  for (std::uint32_t i = 0; i < 3000; ++i) ASSERT_EQ(all[i], i);
  EXPECT_EQ(b->statistics().policy, exhaustion_statistics{});
}

TEST(RecordBuffer, EachPolicyDoesWhatItSaysAndCountsIt) {
  constexpr std::uint32_t sent = 200;  // of 1 KiB, into 64 KiB
  for (const auto policy : {exhaustion_policy::tail_drop, exhaustion_policy::head_drop,
                            exhaustion_policy::expand, exhaustion_policy::back_pressure}) {
    const auto b = small_buffer(policy, 128 << 10);
    bool pressed = false;
    std::uint32_t offered = 0;
    for (; offered < sent && !pressed; ++offered) {
      append(*b, offered, 1024);
      pressed = b->under_pressure(1);
    }
    const std::vector<std::uint32_t> got = take_all(*b);
    const record_buffer_statistics s = b->statistics();
    SCOPED_TRACE(name_of(policy));
    EXPECT_EQ(s.appended + s.policy.tail_drops, offered);
    ASSERT_FALSE(got.empty());
    switch (policy) {
      case exhaustion_policy::tail_drop:
        EXPECT_EQ(got.front(), 0u);
        EXPECT_NEAR(static_cast<double>(got.size()), 56, 8);
        EXPECT_GT(s.policy.tail_drops, 130u);
        break;
      case exhaustion_policy::head_drop:
        EXPECT_EQ(got.front(), s.policy.head_drops);
        EXPECT_GT(s.policy.head_drops, 120u);
        EXPECT_EQ(s.policy.tail_drops, 0u);
        break;
      case exhaustion_policy::expand:
        EXPECT_EQ(got.front(), 0u);
        EXPECT_NEAR(static_cast<double>(got.size()), 112, 16);
        EXPECT_EQ(s.policy.expansions, 1u);
        break;
      default:
        EXPECT_TRUE(pressed);
        EXPECT_EQ(got.size(), s.policy.refusals + 42);  // six of eight chunks of seven
        EXPECT_EQ(s.policy.raised, 1u);
        EXPECT_FALSE(b->under_pressure(1));
        EXPECT_EQ(b->statistics().policy.lowered, 1u);
    }
    // In order, with nothing missing but what was dropped.
    for (std::size_t i = 1; i < got.size(); ++i) ASSERT_EQ(got[i], got[i - 1] + 1);
    b->close();
    take_all(*b);
  }
}

TEST(RecordBuffer, BlockWaitsForRoom) {
  const auto b = small_buffer(exhaustion_policy::block);
  std::jthread producer([&] {
    for (std::uint32_t i = 0; i < 500; ++i) append(*b, i, 1024);
    b->close();
  });
  std::vector<std::uint32_t> all;
  while (!b->drained()) {
    std::this_thread::sleep_for(std::chrono::microseconds(200));
    for (const std::uint32_t n : take_all(*b)) all.push_back(n);
  }
  EXPECT_EQ(all.size(), 500u);
  EXPECT_EQ(b->statistics().policy.tail_drops, 0u);
}

TEST(RecordBuffer, AnAgeMakesItFullAsWell) {
  constexpr std::uint64_t second = 1'000'000'000;
  const auto tail = small_buffer(exhaustion_policy::tail_drop, 0, second);
  const auto head = small_buffer(exhaustion_policy::head_drop, 0, second);
  for (const auto* b : {&tail, &head}) {
    for (std::uint32_t i = 0; i < 8; ++i) append(**b, i, 1024, 1);  // one chunk is published
    for (std::uint32_t i = 8; i < 30; ++i) append(**b, i, 1024, 2 * second);  // too late for it
  }
  EXPECT_EQ(take_all(*tail).back(), 6u);
  EXPECT_EQ(tail->statistics().policy.tail_drops, 16u);
  EXPECT_EQ(take_all(*head).front(), 7u);
  EXPECT_EQ(head->statistics().policy.head_drops, 7u);
}

// Gives out numbered packets, in bursts, as fast as they are taken.
class making_port final : public port {
 public:
  making_port(packet_pool& pool, std::uint64_t count) : pool_(pool), count_(count) {}
  const std::string& name() const noexcept override { return name_; }
  pcapng::link_type link() const noexcept override { return pcapng::link_type::ethernet; }
  std::size_t receive(std::span<packet> out) noexcept override {
    std::size_t n = 0;
    for (; n < out.size() && made_ < count_; ++n) {
      out[n] = pool_.try_allocate();
      if (!out[n]) break;
      const std::size_t length = length_of(made_);
      std::byte* const to = out[n]->put_unchecked(length);
      for (std::size_t at = 0; at < length; ++at) to[at] = byte_of(made_, at);
      out[n]->set_timestamp_ns(first_stamp + made_ * 1000);
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

  std::unique_ptr<arena> arena_;
  std::unique_ptr<packet_pool> pool_;
};

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
  EXPECT_EQ(std::distance(fs::directory_iterator(dir.path), fs::directory_iterator()), 3);
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
  if (::mount("none", dir.path.c_str(), "tmpfs", 0, "size=3m") != 0) {
    GTEST_SKIP() << "no tmpfs of its own: " << std::strerror(errno);
  }
  std::error_code error;
  const auto s = record(options(dir.file("full.pcapng")), 20'000, error);
  EXPECT_EQ(error.value(), ENOSPC);
  EXPECT_GT(s.written, 1000u);
  EXPECT_GT(s.lost_to_errors, 0u);
  EXPECT_EQ(check_file(dir.file("full.pcapng"), 0), s.written);
  ::umount2(dir.path.c_str(), MNT_DETACH);
}

TEST_F(Recorder, WhatCannotBeWrittenIsRefused) {
  const scratch dir;
  making_port from(*pool_, 1);
  EXPECT_EQ(recorder::create(from, options(dir.file("no/where"))).error().value(), ENOENT);
  EXPECT_EQ(recorder::create(from, options(dir.path.string())).error().value(), EISDIR);
  EXPECT_EQ(recorder::create(from, options("/dev/null")).error(), errc::not_a_device);
  recorder_options small = options(dir.file("small"));
  small.buffer.bytes = 4096;
  EXPECT_EQ(recorder::create(from, small).error(), errc::too_small);
}

}  // namespace
}  // namespace forebay
