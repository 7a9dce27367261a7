// What a packet costs: our packet buffers and DPDK's mbufs, in one process by the same loop.
//
//   packets_forebay --windows 15                      commands on standard input, one a line:
//     sample SUBJECT pair|headers|clone|burst         -> ok NANOSECONDS WINDOWS DISTURBED
//     about                                           -> ok TEXT
//   anything that cannot be done                      -> error TEXT
//
//   packets_forebay --table                           the subjects in turn, window by window, and
//                                                     the median of the ratios of neighbours
//
// bench/README.md says what the patterns are. A sample is the median of its windows, of the CPU
// time of the thread for one turn; a window is 20,000 turns.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cstdio>
#include <ctime>
#include <iostream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "forebay/net/packet_pool.h"
#ifdef FOREBAY_BENCH_DPDK
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_mbuf.h>
#include <rte_version.h>
#endif

namespace forebay::bench {
namespace {

constexpr unsigned window_turns = 20'000;
constexpr unsigned packet_count = 16383;  // one less than a power of two suits rte_mempool
constexpr std::size_t burst_packets = 32;
constexpr std::array<std::size_t, 3> header_bytes{8, 20, 14};  // UDP, IPv4, Ethernet

enum class pattern { pair, headers, clone, burst };
constexpr std::array<const char*, 4> pattern_names{"pair", "headers", "clone", "burst"};

// Nobody may leave out what was done to `value`.
template <typename T>
void keep(T& value) noexcept {
  asm volatile("" : : "r"(&value) : "memory");
}

struct our_packets {
  static std::string start() {
    static const auto memory = arena::create({.bytes = 128u << 20});
    if (!memory) return memory.error().message();
    static const auto made = packet_pool::create(
        **memory, {.name = "benchmark", .buffer_bytes = 2048 + 128, .count = packet_count});
    if (!made) return made.error().message();
    pool = made->get();
    static const packet held = (*made)->try_allocate();  // goes before the pool
    source = held.get();
    static_cast<void>(source->put(64));
    return {};
  }

  template <pattern P>
  static bool turn() noexcept {
    if constexpr (P == pattern::clone) {
      auto c = source->clone();
      if (!c) return false;
      keep(*c);
    } else if constexpr (P == pattern::burst) {
      static std::array<packet, burst_packets> packets;
      if (pool->allocate_burst(packets) != packets.size()) return false;
      keep(packets);
      packet_pool::release_burst(packets);
    } else {
      packet p = pool->try_allocate();
      if (!p) [[unlikely]]
        return false;
      keep(p);
      if constexpr (P == pattern::headers) {
        std::size_t sum = 0;
        for (const std::size_t n : header_bytes) {
          const auto at = p->push(n);
          if (!at) [[unlikely]]
            return false;
          keep(*at);
          sum += n;
        }
        const auto rest = p->pull(sum);
        if (!rest) [[unlikely]]
          return false;
        keep(*rest);
      }
    }
    return true;
  }

  static inline packet_pool* pool = nullptr;
  static inline packet_buffer* source = nullptr;
};

#ifdef FOREBAY_BENCH_DPDK
struct mbufs {
  static std::string start() {
    std::array<std::string, 9> words{"packets",
                                     "--no-huge",
                                     "-m",
                                     "256",
                                     "--no-shconf",
                                     "--no-pci",
                                     "--no-telemetry",
                                     "--log-level=error",
                                     "--iova-mode=va"};
    std::array<char*, words.size() + 1> arguments{};
    for (std::size_t i = 0; i < words.size(); ++i) arguments[i] = words[i].data();
    if (rte_eal_init(words.size(), arguments.data()) < 0) return rte_strerror(rte_errno);
    // The default size, and the largest cache for an lcore.
    pool = rte_pktmbuf_pool_create("mbufs", packet_count, RTE_MEMPOOL_CACHE_MAX_SIZE, 0,
                                   RTE_MBUF_DEFAULT_BUF_SIZE, SOCKET_ID_ANY);
    if (pool == nullptr) return rte_strerror(rte_errno);
    source = rte_pktmbuf_alloc(pool);
    rte_pktmbuf_append(source, 64);
    return {};
  }

  template <pattern P>
  static bool turn() noexcept {
    if constexpr (P == pattern::clone) {
      rte_mbuf* c = rte_pktmbuf_clone(source, pool);
      if (c == nullptr) return false;
      keep(c);
      rte_pktmbuf_free(c);
    } else if constexpr (P == pattern::burst) {
      static std::array<rte_mbuf*, burst_packets> packets;
      if (rte_pktmbuf_alloc_bulk(pool, packets.data(), packets.size()) != 0) return false;
      keep(packets);
      rte_pktmbuf_free_bulk(packets.data(), packets.size());
    } else {
      rte_mbuf* p = rte_pktmbuf_alloc(pool);
      if (p == nullptr) [[unlikely]]
        return false;
      keep(p);
      if constexpr (P == pattern::headers) {
        std::size_t sum = 0;
        for (const std::size_t n : header_bytes) {
          char* at = rte_pktmbuf_prepend(p, static_cast<std::uint16_t>(n));
          if (at == nullptr) [[unlikely]]
            return false;
          keep(at);
          sum += n;
        }
        char* rest = rte_pktmbuf_adj(p, static_cast<std::uint16_t>(sum));
        if (rest == nullptr) [[unlikely]]
          return false;
        keep(rest);
      }
      rte_pktmbuf_free(p);
    }
    return true;
  }

