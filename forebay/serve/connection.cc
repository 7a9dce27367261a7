#include "forebay/serve/connection.h"

#include "forebay/os/socket.h"

namespace forebay {
namespace {

// Ends a connection whose handshake takes too long.
struct deadline : completion {
  deadline(connection_host& of, int socket) noexcept : host(of), fd(socket) {
    run = [](completion& c) noexcept {
      auto& d = static_cast<deadline&>(c);
      d.expired = true;
      d.host.client_failed(client_failure::handshake_timeout, d.fd, "no end of the handshake");
      shutdown_socket(d.fd);
    };
    when.done = this;
  }
  connection_host& host;
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
  set_keep_alive(socket_.get());
}

connection::~connection() = default;

void connection::stop() noexcept {
  stopping_ = true;
  shutdown_receiving(socket_.get());
  place_left_.wake_all();
}

void connection::abandon() noexcept {
  stopping_ = true;
  shutdown_socket(socket_.get());
  place_left_.wake_all();
}

// The time since something last moved is as exact as the calls of this are frequent.
void connection::check_time(std::uint64_t now_ns) noexcept {
  if (session_.exported == nullptr || failed_) return;  // in the handshake, which has its own limit
  const connection_settings& limits = host_.settings();
  const auto still_for = [now_ns](progress& p, std::uint64_t bytes, bool waiting) {
    if (!waiting || p.bytes != bytes || p.since_ns == 0) p = {bytes, now_ns};
    return now_ns - p.since_ns;
  };
  const auto give_up = [this](client_failure why, const char* text) {
    failed_ = true;
    host_.client_failed(why, socket_.get(), text);
    abandon();
  };
  const std::uint64_t sent = out_.sent_bytes();
  const bool idle = at_rest_ && out_.idle() && tasks_.running() == 0;
  const std::uint64_t stuck_ns = still_for(sent_, sent, !out_.idle());
  const std::uint64_t idle_ns = still_for(moved_, sent + in_.received_bytes(), idle);
  if (limits.send_timeout_ns != 0 && stuck_ns >= limits.send_timeout_ns) {
    give_up(client_failure::send_timeout, "it does not receive its replies");
  } else if (limits.idle_timeout_ns != 0 && idle_ns >= limits.idle_timeout_ns) {
    give_up(client_failure::idle_timeout, "it has been idle for too long");
  }
}

task<> connection::run() {
  deadline limit(host_, socket_.get());
  limit.when.deadline_ns = monotonic_clock::now_ns() + host_.settings().handshake_timeout_ns;
  loop_.start(limit.when);
  result<> r = co_await handshake();
  // A timer that went off at this moment has a record queued, which must run before it goes.
  if (!loop_.cancel(limit.when)) {
    while (!limit.expired) co_await yield_turn();
  }
  loop_.turns().join(turn_);
  if (r) {
    client_.enter(session_.exported->clients(), client_door::nbd, socket_.get());
    r = co_await transmit();
  }
  // Who has said goodbye has his requests done; for who is gone nobody waits.
  if (!r) stopping_ = true;
  co_await tasks_.idle();
  loop_.turns().leave(turn_);
  out_.kick();
  while (!out_.idle()) co_await out_.next_idle();
  if (tls_ && !out_.broken()) tls_->close(socket_.get());
  co_return r;
}

}  // namespace forebay
