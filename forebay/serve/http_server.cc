#include "forebay/serve/http_server.h"

#include <microhttpd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <list>
#include <new>
#include <thread>

#include "forebay/base/stats.h"
#include "forebay/os/address.h"
#include "forebay/os/clock.h"
#include "forebay/os/poll.h"
#include "forebay/os/socket.h"

namespace forebay {
namespace {

constexpr std::size_t sockets_max = 8;
// Times that a daemon has something to do and does nothing of it, such as to accept without a free
// descriptor, before it is left alone for a while.
constexpr unsigned idle_rounds_max = 64;
constexpr int pause_ms = 100;

// Without a port, and without the brackets of an IPv6 address.
std::string_view host_of(std::string_view header) noexcept {
  if (header.starts_with('[')) return header.substr(1, header.find(']') - 1);
  return header.substr(0, header.rfind(':'));
}

// Names of hosts are the same in any case (RFC 4343). Of ASCII.
bool same_name(std::string_view a, std::string_view b) noexcept {
  const auto lower = [](char c) noexcept {
    return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  };
  return std::ranges::equal(a, b, {}, lower, lower);
}

}  // namespace

class http_server::impl {
 public:
  impl(options opts, page_function pages, std::function<void()> tick)
      : opts_(std::move(opts)), pages_(std::move(pages)), tick_(std::move(tick)) {}
  ~impl();

  result<> start(std::vector<unique_fd> sockets);
  http_statistics statistics() const noexcept {
    // relaxed: a statistic.
    return {value_of(answered_), value_of(refused_), value_of(ticks_failed_),
            connections_.load(std::memory_order_relaxed)};
  }

 private:
  // A connection; on the server's thread only.
  struct client {
    MHD_Connection* connection;
    std::uint64_t since_ns;  // its arrival, or the end of its last request
    bool was_answered = false;
  };

  void run();
  void cut_off_late_ones(std::uint64_t now) noexcept;
  bool is_our_name(const char* header) const;
  bool refuse(MHD_Connection* c, std::string_view method, MHD_Result& sent);
  MHD_Result answer(MHD_Connection* c, const char* path);
  MHD_Result send(MHD_Connection* c, unsigned status, http_response r);

  static MHD_Result on_request(void* self, MHD_Connection* c, const char* url, const char* method,
                               const char* version, const char* upload, std::size_t* upload_bytes,
                               void** state) noexcept;
  static void on_completed(void* self, MHD_Connection* c, void** state,
                           MHD_RequestTerminationCode why) noexcept;
  static void on_connection(void* self, MHD_Connection* c, void** state,
                            MHD_ConnectionNotificationCode what) noexcept;

  // A body that is being sent.
  struct outgoing {
    impl* self;
    std::string body;
  };
  static void on_sent(void* what) noexcept;

