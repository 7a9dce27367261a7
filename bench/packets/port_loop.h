// What the programs beside bench/packets/ports.py share: one loop around a port, ours or DPDK's,
// and the measuring of it.
//
//   packet_port_NAME IF drop|macswap SECONDS
//
// prints "ready" when the port is open, waits for the first packet and a little longer, then
// measures so many seconds and prints
//
//   PACKETS CPU_NANOSECONDS WALL_NANOSECONDS
//
// packets that were dropped, or sent back, and the CPU time of the process, its system calls and
// the interrupts that it was charged for.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <string_view>

namespace forebay::bench {

inline std::uint64_t clock_ns(clockid_t clock) noexcept {
  timespec t{};
  ::clock_gettime(clock, &t);
  return static_cast<std::uint64_t>(t.tv_sec) * 1'000'000'000 +
         static_cast<std::uint64_t>(t.tv_nsec);
}

struct port_arguments {
  const char* interface = nullptr;
  bool swaps = false;
  std::uint64_t window_ns = 0;
};

inline bool read_arguments(int argc, char** argv, port_arguments& out) noexcept {
  if (argc != 4) return false;
  const std::string_view what = argv[2];
  out = {argv[1], what == "macswap", static_cast<std::uint64_t>(std::atof(argv[3]) * 1e9)};
  return (out.swaps || what == "drop") && out.window_ns != 0;
}

// `turn()` does one burst and returns how many packets went through; it may wait a little when
// there are none. The exit status.
template <typename Turn>
int measure_port(const port_arguments& arguments, Turn turn) {
  constexpr std::uint64_t patience_ns = 20'000'000'000;
  constexpr std::uint64_t settling_ns = 300'000'000;
  std::puts("ready");
  std::fflush(stdout);
  const std::uint64_t opened = clock_ns(CLOCK_MONOTONIC);
  while (turn() == 0) {
    if (clock_ns(CLOCK_MONOTONIC) - opened > patience_ns) {
      return std::fputs("no packet came\n", stderr), 1;
    }
  }
  const std::uint64_t first = clock_ns(CLOCK_MONOTONIC);
  while (clock_ns(CLOCK_MONOTONIC) - first < settling_ns) turn();
  const std::uint64_t start = clock_ns(CLOCK_MONOTONIC);
  const std::uint64_t cpu = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
  std::uint64_t packets = 0;
  std::uint64_t now = start;
  while (now - start < arguments.window_ns) {
    packets += turn();
    now = clock_ns(CLOCK_MONOTONIC);
  }
  std::printf("%lu %lu %lu\n", static_cast<unsigned long>(packets),
              static_cast<unsigned long>(clock_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu),
              static_cast<unsigned long>(now - start));
  return 0;
}

}  // namespace forebay::bench
