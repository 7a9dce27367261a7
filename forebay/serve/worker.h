// A worker of the server: one thread, its loop, and the clients that were given to it.
#pragma once

#include <functional>
#include <future>
#include <memory>
#include <semaphore>
#include <thread>

#include "forebay/serve/server.h"

namespace forebay {

class server::worker {
 public:
  // `clients` counts its clients.
  worker(server& owner, std::atomic<unsigned>& clients) noexcept
      : server_(owner), client_count_(clients) {}
  ~worker();
  worker(const worker&) = delete;
  worker& operator=(const worker&) = delete;

  // Starts the thread and waits until its loop runs. Registers the arena and the files `fds` with
  // it; `unregistered` says why the arena could not be, or not all of it.
  result<> start(arena& memory, std::vector<int> fds, std::error_code& unregistered);

  // Runs `work` on the worker's loop as a member of its background tasks; any thread. When it
  // cannot be started for lack of memory it is tried again.
  using maker = std::function<task<>()>;
  void run(maker make);
  // The same, and waits for its end, calling `tick` about five times a second.
  void run_and_wait(maker make, const std::function<void()>& tick = {});

  // Gives the worker a client; any thread. Without memory for it the client is turned away.
  void adopt(unique_fd socket);

  // Takes no more clients and asks its own to leave.
  task<> begin_drain();
  // Answers what is under way and waits for the clients at most until `deadline_ns`; then cuts
  // them off.
  task<> drain(std::uint64_t deadline_ns);

  // Waits for the background tasks, which have been told to end, then stop().
  void finish();

  // Ends the loop and the thread; its tasks must have ended.
  void stop();

  loop& events() noexcept { return *loop_; }

 private:
  struct assignment;
  struct arrival;
  struct client;

  void thread_main(std::promise<std::error_code>* ready, arena* memory, std::vector<int> fds,
                   std::error_code* unregistered);
  static void start_assignment(completion& c) noexcept;
  void arrived(unique_fd socket) noexcept;
  task<> serve_client(client* c);
  void end_client(client* c) noexcept;
  void one_left() noexcept;
  void start_checks() noexcept;
  static task<> run_then_signal(maker* work, std::shared_ptr<std::promise<void>> done);

  server& server_;
  std::unique_ptr<loop> loop_;  // made and ended by the thread
  std::thread thread_;
  std::binary_semaphore may_go_{0};      // the loop may be ended
  std::atomic<unsigned>& client_count_;  // the server's, from adopt() on
  // Below: the loop's thread only.
  intrusive_list<connection, &connection::link> connections_;
  task_group background_;
  task_group clients_;
  wait_queue client_left_;
  // Goes off from time to time while there are clients, to look after their limits of time.
  struct check : completion {
    worker* self = nullptr;
    timer when;
    bool started = false;
  };
  check check_;
  bool draining_ = false;
};

}  // namespace forebay
