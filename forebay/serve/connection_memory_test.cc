// A connection whose memory fails at any moment: its client gets an answer or the end of the
// connection, nothing hangs, nothing is leaked, and what follows is served.

#include <atomic>
#include <cstdlib>

#include "forebay/serve/test_host.h"
#include "forebay/serve/test_server.h"

namespace forebay {
namespace {

// Refuses chosen allocations.
class failing_memory final : public request_memory {
 public:
  using request_memory::request_memory;

  void* allocate(std::size_t n) noexcept override {
    const std::uint64_t call = ++calls;
    if (call == fail_at || (fail_every != 0 && call % fail_every == 0)) {
      ++refused;
      return nullptr;
    }
    return request_memory::allocate(n);
  }

  std::atomic<std::uint64_t> calls{0};
  std::atomic<std::uint64_t> refused{0};
  std::atomic<std::uint64_t> fail_at{0};
  std::atomic<std::uint64_t> fail_every{0};
};

std::unique_ptr<failing_memory> make_memory(const request_memory::options& opts) {
  auto parts = request_memory::make_parts(opts, memory_source::system());
  FOREBAY_ASSERT(parts.has_value());
  return std::make_unique<failing_memory>(std::move(*parts), opts);
}

// A server of one connection at a time, on a thread of its own.
class one_client_host final : public test_host {
 public:
  explicit one_client_host(const request_memory::options& opts = {})
      : test_host(make_memory(opts), 16u << 20) {}

  failing_memory& failing() { return static_cast<failing_memory&>(memory()); }

  // Serves one connection while `work` speaks with it as its client.
  template <typename Work>
  void serve(Work work) {
    auto [ours, theirs] = sockets();
    std::thread client([&work, end = std::move(theirs)]() mutable {
      raw_client c(std::move(end));
      work(c);
    });
    auto on = loop::create();
    FOREBAY_ASSERT(on.has_value());
    test_host::serve(**on, std::move(ours));
    client.join();
  }

  std::string statistics_text() override {
    if (statistics_fail) throw std::bad_alloc();
    return test_host::statistics_text();
  }

