// One virtqueue of a vhost-user block device, served on one loop.
//
//   kick ─► turn: take … ┬─ hit, or write that fits: copied ─► put ┐
//                        └─ anything that waits: a task ─► put ────┴─► publish, call
//
// Reads are copied from the cache's pages into the guest's memory and writes the other way, once;
// nothing goes through a buffer. Queues have fair shares of their loop, beside each other and the
// connections that it serves. A turn takes what there is, publishes every few chains and calls
// the driver once. While there is work the queue looks for more without sleeping and asks for no
// kicks; when there is none for a moment (ring/busy_poll.h) it asks for one and the loop sleeps.
//
// A request that its export's limit does not let in yet is held, and nothing is taken beside it.
//
// Bounds: `tasks_max` requests that wait, and no more than have a share of the request memory
// (request_memory.h), of which a running queue has one of its own. At a bound nothing is taken
// until a request has ended.
//
// The guest is hostile. A chain that is wrong is given back with length 0, and counted. A ring that
// is wrong, or memory that has been cut off, ends the queue: nothing is read or written any more,
// and the front-end's error descriptor is signalled. Where a chain that is refused has a status
// byte that can be found, it says so. The front-end's descriptors are written through the loop's
// ring: whoever else has them may make them such that a write(2) would wait.
//
// start() and stop() are for one thread, which has a loop of its own; all else happens on the
// queue's loop.
#pragma once

#include <atomic>
#include <functional>
#include <optional>

#include "forebay/ring/busy_poll.h"
#include "forebay/serve/connection.h"
#include "forebay/serve/inflight_log.h"
#include "forebay/serve/virtio_blk.h"

namespace forebay {

class vhost_queue {
  // Has the queue's loop do something, and waits for its answer.
  auto order(void (vhost_queue::*what)() noexcept) noexcept {
    return await_completion([this, what](completion& done) noexcept {
      home_ = executor::current();
      done_ = &done;
      what_ = what;
      loop_.post(order_);
    });
  }

 public:
  struct setup {
    virtqueue_setup ring;
    std::span<std::byte> log{};  // of what is in flight, or none
    int kick = -1;               // descriptors, which stay open while the queue runs; -1: none
    int call = -1;
    int error = -1;
    bool call_first = false;  // something may have ended that the driver was not called for
  };

  // Told what the guest did that is refused; on the queue's loop.
  using reporter = std::function<void(const char* what, std::error_code why)>;

  // `writeback`: a write may be acknowledged before it is durable; read for each. What is given
  // outlives the queue.
  vhost_queue(connection_host& host, nbd_export& served, client_entry& client,
              const guest_memory& memory, const std::atomic<bool>& writeback,
              const reporter& report, loop& on, std::uint64_t spin_ns) noexcept;
  vhost_queue(const vhost_queue&) = delete;
  vhost_queue& operator=(const vhost_queue&) = delete;
  ~vhost_queue();

  // co_await start(s): 0, or a negative errno and the queue does not run: EINVAL for a ring or a
  // log that cannot be, EFAULT for one outside of the guest's memory, ENOMEM.
  auto start(const setup& s) noexcept {
    setup_ = s;
    return order(&vhost_queue::do_start);
  }

  // co_await stop(), of a queue that runs: takes no more, waits for what is under way, puts and
  // publishes it. Until then the memory must stay.
  auto stop() noexcept { return order(&vhost_queue::do_stop); }

  // While it does not run: where to go on.
  std::uint32_t base() const noexcept { return base_; }

 private:
  static constexpr unsigned tasks_max = 128;
  static constexpr unsigned turn_max = 64;  // chains taken before others have their turn
  static constexpr std::uint64_t copy_bytes_max = 1u << 20;  // copied before others have it
  static constexpr std::uint64_t turn_bytes_max = 1u << 20;  // of data in them; or one chain
  // What chains are charged beside their data, as bytes (ring/fair_turns.h).
  static constexpr std::uint64_t chain_cost = 4u << 10;
  static constexpr std::uint64_t task_cost = 24u << 10;
  static constexpr unsigned publish_batch = 4;  // chains published together
  static constexpr unsigned looks_a_turn = 16;  // for work, when there is none
  static constexpr std::uint64_t no_kick_pause_ns = 100'000;
  static constexpr std::size_t ranges_max = 16;  // of a discard
  friend class vhost_device;                     // tells the guest these limits

  // A chain as a request.
  struct request {
    std::uint16_t id = 0;
    std::uint16_t slots = 1;
    std::uint16_t number = 0;  // in the log
    nbd::command what = nbd::command::read;
    std::uint64_t offset = 0;
    std::uint64_t bytes = 0;        // of data
    std::uint64_t done_before = 0;  // of it: before `offset`, and not in `data` any more
    std::uint32_t written = 0;      // bytes of the chain that the device writes, if all goes well
    std::byte* status = nullptr;    // in the guest's memory
    std::span<std::span<std::byte>> data{};
    std::uint64_t arrived_ns = 0;
  };
  struct waiting;

