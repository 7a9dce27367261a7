// Random reads of a file or block device by one thread through uring_queue_pair: what the house's
// way to a device costs, beside fio's io_uring engine (bench/device/measures.py).
//
//   device_read IMAGE [--block BYTES] [--depth N] [--seconds S] [--memory arena|malloc]
//               [--coalesce N]
//
// Prints one JSON object: reads a second, bytes, CPU microseconds a read of this process (the
// kernel's work for it included), and percentiles of the latency.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "bench/process_cpu.h"
#include "forebay/memory/arena.h"
#include "forebay/os/clock.h"
#include "forebay/os/file.h"
#include "forebay/ring/uring_queue_pair.h"

namespace forebay::bench {
namespace {

struct options {
  std::string image;
  std::size_t block_bytes = 4096;
  unsigned depth = 32;
  double seconds = 2;
  std::string memory = "arena";
  unsigned coalesce = 0;  // 0: an eighth of the depth and one
};

[[noreturn]] void give_up(const std::string& what, std::error_code why) {
  fmt::print(stderr, "device_read: {}: {}\n", what, why.message());
  std::exit(1);
}

template <typename T>
T must(result<T> r, const char* what) {
  if (!r) give_up(what, r.error());
  if constexpr (!std::is_void_v<T>) return std::move(*r);
}

// Where the reads go: huge pages of an arena, or what malloc gives, in pages of 4 KiB.
class read_memory {
 public:
  explicit read_memory(const options& o) {
    const std::size_t bytes = o.block_bytes * o.depth;
    if (o.memory == "arena") {
      arena_ = must(arena::create({.bytes = 2 * bytes + (std::size_t{8} << 20)}), "arena");
      // Whole blocks of the buddy allocator: as large as a read wants them.
      unsigned order = 0;
      while ((page_bytes << order) < o.block_bytes) ++order;
      for (unsigned i = 0; i < o.depth; ++i) {
        page* const p = arena_->allocate(order);
        if (p == nullptr) give_up("arena", std::make_error_code(std::errc::not_enough_memory));
        pages_.push_back(page_ref::adopt(*p));
        buffers_.push_back({p->data(), o.block_bytes});
      }
      return;
    }
    // As posix_memalign() gives it, without huge pages.
    void* all = nullptr;
    if (::posix_memalign(&all, 4096, bytes) != 0)
      give_up("malloc", std::make_error_code(std::errc::not_enough_memory));
    heap_.reset(static_cast<std::byte*>(all));
    for (unsigned i = 0; i < o.depth; ++i)
      buffers_.push_back({heap_.get() + i * o.block_bytes, o.block_bytes});
  }

  arena* home() const { return arena_.get(); }
  std::span<std::byte> operator[](std::size_t i) const { return buffers_[i]; }

 private:
  struct freer {
    void operator()(std::byte* p) const noexcept { std::free(p); }
  };
  std::unique_ptr<arena> arena_;
  std::vector<page_ref> pages_;  // heads of blocks
  std::unique_ptr<std::byte, freer> heap_;
  std::vector<std::span<std::byte>> buffers_;
};

// As many submissions go over at a time: fewer cost system calls, more leave the device idle.
constexpr unsigned hand_over_batch = 4;

struct reading : completion {
  std::span<std::byte> memory;
  dma_segment segment;
  std::uint64_t started_ns = 0;
};

class reader {
 public:
  reader(const options& o, const block_file& file, read_memory& memory, uring_queue_pair& queue)
      : options_(o), file_(file), queue_(queue), readings_(o.depth) {
    for (unsigned i = 0; i < o.depth; ++i) readings_[i].memory = memory[i];
    latencies_ns_.reserve(1u << 22);
  }

  void run() {
    for (reading& r : readings_) start(r);
    warm_up();
    const std::uint64_t begin = monotonic_clock::now_ns();
    const double cpu = own_cpu_us();
    const auto length_ns = static_cast<std::uint64_t>(options_.seconds * 1e9);
    std::uint64_t now = begin;
    while (now - begin < length_ns) now = turn();
    seconds_ = static_cast<double>(now - begin) * 1e-9;
    cpu_us_ = own_cpu_us() - cpu;
    stopping_ = true;
    while (queue_.in_flight() != 0) turn();
  }

