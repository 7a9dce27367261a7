#include "forebay/serve/server.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <new>

#include "forebay/serve/worker.h"

namespace forebay {
namespace {

constexpr std::uint64_t drain_grace_ns = 5'000'000'000;
constexpr std::uint64_t accept_pause_ns =
    100'000'000;  // after an error of accept, such as no free descriptors
constexpr std::uint64_t line_pause_ns = 1'000'000'000;
constexpr std::size_t pin_share =
    4;  // replies may pin a quarter of the cache, all clients together
constexpr std::size_t pin_max_pages = 256;

// All that was reserved is no limit: the arena is a little smaller than it was asked for.
std::uint64_t ceiling_of(const server_options& o, std::uint64_t cache_bytes) noexcept {
  return cache_bytes >= o.cache_max_bytes ? UINT64_MAX : cache_bytes;
}

struct tuning {
  std::optional<std::uint64_t> cache_bytes;
  std::optional<eviction_policy> eviction;
  std::optional<std::uint64_t> dirty_limit_bytes;
  std::optional<std::string> grown;  // the name of the export that is to grow, "" for all
};

// One change; a problem if it cannot be.
std::string read_change(std::string_view key, std::string_view value, const server_options& o,
                        tuning& out) {
  constexpr unsigned mib_shift = 20;
  if (key == "eviction") {
    out.eviction = eviction_policy_named(value);
    if (out.eviction) return {};
    return fmt::format("eviction {}: no such policy; choose {}", value, eviction_policy_names);
  }
  if (key == "resize") {
    out.grown = value;
    return {};
  }
  std::uint64_t bytes = 0;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), bytes);
  if (error != std::errc{} || end != value.data() + value.size()) {
    return fmt::format("{} {}: not a number of bytes", key, value);
  }
  if (key == "cache") {
    if (bytes < page_cache::min_bytes) {
      return fmt::format("cache {} MiB: too small; at least {} MiB", bytes >> mib_shift,
                         page_cache::min_bytes >> mib_shift);
    }
    if (bytes > o.cache_max_bytes) {
      return fmt::format(
          "cache {} MiB: the server has room reserved for {} MiB; start it with a larger "
          "--cache-max",
          bytes >> mib_shift, o.cache_max_bytes >> mib_shift);
    }
    out.cache_bytes = bytes;
    return {};
  }
  if (key == "dirty-limit") {
    out.dirty_limit_bytes = bytes != 0 ? bytes : UINT64_MAX;
    return {};
  }
  return fmt::format("{}: this server cannot tune that", key);
}

}  // namespace

result<std::unique_ptr<server>> server::create(const server_options& opts, memory_source& source) {
  if (opts.threads == 0 || opts.threads > max_threads) return fail(EINVAL);
  server_options bounded = opts;
  bounded.cache_max_bytes = std::max(opts.cache_bytes, opts.cache_max_bytes);
  auto cache = page_cache::create({.bytes = bounded.cache_max_bytes,
                                   .huge_pages = opts.huge_pages,
                                   .largest_pages = opts.largest_pages,
                                   .numa_node = opts.numa_node,
                                   .pin = opts.pin,
                                   .limit_bytes = ceiling_of(bounded, opts.cache_bytes),
                                   .eviction = opts.eviction,
                                   .warm = opts.warm,
                                   .miss_ratios = true},
                                  source);
  if (!cache) return fail(cache.error());
  // Every client may pin a page, so that it gets on, and all of them together no more than a share.
  bounded.max_clients = static_cast<unsigned>(
      std::min<std::size_t>(opts.max_clients, (*cache)->memory().page_count() / pin_share));
  request_memory::options share{.max_clients = bounded.max_clients, .numa_node = opts.numa_node};
  if (opts.connections.tls != tls_policy::off) {
    share.extra_bytes_max += bounded.max_clients * tls_channel::memory_bytes;
  }
  auto memory = request_memory::create(share, source);
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
  // The spaces take their pages off when they go; what is known of them stays.
  if (cache_->warm() != nullptr) cache_->warm()->close(false);
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
       .ceiling_bytes = ceiling_of(options_, options_.cache_bytes),
       .limit_changed = [this](std::uint64_t bytes) { follow_limit(bytes); }});
  if (!made) return fail(made.error());
  monitor_ = std::move(*made);
  return {};
}

