#include "forebay/ring/frame_memory.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <thread>

#include "forebay/ring/loop.h"
#include "forebay/ring/task.h"

namespace forebay {
namespace {

// Counts what is out, and fails on demand.
class counting_memory final : public frame_memory {
 public:
  void* allocate(std::size_t bytes) noexcept override {
    ++calls;
    if (calls == fail_at) return nullptr;
    bytes_out += bytes;
    most_out = std::max(most_out, bytes_out);
    return std::aligned_alloc(16, (bytes + 15) / 16 * 16);
  }
  void free(void* memory, std::size_t bytes) noexcept override {
    bytes_out -= bytes;
    std::free(memory);
  }
  int calls = 0;
  int fail_at = 0;
  std::size_t bytes_out = 0;
  std::size_t most_out = 0;
};

task<int> leaf(int value) {
  co_await sleep_for(1000);
  alignas(16) const std::byte marker[16]{};
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(marker) % 16, 0u);
  co_return value;
}

task<int> chain(int depth) {
  if (depth == 0) co_return co_await leaf(0);
  const result<int> below = co_await chain(depth - 1);
  if (!below) co_return fail(below.error());
  co_return *below + 1;
}

// Runs the task that `make` gives on a loop to its end.
template <typename Make>
void run_on_loop(Make make) {
  struct start : completion {
    Make* make = nullptr;
    task_group group;
    static task<> run_all(start* s) {
      co_await (*s->make)();
      loop::current()->stop();
      co_return result<>{};
    }
  };
  auto on = loop::create();
  ASSERT_TRUE(on.has_value());
  start s;
  s.make = &make;
  s.completion::run = [](completion& c) noexcept {
    auto& self = static_cast<start&>(c);
    FOREBAY_ASSERT(start::run_all(&self).spawn(self.group));
  };
  (*on)->post(s);
  (*on)->run();
}

task<> count_frames(counting_memory* memory) {
  executor::current()->set_frames(memory);
  const result<int> r = co_await chain(5);
  EXPECT_EQ(r.value(), 5);
  EXPECT_EQ(memory->calls, 7);
  EXPECT_GT(memory->most_out, 7 * sizeof(void*));
  EXPECT_EQ(memory->bytes_out, 0u);
  executor::current()->set_frames(nullptr);
  EXPECT_EQ((co_await chain(5)).value(), 5);
  EXPECT_EQ(memory->calls, 7) << "from the heap";
  co_return result<>{};
}

TEST(FrameMemory, TasksComeFromTheirExecutorsMemory) {
  counting_memory memory;
  run_on_loop([&] { return count_frames(&memory); });
}

task<> fail_each(counting_memory* memory) {
  executor::current()->set_frames(memory);
  for (int n = 1; n <= 7; ++n) {
    memory->calls = 0;
    memory->fail_at = n;
    const result<int> r = co_await chain(5);
    EXPECT_FALSE(r.has_value()) << n;
    if (!r) {
      EXPECT_EQ(r.error().value(), ENOMEM) << n;
    }
    EXPECT_EQ(memory->calls, n);
    EXPECT_EQ(memory->bytes_out, 0u) << n;
  }
  memory->calls = memory->fail_at = 0;
  EXPECT_EQ((co_await chain(5)).value(), 5);
  executor::current()->set_frames(nullptr);
  co_return result<>{};
}

TEST(FrameMemory, EachFrameOfAChainMayBeRefused) {
  counting_memory memory;
  run_on_loop([&] { return fail_each(&memory); });
}

task<> frame_for_elsewhere(counting_memory* memory, task<int>* out) {
  executor::current()->set_frames(memory);
  *out = leaf(7);
  EXPECT_TRUE(out->has_frame());
  executor::current()->set_frames(nullptr);
  co_return result<>{};
}

TEST(FrameMemory, AFrameIsGivenBackWhereItCameFrom) {
  counting_memory memory;
  task<int> made = leaf(0);
  run_on_loop([&] { return frame_for_elsewhere(&memory, &made); });
  EXPECT_GT(memory.bytes_out, 0u);
  std::thread([&] { EXPECT_EQ(sync_wait(std::move(made)).value(), 7); }).join();
  made = leaf(1);
  EXPECT_EQ(memory.bytes_out, 0u);
}

}  // namespace
}  // namespace forebay
