#include "forebay/serve/worker.h"

#include <algorithm>
#include <chrono>
#include <new>

namespace forebay {
namespace {

constexpr std::uint64_t memory_pause_ns = 10'000'000;  // before what had no memory is tried again

}  // namespace

// A client and its connection; ends itself.
struct server::worker::client {
  client(server& s, loop& on, unique_fd socket) noexcept : conn(s, on, std::move(socket)) {}
  connection conn;
};

// Work that is on its way to a loop.
struct server::worker::assignment : completion {
  worker* self = nullptr;
  maker make;
  timer again;
};

// Starts it, or tries again a moment later when there is no memory for it now.
void server::worker::start_assignment(completion& c) noexcept {
  auto& a = static_cast<assignment&>(c);
  if (a.make().spawn(a.self->background_)) {
    delete &a;
    return;
  }
  a.again.deadline_ns = monotonic_clock::now_ns() + memory_pause_ns;
  a.again.done = &a;
  executor::current()->start(a.again);
}

task<> server::worker::run_then_signal(maker* work, std::shared_ptr<std::promise<void>> done) {
  for (;;) {
    task<> attempt = (*work)();
    if (attempt.has_frame()) {
      co_await std::move(attempt);
      break;
    }
    co_await sleep_for(memory_pause_ns);
  }
  done->set_value();
  co_return result<>{};
}

server::worker::~worker() { FOREBAY_ASSERT(!thread_.joinable()); }

result<> server::worker::start(arena& memory, std::vector<int> fds, std::error_code& unregistered) {
  std::promise<std::error_code> ready;
  std::future<std::error_code> outcome = ready.get_future();
  thread_ = std::thread(&worker::thread_main, this, &ready, &memory, std::move(fds), &unregistered);
  const std::error_code error = outcome.get();
  if (!error) return {};
  thread_.join();
  return fail(error);
}

void server::worker::thread_main(std::promise<std::error_code>* ready, arena* memory,
                                 std::vector<int> fds, std::error_code* unregistered) {
  // The ring belongs to the thread that makes it.
  auto made = loop::create();
  if (!made) {
    ready->set_value(made.error());
    return;
  }
  loop_ = std::move(*made);
  loop_->set_frames(&server_.memory());
  loop_->set_busy_poll(server_.options_.busy_poll_ns);
  // What a warm restart is for is that the service goes on soon.
  const auto registered = loop_->registered().add(
      *memory, server_.options_.warm ? uring_domain::pace::gradual : uring_domain::pace::at_once);
  *unregistered = registered ? loop_->registered().shortfall(*memory) : registered.error();
  if (!fds.empty()) {
    // Without registered files every transfer looks its file up: slower, and otherwise the same.
    static_cast<void>(loop_->queue().register_files(fds));
  }
  ready->set_value({});
  loop_->run();
  loop_->registered().remove(*memory);
  may_go_.acquire();  // stop() has done with the loop
  loop_.reset();
}

void server::worker::run(maker make) {
  auto* a = new assignment;
  a->self = this;
  a->make = std::move(make);
  a->completion::run = &start_assignment;
  loop_->post(*a);
}

void server::worker::run_and_wait(maker make, const std::function<void()>& tick) {
  // Shared: the waiter may be gone before set_value() has returned.
  auto done = std::make_shared<std::promise<void>>();
  std::future<void> ended = done->get_future();
  run([&make, done] { return run_then_signal(&make, done); });
  while (ended.wait_for(std::chrono::milliseconds(200)) != std::future_status::ready) {
    if (tick) tick();
  }
}

// A socket that is on its way to a loop.
struct server::worker::arrival : completion {
  worker* self = nullptr;
  unique_fd socket;
};

void server::worker::adopt(unique_fd socket) {
  client_count_.fetch_add(1, std::memory_order_relaxed);  // relaxed: a level
  request_memory& memory = server_.memory();
  void* const raw = memory.allocate(sizeof(arrival));
  if (raw == nullptr) return one_left();
  auto* a = new (raw) arrival;
  a->self = this;
  a->socket = std::move(socket);
  a->completion::run = [](completion& c) noexcept {
    auto& mine = static_cast<arrival&>(c);
    worker& w = *mine.self;
    unique_fd its_socket = std::move(mine.socket);
    mine.~arrival();
    w.server_.memory().free(&mine, sizeof mine);
    w.arrived(std::move(its_socket));
  };
  loop_->post(*a);
}

void server::worker::arrived(unique_fd socket) noexcept {
  if (draining_) return one_left();
  void* const raw = server_.memory().allocate(sizeof(client));
  if (raw == nullptr) return one_left();
  auto* c = new (raw) client(server_, *loop_, std::move(socket));
  if (!c->conn.usable()) return end_client(c);
  connections_.push_back(c->conn);
  start_checks();
  if (!serve_client(c).spawn(clients_)) end_client(c);
}

// A limit is kept to within a quarter of it; nothing goes off without clients or limits.
void server::worker::start_checks() noexcept {
  const connection_settings& limits = server_.settings();
  std::uint64_t shortest_ns = UINT64_MAX;
  for (const std::uint64_t ns : {limits.send_timeout_ns, limits.idle_timeout_ns}) {
    if (ns != 0) shortest_ns = std::min(shortest_ns, ns);
  }
  if (check_.started || shortest_ns == UINT64_MAX || connections_.empty()) return;
  check_.started = true;
  check_.self = this;
  check_.completion::run = [](completion& c) noexcept {
    worker& w = *static_cast<check&>(c).self;
    w.check_.started = false;
    const std::uint64_t now_ns = monotonic_clock::now_ns();
    for (connection& one : w.connections_) one.check_time(now_ns);
    w.start_checks();
  };
  check_.when.done = &check_;
  check_.when.deadline_ns = monotonic_clock::now_ns() + shortest_ns / 4;
  loop_->start(check_.when);
}

void server::worker::one_left() noexcept {
  client_count_.fetch_sub(1, std::memory_order_relaxed);  // relaxed: a level
  server_.client_left();
}

void server::worker::end_client(client* c) noexcept {
  c->conn.link.unlink();
  c->~client();
  server_.memory().free(c, sizeof *c);
  one_left();
  client_left_.wake_all();
  // If it has gone off at this moment it finds nobody.
  if (connections_.empty() && check_.started && loop_->cancel(check_.when)) check_.started = false;
}

task<> server::worker::serve_client(client* c) {
  co_await c->conn.run();
  end_client(c);
  co_return result<>{};
}

task<> server::worker::begin_drain() {
  draining_ = true;
  for (connection& c : connections_) c.stop();
  co_return result<>{};
}

task<> server::worker::drain(std::uint64_t deadline_ns) {
  const auto empty = [this]() noexcept { return connections_.empty(); };
  while (!empty() && monotonic_clock::now_ns() < deadline_ns) {
    co_await client_left_.wait_unless(
        empty, deadline_ns - std::min(deadline_ns, monotonic_clock::now_ns()));
  }
  for (connection& c : connections_) c.abandon();
  co_await clients_.idle();
  co_return result<>{};
}

void server::worker::finish() {
  // The accepts and flushers have been told to end; this waits for them, as a task outside of their
  // group.
  struct last_word : completion {
    worker* self = nullptr;
    task_group own;
    timer again;
    std::shared_ptr<std::promise<void>> signal = std::make_shared<std::promise<void>>();

    static task<> wait(last_word* w) {
      co_await w->self->background_.idle();
      w->signal->set_value();
      co_return result<>{};
    }
  };
  last_word last;
  last.self = this;
  last.completion::run = [](completion& c) noexcept {
    auto& w = static_cast<last_word&>(c);
    if (last_word::wait(&w).spawn(w.own)) return;
    w.again.deadline_ns = monotonic_clock::now_ns() + memory_pause_ns;  // no memory now
    w.again.done = &w;
    executor::current()->start(w.again);
  };
  std::future<void> ended = last.signal->get_future();
  loop_->post(last);
  ended.wait();
  stop();  // joins the thread, so `last` is not used any more
}

void server::worker::stop() {
  if (!thread_.joinable()) return;
  loop_->stop();
  may_go_.release();
  thread_.join();
}

}  // namespace forebay
