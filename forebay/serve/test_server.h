// What the tests of the serve layer share: a server over memory on a unix socket, and a client that
// speaks the protocol byte by byte.
#pragma once

#include <gtest/gtest.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstring>
#include <list>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "forebay/base/test_bytes.h"
#include "forebay/block/fault_device.h"
#include "forebay/block/memory_device.h"
#include "forebay/os/test_await.h"
#include "forebay/serve/server.h"
#include "forebay/serve/test_wire.h"

namespace forebay {

// A device that somebody else owns, so that it can be looked at when the server has gone.
class lent_device final : public device {
 public:
  lent_device(device& below, device_limits limits) : below_(below), limits_(limits) {}
  const device_limits& limits() const noexcept override { return limits_; }
  void submit(bio& b) noexcept override { below_.submit(b); }
  result<file_extent> extent_at(std::uint64_t offset_bytes) const override {
    return below_.extent_at(offset_bytes);
  }

 private:
  device& below_;
  device_limits limits_;
};

// One image in memory; its device can be told to fail.
struct test_disk {
  explicit test_disk(std::uint64_t size_bytes) : memory(size_bytes), faults(memory) {}
  memory_device memory;
  fault_device faults;
};

inline export_options named(std::string name, bool write_through = false) {
  export_options o;
  o.name = std::move(name);
  o.write_through = write_through;
  return o;
}

inline bool somebody_waits_for(const rate_limit& limit) {
  return eventually([&limit] { return limit.statistics().waiting != 0; });
}

class test_server {
 public:
  explicit test_server(server_options opts = {}) {
    if (opts.cache_bytes == server_options{}.cache_bytes) opts.cache_bytes = 16u << 20;
    opts.huge_pages = false;
    auto made = server::create(opts);
    FOREBAY_ASSERT(made.has_value());
    server_ = std::move(*made);
    std::string pattern = ::testing::TempDir() + "/forebay-XXXXXX";
    FOREBAY_ASSERT(::mkdtemp(pattern.data()) != nullptr);
    directory_ = pattern;
  }
  ~test_server() {
    EXPECT_TRUE(stop());
    server_.reset();
    ::unlink(socket_path().c_str());
    ::rmdir(directory_.c_str());
  }
  test_server(const test_server&) = delete;
  test_server& operator=(const test_server&) = delete;

  test_disk& add(export_options opts, std::uint64_t size_bytes = 4u << 20, bool read_only = false) {
    test_disk& d = disks_.emplace_back(size_bytes);
    device_limits limits = d.faults.limits();
    limits.read_only = read_only;
    auto lent = std::make_unique<lent_device>(d.faults, limits);
    EXPECT_TRUE(server_->add_export(std::move(lent), std::move(opts)));
    return d;
  }

  void start() {
    auto socket = listen_unix(socket_path());
    FOREBAY_ASSERT(socket.has_value());
    server_->add_listener(std::move(*socket));
    FOREBAY_ASSERT(server_->start().has_value());
  }

  result<> stop() { return server_->shutdown(); }

  std::string socket_path() const { return directory_ + "/socket"; }
  server& get() { return *server_; }

  // Until there are so many clients.
  bool wait_for_clients(unsigned count) {
    return eventually([this, count] {
      const std::string text = server_->statistics_text();
      return text.find("\"clients\":" + std::to_string(count) + ",") != text.npos;
    });
  }

 private:
  std::list<test_disk> disks_;  // outlive the server
  std::string directory_;
  std::unique_ptr<server> server_;
};

// A blocking client; no wait of it is longer than a minute.
class raw_client : public nbd_words {
 public:
  struct option_answer {
    nbd::option which{};
    nbd::option_reply type{};
    bytes payload;
    std::string text() const {
      return {reinterpret_cast<const char*>(payload.data()), payload.size()};
    }
  };
  struct answer {
    std::uint64_t cookie = 0;
    std::uint64_t offset = 0;  // of the request, where the headers are extended
    std::uint32_t error = 0;
    bool structured = false;
    bool done = true;
    nbd::chunk type = nbd::chunk::none;
    bytes payload;  // a chunk's, or the data of a simple reply to a read
  };

  // What the transmission is to have.
  enum class headers { simple, structured, extended };

  explicit raw_client(const test_server& s) {
    endpoint at;
    at.path = s.socket_path();
    auto socket = connect_to(at);
    FOREBAY_ASSERT(socket.has_value());
    use(std::move(*socket));
  }
  explicit raw_client(unique_fd socket) { use(std::move(socket)); }

