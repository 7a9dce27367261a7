// What a hit costs in a page cache: ours, and the shapes of others, in one process by the same
// loop.
//
//   cache_forebay --cpus 0,1 --windows 15 --mib 1024    commands on standard input, one a line:
//     sample SUBJECT PATTERN THREADS                    -> ok NANOSECONDS WINDOWS DISTURBED
//     about                                             -> ok TEXT
//   anything that cannot be done                        -> error TEXT
//
// bench/README.md says what subjects and patterns are. A sample is the median of its windows, of
// the threads' own CPU time for one hit of one thread; a window is 20,000 hits. Each subject holds
// the same number of pages of 4 KiB, all resident, and is made when it is first asked for.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <atomic>
#include <barrier>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <iostream>
#include <memory>
#include <shared_mutex>
#include <sstream>
#include <thread>
#include <unordered_map>
#include <vector>

#include "forebay/block/memory_device.h"
#include "forebay/cache/address_space.h"
#ifdef FOREBAY_BENCH_ROCKSDB
#include <rocksdb/cache.h>
#endif

namespace forebay::bench {
namespace {

constexpr unsigned window_hits = 20'000;

enum class pattern { hold, word, copy };

// Where the bytes that are looked at go, so that nobody leaves the looking out.
struct sink {
  std::uint64_t sum = 0;
  alignas(64) std::array<std::byte, page_bytes> page;
};

// What is done with the page that a hit leads to.
template <pattern P>
void use(const void* data, sink& out) noexcept {
  if constexpr (P == pattern::hold) out.sum += reinterpret_cast<std::uintptr_t>(data);
  if constexpr (P == pattern::word) {
    std::uint64_t first = 0;
    std::memcpy(&first, data, sizeof first);
    out.sum += first;
  }
  if constexpr (P == pattern::copy) {
    std::memcpy(out.page.data(), data, page_bytes);
    out.sum += std::to_integer<std::uint64_t>(out.page[7]);
  }
}

// Every hit(page, sink) returns false if the page was not there.

struct our_cache {
  explicit our_cache(std::uint64_t pages)
      : dev(pages * page_bytes),
        cache(std::move(
            *page_cache::create({.bytes = (pages + pages / 16) * page_bytes + (64u << 20)}))),
        space(*cache, dev, {.block_bytes = 4096}) {
    if (!sync_wait(space.prefetch(0, pages * page_bytes))) std::abort();
    // Every page once as often as counts: what the first hits of a page do more is no hit's cost.
    for (int i = 0; i < 4; ++i) {
      for (std::uint64_t n = 0; n < pages; ++n) static_cast<void>(space.try_view(n));
    }
  }
  static our_cache& of(std::uint64_t pages) {
    static our_cache instance(pages);
    return instance;
  }

  memory_device dev;
  std::unique_ptr<page_cache> cache;
  address_space space;
};

struct our_pin {
  explicit our_pin(std::uint64_t pages) : all(our_cache::of(pages)) {}
  template <pattern P>
  bool hit(std::uint64_t n, sink& out) {
    const page_ref p = all.space.try_pin_page(n);
    if (!p) return false;
    use<P>(P == pattern::hold ? static_cast<const void*>(p.get()) : p->data(), out);
    return true;
  }
  our_cache& all;
};

struct our_view {
  explicit our_view(std::uint64_t pages) : all(our_cache::of(pages)) {}
  template <pattern P>
  bool hit(std::uint64_t n, sink& out) {
    if constexpr (P == pattern::copy)
      return all.space.try_read(n * page_bytes, out.page) == page_bytes;
    const auto v = all.space.try_view(n);
    if (!v) return false;
    if constexpr (P == pattern::word) out.sum += v.template load<std::uint64_t>(0);
    return v.still_valid();
  }
  our_cache& all;
};

// The bytes themselves, from the same arena, found by arithmetic: the floor.
struct bare {
  explicit bare(std::uint64_t pages)
      : memory(our_cache::of(pages).cache->memory().memory().data()) {}
  template <pattern P>
  bool hit(std::uint64_t n, sink& out) {
    use<P>(memory + n * page_bytes, out);
    return true;
  }
  const std::byte* memory;
};

// vmcache (Leis and others, SIGMOD 2023): one virtual address for each page, and for each a word of
// state, 8 bits and a version; fixS() counts readers in the state by a compare-and-exchange.
struct vmcache_memory {
  static constexpr std::uint64_t unlocked = 0;
  static constexpr std::uint64_t max_shared = 252;
  static constexpr std::uint64_t one = std::uint64_t{1} << 56;

