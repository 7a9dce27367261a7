// One thread: not in the thread sanitizer's tree.
// buffer_head: the state of a page's blocks.

#include "forebay/cache/buffer_head.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <utility>
#include <vector>

#include "forebay/block/memory_device.h"

namespace forebay {
namespace {

struct fixture {
  fixture()
      : memory(std::move(*arena::create({.bytes = 1u << 20, .huge_pages = false}))),
        heads(*memory, "buffer_head"),
        frame(memory->allocate()) {
    frame->index.store(5, std::memory_order_relaxed);  // relaxed: one thread
  }
  ~fixture() {
    drop_buffers(*frame, heads);
    put_page(*frame);
  }

  std::unique_ptr<arena> memory;
  buffer_cache heads;
  page* frame;
  memory_device dev{1u << 16};
};

using runs = std::vector<std::pair<std::size_t, std::size_t>>;

runs runs_of(const page& p, std::size_t from, std::size_t to, std::uint32_t bit) {
  runs out;
  for_each_run(
      p, from, to, [bit](const buffer_head& b) { return b.test(bit); },
      [&](std::size_t a, std::size_t b) { out.emplace_back(a, b); });
  return out;
}

class block_sizes : public testing::TestWithParam<std::uint32_t> {};

TEST_P(block_sizes, buffers_form_a_circle_over_the_page) {
  fixture f;
  const std::uint32_t block = GetParam();
  EXPECT_EQ(page_buffers(*f.frame), nullptr);
  ASSERT_TRUE(create_empty_buffers(*f.frame, f.heads, f.dev, block));
  EXPECT_TRUE(f.frame->test(page_private));
  buffer_head* const first = page_buffers(*f.frame);
  ASSERT_NE(first, nullptr);
  const buffer_head* b = first;
  for (std::uint64_t i = 0; i < page_bytes / block; ++i) {
    EXPECT_EQ(b->size_bytes, block);
    EXPECT_EQ(b->data, f.frame->data() + i * block);
    EXPECT_EQ(b->block_number, 5 * (page_bytes / block) + i);
    EXPECT_EQ(b->frame, f.frame);
    EXPECT_EQ(b->dev, &f.dev);
    EXPECT_TRUE(b->test(bh_mapped));
    EXPECT_FALSE(b->test(bh_uptodate | bh_dirty));
    b = b->this_page;
  }
  EXPECT_EQ(b, first);
  // A second time changes nothing.
  first->set(bh_dirty);
  ASSERT_TRUE(create_empty_buffers(*f.frame, f.heads, f.dev, block));
  EXPECT_EQ(page_buffers(*f.frame), first);
  EXPECT_TRUE(first->test(bh_dirty));
  drop_buffers(*f.frame, f.heads);
  EXPECT_EQ(page_buffers(*f.frame), nullptr);
  EXPECT_EQ(f.heads.slabs().statistics().objects_in_use, 0u);
}

TEST_P(block_sizes, take_over_the_state_of_the_page) {
  fixture f;
  f.frame->set(page_uptodate | page_dirty);
  ASSERT_TRUE(create_empty_buffers(*f.frame, f.heads, f.dev, GetParam()));
  EXPECT_EQ(runs_of(*f.frame, 0, page_bytes, bh_uptodate), (runs{{0, page_bytes}}));
  EXPECT_EQ(runs_of(*f.frame, 0, page_bytes, bh_dirty), (runs{{0, page_bytes}}));
}

TEST_P(block_sizes, the_page_is_uptodate_when_the_last_block_is) {
  fixture f;
  const std::size_t block = GetParam();
  ASSERT_TRUE(create_empty_buffers(*f.frame, f.heads, f.dev, GetParam()));
  for (std::size_t at = page_bytes; at > 0; at -= block) {
    EXPECT_FALSE(f.frame->test(page_uptodate));
    EXPECT_FALSE(is_uptodate(*f.frame, at - 1, at));
    set_uptodate(*f.frame, at - block, at, page_bytes);
    EXPECT_TRUE(is_uptodate(*f.frame, at - block, page_bytes));
  }
  EXPECT_TRUE(f.frame->test(page_uptodate));
}

INSTANTIATE_TEST_SUITE_P(sizes, block_sizes, testing::Values(512, 1024, 2048, 4096));

TEST(buffer_head, a_page_without_buffers_has_the_state_of_its_flags) {
  fixture f;
  EXPECT_FALSE(is_uptodate(*f.frame, 0, 1));
  set_uptodate(*f.frame, 0, 2048, page_bytes);
  EXPECT_FALSE(f.frame->test(page_uptodate)) << "half of it is not all of it";
  set_uptodate(*f.frame, 0, 2560, 2560);
  EXPECT_TRUE(f.frame->test(page_uptodate)) << "all that there is of a device's last page";
  EXPECT_TRUE(is_uptodate(*f.frame, 17, 18));
}

TEST(buffer_head, last_page_of_a_device_that_ends_inside_a_block) {
  fixture f;
  ASSERT_TRUE(create_empty_buffers(*f.frame, f.heads, f.dev, 1024));
  set_uptodate(*f.frame, 0, 1024, 1536);
  EXPECT_FALSE(f.frame->test(page_uptodate));
  set_uptodate(*f.frame, 1024, 1536, 1536);
  EXPECT_TRUE(f.frame->test(page_uptodate)) << "blocks past the end do not count";
  EXPECT_EQ(runs_of(*f.frame, 0, page_bytes, bh_uptodate), (runs{{0, 2048}}));
}

TEST(buffer_head, a_block_covered_in_part_does_not_become_uptodate) {
  fixture f;
  ASSERT_TRUE(create_empty_buffers(*f.frame, f.heads, f.dev, 1024));
  set_uptodate(*f.frame, 512, 3584, page_bytes);
  EXPECT_EQ(runs_of(*f.frame, 0, page_bytes, bh_uptodate), (runs{{1024, 3072}}));
}

TEST(buffer_head, without_memory_there_are_none_and_none_are_lost) {
  fixture f;
  std::vector<page*> taken;
  while (page* p = f.memory->allocate()) taken.push_back(p);
  EXPECT_FALSE(create_empty_buffers(*f.frame, f.heads, f.dev, 512));
  EXPECT_EQ(page_buffers(*f.frame), nullptr);
  EXPECT_FALSE(f.frame->test(page_private));
  // A slab that holds some, but not enough for one more page.
  put_page(*taken.back());
  taken.pop_back();
  std::vector<buffer_head*> kept;
  for (;;) {
    buffer_head* b = f.heads.create();
    if (b == nullptr) break;
    kept.push_back(b);
  }
  ASSERT_GT(kept.size(), 8u);
  for (int i = 0; i < 5; ++i) {
    f.heads.destroy(kept.back());
    kept.pop_back();
  }
  EXPECT_FALSE(create_empty_buffers(*f.frame, f.heads, f.dev, 512));
  EXPECT_EQ(f.heads.slabs().statistics().objects_in_use, kept.size());
  for (buffer_head* b : kept) f.heads.destroy(b);
  for (page* p : taken) put_page(*p);
}

RC_GTEST_PROP(buffer_head, runs_are_what_the_bits_say, ()) {
  fixture f;
  const std::size_t block = std::size_t{512} << *rc::gen::inRange(0, 4);
  RC_ASSERT(create_empty_buffers(*f.frame, f.heads, f.dev, static_cast<std::uint32_t>(block)));
  std::vector<bool> bits;
  for_each_buffer(*f.frame, 0, page_bytes, [&](buffer_head& b) {
    bits.push_back(*rc::gen::arbitrary<bool>());
    if (bits.back()) b.set(bh_async_write);
  });
  const auto from = *rc::gen::inRange<std::size_t>(0, page_bytes);
  const auto to = *rc::gen::inRange<std::size_t>(from + 1, page_bytes + 1);
  runs want;
  for (std::size_t i = 0; i < bits.size(); ++i) {
    const std::size_t at = i * block;
    if (!bits[i] || at + block <= from || at >= to) continue;
    if (!want.empty() && want.back().second == at) {
      want.back().second = at + block;
    } else {
      want.emplace_back(at, at + block);
    }
  }
  RC_ASSERT(runs_of(*f.frame, from, to, bh_async_write) == want);
  std::size_t touched = 0;
  for_each_buffer(*f.frame, from, to, [&](const buffer_head&) { ++touched; });
  RC_ASSERT(touched == (to - 1) / block - from / block + 1);
}

}  // namespace
}  // namespace forebay
