// ring_dpdk: rte_ring, single and multi producer and consumer. The ring lies in memory of this
// program, so the EAL is not started.
#include <rte_ring.h>
#include <rte_version.h>

#include <cstdlib>

#include "bench/ring/program.h"

namespace forebay::bench {
namespace {

template <bool Single>
class dpdk_ring {
 public:
  dpdk_ring() {
    const auto bytes = static_cast<std::size_t>(rte_ring_get_memsize(tool::pipe_capacity));
    ring_.reset(static_cast<rte_ring*>(std::aligned_alloc(128, (bytes + 127) / 128 * 128)));
    const unsigned flags = Single ? RING_F_SP_ENQ | RING_F_SC_DEQ : 0;
    if (ring_ == nullptr || rte_ring_init(ring_.get(), "ring", tool::pipe_capacity, flags) != 0) {
      std::fprintf(stderr, "ring_dpdk: no ring\n");
      std::exit(1);
    }
  }

  bool push(std::span<void* const> items) noexcept {
    const auto n = static_cast<unsigned>(items.size());
    if constexpr (Single) {
      if (n == 1) return rte_ring_sp_enqueue(ring_.get(), items[0]) == 0;
      return rte_ring_sp_enqueue_bulk(ring_.get(), items.data(), n, nullptr) == n;
    } else {
      if (n == 1) return rte_ring_mp_enqueue(ring_.get(), items[0]) == 0;
      return rte_ring_mp_enqueue_bulk(ring_.get(), items.data(), n, nullptr) == n;
    }
  }
  bool pop(std::span<void*> items) noexcept {
    const auto n = static_cast<unsigned>(items.size());
    if constexpr (Single) {
      if (n == 1) return rte_ring_sc_dequeue(ring_.get(), items.data()) == 0;
      return rte_ring_sc_dequeue_bulk(ring_.get(), items.data(), n, nullptr) == n;
    } else {
      if (n == 1) return rte_ring_mc_dequeue(ring_.get(), items.data()) == 0;
      return rte_ring_mc_dequeue_bulk(ring_.get(), items.data(), n, nullptr) == n;
    }
  }

 private:
  struct freer {
    void operator()(rte_ring* ring) const { std::free(ring); }
  };
  std::unique_ptr<rte_ring, freer> ring_;
};

}  // namespace
}  // namespace forebay::bench

int main(int argc, char** argv) {
  using namespace forebay::bench;
  return run_program(argc, argv, rte_version(),
                     {subject<dpdk_ring<true>>("sp_sc"), subject<dpdk_ring<false>>("mp_mc")});
}
