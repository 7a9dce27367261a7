// A small HTTP server for pages that are only looked at, over libmicrohttpd, on a thread of its
// own.
//
//   listening sockets ──> one daemon each ──┐ one thread polls all of them
//                                           ├──> GET, HEAD: pages(request) ──> response
//   tick, at regular times ─────────────────┘    anything else: refused, and counted
//
// What comes from outside is bounded: connections in number, a request's header in bytes, and a
// request or an answer in time, however slowly the bytes drip; and the answers that nobody takes in
// bytes. Bodies are not read. Who asks with a Host that is neither an address, `localhost` nor one
// of `names` is refused (403): a page of somebody else's in the user's browser could otherwise read
// this one by having its own name stand for this address (DNS rebinding).
//
// What goes wrong stays here: no other thread waits for this one, and memory that is not to be had
// ends a connection.
//
// Thread-safety: `pages` and `tick` are called on the server's thread; the rest is any thread's.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "forebay/os/fd.h"

namespace forebay {

struct http_request {
  std::string_view path;
  // The value of a query argument, decoded; none if it is not there.
  std::function<std::optional<std::string_view>(const char* name)> argument;
};

struct http_response {
  std::string body;
  const char* content_type = "text/plain; charset=utf-8";
  std::string content_security_policy = "default-src 'none'";
};

struct http_statistics {
  std::uint64_t answered = 0;  // 200
  // Rubbish, bodies, methods, hosts and paths that there are not, and what took too long.
  std::uint64_t refused = 0;
  std::uint64_t ticks_failed = 0;  // times the tick threw
  std::uint32_t connections = 0;   // at present
};

class http_server {
 public:
  struct options {
    std::vector<std::string> names{};   // of this host, that a Host header may have
    unsigned connections_max = 32;      // of each socket; more wait to be accepted
    std::size_t header_bytes = 16'384;  // of a request, and of the answer's header
    unsigned request_ms_max = 10'000;   // for one request and its answer, and between two
    unsigned tick_ms = 1000;
    std::size_t bodies_bytes_max = 8u << 20;  // of all answers that are being sent
  };

  // A page; none for a path that there is not (404). May throw.
  using page_function = std::function<std::optional<http_response>(const http_request&)>;

  // Takes the sockets, which listen, and starts. Errors: ENOMEM, EINVAL for no socket or more than
  // 8 of them, of eventfd(2).
  static result<std::unique_ptr<http_server>> start(std::vector<unique_fd> sockets, options opts,
                                                    page_function pages,
                                                    std::function<void()> tick = {});
  // Ends the thread and all connections.
  ~http_server();
  http_server(const http_server&) = delete;
  http_server& operator=(const http_server&) = delete;

  http_statistics statistics() const noexcept;

 private:
  class impl;
  explicit http_server(std::unique_ptr<impl> i) noexcept;

  const std::unique_ptr<impl> impl_;
};

}  // namespace forebay
