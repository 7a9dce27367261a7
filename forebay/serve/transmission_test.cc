// The transmission phase with raw bytes: every command, every malformed request.

#include <map>
#include <set>

#include "forebay/serve/test_server.h"

namespace forebay {
namespace {

// Fills `to` with what comes next and leaves it there. A unix socket does not wait for all of it
// when it is only looked at (MSG_PEEK), whatever MSG_WAITALL says.
bool look_ahead(int fd, std::span<std::byte> to) {
  for (;;) {
    const ssize_t n = ::recv(fd, to.data(), to.size(), MSG_PEEK | MSG_WAITALL);
    if (n == static_cast<ssize_t>(to.size())) return true;
    if (n <= 0) return false;
    std::this_thread::yield();
  }
}

using nbd::command;
constexpr std::uint32_t mib = 1u << 20;

class Transmission : public ::testing::TestWithParam<bool> {
 protected:
  Transmission() : disk(served.add(named("disk"), 80 * mib)) { served.start(); }
  test_server served;
  test_disk& disk;
};

INSTANTIATE_TEST_SUITE_P(, Transmission, ::testing::Bool(),
                         [](const auto& i) { return i.param ? "Structured" : "Simple"; });

// Reads and writes of sizes on both sides of every limit, at odd offsets, are what they should be.
TEST_P(Transmission, ReadsGiveWhatWasWritten) {
  raw_client c(served);
  ASSERT_TRUE(c.go("disk", GetParam()));
  std::mt19937_64 rng(4);
  const std::uint32_t sizes[] = {1,     511,     512,     513,          4096,    4097,
                                 65535, 65536,   65537,   262143,       262144,  262145,
                                 mib,   mib + 1, 5 * mib, 32 * mib - 1, 32 * mib};
  for (const std::uint32_t n : sizes) {
    const std::uint64_t offset = rng() % (80ull * mib - n);
    const bytes data = random_payload(rng, n);
    ASSERT_EQ(c.write(offset, data), 0u) << n;
    const auto got = c.read(offset, n);
    ASSERT_TRUE(got) << n;
    EXPECT_TRUE(*got == data) << n;
    const auto whole = c.read(offset, n, GetParam() ? nbd::flag_df : 0);
    ASSERT_TRUE(whole) << n;
    EXPECT_TRUE(*whole == data) << n;
  }
  EXPECT_EQ(c.flush(), 0u);
}

TEST_P(Transmission, UnfragmentedReadIsOneChunk) {
  if (!GetParam()) GTEST_SKIP() << "only with structured replies";
  raw_client c(served);
  ASSERT_TRUE(c.go("disk", true));
  c.chunks = 0;
  ASSERT_TRUE(c.read(100, 32 * mib, nbd::flag_df));
  EXPECT_EQ(c.chunks, 1u);
}

TEST_P(Transmission, BoundsAreKept) {
  raw_client c(served);
  ASSERT_TRUE(c.go("disk", GetParam(), GetParam()));
  const std::uint64_t size = 80ull * mib;
  EXPECT_EQ(c.call(command::read, size, 1), 22u);
  EXPECT_EQ(c.call(command::read, size - 1, 2), 22u);
  EXPECT_EQ(c.call(command::read, UINT64_MAX, 1), 22u);
  EXPECT_EQ(c.call(command::read, UINT64_MAX - 4095, 8192), 22u);
  EXPECT_EQ(c.call(command::read, 0, UINT32_MAX), 22u);
  EXPECT_EQ(c.call(command::read, 0, 32 * mib + 1), 22u);
  EXPECT_EQ(c.call(command::trim, size - 512, 1024), 22u);
  EXPECT_EQ(c.call(command::trim, 0, UINT32_MAX), 22u);
  EXPECT_EQ(c.call(command::cache, size, 512), 22u);
  EXPECT_EQ(c.call(command::cache, 512, UINT32_MAX), 22u);
  EXPECT_EQ(c.call(command::write_zeroes, size - 512, 1024), 28u);
  EXPECT_EQ(c.call(command::write_zeroes, UINT64_MAX - 511, UINT32_MAX), 28u);
  EXPECT_EQ(c.call(command::block_status, size, 512), 22u);
  EXPECT_EQ(c.call(command::block_status, 512, UINT32_MAX), 22u);
  EXPECT_EQ(c.write(size, bytes(1)), 28u);
  EXPECT_EQ(c.write(size - 1, bytes(2)), 28u);
  EXPECT_EQ(c.write(UINT64_MAX, bytes(100000)), 28u);
  EXPECT_EQ(c.write(0, bytes(32 * mib + 1)), 22u);
  EXPECT_EQ(c.write(size - 1, bytes(1, std::byte{7})), 0u);
  EXPECT_EQ(c.read(size - 2, 2), (bytes{std::byte{0}, std::byte{7}}));
}

TEST_P(Transmission, EmptyRequestsDoNotDisconnect) {
  raw_client c(served);
  ASSERT_TRUE(c.go("disk", GetParam(), GetParam()));
  for (const command w : {command::read, command::write, command::trim, command::cache,
                          command::write_zeroes, command::block_status}) {
    c.call(w, 0, 0);
    c.call(w, 80ull * mib, 0);
    ASSERT_EQ(c.flush(), 0u);
  }
}

// Each flag with each command: FUA goes with all, the others with theirs.
TEST_P(Transmission, FlagsOnWrongCommands) {
  raw_client c(served);
  ASSERT_TRUE(c.go("disk", GetParam(), GetParam()));
  const std::map<command, unsigned> good = {
      {command::read, GetParam() ? nbd::flag_df : 0},
      {command::write, 0},
      {command::flush, 0},
      {command::trim, 0},
      {command::cache, 0},
      {command::write_zeroes, nbd::flag_no_hole | nbd::flag_fast_zero},
      {command::block_status, nbd::flag_req_one}};
  for (const auto& [what, allowed] : good) {
    const std::uint32_t length = what == command::flush ? 0 : 4096;
    const bytes data(what == command::write ? length : 0);
    for (unsigned bit = 0; bit < 16; ++bit) {
      const auto flag = static_cast<std::uint16_t>(1u << bit);
      const std::uint32_t e = c.call(what, 0, length, flag, data);
      const bool unselected = what == command::block_status && !GetParam();
      const bool expected = !unselected && ((allowed | nbd::flag_fua) & flag) != 0;
      EXPECT_EQ(e, expected ? 0u : 22u) << static_cast<int>(what) << " bit " << bit;
    }
  }
}

TEST_P(Transmission, UnknownCommandsAreInvalid) {
  raw_client c(served);
  ASSERT_TRUE(c.go("disk", GetParam()));
  for (const unsigned type : {8u, 9u, 100u, 65535u}) {
    EXPECT_EQ(c.call(static_cast<command>(type), 0, 4096), 22u) << type;
  }
  EXPECT_EQ(c.call(command::flush, 0, 1), 22u);
  EXPECT_EQ(c.call(command::flush, 512, 0), 22u);
  EXPECT_EQ(c.call(command::block_status, 0, 512), GetParam() ? 22u : 22u);
  EXPECT_EQ(c.flush(), 0u);
}

TEST_P(Transmission, WrongMagicEndsTheConnection) {
  raw_client c(served);
  ASSERT_TRUE(c.go("disk", GetParam()));
  bytes r = c.request(command::flush, 1).data();
  r[0] ^= std::byte{1};
  ASSERT_TRUE(c.send(r));
  EXPECT_TRUE(c.at_end());
}

// A payload that nobody could want is not waited for.
TEST_P(Transmission, AbsurdWriteEndsTheConnection) {
  raw_client c(served);
  ASSERT_TRUE(c.go("disk", GetParam()));
  ASSERT_TRUE(c.send(c.request(command::write, 1, 0, UINT32_MAX)));
  EXPECT_TRUE(c.at_end());
}

TEST_P(Transmission, TrimZeroesAndCache) {
  raw_client c(served);
  ASSERT_TRUE(c.go("disk", GetParam()));
  std::mt19937_64 rng(5);
  const bytes data = random_payload(rng, 2 * mib);
  ASSERT_EQ(c.write(0, data), 0u);
  for (const std::uint16_t flags :
       {0u, unsigned{nbd::flag_no_hole}, unsigned{nbd::flag_fua}, unsigned{nbd::flag_fast_zero}}) {
    ASSERT_EQ(c.write(0, data), 0u);
    EXPECT_EQ(c.call(command::write_zeroes, 1000, mib, flags), 0u);
    bytes expected = data;
    std::fill_n(expected.begin() + 1000, mib, std::byte{0});
    const auto got = c.read(0, 2 * mib);
    ASSERT_TRUE(got);
    EXPECT_TRUE(*got == expected) << flags;
  }
  EXPECT_EQ(c.call(command::cache, 0, 80 * mib), 0u);
  EXPECT_EQ(c.call(command::trim, 0, 80 * mib), 0u);
  EXPECT_EQ(c.call(command::trim, 77, 5, nbd::flag_fua), 0u);
  EXPECT_EQ(c.read(8192, 4096), bytes(4096));
}

TEST_P(Transmission, BlockStatusCoversTheRequest) {
  if (!GetParam()) GTEST_SKIP() << "only with structured replies";
  raw_client c(served);
  ASSERT_TRUE(c.go("disk", true, true));
  for (const std::uint16_t flags : {0u, unsigned{nbd::flag_req_one}}) {
    ASSERT_TRUE(c.send(c.request(command::block_status, 3, 512, 80 * mib - 512, flags)));
    const auto a = c.receive_answer();
    ASSERT_TRUE(a);
    EXPECT_EQ(a->type, nbd::chunk::block_status);
    EXPECT_TRUE(a->done);
    ASSERT_EQ(a->payload.size(), 12u);
    EXPECT_EQ(nbd::load<std::uint32_t>(a->payload.data()), nbd::base_allocation_id);
    EXPECT_EQ(nbd::load<std::uint32_t>(a->payload.data() + 4), 80 * mib - 512);
    EXPECT_EQ(nbd::load<std::uint32_t>(a->payload.data() + 8), 0u);
  }
}

TEST_P(Transmission, RequestsSplitByteByByte) {
  raw_client c(served);
  ASSERT_TRUE(c.go("disk", GetParam()));
  const bytes data = to_bytes("hello, block");
  wire all;
  all.put(c.request(command::write, 1, 4090, 12, 0, data).data());
  all.put(c.request(command::flush, 2).data());
  for (const std::byte b : all.data()) {
    ASSERT_TRUE(c.send(bytes{b}));
    if (b == std::byte{0}) std::this_thread::yield();
  }
  std::set<std::uint64_t> cookies;
  for (int i = 0; i < 2; ++i) {
    const auto a = c.receive_answer();
    ASSERT_TRUE(a);
    EXPECT_EQ(a->error, 0u);
    cookies.insert(a->cookie);
  }
  EXPECT_EQ(cookies, (std::set<std::uint64_t>{1, 2}));
  EXPECT_EQ(c.read(4090, 12), data);
}

// The reply to a request is not held back until the payload of the next one has come.
TEST_P(Transmission, ReplyDoesNotWaitForTheNextPayload) {
  for (const std::uint32_t length : {1000u, 200'000u, 33 * mib}) {
    raw_client c(served);
    ASSERT_TRUE(c.go("disk", GetParam()));
    ASSERT_TRUE(c.read(0, 512));  // from here on a hit
    wire both;
    both.put(c.request(command::read, 7, 0, 512).data());
    both.put(c.request(command::write, 8, 0, length).data());
    ASSERT_TRUE(c.send(both));
    ASSERT_FALSE(c.silent_for(std::chrono::seconds(5))) << length;
    const auto a = c.receive_answer(512);
    ASSERT_TRUE(a);
    EXPECT_EQ(a->cookie, 7u);
  }
}

// Hundreds of requests of all kinds and sizes under way at once; each is answered exactly once.
TEST_P(Transmission, ManyPipelined) {
  raw_client c(served);
  ASSERT_TRUE(c.go("disk", GetParam()));
  std::mt19937_64 rng(6);
  constexpr unsigned count = 1500;
  std::map<std::uint64_t, std::uint32_t> reads;  // cookie to length
  wire all;
  for (unsigned i = 1; i <= count; ++i) {
    const std::uint32_t n = 1 + rng() % (rng() % 40 == 0 ? 3 * mib : 20000);
    const std::uint64_t at = rng() % (80ull * mib - n);
    switch (rng() % 8) {
      case 0:
        all.put(c.request(command::write, i, at, n % 100'000, 0, bytes(n % 100'000)).data());
        break;
      case 1:
        all.put(c.request(command::write_zeroes, i, at, n).data());
        break;
      case 2:
        all.put(c.request(command::flush, i).data());
        break;
      default:
        all.put(c.request(command::read, i, at, n).data());
        reads[i] = n;
    }
  }
  std::thread sender([&] { EXPECT_TRUE(c.send(all)); });
  std::set<std::uint64_t> done;
  while (done.size() < count) {
    // The cookie tells how much data a simple reply has: look ahead.
    bytes head(16);
    ASSERT_TRUE(look_ahead(c.fd(), head));
    const auto found = reads.find(nbd::load<std::uint64_t>(head.data() + 8));
    const auto a = c.receive_answer(found == reads.end() ? 0 : found->second);
    ASSERT_TRUE(a);
    EXPECT_EQ(a->error, 0u);
    if (a->done) {
      EXPECT_TRUE(done.insert(a->cookie).second);
    }
  }
  sender.join();
  EXPECT_EQ(c.flush(), 0u);
}

// Large reads get their turn while small hits never stop.
TEST_P(Transmission, SmallHitsDoNotStarveALargeRead) {
  raw_client c(served);
  ASSERT_TRUE(c.go("disk", GetParam()));
  ASSERT_TRUE(c.read(0, 65536));
  const std::uint64_t large = 1u << 30;
  unsigned small_replies = 0;
  std::uint64_t cookie = 1;
  wire first;
  for (int i = 0; i < 60; ++i) first.put(c.request(command::read, cookie++, 0, 65536).data());
  first.put(c.request(command::read, large, mib, 4 * mib).data());
  ASSERT_TRUE(c.send(first));
  for (;;) {
    bytes head(16);
    ASSERT_TRUE(look_ahead(c.fd(), head));
    const bool is_large = nbd::load<std::uint64_t>(head.data() + 8) == large;
    const auto a = c.receive_answer(is_large ? 4 * mib : 65536);
    ASSERT_TRUE(a);
    if (is_large && a->done) break;
    if (is_large) continue;
    ASSERT_LT(++small_replies, 5000u) << "the large read starves";
    ASSERT_TRUE(c.send(c.request(command::read, cookie++, 0, 65536)));
  }
}

// A client that sends requests and receives nothing is not read from any more, and hurts nobody.
TEST_P(Transmission, RequestsWithoutReceivingPushBack) {
  raw_client c(served);
  ASSERT_TRUE(c.go("disk", GetParam()));
  const timeval limit{0, 200'000};
  ::setsockopt(c.fd(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  for (const auto& [what, length] : {std::pair{command::flush, 0u}, std::pair{command::read, 0u},
                                     std::pair{command::read, 200'000u}}) {
    wire some;
    for (int i = 0; i < 1000; ++i) some.put(c.request(what, 5, 0, length).data());
    std::size_t sent = 0;
    while (sent < 256u << 20 && c.send(some)) sent += some.data().size();
    EXPECT_LT(sent, 16u << 20);
  }
  raw_client other(served);
  ASSERT_TRUE(other.go("disk", GetParam()));
  EXPECT_EQ(other.write(0, bytes(512)), 0u);
  EXPECT_EQ(other.flush(), 0u);
  EXPECT_TRUE(other.read(mib, 8 * mib));
}

TEST_P(Transmission, DisconnectAnswersWhatIsUnderWay) {
  raw_client c(served);
  ASSERT_TRUE(c.go("disk", GetParam()));
  wire all;
  for (unsigned i = 1; i <= 50; ++i) all.put(c.request(command::read, i, i * mib, 512).data());
  all.put(c.request(command::disconnect, 51).data());
  ASSERT_TRUE(c.send(all));
  for (unsigned i = 1; i <= 50; ++i) {
    const auto a = c.receive_answer(512);
    ASSERT_TRUE(a);
    EXPECT_EQ(a->error, 0u);
  }
  EXPECT_TRUE(c.at_end());
  EXPECT_TRUE(served.wait_for_clients(0));
}

TEST_P(Transmission, HalfClosedClientIsStillAnswered) {
  raw_client c(served);
  ASSERT_TRUE(c.go("disk", GetParam()));
  ASSERT_TRUE(c.send(c.request(command::read, 1, 0, 512)));
  ::shutdown(c.fd(), SHUT_WR);
  EXPECT_TRUE(c.receive_answer(512));
  EXPECT_TRUE(c.at_end());
}

}  // namespace
}  // namespace forebay
