// NUMA: which nodes there are, where a thread runs, where memory lies.
//
// On a machine (or a kernel) without NUMA there is the one node 0, which holds everything. Any
// thread.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "forebay/base/result.h"

namespace forebay {

inline constexpr int any_numa_node = -1;

// Nodes that this process may take memory from, ascending; never empty.
std::vector<int> numa_nodes();

bool numa_node_exists(int node);

// The node of the CPU that the caller runs on; it may be another one a moment later.
int current_numa_node() noexcept;

// From now on the pages of this memory, which nobody has touched yet, come from `node` only.
// Address and size must be multiples of 4 KiB. Errors: ENODEV if there is no such node, errno of
// mbind(2).
result<> bind_to_numa_node(std::span<std::byte> memory, int node);

// The node that the page at `address` lies on, which must be in memory. Error: EFAULT, or ENOSYS
// where the kernel has no NUMA.
result<int> numa_node_of(const void* address);

}  // namespace forebay
