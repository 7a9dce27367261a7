// Forebay's AF_XDP port in the loop of port_loop.h.
#include <array>

#include "bench/packets/port_loop.h"
#include "forebay/memory/arena.h"
#include "forebay/net/echo.h"
#include "forebay/net/xdp_port.h"

namespace forebay::bench {
namespace {

constexpr std::size_t burst_packets = 64;
constexpr std::size_t buffers = 8192;

int run(const port_arguments& arguments) {
  const auto at = net_interface::find(arguments.interface);
  if (!at) return std::fprintf(stderr, "%s: no such interface\n", arguments.interface), 1;
  auto memory = arena::create({.bytes = buffers * 2048 + (16u << 20)});
  if (!memory) return std::fputs("no memory\n", stderr), 1;
  auto pool = packet_pool::create(**memory, xdp_port::pool_options("frames", 2048, buffers));
  if (!pool) return std::fputs("no memory\n", stderr), 1;
  auto opened = xdp_port::open(*at, {}, **memory, **pool);
  if (!opened) return std::fprintf(stderr, "%s\n", opened.error().message().c_str()), 1;
  xdp_port& port = **opened;
  const echo_identity swapping{.swap_everything = true};
  return measure_port(arguments, [&]() noexcept -> std::uint64_t {
    std::array<packet, burst_packets> burst;
    const std::size_t n = port.receive(burst);
    const std::span<packet> got = std::span(burst).first(n);
    if (n == 0) {
      static_cast<void>(port.wait(10));
      return 0;
    }
    std::size_t through = n;
    if (arguments.swaps) {
      for (packet& p : got) static_cast<void>(turn_round(*p, swapping));
      through = port.transmit(got).value_or(0);
    }
    packet_pool::release_burst(got);
    return through;
  });
}

}  // namespace
}  // namespace forebay::bench

int main(int argc, char** argv) {
  forebay::bench::port_arguments arguments;
  if (!forebay::bench::read_arguments(argc, argv, arguments)) {
    return std::fputs("usage: packet_port_forebay IF drop|macswap SECONDS\n", stderr), 2;
  }
  return forebay::bench::run(arguments);
}
