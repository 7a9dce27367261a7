// One client: handshake, then requests until it leaves.
//
//   recv ──> receive_buffer ──> parse ──┬─ hit, or write that fits ──> reply at once ──┐
//                                       └─ anything that waits ──> a task of its own ──┴─>
//                                       reply_queue ──> sendmsg
//
// Requests that the cache can serve are answered where they are parsed, so a batch of them costs
// one recv and one sendmsg. Everything else runs as a task; replies go out in the order in which
// they are ready.
//
// Bounds: `max_tasks` requests under way, and no more than have a share of the request memory;
// pages pinned for replies within the share that the service gives a connection; about 0.5 MiB of
// replies that the client does not receive. At a bound the connection is not read from until there
// is room: back-pressure. What else could be of use (copies of payload that waits, more room to
// receive into) is extra memory, and done without when there is none (see request_memory.h).
//
// A client that asks for TLS gets a channel (tls.h) between the buffer, the queue and the socket.
//
// A reply is appended when may_reply() has said that it is its turn and that there is room for it.
//
// Connections of a loop have fair shares of it (ring/fair_turns.h): what a request costs is charged
// where it is worked on, in bytes of data and what the rest is worth in such, and who has had his
// share in this round lets others go first, before his next request or part of one. What he was
// answered is sent before them.
//
// One thread, the loop's that it was accepted for.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>

#include "forebay/serve/export.h"
#include "forebay/serve/receive_buffer.h"
#include "forebay/serve/reply_queue.h"
#include "forebay/serve/request_memory.h"
#include "forebay/serve/tls.h"

namespace forebay {

// What holds for every connection of a server.
struct connection_settings {
  tls_policy tls = tls_policy::off;
  const tls_credentials* credentials = nullptr;  // of TLS, unless that is off
  std::uint64_t handshake_timeout_ns = 30'000'000'000;
  // Of a client that receives nothing of the replies that wait for it; 0: has no limit.
  std::uint64_t send_timeout_ns = 60'000'000'000;
  // Of a client that asks for nothing and has been answered everything; 0: has no limit.
  std::uint64_t idle_timeout_ns = 0;
};

// Why a server has ended a connection that broke no rule of the protocol.
enum class client_failure : std::uint8_t { tls, handshake_timeout, send_timeout, idle_timeout };
inline constexpr std::size_t client_failures = 4;

// What a connection needs of the server.
class connection_host {
 public:
  virtual ~connection_host() = default;

  // Constant.
  virtual const connection_settings& settings() const noexcept {
    static const connection_settings usual;
    return usual;
  }

  // Is told why the client of this socket is, or is going to be, without a connection. Any thread.
  virtual void client_failed(client_failure, int /*socket*/, const char* /*why*/) noexcept {}

  // The export of that name ("" is the first one), null if there is none.
  virtual nbd_export* find_export(std::string_view name) noexcept = 0;
  // The exports in order, null behind the last.
  virtual nbd_export* export_at(std::size_t index) noexcept = 0;

  // The server's statistics as JSON text. Takes memory from the heap, as only the next one
  // does of those here, and throws std::bad_alloc when there is none.
  virtual std::string statistics_text() = 0;

  // Changes the running server as nbd::option::tune says. Empty when that is done, else why
  // nothing was, in a line for the user. Takes memory from the heap as well: ENOMEM. On a loop of
  // the server; `changes` is there until it ends.
  virtual task<std::string> tune(std::string_view changes) = 0;

  // A client has come, and counts until client_left(); false if there are too many. Any thread.
  virtual bool client_arrived() noexcept = 0;
  virtual void client_left() noexcept = 0;

  // What connections live on. Any thread.
  virtual request_memory& memory() noexcept = 0;

  // Pages of an export that a connection may pin for replies at present; at least 1. Any thread.
  virtual std::size_t pin_allowance(const nbd_export& of) const noexcept = 0;

