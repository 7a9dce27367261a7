#include "tools/forebay/statistics_client.h"

#include <algorithm>
#include <array>
#include <span>

#include "forebay/os/socket.h"
#include "forebay/serve/nbd_protocol.h"
#include "tools/forebay/command.h"

namespace forebay::tool {
namespace {

constexpr unsigned answer_timeout_ms = 5000;
constexpr std::uint32_t max_statistics_bytes = 64u << 20;

// A client of the server's own NBD option for statistics (see nbd_protocol.h).
class statistics_client {
 public:
  explicit statistics_client(unique_fd socket) noexcept : socket_(std::move(socket)) {}

  result<> handshake() {
    std::array<std::byte, 18> greeting;
    if (auto r = receive_all(socket_.get(), greeting); !r) return r;
    if (nbd::load<std::uint64_t>(greeting.data()) != nbd::init_magic ||
        nbd::load<std::uint64_t>(greeting.data() + 8) != nbd::option_magic) {
      return fail(errc::protocol);
    }
    nbd::message<4> flags;
    flags.put(std::uint32_t{nbd::fixed_newstyle | nbd::no_zeroes});
    return send_all(socket_.get(), {flags.data(), flags.size()});
  }

  // The statistics as JSON text. Error: ENOTSUP from a server that is not a forebay.
  result<std::string> ask() {
    if (auto r = send_option(nbd::option::statistics); !r) return fail(r.error());
    std::string text;
    for (;;) {
      auto told = receive_reply(max_statistics_bytes);
      if (!told) return fail(told.error());
      if (told->type == nbd::option_reply::ack) return text;
      if (told->type != nbd::option_reply::statistics) return fail(ENOTSUP);
      text = std::move(told->payload);
    }
  }

  // Empty when the changes are made, else why the server refuses. Error: ENOTSUP from one that
  // cannot.
  result<std::string> tune(const std::string& changes) {
    if (auto r = send_option(nbd::option::tune, changes); !r) return fail(r.error());
    auto told = receive_reply(nbd::max_string_bytes);
    if (!told) return fail(told.error());
    if (told->type == nbd::option_reply::ack) return std::string();
    if (told->type == nbd::option_reply::error_unsupported) return fail(ENOTSUP);
    return told->payload.empty() ? std::string("refused") : std::move(told->payload);
  }

  void leave() { static_cast<void>(send_option(nbd::option::abort)); }

 private:
  struct reply {
    nbd::option_reply type;
    std::string payload;
  };

  // The next reply to an option, whose payload is not longer than that.
  result<reply> receive_reply(std::uint32_t bytes_max) {
    std::array<std::byte, 20> header;
    if (auto r = receive_all(socket_.get(), header); !r) return fail(r.error());
    const auto type = static_cast<nbd::option_reply>(nbd::load<std::uint32_t>(header.data() + 12));
    const auto length = nbd::load<std::uint32_t>(header.data() + 16);
    if (nbd::load<std::uint64_t>(header.data()) != nbd::option_reply_magic || length > bytes_max) {
      return fail(errc::protocol);
    }
    reply told{type, std::string(length, '\0')};
    if (auto r = receive_all(socket_.get(), std::as_writable_bytes(std::span(told.payload))); !r) {
      return fail(r.error());
    }
    return told;
  }

  result<> send_option(nbd::option which, const std::string& payload = {}) {
    nbd::message<16> m;
    m.put(nbd::option_magic)
        .put(static_cast<std::uint32_t>(which))
        .put(static_cast<std::uint32_t>(payload.size()));
    if (auto r = send_all(socket_.get(), {m.data(), m.size()}); !r) return r;
    return send_all(socket_.get(), std::as_bytes(std::span(payload)));
  }

  unique_fd socket_;
};

endpoint endpoint_of(const std::string& where) {
  if (auto tcp = endpoint::parse_tcp(where); tcp && where.find('/') == std::string::npos) {
    return *tcp;
  }
  endpoint e;
  e.path = where;
  return e;
}

template <typename Talk>
result<std::string> talk_to(const endpoint& where, Talk talk) {
  auto socket = connect_to(where);
  if (!socket) return fail(socket.error());
  set_receive_timeout(socket->get(), answer_timeout_ms);
  statistics_client client(std::move(*socket));
  if (auto r = client.handshake(); !r) return fail(r.error());
  auto text = talk(client);
  client.leave();
  return text;
}

std::string problem(const std::string& where, std::error_code e) {
  if (e == std::errc::connection_refused) {
    return fmt::format("{}: nobody listens there any more; is the server running?", where);
  }
  if (e == std::errc::resource_unavailable_try_again) {
    return fmt::format("{}: does not answer; it is no forebay server, or one that is stuck", where);
  }
  if (e == std::errc::no_such_file_or_directory) {
    return fmt::format("{}: no such socket; name the one that forebay serve was given", where);
  }
  if (e == std::errc::not_supported || e == std::errc::operation_not_supported ||
      e == errc::protocol || e == errc::end_of_stream) {
    return fmt::format("{}: not a forebay server, or one that is ending", where);
  }
  return fmt::format("{}: {}", where, e.message());
}

}  // namespace

std::expected<nlohmann::ordered_json, std::string> ask_statistics(const std::string& where) {
  const auto text = talk_to(endpoint_of(where), [](statistics_client& c) { return c.ask(); });
  if (!text) return std::unexpected(problem(where, text.error()));
  return nlohmann::ordered_json::parse(*text);
}

std::string tune_server(const std::string& where, const std::string& changes) {
  const auto refusal =
      talk_to(endpoint_of(where), [&](statistics_client& c) { return c.tune(changes); });
  if (!refusal) return problem(where, refusal.error());
  return refusal->empty() ? std::string() : fmt::format("{}: {}", where, *refusal);
}

}  // namespace forebay::tool
