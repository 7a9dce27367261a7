// One thread: not in the thread sanitizer's tree.

#include "forebay/os/rseq.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "forebay/os/cpu.h"
#include "forebay/os/test_cpu.h"

namespace forebay {
namespace {

TEST(Cpu, TheThreadRunsOnOneBelowTheLimit) {
  EXPECT_GE(cpu_limit(), 1u);
  EXPECT_LT(current_cpu(), cpu_limit());
}

#if FOREBAY_HAVE_RSEQ

// The thread stays on one CPU, whose slot has a stack of `capacity` items.
class Rseq : public testing::Test {
 protected:
  static constexpr std::uint32_t capacity = 5;

  void SetUp() override {
    if (!rseq_usable()) GTEST_SKIP() << "no restartable sequences here";
    a_ = make_stack(capacity);
    b_ = make_stack(capacity);
    slots_ = std::make_unique<cpu_slot[]>(cpu_limit());
    slots_[cpu_].loaded = a_.get();
  }

  struct stack_deleter {
    void operator()(item_stack* s) const noexcept { ::operator delete(s); }
  };
  using stack_ptr = std::unique_ptr<item_stack, stack_deleter>;

  static stack_ptr make_stack(std::uint32_t items) {
    auto* s = new (::operator new(sizeof(item_stack) + items * sizeof(std::uint32_t))) item_stack;
    s->capacity = items;
    return stack_ptr(s);
  }

  cpu_slot* slots() { return slots_.get(); }

  const stay_on_cpu here_;
  const std::uint32_t cpu_ = current_cpu();
  stack_ptr a_;
  stack_ptr b_;
  std::unique_ptr<cpu_slot[]> slots_;
};

TEST_F(Rseq, PushAndPopAreAStackAndCountPops) {
  const std::uint32_t limit = cpu_limit();
  EXPECT_EQ(cpu_stack::cpu(), cpu_);
  std::uint32_t item = 0;
  EXPECT_FALSE(cpu_stack::pop(slots(), limit, item));
  for (std::uint32_t i = 0; i < capacity; ++i) EXPECT_TRUE(cpu_stack::push(slots(), limit, 10 + i));
  EXPECT_FALSE(cpu_stack::push(slots(), limit, 99));
  EXPECT_EQ(a_->count(), capacity);
  for (std::uint32_t i = capacity; i-- > 0;) {
    EXPECT_TRUE(cpu_stack::pop(slots(), limit, item));
    EXPECT_EQ(item, 10 + i);
  }
  EXPECT_FALSE(cpu_stack::pop(slots(), limit, item));
  EXPECT_EQ(a_->pops(), capacity);
  EXPECT_EQ(a_->count(), 0u);
}

TEST_F(Rseq, ManyAtATimeMoveWhatThereIsAndWhatFits) {
  const std::uint32_t limit = cpu_limit();
  const std::vector<std::uint32_t> from{1, 2, 3, 4, 5, 6, 7};
  EXPECT_EQ(cpu_stack::push_some(slots(), limit, from.data(), 0), 0u);
  EXPECT_EQ(cpu_stack::push_some(slots(), limit, from.data(), 2), 2u);
  EXPECT_EQ(cpu_stack::push_some(slots(), limit, from.data() + 2, 5), 3u);
  EXPECT_EQ(cpu_stack::push_some(slots(), limit, from.data(), 1), 0u);
  std::vector<std::uint32_t> to(9, 0);
  EXPECT_EQ(cpu_stack::pop_some(slots(), limit, to.data(), 2), 2u);
  EXPECT_EQ(cpu_stack::pop_some(slots(), limit, to.data() + 2, 7), 3u);
  EXPECT_EQ(to, (std::vector<std::uint32_t>{4, 5, 1, 2, 3, 0, 0, 0, 0}));
  EXPECT_EQ(cpu_stack::pop_some(slots(), limit, to.data(), 7), 0u);
  EXPECT_EQ(a_->pops(), 5u);
}

TEST_F(Rseq, ReplaceNeedsTheStackAndTheCpuThatWereSeen) {
  EXPECT_FALSE(cpu_stack::replace(slots(), cpu_, b_.get(), a_.get()));
  EXPECT_FALSE(cpu_stack::replace(slots(), cpu_ + 1, a_.get(), b_.get()));
  EXPECT_EQ(slots_[cpu_].loaded, a_.get());
  EXPECT_TRUE(cpu_stack::replace(slots(), cpu_, a_.get(), b_.get()));
  EXPECT_EQ(slots_[cpu_].loaded, b_.get());
  rseq_fence();
}

TEST_F(Rseq, WithoutASlotForTheCpuNothingIsDone) {
  std::uint32_t item = 7;
  EXPECT_FALSE(cpu_stack::push(slots(), cpu_, item));
  EXPECT_FALSE(cpu_stack::pop(slots(), cpu_, item));
  EXPECT_EQ(cpu_stack::push_some(slots(), cpu_, &item, 1), 0u);
  EXPECT_EQ(cpu_stack::pop_some(slots(), cpu_, &item, 1), 0u);
  EXPECT_EQ(a_->word, 0u);
}

#endif

}  // namespace
}  // namespace forebay