void server::remark_on_memory() {
  const pressure_statistics s = monitor_->statistics();
  if (s.limit_bytes >= s.ceiling_bytes) return;
  remarks_.push_back(
      fmt::format("the cache starts with {} MiB of its {} MiB: the limit of the memory control "
                  "group is {} MiB, "
                  "{} MiB are in use; it grows when there is room",
                  s.limit_bytes >> 20, s.ceiling_bytes >> 20, s.group_limit_bytes >> 20,
                  s.group_usage_bytes >> 20));
}

void server::follow_limit(std::uint64_t bytes) noexcept {
  cache_->follow_limit(bytes);
  look_at_limits();
}

// Flushers that sleep and writers that wait may have something to do.
void server::look_at_limits() noexcept {
  for (const auto& e : exports_) e->space().wake_flusher();
  cache_->progress().wake_all();
}

result<> server::add_export(std::unique_ptr<device> dev, export_options opts) {
  if (has_export(opts.name)) return fail(EEXIST);
  exports_.push_back(std::make_unique<nbd_export>(std::move(dev), *cache_, std::move(opts)));
  return {};
}

void server::add_listener(unique_fd socket) { listeners_.push_back(std::move(socket)); }

result<> server::add_vhost_listener(std::string_view export_name, unique_fd socket) {
  nbd_export* const served = find_export(export_name);
  if (served == nullptr) return fail(ENOENT);
  vhost_listeners_.push_back({served, std::move(socket)});
  return {};
}

// A device's messages are one worker's; its queues are spread over all, beginning with that one.
void server::open_vhost_doors() {
  std::size_t first = 0;
  for (vhost_listener& l : vhost_listeners_) {
    std::vector<loop*> loops;
    loops.reserve(workers_.size());
    for (std::size_t i = 0; i < workers_.size(); ++i) {
      loops.push_back(&workers_[(first + i) % workers_.size()]->events());
    }
    worker* const on = workers_[first++ % workers_.size()].get();
    vhost_doors_.push_back(
        {on, std::make_unique<vhost_device>(*this, *l.served, loops, std::move(l.socket),
                                            options_.busy_poll_ns, options_.log)});
    on->run([device = vhost_doors_.back().device.get()] { return device->run(); });
  }
  vhost_listeners_.clear();
}

