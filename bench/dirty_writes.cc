// Random 4 KiB writes over a file, then a flush: through Forebay's page cache, or through the
// kernel's by pwrite with the same limits of dirty pages (vm.dirty_bytes, which takes root).
//
//   dirty_writes IMAGE --way forebay|kernel [--count N] [--writers N] [--cache MIB]
//
// Prints one JSON object: writes a second until everything was durable, the share that was only
// flushed, CPU microseconds a write, what a write took (median, 99.9 % and the longest), and what a
// flush of one write takes on the device (median).
#include <fcntl.h>
#include <unistd.h>

#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "bench/process_cpu.h"
#include "forebay/block/file_device.h"
#include "forebay/cache/address_space.h"
#include "forebay/ring/loop.h"

namespace forebay::bench {
namespace {

struct options {
  std::string image;
  std::string way = "forebay";
  unsigned count = 200'000;
  unsigned writers = 4;
  std::size_t cache_mib = 512;
};

[[noreturn]] void give_up(const std::string& what, std::error_code why) {
  fmt::print(stderr, "dirty_writes: {}: {}\n", what, why.message());
  std::exit(1);
}

std::error_code last_error() { return {errno, std::generic_category()}; }

// What both ways are asked to do, and what it took.
struct job {
  explicit job(const options& o, std::uint64_t bytes) : opts(o), pages(bytes / page_bytes) {
    for (auto& each : took_ns) each.reserve(o.count / o.writers + 1);
  }
  std::uint64_t place(std::mt19937_64& rng) const { return rng() % pages * page_bytes; }

  const options& opts;
  const std::uint64_t pages;
  std::vector<std::vector<std::uint32_t>> took_ns{opts.writers};  // for each writer
  std::vector<std::byte> data = std::vector<std::byte>(page_bytes, std::byte{0x5a});
  std::vector<double> flush_ms;
  std::uint64_t begin_ns = 0;
  std::uint64_t written_ns = 0;  // the moments at which the last write returned,
  std::uint64_t durable_ns = 0;  // and the flush
  double cpu_us =
      0;  // of this process: of the kernel's write-back, which has threads of its own, none

  nlohmann::json report() {
    std::vector<std::uint32_t> all;
    for (const auto& each : took_ns) all.insert(all.end(), each.begin(), each.end());
    std::sort(all.begin(), all.end());
    std::sort(flush_ms.begin(), flush_ms.end());
    const auto at = [&](double p) {
      return 1e-6 * all.at(static_cast<std::size_t>(p * static_cast<double>(all.size() - 1)));
    };
    const double seconds = 1e-9 * static_cast<double>(durable_ns - begin_ns);
    return {{"op/s", static_cast<double>(all.size()) / seconds},
            {"flushing", 1e-9 * static_cast<double>(durable_ns - written_ns) / seconds},
            {"cpu_us", cpu_us / static_cast<double>(all.size())},
            {"p50_ms", at(0.5)},
            {"p99.9_ms", at(0.999)},
            {"longest_ms", at(1)},
            {"flush_ms", flush_ms.at(flush_ms.size() / 2)}};
  }
};

constexpr int flushes = 9;

double ms_since(std::uint64_t start_ns) {
  return 1e-6 * static_cast<double>(monotonic_clock::now_ns() - start_ns);
}

class forebay_way {
 public:
  forebay_way(job& j, address_space& space) : job_(j), space_(space) {}

  task<> all() {
    task_group writers;
    task_group flusher;
    job_.begin_ns = monotonic_clock::now_ns();
    FOREBAY_ASSERT(space_.run_flusher().spawn(flusher));
    for (unsigned w = 0; w < job_.opts.writers; ++w) FOREBAY_ASSERT(write(w).spawn(writers));
    co_await writers.idle();
    job_.written_ns = monotonic_clock::now_ns();
    check(co_await space_.flush());
    job_.durable_ns = monotonic_clock::now_ns();
    std::mt19937_64 rng(7);
    for (int i = 0; i < flushes; ++i) {
      check(co_await space_.write(job_.place(rng), job_.data));
      const std::uint64_t start = monotonic_clock::now_ns();
      check(co_await space_.flush());
      job_.flush_ms.push_back(ms_since(start));
    }
    space_.stop_flusher();
    co_await flusher.idle();
    loop::current()->stop();
    co_return result<>{};
  }

 private:
  static void check(const result<>& r) {
    if (!r) give_up("write", r.error());
  }

  task<> write(unsigned writer) {
    std::mt19937_64 rng(writer);
    for (unsigned i = 0; i < job_.opts.count / job_.opts.writers; ++i) {
      const std::uint64_t start = monotonic_clock::now_ns();
      check(co_await space_.write(job_.place(rng), job_.data));
      job_.took_ns[writer].push_back(static_cast<std::uint32_t>(monotonic_clock::now_ns() - start));
      // Others of this thread come to their turn.
      if (i % 16 == 0) co_await loop::io(uring_request::nop());
    }
    co_return result<>{};
  }

