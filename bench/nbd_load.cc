// nbd_load: a bare NBD client that measures a server without being the bottleneck itself.
//
// It goes through up to four steps, in this order: --fill writes the pattern over the whole range,
// --warm reads the whole range once, the measured load runs, --flush sends one flush. Reports text,
// or one JSON object with --json.
#include <poll.h>

#include <CLI/CLI.hpp>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "bench/lane.h"
#include "bench/nbd_client.h"
#include "bench/process_cpu.h"
#include "fmt/format.h"

namespace forebay::bench {
namespace {

constexpr std::uint32_t bulk_block_bytes = 1024 * 1024;
constexpr unsigned bulk_depth = 4;

struct options {
  std::string socket;
  std::string tcp;
  std::string export_name;
  bool structured = false;
  unsigned connections = 1;
  unsigned depth = 1;
  std::uint32_t block_bytes = 4096;
  std::uint64_t range_bytes = 0;
  bool write = false;
  bool sequential = false;
  bool verify = false;
  bool fill = false;
  bool warm = false;
  bool flush = false;
  bool json = false;
  std::optional<double> seconds;
  std::optional<std::uint64_t> operations;
  double ramp_seconds = 0.2;
  std::optional<int> pid;
  std::optional<std::uint64_t> seed;
  unsigned timeout_seconds = 60;
};

struct measurement {
  tally count;
  double seconds = 0;
  double client_cpu_seconds = 0;
  std::optional<double> server_cpu_seconds;
};

// The counted part of a phase: opens it after the ramp, closes it when the time is over or the work
// is done.
class window {
 public:
  window(const phase& p, std::optional<int> pid)
      : seconds_(p.seconds), opens_ns_(monotonic_clock::now_ns() + in_ns(p.ramp_seconds)) {
    if (pid) cpu_.emplace(*pid);
  }

  tally* counting() noexcept { return open_ && !closed_ ? &result_->count : nullptr; }

  // Opens and closes as the time has come; true once it is closed.
  bool look(std::uint64_t now) {
    if (!open_ && now >= opens_ns_) open();
    if (open_ && !closed_ && seconds_ && now >= start_ns_ + in_ns(*seconds_)) close();
    return closed_;
  }

  void open() {
    if (cpu_) server_before_ = cpu_->read();
    client_before_ = 1e-6 * own_cpu_us();
    start_ns_ = monotonic_clock::now_ns();
    open_ = true;
  }

  void close() {
    if (!open_) open();
    if (closed_) return;
    closed_ = true;
    result_->seconds = 1e-9 * static_cast<double>(monotonic_clock::now_ns() - start_ns_);
    result_->client_cpu_seconds = 1e-6 * own_cpu_us() - client_before_;
    if (!cpu_ || server_before_.empty()) return;
    const auto used = process_cpu::between(server_before_, cpu_->read());
    result_->server_cpu_seconds = 1e-9 * static_cast<double>(used);
  }

  std::unique_ptr<measurement> take() { return std::move(result_); }

 private:
  static std::uint64_t in_ns(double seconds) { return static_cast<std::uint64_t>(seconds * 1e9); }

