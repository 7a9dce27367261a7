// Reads of 4 KiB of a file through a page cache that is much smaller: through Forebay's, or through
// the kernel's by pread. Beside it the file read past every cache in large pieces.
//
//   cached_reads IMAGE --way forebay|plain|kernel|direct [--order random|sequential] [--depth N]
//                [--seconds S] [--cache MIB] [--readahead KIB] [--in-place]
//
// `depth` readers each have one read under way: tasks of one event loop, or threads for pread.
// `plain` is one thread without an event loop, which reads what is missing itself.
// Prints one JSON object: reads a second, MB a second, CPU microseconds a read of this process (the
// kernel's work for it included), the share of the reads that the cache had, and percentiles of the
// latency. What is read is copied to the reader, or, in place, pinned and let go: no byte of it is
// looked at, as a reader of the device does not. Before that a cache is filled from the file's
// start. `direct` reads 1 MiB at a time, sequentially, one read after the other.
#include <fcntl.h>
#include <unistd.h>

#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
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
  std::string order = "random";
  unsigned depth = 32;
  double seconds = 2;
  std::size_t cache_mib = 512;
  std::size_t readahead_kib = 512;
  bool in_place = false;
};

constexpr std::size_t direct_bytes = 1u << 20;

[[noreturn]] void give_up(const std::string& what, std::error_code why) {
  fmt::print(stderr, "cached_reads: {}: {}\n", what, why.message());
  std::exit(1);
}

std::error_code last_error() { return {errno, std::generic_category()}; }

// What all ways are asked to do, and what it took.
class job {
 public:
  job(const options& o, std::uint64_t bytes) : opts_(o), bytes_(bytes), readers_(o.depth) {}

  // What fills the cache before anything is measured, from the file's start.
  std::uint64_t warm_up_bytes() const {
    return std::min<std::uint64_t>(bytes_, opts_.cache_mib << 20) / direct_bytes * direct_bytes;
  }
  // From now on it is measured.
  void begin() {
    cpu_us_ = own_cpu_us();
    end_ns_ = monotonic_clock::now_ns() + static_cast<std::uint64_t>(opts_.seconds * 1e9);
  }

  // One reader's; readers of a sequential order have a part of the file each.
  struct reader {
    explicit reader(unsigned number = 0) : rng(number + std::random_device{}()) {}
    // Of one word: so many readers with a longer state each would push what they read out of the
    // CPU's caches. (Knuth's MMIX; the upper bits are the random ones.)
    std::linear_congruential_engine<std::uint64_t, 6364136223846793005, 1442695040888963407, 0> rng;
    std::uint64_t next = UINT64_MAX;
    std::vector<std::uint32_t> took_ns;
    std::vector<std::byte> data = std::vector<std::byte>(page_bytes);
  };
  reader& operator[](unsigned i) { return readers_[i]; }

  std::uint64_t place(unsigned i) {
    reader& r = readers_[i];
    if (opts_.order == "random") return (r.rng() >> 24) % (bytes_ / page_bytes) * page_bytes;
    // What the cache has been filled with is not begun with.
    const std::uint64_t rest = bytes_ - warm_up_bytes();
    if (r.next == UINT64_MAX)
      r.next = warm_up_bytes() + rest / page_bytes / opts_.depth * i * page_bytes;
    const std::uint64_t at = r.next;
    r.next = (at + page_bytes) % (bytes_ / page_bytes * page_bytes);
    return at;
  }
  // Notes a read that began then; whether there is time for another.
  bool note(unsigned i, std::uint64_t start_ns) {
    const std::uint64_t now = monotonic_clock::now_ns();
    readers_[i].took_ns.push_back(static_cast<std::uint32_t>(now - start_ns));
    return now < end_ns_;
  }

