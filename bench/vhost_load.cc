// vhost_load: a bare vhost-user-blk front-end that measures a server without being the bottleneck
// itself: its driver polls, and has nothing between a ring and the clock.
//
// For each load, in this order: the disk's first --range bytes are read once (or, with --fill,
// written), and the load runs for --seconds. One line of JSON for each round of each load. With
// --idle at the end a pause, in which the server's CPU time is told.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "bench/process_cpu.h"
#include "forebay/base/spin.h"
#include "forebay/base/stats.h"
#include "forebay/os/clock.h"
#include "forebay/serve/test_vhost_client.h"

namespace forebay::bench {
namespace {

struct options {
  std::string socket;
  std::vector<unsigned> depths{1, 32};
  std::uint32_t block_bytes = 4096;
  std::uint64_t range_bytes = 256u << 20;
  double seconds = 1;
  double idle_seconds = 0;
  bool write = false;
  bool packed = false;
  bool no_event_index = false;
  bool fill = false;
  std::optional<int> pid;
};

constexpr std::size_t ring_at = 0;
constexpr std::size_t requests_at = 256u << 10;
constexpr std::size_t data_at = 1u << 20;
constexpr std::uint16_t ring_size = 256;

// Requests on one ring of which so many are always under way.
class load {
 public:
  load(vhost_client& client, const options& o)
      : client_(client),
        options_(o),
        driver_(client.memory().subspan(ring_at, virtio_driver::bytes_for(ring_size)),
                {.size = ring_size, .packed = o.packed, .event_index = !o.no_event_index}) {}

  bool start() {
    auto kick = make_event_fd();
    auto call = make_event_fd();
    if (!kick || !call) return false;
    kick_ = std::move(*kick);
    call_ = std::move(*call);
    return client_.start_ring(0, driver_, ring_at, kick_.get(), call_.get()) == 0;
  }

  struct outcome {
    std::uint64_t operations = 0;
    std::uint64_t kicks = 0;
    std::uint64_t errors = 0;
    double seconds = 0;
    histogram latency_ns;
  };

  // Random, or all of the range once if there is no time.
  void run(outcome& out, unsigned depth, bool write, std::uint32_t block, double seconds) {
    const std::uint64_t blocks = options_.range_bytes / block;
    const bool once = seconds == 0;
    std::uint64_t next = 0;
    std::uint64_t random = 0x9e3779b97f4a7c15;
    const auto place = [&] {
      if (once) return next++;
      random ^= random << 13;  // xorshift64 (Marsaglia 2003)
      random ^= random >> 7;
      random ^= random << 17;
      return random % blocks;
    };
    std::vector<std::uint64_t> began(depth);
    const auto post = [&](std::uint16_t tag, std::uint64_t now) {
      const std::size_t request = requests_at + tag * 64u;
      const virtio::blk_header h{
          .type = static_cast<std::uint32_t>(write ? virtio::blk_type::out : virtio::blk_type::in),
          .sector = place() * (block / 512)};
      std::byte* const at = client_.memory().data() + request;
      std::memcpy(at, &h, sizeof h);
      at[16] = std::byte{0xff};
      const descriptor chain[] = {
          {.address = client_.guest_address(request), .length = 16},
          {.address = client_.guest_address(data_at + std::size_t{tag} * block),
           .length = block,
           .flags = write ? std::uint16_t{0} : descriptor_write},
          {.address = client_.guest_address(request) + 16, .length = 1, .flags = descriptor_write}};
      began[tag] = now;
      driver_.post(tag, chain);
    };
    const auto kick = [&] {
      if (!driver_.wants_kick()) return;
      signal_event_fd(kick_.get());
      ++out.kicks;
    };
    const std::uint64_t start = monotonic_clock::now_ns();
    const auto end = start + static_cast<std::uint64_t>(seconds * 1e9);
    std::uint64_t under_way = 0;
    for (unsigned t = 0; t < depth && (!once || next < blocks); ++t, ++under_way) {
      post(static_cast<std::uint16_t>(t), start);
    }
    kick();
    std::uint64_t now = start;
    while (under_way != 0) {
      const auto first = driver_.reap();
      if (!first) {
        cpu_relax();
        continue;
      }
      now = monotonic_clock::now_ns();
      for (auto u = first; u; u = driver_.reap()) {
        ++out.operations;
        out.errors += client_.memory()[requests_at + u->tag * 64u + 16] != std::byte{} ? 1 : 0;
        out.latency_ns.record(now - began[u->tag]);
        if (once ? next < blocks : now < end) {
          post(u->tag, now);
        } else {
          --under_way;
        }
      }
      kick();
    }
    out.seconds = static_cast<double>(now - start) / 1e9;
  }