  const options opts_;
  const page_function pages_;
  const std::function<void()> tick_;
  std::vector<MHD_Daemon*> daemons_;
  std::vector<int> events_;  // a descriptor of each daemon's, and stop_
  unique_fd stop_;
  std::thread thread_;
  std::atomic<bool> stopping_{false};
  // The thread's.
  std::list<client> clients_;
  std::size_t body_bytes_ = 0;  // of all answers that are being sent
  std::uint64_t events_seen_ = 0;
  std::atomic<std::uint64_t> answered_{0};
  std::atomic<std::uint64_t> refused_{0};
  std::atomic<std::uint64_t> ticks_failed_{0};
  std::atomic<std::uint32_t> connections_{0};
};

result<> http_server::impl::start(std::vector<unique_fd> sockets) {
  if (sockets.empty() || sockets.size() > sockets_max) return fail(EINVAL);
  auto stop = make_event_fd();
  if (!stop) return fail(stop.error());
  stop_ = std::move(*stop);
  for (unique_fd& socket : sockets) {
    MHD_Daemon* const d = MHD_start_daemon(
        MHD_USE_EPOLL, 0, nullptr, nullptr, &on_request, this,                     //
        MHD_OPTION_LISTEN_SOCKET, socket.get(),                                    //
        MHD_OPTION_CONNECTION_LIMIT, opts_.connections_max,                        //
        MHD_OPTION_CONNECTION_TIMEOUT, std::max(opts_.request_ms_max / 1000, 1u),  //
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, opts_.header_bytes,                    //
        MHD_OPTION_STRICT_FOR_CLIENT, 1,                                           //
        MHD_OPTION_NOTIFY_COMPLETED, &on_completed, this,                          //
        MHD_OPTION_NOTIFY_CONNECTION, &on_connection, this,                        //
        MHD_OPTION_END);
    if (d == nullptr) return fail(ENOMEM);
    static_cast<void>(socket.release());  // the daemon's
    daemons_.push_back(d);
    events_.push_back(MHD_get_daemon_info(d, MHD_DAEMON_INFO_EPOLL_FD)->epoll_fd);
  }
  events_.push_back(stop_.get());
  thread_ = std::thread([this] { run(); });
  return {};
}

http_server::impl::~impl() {
  stopping_ = true;
  if (thread_.joinable()) {
    signal_event_fd(stop_.get());
    thread_.join();
  }
  for (MHD_Daemon* const d : daemons_) MHD_stop_daemon(d);
}

void http_server::impl::run() {
  const std::uint64_t tick_ns = std::uint64_t{opts_.tick_ms} * 1'000'000;
  std::uint64_t next_tick = monotonic_clock::now_ns();
  unsigned idle_rounds = 0;
  while (!stopping_) {
    const std::uint64_t now = monotonic_clock::now_ns();
    if (now >= next_tick) {
      cut_off_late_ones(now);
      try {
        if (tick_) tick_();
      } catch (const std::exception&) {
        // Out of memory: the next one may have better luck.
        add_to(ticks_failed_);
      }
      next_tick = std::max(next_tick + tick_ns, now);
    }
    std::uint64_t wait_ms = (std::max(next_tick, now) - now) / 1'000'000 + 1;
    for (MHD_Daemon* const d : daemons_) {
      MHD_UNSIGNED_LONG_LONG soon = 0;
      if (MHD_get_timeout(d, &soon) == MHD_YES) wait_ms = std::min<std::uint64_t>(wait_ms, soon);
    }
    const std::uint64_t seen = events_seen_;
    const auto ready = wait_readable(events_, static_cast<int>(wait_ms));
    for (MHD_Daemon* const d : daemons_) MHD_run(d);
    const bool idle = ready && *ready != 0 && events_seen_ == seen;
    idle_rounds = idle ? idle_rounds + 1 : 0;
    if (idle_rounds >= idle_rounds_max) {
      const int stop = stop_.get();
      static_cast<void>(wait_readable({&stop, 1}, pause_ms));
    }
  }
}

void http_server::impl::cut_off_late_ones(std::uint64_t now) noexcept {
  for (const client& c : clients_) {
    if (now - c.since_ns < std::uint64_t{opts_.request_ms_max} * 1'000'000) continue;
    // The daemon finds the connection at its end.
    shutdown_socket(
        MHD_get_connection_info(c.connection, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd);
  }
}

bool http_server::impl::is_our_name(const char* header) const {
  if (header == nullptr) return true;  // HTTP/1.0; no browser leaves it out
  const std::string host(host_of(header));
  return same_name(host, "localhost") || parse_ipv4(host) || parse_ipv6(host) ||
         std::ranges::any_of(opts_.names,
                             [&](const std::string& name) { return same_name(host, name); });
}

void http_server::impl::on_sent(void* what) noexcept {
  const std::unique_ptr<outgoing> done(static_cast<outgoing*>(what));
  done->self->body_bytes_ -= done->body.size();
}

MHD_Result http_server::impl::send(MHD_Connection* c, unsigned status, http_response r) {
  // However many there are who do not take theirs.
  if (r.body.size() > opts_.bodies_bytes_max - std::min(opts_.bodies_bytes_max, body_bytes_)) {
    return MHD_NO;
  }
  auto owner = std::make_unique<outgoing>(outgoing{this, std::move(r.body)});
  // It does not write: the parameter is a plain pointer for historical reasons.
  MHD_Response* const out = MHD_create_response_from_buffer_with_free_callback_cls(
      owner->body.size(), const_cast<char*>(owner->body.data()), &on_sent, owner.get());
  if (out == nullptr) return MHD_NO;
  body_bytes_ += owner->body.size();
  static_cast<void>(owner.release());
  MHD_add_response_header(out, "Content-Type", r.content_type);
  MHD_add_response_header(out, "Content-Security-Policy", r.content_security_policy.c_str());
  MHD_add_response_header(out, "Cache-Control", "no-store");
  MHD_add_response_header(out, "X-Content-Type-Options", "nosniff");
  MHD_add_response_header(out, "Referrer-Policy", "no-referrer");
  if (status == MHD_HTTP_METHOD_NOT_ALLOWED) MHD_add_response_header(out, "Allow", "GET, HEAD");
  const MHD_Result sent = MHD_queue_response(c, status, out);
  MHD_destroy_response(out);
  if (sent == MHD_YES) add_to(status == MHD_HTTP_OK ? answered_ : refused_);
  return sent;
}

// Whether there is reason to refuse the request whatever its path; if so it is done, and `sent`
// says whether that could be said.
bool http_server::impl::refuse(MHD_Connection* c, std::string_view method, MHD_Result& sent) {
  const auto header = [&](const char* name) {
    return MHD_lookup_connection_value(c, MHD_HEADER_KIND, name);
  };
  if (method != "GET" && method != "HEAD") {
    sent = send(c, MHD_HTTP_METHOD_NOT_ALLOWED, {.body = "There is only GET and HEAD here.\n"});
  } else if (header("Content-Length") != nullptr || header("Transfer-Encoding") != nullptr) {
    sent = send(c, MHD_HTTP_BAD_REQUEST, {.body = "A request has no body here.\n"});
  } else if (!is_our_name(header("Host"))) {
    sent = send(c, MHD_HTTP_FORBIDDEN, {.body = "Use an address, or the name given to --http.\n"});
  } else {
    return false;
  }
  return true;
}

MHD_Result http_server::impl::answer(MHD_Connection* c, const char* path) {
  const http_request request{
      path, [c](const char* name) -> std::optional<std::string_view> {
        const char* const v = MHD_lookup_connection_value(c, MHD_GET_ARGUMENT_KIND, name);
        return v == nullptr ? std::nullopt : std::optional<std::string_view>(v);
      }};
  std::optional<http_response> page = pages_(request);
  if (!page) return send(c, MHD_HTTP_NOT_FOUND, {.body = "There is no such page.\n"});
  return send(c, MHD_HTTP_OK, std::move(*page));
}

// Called with the header of a request, and again at its end. What is refused is so in the first
// call, and the connection ends with the answer: no body is waited for. What has a page is answered
// in the second, and more may come.
MHD_Result http_server::impl::on_request(void* self, MHD_Connection* c, const char* url,
                                         const char* method, const char* /*version*/,
                                         const char* /*upload*/, std::size_t* upload_bytes,
                                         void** state) noexcept {
  impl& s = *static_cast<impl*>(self);
  ++s.events_seen_;
  if (*upload_bytes != 0) return MHD_NO;
  try {
    if (*state != nullptr) return s.answer(c, url);
    MHD_Result sent = MHD_YES;
    if (!s.refuse(c, method, sent)) *state = self;
    return sent;
  } catch (const std::exception&) {
    return MHD_NO;
  }
}

void http_server::impl::on_completed(void* self, MHD_Connection* c, void** /*state*/,
                                     MHD_RequestTerminationCode why) noexcept {
  ++static_cast<impl*>(self)->events_seen_;
  const MHD_ConnectionInfo* const info =
      MHD_get_connection_info(c, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
  auto* const who = info == nullptr ? nullptr : static_cast<client*>(info->socket_context);
  if (who == nullptr) return;
  who->since_ns = monotonic_clock::now_ns();
  if (why == MHD_REQUEST_TERMINATED_COMPLETED_OK) who->was_answered = true;
}

void http_server::impl::on_connection(void* self, MHD_Connection* c, void** state,
                                      MHD_ConnectionNotificationCode what) noexcept {
  impl& s = *static_cast<impl*>(self);
  ++s.events_seen_;
  if (what == MHD_CONNECTION_NOTIFY_STARTED) {
    try {
      s.clients_.push_back({c, monotonic_clock::now_ns()});
      *state = &s.clients_.back();
    } catch (const std::bad_alloc&) {
      // Not watched: the daemon's own limit on idle connections holds for it.
      *state = nullptr;
    }
    s.connections_.fetch_add(1, std::memory_order_relaxed);  // relaxed: a statistic
    return;
  }
  s.connections_.fetch_sub(1, std::memory_order_relaxed);  // relaxed: a statistic
  if (auto* const who = static_cast<client*>(*state); who != nullptr) {
    if (!who->was_answered) add_to(s.refused_);
    s.clients_.remove_if([who](const client& one) { return &one == who; });
  }
}

http_server::http_server(std::unique_ptr<impl> i) noexcept : impl_(std::move(i)) {}
http_server::~http_server() = default;
http_statistics http_server::statistics() const noexcept { return impl_->statistics(); }

result<std::unique_ptr<http_server>> http_server::start(std::vector<unique_fd> sockets,
                                                        options opts, page_function pages,
                                                        std::function<void()> tick) {
  auto made = std::make_unique<impl>(std::move(opts), std::move(pages), std::move(tick));
  if (auto r = made->start(std::move(sockets)); !r) return fail(r.error());
  return std::unique_ptr<http_server>(new http_server(std::move(made)));
}

}  // namespace forebay
