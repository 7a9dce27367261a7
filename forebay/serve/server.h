// The block server: exports behind one page cache, served to NBD clients by a few event loops.
//
//   listeners ──> worker 0 (accepts, runs the flushers) ──┐
//                 worker 1                                ├──> page cache ──> devices
//                 …  each: a thread, a loop, its clients ─┘
//
// Life: create, start(), and from any other thread shutdown(): accepting ends, requests under way
// are answered, every dirty page is written and flushed, the threads end.
//
// While it runs, a pressure monitor keeps the cache within what the machine and its control groups
// have to give: below cache_bytes when that is more, up to it again later. Size and policy of the
// cache can be changed (tune()), and what it holds stays as far as it fits. An image that has grown
// is followed when that is asked for, the same way.
//
// Locks: lock_ of a worker's mailbox is inside loop::post; the server's own state is set before
// start() and constant after, but for the atomics.
#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "forebay/cache/shrink.h"
#include "forebay/cache/warm_store.h"
#include "forebay/memory/pressure_monitor.h"
#include "forebay/memory/slab_shrinker.h"
#include "forebay/os/socket.h"
#include "forebay/serve/connection.h"
#include "forebay/serve/export_limits.h"
#include "forebay/serve/vhost_device.h"

namespace forebay {

struct server_options {
  std::size_t cache_bytes = 256u << 20;
  // Up to which size it may be tuned while it runs; cache_bytes if that is more.
  std::size_t cache_max_bytes = 0;
  unsigned threads = 1;         // 1 to 64
  unsigned max_clients = 1024;  // more are turned away; at most one for each 4 pages of cache
  bool huge_pages = true;
  // The rest as in arena::options: the cache's pages to begin with, where all memory is to lie, and
  // whether the cache's is kept from being swapped out.
  std::optional<page_backing> largest_pages = std::nullopt;
  int numa_node = any_numa_node;
  bool pin = false;
  // For so long a loop looks for work before it sleeps, while that is of use (ring/busy_poll.h).
  std::uint64_t busy_poll_ns = 20'000;
  eviction_policy eviction = eviction_policy::adaptive;
  // Where the cache lies, so that it outlives the process; made for cache_bytes (warm_store.h).
  std::shared_ptr<warm_store> warm = nullptr;
  connection_settings connections = {};  // its credentials live as long as the server
  // Told what a user may want to know of while the server runs, in a line; from any thread.
  std::function<void(const std::string&)> log = {};
};

struct server_statistics {
  double uptime_s = 0;
  unsigned threads = 0;
  unsigned clients = 0;
  std::uint64_t clients_total = 0;
  std::uint64_t clients_refused = 0;
  std::array<std::uint64_t, client_failures> clients_failed{};  // by client_failure
  std::vector<unsigned> clients_by_thread;
};

class server final : public connection_host {
 public:
  static constexpr unsigned max_threads = 64;

  // Errors: as page_cache::create; EINVAL for a number of threads out of range.
  static result<std::unique_ptr<server>> create(const server_options& opts,
                                                memory_source& source = memory_source::system());
  // shutdown() must have returned, or start() not been called.
  ~server() override;

  // Before start(): an image to serve; the first is also the default export. EEXIST if the name is
  // taken.
  result<> add_export(std::unique_ptr<device> dev, export_options opts);
  // Limits of exports that have been added, as export_limits.h says; empty, or what is wrong with
  // the text, in a line for the user. Throws std::bad_alloc. Any thread.
  std::string set_limits(std::string_view text);
  // Before start(): a listening socket.
  void add_listener(unique_fd socket);
  // Before start(): a listening unix socket where virtual machines find an export as their disk
  // (vhost_device.h). ENOENT if there is no export of that name.
  result<> add_vhost_listener(std::string_view export_name, unique_fd socket);

  // Before start(), with all exports added: takes over the pages that server_options::warm holds.
  // Errors: as warm_store::recover().
  result<> recover();

  // Starts the threads and accepts clients. Errors: as loop::create; everything is as before then.
  result<> start();