  int fd() const { return socket_.get(); }
  void close() { socket_.reset(); }

  bool send(const bytes& data) { return send_all(socket_.get(), data).has_value(); }
  bool send(const wire& w) { return send(w.data()); }

  std::optional<bytes> receive(std::size_t n) {
    bytes b(n);
    if (!receive_all(socket_.get(), b)) return std::nullopt;
    return b;
  }

  // The server has ended the connection: everything that is still received, then the end.
  bool at_end() {
    std::array<std::byte, 16384> unread;
    for (;;) {
      const ssize_t n = ::recv(socket_.get(), unread.data(), unread.size(), 0);
      if (n == 0) return true;
      if (n < 0) return errno == ECONNRESET;
    }
  }

  bool silent_for(std::chrono::milliseconds time) {
    pollfd p{socket_.get(), POLLIN, 0};
    return ::poll(&p, 1, static_cast<int>(time.count())) == 0;
  }

  // ---- Handshake ----

  bool greet(std::uint32_t flags = nbd::fixed_newstyle | nbd::no_zeroes) {
    const auto g = receive(18);
    if (!g || nbd::load<std::uint64_t>(g->data()) != nbd::init_magic ||
        nbd::load<std::uint64_t>(g->data() + 8) != nbd::option_magic) {
      return false;
    }
    handshake_flags = nbd::load<std::uint16_t>(g->data() + 16);
    return send(wire().put(flags));
  }

  std::optional<option_answer> receive_option() {
    const auto h = receive(20);
    if (!h || nbd::load<std::uint64_t>(h->data()) != nbd::option_reply_magic) return std::nullopt;
    option_answer a;
    a.which = static_cast<nbd::option>(nbd::load<std::uint32_t>(h->data() + 8));
    a.type = static_cast<nbd::option_reply>(nbd::load<std::uint32_t>(h->data() + 12));
    const auto payload = receive(nbd::load<std::uint32_t>(h->data() + 16));
    if (!payload) return std::nullopt;
    a.payload = *payload;
    return a;
  }

  // Sends an option; all replies up to the acknowledgement or error.
  std::vector<option_answer> ask(nbd::option which, const bytes& data = {}) {
    std::vector<option_answer> all;
    if (!send(option(which, data))) return all;
    while (auto a = receive_option()) {
      EXPECT_EQ(a->which, which);
      const auto type = a->type;
      all.push_back(std::move(*a));
      if (type == nbd::option_reply::ack || static_cast<std::uint32_t>(type) >> 31 != 0) break;
    }
    return all;
  }

  // The type of the last reply, `ack` if all went well; 0 if the connection has ended.
  nbd::option_reply outcome(nbd::option which, const bytes& data = {}) {
    const auto all = ask(which, data);
    return all.empty() ? nbd::option_reply{} : all.back().type;
  }

  bool go(std::string_view name = "", headers wanted = headers::simple,
          const std::vector<std::string>& contexts = {}) {
    if (!greet()) return false;
    if (wanted != headers::simple) {
      const auto which = wanted == headers::extended ? nbd::option::extended_headers
                                                     : nbd::option::structured_reply;
      if (outcome(which) != nbd::option_reply::ack) return false;
      structured = true;
      extended = wanted == headers::extended;
    }
    if (!contexts.empty() && outcome(nbd::option::set_meta_context, context_data(name, contexts)) !=
                                 nbd::option_reply::ack) {
      return false;
    }
    return outcome(nbd::option::go, go_data(name)) == nbd::option_reply::ack;
  }

  // ---- Transmission ----

  // With the one that has been settled.
  wire ask_for(nbd::command c, std::uint64_t cookie, std::uint64_t offset = 0,
               std::uint32_t length = 0, std::uint16_t flags = 0, const bytes& data = {}) const {
    if (!extended) return request(c, cookie, offset, length, flags, data);
    if (c == nbd::command::write) flags |= nbd::flag_payload_len;
    return extended_request(c, cookie, offset, length, flags, data);
  }

