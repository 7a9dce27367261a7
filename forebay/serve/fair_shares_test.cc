// One thread: the loop, whose completions also are the clients.
//
// Clients with much to ask beside those with little, on one loop: who is answered when. All has
// been asked before the loop begins, so the order of replies is the server's alone.
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <deque>
#include <functional>

#include "forebay/serve/test_host.h"
#include "forebay/serve/test_wire.h"

namespace forebay {
namespace {

// Serves some clients on one loop, and looks at what they have been answered between any two
// completions of the loop.
class shared_loop : public test_host {
 public:
  shared_loop() : test_host(plain_memory(), 8u << 20), loop_(std::move(*loop::create())) {
    look_.self = this;
    look_.run = [](completion& c) noexcept { static_cast<event&>(c).self->look(); };
  }

  std::size_t pin_allowance(const nbd_export&) const noexcept override { return 512; }

  struct client {
    std::uint64_t each_bytes = 0;  // of a reply
    std::uint64_t count = 0;       // of requests
    std::uint64_t received = 0;
    bytes asked;
    unique_fd socket;
    std::uint64_t replies() const { return received / each_bytes; }
    bool answered() const { return received >= count * each_bytes; }
  };

  // A client that asks for the same data again and again.
  client& add(unsigned count, std::uint32_t read_bytes) {
    auto [ours, theirs] = sockets();
    wire all;
    all.put(std::uint32_t{nbd::fixed_newstyle | nbd::no_zeroes});
    all.put(nbd_words::option(nbd::option::go, nbd_words::go_data("")).data());
    FOREBAY_ASSERT(send_all(theirs.get(), all.data()).has_value());
    served_.push_back(std::move(ours));
    wire asked;
    for (unsigned i = 0; i < count; ++i) {
      asked.put(nbd_words::request(nbd::command::read, i, 0, read_bytes).data());
    }
    return clients_.emplace_back(client{.each_bytes = 16 + read_bytes,
                                        .count = count,
                                        .asked = asked.data(),
                                        .socket = std::move(theirs)});
  }

  // Until all is answered; calls `looked` whenever something has come.
  template <typename F>
  void run(F looked) {
    looked_ = looked;
    start_.self = this;
    start_.completion::run = [](completion& c) noexcept {
      shared_loop& me = *static_cast<event&>(c).self;
      for (unique_fd& s : me.served_) FOREBAY_ASSERT(me.serve(&s).spawn(me.group_));
      me.loop_->ready(me.look_);
    };
    loop_->post(start_);
    loop_->run();
    for (const client& c : clients_) EXPECT_EQ(c.received, c.count * c.each_bytes);
  }

 private:
  struct event : completion {
    shared_loop* self = nullptr;
  };

  task<> serve(unique_fd* socket) {
    {
      connection c(*this, *loop_, std::move(*socket));
      EXPECT_TRUE(c.usable());
      co_await c.run();
    }
    if (++ended_ == clients_.size()) loop_->stop();
    co_return result<>{};
  }

  // What the handshake says: a greeting, two pieces of information about the export, an end.
  static constexpr std::uint64_t handshake_bytes = 18 + (20 + 12) + (20 + 14) + 20;

  // They ask when all have been let in.
  void look() noexcept {
    const std::uint64_t before = std::exchange(all_received_, 0);
    for (client& c : clients_) {
      ssize_t n = 0;
      while ((n = ::recv(c.socket.get(), some_.data(), some_.size(), MSG_DONTWAIT)) > 0) {
        c.received += static_cast<std::uint64_t>(n);
      }
      all_received_ += c.received;
    }
    if (asked_) {
      if (all_received_ != before) looked_();
      const auto over = [](const client& c) { return c.answered(); };
      if (!std::all_of(clients_.begin(), clients_.end(), over)) return loop_->ready(look_);
      for (client& c : clients_) ::shutdown(c.socket.get(), SHUT_WR);
      return;
    }
    if (all_received_ == clients_.size() * handshake_bytes) {
      asked_ = true;
      for (client& c : clients_) {
        c.received = 0;
        FOREBAY_ASSERT(send_all(c.socket.get(), c.asked).has_value());
      }
    }
    loop_->ready(look_);
  }

  std::unique_ptr<loop> loop_;
  std::deque<client> clients_;
  std::deque<unique_fd> served_;
  std::array<std::byte, 1u << 18> some_{};
  std::uint64_t all_received_ = 0;
  bool asked_ = false;
  std::size_t ended_ = 0;
  std::function<void()> looked_;
  task_group group_;
  event start_;
  event look_;
};

// So small that a socket holds the replies to all that is received at a time.
constexpr std::uint32_t small_read_bytes = 512;
// How many of them have their answer in a turn, at most.
constexpr std::uint64_t turn_replies = 40;

TEST(FairShares, OneRequestIsAnsweredBesideManyThousand) {
  shared_loop l;
  shared_loop::client& a = l.add(2'000, small_read_bytes);
  shared_loop::client& b = l.add(2'000, small_read_bytes);
  shared_loop::client& light = l.add(1, small_read_bytes);
  bool seen = false;
  l.run([&] {
    if (!light.answered() || std::exchange(seen, true)) return;
    EXPECT_LE(a.replies(), 2 * turn_replies);
    EXPECT_LE(b.replies(), 2 * turn_replies);
  });
  EXPECT_TRUE(seen);
}

TEST(FairShares, ThoseWhoAskForTheSameGetTheSameAtAnyTime) {
  shared_loop l;
  shared_loop::client& a = l.add(1'500, small_read_bytes);
  shared_loop::client& b = l.add(1'500, small_read_bytes);
  shared_loop::client& c = l.add(1'500, small_read_bytes);
  unsigned looks = 0;
  l.run([&] {
    const auto [least, most] = std::minmax({a.replies(), b.replies(), c.replies()});
    EXPECT_LE(most - least, 3 * turn_replies);
    ++looks;
  });
  EXPECT_GE(looks, 1'500 / turn_replies) << "they came in one piece";
}

// Bytes, not requests, are what is shared: a client that asks for much at a time does not get more
// for it than those who ask for little, but for what requests cost beside their data.
TEST(FairShares, LargeRequestsGetNoMoreThanSmallOnes) {
  shared_loop l;
  shared_loop::client& small = l.add(3'000, 4096);
  shared_loop::client& large = l.add(60, 1u << 20);
  bool seen = false;
  l.run([&] {
    if (!small.answered() || std::exchange(seen, true)) return;
    // 3,000 requests of 4 KiB are charged as 36 MiB. At times the large one waits for its socket.
    EXPECT_GE(large.received, 9ull << 20);
    EXPECT_LE(large.received, 44ull << 20);
  });
  EXPECT_TRUE(seen);
}

}  // namespace
}  // namespace forebay
