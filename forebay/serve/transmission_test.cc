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

// A block status.
using part = std::pair<std::uint64_t, std::uint64_t>;  // bytes, flags
struct extents {
  std::uint32_t context = 0;
  std::vector<part> parts;
};
extents status_in(const raw_client::answer& a) {
  const bool wide = a.type == nbd::chunk::block_status_ext;
  EXPECT_TRUE(wide || a.type == nbd::chunk::block_status);
  const std::byte* at = a.payload.data();
  extents all{nbd::load<std::uint32_t>(at), {}};
  const std::size_t header = wide ? 8 : 4;
  const std::size_t each = wide ? 16 : 8;
  const std::size_t count = (a.payload.size() - header) / each;
  EXPECT_EQ(header + count * each, a.payload.size());
  if (wide) {
    EXPECT_EQ(nbd::load<std::uint32_t>(at + 4), count);
  }
  for (at += header; all.parts.size() < count; at += each) {
    all.parts.push_back(wide
                            ? part{nbd::load<std::uint64_t>(at), nbd::load<std::uint64_t>(at + 8)}
                            : part{nbd::load<std::uint32_t>(at), nbd::load<std::uint32_t>(at + 4)});
  }
  return all;
}

class Transmission : public ::testing::TestWithParam<raw_client::headers> {
 protected:
  Transmission() : disk(served.add(named("disk"), 80 * mib)) { served.start(); }
  static bool structured() { return GetParam() != raw_client::headers::simple; }
  static bool extended() { return GetParam() == raw_client::headers::extended; }
  // What a client can select, if it can.
  static std::vector<std::string> contexts() {
    return structured() ? std::vector<std::string>{nbd::base_allocation}
                        : std::vector<std::string>{};
  }
  test_server served;
  test_disk& disk;
};

class TransmissionExtended : public ::testing::Test {
 protected:
  TransmissionExtended() {
    served.add(named("disk"), 80 * mib);
    served.start();
  }
  test_server served;
};

constexpr std::array<const char*, 3> header_names{"Simple", "Structured", "Extended"};
INSTANTIATE_TEST_SUITE_P(, Transmission,
                         ::testing::Values(raw_client::headers::simple,
                                           raw_client::headers::structured,
                                           raw_client::headers::extended),
                         [](const auto& i) {
                           return header_names[static_cast<unsigned>(i.param)];
                         });

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
    const bytes data = random_bytes(rng, n);
    ASSERT_EQ(c.write(offset, data), 0u) << n;
    const auto got = c.read(offset, n);
    ASSERT_TRUE(got) << n;
    EXPECT_TRUE(same_bytes(*got, data)) << n;
    const auto whole = c.read(offset, n, structured() ? nbd::flag_df : 0);
    ASSERT_TRUE(whole) << n;
    EXPECT_TRUE(same_bytes(*whole, data)) << n;
  }
  EXPECT_EQ(c.flush(), 0u);
}

// Payload is copied where docs/way-through.md says, and nowhere else.
TEST_P(Transmission, WritesAreCopiedOnceAndReadsNotAtAll) {
  nbd_export& e = *served.get().exports().front();
  const auto copied = [&e] {
    std::array<std::int64_t, payload_copies> all{};
    for (std::size_t i = 0; i < all.size(); ++i) {
      all[i] = e.copied(static_cast<payload_copy>(i)).value();
    }
    return all;
  };
  raw_client c(served);
  ASSERT_TRUE(c.go("disk", GetParam()));
  std::mt19937_64 rng(5);
  const bytes data = random_bytes(rng, mib);
  std::int64_t sum = 0;
  for (const std::uint32_t n : {4096u, 65536u, mib}) {  // at once, whole, in parts
    ASSERT_EQ(c.write(sum, bytes(data.begin(), data.begin() + n)), 0u);
    sum += n;
    EXPECT_EQ(copied()[static_cast<std::size_t>(payload_copy::write)], sum);
  }
  const auto after = copied();
  EXPECT_EQ(after[static_cast<std::size_t>(payload_copy::aside)], 0);
  // Of payload that does not fit behind what came before it a part of a page at most is moved.
  EXPECT_LT(after[static_cast<std::size_t>(payload_copy::moved)], sum / 2);
  for (int i = 0; i < 4; ++i) {
    const auto got = c.read(sum - mib, mib);
    ASSERT_TRUE(got);
    EXPECT_TRUE(same_bytes(*got, data));
  }
  EXPECT_EQ(copied(), after);
}