result<> server::start() {
  std::vector<int> fds;
  for (const auto& e : exports_) {
    if (const int fd = e->dev().registrable_fd(); fd >= 0) fds.push_back(fd);
  }
  // Its lock ends with the last transfer, then (kept_memory.h).
  if (cache_->warm() != nullptr) fds.push_back(cache_->warm()->fd());
  for (unsigned i = 0; i < options_.threads; ++i) {
    auto w = std::make_unique<worker>(*this, worker_clients_[i]);
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
  open_vhost_doors();
  for (const unique_fd& listener : listeners_) {
    acceptors_.push_back(std::make_unique<acceptor>(acceptor{listener.get(), nullptr}));
    first.run([this, a = acceptors_.back().get()] { return accept_clients(a); });
  }
  return {};
}

result<> server::recover() {
  if (cache_->warm() == nullptr) return {};
  std::array<address_space*, warm_store::images_max> by_slot{};
  for (const auto& e : exports_) {
    if (e->options().warm_slot) by_slot.at(*e->options().warm_slot) = &e->space();
  }
  return cache_->recover(by_slot);
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

// Each is counted; of many at a time one a second is told of.
void server::client_failed(client_failure which, int socket, const char* why) noexcept {
  // relaxed: a statistic.
  clients_failed_[static_cast<std::size_t>(which)].fetch_add(1, std::memory_order_relaxed);
  const std::uint64_t now_ns = monotonic_clock::now_ns();
  std::uint64_t next_ns = next_line_ns_.load(std::memory_order_relaxed);  // relaxed: orders nothing
  if (!options_.log || now_ns < next_ns ||
      !next_line_ns_.compare_exchange_strong(next_ns, now_ns + line_pause_ns,
                                             std::memory_order_relaxed)) {  // relaxed: as above
    return;
  }
  try {
    options_.log(fmt::format("{} is dropped: {}{}", peer_name(socket),
                             which == client_failure::tls ? "TLS: " : "", why));
  } catch (const std::bad_alloc&) {
    return;  // it is counted all the same
  }
}

server::worker& server::freest_worker() noexcept {
  // The first one is the last choice, because it has the flushers.
  const auto clients = [this](std::size_t i) {
    return worker_clients_[i].load(std::memory_order_relaxed);  // relaxed: a level
  };
  std::size_t best = workers_.size() - 1;
  for (std::size_t i = best; i-- != 0;) {
    if (clients(i) < clients(best)) best = i;
  }
  return *workers_[best];
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
      freest_worker().adopt(std::move(socket));
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
  for (vhost_door& d : vhost_doors_) d.on->run_and_wait([&d] { return d.device->stop(); });
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
  vhost_doors_.clear();
  workers_.clear();
  acceptors_.clear();
  listeners_.clear();
  if (outcome) return fail(outcome);
  if (cache_->warm() != nullptr) cache_->warm()->close(true);
  return {};
}

bool server::has_export(std::string_view name) const noexcept {
  return std::any_of(exports_.begin(), exports_.end(),
                     [&](const auto& e) { return e->name() == name; });
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

std::string server::check_limits(std::string_view text, export_limits& out) {
  if (std::string problem = read_limits(text, out); !problem.empty()) return problem;
  if (!out.name || has_export(*out.name)) return {};
  return fmt::format("there is no export of the name '{}'", *out.name);
}

void server::apply(const export_limits& limits) {
  for (const auto& e : exports_) {
    if (limits.name && *limits.name != e->name()) continue;
    e->rate().set(limits.over(e->rate().limits()));
    if (limits.memory_bytes) e->space().set_memory_limit(*limits.memory_bytes);
  }
}

std::string server::set_limits(std::string_view text) {
  export_limits limits;
  std::string problem = check_limits(text, limits);
  if (problem.empty()) apply(limits);
  return problem;
}

// Why an image cannot be followed, for the user.
std::string server::growth_problem(const nbd_export& e, std::error_code why) {
  if (why == std::errc::connection_already_in_progress) {
    return fmt::format("{}: another resize is under way; try again", e.name());
  }
  if (why == std::errc::invalid_argument) {
    return fmt::format(
        "{}: the image is smaller than the {} bytes that are served; make it as large again, or "
        "serve it anew",
        e.name(), e.size_bytes());
  }
  return fmt::format("{}: cannot be resized: {}", e.name(), why.message());
}

// Those of this name, or all.
task<std::string> server::grow_exports(std::string_view name) {
  bool found = false;
  for (const auto& e : exports_) {
    if (!name.empty() && e->name() != name) continue;
    found = true;
    const std::uint64_t before = e->size_bytes();
    const result<bool> grown = co_await e->grow();
    try {
      if (!grown) co_return growth_problem(*e, grown.error());
      if (*grown) tell_of_growth(*e, before);
    } catch (const std::bad_alloc&) {
      co_return fail(ENOMEM);
    }
  }
  co_return std::string(found ? "" : "resize: no export of that name");
}

void server::tell_of_growth(nbd_export& e, std::uint64_t bytes_before) {
  for (const vhost_door& d : vhost_doors_) {
    if (&d.device->served() != &e) continue;
    d.on->run([device = d.device.get()] { return device->tell_of_config(); });
  }
  if (!options_.log) return;
  options_.log(fmt::format("{}: {} bytes now, {} before", e.name(), e.size_bytes(), bytes_before));
}

task<std::string> server::tune(std::string_view changes) {
  tuning wanted;
  std::vector<export_limits> limits;
  std::string told;
  std::string problem;
  try {
    while (!changes.empty()) {
      const std::string_view line = changes.substr(0, changes.find('\n'));
      changes.remove_prefix(std::min(changes.size(), line.size() + 1));
      const std::size_t equals = line.find('=');
      if (equals == line.npos) co_return std::string("a change must be KEY=VALUE");
      const std::string_view key = line.substr(0, equals);
      const std::string_view value = line.substr(equals + 1);
      problem = key == "limit" ? check_limits(value, limits.emplace_back())
                               : read_change(key, value, options_, wanted);
      if (!problem.empty()) co_return problem;
      told.append(" ").append(line);
    }
  } catch (const std::bad_alloc&) {
    co_return fail(ENOMEM);
  }
  // The two that can fail come first.
  if (wanted.grown) {
    result<std::string> grown = co_await grow_exports(*wanted.grown);
    if (!grown || !grown->empty()) co_return grown;
  }
  if (wanted.eviction && !cache_->set_eviction(*wanted.eviction)) {
    co_return std::string("eviction: no memory for another policy's history");
  }
  if (wanted.dirty_limit_bytes) cache_->set_dirty_limit(*wanted.dirty_limit_bytes);
  if (wanted.cache_bytes) monitor_->set_ceiling(ceiling_of(options_, *wanted.cache_bytes));
  for (const export_limits& l : limits) apply(l);
  look_at_limits();
  try {
    if (options_.log) options_.log("tuned:" + told);
  } catch (const std::bad_alloc&) {
    co_return std::string();  // it is done all the same
  }
  co_return std::string();
}

server_statistics server::statistics() const {
  std::array<std::uint64_t, client_failures> failed{};
  for (std::size_t i = 0; i < failed.size(); ++i) {
    failed[i] = clients_failed_[i].load(std::memory_order_relaxed);  // relaxed: a statistic
  }
  std::vector<unsigned> by_thread(options_.threads);
  for (std::size_t i = 0; i < by_thread.size(); ++i) {
    by_thread[i] = worker_clients_[i].load(std::memory_order_relaxed);  // relaxed: a statistic
  }
  return {.uptime_s = static_cast<double>(monotonic_clock::now_ns() - started_ns_) / 1e9,
          .threads = options_.threads,
          // relaxed: statistics, all three.
          .clients = clients_.load(std::memory_order_relaxed),
          .clients_total = clients_total_.load(std::memory_order_relaxed),      // relaxed: above
          .clients_refused = clients_refused_.load(std::memory_order_relaxed),  // relaxed: above
          .clients_failed = failed,
          .clients_by_thread = std::move(by_thread)};
}

std::vector<nbd_export*> server::exports() {
  std::vector<nbd_export*> all;
  all.reserve(exports_.size());
  for (const auto& e : exports_) all.push_back(e.get());
  return all;
}

std::size_t server::pin_allowance(const nbd_export& of) const noexcept {
  // relaxed: a share that follows the number of clients with a delay is as good.
  const std::size_t clients = std::max(1u, clients_.load(std::memory_order_relaxed));
  const std::size_t pages = std::min(cache_->allowed_pages(), of.space().share().limit());
  return std::clamp<std::size_t>(pages / pin_share / clients, 1, pin_max_pages);
}

std::size_t server::request_allowance() const noexcept {
  // relaxed: as above.
  const std::size_t clients = std::max(1u, clients_.load(std::memory_order_relaxed));
  return memory_->limits().request_bytes_max / clients;
}

}  // namespace forebay