  // Bytes of request memory that a connection's requests beyond the first may have at present. Any
  // thread.
  virtual std::size_t request_allowance() const noexcept = 0;
};

// Lets everything else that is ready run first, and unwinds the stack.
inline auto yield_turn() noexcept {
  return await_completion([](completion& c) noexcept { executor::current()->ready(c); });
}

class connection {
 public:
  connection(connection_host& host, loop& on, unique_fd socket) noexcept;
  ~connection();
  connection(const connection&) = delete;
  connection& operator=(const connection&) = delete;

  // False without memory for its buffers: it cannot serve then.
  bool usable() const noexcept { return in_.usable() && out_.usable(); }

  // Serves the client to its end. Never fails: what goes wrong ends the connection.
  task<> run();

  // No more requests are read; those under way are answered.
  void stop() noexcept;

  // Looks after the limits of time, but for that of the handshake. From time to time.
  void check_time(std::uint64_t now_ns) noexcept;

  // Ends it now: what has not been sent is lost.
  void abandon() noexcept;

  list_node link;  // of the worker's connections

 private:
  static constexpr std::size_t max_tasks = 128;

  // What the handshake has settled.
  struct session {
    nbd_export* exported = nullptr;
    bool no_zeroes = false;
    bool structured = false;
    bool extended = false;              // headers; `structured` then, too
    bool knows_block_size = false;      // has asked for it, so it must keep to it
    nbd_export* contexts_of = nullptr;  // these were selected for this export
    nbd::meta_context_set contexts = 0;
  };

  // handshake.cc
  task<> handshake();
  bool may_ask(nbd::option which) const noexcept;
  task<bool> handle_option(nbd::option which, std::uint32_t length);
  task<bool> option_export_name(std::uint32_t length);
  task<bool> option_starttls();
  bool option_go(nbd::option which, std::span<const std::byte> data) noexcept;
  task<> option_list();
  void option_meta_context(nbd::option which, std::span<const std::byte> data) noexcept;
  void option_headers(nbd::option which, std::uint32_t length) noexcept;
  std::uint16_t flags_of(const nbd_export& e) const noexcept;
  task<> option_statistics();
  task<> option_tune(std::span<const std::byte> data);
  void reply_option(nbd::option which, nbd::option_reply type,
                    std::initializer_list<std::string_view> payload = {}) noexcept;
  void begin_option_reply(nbd::option which, nbd::option_reply type, std::size_t bytes) noexcept;
  void send_export_info(nbd::option which, nbd_export& e,
                        std::span<const std::byte> wanted) noexcept;

  // transmission.cc
  task<> transmit();
  // Whether more may be worked on: if (!may_work()) co_await its_turn();
  bool may_work() noexcept {
    return !turn_.spent() || loop_.turns().may_go_on(turn_, loop_.wanted());
  }
  auto its_turn() noexcept {
    // What it has been answered goes first.
    out_.send_before_others();
    return loop_.turns().turn_of(turn_);
  }
  void send_at_rest() noexcept;
  std::size_t request_header_bytes() const noexcept {
    return session_.extended ? nbd::extended_request_bytes : nbd::request_bytes;
  }
  result<nbd::request> parse(const std::byte* at) const noexcept;
  std::uint64_t must_wait() noexcept;
  task<> dispatch(nbd::request r);
  task<> dispatch_unusual(nbd::request r);
  bool select_contexts(nbd::request& r, std::span<const std::byte> payload) const noexcept;
  task<> refuse(const nbd::request& r, int error);
  int validate(const nbd::request& r) const noexcept;
  void expect_requests() noexcept;
  bool continued_by_next(const nbd::request& r) const noexcept;
  bool read_at_once(const nbd::request& r);
  bool write_at_once(const nbd::request& r);
  task<> receive_write(nbd::request r);
  task<std::error_code> write_streamed(const nbd::request& r);
  bool write_aside(const nbd::request& r, std::span<const std::byte> data) noexcept;
  static std::size_t share_of(const nbd::request& r) noexcept;
  bool begin_request(const nbd::request& r) noexcept;
  void end_request(const nbd::request& r) noexcept;
  // Until one of its requests has ended: while (!begin_request(r)) co_await task_ended();
  auto task_ended() noexcept {
    out_.kick();
    return task_ended_.wait_unless([] { return false; });
  }
  task<> finish_write(nbd::request r, std::span<std::byte> copy);
  bool must_sync(const nbd::request& r) const noexcept;
  bool spawn(task<> work) noexcept;
  void task_done(const nbd::request& r) noexcept;