  nlohmann::json report(std::size_t read_bytes, double hit_share) {
    const double cpu_us = own_cpu_us() - cpu_us_;
    std::vector<std::uint32_t> all;
    for (const reader& r : readers_) all.insert(all.end(), r.took_ns.begin(), r.took_ns.end());
    std::sort(all.begin(), all.end());
    const auto n = static_cast<double>(all.size());
    const auto at = [&](double p) { return 1e-3 * all.at(static_cast<std::size_t>(p * (n - 1))); };
    return {{"op/s", n / opts_.seconds},
            {"MB/s", 1e-6 * n * static_cast<double>(read_bytes) / opts_.seconds},
            {"cpu_us", cpu_us / n},
            {"hits", hit_share},
            {"p50_us", at(0.5)},
            {"p99_us", at(0.99)}};
  }

 private:
  const options& opts_;
  const std::uint64_t bytes_;
  std::vector<reader> readers_;
  std::uint64_t end_ns_ = 0;
  double cpu_us_ = 0;
};

class forebay_way {
 public:
  forebay_way(job& j, const options& o, address_space& space) : job_(j), opts_(o), space_(space) {}

  task<> all() {
    if (const result<> done = co_await space_.prefetch(0, job_.warm_up_bytes()); !done)
      give_up("read", done.error());
    job_.begin();
    task_group readers;
    for (unsigned i = 0; i < opts_.depth; ++i) FOREBAY_ASSERT(read(i).spawn(readers));
    co_await readers.idle();
    co_await space_.read_ahead_over();
    loop::current()->stop();
    co_return result<>{};
  }

 private:
  task<> read(unsigned i) {
    for (unsigned n = 1;; ++n) {
      const std::uint64_t start = monotonic_clock::now_ns();
      if (opts_.in_place) {
        page_ref pin[1];
        const std::uint64_t at = job_.place(i);
        if (!space_.try_pin(at, page_bytes, pin)) {
          const result<std::size_t> done = co_await space_.pin(at, page_bytes, pin);
          if (!done) give_up("read", done.error());
        }
      } else {
        const result<> done = co_await space_.read(job_.place(i), job_[i].data);
        if (!done) give_up("read", done.error());
      }
      if (!job_.note(i, start)) break;
      // After hits in a row others of this thread come to their turn.
      if (n % 64 == 0) co_await loop::io(uring_request::nop());
    }
    co_return result<>{};
  }

  job& job_;
  const options& opts_;
  address_space& space_;
};

// What both ways through our cache have.
struct cached_file {
  explicit cached_file(const options& o)
      : file(must(file_device::open(o.image, {.read_only = true}), o.image)),
        cache(must(page_cache::create({.bytes = o.cache_mib << 20}), "cache")),
        space(*cache, *file, {.block_bytes = 4096, .readahead_bytes = o.readahead_kib << 10}) {}

  template <typename T>
  static T must(result<T> r, const std::string& what) {
    if (!r) give_up(what, r.error());
    return std::move(*r);
  }
  double hit_share() const {
    const page_cache_statistics s = cache->statistics();
    return static_cast<double>(s.hits) / static_cast<double>(s.hits + s.misses);
  }

  std::unique_ptr<file_device> file;
  std::unique_ptr<page_cache> cache;
  address_space space;
};

nlohmann::json run_forebay(const options& o) {
  cached_file all(o);
  const auto events = cached_file::must(loop::create(), "loop");
  static_cast<void>(events->registered().add(all.cache->memory()));
  job j(o, all.space.size_bytes());
  forebay_way way(j, o, all.space);
  struct starter : completion {
    forebay_way* way;
    task_group group;
  } start;
  start.way = &way;
  start.run = [](completion& c) noexcept {
    auto& s = static_cast<starter&>(c);
    FOREBAY_ASSERT(s.way->all().spawn(s.group));
  };
  events->post(start);
  events->run();
  nlohmann::json out = j.report(page_bytes, all.hit_share());
  events->registered().remove(all.cache->memory());
  return out;
}

nlohmann::json run_plain(const options& o) {
  cached_file all(o);
  job j(o, all.space.size_bytes());
  if (const result<> done = sync_wait(all.space.prefetch(0, j.warm_up_bytes())); !done)
    give_up("read", done.error());
  j.begin();
  std::uint64_t start = 0;
  do {
    start = monotonic_clock::now_ns();
    const result<> done = sync_wait(all.space.read(j.place(0), j[0].data));
    if (!done) give_up("read", done.error());
  } while (j.note(0, start));
  return j.report(page_bytes, all.hit_share());
}

