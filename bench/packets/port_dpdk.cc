// DPDK's af_xdp port in the loop of port_loop.h: what testpmd does in its modes rxonly and macswap,
// with bursts of 32 as there. (Debian has no testpmd.)
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_ether.h>
#include <rte_mbuf.h>

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "bench/packets/port_loop.h"

namespace forebay::bench {
namespace {

constexpr std::uint16_t burst_packets = 32;
constexpr std::uint16_t queue_packets = 2048;
constexpr unsigned buffers = 8191;

int start_eal(const char* interface) {
  std::vector<std::string> words{"packet_port_dpdk",
                                 "--no-huge",
                                 "-m",
                                 "256",
                                 "--no-pci",
                                 "--no-telemetry",
                                 "--no-shconf",
                                 "--log-level=lib.eal:error",
                                 std::string("--vdev=net_af_xdp0,iface=") + interface};
  std::vector<char*> argv;
  for (std::string& w : words) argv.push_back(w.data());
  return rte_eal_init(static_cast<int>(argv.size()), argv.data());
}

bool start_port(std::uint16_t port) {
  rte_mempool* const pool =
      rte_pktmbuf_pool_create("frames", buffers, 256, 0, RTE_MBUF_DEFAULT_BUF_SIZE, SOCKET_ID_ANY);
  const rte_eth_conf configuration{};
  return pool != nullptr && rte_eth_dev_configure(port, 1, 1, &configuration) == 0 &&
         rte_eth_rx_queue_setup(port, 0, queue_packets, SOCKET_ID_ANY, nullptr, pool) == 0 &&
         rte_eth_tx_queue_setup(port, 0, queue_packets, SOCKET_ID_ANY, nullptr) == 0 &&
         rte_eth_dev_start(port) == 0 && rte_eth_promiscuous_enable(port) == 0;
}

void swap_addresses(rte_mbuf& m) noexcept {
  auto* const header = rte_pktmbuf_mtod(&m, rte_ether_hdr*);
  std::swap(header->src_addr, header->dst_addr);
}

std::uint64_t turn(std::uint16_t port, bool swaps) noexcept {
  std::array<rte_mbuf*, burst_packets> burst;
  const std::uint16_t n = rte_eth_rx_burst(port, 0, burst.data(), burst_packets);
  if (n == 0) return 0;
  if (!swaps) {
    rte_pktmbuf_free_bulk(burst.data(), n);
    return n;
  }
  for (std::uint16_t i = 0; i < n; ++i) {
    if (i + 1 < n) rte_prefetch0(rte_pktmbuf_mtod(burst[i + 1u], void*));
    swap_addresses(*burst[i]);
  }
  const std::uint16_t sent = rte_eth_tx_burst(port, 0, burst.data(), n);
  if (sent < n) rte_pktmbuf_free_bulk(&burst[sent], n - sent);
  return sent;
}

int run(const port_arguments& arguments) {
  if (start_eal(arguments.interface) < 0 || rte_eth_dev_count_avail() != 1) {
    return std::fprintf(stderr, "no af_xdp port: %s\n", rte_strerror(rte_errno)), 1;
  }
  const std::uint16_t port = rte_eth_find_next(0);
  if (!start_port(port)) return std::fputs("the port does not start\n", stderr), 1;
  const int status = measure_port(arguments, [&] { return turn(port, arguments.swaps); });
  rte_eth_dev_stop(port);
  rte_eth_dev_close(port);
  rte_eal_cleanup();
  return status;
}

}  // namespace
}  // namespace forebay::bench

int main(int argc, char** argv) {
  forebay::bench::port_arguments arguments;
  if (!forebay::bench::read_arguments(argc, argv, arguments)) {
    return std::fputs("usage: packet_port_dpdk IF drop|macswap SECONDS\n", stderr), 2;
  }
  return forebay::bench::run(arguments);
}
