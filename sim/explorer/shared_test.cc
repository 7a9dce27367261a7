// One thread: not in the thread sanitizer's tree.
// The rings in memory that two processes share (forebay/ring/event_index.h, descriptor_ring.h,
// shared_queue_pair.h and its other side) in the explorer. The two sides are two threads of one
// process here; what a hostile process may write, the unit tests show.
#include <array>
#include <cstddef>
#include <new>
#include <span>

#include "forebay/ring/descriptor_ring.h"
#include "forebay/ring/shared_queue_controller.h"
#include "forebay/ring/shared_queue_pair.h"
#include "sim/explorer/test_explore.h"

namespace forebay::explorer {
namespace {

using number = model_atomics::plain<int>;
using word32 = model_atomics::atomic<std::uint32_t>;

// Sleeps without spinning before, and never for a time.
struct model_peer_waiter {
  void wait(word32& word, std::uint32_t expected, std::uint64_t ns,
            std::source_location at = std::source_location::current()) noexcept {
    model_futex::wait(word, expected, ns, at);
  }
  void wake(word32& word) noexcept { model_futex::wake(word, static_cast<int>(threads_max)); }
  bool gone() const noexcept { return false; }
  std::uint64_t now_ns() const noexcept { return model_futex::now_ns(); }
  unsigned spins() const noexcept { return 0; }
  void relax() const noexcept {}
};

// Memory of the size that two sides ask for.
class shared_bytes {
 public:
  explicit shared_bytes(std::size_t n)
      : memory_(
            static_cast<std::byte*>(::operator new(n, std::align_val_t{shared_region_alignment}))),
        bytes_(n) {}
  ~shared_bytes() { ::operator delete(memory_, std::align_val_t{shared_region_alignment}); }
  shared_bytes(const shared_bytes&) = delete;
  shared_bytes& operator=(const shared_bytes&) = delete;
  std::span<std::byte> all() const noexcept { return {memory_, bytes_}; }

 private:
  std::byte* const memory_;
  const std::size_t bytes_;
};

// --- the event index alone ---

struct position_is_waited_for {
  static constexpr unsigned threads = 2;
  event_words<model_atomics> words;
  word32 position{0};
  number data{0};
  std::uint64_t sleeps = 0;

  position_is_waited_for() { words.wanted.store(UINT32_MAX); }
  void run(unsigned thread) {
    model_peer_waiter waiter;
    if (thread == 0) {
      data.set(1);
      for (std::uint32_t i = 0; i < 3; ++i) {
        position.store(i + 1, std::memory_order_release);  // release: for the data
        ring_bell_if_wanted(words, waiter, i, i + 1);
      }
      return;
    }
    for (std::uint32_t i = 0; i < 2; ++i) {
      const auto there = wait_for_event(words, waiter, i, UINT64_MAX, sleeps, [&]() noexcept {
        return position.load(std::memory_order_acquire) > i;  // acquire: for the data
      });
      check(there.has_value() && data.get() == 1);
    }
  }
  void finish() {}
};

// The bell rings for two reasons from one side: an entry, then the end.
struct bell_without_a_position {
  static constexpr unsigned threads = 2;
  event_words<model_atomics> words;
  word32 closed{0};
  std::uint64_t sleeps = 0;

  void run(unsigned thread) {
    model_peer_waiter waiter;
    if (thread == 0) {
      closed.store(1, std::memory_order_release);  // release: as the rings do
      ring_bell(words, waiter);
      closed.store(2, std::memory_order_release);  // release: as the rings do
      ring_bell(words, waiter);
      return;
    }
    const auto there = wait_for_event(words, waiter, 0, UINT64_MAX, sleeps, [&]() noexcept {
      return closed.load(std::memory_order_acquire) == 2;  // acquire: as the rings do
    });
    check(there.has_value());
  }
  void finish() {}
};

TEST(explored_shared, event_index) {
  expect_explored_and_needed<position_is_waited_for, bell_without_a_position>(
      {"ring/event_index.h"});
}

// --- descriptor ring ---

using driver = basic_descriptor_driver<model_atomics, model_peer_waiter>;
using device = basic_descriptor_device<model_atomics, model_peer_waiter>;

template <std::uint32_t Entries>
struct with_descriptors {
  shared_bytes region{driver::region_bytes(Entries)};
  driver host = std::move(*driver::create(region.all(), {.entries = Entries, .start = UINT32_MAX}));
  device nic = std::move(*device::attach(region.all()));
  std::array<number, 8> buffers;  // by address

