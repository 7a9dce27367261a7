// A vhost-user block device: an export as a disk of a virtual machine, over a unix socket.
//
//   listener ─► one front-end at a time ─► messages: features, memory, rings, configuration
//                                             │ start, stop
//                                             ▼
//                     vhost_queue 0    vhost_queue 1   …        each on one worker's loop
//
// The next front-end is let in when the one before has gone and nothing of it is under way: nobody
// writes into a guest's memory any more when its virtual machine connects again.
//
// A queue runs while it is started (it has a kick) and enabled, and its memory is there. A message
// that changes what a running queue depends on stops it first, waiting for its requests, and starts
// it again where it was.
//
// What a message may do is checked; what is malformed or unknown is refused: with an error where
// the front-end asked for an answer, else by the end of the connection. It is counted, and the
// first of a connection is logged. Who may connect is a matter of the socket's permissions: a
// front-end can keep its own device from being served, and nothing else.
//
// All of it is on one loop but the queues, which are on those they are given.
#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "forebay/os/foreign_mapping.h"
#include "forebay/os/shared_memory.h"
#include "forebay/serve/guest_memory.h"
#include "forebay/serve/vhost_queue.h"
#include "forebay/serve/vhost_user.h"

namespace forebay {

class vhost_device {
 public:
  static constexpr unsigned queues_max = 16;

  // For what is worth to be told to the user; on the device's loop or a queue's.
  using logger = std::function<void(const std::string&)>;

  // `loops`: of the queues, in turn. `spin_ns`: for so long a queue looks for work before it
  // sleeps.
  vhost_device(connection_host& host, nbd_export& served, std::span<loop* const> loops,
               unique_fd listener, std::uint64_t spin_ns, logger log);
  ~vhost_device();
  vhost_device(const vhost_device&) = delete;
  vhost_device& operator=(const vhost_device&) = delete;

  // Serves until stop() has been called on the same loop.
  task<> run();

  // The front-end is cut off, requests under way are finished; waits for the end of run().
  task<> stop();

  nbd_export& served() const noexcept { return export_; }

  // The configuration is another one than it was: says so to a front-end that wants to know, as far
  // as that goes without waiting for it. On the same loop.
  task<> tell_of_config();

  // The configuration space that the guest sees.
  virtio::blk_config config() const noexcept;
  // The features that are offered.
  std::uint64_t features() const noexcept;

 private:
  struct ring {
    std::unique_ptr<vhost_queue> queue;
    virtqueue_setup setup;  // but what the features say
    bool has_addresses = false;
    unique_fd kick;
    unique_fd call;
    unique_fd error;
    bool started = false;
    bool enabled = false;
    bool running = false;
    bool call_owed = false;  // when it is started next
  };
  // What came with a message.
  struct message {
    vhost::header head;
    std::size_t fds = 0;

    vhost::message what() const noexcept { return static_cast<vhost::message>(head.request); }
    bool needs_reply() const noexcept { return (head.flags & vhost::flag_need_reply) != 0; }
  };

  // vhost_device.cc
  task<> serve(unique_fd socket);
  task<bool> receive(std::span<std::byte> into, message* m);
  task<> talk();
  bool acceptable(const message& m) const noexcept;
  void refuse(const message& m, std::error_code why);
  void log_first(std::string_view what, std::error_code why);
  bool send(const message& m, std::span<const std::byte> payload,
            std::span<const int> fds = {}) noexcept;
  void forget() noexcept;

  // vhost_messages.cc
  task<> handle(const message& m);
  task<> handle_memory(const message& m);
  task<> handle_ring(const message& m);
  task<> get_vring_base(const message& m, ring* r, std::uint32_t index);
  result<ring*> ring_of(std::uint32_t index) noexcept;
  task<> take_ring_fd(const message& m);
  task<> set_features(std::uint64_t wanted);
  task<> set_config(const message& m);
  task<> reset();
  result<> get_config(const message& m);
  result<> get_inflight(const message& m);
  task<> set_inflight(const message& m);
  task<> stop_ring(ring* r);
  task<> stop_all();
  task<> start_all();
  task<> settle(ring* r);
  void update_writeback() noexcept;
  template <typename T>
  T payload() const noexcept;

  connection_host& host_;
  nbd_export& export_;
  client_entry client_;  // the front-end, from its first message to its last
  loop& loop_;
  unique_fd listener_;
  const logger log_;
  const vhost_queue::reporter report_;
  std::atomic<bool> logged_{false};  // something of this connection
  std::array<ring, queues_max> rings_;
  guest_memory memory_;
  // Whether a write may be acknowledged before it is durable: what the guest knows of a cache.
  std::atomic<bool> writeback_{false};

  // Of the connection.
  unique_fd socket_;
  unique_fd backend_;  // of our messages to it
  std::uint64_t features_ = 0;
  std::uint64_t protocol_features_ = 0;
  bool cache_on_ = true;   // the configuration's writeback, as the guest has set it
  bool answered_ = false;  // the message at hand has an answer
  std::array<std::byte, vhost::payload_max> in_{};
  std::array<unique_fd, vhost::message_fds_max> fds_;
  foreign_mapping log_memory_;  // of what is in flight
  std::uint16_t log_queues_ = 0;
  std::uint16_t log_queue_size_ = 0;

  completion* waiting_ = nullptr;  // for the listener
  bool stopping_ = false;
  bool ended_ = true;  // run() is not under way
  wait_queue run_ended_;
};

}  // namespace forebay
