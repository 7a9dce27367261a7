// The simulator of `forebay replay`: how many requests of a trace miss a cache of a given size.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace forebay::tool {

// Requests for blocks, each one cached or not as a whole. Blocks are numbered in the order in which
// they come up first.
struct replay_trace {
  std::string name;
  std::vector<std::uint32_t> requests;
  std::uint32_t blocks = 0;  // different ones: the footprint
};

struct replay_policy {
  std::string_view name;
  std::string_view says;  // in a few words
  bool ours = false;      // the page cache has it: the same code runs here
  bool compared = false;  // one of those that the default is measured by
};

// All that there are, the page cache's default first, Belady's last.
std::span<const replay_policy> replay_policies() noexcept;

// Misses of the trace with this policy, one of replay_policies(), and room for `capacity` blocks,
// at least 1.
std::uint64_t replay_misses(const replay_trace& trace, std::string_view policy,
                            std::uint32_t capacity);

// The miss-ratio curve of the trace, exactly: element n is the ratio of an LRU cache for n blocks,
// from 0 to all blocks. From the reuse distances (Mattson et al., "Evaluation techniques for
// storage hierarchies", 1970), in one pass.
std::vector<double> exact_miss_ratios(const replay_trace& trace);

}  // namespace forebay::tool