  std::optional<double> seconds_;
  std::uint64_t opens_ns_;
  std::uint64_t start_ns_ = 0;
  bool open_ = false;
  bool closed_ = false;
  std::optional<process_cpu> cpu_;
  process_cpu::reading server_before_;
  double client_before_ = 0;
  std::unique_ptr<measurement> result_ = std::make_unique<measurement>();
};

// One round of receiving on all connections: a blocking recv if there is but one, else poll and
// what is ready.
outcome<> receive_round(std::vector<lane>& lanes, std::vector<pollfd>& polls, tally* count,
                        unsigned timeout_seconds) {
  if (lanes.size() == 1 && !lanes.front().sending()) return lanes.front().receive(true, count);
  polls.clear();
  for (const lane& l : lanes) polls.push_back({l.fd(), l.events(), 0});
  const int ready = ::poll(polls.data(), polls.size(), static_cast<int>(timeout_seconds) * 1000);
  if (ready < 0 && errno != EINTR) {
    return std::unexpected(fmt::format("poll: {}", std::strerror(errno)));
  }
  if (ready == 0) return std::unexpected(lanes.front().silence());
  for (std::size_t i = 0; i < lanes.size(); ++i) {
    if ((polls[i].revents & (POLLIN | POLLHUP | POLLERR)) == 0) continue;
    if (auto got = lanes[i].receive(false, count); !got) return got;
  }
  return {};
}

outcome<std::unique_ptr<measurement>> run_phase(std::vector<lane>& lanes, const phase& p,
                                                const options& o) {
  work_source source(p, o.seed.value_or(std::random_device{}()));
  window w(p, o.pid);
  std::vector<pollfd> polls;
  w.look(monotonic_clock::now_ns());
  for (lane& l : lanes) l.begin(p);
  for (;;) {
    bool idle = true;
    for (lane& l : lanes) {
      if (auto sent = l.refill(source); !sent) return std::unexpected(sent.error());
      idle = idle && l.idle();
    }
    if (idle) break;
    if (auto got = receive_round(lanes, polls, w.counting(), o.timeout_seconds); !got) {
      return std::unexpected(got.error());
    }
    std::uint64_t now = 0;
    for (const lane& l : lanes) now = std::max(now, l.last_ns());
    if (w.look(now)) source.stop();
  }
  w.close();
  return w.take();
}

phase bulk_phase(const options& o, nbd::command what, bool pattern) {
  phase p{.what = what,
          .block_bytes = bulk_block_bytes,
          .depth = bulk_depth,
          .sequential = true,
          .pattern = pattern,
          .range_bytes = o.range_bytes};
  p.operations = (o.range_bytes + bulk_block_bytes - 1) / bulk_block_bytes;
  return p;
}

phase load_phase(const options& o) {
  phase p{.what = o.write ? nbd::command_write : nbd::command_read,
          .block_bytes = o.block_bytes,
          .depth = o.depth,
          .sequential = o.sequential,
          .pattern = o.verify,
          .range_bytes = o.range_bytes};
  p.operations = o.operations;
  p.seconds = o.seconds;
  if (o.seconds && !o.operations) p.ramp_seconds = o.ramp_seconds;
  return p;
}

nlohmann::ordered_json report(const options& o, const measurement& m) {
  const auto operations = static_cast<double>(m.count.operations);
  const auto latency = [&](double fraction) {
    return static_cast<double>(m.count.latency_ns.percentile(fraction)) / 1000;
  };
  nlohmann::ordered_json j;
  j["command"] = o.write ? "write" : "read";
  j["order"] = o.sequential ? "sequential" : "random";
  j["block_bytes"] = o.block_bytes;
  j["connections"] = o.connections;
  j["depth"] = o.depth;
  j["range_bytes"] = o.range_bytes;
  j["structured_replies"] = o.structured;
  j["verified"] = o.verify;
  j["seconds"] = m.seconds;
  j["operations"] = m.count.operations;
  j["operations_per_second"] = operations / m.seconds;
  j["mb_per_second"] = 1e-6 * static_cast<double>(m.count.bytes) / m.seconds;
  j["latency_us"] = {{"p50", latency(0.5)}, {"p99", latency(0.99)}, {"p99.9", latency(0.999)}};
  j["client_cpu_us_per_operation"] = 1e6 * m.client_cpu_seconds / operations;
  if (m.server_cpu_seconds) {
    j["server_cpu_us_per_operation"] = 1e6 * *m.server_cpu_seconds / operations;
  }
  return j;
}

void print_text(const nlohmann::ordered_json& j) {
  for (const auto& [key, value] : j.items()) {
    const std::string text = value.is_string()         ? value.get<std::string>()
                             : value.is_number_float() ? fmt::format("{:.2f}", value.get<double>())
                                                       : value.dump();
    fmt::print("{:<28} {}\n", key, text);
  }
}

outcome<std::vector<lane>> connect_all(options& o) {
  endpoint where;
  where.path = o.socket;
  if (o.socket.empty()) {
    const auto parsed = endpoint::parse_tcp(o.tcp);
    if (!parsed) return std::unexpected(fmt::format("not HOST:PORT: {}", o.tcp));
    where = *parsed;
  }
  std::vector<lane> lanes;
  for (unsigned i = 0; i < o.connections; ++i) {
    auto session = nbd::open_session(where, o.export_name, o.structured, o.timeout_seconds);
    if (!session) return std::unexpected(session.error());
    lanes.emplace_back(std::move(*session), o.timeout_seconds);
  }
  const nbd::session& first = lanes.front().session();
  if (o.range_bytes == 0) o.range_bytes = first.size_bytes;
  if (o.range_bytes > first.size_bytes || o.range_bytes < o.block_bytes) {
    return std::unexpected(fmt::format("the export has {} bytes", first.size_bytes));
  }
  if ((o.write || o.fill) && (first.flags & nbd::read_only) != 0) {
    return std::unexpected("the export is read-only");
  }
  if (o.flush && (first.flags & nbd::send_flush) == 0) {
    return std::unexpected("the server has no flush");
  }
  return lanes;
}

outcome<nlohmann::ordered_json> run(options& o) {
  auto lanes = connect_all(o);
  if (!lanes) return std::unexpected(lanes.error());
  auto j = nlohmann::ordered_json::object();
  const auto bulk = [&](const phase& p, const char* key) -> outcome<> {
    const auto m = run_phase(*lanes, p, o);
    if (!m) return std::unexpected(fmt::format("{}: {}", key, m.error()));
    j[key] = (*m)->seconds;
    return {};
  };
  if (o.fill) {
    if (auto done = bulk(bulk_phase(o, nbd::command_write, true), "fill_seconds"); !done) {
      return std::unexpected(done.error());
    }
  }
  if (o.warm) {
    if (auto done = bulk(bulk_phase(o, nbd::command_read, o.verify), "warm_seconds"); !done) {
      return std::unexpected(done.error());
    }
  }
  if (o.seconds || o.operations) {
    const auto m = run_phase(*lanes, load_phase(o), o);
    if (!m) return std::unexpected(m.error());
    j.update(report(o, **m));
  }
  if (o.flush) {
    const phase p{.what = nbd::command_flush, .operations = 1};
    if (auto done = bulk(p, "flush_seconds"); !done) return std::unexpected(done.error());
  }
  for (lane& l : *lanes) l.disconnect();
  return j;
}

}  // namespace
}  // namespace forebay::bench