  bool statistics_fail = false;
};

// Asks for something of every kind. False once the connection has ended; every error is ENOMEM.
bool use_everything(raw_client& c, const bytes& data) {
  const auto good = [](std::uint32_t e) {
    EXPECT_TRUE(e == 0 || e == ENOMEM || e == UINT32_MAX) << e;
    return e != UINT32_MAX;
  };
  if (!c.greet() || c.outcome(nbd::option::list) == nbd::option_reply{}) return false;
  if (c.outcome(nbd::option::statistics) == nbd::option_reply{}) return false;
  c.structured = true;
  if (c.outcome(nbd::option::structured_reply) != nbd::option_reply::ack) return false;
  const auto contexts = raw_client::context_data("disk", {nbd::base_allocation});
  if (c.outcome(nbd::option::set_meta_context, contexts) != nbd::option_reply::ack) return false;
  if (c.outcome(nbd::option::go, raw_client::go_data("disk")) != nbd::option_reply::ack) {
    return false;
  }
  const bytes page(data.begin(), data.begin() + page_bytes);
  const bytes middle(data.begin(), data.begin() + 40'000);
  constexpr std::uint64_t mib = 1u << 20;
  return good(c.write(4 * mib, page)) && good(c.write(mib + 512, middle)) &&
         good(c.write(2 * mib, data)) && good(c.write(3 * mib, page, nbd::flag_fua)) &&
         good(c.call(nbd::command::read, 4 * mib, page_bytes)) &&
         good(c.call(nbd::command::read, 8 * mib, page_bytes)) &&
         good(c.call(nbd::command::read, 9 * mib, 2 * mib)) && good(c.flush()) &&
         good(c.call(nbd::command::trim, 5 * mib, mib)) &&
         good(c.call(nbd::command::write_zeroes, 6 * mib + 512, mib)) &&
         good(c.call(nbd::command::cache, 12 * mib, mib)) &&
         good(c.call(nbd::command::block_status, 0, 16 * mib));
}

void expect_service(one_client_host& host, const bytes& data) {
  host.serve([&](raw_client& c) {
    ASSERT_TRUE(c.go("disk", raw_client::headers::structured));
    EXPECT_EQ(c.write(1024, data), 0u);
    EXPECT_EQ(c.flush(), 0u);
    const auto back = c.read(1024, static_cast<std::uint32_t>(data.size()));
    ASSERT_TRUE(back.has_value());
    EXPECT_EQ(*back, data);
  });
}

TEST(ConnectionMemory, AnyOneAllocationMayBeRefused) {
  std::mt19937_64 rng(21);
  const bytes data = random_bytes(rng, 300'000);
  one_client_host host;
  failing_memory& memory = host.failing();
  bool whole = false;
  // Refusals late in the script are as those before them; not each is tried.
  const std::uint64_t step = std::getenv("FOREBAY_STRESS") == nullptr ? 7 : 1;
  for (std::uint64_t n = 1; !whole; n += n < 100 ? 1 : step) {
    memory.calls = memory.refused = 0;
    memory.fail_at = n;
    host.serve([&](raw_client& c) { whole = use_everything(c, data) && memory.calls < n; });
    EXPECT_EQ(memory.statistics().extra_bytes, 0u) << n;
    EXPECT_EQ(memory.statistics().request_bytes, 0u) << n;
    ASSERT_LT(n, 20'000u);
    if (testing::Test::HasFailure()) FAIL() << "refused allocation " << n;
  }
  memory.fail_at = 0;
  expect_service(host, data);
}

TEST(ConnectionMemory, EverySomanythAllocationMayBeRefused) {
  std::mt19937_64 rng(22);
  const bytes data = random_bytes(rng, 300'000);
  one_client_host host;
  failing_memory& memory = host.failing();
  for (std::uint64_t every = 2; every < 60; ++every) {
    memory.calls = memory.refused = 0;
    memory.fail_every = every;
    host.serve([&](raw_client& c) { use_everything(c, data); });
    EXPECT_GT(memory.refused, 0u);
    EXPECT_EQ(memory.statistics().extra_bytes, 0u) << every;
    if (testing::Test::HasFailure()) FAIL() << "every " << every;
  }
  memory.fail_every = 0;
  expect_service(host, data);
}

// Whichever of the pieces that its tasks are made of is refused, each request is answered, or ends
// the connection: none gives up on the way.
TEST(ConnectionMemory, NoRequestIsForgotten) {
  std::mt19937_64 rng(24);
  const bytes data = random_bytes(rng, 40'000);
  const bytes page(data.begin(), data.begin() + page_bytes);
  one_client_host host;
  failing_memory& memory = host.failing();
  std::uint64_t place = 0;  // where the cache has nothing yet
  const auto refuse_each = [&](const char* what, auto ask) {
    for (std::uint64_t n = 1;; ++n) {
      bool refused = false;
      host.serve([&](raw_client& c) {
        ASSERT_TRUE(c.go("disk", raw_client::headers::structured, {nbd::base_allocation}));
        const timeval patience{.tv_sec = 60, .tv_usec = 0};
        ASSERT_EQ(::setsockopt(c.fd(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience), 0);
        memory.calls = memory.refused = 0;
        memory.fail_at = n;
        const std::uint32_t e = ask(c);
        memory.fail_at = 0;
        refused = memory.refused != 0;
        EXPECT_TRUE(e == 0 || e == ENOMEM || (e == UINT32_MAX && c.at_end()))
            << what << " without allocation " << n << ": " << e;
      });
      place += 90'112;
      if (testing::Test::HasFailure() || !refused) return;
      ASSERT_LT(n, 40u) << what;
    }
  };
  refuse_each("write", [&](raw_client& c) { return c.write(place + 100, data); });
  refuse_each("durable", [&](raw_client& c) { return c.write(place + 100, page, nbd::flag_fua); });
  refuse_each("read", [&](raw_client& c) { return c.call(nbd::command::read, place, 40'960); });
  refuse_each("zeroes", [&](raw_client& c) {
    return c.call(nbd::command::write_zeroes, place + 100, 70'000);
  });
  refuse_each("trim",
              [&](raw_client& c) { return c.call(nbd::command::trim, place + 100, 70'000); });
  refuse_each("cache", [&](raw_client& c) { return c.call(nbd::command::cache, place, 40'960); });
  refuse_each("flush", [&](raw_client& c) { return c.flush(); });
  refuse_each("status",
              [&](raw_client& c) { return c.call(nbd::command::block_status, 0, 1u << 20); });
  EXPECT_EQ(memory.statistics().extra_bytes, 0u);
}

TEST(ConnectionMemory, AClientsOwnShareIsEnough) {
  std::mt19937_64 rng(23);
  const bytes data = random_bytes(rng, 300'000);
  one_client_host host({.max_clients = 1, .request_bytes_max = 0, .extra_bytes_max = 0});
  host.serve([&](raw_client& c) {
    EXPECT_TRUE(use_everything(c, data));
    // Many at once wait for each other.
    constexpr std::uint64_t requests = 200;
    std::thread sender([&] {
      for (std::uint64_t i = 0; i < requests; ++i) {
        EXPECT_TRUE(c.send(raw_client::request(nbd::command::read, i, i * 65536, 5 * page_bytes)));
      }
    });
    std::vector<bool> answered(requests);
    for (std::uint64_t left = requests; left != 0;) {
      const auto a = c.receive_answer();
      ASSERT_TRUE(a.has_value());
      EXPECT_EQ(a->error, 0u);
      if (!a->done) continue;
      EXPECT_FALSE(answered[a->cookie]);
      answered[a->cookie] = true;
      --left;
    }
    sender.join();
  });
  EXPECT_EQ(host.failing().statistics().failures, 0u);
}

TEST(ConnectionMemory, StatisticsThatCannotBeMadeAreAnError) {
  one_client_host host;
  host.statistics_fail = true;
  host.serve([&](raw_client& c) {
    ASSERT_TRUE(c.greet());
    EXPECT_EQ(c.outcome(nbd::option::statistics), nbd::option_reply::error_too_big);
    EXPECT_EQ(c.outcome(nbd::option::go, raw_client::go_data("disk")), nbd::option_reply::ack);
    EXPECT_EQ(c.flush(), 0u);
  });
}

}  // namespace
}  // namespace forebay