  // What could not be had and was done without, in words for the user; after start().
  const std::vector<std::string>& remarks() const noexcept { return remarks_; }

  // Ends everything, in order. `progress` is called about five times a second with the pages that
  // are still to be written. Error: the first of a final flush; what it could not write is lost.
  result<> shutdown(const std::function<void(std::uint64_t dirty_pages)>& progress = {});

  page_cache& cache() noexcept { return *cache_; }
  // In the order in which they were added.
  std::vector<nbd_export*> exports();

  // What is counted of the server as a whole. Throws std::bad_alloc. Any thread, after start().
  server_statistics statistics() const;
  pressure_monitor& monitor() noexcept { return *monitor_; }
  shrinker_registry& shrinkers() noexcept { return shrinkers_; }

  // connection_host
  nbd_export* find_export(std::string_view name) noexcept override;
  nbd_export* export_at(std::size_t index) noexcept override;
  std::string statistics_text() override;
  task<std::string> tune(std::string_view changes) override;
  bool client_arrived() noexcept override;
  void client_left() noexcept override;
  request_memory& memory() noexcept override { return *memory_; }
  std::size_t pin_allowance(const nbd_export& of) const noexcept override;
  std::size_t request_allowance() const noexcept override;
  const connection_settings& settings() const noexcept override { return options_.connections; }
  void client_failed(client_failure which, int socket, const char* why) noexcept override;

 private:
  class worker;

  server(const server_options& opts, std::unique_ptr<page_cache> cache,
         std::unique_ptr<request_memory> memory);

  std::array<shrinker*, 4> all_shrinkers() noexcept;
  result<> watch_memory();
  void remark_on_memory();
  void follow_limit(std::uint64_t bytes) noexcept;
  void look_at_limits() noexcept;
  // Of that very name, where find_export() takes "" for the first one.
  bool has_export(std::string_view name) const noexcept;
  std::string check_limits(std::string_view text, export_limits& out);
  void apply(const export_limits& limits);
  worker& freest_worker() noexcept;
  // An accept that is under way on worker 0's loop; its fields belong to that thread.
  struct acceptor {
    int listener = -1;
    completion* pending = nullptr;
  };

  task<> accept_clients(acceptor* a);
  task<> stop_accepting();
  void open_vhost_doors();
  task<std::string> grow_exports(std::string_view name);
  static std::string growth_problem(const nbd_export& e, std::error_code why);
  void tell_of_growth(nbd_export& e, std::uint64_t bytes_before);
  task<> final_flush(std::error_code* outcome);

  const server_options options_;
  std::unique_ptr<request_memory> memory_;
  std::unique_ptr<page_cache> cache_;
  shrinker_registry shrinkers_;
  page_cache_shrinker reclaim_{*cache_};
  slab_shrinker reclaim_buffers_{cache_->buffers().slabs()};
  slab_shrinker reclaim_nodes_{cache_->nodes()};
  std::unique_ptr<pressure_monitor> monitor_;
  std::vector<std::unique_ptr<nbd_export>> exports_;
  std::vector<unique_fd> listeners_;
  std::vector<std::unique_ptr<acceptor>> acceptors_;
  struct vhost_listener {
    nbd_export* served;
    unique_fd socket;
  };
  std::vector<vhost_listener> vhost_listeners_;  // until start()
  struct vhost_door {
    worker* on;
    std::unique_ptr<vhost_device> device;
  };
  std::vector<vhost_door> vhost_doors_;
  std::vector<std::unique_ptr<worker>> workers_;
  std::vector<std::string> remarks_;
  std::uint64_t started_ns_ = 0;
  std::atomic<unsigned> clients_{0};
  std::atomic<std::uint64_t> clients_total_{0};
  std::atomic<std::uint64_t> clients_refused_{0};
  std::array<std::atomic<std::uint64_t>, client_failures> clients_failed_{};
  std::array<std::atomic<unsigned>, max_threads> worker_clients_{};
  std::atomic<std::uint64_t> next_line_ns_{0};  // about a client that failed
  std::atomic<bool> stopping_{false};
};

}  // namespace forebay
