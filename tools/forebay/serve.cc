// forebay serve: puts images behind the page cache and serves them over NBD and vhost-user-blk.

#include <systemd/sd-daemon.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <optional>
#include <thread>

#include "forebay/block/file_device.h"
#include "forebay/os/numa.h"
#include "forebay/os/sandbox.h"
#include "forebay/serve/dashboard.h"
#include "forebay/serve/server.h"
#include "tools/forebay/command.h"
#include "tools/forebay/serve_clients.h"

namespace forebay::tool {
namespace {

struct serve_options {
  std::vector<std::string> images;
  std::optional<std::uint64_t> cache_bytes;  // none: chosen by the memory there is
  std::optional<std::uint64_t> cache_max_bytes;
  std::string socket;
  std::string listen;
  std::vector<std::string> vhost_sockets;  // of the first images, in their order
  std::string http;
  std::string name;
  bool read_only = false;
  bool write_through = false;
  bool write_back = false;
  unsigned block_bytes = 512;
  std::uint64_t readahead_bytes = export_options().readahead_bytes;
  unsigned threads = 0;
  std::string huge_pages;
  int numa_node = any_numa_node;
  bool pin = false;
  unsigned spin_us = 20;
  std::string warm;           // the file that the cache lies in
  bool warm_discard = false;  // what it holds is given up
  std::string eviction{to_string(eviction_policy::adaptive)};
  bool no_sandbox = false;
  client_options clients;
};

constexpr std::uint64_t default_cache_bytes = 1ull << 30;
constexpr std::uint64_t slow_cache_bytes = 4ull << 30;  // takes a second or more to set up
constexpr const char* default_socket = "forebay.sock";

// Why an image cannot be served, and what to do about it.
std::string image_problem(const std::string& path, std::error_code e) {
  if (e == errc::in_use) {
    return fmt::format("{}: already served or in use by another process; stop that one first",
                       path);
  }
  if (e == errc::empty_device) {
    return fmt::format("{}: the image is empty; give it a size first (truncate -s 1G {})", path,
                       path);
  }
  if (e == errc::not_a_device) {
    return fmt::format("{}: neither a regular file nor a block device", path);
  }
  if (e == std::errc::is_a_directory) {
    return fmt::format("{}: is a directory; name an image file or block device", path);
  }
  if (e == std::errc::no_such_file_or_directory) {
    return fmt::format("{}: no such file; create it first (truncate -s 1G {})", path, path);
  }
  if (e == std::errc::permission_denied || e == std::errc::read_only_file_system ||
      e == std::errc::operation_not_permitted) {
    return fmt::format(
        "{}: cannot be opened for writing ({}); serve it with --read-only or change "
        "its permissions",
        path, e.message());
  }
  return fmt::format("{}: {}", path, e.message());
}

std::string socket_problem(const std::string& where, std::error_code e) {
  if (e == std::errc::filename_too_long) {
    return fmt::format(
        "{}: the socket's path is too long (107 bytes at most); choose a shorter one", where);
  }
  if (e == std::errc::address_in_use) {
    return fmt::format("{}: in use by another server; choose another address or stop that one",
                       where);
  }
  if (e == std::errc::file_exists) {
    return fmt::format("{}: exists and is not a socket; choose another path or remove it", where);
  }
  if (e == std::errc::address_not_available) {
    return fmt::format("{}: not an address of this machine; choose another one", where);
  }
  return fmt::format("{}: cannot listen there: {}", where, e.message());
}

// The cache's size: as asked for, or a quarter of the memory up to 1 GiB. A message if that cannot
// be.
std::optional<std::string> settle_cache_size(std::optional<std::uint64_t> asked,
                                             std::uint64_t& bytes) {
  const std::uint64_t memory = memory_limit_bytes();
  bytes = asked.value_or(
      std::clamp(memory / 4, std::uint64_t{page_cache::min_bytes}, default_cache_bytes));
  if (bytes < page_cache::min_bytes) {
    return fmt::format("--cache {}: too small; at least {}", human_bytes(bytes),
                       human_bytes(page_cache::min_bytes));
  }
  // More than a control group allows is fine: the server says so, and takes what there is.
  const std::uint64_t most = std::min<std::uint64_t>(machine_memory_bytes(), arena::max_bytes);
  if (bytes > most) {
    return fmt::format("--cache {}: larger than the memory there is ({}); choose less",
                       human_bytes(bytes), human_bytes(most));
  }
  return std::nullopt;
}

// What is only reserved may be more than the memory there is at present.
std::optional<std::string> check_cache_max(std::optional<std::uint64_t> asked,
                                           std::uint64_t cache_bytes) {
  if (!asked) return std::nullopt;
  if (*asked < cache_bytes) {
    return fmt::format("--cache-max {}: less than the cache's size at the start, {}",
                       human_bytes(*asked), human_bytes(cache_bytes));
  }
  if (*asked > arena::max_bytes) {
    return fmt::format("--cache-max {}: at most {}", human_bytes(*asked),
                       human_bytes(arena::max_bytes));
  }
  return std::nullopt;
}

std::optional<std::string> check_options(const serve_options& o) {
  if (!o.socket.empty() && !o.listen.empty()) {
    return "--socket and --listen exclude each other; choose one";
  }
  if (o.vhost_sockets.size() > o.images.size()) {
    return "--vhost-user: more sockets than images; the first is the first image's, and so on";
  }
  if (o.write_back && o.write_through) {
    return "--write-back and --write-through exclude each other; choose one";
  }
  if (o.cache_max_bytes && !o.warm.empty()) {
    return "--cache-max does not go with --warm, whose file has the size of the cache";
  }
  if (auto problem = check_client_options(o.clients, o.images.size())) return problem;
  if (!o.name.empty() && o.images.size() > 1) {
    return "--name goes with a single image; several are named after their files";
  }
  if (auto problem = check_text("--name", o.name)) return problem;
  if (o.numa_node != any_numa_node && !numa_node_exists(o.numa_node)) {
    return fmt::format(
        "--numa-node {}: this machine has no such node; numactl --hardware lists them",
        o.numa_node);
  }
  if (!eviction_policy_named(o.eviction)) {
    return fmt::format("--eviction {}: no such policy; choose {}", o.eviction,
                       eviction_policy_names);
  }
  if (o.block_bytes < 512 || o.block_bytes > page_bytes ||
      (o.block_bytes & (o.block_bytes - 1)) != 0) {
    return fmt::format("--block-size {}: must be 512, 1024, 2048 or 4096", o.block_bytes);
  }
  return std::nullopt;
}

struct opened_image {
  std::unique_ptr<file_device> dev;
  export_options opts;
};

// Opens everything before anything is served. A message at the first that cannot be.
std::optional<std::string> open_images(const serve_options& o, std::vector<opened_image>& out) {
  for (const std::string& path : o.images) {
    auto dev = file_device::open(path, {.read_only = o.read_only});
    if (!dev) return image_problem(path, dev.error());
    const device_limits& limits = (*dev)->limits();
    const std::uint32_t block = std::max(o.block_bytes, limits.logical_block_bytes);
    if (limits.size_bytes % block != 0) {
      return fmt::format(
          "{}: its size, {} bytes, is not a multiple of the block size {}; extend it "
          "(truncate -s %{} {}){}",
          path, limits.size_bytes.get(), block, block, path,
          block > 512 ? " or choose a smaller --block-size" : "");
    }
    opened_image image;
    image.opts.name = o.name.empty() ? std::filesystem::path(path).filename().string() : o.name;
    image.opts.description = out.size() < o.clients.descriptions.size()
                                 ? o.clients.descriptions[out.size()]
                                 : fmt::format("{} of {}{}", human_bytes(limits.size_bytes), path,
                                               o.read_only ? ", read-only" : "");
    image.opts.min_block_bytes = block;
    image.opts.write_through = o.write_through;
    image.opts.readahead_bytes = o.readahead_bytes;
    for (const opened_image& other : out) {
      if (other.opts.name == image.opts.name) {
        return fmt::format("{}: a second image of the name '{}'; rename one of them", path,
                           image.opts.name);
      }
    }
    if (!limits.direct) {
      fmt::print(
          stderr,
          "forebay: note: {}: its file system refuses direct I/O, so its data passes through "
          "the kernel's page cache too\n",
          path);
    }
    image.dev = std::move(*dev);
    out.push_back(std::move(image));
  }
  return std::nullopt;
}

std::string absolute_path(const std::string& path) {
  std::error_code ignored;
  const auto absolute = std::filesystem::absolute(path, ignored);
  return ignored ? path : absolute.string();
}

// The file that the cache lies in, and what it still held. Before the images are opened: some may
// have to be written to first.
std::optional<std::string> open_warm(const serve_options& o, std::uint64_t cache_bytes,
                                     std::shared_ptr<warm_store>& out) {
  if (o.warm.empty()) return std::nullopt;
  warm_store::options opts{.path = absolute_path(o.warm),
                           .cache_bytes = cache_bytes,
                           .images = {},
                           .discard = o.warm_discard};
  for (const std::string& path : o.images) {
    if (auto id = identity_of(path); !id) return image_problem(path, id.error());
    opts.images.push_back({absolute_path(path), o.block_bytes, o.read_only});
  }
  auto store = warm_store::open(opts);
  if (!store) return store.error();
  out = std::move(*store);
  for (const std::string& remark : out->remarks()) {
    fmt::print(stderr, "forebay: note: warm: {}\n", remark);
  }
  return std::nullopt;
}

// Where clients come in: sockets handed over by systemd, a unix socket, or TCP; sockets of virtual
// machines; or the former and the latter.
struct entrance {
  std::vector<unique_fd> sockets;
  endpoint where;
  bool activated = false;
  // A unix socket of a virtual machine's disk, one for each of the first images.
  struct vhost_socket {
    std::string path;
    unique_fd socket;
  };
  std::vector<vhost_socket> vhost;

