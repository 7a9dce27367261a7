// What a command costs through a queue pair in shared memory, and a descriptor through a descriptor
// ring, by how many a doorbell publishes.
//
//   steps        both sides by turns in one thread: the instructions, no line changes its core
//   stream       the other side is a thread; as many under way as there is room
//   round trip   the other side is a thread; a batch is sent, and waited for to the last
//
// The figures are times of one command. `bells` is the share of commands that took a system call to
// wake the other side. The threads share one mapping: between processes the lines travel alike.

#include <benchmark/benchmark.h>

#include <array>
#include <memory>
#include <thread>

#include "forebay/ring/descriptor_ring.h"
#include "forebay/ring/shared_queue_controller.h"
#include "forebay/ring/shared_queue_pair.h"
#include "forebay/ring/test_region.h"

namespace forebay {
namespace {

constexpr std::uint32_t entries = 128;
constexpr std::uint64_t wait_ns = 10'000'000'000;

shared_command read_of(std::uint64_t i) {
  return {.opcode = 1, .flags = command_write, .address = i << 12, .length = 4096, .offset = i};
}

// Ends every command at once, in batches as they come.
void serve(shared_queue_controller& controller) {
  std::array<taken_command, 64> taken;
  while (controller.wait(wait_ns)) {
    for (;;) {
      const auto n = controller.take(taken);
      if (!n || *n == 0) break;
      for (std::size_t i = 0; i < *n; ++i) {
        static_cast<void>(controller.complete(taken[i].id, 4096));
      }
      controller.notify();
    }
  }
}

struct queues {
  test_region region{shared_queue_pair::region_bytes(entries, entries)};
  shared_queue_pair host = *shared_queue_pair::create(
      region, {.entries = entries, .completions = entries, .doorbell_batch = 0, .start = 0});
  shared_queue_controller controller = *shared_queue_controller::attach(region);
};

void count_bells(benchmark::State& state, const shared_side_statistics& s) {
  state.counters["bells"] =
      s.entries == 0 ? 0 : static_cast<double>(s.bells) / static_cast<double>(s.entries);
}

void queue_steps(benchmark::State& state) {
  const auto batch = static_cast<std::uint32_t>(state.range(0));
  queues q;
  completion done;
  std::array<taken_command, 64> taken;
  std::uint64_t i = 0;
  for (auto _ : state) {
    for (std::uint32_t n = 0; n < batch; ++n) {
      if (!q.host.submit(read_of(i++), done)) return state.SkipWithError("full");
    }
    q.host.publish();
    const std::size_t count = q.controller.take(taken).value_or(0);
    for (std::size_t n = 0; n < count; ++n) {
      static_cast<void>(q.controller.complete(taken[n].id, 4096));
    }
    q.controller.notify();
    while (q.host.reap() != nullptr) {
    }
  }
  state.SetItemsProcessed(state.iterations() * batch);
}

void queue_stream(benchmark::State& state) {
  const auto batch = static_cast<std::uint32_t>(state.range(0));
  queues q;
  std::thread other([&] { serve(q.controller); });
  completion done;
  std::uint64_t i = 0;
  for (auto _ : state) {
    for (std::uint32_t n = 0; n < batch;) {
      if (q.host.submit(read_of(i), done)) {
        ++i;
        ++n;
        continue;
      }
      if (!q.host.ring_doorbell(wait_ns, batch)) state.SkipWithError("stuck");
      while (q.host.reap() != nullptr) {
      }
    }
    q.host.publish();
    while (q.host.reap() != nullptr) {
    }
  }
  while (q.host.in_flight() != 0 && q.host.ring_doorbell(wait_ns)) {
    while (q.host.reap() != nullptr) {
    }
  }
  q.host.close();
  other.join();
  state.SetItemsProcessed(state.iterations() * batch);
  count_bells(state, q.host.statistics());
}

void queue_round_trip(benchmark::State& state) {
  const auto batch = static_cast<std::uint32_t>(state.range(0));
  queues q;
  std::thread other([&] { serve(q.controller); });
  completion done;
  for (auto _ : state) {
    for (std::uint32_t n = 0; n < batch; ++n) static_cast<void>(q.host.submit(read_of(n), done));
    while (q.host.in_flight() != 0) {
      if (!q.host.ring_doorbell(wait_ns, batch)) state.SkipWithError("stuck");
      while (q.host.reap() != nullptr) {
      }
    }
  }
  q.host.close();
  other.join();
  state.SetItemsProcessed(state.iterations() * batch);
  count_bells(state, q.host.statistics());
}

struct ring {
  test_region region{descriptor_driver::region_bytes(entries)};
  descriptor_driver driver = *descriptor_driver::create(region, {.entries = entries, .start = 0});
  descriptor_device device = *descriptor_device::attach(region);
};

// Takes and ends what there is; how many.
std::uint32_t serve_once(descriptor_device& device) {
  std::array<descriptor, 4> storage;
  std::uint32_t n = 0;
  for (;; ++n) {
    const auto taken = device.take(storage);
    if (!taken || taken->descriptors.empty()) break;
    static_cast<void>(device.complete(64));
    if (n % 64 == 63) device.notify();
  }
  device.notify();
  return n;
}

bool post(descriptor_driver& driver, std::uint64_t i) {
  return driver.post({.address = i << 12, .length = 4096, .flags = descriptor_write, .next = 0}, i)
      .has_value();
}

void ring_steps(benchmark::State& state) {
  const auto batch = static_cast<std::uint32_t>(state.range(0));
  ring r;
  std::array<ended_chain, 64> ended;
  std::uint64_t i = 0;
  for (auto _ : state) {
    for (std::uint32_t n = 0; n < batch; ++n) {
      if (!post(r.driver, i++)) return state.SkipWithError("full");
    }
    r.driver.ring_doorbell();
    serve_once(r.device);
    if (r.driver.reap(ended).value_or(0) != batch) return state.SkipWithError("lost");
  }
  state.SetItemsProcessed(state.iterations() * batch);
}

void ring_stream(benchmark::State& state) {
  const auto batch = static_cast<std::uint32_t>(state.range(0));
  ring r;
  std::thread other([&] {
    while (r.device.wait(wait_ns)) serve_once(r.device);
  });
  std::array<ended_chain, 64> ended;
  std::uint64_t i = 0;
  for (auto _ : state) {
    for (std::uint32_t n = 0; n < batch;) {
      if (post(r.driver, i)) {
        ++i;
        ++n;
        continue;
      }
      r.driver.ring_doorbell();
      if (!r.driver.wait(wait_ns)) state.SkipWithError("stuck");
      static_cast<void>(r.driver.reap(ended));
    }
    r.driver.ring_doorbell();
    static_cast<void>(r.driver.reap(ended));
  }
  while (r.driver.in_flight() != 0 && r.driver.wait(wait_ns)) {
    static_cast<void>(r.driver.reap(ended));
  }
  r.driver.close();
  other.join();
  state.SetItemsProcessed(state.iterations() * batch);
  count_bells(state, r.driver.statistics());
}

void ring_round_trip(benchmark::State& state) {
  const auto batch = static_cast<std::uint32_t>(state.range(0));
  ring r;
  std::thread other([&] {
    while (r.device.wait(wait_ns)) serve_once(r.device);
  });
  std::array<ended_chain, 64> ended;
  for (auto _ : state) {
    for (std::uint32_t n = 0; n < batch; ++n) post(r.driver, n);
    r.driver.ring_doorbell();
    while (r.driver.in_flight() != 0) {
      if (!r.driver.wait(wait_ns)) state.SkipWithError("stuck");
      static_cast<void>(r.driver.reap(ended));
    }
  }
  r.driver.close();
  other.join();
  state.SetItemsProcessed(state.iterations() * batch);
  count_bells(state, r.driver.statistics());
}

[[maybe_unused]] const bool registered = [] {
  const std::pair<const char*, void (*)(benchmark::State&)> all[] = {
      {"queue_pair/steps", queue_steps},           {"descriptor_ring/steps", ring_steps},
      {"queue_pair/stream", queue_stream},         {"descriptor_ring/stream", ring_stream},
      {"queue_pair/round_trip", queue_round_trip}, {"descriptor_ring/round_trip", ring_round_trip},
  };
  for (const auto& [name, function] : all) {
    benchmark::RegisterBenchmark(name, function)->RangeMultiplier(2)->Range(1, 64)->UseRealTime();
  }
  return true;
}();

}  // namespace
}  // namespace forebay