  explicit vmcache_memory(std::uint64_t pages)
      : states(static_cast<std::atomic<std::uint64_t>*>(map(pages * 8))),
        memory(static_cast<std::byte*>(map(pages * page_bytes))) {
    // As vmcache: pages come and go singly, so there are no huge ones.
    madvise(memory, pages * page_bytes, MADV_NOHUGEPAGE);
    for (std::uint64_t n = 0; n < pages; ++n) memory[n * page_bytes] = std::byte{1};
  }
  static void* map(std::size_t bytes) {
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) std::abort();
    return p;
  }
  static vmcache_memory& of(std::uint64_t pages) {
    static vmcache_memory instance(pages);
    return instance;
  }
  std::atomic<std::uint64_t>* states;
  std::byte* memory;
};

struct vmcache_fix {
  explicit vmcache_fix(std::uint64_t pages) : all(vmcache_memory::of(pages)) {}
  template <pattern P>
  bool hit(std::uint64_t n, sink& out) {
    constexpr std::uint64_t one = vmcache_memory::one;
    std::atomic<std::uint64_t>& state = all.states[n];
    for (;;) {
      std::uint64_t s = state.load();
      if ((s >> 56) >= vmcache_memory::max_shared) return false;
      if (state.compare_exchange_strong(s, s + one)) break;
    }
    use<P>(all.memory + n * page_bytes, out);
    for (;;) {
      std::uint64_t s = state.load();
      if (state.compare_exchange_strong(s, s - one)) break;
    }
    return true;
  }
  vmcache_memory& all;
};

struct vmcache_optimistic {
  explicit vmcache_optimistic(std::uint64_t pages) : all(vmcache_memory::of(pages)) {}
  template <pattern P>
  bool hit(std::uint64_t n, sink& out) {
    const std::atomic<std::uint64_t>& state = all.states[n];
    const std::uint64_t s = state.load();
    if ((s >> 56) >= vmcache_memory::max_shared) return false;
    use<P>(all.memory + n * page_bytes, out);
    return state.load() == s;
  }
  vmcache_memory& all;
};

// A hash table under a lock for readers.
struct locked_map {
  explicit locked_map(std::uint64_t count) : memory(new std::byte[count * page_bytes]()) {
    pages.reserve(count);
    for (std::uint64_t n = 0; n < count; ++n) pages.emplace(n, memory.get() + n * page_bytes);
  }
  template <pattern P>
  bool hit(std::uint64_t n, sink& out) {
    const std::shared_lock hold(lock);
    const auto found = pages.find(n);
    if (found == pages.end()) return false;
    use<P>(found->second, out);
    return true;
  }
  std::unique_ptr<std::byte[]> memory;
  std::shared_mutex lock;
  std::unordered_map<std::uint64_t, std::byte*> pages;
};

// A file that the kernel's page cache has.
struct cached_file {
  explicit cached_file(std::uint64_t pages) : fd(open("/var/tmp", O_TMPFILE | O_RDWR, 0600)) {
    std::vector<std::byte> chunk(1u << 20, std::byte{1});
    for (std::uint64_t at = 0; fd >= 0 && at < pages * page_bytes; at += chunk.size()) {
      if (pwrite(fd, chunk.data(), chunk.size(), static_cast<off_t>(at)) != ssize_t{1 << 20})
        std::abort();
    }
    if (fd < 0) std::abort();
    mapped = static_cast<std::byte*>(
        mmap(nullptr, pages * page_bytes, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0));
    if (mapped == MAP_FAILED) std::abort();
  }
  static cached_file& of(std::uint64_t pages) {
    static cached_file instance(pages);
    return instance;
  }
  int fd;
  std::byte* mapped;
};

struct kernel_pread {
  explicit kernel_pread(std::uint64_t pages) : file(cached_file::of(pages)) {}
  template <pattern P>
  bool hit(std::uint64_t n, sink& out) {
    const std::size_t bytes = P == pattern::copy ? page_bytes : 8;
    return pread(file.fd, out.page.data(), bytes, static_cast<off_t>(n * page_bytes)) ==
           static_cast<ssize_t>(bytes);
  }
  cached_file& file;
};

struct kernel_mmap {
  explicit kernel_mmap(std::uint64_t pages) : file(cached_file::of(pages)) {}
  template <pattern P>
  bool hit(std::uint64_t n, sink& out) {
    use<P>(file.mapped + n * page_bytes, out);
    return true;
  }
  cached_file& file;
};

#ifdef FOREBAY_BENCH_ROCKSDB
struct rocksdb_cache {
  rocksdb_cache(std::uint64_t count, std::shared_ptr<rocksdb::Cache> c)
      : cache(std::move(c)), memory(new std::byte[count * page_bytes]()) {
    for (std::uint64_t n = 0; n < count; ++n) {
      const auto key = key_of(n);
      const auto s = cache->Insert({key.data(), key.size()}, memory.get() + n * page_bytes,
                                   page_bytes, [](const rocksdb::Slice&, void*) {});
      if (!s.ok()) std::abort();
    }
  }
  ~rocksdb_cache() { cache.reset(); }
  static std::size_t capacity(std::uint64_t count) { return count * (page_bytes + 256) * 5 / 4; }
  // HyperClockCache wants 16 bytes that are spread well.
  static std::array<char, 16> key_of(std::uint64_t n) noexcept {
    const std::array<std::uint64_t, 2> words{n * 0x9e3779b97f4a7c15, n};
    std::array<char, 16> key;
    std::memcpy(key.data(), words.data(), sizeof key);
    return key;
  }
  template <pattern P>
  bool hit(std::uint64_t n, sink& out) {
    const auto key = key_of(n);
    rocksdb::Cache::Handle* h = cache->Lookup({key.data(), key.size()});
    if (h == nullptr) return false;
    use<P>(cache->Value(h), out);
    cache->Release(h);
    return true;
  }
  std::shared_ptr<rocksdb::Cache> cache;
  std::unique_ptr<std::byte[]> memory;
};
struct rocksdb_clock : rocksdb_cache {
  explicit rocksdb_clock(std::uint64_t n)
      : rocksdb_cache(n,
                      rocksdb::HyperClockCacheOptions(capacity(n), page_bytes).MakeSharedCache()) {}
};
struct rocksdb_lru : rocksdb_cache {
  explicit rocksdb_lru(std::uint64_t n) : rocksdb_cache(n, rocksdb::NewLRUCache(capacity(n))) {}
};
#endif

// --- the loop ---

struct request {
  std::uint64_t pages = 0;
  unsigned threads = 1;
  unsigned windows = 15;
  bool one_page = false;
  std::array<unsigned, 2> cpus{0, 1};
};

double cpu_ns() noexcept {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) * 1e9 + static_cast<double>(t.tv_nsec);
}