  static inline rte_mempool* pool = nullptr;
  static inline rte_mbuf* source = nullptr;
};
#endif

double cpu_ns() noexcept {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) * 1e9 + static_cast<double>(t.tv_nsec);
}

// Nanoseconds for one turn, or for one packet of a burst; negative if there was no packet.
template <typename S, pattern P>
double window() noexcept {
  constexpr unsigned turns = P == pattern::burst ? window_turns / burst_packets : window_turns;
  const double start = cpu_ns();
  for (unsigned i = 0; i < turns; ++i) {
    if (!S::template turn<P>()) return -1;
  }
  const double each = (cpu_ns() - start) / turns;
  return P == pattern::burst ? each / burst_packets : each;
}

struct subject {
  const char* name;
  std::string (*start)();
  std::array<double (*)() noexcept, 4> window_of;
};

template <typename S>
constexpr subject subject_of(const char* name) {
  return {name,
          S::start,
          {window<S, pattern::pair>, window<S, pattern::headers>, window<S, pattern::clone>,
           window<S, pattern::burst>}};
}

constexpr subject subjects[] = {
    subject_of<our_packets>("forebay"),
#ifdef FOREBAY_BENCH_DPDK
    subject_of<mbufs>("mbuf"),
#endif
};

double median(std::vector<double> of) {
  std::ranges::nth_element(of, of.begin() + static_cast<std::ptrdiff_t>(of.size() / 2));
  return of[of.size() / 2];
}

std::string answer(const std::string& line, unsigned windows) {
  std::istringstream words(line);
  std::string command;
  std::string name;
  std::string what;
  words >> command >> name >> what;
  if (command == "about") {
#ifdef FOREBAY_BENCH_DPDK
    return std::string("ok packet buffers beside ") + rte_version();
#else
    return "ok packet buffers";
#endif
  }
  const auto* s = std::ranges::find(subjects, name, [](const subject& x) { return x.name; });
  const auto* p = std::ranges::find(pattern_names, what);
  if (command != "sample" || p == pattern_names.end()) {
    return "error usage: sample SUBJECT pair|headers|clone|burst";
  }
  if (s == std::end(subjects)) return "error no subject '" + name + "'";
  std::vector<double> got;
  s->window_of[static_cast<std::size_t>(p - pattern_names.begin())]();  // warm
  for (unsigned i = 0; i < windows; ++i) {
    got.push_back(s->window_of[static_cast<std::size_t>(p - pattern_names.begin())]());
    if (got.back() < 0) return "error no packet was free";
  }
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), "ok %.4f %u 0", median(got), windows);
  return text.data();
}

void print_table(unsigned windows) {
  for (std::size_t p = 0; p < pattern_names.size(); ++p) {
    std::vector<std::vector<double>> got(std::size(subjects));
    for (unsigned i = 0; i < windows; ++i) {
      for (std::size_t s = 0; s < got.size(); ++s) got[s].push_back(subjects[s].window_of[p]());
    }
    std::printf("%-8s", pattern_names[p]);
    for (std::size_t s = 0; s < got.size(); ++s) {
      std::printf("  %s %6.2f ns", subjects[s].name, median(got[s]));
    }
    if (got.size() == 2) {
      std::vector<double> ratios;
      for (unsigned i = 0; i < windows; ++i) ratios.push_back(got[0][i] / got[1][i]);
      std::printf("  ratio %.2f", median(ratios));
    }
    std::printf("\n");
  }
}

}  // namespace
}  // namespace forebay::bench

int main(int argc, char** argv) {
  using namespace forebay::bench;
  CLI::App app("Measures packet buffers; bench/README.md says how it is used.");
  std::vector<unsigned> cpus;
  unsigned windows = 15;
  bool table = false;
  app.add_option("--cpus", cpus, "for bench/run; one thread is all there is")->delimiter(',');
  app.add_option("--windows", windows, "windows of a sample")->check(CLI::Range(1u, 1'000'000u));
  app.add_flag("--table", table, "measure all in turn and print a table");
  CLI11_PARSE(app, argc, argv);
  for (const subject& s : subjects) {
    const std::string failure = s.start();
    if (failure.empty()) continue;
    std::fprintf(stderr, "packets_forebay: %s: %s\n", s.name, failure.c_str());
    return 1;
  }
  if (table) {
    print_table(windows);
    return 0;
  }
  for (std::string line; std::getline(std::cin, line);) {
    std::cout << answer(line, windows) << std::endl;
  }
  return 0;
}