  // commands.cc
  task<> run_command(nbd::request r);
  task<> do_command(const nbd::request& r);
  task<> run_read(const nbd::request& r);
  template <std::size_t MaxPages>
  task<> do_read(nbd::request r);
  task<> do_part(const nbd::request& r, std::uint64_t offset, std::uint64_t length);
  // Whether what is long is not worth going on with.
  bool ending() const noexcept { return stopping_ || out_.broken(); }
  task<> do_block_status(nbd::request r);
  std::size_t status_extent_bytes() const noexcept { return session_.extended ? 16 : 8; }
  void begin_status(const nbd::request& r, nbd::meta_context of, std::size_t extents,
                    bool last) noexcept;
  void append_status(std::uint64_t length_bytes, std::uint32_t flags) noexcept;
  task<> reserve_pins(std::size_t pages, bool gate_is_mine);
  std::size_t pin_allowance() const noexcept { return host_.pin_allowance(*session_.exported); }
  bool pins_awaited() const noexcept { return pin_turn_ != pin_turns_given_; }

  // reply.cc
  // What a reply of no data needs of a batch, and one of some pages.
  static constexpr reply_queue::need small_reply{.iovecs = 1, .pins = 0, .bytes = 256};
  static reply_queue::need pages_reply(std::size_t pages) noexcept {
    // At worst holes and data take turns, each with a header.
    return {.iovecs = 2 * pages + 1, .pins = pages, .bytes = 44 * pages + 16};
  }

  // Whether a reply may be appended now: while (!may_reply(n)) co_await next_chance();
  bool may_reply(const reply_queue::need& n, bool gate_is_mine = false) noexcept {
    return (!gate_closed_ || gate_is_mine) && out_.room(n);
  }
  auto next_chance() noexcept {
    out_.kick();
    return out_.next_progress();
  }
  void reply(const nbd::request& r, std::error_code error) noexcept;
  void reply_pages(const nbd::request& r, std::uint64_t offset, std::size_t bytes,
                   std::span<page_ref> pins, bool last) noexcept;
  void reply_chunk(const nbd::request& r, nbd::chunk type, std::uint64_t length,
                   bool last) noexcept;
  void reply_whole_header(const nbd::request& r) noexcept;
  void account(const nbd::request& r, bool failed) noexcept;

  connection_host& host_;
  loop& loop_;
  unique_fd socket_;
  receive_buffer in_;
  reply_queue out_;
  std::optional<tls_channel> tls_;
  session session_;
  client_entry client_;  // while it transmits
  fair_turns::party turn_;
  task_group tasks_;
  wait_queue task_ended_;
  std::size_t reserved_pins_ = 0;  // promised to reads that have not pinned yet
  std::uint64_t pin_turns_given_ = 0;
  std::uint64_t pin_turn_ = 0;  // whose turn it is to reserve
  // Closed while a reply of several parts that must not be mixed with others (the data of a simple
  // reply) is being appended; everybody else waits at it before he appends. out_'s progress is
  // woken when it opens.
  bool gate_closed_ = false;
  std::size_t request_bytes_ = 0;  // of memory, promised to requests under way
  bool stopping_ = false;
  // What check_time() has seen last, and since when it has been so.
  struct progress {
    std::uint64_t bytes = 0;
    std::uint64_t since_ns = 0;
  };
  progress sent_;
  progress moved_;
  rate_limit::place place_;  // of the request that is at hand, when its export has a limit
  wait_queue place_left_;
  bool at_rest_ = false;           // no request has come whose reply is not under way
  bool failed_ = false;            // and has been told of
  std::uint64_t expected_to_ = 0;  // of what is received, so far expect_requests() has announced
  std::uint64_t arrived_ns_ = 0;   // when the requests that are being parsed had come in
};

}  // namespace forebay