template <typename Subject, pattern P>
bool run_window(Subject& s, const request& r, std::uint64_t& seed, sink& out) {
  bool all = true;
  std::uint64_t x = seed;
  for (unsigned i = 0; i < window_hits; ++i) {
    x ^= x << 13;  // xorshift64: cheap enough not to show
    x ^= x >> 7;
    x ^= x << 17;
    all = s.template hit<P>(r.one_page ? 0 : (x >> 11) % r.pages, out) && all;
  }
  seed = x;
  return all;
}

// Nanoseconds of one thread for a hit; below 0 if a page was missing.
template <typename Subject, pattern P>
double measure(const request& r) {
  static Subject subject(r.pages);
  std::vector<double> medians(r.threads);
  std::atomic<bool> missed{false};
  std::barrier together(static_cast<std::ptrdiff_t>(r.threads));
  const auto work = [&](unsigned t) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(r.cpus[t], &set);
    static_cast<void>(sched_setaffinity(0, sizeof set, &set));
    std::uint64_t seed = 0x9e3779b97f4a7c15 * (t + 1);
    sink out;
    std::vector<double> each;
    if (!run_window<Subject, P>(subject, r, seed, out)) missed.store(true);
    together.arrive_and_wait();
    for (unsigned w = 0; w < r.windows; ++w) {
      const double start = cpu_ns();
      if (!run_window<Subject, P>(subject, r, seed, out)) missed.store(true);
      each.push_back((cpu_ns() - start) / window_hits);
    }
    std::nth_element(each.begin(), each.begin() + r.windows / 2, each.end());
    medians[t] = each[r.windows / 2] + (out.sum == 42 ? 1e-9 : 0);
  };
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < r.threads; ++t) threads.emplace_back(work, t);
  for (std::thread& t : threads) t.join();
  double sum = 0;
  for (const double m : medians) sum += m;
  return missed.load() ? -1 : sum / r.threads;
}

