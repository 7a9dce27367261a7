// The server's life: starts and ends, clients that vanish, clients that do nothing, and noise.

#include <sys/socket.h>

#include "forebay/serve/test_server.h"

namespace forebay {
namespace {

using nbd::command;
using clock_type = std::chrono::steady_clock;
constexpr std::uint32_t mib = 1u << 20;

double seconds_since(clock_type::time_point start) {
  return std::chrono::duration<double>(clock_type::now() - start).count();
}

TEST(Server, RefusesOptionsThatMakeNoSense) {
  EXPECT_EQ(server::create({.threads = 0}).error(), std::errc::invalid_argument);
  EXPECT_EQ(server::create({.threads = 65}).error(), std::errc::invalid_argument);
  EXPECT_FALSE(server::create({.cache_bytes = 1}));
}

// Sends so many reads at once.
void ask_for_reads(raw_client& c, unsigned count) {
  for (unsigned i = 0; i < count; ++i) ASSERT_TRUE(c.send(c.ask_for(command::read, i, 0, 4096)));
}

TEST(Server, ALimitHoldsItsExportAndNobodyElse) {
  test_server s;
  s.add(named("a"));
  s.add(named("b"));
  server& of = s.get();
  EXPECT_NE(of.set_limits("c:iops=1"), "");
  EXPECT_NE(of.set_limits("a:speed=1"), "");
  ASSERT_EQ(of.set_limits("a:iops=1,burst=0"), "");
  s.start();
  rate_limit& limit = of.find_export("a")->rate();
  raw_client one(s);
  raw_client other(s);
  ASSERT_TRUE(one.go("a"));
  ASSERT_TRUE(other.go("b"));
  constexpr unsigned many = 60;  // one a second: some wait for long enough to be seen
  ask_for_reads(one, many);
  ASSERT_TRUE(one.receive_answer(4096));
  EXPECT_TRUE(somebody_waits_for(limit));
  for (int i = 0; i < 100; ++i) ASSERT_TRUE(other.read(0, 4096));
  EXPECT_FALSE(of.find_export("b")->rate().applies());
  // Nothing is changed where one change cannot be.
  EXPECT_NE(sync_wait(of.tune("limit=a:iops=0\nlimit=c:iops=0\n")).value(), "");
  EXPECT_TRUE(limit.applies());
  ASSERT_EQ(sync_wait(of.tune("limit=a:iops=0\n")).value(), "");
  for (unsigned i = 1; i < many; ++i) ASSERT_TRUE(one.receive_answer(4096));
  EXPECT_EQ(limit.statistics().waiting, 0u);
  EXPECT_GT(limit.statistics().waited_ns, 0u);

  // Who waits for ever is noticed when he goes, and does not hold up the server's end.
  ASSERT_EQ(sync_wait(of.tune("limit=iops=1,bytes=64K,burst=0\n")).value(), "");
  ASSERT_TRUE(one.send(one.ask_for(command::read, 1, 0, 4u << 20)));
  ask_for_reads(one, 2);
  ASSERT_TRUE(one.receive_answer(4u << 20));
  one.close();
  EXPECT_TRUE(s.wait_for_clients(1));
  EXPECT_EQ(limit.statistics().waiting, 0u);
  raw_client last(s);
  ASSERT_TRUE(last.go("a"));
  ask_for_reads(last, many);
  EXPECT_TRUE(somebody_waits_for(limit));
}

TEST(Server, NamesAreUnique) {
  test_server s;
  s.add(named("a"));
  test_disk d(mib);
  auto second = std::make_unique<lent_device>(d.faults, d.memory.limits());
  const auto r = s.get().add_export(std::move(second), named("a"));
  ASSERT_FALSE(r);
  EXPECT_EQ(r.error(), std::errc::file_exists);
}

TEST(Server, NeverStartedEnds) {
  test_server s;
  s.add(named("a"));
  EXPECT_TRUE(s.stop());
}

TEST(Server, StartsAndEndsManyTimes) {
  for (unsigned i = 0; i < 40; ++i) {
    test_server s({.threads = 1 + i % 3});
    const test_disk& d = s.add(named("disk"), mib);
    static_cast<void>(d);
    s.start();
    if (i % 2 == 0) continue;
    raw_client c(s);
    if (i % 4 == 1) continue;
    ASSERT_TRUE(c.go("disk"));
    ASSERT_EQ(c.write(0, bytes(4096)), 0u);
  }
}

// As large as an image can be, and slow to look at: nothing.
class bottomless_device final : public device {
 public:
  const device_limits& limits() const noexcept override { return limits_; }
  void submit(bio& b) noexcept override {
    for (const iovec& s : b.used_segments()) std::memset(s.iov_base, 0, s.iov_len);
    complete(b, 0);
  }