int main(int argc, char** argv) {
  using namespace forebay::bench;
  options o;
  CLI::App app{"Measures an NBD server with one system call a batch"};
  const CLI::AsSizeValue size(false);
  auto* where = app.add_option_group("server")->require_option(1);
  where->add_option("--socket", o.socket, "Unix socket");
  where->add_option("--tcp", o.tcp, "HOST:PORT");
  app.add_option("--export", o.export_name, "Export name (default: the default export)");
  app.add_flag("--structured", o.structured, "Negotiate structured replies");
  app.add_option("--connections", o.connections, "Connections")->check(CLI::Range(1, 1024));
  app.add_option("--depth", o.depth, "Requests in flight on each connection")
      ->check(CLI::Range(1, 16384));
  app.add_option("--block", o.block_bytes, "Bytes of each request, a multiple of 512")
      ->transform(size)
      ->check(CLI::Range(512, 32 << 20));
  app.add_option("--range", o.range_bytes, "Use only the first so many bytes (default: all)")
      ->transform(size);
  app.add_flag("--write", o.write, "Write instead of read");
  app.add_flag("--sequential", o.sequential, "In order instead of at random");
  app.add_flag("--verify", o.verify, "Require the pattern when reading, write it when writing");
  app.add_flag("--fill", o.fill, "First write the pattern over the range");
  app.add_flag("--warm", o.warm, "First read the range once, with 1 MiB requests");
  app.add_flag("--flush", o.flush, "At the end send one flush");
  app.add_option("--seconds", o.seconds, "Measure for so long")->check(CLI::PositiveNumber);
  app.add_option("--operations", o.operations, "Measure so many operations")
      ->check(CLI::PositiveNumber);
  app.add_option("--ramp", o.ramp_seconds, "Seconds of load before --seconds begin")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--pid", o.pid, "Server process: also report its CPU time for each operation");
  app.add_option("--seed", o.seed, "Seed of the random offsets");
  app.add_option("--timeout", o.timeout_seconds, "Seconds without a reply that end the run")
      ->check(CLI::Range(1, 3600));
  app.add_flag("--json", o.json, "Report as JSON");
  CLI11_PARSE(app, argc, argv);
  if (o.block_bytes % 512 != 0 || o.range_bytes % 512 != 0) {
    fmt::print(stderr, "nbd_load: --block and --range must be multiples of 512\n");
    return 2;
  }

  const auto result = run(o);
  if (!result) {
    fmt::print(stderr, "nbd_load: {}\n", result.error());
    return 1;
  }
  if (o.json) {
    fmt::print("{}\n", result->dump());
  } else {
    print_text(*result);
  }
  return 0;
}
