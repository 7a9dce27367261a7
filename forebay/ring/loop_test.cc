#include "forebay/ring/loop.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <deque>
#include <functional>
#include <future>
#include <string>
#include <thread>
#include <vector>

#include "forebay/os/socket.h"
#include "forebay/ring/test_segment.h"

namespace forebay {
namespace {

struct call : completion {
  explicit call(std::function<void()> f) : action(std::move(f)) {
    run = [](completion& c) noexcept { static_cast<call&>(c).action(); };
  }
  std::function<void()> action;
};

// A loop on a thread of its own, for the life of this object.
class loop_thread {
 public:
  explicit loop_thread(unsigned entries = 64) {
    std::promise<void> ready;
    thread_ = std::thread([this, entries, &ready] {
      auto made = loop::create(entries);
      if (made) loop_ = std::move(*made);
      ready.set_value();
      if (loop_) loop_->run();
    });
    ready.get_future().wait();
    FOREBAY_ASSERT(loop_ != nullptr);
  }
  ~loop_thread() {
    loop_->stop();
    thread_.join();
  }
  loop_thread(const loop_thread&) = delete;
  loop_thread& operator=(const loop_thread&) = delete;

  loop& operator*() noexcept { return *loop_; }
  loop* operator->() noexcept { return loop_.get(); }

  // Runs the task that `make` returns in the loop and waits for its end.
  template <typename F>
  void run(F make) {
    std::promise<void> ended;
    task_group group;
    const auto work = [&]() -> task<> {
      const auto r = co_await make();
      EXPECT_TRUE(r.has_value());
      co_return result<>{};
    };
    // The group's end, not the task's, so that the frame has gone when the caller goes on.
    const auto all = [&]() -> task<> {
      EXPECT_TRUE(work().spawn(group));
      co_await group.idle();
      ended.set_value();
      co_return result<>{};
    };
    call start([&] { EXPECT_TRUE(all().spawn(outer_)); });
    loop_->post(start);
    ended.get_future().wait();
    // `start` and `all` are on this stack: one more round through the loop, and both have ended.
    std::promise<void> passed;
    call fence([&] { passed.set_value(); });
    loop_->post(fence);
    passed.get_future().wait();
  }

 private:
  std::unique_ptr<loop> loop_;
  task_group outer_;
  std::thread thread_;
};

std::array<unique_fd, 2> socket_pair() {
  std::array<int, 2> fds{-1, -1};
  EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds.data()), 0);
  return {unique_fd(fds[0]), unique_fd(fds[1])};
}

TEST(Loop, IsCurrentOnlyOnItsThread) {
  EXPECT_EQ(loop::current(), nullptr);
  loop_thread l;
  EXPECT_EQ(loop::current(), nullptr);
  l.run([&]() -> task<> {
    EXPECT_EQ(loop::current(), &*l);
    EXPECT_EQ(executor::current(), &*l);
    co_return result<>{};
  });
}

