// One thread: not in the thread sanitizer's tree.

#include "forebay/os/numa.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "forebay/os/memory.h"

namespace forebay {
namespace {

TEST(Numa, NodesExistAndTheCallersIsOneOfThem) {
  const auto nodes = numa_nodes();
  ASSERT_FALSE(nodes.empty());
  EXPECT_TRUE(std::is_sorted(nodes.begin(), nodes.end()));
  for (const int n : nodes) EXPECT_TRUE(numa_node_exists(n));
  EXPECT_FALSE(numa_node_exists(nodes.back() + 1));
  EXPECT_FALSE(numa_node_exists(-1));
  EXPECT_FALSE(numa_node_exists(1 << 20));
  EXPECT_GE(current_numa_node(), 0);
}

TEST(Numa, MemoryComesFromTheNodeItIsBoundTo) {
  for (const int node : numa_nodes()) {
    for (const page_backing b : {page_backing::ordinary, page_backing::huge_transparent}) {
      const auto m = memory_source::system().map({.bytes = 1u << 20, .largest = b, .node = node});
      ASSERT_TRUE(m) << m.error().message();
      m->data()[0] = std::byte{1};
      const auto lies_on = numa_node_of(m->data());
      if (!lies_on) GTEST_SKIP() << lies_on.error().message();
      EXPECT_EQ(*lies_on, node);
    }
  }
}

TEST(Numa, ANodeThatDoesNotExistIsAnError) {
  auto m = memory_source::system().map({.bytes = 4096});
  ASSERT_TRUE(m);
  EXPECT_EQ(bind_to_numa_node(m->part(0, 4096), 4711).error().value(), ENODEV);
  EXPECT_EQ(bind_to_numa_node(m->part(0, 4096), -1).error().value(), ENODEV);
  EXPECT_EQ(memory_source::system().map({.bytes = 4096, .node = 4711}).error().value(), ENODEV);
}

}  // namespace
}  // namespace forebay