using measure_function = double (*)(const request&);
struct subject_entry {
  const char* name;
  std::array<measure_function, 3> by_pattern;
};
template <typename Subject>
constexpr subject_entry entry(const char* name) {
  return {name,
          {&measure<Subject, pattern::hold>, &measure<Subject, pattern::word>,
           &measure<Subject, pattern::copy>}};
}

constexpr subject_entry subjects[] = {
    entry<our_pin>("pin"),
    entry<our_view>("view"),
    entry<bare>("bare"),
    entry<vmcache_fix>("vmcache_fix"),
    entry<vmcache_optimistic>("vmcache_optimistic"),
    entry<locked_map>("map"),
    entry<kernel_pread>("pread"),
    entry<kernel_mmap>("mmap"),
#ifdef FOREBAY_BENCH_ROCKSDB
    entry<rocksdb_clock>("rocksdb_clock"),
    entry<rocksdb_lru>("rocksdb_lru"),
#endif
};

std::string answer(const std::string& line, request r) {
  std::istringstream words(line);
  std::string command;
  std::string name;
  std::string what;
  words >> command;
  if (command == "about") return "ok page caches of " + std::to_string(r.pages / 256) + " MiB";
  words >> name >> what >> r.threads;
  if (command != "sample" || !words || r.threads < 1 || r.threads > r.cpus.size()) {
    return "error usage: sample SUBJECT hold|word|copy|one THREADS";
  }
  const auto* s =
      std::ranges::find(subjects, name, [](const subject_entry& e) { return std::string(e.name); });
  if (s == std::end(subjects)) return "error no subject '" + name + "'";
  r.one_page = what == "one";
  const std::size_t p = what == "hold"                 ? 0
                        : what == "word" || r.one_page ? 1
                        : what == "copy"               ? 2
                                                       : 3;
  if (p == 3) return "error no pattern '" + what + "'";
  const double ns = s->by_pattern[p](r);
  if (ns < 0) return "error a resident page was not found";
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), "ok %.4f %u 0", ns, r.windows);
  return text.data();
}

}  // namespace
}  // namespace forebay::bench

int main(int argc, char** argv) {
  using namespace forebay::bench;
  CLI::App app("Measures hits of page caches; bench/README.md says how it is used.");
  request r;
  std::vector<unsigned> cpus{0, 1};
  std::uint64_t mib = 1024;
  app.add_option("--cpus", cpus, "CPUs of the threads (default 0,1)")
      ->delimiter(',')
      ->expected(1, 2);
  app.add_option("--windows", r.windows, "windows of a sample")->check(CLI::Range(1u, 1'000'000u));
  app.add_option("--mib", mib, "pages that are resident, in MiB")->check(CLI::Range(1u, 65536u));
  CLI11_PARSE(app, argc, argv);
  r.cpus = {cpus[0], cpus.back()};
  r.pages = mib * 256;
  for (std::string line; std::getline(std::cin, line);) {
    std::cout << answer(line, r) << std::endl;
  }
  return 0;
}