  job& job_;
  address_space& space_;
};

void run_forebay(const options& o) {
  auto file = file_device::open(o.image, {});
  if (!file) give_up(o.image, file.error());
  auto cache = page_cache::create({.bytes = o.cache_mib << 20});
  auto events = loop::create();
  if (!cache) give_up("cache", cache.error());
  if (!events) give_up("loop", events.error());
  static_cast<void>((*events)->registered().add((*cache)->memory()));
  address_space space(**cache, **file, {.block_bytes = 4096});
  job j(o, space.size_bytes());
  forebay_way way(j, space);
  const double before = own_cpu_us();
  struct starter : completion {
    forebay_way* way;
    task_group group;
  } start;
  start.way = &way;
  start.run = [](completion& c) noexcept {
    auto& s = static_cast<starter&>(c);
    FOREBAY_ASSERT(s.way->all().spawn(s.group));
  };
  (*events)->post(start);
  (*events)->run();
  j.cpu_us = own_cpu_us() - before;
  nlohmann::json out = j.report();
  const page_cache_statistics s = (*cache)->statistics();
  out["dirty_limit_mib"] = s.dirty_limit_pages * page_bytes >> 20;
  out["paced"] = s.paced_writes;
  out["stopped"] = s.throttled_writes;
  fmt::print("{}\n", out.dump());
  (*events)->registered().remove((*cache)->memory());
}

// Sets a limit of the kernel's for as long as this lives.
class kernel_limit {
 public:
  kernel_limit(const std::string& name, const std::string& ratio, std::uint64_t bytes)
      : path_("/proc/sys/vm/" + name), ratio_path_("/proc/sys/vm/" + ratio) {
    std::ifstream(ratio_path_) >> ratio_;
    std::ofstream out(path_);
    if (!(out << bytes << std::flush)) give_up(path_, last_error());
  }
  // Writing the ratio takes the number of bytes back.
  ~kernel_limit() { std::ofstream(ratio_path_) << ratio_; }
  kernel_limit(const kernel_limit&) = delete;
  kernel_limit& operator=(const kernel_limit&) = delete;

 private:
  std::string path_;
  std::string ratio_path_;
  std::string ratio_;
};

void run_kernel(const options& o) {
  const std::uint64_t cache = o.cache_mib << 20;
  const kernel_limit hard("dirty_bytes", "dirty_ratio", cache / 5 * 2);
  const kernel_limit background("dirty_background_bytes", "dirty_background_ratio", cache / 8);
  const int fd = ::open(o.image.c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) give_up(o.image, last_error());
  job j(o, static_cast<std::uint64_t>(::lseek(fd, 0, SEEK_END)));
  const double before = own_cpu_us();
  const auto write = [&](std::mt19937_64& rng) {
    const auto at = static_cast<off_t>(j.place(rng));
    if (::pwrite(fd, j.data.data(), page_bytes, at) < 0) give_up("pwrite", last_error());
  };
  const auto flush = [&] {
    if (::fdatasync(fd) != 0) give_up("fdatasync", last_error());
  };
  j.begin_ns = monotonic_clock::now_ns();
  {
    std::vector<std::jthread> writers;
    for (unsigned w = 0; w < o.writers; ++w) {
      writers.emplace_back([&, w] {
        std::mt19937_64 rng(w);
        for (unsigned i = 0; i < o.count / o.writers; ++i) {
          const std::uint64_t start = monotonic_clock::now_ns();
          write(rng);
          j.took_ns[w].push_back(static_cast<std::uint32_t>(monotonic_clock::now_ns() - start));
        }
      });
    }
  }
  j.written_ns = monotonic_clock::now_ns();
  flush();
  j.durable_ns = monotonic_clock::now_ns();
  j.cpu_us = own_cpu_us() - before;
  std::mt19937_64 rng(7);
  for (int i = 0; i < flushes; ++i) {
    write(rng);
    const std::uint64_t start = monotonic_clock::now_ns();
    flush();
    j.flush_ms.push_back(ms_since(start));
  }
  ::close(fd);
  fmt::print("{}\n", j.report().dump());
}

}  // namespace
}  // namespace forebay::bench

int main(int argc, char** argv) {
  forebay::bench::options o;
  CLI::App app("Random writes through a page cache, then a flush");
  app.add_option("IMAGE", o.image)->required();
  app.add_option("--way", o.way)->check(CLI::IsMember({"forebay", "kernel"}));
  app.add_option("--count", o.count);
  app.add_option("--writers", o.writers)->check(CLI::Range(1u, 64u));
  app.add_option("--cache", o.cache_mib, "MiB");
  CLI11_PARSE(app, argc, argv);
  if (o.way == "forebay") {
    forebay::bench::run_forebay(o);
  } else {
    forebay::bench::run_kernel(o);
  }
}
