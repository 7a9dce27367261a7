#include "forebay/ring/mpsc_stack.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

namespace forebay {
namespace {

struct item {
  item* next = nullptr;
  unsigned producer = 0;
  unsigned number = 0;
};

RC_GTEST_PROP(MpscStack, TakesAllInTheOrderOfPushing, ()) {
  const auto batches = *rc::gen::container<std::vector<unsigned>>(rc::gen::inRange(0u, 20u));
  mpsc_stack<item> stack;
  std::vector<item> items(20);
  for (const unsigned count : batches) {
    for (unsigned i = 0; i < count; ++i) {
      items[i].number = i;
      RC_ASSERT(stack.push(items[i]) == (i == 0));  // only the first finds it empty
    }
    unsigned expected = 0;
    for (item* i = stack.take_all(); i != nullptr; i = i->next) RC_ASSERT(i->number == expected++);
    RC_ASSERT(expected == count);
    RC_ASSERT(stack.take_all() == nullptr);
  }
}

// Every item arrives once, each producer's in its order, with what was written before the push; and
// the pushes that found the stack empty are as many as the batches that were taken.
TEST(MpscStackStress, NothingIsLostAndEachProducersOrderIsKept) {
  constexpr unsigned producers = 3;
  constexpr unsigned per_producer = 20'000;
  mpsc_stack<item> stack;
  std::atomic<unsigned> found_empty{0};
  std::vector<std::vector<item>> items(producers, std::vector<item>(per_producer));
  std::vector<std::thread> threads;
  for (unsigned p = 0; p < producers; ++p) {
    threads.emplace_back([&, p] {
      for (unsigned n = 0; n < per_producer; ++n) {
        item& i = items[p][n];
        i.producer = p;
        i.number = n;
        if (stack.push(i)) ++found_empty;
        if (n % 512 == 0) std::this_thread::yield();
      }
    });
  }
  unsigned taken = 0;
  unsigned batches = 0;
  std::vector<unsigned> next(producers, 0);
  unsigned out_of_order = 0;
  while (taken < producers * per_producer) {
    item* batch = stack.take_all();
    if (batch == nullptr) {
      std::this_thread::yield();
      continue;
    }
    ++batches;
    for (; batch != nullptr; batch = batch->next, ++taken) {
      if (batch->number != next[batch->producer]++) ++out_of_order;
    }
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(out_of_order, 0u);
  EXPECT_EQ(found_empty.load(), batches);
  EXPECT_EQ(stack.take_all(), nullptr);
}

}  // namespace
}  // namespace forebay