  // One simple reply or chunk. `read_length`: of the read that a simple reply without error
  // answers.
  std::optional<answer> receive_answer(std::size_t read_length = 0) {
    auto h = receive(16);
    if (!h) return std::nullopt;
    answer a;
    a.cookie = nbd::load<std::uint64_t>(h->data() + 8);
    const auto magic = nbd::load<std::uint32_t>(h->data());
    if (magic == nbd::simple_reply_magic) {
      a.error = nbd::load<std::uint32_t>(h->data() + 4);
      if (a.error != 0 || read_length == 0) return a;
      auto data = receive(read_length);
      if (!data) return std::nullopt;
      a.payload = std::move(*data);
      return a;
    }
    if (magic != (extended ? nbd::extended_reply_magic : nbd::structured_reply_magic)) {
      ADD_FAILURE() << "reply magic " << magic;
      return std::nullopt;
    }
    a.structured = true;
    a.done = (nbd::load<std::uint16_t>(h->data() + 4) & nbd::chunk_done) != 0;
    a.type = static_cast<nbd::chunk>(nbd::load<std::uint16_t>(h->data() + 6));
    if (extended) {
      const auto offset = receive(8);
      if (!offset) return std::nullopt;
      a.offset = nbd::load<std::uint64_t>(offset->data());
    }
    const auto length = receive(extended ? 8 : 4);
    if (!length) return std::nullopt;
    auto data = receive(extended ? nbd::load<std::uint64_t>(length->data())
                                 : nbd::load<std::uint32_t>(length->data()));
    if (!data) return std::nullopt;
    a.payload = std::move(*data);
    if (a.type == nbd::chunk::error || a.type == nbd::chunk::error_offset) {
      a.error = nbd::load<std::uint32_t>(a.payload.data());
    }
    return a;
  }

  // A request and its whole reply: the error. UINT32_MAX if the connection has ended.
  std::uint32_t call(nbd::command c, std::uint64_t offset = 0, std::uint32_t length = 0,
                     std::uint16_t flags = 0, const bytes& data = {}) {
    const std::uint64_t cookie = next_cookie_++;
    if (!send(ask_for(c, cookie, offset, length, flags, data))) return UINT32_MAX;
    for (;;) {
      const auto a = receive_answer(c == nbd::command::read ? length : 0);
      if (!a) return UINT32_MAX;
      EXPECT_EQ(a->cookie, cookie);
      EXPECT_EQ(a->structured, extended || (structured && (c == nbd::command::read ||
                                                           c == nbd::command::block_status)));
      if (extended) {
        EXPECT_EQ(a->offset, offset);
      }
      if (a->error != 0 || a->done) return a->error;
    }
  }

  std::uint32_t write(std::uint64_t offset, const bytes& data, std::uint16_t flags = 0) {
    return call(nbd::command::write, offset, static_cast<std::uint32_t>(data.size()), flags, data);
  }
  std::uint32_t flush() { return call(nbd::command::flush); }

  // A read's data, put together of its chunks; nothing at an error or if the pieces do not fit.
  std::optional<bytes> read(std::uint64_t offset, std::uint32_t length, std::uint16_t flags = 0) {
    const std::uint64_t cookie = next_cookie_++;
    if (!send(ask_for(nbd::command::read, cookie, offset, length, flags))) return std::nullopt;
    bytes data(length);
    std::string got(length, 'n');
    for (;;) {
      auto a = receive_answer(length);
      if (!a || a->error != 0) return std::nullopt;
      EXPECT_EQ(a->cookie, cookie);
      if (!a->structured) return a->payload;
      ++chunks;
      if (a->type == nbd::chunk::offset_data || a->type == nbd::chunk::offset_hole) {
        const std::uint64_t at = nbd::load<std::uint64_t>(a->payload.data()) - offset;
        const bool hole = a->type == nbd::chunk::offset_hole;
        const std::size_t n =
            hole ? nbd::load<std::uint32_t>(a->payload.data() + 8) : a->payload.size() - 8;
        if (at > length || n > length - at) return std::nullopt;
        if (std::memchr(got.data() + at, 'y', n) != nullptr) return std::nullopt;
        std::memset(got.data() + at, 'y', n);
        if (!hole) std::memcpy(data.data() + at, a->payload.data() + 8, n);
      }
      if (a->done) break;
    }
    if (got.find('n') != got.npos) return std::nullopt;
    return data;
  }

  std::uint16_t handshake_flags = 0;
  bool structured = false;
  bool extended = false;
  std::uint64_t chunks = 0;

 private:
  void use(unique_fd socket) {
    socket_ = std::move(socket);
    const timeval limit{60, 0};
    ::setsockopt(socket_.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    ::setsockopt(socket_.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  }

  unique_fd socket_;
  std::uint64_t next_cookie_ = 1;
};

}  // namespace forebay
