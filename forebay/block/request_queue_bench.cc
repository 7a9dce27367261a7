// What a bio pays for its way through a request queue, on a device that ends it at once: against
// the bare device, against a lock for each entry and exit, and with several threads.
#include <benchmark/benchmark.h>

#include "forebay/block/request_queue.h"

namespace forebay {
namespace {

class null_device final : public device {
 public:
  null_device() { limits_.size_bytes = 1u << 30; }
  const device_limits& limits() const noexcept override { return limits_; }
  void submit(bio& b) noexcept override { complete(b, 0); }

 private:
  device_limits limits_;
};

// The way it would be with one lock around the count of what is under way.
class locked_device final : public device {
 public:
  const device_limits& limits() const noexcept override { return below_.limits(); }
  void submit(bio& b) noexcept override {
    {
      const scoped_lock hold(lock_);
      ++in_flight_;
    }
    b.queued.run = b.run;
    b.lower.worker = this;
    b.run = [](completion& c) noexcept {
      auto& ended = static_cast<bio&>(c);
      auto& self = static_cast<locked_device&>(*ended.lower.worker);
      {
        const scoped_lock hold(self.lock_);
        --self.in_flight_;
      }
      ended.run = ended.queued.run;
      ended.run(ended);
    };
    below_.submit(b);
  }

 private:
  null_device below_;
  mutex lock_;
  unsigned in_flight_ FOREBAY_GUARDED_BY(lock_) = 0;
};

enum class way { bare, locked, queued };

device& device_of(way w) {
  static null_device null;
  static locked_device locked;
  static request_queue queue(null);
  switch (w) {
    case way::bare:
      return null;
    case way::locked:
      return locked;
    case way::queued:
      break;
  }
  return queue;
}

task<> one_at_a_time(benchmark::State& state, device& d) {
  bio b(bio_op::read, 0);
  std::array<std::byte, 512> memory;
  b.add(memory.data(), memory.size());
  for (auto _ : state) {
    const std::int32_t status = co_await submit_and_wait(d, b);
    benchmark::DoNotOptimize(status);
  }
  co_return result<>{};
}

template <way W>
void submit_and_end(benchmark::State& state) {
  if (!sync_wait(one_at_a_time(state, device_of(W)))) state.SkipWithError("no memory");
}
BENCHMARK(submit_and_end<way::bare>)->Threads(1)->Threads(2);
BENCHMARK(submit_and_end<way::locked>)->Threads(1)->Threads(2);
BENCHMARK(submit_and_end<way::queued>)->Threads(1)->Threads(2);

}  // namespace
}  // namespace forebay
