// One thread: not in the thread sanitizer's tree.

#include "forebay/ring/completion.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <array>
#include <deque>
#include <type_traits>
#include <vector>

namespace forebay {
namespace {

static_assert(!std::is_copy_constructible_v<completion> && !std::is_copy_assignable_v<completion>);
static_assert(!std::is_copy_constructible_v<completion_queue>,
              "an empty queue points into itself: a copy would push into the original");

RC_GTEST_PROP(CompletionQueue, IsFirstInFirstOut, ()) {
  std::array<completion, 16> records;
  std::array<completion_queue, 2> queues;
  std::array<std::deque<completion*>, 2> model;
  std::deque<completion*> idle;
  for (completion& c : records) idle.push_back(&c);

  const auto steps = *rc::gen::container<std::vector<std::pair<int, int>>>(
      rc::gen::pair(rc::gen::inRange(0, 7), rc::gen::inRange(0, 2)));
  for (const auto& [what, which] : steps) {
    const auto q = static_cast<std::size_t>(which);
    if (what < 4) {
      if (idle.empty()) continue;
      queues[q].push(*idle.front());
      model[q].push_back(idle.front());
      idle.pop_front();
    } else if (what < 6) {
      completion* const got = queues[q].pop();
      RC_ASSERT(got == (model[q].empty() ? nullptr : model[q].front()));
      if (got != nullptr) model[q].pop_front(), idle.push_back(got);
    } else {
      queues[q].splice(queues[1 - q]);
      model[q].insert(model[q].end(), model[1 - q].begin(), model[1 - q].end());
      model[1 - q].clear();
    }
    for (std::size_t k = 0; k < 2; ++k) RC_ASSERT(queues[k].empty() == model[k].empty());
  }
  for (std::size_t k = 0; k < 2; ++k) {
    for (completion* expected : model[k]) RC_ASSERT(queues[k].pop() == expected);
    RC_ASSERT(queues[k].pop() == nullptr);
  }
}

TEST(CompletionQueue, ARecordMayGoRoundAgainFromItsOwnFunction) {
  static completion_queue* queue = nullptr;
  completion_queue q;
  queue = &q;
  completion c([](completion& self) noexcept {
    if (++self.status < 3) queue->push(self);
  });
  q.push(c);
  while (completion* next = q.pop()) next->run(*next);
  EXPECT_EQ(c.status, 3);
}

}  // namespace
}  // namespace forebay