 private:
  device_limits limits_{.size_bytes = std::uint64_t{1} << 45};
};

// With extended headers a request without a payload can be about all of the image.
TEST(Server, EndsDuringACommandOnAllOfAHugeImage) {
  test_server s;
  ASSERT_TRUE(s.get().add_export(std::make_unique<bottomless_device>(), named("disk")));
  s.start();
  raw_client leaves(s);
  raw_client stays(s);
  for (raw_client* const c : {&leaves, &stays}) {
    ASSERT_TRUE(c->go("disk", raw_client::headers::extended));
    ASSERT_TRUE(c->send(nbd_words::extended_request(command::cache, 7, 0, std::uint64_t{1} << 45)));
  }
  ASSERT_TRUE(raw_client(s).go("disk"));
  leaves.close();
  EXPECT_TRUE(s.wait_for_clients(1));
  EXPECT_TRUE(s.stop());
  // It ended before the time was up that a client is given to leave: then there is no answer.
  const auto a = stays.receive_answer();
  ASSERT_TRUE(a);
  EXPECT_EQ(a->error, 108u);
}

TEST(Server, EndWritesEverythingBack) {
  std::mt19937_64 rng(7);
  const bytes data = random_bytes(rng, 3 * mib);
  test_server s({.threads = 2});
  test_disk& d = s.add(named("disk"));
  s.start();
  {
    raw_client c(s);
    ASSERT_TRUE(c.go("disk"));
    ASSERT_EQ(c.write(1000, data), 0u);
  }
  ASSERT_TRUE(s.stop());
  EXPECT_EQ(std::memcmp(d.memory.contents().data() + 1000, data.data(), data.size()), 0);
}

TEST(Server, EndTellsWhatCouldNotBeWritten) {
  test_server s;
  test_disk& d = s.add(named("disk"));
  test_disk& other = s.add(named("other"));
  s.start();
  for (const char* name : {"disk", "other"}) {
    raw_client c(s);
    ASSERT_TRUE(c.go(name));
    ASSERT_EQ(c.write(0, bytes(512, std::byte{3})), 0u);
  }
  d.faults.inject({.op = bio_op::write, .error = ENOSPC});
  const result<> r = s.stop();
  ASSERT_FALSE(r);
  EXPECT_EQ(r.error(), std::errc::no_space_on_device);
  EXPECT_EQ(other.memory.contents()[0], std::byte{3});
}

// Silent in the handshake, silent afterwards, stuck in the middle of a payload, receiving nothing:
// nobody holds up the end for longer than the grace, however many threads there are.
TEST(Server, EndWithSilentAndStuckClients) {
  test_server s({.threads = 4});
  s.add(named("disk"), 64 * mib);
  s.start();
  std::list<raw_client> clients;
  for (int i = 0; i < 12; ++i) {
    raw_client& c = clients.emplace_back(s);
    if (i % 4 == 0) continue;
    ASSERT_TRUE(c.go("disk"));
    if (i % 4 == 1) {
      ASSERT_TRUE(c.send(c.request(command::write, 1, 0, mib, 0, bytes(1000))));
    }
    if (i % 4 == 2) {
      ASSERT_TRUE(c.send(c.request(command::read, 1, 0, 32 * mib)));
    }
  }
  const auto start = clock_type::now();
  EXPECT_TRUE(s.stop());
  EXPECT_LT(seconds_since(start), 18);  // once 5 s, and not for each of the threads
}

TEST(Server, EndUnderLoadKeepsWhatWasAcknowledged) {
  constexpr unsigned count = 4;
  test_server s({.threads = 3});
  test_disk& d = s.add(named("disk"), 16 * mib);
  s.start();
  std::vector<std::thread> writers;
  std::vector<unsigned> acknowledged(count);
  for (unsigned w = 0; w < count; ++w) {
    writers.emplace_back([&, w] {
      raw_client c(s);
      if (!c.go("disk")) return;
      while (acknowledged[w] < 1000) {
        const bytes data(4096, static_cast<std::byte>(acknowledged[w] % 250 + 1));
        if (c.write((w * 1000 + acknowledged[w]) * 4096ull, data) != 0) return;
        ++acknowledged[w];
      }
    });
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_TRUE(s.stop());
  for (auto& w : writers) w.join();
  for (unsigned w = 0; w < count; ++w) {
    for (unsigned i = 0; i < acknowledged[w]; ++i) {
      ASSERT_EQ(d.memory.contents()[(w * 1000 + i) * 4096ull + 4095],
                static_cast<std::byte>(i % 250 + 1));
    }
  }
}

// While clients write and verify, the cache shrinks and grows and changes its policy: no byte is
// wrong, and the cache follows.
TEST(Server, IsTunedUnderLoad) {
  constexpr unsigned count = 3;
  constexpr std::uint64_t slots = 900;  // each: more than the cache together
  test_server s({.cache_bytes = 8 * mib, .cache_max_bytes = 24 * mib, .threads = 2});
  s.add(named("disk"), 16 * mib);
  s.start();
  std::atomic<bool> over{false};
  std::vector<std::thread> clients;
  for (unsigned w = 0; w < count; ++w) {
    clients.emplace_back([&, w] {
      raw_client c(s);
      ASSERT_TRUE(c.go("disk"));
      std::vector<unsigned> last(slots);
      for (unsigned i = 1; !over; ++i) {
        const std::uint64_t slot = i * 7919ull % slots;
        const std::uint64_t at = (w * slots + slot) * 4096;
        ASSERT_EQ(c.read(at, 4096), bytes(4096, static_cast<std::byte>(last[slot] % 251))) << at;
        ASSERT_EQ(c.write(at, bytes(4096, static_cast<std::byte>(i % 251))), 0u);
        last[slot] = i;
      }
    });
  }
  raw_client control(s);
  ASSERT_TRUE(control.greet());
  const auto tune = [&](const std::string& changes) {
    return control.outcome(nbd::option::tune, to_bytes(changes));
  };
  const auto policies = {"clock", "lru", "s3-fifo", "adaptive"};
  for (const std::uint64_t size : {6 * mib, 24 * mib, 8 * mib, 16 * mib}) {
    for (const std::string policy : policies) {
      EXPECT_EQ(tune("eviction=" + policy + "\ndirty-limit=1048576"), nbd::option_reply::ack);
      std::this_thread::sleep_for(std::chrono::milliseconds(3));
    }
    EXPECT_EQ(tune("cache=" + std::to_string(size)), nbd::option_reply::ack);
    const auto arrived = [&] {
      const pressure_statistics m = s.get().monitor().statistics();
      return m.ceiling_bytes == std::min(size, m.capacity_bytes) && m.committed_bytes <= size;
    };
    EXPECT_TRUE(eventually(arrived)) << size;
  }
  over = true;
  for (auto& c : clients) c.join();
  // What cannot be is refused as a whole.
  for (const char* bad : {"eviction=fifo", "cache=1", "cache=99999999999", "cache=", "cache=9x",
                          "colour=1", "cache", "eviction=lru\ncache=0"}) {
    EXPECT_EQ(tune(bad), nbd::option_reply::error_invalid) << bad;
  }
  EXPECT_EQ(s.get().cache().statistics().eviction, eviction_policy::adaptive);
}

TEST(Server, MoreClientsThanAllowedAreTurnedAway) {
  test_server s({.max_clients = 3});
  s.add(named("disk"));
  s.start();
  std::list<raw_client> clients;
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(clients.emplace_back(s).go("disk"));
  raw_client fourth(s);
  EXPECT_TRUE(fourth.at_end());
  clients.pop_back();
  ASSERT_TRUE(s.wait_for_clients(2));
  raw_client fifth(s);
  EXPECT_TRUE(fifth.go("disk"));
  EXPECT_NE(s.get().statistics_text().find("\"clients_refused\":1"), std::string::npos);
}

TEST(Server, AClientGoesWhereTheFewestAre) {
  test_server s({.threads = 2});
  s.add(named("disk"));
  s.start();
  std::list<raw_client> clients;
  const auto come = [&] { ASSERT_TRUE(clients.emplace_back(s).go("disk")); };
  using counts = std::vector<unsigned>;
  come();
  EXPECT_EQ(s.get().statistics().clients_by_thread, (counts{0, 1})) << "away from the flushers";
  for (int i = 0; i < 3; ++i) come();
  EXPECT_EQ(s.get().statistics().clients_by_thread, (counts{2, 2}));
  clients.pop_front();  // the first and the third
  clients.erase(std::next(clients.begin()));
  ASSERT_TRUE(s.wait_for_clients(2));
  EXPECT_EQ(s.get().statistics().clients_by_thread, (counts{2, 0}));
  come();
  come();
  EXPECT_EQ(s.get().statistics().clients_by_thread, (counts{2, 2}));
}

TEST(Server, ASmallCacheAllowsFewClients) {
  test_server s({.cache_bytes = page_cache::min_bytes});
  s.add(named("disk"), 8 * mib);
  s.start();
  // Each receives nothing of a large read, so it pins what it may; others are still served.
  std::list<raw_client> stuck;
  for (int i = 0; i < 250; ++i) {
    raw_client& c = stuck.emplace_back(s);
    if (!c.go("disk")) {
      stuck.pop_back();
      break;
    }
    ASSERT_TRUE(c.send(c.request(command::read, 1, 0, 8 * mib)));
  }
  EXPECT_GE(stuck.size(), 200u);
  stuck.pop_front();
  raw_client c(s);
  for (int i = 0; i < 100 && !s.wait_for_clients(static_cast<unsigned>(stuck.size() + 1)); ++i) {
  }
  ASSERT_TRUE(c.go("disk"));
  EXPECT_EQ(c.read(5 * mib, 2 * mib), bytes(2 * mib));
}

TEST(Server, ClientsVanishAtAnyMoment) {
  test_server s({.threads = 2});
  s.add(named("disk"), 32 * mib);
  s.start();
  // The whole life of a client as bytes; it leaves after each possible prefix of the handshake and
  // at many places behind.
  wire life;
  life.put(std::uint32_t{nbd::fixed_newstyle | nbd::no_zeroes});
  life.put(raw_client::option(nbd::option::structured_reply).data());
  life.put(raw_client::option(nbd::option::statistics).data());
  life.put(raw_client::option(nbd::option::go, raw_client::go_data("disk", {1, 2, 3})).data());
  const std::size_t handshake = life.data().size();
  life.put(raw_client::request(command::read, 1, 5, 8 * mib).data());
  life.put(raw_client::request(command::write, 2, 7, 3000, 0, bytes(3000)).data());
  life.put(raw_client::request(command::read, 3, 0, 65536).data());
  life.put(raw_client::request(command::write, 4, mib, 300'000, 1, bytes(300'000)).data());
  life.put(raw_client::request(command::flush, 5).data());
  std::mt19937_64 rng(8);
  for (std::size_t cut = 0; cut < life.data().size();) {
    raw_client c(s);
    ASSERT_TRUE(c.send(bytes(life.data().begin(), life.data().begin() + cut)));
    if (rng() % 2 == 0) std::this_thread::sleep_for(std::chrono::microseconds(rng() % 3000));
    if (rng() % 4 == 0) {
      const linger hard{1, 0};
      ::setsockopt(c.fd(), SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    }
    cut += cut < handshake + 40 ? 1 : 997 + rng() % 3000;
  }
  EXPECT_TRUE(s.wait_for_clients(0));
  raw_client c(s);
  ASSERT_TRUE(c.go("disk", raw_client::headers::structured));
  EXPECT_EQ(c.flush(), 0u);
}

TEST(Server, StatisticsFromManyThreadsUnderLoad) {
  test_server s({.threads = 3});
  s.add(named("disk"));
  s.add(named("other"));
  s.start();
  std::vector<std::thread> all;
  for (unsigned i = 0; i < 4; ++i) {
    all.emplace_back([&, i] {
      raw_client c(s);
      ASSERT_TRUE(c.go(i % 2 == 0 ? "disk" : "other"));
      for (unsigned n = 0; n < 100; ++n) {
        raw_client asker(s);
        ASSERT_TRUE(asker.greet());
        ASSERT_EQ(asker.ask(nbd::option::statistics).size(), 2u);
        ASSERT_EQ(c.write(i * 65536ull, bytes(1000)), 0u);
      }
    });
  }
  for (auto& t : all) t.join();
}

// Noise by generator: options and requests that are nearly right, in random pieces. The server goes
// on, each connection ends or answers, and a client beside them is served all the time.
class ServerNoise : public ::testing::TestWithParam<unsigned> {};

INSTANTIATE_TEST_SUITE_P(, ServerNoise, ::testing::Range(0u, 8u));

bytes noisy_handshake(std::mt19937_64& rng) {
  constexpr std::uint32_t options[] = {0, 1, 2, 3,  4,  5,          6,
                                       7, 8, 9, 10, 11, 0x46425354, 0xffffffff};
  wire w;
  w.put(static_cast<std::uint32_t>(rng() % 20 == 0 ? rng() : rng() % 4));
  for (unsigned n = rng() % 6; n != 0; --n) {
    bytes data;
    switch (rng() % 4) {
      case 0:
        data = raw_client::go_data("disk", {static_cast<std::uint16_t>(rng() % 5)});
        break;
      case 1:
        data = raw_client::context_data("disk", {"base:allocation", "x:"});
        break;
      case 2:
        data = random_bytes(rng, rng() % 300);
        break;
      default:
        break;
    }
    if (!data.empty() && rng() % 4 == 0) data[rng() % data.size()] = static_cast<std::byte>(rng());
    const auto which = static_cast<nbd::option>(options[rng() % std::size(options)]);
    bytes option = raw_client::option(which, data).data();
    if (rng() % 30 == 0) option[rng() % 16] ^= static_cast<std::byte>(1u << rng() % 8);
    w.put(option);
  }
  if (rng() % 4 != 0)
    w.put(raw_client::option(nbd::option::go, raw_client::go_data("disk")).data());
  return w.data();
}

bytes noisy_requests(std::mt19937_64& rng) {
  wire w;
  for (unsigned n = rng() % 200; n != 0; --n) {
    const auto what = static_cast<command>(rng() % 20 == 0 ? rng() : rng() % 9);
    const std::uint64_t offset = rng() % 10 == 0 ? rng() : rng() % (8 * mib);
    auto length = static_cast<std::uint32_t>(rng() % 20 == 0 ? rng() : rng() % 100'000);
    const auto flags = static_cast<std::uint16_t>(rng() % 4 == 0 ? rng() % 32 : 0);
    bytes data;
    if (what == command::write) {
      if (rng() % 50 != 0) length %= 200'000;
      data.resize(std::min(length, 200'000u));
    }
    if (what == command::disconnect && rng() % 4 != 0) continue;
    bytes request = raw_client::request(what, rng(), offset, length, flags, data).data();
    if (rng() % 100 == 0) request[rng() % 28] ^= static_cast<std::byte>(1u << rng() % 8);
    w.put(request);
  }
  return w.data();
}

TEST_P(ServerNoise, HurtsNobodyElse) {
  test_server s({.cache_bytes = page_cache::min_bytes, .threads = 2});
  s.add(named("disk"), 8 * mib);
  s.add(named("quiet"), 8 * mib);
  s.start();
  std::atomic<bool> over{false};
  std::thread beside([&] {
    raw_client c(s);
    std::mt19937_64 rng(100 + GetParam());
    ASSERT_TRUE(c.go("quiet", raw_client::headers::structured));
    while (!over) {
      const bytes data = random_bytes(rng, 1 + rng() % 50'000);
      const std::uint64_t at = rng() % (8 * mib - data.size());
      ASSERT_EQ(c.write(at, data), 0u);
      const auto got = c.read(at, static_cast<std::uint32_t>(data.size()));
      ASSERT_TRUE(got);
      ASSERT_TRUE(same_bytes(*got, data));
      ASSERT_EQ(c.flush(), 0u);
      std::this_thread::sleep_for(std::chrono::milliseconds(1));  // leaves the CPUs to the others
    }
  });
  std::mt19937_64 rng(GetParam());
  for (int i = 0; i < 40; ++i) {
    raw_client c(s);
    const timeval limit{1, 0};
    ::setsockopt(c.fd(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    bytes all = noisy_handshake(rng);
    const bytes requests = noisy_requests(rng);
    all.insert(all.end(), requests.begin(), requests.end());
    std::thread receiver;
    if (rng() % 4 != 0) receiver = std::thread([&c] { c.at_end(); });
    for (std::size_t at = 0; at < all.size();) {
      const std::size_t n = std::min<std::size_t>(1 + rng() % 50'000, all.size() - at);
      const auto* p = all.data() + at;
      if (!c.send(bytes(p, p + n))) break;
      at += n;
    }
    ::shutdown(c.fd(), SHUT_WR);
    if (receiver.joinable()) receiver.join();
  }
  over = true;
  beside.join();
  EXPECT_TRUE(s.wait_for_clients(0));
}

}  // namespace
}  // namespace forebay
