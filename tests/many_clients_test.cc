// Many clients at a time, most of them of no good: silent, stuck, slow or talking rubbish. Beside
// them ten work and verify what they read, and do not notice. With FOREBAY_STRESS there are a
// thousand, for longer, and it says what the ten have had to wait.

#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <fstream>

#include "forebay/base/sanitizer.h"
#include "forebay/serve/test_server.h"

namespace forebay {
namespace {

constexpr std::uint32_t mib = 1u << 20;
constexpr unsigned workers = 10;
constexpr std::size_t stripe = 4 * mib;  // a worker's own part of the disk
constexpr std::size_t cache_bytes = 256 * mib;

bool is_stress() { return std::getenv("FOREBAY_STRESS") != nullptr; }

std::uint64_t resident_memory() {
  std::ifstream in("/proc/self/statm");
  std::uint64_t total = 0;
  std::uint64_t resident = 0;
  in >> total >> resident;
  return resident * 4096;
}

// Writes and reads its stripe, one request after the other, until told to stop.
class worker_client {
 public:
  worker_client(test_server& s, unsigned number)
      : client_(s), rng_(number), start_(number * stripe), model_(stripe) {
    EXPECT_TRUE(client_.go("disk", raw_client::headers::structured));
  }

  void work(const std::atomic<bool>& over) {
    do {  // once at least, however late this thread is
      const std::size_t n = 1 + rng_() % 8192;
      const std::size_t at = rng_() % (stripe - n);
      const auto begun = std::chrono::steady_clock::now();
      if (rng_() % 4 == 0) {
        const bytes data = random_bytes(rng_, n);
        ASSERT_EQ(client_.write(start_ + at, data), 0u);
        std::copy(data.begin(), data.end(), model_.begin() + static_cast<std::ptrdiff_t>(at));
      } else {
        const auto got = client_.read(start_ + at, static_cast<std::uint32_t>(n));
        ASSERT_TRUE(got);
        ASSERT_TRUE(same_bytes(*got, model_.data() + at));
      }
      waits_.push_back(std::chrono::steady_clock::now() - begun);
    } while (!over);
  }

  std::vector<std::chrono::steady_clock::duration> take_waits() {
    return std::exchange(waits_, {});
  }

 private:
  raw_client client_;
  std::mt19937_64 rng_;
  std::uint64_t start_;
  bytes model_;
  std::vector<std::chrono::steady_clock::duration> waits_;
};

// Has all of them work for a while; the 99th percentile of what a request took, in microseconds.
double p99_us(std::list<worker_client>& all, std::chrono::milliseconds time) {
  std::atomic<bool> over{false};
  std::vector<std::thread> running;
  for (worker_client& w : all) running.emplace_back([&] { w.work(over); });
  std::this_thread::sleep_for(time);
  over = true;
  for (std::thread& t : running) t.join();
  std::vector<std::chrono::steady_clock::duration> waits;
  for (worker_client& w : all) {
    const auto one = w.take_waits();
    EXPECT_FALSE(one.empty());
    waits.insert(waits.end(), one.begin(), one.end());
  }
  const auto at = waits.begin() + static_cast<std::ptrdiff_t>(waits.size() * 99 / 100);
  std::nth_element(waits.begin(), at, waits.end());
  return std::chrono::duration<double, std::micro>(*at).count();
}

// Those that stay: a third says nothing more at some point, a third takes no replies, a third
// speaks a byte at a time.
class idlers {
 public:
  idlers(test_server& s, unsigned count) {
    for (unsigned i = 0; i < count; ++i) {
      raw_client& c = all_.emplace_back(s);
      switch (i % 6) {
        case 0:
          break;
        case 1:
          EXPECT_TRUE(c.go("disk"));
          EXPECT_TRUE(c.send(c.request(nbd::command::write, 1, 0, mib, 0, bytes(1000))));
          break;
        case 2:
        case 3:
          EXPECT_TRUE(c.go("disk"));
          for (unsigned n = 0; n < 8; ++n) {
            EXPECT_TRUE(c.send(c.request(nbd::command::read, n, n * mib, mib)));
          }
          break;
        default: {
          slow_.push_back(&c);
          said_.emplace_back(0);
          break;
        }
      }
    }
    // Some handshake first, then the same request for ever.
    wire w;
    w.put(std::uint32_t{nbd::fixed_newstyle | nbd::no_zeroes});
    w.put(raw_client::option(nbd::option::go, raw_client::go_data("disk")).data());
    hello_ = w.data();
    request_ = raw_client::request(nbd::command::flush, 7, 0, 0).data();
  }

  // The next byte of each of those that are slow.
  void speak() {
    for (std::size_t i = 0; i < slow_.size(); ++i) {
      const std::size_t n = said_[i]++;
      const std::byte b =
          n < hello_.size() ? hello_[n] : request_[(n - hello_.size()) % request_.size()];
      EXPECT_TRUE(slow_[i]->send(bytes(1, b)));
    }
  }

 private:
  std::list<raw_client> all_;
  std::vector<raw_client*> slow_;
  std::vector<std::size_t> said_;
  bytes hello_;
  bytes request_;
};

// Comes, talks rubbish and leaves.
void talk_rubbish(test_server& s, std::mt19937_64& rng) {
  raw_client c(s);
  const timeval limit{0, 100'000};
  ::setsockopt(c.fd(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  if (rng() % 2 == 0 && !c.go("disk")) return;
  c.send(random_bytes(rng, 1 + rng() % 3000));
}

TEST(many_clients, those_that_work_do_not_notice_the_others) {
  const unsigned others = is_stress() ? 990 : 90;
  const auto time = std::chrono::milliseconds(is_stress() ? 5000 : 200);
  rlimit files{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &files), 0);
  files.rlim_cur = files.rlim_max;
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &files), 0);
  if (files.rlim_cur < 2 * others + 200) GTEST_SKIP() << "too few descriptors are allowed";

  test_server s({.cache_bytes = cache_bytes, .threads = 2});
  s.add(named("disk"), 64 * mib);
  s.start();
  std::list<worker_client> ten;
  for (unsigned i = 0; i < workers; ++i) ten.emplace_back(s, i);
  const double alone = p99_us(ten, time);

  const std::uint64_t memory = resident_memory();
  idlers idle(s, others);
  std::atomic<bool> over{false};
  std::thread rubbish([&] {
    std::mt19937_64 rng(1);
    while (!over) {
      talk_rubbish(s, rng);
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  });
  std::thread slow([&] {
    while (!over) {
      idle.speak();
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
  });
  const double beside = p99_us(ten, time);
  over = true;
  rubbish.join();
  slow.join();
  const std::uint64_t grown = std::max(resident_memory(), memory) - memory;
  std::printf("p99 of %u clients: %.0f us alone, %.0f us beside %u others; %.0f KiB a client\n",
              workers, alone, beside, others, static_cast<double>(grown) / others / 1024);
  // What they pin are pages of the cache, which has its size, and each has a socket's buffers.
  if (FOREBAY_ASAN + FOREBAY_TSAN != 0) return;  // their own memory is more
  EXPECT_LT(grown, cache_bytes + others * 64 * 1024);
}

}  // namespace
}  // namespace forebay
