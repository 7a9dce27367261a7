#include "forebay/serve/connection.h"

#include "forebay/os/socket.h"

namespace forebay {
namespace {

// Ends a connection whose handshake takes too long.
struct deadline : completion {
  explicit deadline(int socket) noexcept : fd(socket) {
    run = [](completion& c) noexcept {
      auto& d = static_cast<deadline&>(c);
      d.expired = true;
      shutdown_socket(d.fd);
    };
    when.done = this;
  }
  int fd;
  bool expired = false;
  timer when;
};

}  // namespace

connection::connection(connection_host& host, loop& on, unique_fd socket) noexcept
    : host_(host),
      loop_(on),
      socket_(std::move(socket)),
      in_(socket_.get(), host.memory()),
      out_(on, socket_.get(), host.memory()) {
  set_no_delay(socket_.get());
}

connection::~connection() = default;

void connection::stop() noexcept {
  stopping_ = true;
  shutdown_receiving(socket_.get());
}

void connection::abandon() noexcept { shutdown_socket(socket_.get()); }

task<> connection::run() {
  deadline limit(socket_.get());
  limit.when.deadline_ns = monotonic_clock::now_ns() + handshake_timeout_ns;
  loop_.start(limit.when);
  result<> r = co_await handshake();
  // A timer that went off at this moment has a record queued, which must run before it goes.
  if (!loop_.cancel(limit.when)) {
    while (!limit.expired) co_await yield_turn();
  }
  if (r) r = co_await transmit();
  co_await tasks_.idle();
  out_.kick();
  while (!out_.idle()) {
    co_await out_.progress().wait_unless([this]() noexcept { return out_.idle(); });
  }
  co_return r;
}

}  // namespace forebay
