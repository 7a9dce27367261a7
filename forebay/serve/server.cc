#include "forebay/serve/server.h"

#include <fmt/format.h>

#include <algorithm>

#include "forebay/serve/worker.h"

namespace forebay {
namespace {

constexpr unsigned max_threads = 64;
constexpr std::uint64_t drain_grace_ns = 5'000'000'000;
constexpr std::uint64_t accept_pause_ns =
    100'000'000;  // after an error of accept, such as no free descriptors
constexpr std::size_t pin_share =
    4;  // replies may pin a quarter of the cache, all clients together
constexpr std::size_t pin_max_pages = 256;

}  // namespace

result<std::unique_ptr<server>> server::create(const server_options& opts, memory_source& source) {
  if (opts.threads == 0 || opts.threads > max_threads) return fail(EINVAL);
  auto cache = page_cache::create({.bytes = opts.cache_bytes,
                                   .huge_pages = opts.huge_pages,
                                   .largest_pages = opts.largest_pages,
                                   .numa_node = opts.numa_node,
                                   .pin = opts.pin,
                                   .eviction = opts.eviction},
                                  source);
  if (!cache) return fail(cache.error());
  // Every client may pin a page, so that it gets on, and all of them together no more than a share.
  server_options bounded = opts;
  bounded.max_clients = static_cast<unsigned>(
      std::min<std::size_t>(opts.max_clients, (*cache)->memory().page_count() / pin_share));
  auto memory = request_memory::create(
      {.max_clients = bounded.max_clients, .numa_node = opts.numa_node}, source);
  if (!memory) return fail(memory.error());
  std::unique_ptr<server> made(new server(bounded, std::move(*cache), std::move(*memory)));
  if (auto r = made->watch_memory(); !r) return fail(r.error());
  return made;
}

server::server(const server_options& opts, std::unique_ptr<page_cache> cache,
               std::unique_ptr<request_memory> memory)
    : options_(opts), memory_(std::move(memory)), cache_(std::move(cache)) {}

server::~server() {
  FOREBAY_ASSERT(workers_.empty());
  monitor_.reset();
  for (shrinker* s : all_shrinkers()) shrinkers_.remove(*s);
}

// The cheap ones first: what they give may make chunks free.
std::array<shrinker*, 4> server::all_shrinkers() noexcept {
  return {&memory_->reclaim(), &reclaim_nodes_, &reclaim_buffers_, &reclaim_};
}

result<> server::watch_memory() {
  for (shrinker* s : all_shrinkers()) shrinkers_.add(*s);
  auto made = pressure_monitor::create(
      cache_->memory(), shrinkers_,
      {.floor_bytes = page_cache::min_bytes,
       .limit_changed = [this](std::uint64_t bytes) { cache_->follow_limit(bytes); }});
  if (!made) return fail(made.error());
  monitor_ = std::move(*made);
  return {};
}

void server::remark_on_memory() {
  const pressure_statistics s = monitor_->statistics();
  if (s.limit_bytes >= s.capacity_bytes) return;
  remarks_.push_back(
      fmt::format("the cache starts with {} MiB of its {} MiB: the limit of the memory control "
                  "group is {} MiB, "
                  "{} MiB are in use; it grows when there is room",
                  s.limit_bytes >> 20, s.capacity_bytes >> 20, s.group_limit_bytes >> 20,
                  s.group_usage_bytes >> 20));
}

result<> server::add_export(std::unique_ptr<device> dev, export_options opts) {
  const bool taken = std::any_of(exports_.begin(), exports_.end(),
                                 [&](const auto& e) { return e->name() == opts.name; });
  if (taken) return fail(EEXIST);
  exports_.push_back(std::make_unique<nbd_export>(std::move(dev), *cache_, std::move(opts)));
  return {};
}

void server::add_listener(unique_fd socket) { listeners_.push_back(std::move(socket)); }

result<> server::start() {
  std::vector<int> fds;
  for (const auto& e : exports_) {
    if (const int fd = e->dev().registrable_fd(); fd >= 0) fds.push_back(fd);
  }
  for (unsigned i = 0; i < options_.threads; ++i) {
    auto w = std::make_unique<worker>(*this);
    std::error_code unregistered;
    if (auto r = w->start(cache_->memory(), fds, unregistered); !r) {
      for (auto& started : workers_) started->stop();
      workers_.clear();
      return r;
    }
    workers_.push_back(std::move(w));
    if (unregistered && remarks_.empty()) {
      remarks_.push_back("not all of the cache's memory is registered with io_uring (" +
                         unregistered.message() +
                         "): transfers cost more; raise the locked-memory limit (ulimit -l)");
    }
  }
  remark_on_memory();
  monitor_->start();
  started_ns_ = monotonic_clock::now_ns();
  worker& first = *workers_.front();
  for (const auto& e : exports_) {
    first.run([&space = e->space()] { return space.run_flusher(); });
  }
  for (const unique_fd& listener : listeners_) {
    acceptors_.push_back(std::make_unique<acceptor>(acceptor{listener.get(), nullptr}));
    first.run([this, a = acceptors_.back().get()] { return accept_clients(a); });
  }
  return {};
}

bool server::client_arrived() noexcept {
  // relaxed, here and below: counts that order nothing.
  if (clients_.fetch_add(1, std::memory_order_relaxed) < options_.max_clients) {
    clients_total_.fetch_add(1, std::memory_order_relaxed);  // relaxed: a statistic
    return true;
  }
  clients_.fetch_sub(1, std::memory_order_relaxed);          // relaxed: as above
  clients_refused_.fetch_add(1, std::memory_order_relaxed);  // relaxed: a statistic
  return false;
}

void server::client_left() noexcept {
  clients_.fetch_sub(1, std::memory_order_relaxed);  // relaxed: a count
}

server::worker& server::next_worker() noexcept {
  // relaxed: any order of turns will do.
  return *workers_[next_worker_.fetch_add(1, std::memory_order_relaxed) % workers_.size()];
}

task<> server::accept_clients(acceptor* a) {
  // relaxed, here and below: set by stop_accepting() on this thread.
  while (!stopping_.load(std::memory_order_relaxed)) {
    const std::int32_t n = co_await await_completion([a](completion& done) noexcept {
      a->pending = &done;
      loop::current()->submit(uring_request::accept(a->listener), done);
    });
    a->pending = nullptr;
    unique_fd socket(n >= 0 ? n : -1);
    if (stopping_.load(std::memory_order_relaxed)) break;  // relaxed: as above
    if (!socket) {
      if (n != -EINTR && n != -ECONNABORTED) co_await sleep_for(accept_pause_ns);
    } else if (client_arrived()) {
      next_worker().adopt(std::move(socket));
    }
  }
  co_return result<>{};
}

// The listening sockets themselves stay as they are: they may be somebody else's too (socket
// activation).
task<> server::stop_accepting() {
  stopping_.store(true, std::memory_order_relaxed);  // relaxed: read on this thread
  for (const auto& a : acceptors_) {
    if (a->pending != nullptr) loop::current()->cancel(*a->pending);
  }
  co_return result<>{};
}

task<> server::final_flush(std::error_code* outcome) {
  for (const auto& e : exports_) {
    if (e->is_read_only()) continue;
    const result<> r = co_await e->space().flush();
    if (!r && !*outcome) *outcome = r.error();
  }
  for (const auto& e : exports_) e->space().stop_flusher();
  for (const auto& e : exports_) co_await e->space().read_ahead_over();
  co_return result<>{};
}

result<> server::shutdown(const std::function<void(std::uint64_t)>& progress) {
  if (workers_.empty()) return {};
  workers_.front()->run_and_wait([this] { return stop_accepting(); });
  for (auto& w : workers_) {
    w->run_and_wait([&w] { return w->begin_drain(); });
  }
  const std::uint64_t deadline = monotonic_clock::now_ns() + drain_grace_ns;
  for (auto& w : workers_) {
    w->run_and_wait([&w, deadline] { return w->drain(deadline); });
  }
  std::error_code outcome;
  workers_.front()->run_and_wait([&] { return final_flush(&outcome); },
                                 [&] {
                                   if (!progress) return;
                                   const auto s = cache_->statistics();
                                   progress(s.dirty_pages + s.writeback_pages);
                                 });
  // The loops answer for what is given back, so they end after it.
  monitor_->stop();
  for (auto& w : workers_) w->finish();
  workers_.clear();
  acceptors_.clear();
  listeners_.clear();
  if (outcome) return fail(outcome);
  return {};
}

nbd_export* server::find_export(std::string_view name) noexcept {
  if (name.empty() && !exports_.empty()) return exports_.front().get();
  const auto found = std::find_if(exports_.begin(), exports_.end(),
                                  [&](const auto& e) { return e->name() == name; });
  return found == exports_.end() ? nullptr : found->get();
}

nbd_export* server::export_at(std::size_t index) noexcept {
  return index < exports_.size() ? exports_[index].get() : nullptr;
}

std::vector<nbd_export*> server::exports() {
  std::vector<nbd_export*> all;
  all.reserve(exports_.size());
  for (const auto& e : exports_) all.push_back(e.get());
  return all;
}

std::size_t server::pin_allowance() const noexcept {
  // relaxed: a share that follows the number of clients with a delay is as good.
  const std::size_t clients = std::max(1u, clients_.load(std::memory_order_relaxed));
  const std::size_t pages = cache_->allowed_pages();
  return std::clamp<std::size_t>(pages / pin_share / clients, 1, pin_max_pages);
}

std::size_t server::request_allowance() const noexcept {
  // relaxed: as above.
  const std::size_t clients = std::max(1u, clients_.load(std::memory_order_relaxed));
  return memory_->limits().request_bytes_max / clients;
}

}  // namespace forebay