  nlohmann::json report() {
    const auto n = static_cast<double>(latencies_ns_.size());
    std::sort(latencies_ns_.begin(), latencies_ns_.end());
    const auto percentile_us = [&](double p) {
      return 1e-3 * static_cast<double>(latencies_ns_.at(static_cast<std::size_t>(p * (n - 1))));
    };
    return {{"op/s", n / seconds_},
            {"MB/s", 1e-6 * n * static_cast<double>(options_.block_bytes) / seconds_},
            {"cpu_us", cpu_us_ / n},
            {"p50_us", percentile_us(0.5)},
            {"p99_us", percentile_us(0.99)}};
  }

 private:
  void start(reading& r) {
    const std::uint64_t blocks = file_.geometry().size_bytes / options_.block_bytes;
    const std::uint64_t at = random_() % blocks * options_.block_bytes;
    r.segment = must(queue_.registered().map(r.memory, dma_direction::from_device), "map");
    must(queue_.submit(uring_request::read(file_.fd(), {&r.segment, 1}, at), r), "submit");
    r.started_ns = now_ns_;
  }

  // Hands over, waits, and starts another read for each that has ended. One look at the clock.
  std::uint64_t turn() {
    must(queue_.ring_doorbell(uring::no_timeout, std::min(coalesce_, queue_.in_flight())),
         "doorbell");
    now_ns_ = monotonic_clock::now_ns();
    while (completion* done = queue_.reap()) {
      auto& r = static_cast<reading&>(*done);
      if (r.status != static_cast<int>(options_.block_bytes))
        give_up("read", std::error_code(r.status < 0 ? -r.status : EIO, std::generic_category()));
      queue_.registered().unmap(r.segment, dma_direction::from_device);
      if (!stopping_) {
        latencies_ns_.push_back(now_ns_ - r.started_ns);
        start(r);
        // The device works on these while the others are made.
        if (queue_.queued() >= hand_over_batch) must(queue_.ring_doorbell(0), "doorbell");
      }
    }
    return now_ns_;
  }

  void warm_up() {
    now_ns_ = monotonic_clock::now_ns();
    for (const std::uint64_t begin = now_ns_; now_ns_ - begin < 200'000'000;) turn();
    latencies_ns_.clear();
  }

  const options& options_;
  const block_file& file_;
  uring_queue_pair& queue_;
  std::vector<reading> readings_;
  const unsigned coalesce_ = options_.coalesce != 0 ? options_.coalesce : options_.depth / 8 + 1;
  std::vector<std::uint64_t> latencies_ns_;
  std::mt19937_64 random_{std::random_device{}()};  // other places each time, as fio
  std::uint64_t now_ns_ = 0;
  double seconds_ = 0;
  double cpu_us_ = 0;
  bool stopping_ = false;
};

int run(int argc, char** argv) {
  options o;
  CLI::App app("Reads a device at random through uring_queue_pair");
  app.add_option("image", o.image)->required();
  app.add_option("--block", o.block_bytes, "bytes of a read");
  app.add_option("--depth", o.depth, "reads under way");
  app.add_option("--seconds", o.seconds);
  app.add_option("--memory", o.memory)->check(CLI::IsMember({"arena", "malloc"}));
  app.add_option("--coalesce", o.coalesce,
                 "completions to wait for (an eighth of the depth and one)");
  CLI11_PARSE(app, argc, argv);

  const block_file file = must(block_file::open(o.image, {.read_only = true}), o.image.c_str());
  read_memory memory(o);
  const auto queue = must(uring_queue_pair::create(o.depth), "io_uring");
  must(queue->register_files(std::array{file.fd()}), "register the file");
  if (memory.home() != nullptr) must(queue->registered().add(*memory.home()), "register memory");
  reader r(o, file, memory, *queue);
  r.run();
  if (memory.home() != nullptr) queue->registered().remove(*memory.home());
  nlohmann::json report = r.report();
  report["direct"] = file.geometry().direct;
  fmt::print("{}\n", report.dump());
  return 0;
}

}  // namespace
}  // namespace forebay::bench

int main(int argc, char** argv) { return forebay::bench::run(argc, argv); }