TEST(Loop, WritesAndReadsAFile) {
  std::string name = testing::TempDir() + "forebay-loop-XXXXXX";
  const unique_fd file(::mkstemp(name.data()));
  ASSERT_TRUE(file);
  ::unlink(name.c_str());
  loop_thread l;
  l.run([&]() -> task<> {
    const std::string text = "still water";
    std::array<char, 64> back{};
    const auto out = one_segment(text.data(), text.size());
    const auto in = one_segment(back.data(), back.size());
    EXPECT_EQ(co_await loop::io(uring_request::write(file.get(), out, 100)), 11);
    EXPECT_EQ(co_await loop::io(uring_request::read(file.get(), in, 100)), 11);
    EXPECT_EQ(text, back.data());
    EXPECT_EQ(co_await loop::io(uring_request::read(file.get(), in, 5'000)), 0) << "past the end";
    co_return result<>{};
  });
}

TEST(Loop, ABadDescriptorGivesItsErrno) {
  loop_thread l;
  l.run([]() -> task<> {
    char byte = 0;
    const auto in = one_segment(&byte, 1);
    EXPECT_EQ(co_await loop::io(uring_request::read(99'999, in, 0)), -EBADF);
    EXPECT_EQ(co_await loop::io(uring_request::receive(-1, in)), -EBADF);
    co_return result<>{};
  });
}

TEST(Loop, MoreOperationsThanSlotsInOneTurn) {
  loop_thread l(8);
  int ended = 0;
  l.run([&]() -> task<> {
    task_group group;
    const auto one = [&]() -> task<> {
      if (co_await loop::io(uring_request::nop()) == 0) ++ended;
      co_return result<>{};
    };
    for (int i = 0; i < 1'000; ++i) EXPECT_TRUE(one().spawn(group));
    co_await group.idle();
    co_return result<>{};
  });
  EXPECT_EQ(ended, 1'000);
}

TEST(Loop, StopsFromAnotherThreadAndBeforeItRuns) {
  for (int i = 0; i < 50; ++i) loop_thread l;  // stopped at some moment of its start
  std::thread([] {
    auto l = loop::create();
    ASSERT_TRUE(l);
    (*l)->stop();
    (*l)->run();
    EXPECT_EQ(loop::current(), nullptr);
  }).join();
}

TEST(Loop, StopsFromItsOwnThread) {
  std::thread([] {
    auto l = loop::create();
    ASSERT_TRUE(l);
    call stop([&] { (*l)->stop(); });
    (*l)->ready(stop);
    (*l)->run();
  }).join();
}

TEST(Loop, EndsWithOperationsInFlight) {
  auto ends = socket_pair();
  std::array<char, 16> buffer{};
  completion received([](completion&) noexcept { FAIL() << "nobody sends"; });
  loop_thread l;
  l.run([&]() -> task<> {
    l->submit(uring_request::receive(ends[0].get(), one_segment(buffer.data(), buffer.size())),
              received);
    co_return result<>{};
  });
}

TEST(Loop, CancelEndsAReceiveAndAnAccept) {
  auto ends = socket_pair();
  const auto listening = listen_tcp("127.0.0.1", 0);
  ASSERT_TRUE(listening) << listening.error().message();
  loop_thread l;
  std::array<char, 16> buffer{};
  l.run([&]() -> task<> {
    task_group group;
    std::vector<std::int32_t> results;
    resume_completion* pending = nullptr;
    const auto wait_for = [&](const uring_request& r) -> task<> {
      results.push_back(co_await await_completion([&](completion& done) noexcept {
        pending = &static_cast<resume_completion&>(done);
        loop::current()->submit(r, done);
      }));
      co_return result<>{};
    };
    const auto in = one_segment(buffer.data(), buffer.size());
    const uring_request receive = uring_request::receive(ends[0].get(), in);
    EXPECT_TRUE(wait_for(receive).spawn(group));
    loop::current()->cancel(*pending);  // not even handed over yet
    co_await group.idle();
    EXPECT_TRUE(wait_for(receive).spawn(group));
    co_await sleep_for(1'000'000);
    EXPECT_EQ(group.running(), 1u);
    loop::current()->cancel(*pending);
    co_await group.idle();
    EXPECT_TRUE(wait_for(uring_request::accept(listening->front().get())).spawn(group));
    co_await sleep_for(1'000'000);
    loop::current()->cancel(*pending);
    co_await group.idle();
    EXPECT_EQ(results, (std::vector{-ECANCELED, -ECANCELED, -ECANCELED}));
    co_return result<>{};
  });
}

// As a server does when it ends: every connection's receive is cancelled in one turn.
TEST(Loop, ManyCancelsInOneTurnEndManyOperations) {
  constexpr std::size_t count = 40;
  std::vector<std::array<unique_fd, 2>> pairs;
  for (std::size_t i = 0; i < count; ++i) pairs.push_back(socket_pair());
  std::array<char, 16> buffer{};
  loop_thread l;
  std::size_t cancelled = 0;
  l.run([&]() -> task<> {
    task_group group;
    std::vector<completion*> records;
    const auto receive = [&](int fd) -> task<> {
      const std::int32_t status = co_await await_completion([&](completion& done) noexcept {
        records.push_back(&done);
        loop::current()->submit(
            uring_request::receive(fd, one_segment(buffer.data(), buffer.size())), done);
      });
      if (status == -ECANCELED) ++cancelled;
      co_return result<>{};
    };
    for (auto& p : pairs) EXPECT_TRUE(receive(p[0].get()).spawn(group));
    co_await sleep_for(1'000'000);
    for (completion* c : records) loop::current()->cancel(*c);
    co_await group.idle();
    co_return result<>{};
  });
  EXPECT_EQ(cancelled, count);
}

TEST(Loop, CancelOfWhatIsNotInFlightDoesNothing) {
  completion idle([](completion&) noexcept { FAIL() << "was never submitted"; });
  loop_thread l;
  l.run([&]() -> task<> {
    loop::current()->cancel(idle);
    loop::current()->cancel(idle);
    co_await sleep_for(1'000'000);
    co_return result<>{};
  });
}

TEST(Loop, AShutDownSocketEndsItsReceive) {
  auto ends = socket_pair();
  loop_thread l;
  std::thread closer;
  l.run([&]() -> task<> {
    closer = std::thread([&] { shutdown_socket(ends[1].get()); });
    std::array<char, 16> buffer{};
    const auto in = one_segment(buffer.data(), buffer.size());
    EXPECT_EQ(co_await loop::io(uring_request::receive(ends[0].get(), in)), 0);
    co_return result<>{};
  });
  closer.join();
}

TEST(Loop, SendsAMessageOfPieces) {
  auto ends = socket_pair();
  loop_thread l;
  l.run([&]() -> task<> {
    std::string first = "fore";
    std::string second = "bay";
    std::array<iovec, 2> pieces = {iovec{first.data(), first.size()},
                                   iovec{second.data(), second.size()}};
    mapped_message message;
    EXPECT_TRUE(message.map(loop::current()->plain(), pieces));
    EXPECT_EQ(co_await loop::io(uring_request::send(ends[0].get(), message)), 7);
    std::array<std::byte, 7> received{};
    EXPECT_TRUE(receive_all(ends[1].get(), received));
    EXPECT_EQ(std::memcmp(received.data(), "forebay", 7), 0);
    ends[1].reset();
    EXPECT_EQ(co_await loop::io(uring_request::send(ends[0].get(), message)), -EPIPE);
    message.unmap();
    co_return result<>{};
  });
}

TEST(Loop, TimersFireInOrderAndNotEarly) {
  loop_thread l;
  std::vector<int> order;
  l.run([&]() -> task<> {
    task_group group;
    // From one moment on: between two calls of sleep_for() any time may pass.
    const std::uint64_t start = monotonic_clock::now_ns();
    const auto sleeper = [&](int number, std::uint64_t ns) -> task<> {
      timer t;
      t.deadline_ns = start + ns;
      co_await await_completion([&t](completion& done) noexcept {
        t.done = &done;
        loop::current()->start(t);
      });
      EXPECT_GE(monotonic_clock::now_ns(), t.deadline_ns);
      order.push_back(number);
      co_return result<>{};
    };
    EXPECT_TRUE(sleeper(3, 9'000'000).spawn(group));
    EXPECT_TRUE(sleeper(1, 1'000'000).spawn(group));
    EXPECT_TRUE(sleeper(2, 5'000'000).spawn(group));
    co_await group.idle();
    co_return result<>{};
  });
  EXPECT_EQ(order, (std::vector{1, 2, 3}));
}

TEST(BusyPoll, EachLookInVainDoublesTheWaitsUntilTheNextAndASuccessHalvesThem) {
  busy_poll none;
  EXPECT_FALSE(none.wanted());
  busy_poll p(1000);
  const auto waits_until_wanted = [&p] {
    unsigned waits = 0;
    while (!p.wanted()) ++waits;
    return waits;
  };
  EXPECT_EQ(waits_until_wanted(), 0u);
  for (unsigned expected : {1u, 3u, 7u, 15u}) {
    p.found(false);
    EXPECT_EQ(waits_until_wanted(), expected);
  }
  p.found(true);
  EXPECT_EQ(waits_until_wanted(), 7u);
  for (unsigned i = 0; i < 20; ++i) p.found(false);
  EXPECT_EQ(waits_until_wanted(), busy_poll::pause_max);
  for (unsigned i = 0; i < 10; ++i) p.found(true);
  EXPECT_EQ(waits_until_wanted(), 0u);
  EXPECT_EQ(p.looks(), 35u);
  EXPECT_EQ(p.successes(), 11u);
}

TEST(Loop, LooksForCompletionsAndNoLongerThanToItsNextTimer) {
  auto made = loop::create();
  ASSERT_TRUE(made.has_value());
  loop& l = **made;
  l.set_busy_poll(60'000'000'000);
  std::uint64_t slept_ns = 0;
  timer t;
  call expired([&] {
    slept_ns = monotonic_clock::now_ns() - slept_ns;
    l.stop();
  });
  t.done = &expired;
  std::atomic<bool> taken{false};
  std::atomic<bool> seen{false};
  call post([&] {
    if (l.polls().successes() != 0 && !seen.exchange(true)) {
      slept_ns = monotonic_clock::now_ns();
      t.deadline_ns = slept_ns + 2'000'000;
      l.start(t);
    }
    taken = true;
  });
  // Sooner or later one comes while the loop looks.
  std::jthread poster([&] {
    while (!seen) {
      taken = false;
      l.post(post);
      while (!taken) std::this_thread::yield();
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  });
  l.run();
  // The timer did not wait for the end of the look.
  EXPECT_LT(slept_ns, 30'000'000'000u);
  EXPECT_GE(l.polls().looks(), 2u);
}

TEST(Loop, AnIdleOneSoonSleepsAtOnce) {
  auto made = loop::create();
  ASSERT_TRUE(made.has_value());
  loop& l = **made;
  l.set_busy_poll(1000);
  constexpr unsigned waits = 200;
  unsigned ticks = 0;
  timer t;
  call tick([&] {
    if (++ticks == waits) return l.stop();
    t.deadline_ns = monotonic_clock::in_ns(200'000);
    l.start(t);
  });
  t.done = &tick;
  l.post(tick);
  l.run();
  EXPECT_LE(l.polls().looks(), 16u);
}

TEST(Loop, LooksForManyTransfersWhileTheyComeFastAndNoLonger) {
  auto made = loop::create();
  ASSERT_TRUE(made.has_value());
  loop& l = **made;
  l.set_busy_poll(1'000'000);
  std::array<unique_fd, 20> events;
  for (unique_fd& e : events) e = std::move(make_event_fd().value());
  constexpr unsigned enough = 20'000;
  std::atomic<unsigned> taken{0};
  std::atomic<std::uint64_t> looks{0};  // at the end of the last read
  std::atomic<bool> over{false};
  task_group readers;
  const auto read_all = [&](int fd) -> task<> {
    std::uint64_t count = 0;
    while (!over) {
      const auto to = one_segment(&count, sizeof count);
      EXPECT_EQ(co_await loop::io(uring_request::read(fd, to, 0)), 8);
      looks = l.polls().looks();
      ++taken;
    }
    co_return result<>{};
  };
  call start([&] {
    for (unique_fd& e : events) EXPECT_TRUE(read_all(e.get()).spawn(readers));
  });
  l.post(start);
  std::jthread others([&] {
    while (taken < enough) {
      for (unique_fd& e : events) signal_event_fd(e.get());
    }
    // Nothing ends now, and each look in vain puts off the next.
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    const std::uint64_t before = looks;
    const unsigned quiet = taken;
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    signal_event_fd(events[0].get());
    while (taken == quiet) std::this_thread::yield();
    EXPECT_LE(looks - before, 20u);
    over = true;
    for (unique_fd& e : events) signal_event_fd(e.get());
    while (taken < quiet + events.size()) std::this_thread::yield();
    l.stop();
  });
  l.run();
}

TEST(Loop, IoGoesOnBesideWorkThatNeverRunsDry) {
  loop_thread l;
  bool done = false;
  call again([&] {
    if (!done) loop::current()->ready(again);
  });
  l.run([&]() -> task<> {
    loop::current()->ready(again);
    EXPECT_EQ(co_await loop::io(uring_request::nop()), 0);
    co_await sleep_for(100'000);
    done = true;
    co_return result<>{};
  });
}

TEST(LoopStress, PostStormsFromManyThreadsAllRunOnceInOrder) {
  constexpr std::size_t posters = 3;
  constexpr int per_poster = 4'000;
  std::vector<std::deque<call>> calls(posters);
  std::vector<int> next(posters, 0);
  int out_of_order = 0;
  int outside = 0;
  {
    loop_thread l;
    for (std::size_t p = 0; p < posters; ++p) {
      for (int n = 0; n < per_poster; ++n) {
        calls[p].emplace_back([&, p, n] {
          if (next[p]++ != n) ++out_of_order;
          if (loop::current() != &*l) ++outside;
        });
      }
    }
    std::vector<std::thread> threads;
    for (auto& mine : calls) {
      threads.emplace_back([&l, &mine] {
        for (std::size_t i = 0; i < mine.size(); ++i) {
          l->post(mine[i]);
          if (i % 512 == 0) std::this_thread::sleep_for(std::chrono::microseconds(100));
        }
      });
    }
    l.run([&]() -> task<> {
      for (int i = 0; i < 50; ++i) {
        EXPECT_EQ(co_await loop::io(uring_request::nop()), 0) << "I/O goes on meanwhile";
      }
      co_return result<>{};
    });
    for (std::thread& t : threads) t.join();
    l.run([]() -> task<> { co_return result<>{}; });
  }
  EXPECT_EQ(next, std::vector<int>(posters, per_poster));
  EXPECT_EQ(out_of_order, 0);
  EXPECT_EQ(outside, 0);
}

TEST(LoopStress, TwoLoopsPassACompletionBackAndForth) {
  loop_thread a;
  loop_thread b;
  std::promise<void> done;
  int hops = 0;
  call ball([&] {
    if (++hops == 2'000) return done.set_value();
    (loop::current() == &*a ? b : a)->post(ball);
  });
  a->post(ball);
  done.get_future().wait();
  EXPECT_EQ(hops, 2'000);
  // A loop must outlive the posts to it: after a turn of each, neither is inside one any more.
  a.run([]() -> task<> { co_return result<>{}; });
  b.run([]() -> task<> { co_return result<>{}; });
}

}  // namespace
}  // namespace forebay