  // A completion that calls a member.
  struct event : completion {
    explicit event(vhost_queue* q, completion::function f) noexcept : completion(f), self(q) {}
    vhost_queue* self;
  };
  // An eventfd of the front-end's that is written to: once more if it is asked for meanwhile.
  struct signal : completion {
    explicit signal(vhost_queue* q) noexcept : completion(&ended), self(q) {}
    static void ended(completion& c) noexcept;
    vhost_queue* self;
    int fd = -1;
    bool under_way = false;
    bool again = false;
  };
  template <void (vhost_queue::*What)() noexcept>
  static void call_member(completion& c) noexcept {
    (static_cast<event&>(c).self->*What)();
  }

  // vhost_queue.cc: life, and what turns the loop
  void obey() noexcept { (this->*what_)(); }
  void do_start() noexcept;
  void do_stop() noexcept;
  void answer(int error) noexcept;
  void stopped_perhaps() noexcept;
  void turn() noexcept;
  unsigned work() noexcept;
  bool look() noexcept;
  void turn_soon() noexcept;
  void sleep() noexcept;
  void kicked() noexcept;
  void hold(std::uint64_t ns) noexcept;
  void hold_over() noexcept;
  void end_hold() noexcept;
  void break_ring(std::error_code why) noexcept;
  void put(std::uint16_t id, std::uint16_t slots, std::uint16_t number,
           std::uint32_t written) noexcept;
  void publish() noexcept;
  void publish_ended() noexcept;
  void call() noexcept;
  void give(signal& s) noexcept;
  bool wind_up() noexcept;
  result<bool> next(virtqueue::element& e, std::uint16_t& number) noexcept;

  // vhost_request.cc: what a chain says, and doing it
  bool parse(virtqueue::element& e, request& r) noexcept;
  void handle(virtqueue::element& e, std::uint16_t number) noexcept;
  void begin(request& r) noexcept;
  bool is_held(const request& r) noexcept;
  bool let_held_go() noexcept;
  bool do_at_once(request& r) noexcept;
  void do_later(const request& r) noexcept;
  void end(const request& r, virtio::blk_status status) noexcept;
  bool must_sync() const noexcept;
  std::size_t get_id(const request& r) noexcept;
  bool reserve() noexcept;
  void end_reserve() noexcept;
  void begin_request(std::size_t share) noexcept;
  void end_request(std::size_t share) noexcept;
  task<> run(waiting* w);
  task<> transfer(const request& r);
  task<> transfer_part(const request& r, std::uint64_t at, std::span<std::byte> part);
  task<> read_pinned(std::uint64_t offset, std::span<std::byte> out);
  task<> change_ranges(const request& r);
  virtio::blk_status status_of(const result<>& r) const noexcept;

  connection_host& host_;
  nbd_export& export_;
  client_entry& client_;  // whose queue it is
  const guest_memory& memory_;
  const std::atomic<bool>& writeback_;
  const reporter& report_;
  loop& loop_;

  // The order that start() or stop() is waiting for; set there, read on the loop.
  event order_{this, &call_member<&vhost_queue::obey>};
  executor* home_ = nullptr;
  completion* done_ = nullptr;
  void (vhost_queue::*what_)() noexcept = nullptr;
  setup setup_;
  std::uint32_t base_ = 0;

  // Below: the loop's thread only.
  std::uint64_t one_ = 1;  // what signals write, and where that is mapped while the queue runs
  std::optional<device_owned<std::span<std::byte>>> one_memory_;
  signal call_{this};
  signal error_{this};
  virtqueue ring_;
  inflight_log log_;
  virtqueue::piece_storage storage_;
  event turn_{this, &call_member<&vhost_queue::turn>};
  event kick_{this, &call_member<&vhost_queue::kicked>};
  timer pause_;  // instead of a kick
  // Taken, and waiting for the export's limit; its pieces lie in storage_.
  std::optional<request> held_;
  rate_limit::place place_;  // its
  timer hold_;
  event hold_over_{this, &call_member<&vhost_queue::hold_over>};
  bool hold_awaited_ = false;
  fair_turns::party share_;
  fair_turns::waiter waiter_;  // is turn_, then
  // For tasks: those that end together are published together.
  event publish_{this, &call_member<&vhost_queue::publish_ended>};
  busy_poll polls_;
  std::uint64_t looking_since_ns_ = 0;  // 0: it has just found something, or sleeps
  std::uint64_t now_ns_ = 0;            // when the chains at hand were seen
  bool running_ = false;
  bool stopping_ = false;
  bool wound_up_ = false;  // the last of a queue that stops has been published
  bool broken_ = false;
  bool turn_queued_ = false;
  bool publish_queued_ = false;
  bool kick_awaited_ = false;
  bool full_ = false;  // at a bound
  unsigned unpublished_ = 0;
  std::uint64_t turn_bytes_ = 0;  // of the requests that were taken in this turn
  // Requests done at once that are not accounted yet: in publish(), with one look at the clock.
  struct {
    nbd::command what;
    std::uint64_t bytes;
  } unaccounted_[publish_batch + 1];
  unsigned unaccounted_count_ = 0;
  std::size_t request_bytes_ = 0;   // of memory, promised to requests under way
  std::size_t reserved_bytes_ = 0;  // and to the next one, while chains are being taken
  task_group tasks_;
};

}  // namespace forebay