// A file that nothing of is in the kernel's cache.
class kernel_file {
 public:
  kernel_file(const options& o, int flags)
      : fd_(::open(o.image.c_str(), O_RDONLY | O_CLOEXEC | flags)) {
    if (fd_ < 0) give_up(o.image, last_error());
    static_cast<void>(::posix_fadvise(fd_, 0, 0, POSIX_FADV_DONTNEED));
    if (o.order == "random") static_cast<void>(::posix_fadvise(fd_, 0, 0, POSIX_FADV_RANDOM));
  }
  ~kernel_file() { ::close(fd_); }
  kernel_file(const kernel_file&) = delete;
  kernel_file& operator=(const kernel_file&) = delete;

  std::uint64_t bytes() const { return static_cast<std::uint64_t>(::lseek(fd_, 0, SEEK_END)); }
  void read(std::span<std::byte> to, std::uint64_t at) const {
    if (::pread(fd_, to.data(), to.size(), static_cast<off_t>(at)) !=
        static_cast<ssize_t>(to.size()))
      give_up("pread", last_error());
  }

 private:
  const int fd_;
};

nlohmann::json run_kernel(const options& o) {
  const kernel_file file(o, 0);
  job j(o, file.bytes());
  std::vector<std::byte> piece(direct_bytes);
  for (std::uint64_t at = 0; at < j.warm_up_bytes(); at += direct_bytes) file.read(piece, at);
  j.begin();
  {
    std::vector<std::jthread> readers;
    for (unsigned i = 0; i < o.depth; ++i) {
      readers.emplace_back([&, i] {
        std::uint64_t start = 0;
        do {
          start = monotonic_clock::now_ns();
          file.read(j[i].data, j.place(i));
        } while (j.note(i, start));
      });
    }
  }
  // What of the cache it had is the kernel's to know.
  return j.report(page_bytes, -1);
}

nlohmann::json run_direct(const options& o) {
  const kernel_file file(o, O_DIRECT);
  job j(o, file.bytes());
  void* memory = std::aligned_alloc(direct_bytes, direct_bytes);
  if (memory == nullptr) give_up("memory", std::make_error_code(std::errc::not_enough_memory));
  const std::span data(static_cast<std::byte*>(memory), direct_bytes);
  j.begin();
  std::uint64_t start = 0;
  std::uint64_t at = 0;
  do {
    start = monotonic_clock::now_ns();
    file.read(data, at);
    at = (at + direct_bytes) % (file.bytes() / direct_bytes * direct_bytes);
  } while (j.note(0, start));
  nlohmann::json out = j.report(direct_bytes, 0);
  std::free(memory);
  return out;
}

}  // namespace
}  // namespace forebay::bench

int main(int argc, char** argv) {
  using namespace forebay::bench;
  options o;
  CLI::App app("Reads of a file through a page cache that is smaller");
  app.add_option("IMAGE", o.image)->required();
  app.add_option("--way", o.way)->check(CLI::IsMember({"forebay", "plain", "kernel", "direct"}));
  app.add_option("--order", o.order)->check(CLI::IsMember({"random", "sequential"}));
  app.add_option("--depth", o.depth, "readers")->check(CLI::Range(1u, 1024u));
  app.add_option("--seconds", o.seconds);
  app.add_option("--cache", o.cache_mib, "MiB, of Forebay's");
  app.add_flag("--in-place", o.in_place, "no copy; Forebay's");
  app.add_option("--readahead", o.readahead_kib, "KiB, of Forebay's");
  CLI11_PARSE(app, argc, argv);
  const nlohmann::json out = o.way == "forebay"  ? run_forebay(o)
                             : o.way == "plain"  ? run_plain(o)
                             : o.way == "kernel" ? run_kernel(o)
                                                 : run_direct(o);
  fmt::print("{}\n", out.dump());
}
