// Page locks and waits: nobody gets in twice, nobody is forgotten.

#include "forebay/cache/page_wait.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "forebay/block/test_devices.h"

namespace forebay {
namespace {

struct frames {
  frames() : memory(std::move(*arena::create({.bytes = 1u << 20, .huge_pages = false}))) {}
  page_ref take() { return page_ref::adopt(*memory->allocate()); }

  std::unique_ptr<arena> memory;
};

// Locks and unlocks; `inside` is what the lock protects.
task<> lock_often(page& p, int times, std::uint64_t& inside) {
  for (int i = 0; i < times; ++i) {
    while (!try_lock_page(p)) co_await wait_until_clear(p, page_locked);
    ++inside;
    if (i % 8 == 0) co_await sleep_for(1);  // others find it locked
    unlock_page(p);
  }
  co_return result<>{};
}

TEST(page_wait, a_contended_lock_lets_everybody_in_one_at_a_time) {
  frames f;
  const page_ref p = f.take();
  std::uint64_t inside = 0;
  run_on_loops(3, [&](unsigned) {
    task_list tasks;
    for (int i = 0; i < 20; ++i) tasks.push_back(lock_often(*p, 50, inside));
    return tasks;
  });
  EXPECT_EQ(inside, 3u * 20 * 50);
  EXPECT_FALSE(p->test(page_locked));
}

TEST(page_wait, plain_threads_wait_as_well) {
  frames f;
  const page_ref p = f.take();
  std::uint64_t inside = 0;
  std::vector<std::jthread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 200; ++i) ASSERT_TRUE(sync_wait(lock_often(*p, 5, inside)));
    });
  }
  threads.clear();
  EXPECT_EQ(inside, 4u * 200 * 5);
}

task<> wait_for_bit(page& p, std::uint32_t bit, std::atomic<int>& resumed) {
  while (p.test(bit)) co_await wait_until_clear(p, bit);
  resumed.fetch_add(1);
  co_return result<>{};
}

task<> clear_later(page& p, std::uint32_t bit) {
  co_await sleep_for(2'000'000);
  clear_and_wake(p, bit);
  co_return result<>{};
}

TEST(page_wait, waiters_for_one_bit_survive_the_clearing_of_another) {
  frames f;
  const page_ref p = f.take();
  std::atomic<int> resumed{0};
  for (int round = 0; round < 20; ++round) {
    p->set(page_locked | page_writeback);
    run_on_loops(2, [&](unsigned t) {
      task_list tasks;
      for (int i = 0; i < 5; ++i) {
        tasks.push_back(wait_for_bit(*p, i % 2 == 0 ? page_locked : page_writeback, resumed));
      }
      tasks.push_back(clear_later(*p, t == 0 ? page_locked : page_writeback));
      return tasks;
    });
  }
  EXPECT_EQ(resumed.load(), 20 * 2 * 5);
}

// The bit is cleared at every possible moment of the wait's beginning.
TEST(page_wait, a_clear_that_races_with_the_wait_is_not_lost) {
  frames f;
  const page_ref p = f.take();
  for (int round = 0; round < 3000; ++round) {
    p->set(page_writeback);
    std::atomic<int> resumed{0};
    std::jthread clearer([&, round] {
      for (int spin = 0; spin < round % 300; ++spin) {
        static_cast<void>(p->test(page_dirty));
      }
      clear_and_wake(*p, page_writeback);
    });
    ASSERT_TRUE(sync_wait(wait_for_bit(*p, page_writeback, resumed)));
    ASSERT_EQ(resumed.load(), 1);
  }
}

TEST(page_wait, frames_that_share_a_queue_do_not_disturb_each_other) {
  auto memory = std::move(*arena::create({.bytes = 4u << 20, .huge_pages = false}));
  page_ref a = page_ref::adopt(*memory->allocate());
  std::vector<page_ref> others;
  while (&page_wait_queue(*a) != (others.empty() ? nullptr : &page_wait_queue(*others.back()))) {
    page* p = memory->allocate();
    ASSERT_NE(p, nullptr);
    others.push_back(page_ref::adopt(*p));
  }
  page& b = *others.back();
  a->set(page_locked);
  b.set(page_locked);
  std::atomic<int> resumed{0};
  run_on_loops(2, [&](unsigned t) {
    task_list tasks;
    tasks.push_back(wait_for_bit(t == 0 ? *a : b, page_locked, resumed));
    tasks.push_back(clear_later(t == 0 ? b : *a, page_locked));
    return tasks;
  });
  EXPECT_EQ(resumed.load(), 2);
}

}  // namespace
}  // namespace forebay