 private:
  vhost_client& client_;
  const options& options_;
  virtio_driver driver_;
  unique_fd kick_;
  unique_fd call_;
};

int complain(const std::string& text) {
  fmt::print(stderr, "vhost_load: {}\n", text);
  return 1;
}

int measure(const options& o) {
  endpoint at;
  at.path = o.socket;
  auto socket = connect_to(at);
  if (!socket) return complain(fmt::format("{}: {}", o.socket, socket.error().message()));
  vhost_client client(std::move(*socket));
  std::uint64_t wanted = virtio::blk_flush | virtio::blk_config_wce | virtio::ring_indirect;
  if (o.packed) wanted |= virtio::ring_packed;
  if (!o.no_event_index) wanted |= virtio::ring_event_index;
  // Data of whole megabytes in the first half, so that a piece is one piece.
  if (!client.negotiate(wanted) || !client.share_memory(256u << 20)) {
    return complain("the server does not agree");
  }
  if (o.packed && (client.offered & virtio::ring_packed) == 0) {
    return complain("the server has no packed rings");
  }
  load l(client, o);
  if (!l.start()) return complain("the server does not start the ring");
  {
    load::outcome warm;
    l.run(warm, 16, o.fill, 1u << 20, 0);
    if (warm.errors != 0) return complain("errors while warming up");
  }
  for (const unsigned depth : o.depths) {
    auto out = std::make_unique<load::outcome>();
    const process_cpu server(o.pid.value_or(0));
    const auto before = server.read();
    l.run(*out, depth, o.write, o.block_bytes, o.seconds);
    const double cpu_ns = static_cast<double>(process_cpu::between(before, server.read()));
    if (out->errors != 0) return complain("errors while measuring");
    const double cpu_us = o.pid ? cpu_ns / 1e3 / static_cast<double>(out->operations) : 0;
    fmt::print(R"({{"depth":{},"write":{},"packed":{},"per_second":{:.0f},"p50_us":{:.1f},)"
               R"("p99_us":{:.1f},"kicks":{},"server_cpu_us":{:.2f}}})"
               "\n",
               depth, o.write, o.packed, static_cast<double>(out->operations) / out->seconds,
               static_cast<double>(out->latency_ns.percentile(0.5)) / 1e3,
               static_cast<double>(out->latency_ns.percentile(0.99)) / 1e3, out->kicks, cpu_us);
    std::fflush(stdout);
  }
  if (o.idle_seconds > 0 && o.pid) {
    std::this_thread::sleep_for(std::chrono::milliseconds(200));  // the last look is over
    const process_cpu server(*o.pid);
    const auto before = server.read();
    std::this_thread::sleep_for(std::chrono::duration<double>(o.idle_seconds));
    const double cpu_ns = static_cast<double>(process_cpu::between(before, server.read()));
    fmt::print("{{\"idle_cpu_percent\":{:.2f}}}\n", cpu_ns / 1e7 / o.idle_seconds);
  }
  return 0;
}

}  // namespace
}  // namespace forebay::bench

int main(int argc, char** argv) {
  forebay::bench::options o;
  CLI::App app("Measures a vhost-user-blk server");
  app.add_option("--socket", o.socket, "The server's")->required();
  app.add_option("--depth", o.depths, "Requests under way; a load for each")->delimiter(',');
  app.add_option("--block", o.block_bytes, "Bytes of a request")
      ->transform(CLI::AsSizeValue(false));
  app.add_option("--range", o.range_bytes, "Bytes of the disk that are used")
      ->transform(CLI::AsSizeValue(false));
  app.add_option("--seconds", o.seconds, "Of each load");
  app.add_option("--idle", o.idle_seconds, "Seconds of a pause at the end");
  app.add_option("--pid", o.pid, "The server's, for its CPU time");
  app.add_flag("--write", o.write, "Rather than read");
  app.add_flag("--packed", o.packed, "A packed ring");
  app.add_flag("--no-event-index", o.no_event_index, "Flags instead of the event index");
  app.add_flag("--fill", o.fill, "Write the range first rather than read it");
  CLI11_PARSE(app, argc, argv);
  return forebay::bench::measure(o);
}