  void post(std::uint64_t address) {
    buffers[address].set(static_cast<int>(address) + 1);
    check(host.post({.address = address, .length = 8}, 100 + address).has_value());
  }
  // Whether one came back.
  bool reap(std::uint64_t address) {
    std::array<ended_chain, 1> out;
    const auto n = host.reap(out);
    check(n.has_value());
    if (*n == 0) return false;
    check(out[0].id == 100 + address && out[0].length == 4);
    check(buffers[address].get() == -1);
    buffers[address].set(0);
    return true;
  }
  bool serve() {
    std::array<descriptor, 2> storage;
    const auto chain = nic.take(storage);
    check(chain.has_value());
    if (chain->descriptors.empty()) return false;
    const std::uint64_t address = chain->descriptors[0].address;
    check(chain->id == 100 + address);
    check(buffers[address].get() == static_cast<int>(address) + 1);
    buffers[address].set(-1);
    check(nic.complete(4).has_value());
    return true;
  }
};

// Both sides look without waiting.
struct descriptors_polled : with_descriptors<2> {
  static constexpr unsigned threads = 2;
  static constexpr options bounds{.preemptions = 4};

  void run(unsigned thread) {
    if (thread == 0) {
      post(0);
      host.ring_doorbell();
      post(1);
      host.ring_doorbell();
      if (reap(0)) {
        post(2);
        host.ring_doorbell();
        if (reap(1)) static_cast<void>(reap(2));
      }
    } else {
      for (int i = 0; i < 3; ++i) static_cast<void>(serve());
    }
  }
  void finish() { check(!host.fault() && !nic.fault()); }
};

// Both sides sleep when there is nothing to do.
struct descriptors_waited_for : with_descriptors<2> {
  static constexpr unsigned threads = 2;
  static constexpr options bounds{.preemptions = 1};

  void run(unsigned thread) {
    if (thread == 0) {
      for (std::uint64_t i = 0; i < 2; ++i) {
        post(i);
        host.ring_doorbell();
        check(host.wait(UINT64_MAX).has_value());
        check(reap(i));
      }
      host.close();
      return;
    }
    while (nic.wait(UINT64_MAX)) {
      while (serve()) {
      }
      nic.notify();
    }
    check(!nic.fault());
  }
  void finish() { check(host.in_flight() == 0); }
};

// The device closes under a driver that waits.
struct device_closes : with_descriptors<2> {
  static constexpr unsigned threads = 2;
  static constexpr options bounds{.preemptions = 4};

  void run(unsigned thread) {
    if (thread == 0) {
      post(0);
      post(1);
      host.ring_doorbell();
      unsigned n = 0;
      while (host.wait(UINT64_MAX)) {
        check(reap(n));
        ++n;
      }
      check(n == 1, "what was completed before the end is reaped");
      return;
    }
    check(nic.wait(UINT64_MAX).has_value());
    check(serve());
    nic.close();
  }
  void finish() {}
};

TEST(explored_shared, descriptor_ring) {
  expect_explored_and_needed<descriptors_polled, descriptors_waited_for, device_closes>(
      {"ring/descriptor_ring.h", "ring/shared_region.h"});
}

// --- queue pair ---

using host_side = basic_shared_queue_pair<model_atomics, model_peer_waiter>;
using controller_side = basic_shared_queue_controller<model_atomics, model_peer_waiter>;

template <std::uint32_t Entries, std::uint32_t Completions>
struct with_queues {
  shared_bytes region{host_side::region_bytes(Entries, Completions)};
  host_side host = std::move(*host_side::create(
      region.all(),
      {.entries = Entries, .completions = Completions, .doorbell_batch = 0, .start = UINT32_MAX}));
  controller_side controller = std::move(*controller_side::attach(region.all()));
  std::array<number, 8> buffers;  // by address
  std::array<completion, 8> done;

