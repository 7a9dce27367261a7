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
// A reply is appended when may_reply() has said that it is its turn and that there is room for it.
//
// One thread, the loop's that it was accepted for.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

#include "forebay/serve/export.h"
#include "forebay/serve/receive_buffer.h"
#include "forebay/serve/reply_queue.h"
#include "forebay/serve/request_memory.h"

namespace forebay {

// What a connection needs of the server.
class connection_host {
 public:
  virtual ~connection_host() = default;

  // The export of that name ("" is the first one), null if there is none.
  virtual nbd_export* find_export(std::string_view name) noexcept = 0;
  // The exports in order, null behind the last.
  virtual nbd_export* export_at(std::size_t index) noexcept = 0;

  // The server's statistics as JSON text. The only function here that takes memory from the heap,
  // and throws std::bad_alloc when there is none.
  virtual std::string statistics_text() = 0;

  // What connections live on. Any thread.
  virtual request_memory& memory() noexcept = 0;

  // Pages that a connection may pin for replies at present; at least 1. Any thread.
  virtual std::size_t pin_allowance() const noexcept = 0;

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

  // Ends it now: what has not been sent is lost.
  void abandon() noexcept;

  list_node link;  // of the worker's connections

 private:
  static constexpr std::size_t max_tasks = 128;
  static constexpr std::uint64_t handshake_timeout_ns = 30'000'000'000;

  // What the handshake has settled.
  struct session {
    nbd_export* exported = nullptr;
    bool no_zeroes = false;
    bool structured = false;
    bool knows_block_size = false;        // has asked for it, so it must keep to it
    nbd_export* allocation_of = nullptr;  // base:allocation was selected for this export
  };

  // handshake.cc
  task<> handshake();
  task<bool> handle_option(nbd::option which, std::uint32_t length);
  task<bool> option_export_name(std::uint32_t length);
  bool option_go(nbd::option which, std::span<const std::byte> data) noexcept;
  task<> option_list();
  void option_meta_context(nbd::option which, std::span<const std::byte> data) noexcept;
  task<> option_statistics();
  void reply_option(nbd::option which, nbd::option_reply type,
                    std::initializer_list<std::string_view> payload = {}) noexcept;
  void begin_option_reply(nbd::option which, nbd::option_reply type, std::size_t bytes) noexcept;
  void send_export_info(nbd::option which, nbd_export& e,
                        std::span<const std::byte> wanted) noexcept;

  // transmission.cc
  task<> transmit();
  task<> dispatch(nbd::request r);
  int validate(const nbd::request& r) const noexcept;
  bool continued_by_next(const nbd::request& r) const noexcept;
  bool read_at_once(const nbd::request& r);
  bool write_at_once(const nbd::request& r);
  task<> receive_write(nbd::request r);
  task<std::error_code> write_streamed(const nbd::request& r);
  bool write_aside(const nbd::request& r, std::span<const std::byte> data) noexcept;
  static std::size_t share_of(const nbd::request& r) noexcept;
  // How much of so many bytes for requests is not the connection's own.
  static std::size_t shared_of(std::size_t bytes) noexcept {
    return bytes - std::min(bytes, request_memory::long_request_bytes);
  }
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
  task<> do_write_zeroes(const nbd::request& r);
  task<> do_block_status(nbd::request r);
  task<> reserve_pins(std::size_t pages, bool gate_is_mine);
  bool pins_awaited() const noexcept { return pin_turn_ != pin_turns_given_; }

  // reply.cc
  // What a reply of no data needs of a batch, and one of some pages.
  static constexpr reply_queue::need small_reply{.iovecs = 1, .pins = 0, .bytes = 256};
  static reply_queue::need pages_reply(std::size_t pages) noexcept {
    // At worst holes and data take turns, each with a header.
    return {.iovecs = 2 * pages + 1, .pins = pages, .bytes = 32 * pages + 16};
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
  void reply_chunk(const nbd::request& r, nbd::chunk type, std::uint32_t length,
                   bool last) noexcept;
  void reply_whole_header(const nbd::request& r) noexcept;
  void account(const nbd::request& r, bool failed) noexcept;

  connection_host& host_;
  loop& loop_;
  unique_fd socket_;
  receive_buffer in_;
  reply_queue out_;
  session session_;
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
  std::uint64_t arrived_ns_ = 0;  // when the requests that are being parsed had come in
};

}  // namespace forebay