TEST_P(Transmission, UnfragmentedReadIsOneChunk) {
  if (!structured()) GTEST_SKIP() << "only with structured replies";
  raw_client c(served);
  ASSERT_TRUE(c.go("disk", GetParam()));
  c.chunks = 0;
  ASSERT_TRUE(c.read(100, 32 * mib, nbd::flag_df));
  EXPECT_EQ(c.chunks, 1u);
}

TEST_P(Transmission, BoundsAreKept) {
  raw_client c(served);
  ASSERT_TRUE(c.go("disk", GetParam(), contexts()));
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
  // With extended headers a payload that is too long ends the connection: see below.
  if (!extended()) {
    EXPECT_EQ(c.write(0, bytes(32 * mib + 1)), 22u);
  }
  EXPECT_EQ(c.write(size - 1, bytes(1, std::byte{7})), 0u);
  EXPECT_EQ(c.read(size - 2, 2), (bytes{std::byte{0}, std::byte{7}}));
}

TEST_P(Transmission, EmptyRequestsDoNotDisconnect) {
  raw_client c(served);
  ASSERT_TRUE(c.go("disk", GetParam(), contexts()));
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
  ASSERT_TRUE(c.go("disk", GetParam(), contexts()));
  const std::map<command, unsigned> good = {
      {command::read, structured() ? nbd::flag_df : 0},
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
      const bool payload = extended() && flag == nbd::flag_payload_len;
      const std::uint32_t e = c.call(what, 0, length, flag, payload ? bytes(length) : data);
      const bool unselected = what == command::block_status && !structured();
      const bool expected = (!unselected && ((allowed | nbd::flag_fua) & flag) != 0) ||
                            (what == command::write && payload);
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
  EXPECT_EQ(c.call(command::block_status, 0, 512), 22u);
  EXPECT_EQ(c.flush(), 0u);
}

TEST_P(Transmission, WrongMagicEndsTheConnection) {
  raw_client c(served);
  ASSERT_TRUE(c.go("disk", GetParam()));
  bytes r = c.ask_for(command::flush, 1).data();
  r[0] ^= std::byte{1};
  ASSERT_TRUE(c.send(r));
  EXPECT_TRUE(c.at_end());
}

// A payload that nobody could want is not waited for.
TEST_P(Transmission, AbsurdWriteEndsTheConnection) {
  raw_client c(served);
  ASSERT_TRUE(c.go("disk", GetParam()));
  ASSERT_TRUE(c.send(c.ask_for(command::write, 1, 0, UINT32_MAX)));
  EXPECT_TRUE(c.at_end());
}

TEST_P(Transmission, TrimZeroesAndCache) {
  raw_client c(served);
  ASSERT_TRUE(c.go("disk", GetParam()));
  std::mt19937_64 rng(5);
  const bytes data = random_bytes(rng, 2 * mib);
  ASSERT_EQ(c.write(0, data), 0u);
  for (const std::uint16_t flags :
       {0u, unsigned{nbd::flag_no_hole}, unsigned{nbd::flag_fua}, unsigned{nbd::flag_fast_zero}}) {
    ASSERT_EQ(c.write(0, data), 0u);
    EXPECT_EQ(c.call(command::write_zeroes, 1000, mib, flags), 0u);
    bytes expected = data;
    std::fill_n(expected.begin() + 1000, mib, std::byte{0});
    const auto got = c.read(0, 2 * mib);
    ASSERT_TRUE(got);
    EXPECT_TRUE(same_bytes(*got, expected)) << flags;
  }
  EXPECT_EQ(c.call(command::cache, 0, 80 * mib), 0u);
  EXPECT_EQ(c.call(command::trim, 0, 80 * mib), 0u);
  EXPECT_EQ(c.call(command::trim, 77, 5, nbd::flag_fua), 0u);
  EXPECT_EQ(c.read(8192, 4096), bytes(4096));
}

TEST_P(Transmission, BlockStatusCoversTheRequest) {
  if (!structured()) GTEST_SKIP() << "only with structured replies";
  raw_client c(served);
  ASSERT_TRUE(c.go("disk", GetParam(), contexts()));
  for (const std::uint16_t flags : {0u, unsigned{nbd::flag_req_one}}) {
    ASSERT_TRUE(c.send(c.ask_for(command::block_status, 3, 512, 80 * mib - 512, flags)));
    const auto a = c.receive_answer();
    ASSERT_TRUE(a);
    EXPECT_TRUE(a->done);
    const extents all = status_in(*a);
    EXPECT_EQ(all.context, 1u);
    EXPECT_EQ(all.parts, (std::vector<part>{{80 * mib - 512, 0u}}));
  }
}

// What the cache has of the device is asked for beside what the device has.
TEST_P(Transmission, BlockStatusTellsWhatIsCached) {
  if (!structured()) GTEST_SKIP() << "only with structured replies";
  raw_client c(served);
  ASSERT_TRUE(c.go("disk", GetParam(), {nbd::forebay_cache, nbd::base_allocation, "other:one"}));
  constexpr std::uint64_t resident = nbd::status_resident;
  constexpr std::uint64_t changed = nbd::status_resident | nbd::status_dirty;
  ASSERT_TRUE(c.read(8192, 8192));  // pages 2 and 3
  ASSERT_EQ(c.write(4 * page_bytes, bytes(page_bytes)), 0u);
  ASSERT_EQ(c.write(9 * page_bytes + 512, bytes(512)), 0u);  // a part of a page
  ASSERT_TRUE(c.send(c.ask_for(command::block_status, 3, 4096, 16 * page_bytes)));
  const auto first = c.receive_answer();
  const auto second = c.receive_answer();
  ASSERT_TRUE(first && second);
  EXPECT_FALSE(first->done);
  EXPECT_TRUE(second->done);
  EXPECT_EQ(status_in(*first).parts, (std::vector<part>{{16 * page_bytes, 0u}}));
  const extents cached = status_in(*second);
  EXPECT_EQ(cached.context, 2u);
  EXPECT_EQ(cached.parts, (std::vector<part>{{page_bytes, 0u},
                                             {2 * page_bytes, resident},
                                             {page_bytes, changed},
                                             {4 * page_bytes, 0u},
                                             {page_bytes, nbd::status_dirty},
                                             {7 * page_bytes, 0u}}));
  ASSERT_TRUE(
      c.send(c.ask_for(command::block_status, 4, 4 * page_bytes + 100, 5000, nbd::flag_req_one)));
  EXPECT_TRUE(c.receive_answer());
  const auto one = c.receive_answer();
  ASSERT_TRUE(one);
  EXPECT_EQ(status_in(*one).parts, (std::vector<part>{{page_bytes - 100, changed}}));
  ASSERT_EQ(c.flush(), 0u);
  ASSERT_TRUE(c.send(c.ask_for(command::block_status, 5, 4 * page_bytes, 512)));
  EXPECT_TRUE(c.receive_answer());
  const auto flushed = c.receive_answer();
  ASSERT_TRUE(flushed);
  EXPECT_EQ(status_in(*flushed).parts, (std::vector<part>{{512, resident}}));
}

// The payload of a block status says which contexts are meant.
TEST_F(TransmissionExtended, BlockStatusOfSomeContexts) {
  raw_client c(served);
  ASSERT_TRUE(
      c.go("disk", raw_client::headers::extended, {nbd::base_allocation, nbd::forebay_cache}));
  const auto ask = [&](const std::vector<std::uint32_t>& ids) {
    wire payload;
    payload.put(std::uint64_t{40 * mib});
    for (const std::uint32_t id : ids) payload.put(id);
    EXPECT_TRUE(c.send(c.extended_request(command::block_status, 7, mib, payload.data().size(),
                                          nbd::flag_payload_len, payload.data())));
  };
  for (const std::uint32_t id : {1u, 2u}) {
    ask({id});
    const auto a = c.receive_answer();
    ASSERT_TRUE(a);
    EXPECT_TRUE(a->done);
    EXPECT_EQ(a->offset, mib);
    EXPECT_EQ(status_in(*a).context, id);
    EXPECT_EQ(status_in(*a).parts, (std::vector<part>{{40 * mib, 0u}}));
  }
  for (const auto& ids : std::vector<std::vector<std::uint32_t>>{
           {}, {0}, {3}, {1, 1}, {1, 2, 1}, std::vector<std::uint32_t>(1000, 1)}) {
    ask(ids);
    const auto a = c.receive_answer();
    ASSERT_TRUE(a);
    EXPECT_EQ(a->error, 22u) << ids.size();
  }
  ASSERT_TRUE(
      c.send(c.extended_request(command::block_status, 7, 0, 9, nbd::flag_payload_len, bytes(9))));
  EXPECT_EQ(c.receive_answer()->error, 22u);
  EXPECT_EQ(c.flush(), 0u);
}

// Lengths past 32 bits, and payloads where none belongs, and none where one does.
TEST_F(TransmissionExtended, PayloadsAndLongLengths) {
  raw_client c(served);
  ASSERT_TRUE(c.go("disk", raw_client::headers::extended));
  const auto error_of = [&](command what, std::uint64_t length, std::uint16_t flags,
                            const bytes& data = {}) {
    EXPECT_TRUE(c.send(c.extended_request(what, 9, 512, length, flags, data)));
    const auto a = c.receive_answer();
    return a ? a->error : UINT32_MAX;
  };
  EXPECT_EQ(error_of(command::read, (1ull << 32) + 512, 0), 22u);
  EXPECT_EQ(error_of(command::trim, 1ull << 32, 0), 22u);
  EXPECT_EQ(error_of(command::write_zeroes, (1ull << 32) + 4096, 0), 28u);
  EXPECT_EQ(error_of(command::cache, UINT64_MAX, 0), 22u);
  EXPECT_EQ(error_of(command::write, 4096, 0), 22u) << "no payload follows";
  EXPECT_EQ(error_of(command::flush, 100, nbd::flag_payload_len, bytes(100)), 22u);
  EXPECT_EQ(error_of(command::read, 70000, nbd::flag_payload_len, bytes(70000)), 22u);
  EXPECT_EQ(error_of(static_cast<command>(77), 10, nbd::flag_payload_len, bytes(10)), 22u);
  EXPECT_EQ(c.flush(), 0u);
  for (const command what : {command::write, command::read}) {
    raw_client other(served);
    ASSERT_TRUE(other.go("disk", raw_client::headers::extended));
    ASSERT_TRUE(
        other.send(other.extended_request(what, 1, 0, 32 * mib + 1, nbd::flag_payload_len)));
    EXPECT_TRUE(other.at_end());
  }
  raw_client compact(served);
  ASSERT_TRUE(compact.go("disk", raw_client::headers::extended));
  ASSERT_TRUE(compact.send(compact.request(command::flush, 1)));
  ASSERT_TRUE(compact.send(compact.request(command::flush, 2)));
  EXPECT_TRUE(compact.at_end()) << "a compact header where extended ones were settled";
}

TEST_P(Transmission, RequestsSplitByteByByte) {
  raw_client c(served);
  ASSERT_TRUE(c.go("disk", GetParam()));
  const bytes data = to_bytes("hello, block");
  wire all;
  all.put(c.ask_for(command::write, 1, 4090, 12, 0, data).data());
  all.put(c.ask_for(command::flush, 2).data());
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
    both.put(c.ask_for(command::read, 7, 0, 512).data());
    both.put(c.ask_for(command::write, 8, 0, length).data());
    ASSERT_TRUE(c.send(both));
    ASSERT_FALSE(c.silent_for(std::chrono::minutes(1))) << length;
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
        all.put(c.ask_for(command::write, i, at, n % 100'000, 0, bytes(n % 100'000)).data());
        break;
      case 1:
        all.put(c.ask_for(command::write_zeroes, i, at, n).data());
        break;
      case 2:
        all.put(c.ask_for(command::flush, i).data());
        break;
      default:
        all.put(c.ask_for(command::read, i, at, n).data());
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
  for (int i = 0; i < 60; ++i) first.put(c.ask_for(command::read, cookie++, 0, 65536).data());
  first.put(c.ask_for(command::read, large, mib, 4 * mib).data());
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
    ASSERT_TRUE(c.send(c.ask_for(command::read, cookie++, 0, 65536)));
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
    for (int i = 0; i < 1000; ++i) some.put(c.ask_for(what, 5, 0, length).data());
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
  for (unsigned i = 1; i <= 50; ++i) all.put(c.ask_for(command::read, i, i * mib, 512).data());
  all.put(c.ask_for(command::disconnect, 51).data());
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
  ASSERT_TRUE(c.send(c.ask_for(command::read, 1, 0, 512)));
  ::shutdown(c.fd(), SHUT_WR);
  EXPECT_TRUE(c.receive_answer(512));
  EXPECT_TRUE(c.at_end());
}

}  // namespace
}  // namespace forebay
