#include "forebay/os/numa.h"

#include <numa.h>
#include <numaif.h>
#include <sched.h>

#include <array>
#include <climits>

namespace forebay {
namespace {

bool available() noexcept {
  static const bool yes = ::numa_available() >= 0;
  return yes;
}

}  // namespace

std::vector<int> numa_nodes() {
  if (!available()) return {0};
  std::vector<int> nodes;
  for (int n = 0; n <= ::numa_max_node(); ++n) {
    if (::numa_bitmask_isbitset(::numa_all_nodes_ptr, static_cast<unsigned>(n)) != 0) {
      nodes.push_back(n);
    }
  }
  if (nodes.empty()) nodes.push_back(0);
  return nodes;
}

bool numa_node_exists(int node) {
  if (node < 0) return false;
  if (!available()) return node == 0;
  return node <= ::numa_max_node() &&
         ::numa_bitmask_isbitset(::numa_all_nodes_ptr, static_cast<unsigned>(node)) != 0;
}

int current_numa_node() noexcept {
  if (!available()) return 0;
  const int cpu = ::sched_getcpu();
  const int node = cpu < 0 ? -1 : ::numa_node_of_cpu(cpu);
  return node < 0 ? 0 : node;
}

result<> bind_to_numa_node(std::span<std::byte> memory, int node) {
  if (!numa_node_exists(node)) return fail(ENODEV);
  if (!available()) return {};
  constexpr unsigned word_bits = sizeof(unsigned long) * CHAR_BIT;
  std::array<unsigned long, 1024 / word_bits> mask{};  // the kernel's largest count of nodes
  const auto bit = static_cast<unsigned>(node);
  if (bit / word_bits >= mask.size()) return fail(ENODEV);
  mask[bit / word_bits] = 1ul << (bit % word_bits);
  // One more than there are bits: the kernel subtracts one.
  if (::mbind(memory.data(), memory.size(), MPOL_BIND, mask.data(), mask.size() * word_bits + 1,
              0) != 0) {
    return fail_errno();
  }
  return {};
}

result<int> numa_node_of(const void* address) {
  int node = -1;
  if (::get_mempolicy(&node, nullptr, 0, const_cast<void*>(address), MPOL_F_NODE | MPOL_F_ADDR) !=
      0) {
    return fail_errno();
  }
  return node;
}

}  // namespace forebay
