// reply_queue and receive_buffer over socket pairs, in a loop on the test's thread.

#include "forebay/serve/reply_queue.h"

#include <atomic>

#include "forebay/os/fd_passing.h"
#include "forebay/serve/receive_buffer.h"
#include "forebay/serve/test_server.h"

namespace forebay {
namespace {

// Whose other end does not wait for ever.
struct bounded_sockets {
  bounded_sockets() {
    socket_pair made = *make_socket_pair();
    ours = std::move(made.first);
    theirs = std::move(made.second);
    const timeval limit{20, 0};
    ::setsockopt(theirs.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  }
  unique_fd ours;
  unique_fd theirs;
};

// Runs the task that `make` gives on a loop to its end.
template <typename Make>
void run_on_loop(Make make) {
  struct start : completion {
    Make* make = nullptr;
    loop* on = nullptr;
    task_group group;
    static task<> run_all(start* s) {
      co_await (*s->make)(*s->on);
      s->on->stop();
      co_return result<>{};
    }
  };
  auto on = loop::create();
  FOREBAY_ASSERT(on.has_value());
  start s;
  s.make = &make;
  s.on = on->get();
  s.completion::run = [](completion& c) noexcept {
    auto& self = static_cast<start&>(c);
    FOREBAY_ASSERT(start::run_all(&self).spawn(self.group));
  };
  (*on)->post(s);
  (*on)->run();
}

std::unique_ptr<request_memory> make_request_memory(request_memory::options opts = {}) {
  auto made = request_memory::create(opts);
  FOREBAY_ASSERT(made.has_value());
  return std::move(*made);
}

void append(reply_queue& q, const bytes& data, std::size_t n) {
  ASSERT_TRUE(q.room({.iovecs = 1, .pins = 0, .bytes = n}));
  q.append(data.data(), n);
}

task<> wait_until_idle(reply_queue& q) {
  while (!q.idle()) {
    co_await q.next_idle();
  }
  co_return result<>{};
}

std::unique_ptr<arena> make_arena() {
  auto a = arena::create({.bytes = 4 * arena::min_bytes, .huge_pages = false});
  FOREBAY_ASSERT(a.has_value());
  return std::move(*a);
}

std::vector<page_ref> make_pages(arena& a, std::size_t n) {
  std::vector<page_ref> pages;
  for (std::size_t i = 0; i < n; ++i) {
    page* p = a.allocate(0);
    FOREBAY_ASSERT(p != nullptr);
    pages.push_back(page_ref::adopt(*p));
    std::memset(p->data(), static_cast<int>(i + 1), page_bytes);
  }
  return pages;
}

// Receives `n` bytes in pieces of `step`.
bytes receive_slowly(int fd, std::size_t n, std::size_t step) {
  bytes all(n);
  std::size_t at = 0;
  while (at < n) {
    const ssize_t got = ::recv(fd, all.data() + at, std::min(step, n - at), 0);
    if (got <= 0) break;
    at += static_cast<std::size_t>(got);
  }
  all.resize(at);
  return all;
}

TEST(ReplyQueue, SendsWhatWasAppendedInOrder) {
  bounded_sockets s;
  run_on_loop([&](loop& on) -> task<> {
    auto own = make_request_memory();
    reply_queue q(on, s.ours.get(), *own);
    EXPECT_TRUE(q.idle());
    for (const char* text : {"one ", "two ", "three"}) append(q, to_bytes(text), 4);
    q.append(nullptr, 0);
    EXPECT_FALSE(q.idle());
    q.kick();
    q.kick();
    co_await wait_until_idle(q);
    EXPECT_EQ(q.sent_bytes(), 12u);
    EXPECT_FALSE(q.broken());
    co_return result<>{};
  });
  EXPECT_EQ(receive_slowly(s.theirs.get(), 12, 12), to_bytes("one two thre"));
}

TEST(ReplyQueue, KickWithNothingToSendEnds) {
  bounded_sockets s;
  run_on_loop([&](loop& on) -> task<> {
    auto own = make_request_memory();
    reply_queue q(on, s.ours.get(), *own);
    q.kick();
    EXPECT_FALSE(q.idle());
    co_await wait_until_idle(q);
    co_return result<>{};
  });
}

// More than fits a socket's buffer, more headers and more segments than fit one batch, copies that
// are longer than a batch's room, pages between them.
TEST(ReplyQueue, ManyBatchesWithPartialSendsArriveWhole) {
  bounded_sockets s;
  const int small = 8192;
  ::setsockopt(s.ours.get(), SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
  auto memory = make_arena();
  const std::size_t free_before = memory->free_pages();
  std::mt19937_64 rng(1);
  bytes expected;
  bytes received;
  std::size_t total = 0;
  {
    std::vector<page_ref> pages = make_pages(*memory, 300);
    std::vector<bytes> copies;
    for (unsigned i = 0; i < 2500; ++i) copies.push_back(random_bytes(rng, 1 + i % 40));
    for (unsigned i = 0; i < 10; ++i) copies.push_back(random_bytes(rng, 3000 + i * 3000));
    std::size_t next_page = 0;
    for (std::size_t i = 0; i < copies.size(); ++i) {
      expected.insert(expected.end(), copies[i].begin(), copies[i].end());
      if (i % 8 == 0 && next_page < pages.size()) {
        const std::byte* p = pages[next_page++]->data();
        expected.insert(expected.end(), p + 17, p + page_bytes);
      }
    }
    total = expected.size();
    std::thread peer([&] { received = receive_slowly(s.theirs.get(), total, 5000); });
    run_on_loop([&](loop& on) -> task<> {
      auto own = make_request_memory();
      reply_queue q(on, s.ours.get(), *own);
      std::size_t at = 0;
      for (std::size_t i = 0; i < copies.size(); ++i) {
        for (std::size_t from = 0; from < copies[i].size(); from += reply_queue::most.bytes) {
          const std::size_t n = std::min(copies[i].size() - from, reply_queue::most.bytes);
          while (!q.room({.iovecs = 1, .pins = 0, .bytes = n})) {
            q.kick();
            co_await q.next_progress();
          }
          q.append(copies[i].data() + from, n);
        }
        if (i % 8 == 0 && at < pages.size()) {
          while (!q.room({.iovecs = 1, .pins = 1, .bytes = 0})) {
            q.kick();
            co_await q.next_progress();
          }
          q.append_pages({&pages[at++], 1}, 17, page_bytes - 17);
        }
        if (i == 100) q.kick();
      }
      q.kick();
      co_await wait_until_idle(q);
      EXPECT_EQ(q.pinned_pages(), 0u);
      EXPECT_EQ(q.sent_bytes(), total);
      co_return result<>{};
    });
    peer.join();
    for (const page_ref& p : pages) EXPECT_FALSE(p);
  }
  EXPECT_EQ(received.size(), expected.size());
  EXPECT_TRUE(same_bytes(received, expected));
  EXPECT_EQ(memory->free_pages(), free_before);
}

TEST(ReplyQueue, PagesInOneCallAreCutAtBothEnds) {
  bounded_sockets s;
  auto memory = make_arena();
  std::vector<page_ref> pages = make_pages(*memory, 3);
  run_on_loop([&](loop& on) -> task<> {
    auto own = make_request_memory();
    reply_queue q(on, s.ours.get(), *own);
    EXPECT_TRUE(q.room({.iovecs = 3, .pins = 3, .bytes = 0}));
    q.append_pages(pages, 4000, 96 + 4096 + 5);
    q.kick();
    co_await wait_until_idle(q);
    co_return result<>{};
  });
  bytes expected(96, std::byte{1});
  expected.insert(expected.end(), 4096, std::byte{2});
  expected.insert(expected.end(), 5, std::byte{3});
  EXPECT_EQ(receive_slowly(s.theirs.get(), expected.size(), 65536), expected);
}

TEST(ReplyQueue, PeerThatLeavesBreaksItAndFreesThePins) {
  bounded_sockets s;
  auto memory = make_arena();
  const std::size_t free_before = memory->free_pages();
  run_on_loop([&](loop& on) -> task<> {
    auto own = make_request_memory();
    reply_queue q(on, s.ours.get(), *own);
    std::vector<page_ref> pages = make_pages(*memory, 200);
    EXPECT_TRUE(q.room({.iovecs = 200, .pins = 200, .bytes = 0}));
    q.append_pages(pages, 0, pages.size() * page_bytes);
    q.kick();
    co_await sleep_for(20'000'000);  // the socket's buffer is full now
    EXPECT_FALSE(q.idle());
    const bytes more(10000);
    append(q, more, more.size());
    s.theirs.reset();
    co_await wait_until_idle(q);
    EXPECT_TRUE(q.broken());
    EXPECT_FALSE(q.full());
    EXPECT_EQ(q.pinned_pages(), 0u);
    // What comes later is dropped at once.
    pages = make_pages(*memory, 2);
    append(q, more, more.size());
    q.append_pages(pages, 0, 2 * page_bytes);
    q.kick();
    EXPECT_TRUE(q.idle());
    co_return result<>{};
  });
  EXPECT_EQ(memory->free_pages(), free_before);
}

TEST(ReplyQueue, IsFullWhileManyBatchesWait) {
  bounded_sockets s;
  std::thread peer;
  run_on_loop([&](loop& on) -> task<> {
    auto own = make_request_memory();
    reply_queue q(on, s.ours.get(), *own);
    const bytes piece(4000);
    std::size_t total = 0;
    append(q, piece, piece.size());
    q.kick();
    while (!q.full()) {
      append(q, piece, piece.size());
      total += piece.size();
      EXPECT_LT(total, 4u << 20);
      if (total >= 4u << 20) break;
    }
    total += piece.size();
    peer = std::thread([fd = s.theirs.get(), total] { receive_slowly(fd, total, 65536); });
    co_await q.progress().wait_unless([&q]() noexcept { return !q.full(); });
    EXPECT_FALSE(q.full());
    co_await wait_until_idle(q);
    co_return result<>{};
  });
  peer.join();
}

// Without extra memory one batch does: more is refused while it is on its way, and only then.
TEST(ReplyQueue, OneBatchIsEnoughToGoOn) {
  bounded_sockets s;
  const int small = 8192;
  ::setsockopt(s.ours.get(), SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
  std::mt19937_64 rng(5);
  const bytes sent = random_bytes(rng, 1u << 20);
  bytes received;
  std::thread peer([&] { received = receive_slowly(s.theirs.get(), sent.size(), 7000); });
  std::size_t refusals = 0;
  run_on_loop([&](loop& on) -> task<> {
    auto own = make_request_memory({.max_clients = 1, .extra_bytes_max = 0});
    {
      reply_queue q(on, s.ours.get(), *own);
      for (std::size_t at = 0; at < sent.size();) {
        const std::size_t n = std::min<std::size_t>(sent.size() - at, 1 + rng() % 16000);
        while (!q.room({.iovecs = 1, .pins = 0, .bytes = n})) {
          EXPECT_FALSE(q.idle());
          ++refusals;
          q.kick();
          co_await q.next_progress();
        }
        q.append(sent.data() + at, n);
        at += n;
      }
      q.kick();
      co_await wait_until_idle(q);
    }
    EXPECT_EQ(own->statistics().extra_bytes, 0u);
    co_return result<>{};
  });
  peer.join();
  EXPECT_GT(refusals, 10u);
  EXPECT_TRUE(received == sent);
}

TEST(ReceiveBuffer, GoesOnWithTheSmallOneWithoutExtraMemory) {
  bounded_sockets s;
  std::mt19937_64 rng(6);
  const bytes sent = random_bytes(rng, 1u << 20);
  std::thread peer([&] { static_cast<void>(send_all(s.theirs.get(), sent)); });
  std::size_t at = 0;
  run_on_loop([&](loop&) -> task<> {
    auto own = make_request_memory({.max_clients = 1, .extra_bytes_max = 0});
    receive_buffer in(s.ours.get(), *own);
    EXPECT_FALSE(in.can_hold(receive_buffer::small_bytes + 1));
    while (at < sent.size()) {
      const std::size_t n =
          std::min<std::size_t>(sent.size() - at, 1 + rng() % receive_buffer::small_bytes);
      EXPECT_TRUE(in.can_hold(n));
      const result<> r = co_await in.fill(n);
      EXPECT_TRUE(r);
      if (!r) break;
      EXPECT_EQ(std::memcmp(in.available().data(), sent.data() + at, n), 0) << at;
      in.consume(n);
      at += n;
    }
    co_return result<>{};
  });
  s.ours.reset();
  peer.join();
  EXPECT_EQ(at, sent.size());
}

TEST(ReceiveBuffer, GrowsForPayloadAndShrinksAfterIt) {
  bounded_sockets s;
  run_on_loop([&](loop&) -> task<> {
    auto own = make_request_memory();
    receive_buffer in(s.ours.get(), *own);
    EXPECT_EQ(in.capacity(), receive_buffer::small_bytes);
    const bytes lump(64u << 10);
    EXPECT_TRUE(send_all(s.theirs.get(), lump));
    EXPECT_TRUE(in.can_hold(lump.size()));
    EXPECT_TRUE(co_await in.fill(lump.size()));
    in.consume(lump.size());
    EXPECT_EQ(in.capacity(), receive_buffer::large_bytes);
    EXPECT_EQ(own->statistics().extra_bytes, receive_buffer::large_bytes);
    const bytes little(28);
    for (int i = 0; i < 100; ++i) {
      EXPECT_TRUE(send_all(s.theirs.get(), little));
      EXPECT_TRUE(co_await in.fill(little.size()));
      in.consume(little.size());
    }
    EXPECT_EQ(in.capacity(), receive_buffer::small_bytes);
    EXPECT_EQ(own->statistics().extra_bytes, 0u);
    co_return result<>{};
  });
}

TEST(ReceiveBuffer, FillsByteByByte) {
  bounded_sockets s;
  std::mt19937_64 rng(2);
  const bytes sent = random_bytes(rng, 300);
  std::thread peer([&] {
    for (const std::byte b : sent) static_cast<void>(send_all(s.theirs.get(), {&b, 1}));
  });
  bytes got;
  run_on_loop([&](loop&) -> task<> {
    auto memory = make_request_memory();
    receive_buffer in(s.ours.get(), *memory);
    while (got.size() < sent.size()) {
      const result<> r = co_await in.fill(3);
      EXPECT_TRUE(r);
      if (!r) break;
      const auto a = in.available().first(3);
      got.insert(got.end(), a.begin(), a.end());
      in.consume(3);
    }
    EXPECT_TRUE(in.available().empty());
    EXPECT_EQ(in.received_bytes(), sent.size());
    co_return result<>{};
  });
  peer.join();
  EXPECT_EQ(got, sent);
}

// Takes of every size up to the whole buffer, across its end again and again.
TEST(ReceiveBuffer, WrapsWithoutLosingAByte) {
  bounded_sockets s;
  std::mt19937_64 rng(3);
  const bytes sent = random_bytes(rng, 5u << 20);
  std::thread peer([&] { static_cast<void>(send_all(s.theirs.get(), sent)); });
  std::size_t at = 0;
  run_on_loop([&](loop&) -> task<> {
    auto memory = make_request_memory();
    receive_buffer in(s.ours.get(), *memory);
    while (at < sent.size()) {
      std::size_t n = rng() % 3 == 0 ? 28 : 1 + rng() % receive_buffer::large_bytes;
      n = std::min(n, sent.size() - at);
      EXPECT_TRUE(in.can_hold(n));
      const result<> r = co_await in.fill(n);
      EXPECT_TRUE(r);
      if (!r) break;
      EXPECT_GE(in.available().size(), n);
      if (std::memcmp(in.available().data(), sent.data() + at, n) != 0) {
        ADD_FAILURE() << "at " << at;
        break;
      }
      in.consume(n);
      at += n;
    }
    co_return result<>{};
  });
  s.ours.reset();
  peer.join();
  EXPECT_EQ(at, sent.size());
}

TEST(ReceiveBuffer, SkipsMoreThanItHolds) {
  bounded_sockets s;
  bytes sent(1u << 20);
  sent.back() = std::byte{42};
  std::thread peer([&] { static_cast<void>(send_all(s.theirs.get(), sent)); });
  run_on_loop([&](loop&) -> task<> {
    auto memory = make_request_memory();
    receive_buffer in(s.ours.get(), *memory);
    EXPECT_TRUE(co_await in.skip(0));
    EXPECT_TRUE(co_await in.skip(sent.size() - 1));
    EXPECT_TRUE(co_await in.fill(1));
    EXPECT_EQ(in.available().front(), std::byte{42});
    co_return result<>{};
  });
  peer.join();
}

TEST(ReceiveBuffer, EndOfStreamInTheMiddle) {
  bounded_sockets s;
  ASSERT_TRUE(send_all(s.theirs.get(), to_bytes("abc")));
  s.theirs.reset();
  run_on_loop([&](loop&) -> task<> {
    auto memory = make_request_memory();
    receive_buffer in(s.ours.get(), *memory);
    const result<> r = co_await in.fill(4);
    EXPECT_FALSE(r);
    EXPECT_EQ(r.error(), errc::end_of_stream);
    EXPECT_EQ(in.available().size(), 3u);
    const result<> skipped = co_await in.skip(4);
    EXPECT_FALSE(skipped);
    co_return result<>{};
  });
}

}  // namespace
}  // namespace forebay