  bool submit(unsigned address) {
    buffers[address].set(static_cast<int>(address) + 1);
    return host.submit({.address = address, .length = 16}, done[address]).has_value();
  }
  // The address that came back, or -1.
  int reap() {
    const completion* const c = host.reap();
    if (c == nullptr) return -1;
    const auto address = static_cast<int>(c - done.data());
    check(c->status == 16 && buffers[static_cast<unsigned>(address)].get() == -1);
    return address;
  }
  std::size_t take(std::span<taken_command> out) {
    const auto n = controller.take(out);
    check(n.has_value());
    return *n;
  }
  void serve(const taken_command& t) {
    number& buffer = buffers[t.command.address];
    check(buffer.get() == static_cast<int>(t.command.address) + 1);
    buffer.set(-1);
    check(controller.complete(t.id, 16).has_value());
  }
};

struct commands_polled : with_queues<2, 2> {
  static constexpr unsigned threads = 2;
  static constexpr options bounds{.preemptions = 4};

  void run(unsigned thread) {
    if (thread == 0) {
      check(submit(0));
      host.publish();
      check(submit(1));
      host.publish();
      for (unsigned i = 0; i < 2; ++i) {
        if (reap() >= 0 && submit(2 + i)) host.publish();
      }
      static_cast<void>(reap());
    } else {
      std::array<taken_command, 2> t;
      for (int i = 0; i < 2; ++i) {
        const std::size_t n = take(t);
        for (std::size_t j = n; j-- != 0;) serve(t[j]);  // the last first
      }
    }
  }
  void finish() { check(!host.fault() && !controller.fault()); }
};

struct commands_waited_for : with_queues<2, 2> {
  static constexpr unsigned threads = 2;
  static constexpr options bounds{.preemptions = 1};

  void run(unsigned thread) {
    if (thread == 0) {
      for (unsigned i = 0; i < 2; ++i) {
        check(submit(i));
        check(host.ring_doorbell(UINT64_MAX).has_value());
        check(reap() == static_cast<int>(i));
      }
      host.close();
      return;
    }
    while (controller.wait(UINT64_MAX)) {
      std::array<taken_command, 2> t;
      const std::size_t n = take(t);
      for (std::size_t j = 0; j < n; ++j) serve(t[j]);
      controller.notify();
    }
    check(!controller.fault());
  }
  void finish() { check(host.in_flight() == 0); }
};

// A completion queue of one entry: the controller finds it full and waits for room.
struct completions_run_full : with_queues<4, 1> {
  static constexpr unsigned threads = 2;
  static constexpr options bounds{.preemptions = 4};

  void run(unsigned thread) {
    if (thread == 0) {
      unsigned next = 0;
      for (int i = 0; i < 3; ++i) {
        if (submit(next)) ++next;
        host.publish();
        static_cast<void>(reap());
      }
    } else {
      std::array<taken_command, 1> t;
      for (int i = 0; i < 3; ++i) {
        if (take(t) == 1) serve_or_fail(t[0]);
      }
    }
  }
  void serve_or_fail(const taken_command& t) {
    number& buffer = buffers[t.command.address];
    check(buffer.get() == static_cast<int>(t.command.address) + 1);
    buffer.set(-1);
    const auto ended = controller.complete(t.id, 16);
    check(ended.has_value() || ended.error() == std::errc::resource_unavailable_try_again);
  }
  void finish() { check(!host.fault() && !controller.fault()); }
};

TEST(explored_shared, queue_pair) {
  expect_explored_and_needed<commands_polled, commands_waited_for, completions_run_full>(
      {"ring/shared_queue_pair.h", "ring/shared_queue_controller.h", "ring/shared_queue.h"});
}

}  // namespace
}  // namespace forebay::explorer