  ~entrance() {
    if (where.is_unix() && !activated && created) remove_socket_file(where.path);
    for (const vhost_socket& v : vhost) remove_socket_file(v.path);
  }
  bool created = false;
};

std::optional<std::string> open_vhost_sockets(const serve_options& o, entrance& e) {
  for (const std::string& path : o.vhost_sockets) {
    auto socket = listen_unix(path);
    if (!socket) return socket_problem("--vhost-user " + path, socket.error());
    std::error_code ignored;
    const auto absolute = std::filesystem::absolute(path, ignored);
    e.vhost.push_back({ignored ? path : absolute.string(), std::move(*socket)});
  }
  return std::nullopt;
}

std::optional<std::string> open_entrance(const serve_options& o, entrance& e) {
  if (auto problem = open_vhost_sockets(o, e)) return problem;
  const int handed_over = sd_listen_fds(1);
  if (handed_over < 0) return "socket activation: the environment's LISTEN_FDS makes no sense";
  if (handed_over > 0) {
    if (!o.socket.empty() || !o.listen.empty()) {
      return "--socket and --listen do not go with socket activation, which brings its own sockets";
    }
    for (int i = 0; i < handed_over; ++i) {
      const int fd = SD_LISTEN_FDS_START + i;
      if (sd_is_socket(fd, AF_UNSPEC, SOCK_STREAM, 1) <= 0) {
        return fmt::format("socket activation: descriptor {} is not a listening stream socket", fd);
      }
      e.sockets.emplace_back(fd);
    }
    e.activated = true;
    return std::nullopt;
  }
  if (!o.listen.empty()) {
    auto where = endpoint::parse_tcp(o.listen);
    if (!where) return fmt::format("--listen {}: must be HOST:PORT", o.listen);
    auto sockets = listen_tcp(where->host, where->port);
    if (!sockets) return socket_problem("--listen " + o.listen, sockets.error());
    e.where = *where;
    e.sockets = std::move(*sockets);
    return std::nullopt;
  }
  // Who only wants virtual machines gets no NBD.
  if (o.socket.empty() && !e.vhost.empty()) return std::nullopt;
  e.where.path = o.socket.empty() ? default_socket : o.socket;
  auto socket = listen_unix(e.where.path);
  if (!socket) return socket_problem(e.where.path, socket.error());
  e.created = true;
  e.sockets.push_back(std::move(*socket));
  std::error_code ignored;
  const auto absolute = std::filesystem::absolute(e.where.path, ignored);
  if (!ignored) e.where.path = absolute.string();
  return std::nullopt;
}

std::optional<std::string> open_http(const std::string& text, std::optional<endpoint>& where,
                                     std::vector<unique_fd>& sockets) {
  auto parsed = endpoint::parse_tcp(text);
  if (!parsed) return fmt::format("--http {}: must be HOST:PORT", text);
  auto opened = listen_tcp(parsed->host, parsed->port);
  if (!opened) return socket_problem("--http " + text, opened.error());
  where = std::move(*parsed);
  sockets = std::move(*opened);
  return std::nullopt;
}

// The first part of the sandbox, before there are threads: what this server opens, it has open, and
// at its end it removes its sockets. A message if that cannot be.
std::optional<std::string> confine(const entrance& e, sandbox& box) {
  box.allow_own_state();
  const auto allow_removal = [&](const std::string& socket) {
    const std::filesystem::path directory = std::filesystem::path(socket).parent_path();
    if (!directory.empty()) box.allow_remove(directory.string());
  };
  if (e.created) allow_removal(e.where.path);
  for (const entrance::vhost_socket& v : e.vhost) allow_removal(v.path);
  if (auto r = box.confine(); !r) {
    return fmt::format("cannot enter the sandbox: {} (--no-sandbox does without)",
                       r.error().message());
  }
  return std::nullopt;
}

// The second part, when all threads run.
std::optional<std::string> close_sandbox(sandbox& box) {
  if (auto r = box.close(); !r) {
    return fmt::format("cannot filter system calls: {} (--no-sandbox does without)",
                       r.error().message());
  }
  for (const std::string& remark : box.remarks()) fmt::print(stderr, "forebay: note: {}\n", remark);
  return std::nullopt;
}

void announce(const entrance& e, bool has_nbd, bool demands_tls, const server& s,
              std::span<const std::string> names, std::uint64_t cache_bytes, const arena& memory) {
  for (const std::string& remark : s.remarks()) fmt::print(stderr, "forebay: note: {}\n", remark);
  for (const std::string& remark : memory.remarks()) {
    fmt::print(stderr, "forebay: note: cache: {}\n", remark);
  }
  std::vector<std::string> doors;
  if (e.activated) {
    doors.emplace_back("the sockets of its activation");
  } else if (has_nbd) {
    doors.push_back(e.where.nbd_uri(names.size() == 1 ? "" : names.front(), demands_tls));
  }
  for (const entrance::vhost_socket& v : e.vhost) doors.push_back("vhost-user:" + v.path);
  fmt::print("forebay: serving {} at {} (cache {}, {})\n", fmt::join(names, ", "),
             fmt::join(doors, " and "), human_bytes(cache_bytes), to_string(memory.backing()));
  std::fflush(stdout);
}

// The line about what is still to be written at the end, once it has taken a second.
class flush_progress {
 public:
  void operator()(std::uint64_t pages) {
    if (std::chrono::steady_clock::now() - start_ < std::chrono::seconds(1)) return;
    shown_ = true;
    fmt::print(stderr, "\rforebay: writing back, {} left   ", human_bytes(pages * page_bytes));
    std::fflush(stderr);
  }
  void finish() const {
    if (shown_) fmt::print(stderr, "\rforebay: everything is written back      \n");
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  bool shown_ = false;
};

int end_server(server& s) {
  // A second Ctrl-C ends it at once.
  unblock_signals({SIGINT, SIGTERM, SIGHUP});
  flush_progress progress;
  const result<> flushed = s.shutdown([&](std::uint64_t pages) { progress(pages); });
  if (!flushed) {
    if (const warm_store* const warm = s.cache().warm()) {
      return complain(
          fmt::format("some data could not be written back: {}; {} keeps it for the "
                      "next start with --warm",
                      flushed.error().message(), warm->path()));
    }
    return complain(fmt::format("some data could not be written back and is lost: {}",
                                flushed.error().message()));
  }
  progress.finish();
  return 0;
}

// What a server is told of the options, which have been checked.
server_options settings_of(const serve_options& o, std::uint64_t cache_bytes) {
  server_options so;
  so.cache_bytes = cache_bytes;
  so.cache_max_bytes = o.cache_max_bytes.value_or(cache_bytes);
  so.threads = o.threads != 0 ? o.threads : std::clamp(std::thread::hardware_concurrency(), 1u, 4u);
  so.huge_pages = o.huge_pages != "no";
  if (o.huge_pages == "1G") so.largest_pages = page_backing::gigantic_reserved;
  if (o.huge_pages == "2M") so.largest_pages = page_backing::huge_reserved;
  so.numa_node = o.numa_node;
  so.pin = o.pin;
  so.busy_poll_ns = std::uint64_t{o.spin_us} * 1000;
  so.eviction = *eviction_policy_named(o.eviction);
  so.log = [](const std::string& line) { fmt::print(stderr, "forebay: {}\n", line); };
  return so;
}

int serve(const serve_options& o) {
  if (auto problem = check_options(o)) return complain(*problem);
  std::uint64_t cache_bytes = 0;
  if (auto problem = settle_cache_size(o.cache_bytes, cache_bytes)) return complain(*problem);
  if (auto problem = check_cache_max(o.cache_max_bytes, cache_bytes)) return complain(*problem);
  std::shared_ptr<warm_store> warm;
  if (auto problem = open_warm(o, cache_bytes, warm)) return complain(*problem);
  std::vector<opened_image> images;
  if (auto problem = open_images(o, images)) return complain(*problem);
  auto signals = make_signal_fd({SIGINT, SIGTERM, SIGHUP});
  if (!signals)
    return complain(fmt::format("cannot wait for signals: {}", signals.error().message()));
  std::signal(SIGPIPE, SIG_IGN);

  server_options so = settings_of(o, cache_bytes);
  so.warm = warm;
  std::unique_ptr<tls_credentials> credentials;
  if (auto problem = settle_clients(o.clients, so, credentials)) return complain(*problem);
  auto made = server::create(so);
  if (!made && warm && made.error() == std::errc::no_space_on_device) {
    return complain(
        fmt::format("{}: its file system has no room for a cache of {}; choose a "
                    "smaller --cache or make it larger (mount -o remount,size=)",
                    warm->path(), human_bytes(cache_bytes)));
  }
  if (!made) {
    return complain(fmt::format("cannot set up a cache of {}: {}", human_bytes(cache_bytes),
                                made.error().message()));
  }
  if (cache_bytes >= slow_cache_bytes) {
    fmt::print(stderr, "forebay: setting up a cache of {} ...\n", human_bytes(cache_bytes));
  }
  server& s = **made;
  std::vector<unique_fd> http_sockets;
  std::optional<endpoint> http_where;
  if (!o.http.empty()) {
    if (auto problem = open_http(o.http, http_where, http_sockets)) return complain(*problem);
  }
  std::vector<std::string> names;
  for (opened_image& image : images) {
    if (warm) image.opts.warm_slot = warm->slot_of(names.size());
    names.push_back(image.opts.name);
    if (auto r = s.add_export(std::move(image.dev), std::move(image.opts)); !r) {
      return complain(fmt::format("{}: {}", names.back(), r.error().message()));
    }
  }
  if (auto problem = settle_limits(o.clients, s)) return complain(*problem);
  if (auto r = s.recover(); !r) {
    return complain(fmt::format(
        "{}: cannot be taken over ({}); nothing was changed, --warm-discard gives up what it holds",
        warm->path(), r.error().message()));
  }
  entrance door;
  if (auto problem = open_entrance(o, door)) return complain(*problem);
  if (auto problem = check_reach(o.clients, o.listen, door.sockets)) return complain(*problem);
  const bool has_nbd = !door.sockets.empty();
  for (unique_fd& socket : door.sockets) s.add_listener(std::move(socket));
  for (std::size_t i = 0; i < door.vhost.size(); ++i) {
    if (auto r = s.add_vhost_listener(names[i], std::move(door.vhost[i].socket)); !r) {
      return complain(fmt::format("{}: {}", names[i], r.error().message()));
    }
  }
  sandbox box;
  if (!o.no_sandbox) {
    if (auto problem = confine(door, box)) return complain(*problem);
  }
  if (auto r = s.start(); !r) {
    return complain(fmt::format("cannot start: {}{}", r.error().message(),
                                r.error() == std::errc::operation_not_permitted ||
                                        r.error() == std::errc::function_not_supported
                                    ? " (io_uring is switched off: sysctl kernel.io_uring_disabled)"
                                    : ""));
  }
  std::unique_ptr<dashboard> board;
  if (http_where) {
    auto started = dashboard::start(s, std::move(http_sockets), http_where->host);
    if (!started) {
      static_cast<void>(end_server(s));
      return complain(fmt::format("--http {}: {}", o.http, started.error().message()));
    }
    board = std::move(*started);
    fmt::print("forebay: dashboard at http://{}/\n", o.http);
  }
  if (!o.no_sandbox) {
    if (auto problem = close_sandbox(box)) {
      board.reset();
      static_cast<void>(end_server(s));
      return complain(*problem);
    }
  }
  announce(door, has_nbd, o.clients.policy() == tls_policy::require, s, names, cache_bytes,
           s.cache().memory());
  sd_notify(0, "READY=1");
  const auto signal = wait_for_signal(signals->get());
  sd_notify(0, "STOPPING=1");
  board.reset();
  const int status = end_server(s);
  return signal ? status : complain(signal.error().message());
}

}  // namespace

void add_serve(CLI::App& app, action& chosen) {
  auto o = std::make_shared<serve_options>();
  CLI::App* c = app.add_subcommand(
      "serve", "Serve disk images to NBD clients and virtual machines through the cache");
  c->add_option("IMAGE", o->images,
                "Regular files or block devices; each is an export named after "
                "its file, the first one also the default")
      ->required();
  c->add_option("--cache", o->cache_bytes,
                "Size of the cache, as 512M or 2G (a quarter of the memory, at most 1G)")
      ->transform(CLI::AsSizeValue(false));
  c->add_option("--cache-max", o->cache_max_bytes,
                "Up to what size 'forebay tune' may make it (its size at the start)")
      ->transform(CLI::AsSizeValue(false));
  c->add_option("--socket", o->socket, "Listen on a unix socket (forebay.sock)")->type_name("PATH");
  c->add_option("--listen", o->listen, "Listen on TCP instead")->type_name("HOST:PORT");
  c->add_option(
       "--vhost-user", o->vhost_sockets,
       "Be a virtual machine's disk (vhost-user-blk) at a unix socket: of the first image; "
       "given again, of the next. NBD is served beside it if --socket or --listen is given")
      ->type_name("PATH")
      ->allow_extra_args(false);
  c->add_option("--http", o->http,
                "Show what the server does on a web page, with /metrics for Prometheus and /stats")
      ->type_name("HOST:PORT");
  c->add_option("--name", o->name, "Export name of a single image")->type_name("EXPORT");
  c->add_flag("--read-only", o->read_only, "Refuse everything that would change an image");
  c->add_flag(
      "--write-back", o->write_back,
      "Acknowledge writes when they are in the cache; FLUSH and FUA make them durable (default)");
  c->add_flag("--write-through", o->write_through,
              "Acknowledge writes when they are durable on the image");
  c->add_option("--block-size", o->block_bytes, "Smallest unit that clients are told to use (512)")
      ->type_name("BYTES");
  c->add_option("--readahead", o->readahead_bytes,
                "How far to read ahead of what is read in order; 0 for not at all (512K)")
      ->transform(CLI::AsSizeValue(false));
  c->add_option("--threads", o->threads, "Event loops (one for each processor, at most 4)")
      ->check(CLI::Range(1u, 64u));
  c->add_option("--huge-pages", o->huge_pages,
                "Pages of the cache to begin with, 1G or 2M from the reserved pool, or no (2M, "
                "reserved or transparent)")
      ->check(CLI::IsMember({"1G", "2M", "no"}));
  c->add_option("--numa-node", o->numa_node, "Where the memory is to lie (anywhere)")
      ->type_name("NODE");
  c->add_option("--spin", o->spin_us, "How long to look for work before sleeping (20)")
      ->type_name("MICROSECONDS")
      ->check(CLI::Range(0u, 1000u));
  c->add_option("--eviction", o->eviction,
                fmt::format("Which pages leave the cache first: {} ({})", eviction_policy_names,
                            o->eviction))
      ->type_name("POLICY");
  c->add_option(
       "--warm", o->warm,
       "Keep the cache in a file on tmpfs or hugetlbfs, as /dev/shm/disk.warm: it, and what "
       "was written and not flushed, outlives the server, however that ends")
      ->type_name("FILE");
  c->add_flag("--warm-discard", o->warm_discard,
              "Give up what the file of --warm holds, also what was not written back")
      ->needs("--warm");
  c->add_flag("--pin", o->pin, "Keep the cache from being swapped out");
  add_client_options(*c, o->clients);
  c->add_flag("--no-sandbox", o->no_sandbox,
              "Keep the rights to open other files and to make other system calls");
  c->footer(
      "Ctrl-C answers what is under way, writes everything back and leaves; a second one leaves "
      "at once.\nAn example: forebay serve disk.img --cache 512M --socket /run/disk.sock");
  c->callback([o, &chosen] { chosen = [o] { return serve(*o); }; });
}

}  // namespace forebay::tool
